"""The documentation: every page can be found, and the site builds, is whole, and loads nothing from elsewhere."""

import html.parser
import os
import pathlib
import re
import subprocess
import sys

import pytest

import rmam_jax

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"


def test_every_page_is_in_the_navigation():
  _, _, nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")
  pages = {str(path.relative_to(DOCS)) for kind in ("*.md", "*.ipynb") for path in DOCS.rglob(kind)}
  listed = re.findall(r": (\S+\.(?:md|ipynb))$", nav, re.MULTILINE)
  assert sorted(listed) == sorted(pages)


class Page(html.parser.HTMLParser):
  """A page's ids, its links, and what it loads by itself."""

  def __init__(self, path):
    super().__init__()
    self.ids, self.links, self.loaded = set(), [], []
    self.feed(path.read_text())

  def handle_starttag(self, tag, attributes):
    found = dict(attributes)
    self.ids |= {found[name] for name in ("id", "name") if name in found}
    if tag == "a":
      self.links += [found["href"]] if "href" in found else []
    else:
      self.loaded += [found[name] for name in ("src", "href") if found.get(name)]


@pytest.mark.slow
@pytest.mark.oracle
def test_the_site_builds_without_a_warning(tmp_path):
  for name in ("mkdocs", "material", "mkdocstrings", "mkdocs_jupyter"):
    pytest.importorskip(name, reason="the `docs` extra is not installed")
  command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
  environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
  built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
  assert built.returncode == 0, built.stdout + built.stderr
  pages = {path.resolve(): Page(path) for path in tmp_path.rglob("*.html") if path.name != "404.html"}
  assert len(pages) == len([*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")])
  broken = []
  for path, page in pages.items():
    assert [each for each in page.loaded if re.match(r"(https?:)?//", each)] == []
    for link in page.links:
      if re.match(r"[a-z]+:", link):
        continue
      place, _, anchor = link.partition("#")
      target = (path.parent / place).resolve() if place else path
      target = target / "index.html" if target.is_dir() else target
      if not target.exists() or (anchor and target in pages and anchor not in pages[target].ids):
        broken.append(f"{path.relative_to(tmp_path)}: {link}")
  assert broken == []
  reference = pages[(tmp_path / "reference" / "index.html").resolve()]
  assert {f"rmam_jax.{name}" for name in rmam_jax.__all__ if name != "__version__"} <= reference.ids
