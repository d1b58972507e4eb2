"""Two CPU devices for every test, one cache of compiled programs for them all, and one small data set made once."""

import atexit
import importlib.metadata
import os
import shutil
import tempfile

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
# Programs of tests run once or twice: compiling them costs more than running them.
flags = ["--xla_force_host_platform_device_count=2", "--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # XLA ends a process that names a flag it does not know
  flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  folder = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp()
  # Only a bounded cache is locked: without a bound one of the processes that share it may read a program of which
  # another has written half, and JAX's warning, an error here, fails whatever test that was.
  os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(10**10)
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
  """What the package keeps for its user is kept elsewhere."""
  os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
  """A folder with digits/tiny prepared by the real builder."""
  from rmam_jax.data import stored

  root = tmp_path_factory.mktemp("data")
  stored.find("digits/tiny", str(root))
  return root


@pytest.fixture(scope="session")
def chromium():
  """Headless Chromium."""
  playwright = pytest.importorskip("playwright.sync_api", reason="the `browser` extra is not installed")
  path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
  if path is None:
    pytest.skip("no Chromium on this machine")
  with playwright.sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
    yield browser
    browser.close()


@pytest.fixture
def watched_tab(chromium):
  """A new tab, what its pages complain of, and the addresses that they ask for; the test closes it."""
  tab = chromium.new_page(viewport={"width": 1200, "height": 900})
  complaints, requests = [], []
  tab.on("console", lambda message: complaints.append(message.text))
  tab.on("pageerror", lambda error: complaints.append(str(error)))
  tab.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
  tab.on("request", lambda request: requests.append(request.url))
  return tab, complaints, requests
