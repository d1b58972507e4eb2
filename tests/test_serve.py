"""The page and its JSON: they say what prediction says, refuse what is too much in clear words, and let no one else in."""

import base64
import io
import pathlib
import re
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from rmam_jax.inference import predictor, serve
from rmam_jax.runtime.errors import UserError

DOCS = pathlib.Path(__file__).parent.parent / "docs"
HOSTILE = '"><script>alert("out")</script>'
MOST_BYTES, MOST_PIXELS = 30_000, 20_000


@pytest.fixture(scope="module")
def recognizer():
  return predictor.load("digits-easy", batch_size=1)


@pytest.fixture
def client(recognizer):
  pytest.importorskip("flask", reason="the `serve` extra is not installed")
  limits = {"max_bytes": MOST_BYTES, "max_pixels": MOST_PIXELS}
  return serve.make_app(recognizer, title=HOSTILE, hosts=["localhost", "127.0.0.1", "::1"], **limits).test_client()


def png(width, height):
  file = io.BytesIO()
  Image.new("RGB", (width, height)).save(file, "PNG")
  return file.getvalue()


@pytest.mark.oracle
def test_the_answer_is_what_prediction_says(client, recognizer):
  content = (DOCS / "scene.png").read_bytes()
  answer = client.post("/predict", data=content, content_type="image/png")
  (wanted,) = recognizer.predict([content])
  found = answer.get_json()
  assert answer.status_code == 200
  assert (found["width"], found["height"]) == (wanted.width, wanted.height)
  assert [(each["label"], each["step"]) for each in found["labels"]] == [
    (each.name, each.step) for each in wanted.labels
  ]
  assert len(found["labels"]) >= 2
  boxes = [[each["box"] for each in found["labels"]], [each["box"] for each in found["regions"]]]
  np.testing.assert_allclose(boxes[0], [each.box for each in wanted.labels], atol=0.01)
  np.testing.assert_allclose(boxes[1], [each.box for each in wanted.regions], atol=0.01)
  assert list(found["probabilities"]) == list(recognizer.class_names)
  np.testing.assert_allclose(list(found["probabilities"].values()), wanted.probabilities, atol=1e-6)
  assert client.post("/predict", data=content, content_type="application/octet-stream").get_json() == found
  health = client.get("/health").get_json()
  assert (health["status"], health["classes"]) == ("ok", list(recognizer.class_names))


@pytest.mark.oracle
@pytest.mark.parametrize(
  ("request_", "status", "reason"),
  [
    ({"data": b"x" * (MOST_BYTES + 1)}, 413, "the file has more than 30,000 bytes: make it smaller"),
    ({"data": png(201, 100)}, 413, "the image has 201 x 100 pixels, and 20,000 are allowed: make it smaller"),
    ({"data": b"GIF89a, as it were"}, 422, "not a readable image"),
    ({"data": png(40, 40)[:60]}, 422, "not a readable image"),
    ({"data": b"\xff\xd8" + 101 * b"\xff\xda\x00\x08"}, 422, "the image has more than 100 scans"),
    ({"data": b""}, 422, "the request is empty"),
    (
      {"data": png(40, 40), "content_type": "text/plain"},
      415,
      "send an image's bytes as they are, with a Content-Type",
    ),
    (
      {"data": {"image": (io.BytesIO(png(40, 40)), "a.png")}, "content_type": "multipart/form-data"},
      415,
      "send an image",
    ),
    ({"path": "/nowhere"}, 404, "The requested URL was not found"),
    ({"method": "GET"}, 405, "The method is not allowed"),
    (
      {"path": "/health", "method": "GET", "headers": {"Host": "evil.example"}},
      400,
      "it answers to the names localhost,",
    ),
  ],
)
def test_what_is_refused_is_told_why(client, request_, status, reason):
  options = {"path": "/predict", "method": "POST", "content_type": "image/png", **request_}
  found = client.open(**options)
  assert (found.status_code, found.mimetype) == (status, "application/json")
  assert found.get_json()["error"].startswith(reason)
  assert found.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.oracle
@pytest.mark.parametrize(
  ("host", "status"),
  [
    ("localhost", 200),
    ("LOCALHOST:8000", 200),
    ("127.0.0.1:8000", 200),
    ("[::1]:8000", 200),
    ("localhost.evil.example", 400),
    ("evil.example:8000", 400),
    ("evil@localhost.example", 400),
    ("[::1", 400),
  ],
)
def test_it_answers_to_its_own_names_alone(client, host, status):
  assert client.get("/health", headers={"Host": host}).status_code == status


@pytest.mark.oracle
def test_no_other_page_is_let_in_and_names_stay_text(client):
  page = client.get("/")
  policy, text = page.headers["Content-Security-Policy"], page.get_data(as_text=True)
  (nonce,) = set(re.findall(r"'nonce-(.+?)'", policy))
  assert "unsafe" not in policy
  assert text.count(f'nonce="{nonce}"') == 2
  assert nonce not in client.get("/").get_data(as_text=True)
  assert HOSTILE not in text
  assert text.count("&lt;script&gt;") == 2
  asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
  for found in (page, client.options("/predict", headers=asked), client.get("/health", headers=asked)):
    assert not [name for name in found.headers.keys() if name.startswith("Access-Control")]  # noqa: SIM118
    assert found.headers["X-Frame-Options"] == "DENY"
    assert found.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert found.headers["Cache-Control"] == "no-store"


LIMITS = {"max_bytes": MOST_BYTES, "max_pixels": MOST_PIXELS}


@pytest.mark.oracle
def test_a_port_that_is_taken_is_named(recognizer):
  pytest.importorskip("waitress", reason="the `serve` extra is not installed")
  with socket.socket() as other:
    other.bind(("127.0.0.1", 0))
    other.listen()
    port = other.getsockname()[1]
    with pytest.raises(
      UserError, match=f"cannot listen at 127.0.0.1, port {port}: .* Name another with --host=ADDRESS or --port=N"
    ):
      serve.serve(recognizer, title="digits", port=port, **LIMITS)


def test_without_the_extra_it_says_which(recognizer, monkeypatch):
  monkeypatch.setitem(sys.modules, "flask", None)
  with pytest.raises(UserError, match=r"pip install 'rmam_jax\[serve\]' brings"):
    serve.serve(recognizer, title="digits", **LIMITS)


@pytest.fixture
def address():
  """Of the real command, serving."""
  pytest.importorskip("waitress", reason="the `serve` extra is not installed")
  command = [sys.executable, "-m", "rmam_jax", "serve", "--workdir=digits-easy", "--port=0", "--max_megabytes=0.03"]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
    said = server.stdout.readline()
    yield re.search(r"http://127\.0\.0\.1:\d+", said)[0]
    server.terminate()
    assert server.wait(60) == 0


DROP = """([name, content]) => {
  const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0)), data = new DataTransfer();
  data.items.add(new File([bytes], name, {type: "image/png"}));
  document.querySelector(".drop").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
}"""


@pytest.mark.slow
@pytest.mark.browser
def test_a_dropped_image_gets_its_labels_and_regions(watched_tab, address, recognizer, tmp_path):
  tab, complaints, requests = watched_tab
  tab.goto(address)
  content = (DOCS / "scene.png").read_bytes()
  (wanted,) = recognizer.predict([content])
  labels = [f"{each.name} {each.probability:.3f}" for each in wanted.labels]
  hostile = "<img src=x onerror=alert(1)>.png"
  for give in (
    lambda: tab.set_input_files("input", DOCS / "scene.png"),
    lambda: tab.evaluate(DROP, [hostile, base64.b64encode(content).decode()]),
  ):
    give()
    tab.wait_for_selector(".label:visible")
    assert [" ".join(text.split()) for text in tab.locator(".label").all_inner_texts()] == labels
  assert tab.inner_text("#said") == f"{hostile}: 72 x 72 pixels, 3 labels"
  assert tab.locator("rect").count() == len(wanted.regions)
  step, (left, top, right, _) = wanted.labels[0].step, wanted.labels[0].box
  view, rect = (tab.locator(name).bounding_box() for name in (".view img", f'rect[data-step="{step}"]'))
  scale = view["width"] / wanted.width
  assert rect["x"] - view["x"] == pytest.approx(left * scale, abs=3)
  assert rect["y"] - view["y"] == pytest.approx(top * scale, abs=3)
  assert rect["width"] == pytest.approx((right - left) * scale, abs=6)
  tab.hover(".label >> nth=0")
  assert tab.get_attribute("rect.lit", "data-step") == str(step)
  assert complaints == []

  for name, given, said in (
    ("large.png", b"x" * 30_001, "large.png: 0.0 MB, and 0.03 are allowed"),
    ("none.png", b"no image", "none.png: not a readable image"),
  ):
    (tmp_path / name).write_bytes(given)
    tab.set_input_files("input", tmp_path / name)
    tab.wait_for_selector("#said.wrong")
    tab.wait_for_function("text => document.querySelector('#said').textContent.startsWith(text)", arg=said)
    assert not tab.is_visible("main")
  tab.close()
  assert all("422" in each for each in complaints)  # Chromium tells of the answer that refuses
  assert {url.split("/")[2] for url in requests if url.startswith("http")} == {address.removeprefix("http://")}
