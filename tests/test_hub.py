"""Recognizers on the Hugging Face hub: published with a card, and loaded; the hub is an imitation on this machine."""

import base64
import functools
import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import urllib.parse

import jax
import numpy as np
import pytest
import test_published
from test_predictor import NAMES, untrained

from rmam_jax.inference import model_card, predictor, push
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import exported, workdir
from rmam_jax.weights import files

ROOT = pathlib.Path(__file__).parent.parent
SHIPPED = predictor.PRETRAINED / "digits-easy"


class Hub(http.server.BaseHTTPRequestHandler):
  """A hub with the requests that the client's `create_repo`, `upload_folder` and `snapshot_download` make.

  `server.repositories` has the content of each commit by its repository: [{name: bytes}].
  """

  protocol_version = "HTTP/1.1"

  def answer(self, content=b"", status=200, **headers):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    self.send_response(status)
    for name, value in {"Content-Length": str(len(content)), **headers}.items():
      self.send_header(name.replace("_", "-"), value)
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(content)

  def missing(self, kind):
    self.answer(b"", 404, X_Error_Code=kind)

  def commit_of(self, repository, revision):
    """The number of a revision: "main", a commit's forty digits, or None."""
    commits = self.server.repositories[repository]
    number = (
      len(commits) - 1 if revision == "main" else int(revision, 16) if re.fullmatch("[0-9a-f]{40}", revision) else -1
    )
    return number if 0 <= number < len(commits) else None

  def do_GET(self):
    self.server.asked.append(f"{self.command} {self.path}")
    path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
    api = re.fullmatch(r"/api/models/(\w+/[\w.-]+)(?:/(revision|tree)/([\w.-]+))?", path)
    file = re.fullmatch(r"/(\w+/[\w.-]+)/resolve/([\w.-]+)/(.+)", path)
    if not (api or file):  # what the client would like to know beside
      self.answer(b"", 404)
      return
    repository, revision = (api[1], api[3] or "main") if api else (file[1], file[2])
    if repository not in self.server.repositories:
      self.missing("RepoNotFound")
      return
    number = self.commit_of(repository, revision)
    if number is None:
      self.missing("RevisionNotFound")
      return
    content, commit = self.server.repositories[repository][number], f"{number:040x}"
    if file:
      self.answer(content[file[3]], X_Repo_Commit=commit, ETag=f'"{hash(content[file[3]]) & 0xFFFFFFFF:x}"')
    elif api[2] == "tree":
      self.answer([{"type": "file", "path": name, "size": len(content[name]), "oid": "0"} for name in content])
    else:
      self.answer({"id": repository, "sha": commit, "private": repository in self.server.private, "siblings": []})

  do_HEAD = do_GET

  def do_POST(self):
    self.server.asked.append(f"{self.command} {self.path}")
    body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
    if self.headers.get("Transfer-Encoding") == "chunked":
      body = b"".join(iter(lambda: self.rfile.read(int(self.rfile.readline(), 16) + 2)[:-2], b""))
    if self.headers.get("authorization") != "Bearer secret":
      self.answer({"error": "Invalid username or password."}, 401)
    elif self.path == "/api/repos/create":
      asked = json.loads(body)
      name = f"{asked['organization']}/{asked['name']}"
      there = name in self.server.repositories
      if not there:
        self.server.repositories[name] = [{".gitattributes": b""}]
        self.server.private |= {name} if asked.get("private") or asked.get("visibility") == "private" else set()
      self.answer({"url": f"{self.server.address}/{name}"}, 409 if there else 200)
    elif self.path == "/api/validate-yaml":
      self.answer({"errors": [], "warnings": []})
    elif "/preupload/" in self.path:
      files = json.loads(body)["files"]
      self.answer({"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]})
    else:
      name = re.match(r"/api/models/(.+)/commit/main", self.path)[1]
      commits = self.server.repositories[name]
      lines = [json.loads(line) for line in body.splitlines()]
      files = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
      }
      commits.append({**(commits[-1] if commits else {}), **files})
      commit = f"{len(commits) - 1:040x}"
      self.answer(
        {
          "commitUrl": f"{self.server.address}/{name}/commit/{commit}",
          "commitOid": commit,
          "success": True,
          "hookOutput": "",
        }
      )

  def log_message(self, *_):
    pass


@pytest.fixture
def hub():
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
  server.repositories, server.private, server.asked = {}, set(), []
  server.address = f"http://127.0.0.1:{server.server_port}"
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  yield server
  server.shutdown()
  thread.join()
  server.server_close()


@pytest.fixture
def home(tmp_path, monkeypatch):
  monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
  monkeypatch.delenv("HF_HUB_CACHE", raising=False)
  return tmp_path


def call(*arguments, **environment):
  """The command, in a process of its own, since the hub's library reads the environment once."""
  environment = {**os.environ, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
  return subprocess.run(
    [sys.executable, "-m", "rmam_jax", *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True
  )


@pytest.mark.slow
@pytest.mark.oracle
def test_a_recognizer_goes_to_the_hub_and_comes_back(hub, home):
  pytest.importorskip("huggingface_hub")
  there = {"HF_ENDPOINT": hub.address, "HF_TOKEN": "secret"}
  pushed = call("push", f"--workdir={SHIPPED}", "--repo=me/digits", "--private", "--license=apache-2.0", **there)
  assert pushed.returncode == 0, pushed.stderr
  assert pushed.stdout == f"{hub.address}/me/digits/commit/{1:040x}\n"
  _, files = hub.repositories["me/digits"]
  assert sorted(files) == [".gitattributes", "README.md", "model.json", "model.safetensors"]
  assert all(files[name] == (SHIPPED / name).read_bytes() for name in exported.FILES)
  assert hub.private == {"me/digits"}
  card = call("push", f"--workdir={SHIPPED}", "--repo=me/digits", "--license=apache-2.0", "--card_only", **there)
  assert card.stdout.encode() == files["README.md"], card.stderr
  assert len(hub.repositories["me/digits"]) == 2
  files["evil.pkl"] = b"never fetched"

  ours = call("predict", f"--workdir={SHIPPED}", "docs/scene.png")
  assert "label" in ours.stdout
  theirs = call("predict", "--workdir=hf:me/digits", "docs/scene.png", **there)
  assert theirs.stdout == ours.stdout, theirs.stderr
  fetched = [asked for asked in hub.asked if asked.startswith("GET") and "/resolve/" in asked]
  assert {path.rpartition("/")[2] for path in fetched} == {*exported.FILES}

  # The same without the hub, and by a revision; a change that came later is fetched only where it is asked for.
  hub.repositories["me/digits"].append({**files, "model.json": b"{}"})
  again = call("predict", f"--workdir=hf:me/digits@{1:040x}", "docs/scene.png", HF_HUB_OFFLINE="1")
  assert again.stdout == ours.stdout, again.stderr
  unreachable = call("predict", "--workdir=hf:me/digits", "docs/scene.png", HF_ENDPOINT="http://127.0.0.1:9")
  assert unreachable.stdout == ours.stdout, unreachable.stderr
  changed = call("predict", "--workdir=hf:me/digits", "docs/scene.png", **there)
  assert f"model.json: its format is not {exported.FORMAT}," in changed.stderr


fetch = functools.partial(test_published.fetch, find=exported.fetch)


@pytest.mark.slow
@pytest.mark.oracle
def test_what_cannot_be_fetched_is_told_in_one_line(hub, home):
  pytest.importorskip("huggingface_hub")
  hub.repositories["me/other"] = [{"README.md": b"# Other"}]
  names = ["hf:me/other", "hf:me/nothing", "hf:me/other@v2", "hf:me", "hf:me/a/b", "hf:me/../x"]
  other, nothing, revision, *malformed = fetch(*names, HF_ENDPOINT=hub.address)
  assert other == "UserError hf:me/other holds no model.json: it is no recognizer that `rmam-jax push` has published"
  assert nothing.startswith("UserError hf:me/nothing: the hub has no such repository, or it is private, which needs")
  assert revision == "UserError hf:me/other has no such revision: name a branch, a tag or a commit of it"
  assert all(
    "a recognizer of the Hugging Face hub is hf:OWNER/NAME or hf:OWNER/NAME@REVISION" in each for each in malformed
  )
  remedy = "With a network the same command fetches it, once; or copy the recognizer's folder and name that"
  (offline,) = fetch("hf:me/digits", HF_HUB_OFFLINE="1")
  assert offline.endswith(f"cannot be fetched from the Hugging Face hub (HF_HUB_OFFLINE is set). {remedy}")
  (unreachable,) = fetch("hf:me/digits", HF_ENDPOINT="http://127.0.0.1:9")
  assert unreachable.startswith("UserError hf:me/digits is not here and cannot be fetched from the Hugging Face hub (")
  assert unreachable.endswith(f"). {remedy}")


@pytest.mark.slow
@pytest.mark.oracle
def test_what_cannot_be_published_is_told_in_one_line(hub, home):
  pytest.importorskip("huggingface_hub")
  there = {"HF_ENDPOINT": hub.address, "HF_TOKEN": "secret"}
  hub.repositories["me/public"] = [{}]
  public = call("push", f"--workdir={SHIPPED}", "--repo=me/public", "--private", **there)
  assert (
    public.stderr.splitlines()[-1]
    == "error: hf:me/public is there and public: make it private on its page, or push without --private"
  )
  assert hub.repositories["me/public"] == [{}]
  stranger = call("push", f"--workdir={SHIPPED}", "--repo=me/digits", HF_ENDPOINT=hub.address, HF_TOKEN="wrong")
  assert stranger.returncode == 1
  assert re.fullmatch(
    r"error: hf:me/digits was not written .*`hf auth login` tells the hub who you are", stranger.stderr.splitlines()[-1]
  )
  nowhere = call("push", f"--workdir={home}", "--repo=me/digits", **there)
  assert nowhere.stderr.startswith(f"error: {home} holds neither a model.json")
  assert (
    call("push", f"--workdir={SHIPPED}", "--repo=digits").stderr == "error: --repo must be OWNER/NAME, got 'digits'\n"
  )


def test_without_the_library_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
  with pytest.raises(UserError, match=r"hf:me/digits is on the .* hub, and pip install 'rmam_jax\[hub\]' is needed"):
    predictor.load("hf:me/digits")
  with pytest.raises(UserError, match=r"pip install 'rmam_jax\[hub\]' is needed"):
    push.push(SHIPPED, "me/digits")


def test_a_recognizer_is_no_weights_of_a_backbone():
  with pytest.raises(UserError, match=r"model\.safetensors is part of a recognizer: give the folder that holds it"):
    files.read(SHIPPED / "model.safetensors")


RESULTS = {
  "data": "cats test",
  "test_images": 1234,
  "views": "ten",
  "mirror": "image",
  "AP_method": "all_point",
  "top_k": 3,
  "seed": 7,
  "mAP": 0.5,
  "AP": {"a": 0.75, "b|c": None},
  "undefined_classes": ["b|c"],
  "never_predicted_classes": [],
}


@pytest.mark.oracle
def test_the_card_says_what_the_results_say_and_no_more():
  hub = pytest.importorskip("huggingface_hub")
  trained = untrained()._replace(results=RESULTS)
  text = model_card.write(trained, "me/cats", license="mit")
  card = hub.ModelCard(text)
  assert (card.data.license, card.data.library_name, card.data.model_name) == ("mit", "rmam_jax", "cats")
  assert {"saliency", "multi-label-classification"} <= {*card.data.tags}
  (measured,) = card.data.eval_results
  assert (measured.metric_type, measured.metric_value, measured.dataset_name) == ("mAP", 0.5, "cats test")
  for part in (
    "On the 1,234 images of `cats test`, ten views, mirrored image, seed 7",
    "| mean average precision | 50.0 |",
    "| a | 75.0 |",
    "| b&#124;c | - |",
    'rmam.load("hf:me/cats")',
    "No test image had one of these, so that nothing is known of them: b|c.",
    "An image's centre is seen: 6 % at each side are cut off",
  ):
    assert part in text
  assert not re.search(r"\bIoU|CF1|SVM|centred box|float16", text)  # nothing of it was measured

  bare = model_card.write(untrained("mean_pool"), "me/cats", halved=True)
  data = hub.ModelCard(bare).data
  assert (data.license, data.eval_results) == (None, None)
  assert "Nothing: this model came without results." in bare
  assert "float16" in bare
  assert not re.search("where it looked|boxes", bare)
  assert not re.findall(r"\d+\.\d %|\| \d", bare)


@pytest.mark.oracle
def test_a_workdir_s_card_holds_no_paths(tmp_path, monkeypatch, capsys):
  pytest.importorskip("huggingface_hub")
  trained = untrained()
  trained.config.weights, trained.config.data.name = "/home/me/vgg.h5", "custom"
  trained.config.data.train = trained.config.data.images = "/home/me/cats"
  workdir.claim(tmp_path / "run", trained.config, NAMES, {})
  monkeypatch.setattr(exported.checkpoints, "load_best", lambda *_: (None, trained.params, {"best_epoch": 2}))
  card = push.prepare(tmp_path / "run", "me/cats", tmp_path / "out")
  assert "/home/me" not in card
  assert "- images of its author's own\n- The backbone began with the weights `vgg.h5`" in card
  assert (tmp_path / "out" / "README.md").read_text() == card
  assert "has no results for the card" in capsys.readouterr().err


def test_results_go_with_an_exported_model(tmp_path, monkeypatch):
  """Those of the same epoch, without what belongs to the machine; an exported model is exported again."""
  trained = untrained()
  workdir.claim(tmp_path / "run", trained.config, NAMES, {})
  content = {**RESULTS, "best_epoch": 2, "origin": "/home/me/cats", "skipped_images": ["/home/me/cats/1.jpg"]}
  (tmp_path / "run" / "results.json").write_text(json.dumps({**content, "config": {"data": {"root": "/home/me"}}}))
  monkeypatch.setattr(exported.checkpoints, "load_best", lambda *_: (None, trained.params, {"best_epoch": 2}))
  exported.export(tmp_path / "run", tmp_path / "out")
  exported.export(tmp_path / "out", tmp_path / "half", half=True)
  for name in ("out", "half"):
    assert exported.load(tmp_path / name).results == RESULTS
    assert "/home/me" not in (tmp_path / name / "model.json").read_text()
  monkeypatch.setattr(exported.checkpoints, "load_best", lambda *_: (None, trained.params, {"best_epoch": 3}))
  assert exported.load(tmp_path / "run").results is None
  whole, half = (
    np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(exported.load(tmp_path / name).params)])
    for name in ("out", "half")
  )
  np.testing.assert_allclose(half, whole, atol=1e-3)
  assert (half != whole).any()
