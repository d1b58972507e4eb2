"""A small web page, and JSON beside it, for one recognizer: images in, labels and regions out. Nothing is kept.

    GET  /          the page
    POST /predict   an image's bytes -> what `predict_files.as_json` says of it, and the probability of each class
    GET  /health    whether it works, and of which classes

Whoever can reach the address can use it: there is neither a password nor encryption. Other pages that a browser shows
can neither read an answer nor send an image: none is allowed to by CORS, images of a type that forms can send are
refused, and so is any other name of the host, as of a DNS server that was made to point here.
"""

import ipaddress
import secrets
import socket
import threading
import urllib.parse
from typing import TYPE_CHECKING

import numpy as np

from rmam_jax.data import images
from rmam_jax.inference import predict_files, predictor
from rmam_jax.runtime.errors import UserError, os_errors
from rmam_jax.version import __version__
from rmam_jax.visual import pictures

if TYPE_CHECKING:
  import flask

_HEADERS = {
  "Cache-Control": "no-store",
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
  "X-Frame-Options": "DENY",
}
_POLICY = (
  "default-src 'none'; img-src blob: data:; connect-src 'self'; style-src 'nonce-{0}'; script-src 'nonce-{0}';"
  " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = ("image/", "application/octet-stream")  # of what is sent; neither is one that a form of another page can send


def make_app(
  recognizer: predictor.Predictor, *, title: str, max_bytes: int, max_pixels: int, hosts: list[str] | None = None
) -> "flask.Flask":
  """The web application, by WSGI.

  Args:
    recognizer: what predicts; one image at a time.
    title: what the page calls it.
    max_bytes, max_pixels: the most that a file, and the image in it, may have.
    hosts: the names that it answers to; None: to any.

  Raises a UserError without the extra `serve`.
  """
  try:
    import flask
    import jinja2
    from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
  except ImportError as error:
    raise UserError("serving needs Flask and waitress, which pip install 'rmam_jax[serve]' brings") from error
  app = flask.Flask("rmam_jax", static_folder=None, template_folder=None)
  app.config["MAX_CONTENT_LENGTH"] = max_bytes
  app.jinja_loader = jinja2.PackageLoader("rmam_jax.visual")
  app.json.sort_keys = False
  one_at_a_time = threading.Lock()

  def refused(status: int, reason: str) -> tuple[dict[str, str], int]:
    return {"error": reason}, status

  @app.before_request
  def answer_to_own_names():
    if hosts is not None and _name_in(flask.request.headers.get("Host", "")) not in hosts:
      return refused(400, f"it answers to the names {', '.join(hosts)} alone")
    return None

  @app.get("/")
  def page():
    flask.g.nonce = secrets.token_urlsafe()
    shown = {"title": title, "version": __version__, "max_bytes": max_bytes, "colours": pictures.STEP_COLOURS}
    return flask.render_template("serve.html", nonce=flask.g.nonce, **shown)

  @app.post("/predict")
  def predict():
    if not (flask.request.mimetype or "").startswith(_TYPES):
      return refused(415, "send an image's bytes as they are, with a Content-Type such as image/jpeg")
    content = flask.request.get_data(cache=False)
    if not content:
      return refused(422, "the request is empty: send an image's bytes")
    if images.has_too_many_scans(content):
      return refused(422, f"the image has more than {images.MOST_SCANS} scans: save it anew")
    (width, height), _ = images.header(content)
    if width * height > max_pixels:
      return refused(413, f"the image has {width} x {height} pixels, and {max_pixels:,} are allowed: make it smaller")
    try:
      with one_at_a_time:
        (found,) = recognizer.predict([content])
    except UserError as error:
      return refused(422, str(error).removeprefix("image 0: "))
    probabilities = zip(recognizer.class_names, found.probabilities.tolist(), strict=True)
    answer = predict_files.as_json(found, with_regions=True)
    return answer | {"probabilities": {name: round(probability, 6) for name, probability in probabilities}}

  @app.get("/health")
  def health():
    return {"status": "ok", "model": title, "version": __version__, "classes": list(recognizer.class_names)}

  @app.errorhandler(HTTPException)
  def explain(error: HTTPException):
    if isinstance(error, RequestEntityTooLarge):
      return refused(413, f"the file has more than {max_bytes:,} bytes: make it smaller")
    return refused(error.code, error.description)

  @app.after_request
  def protect(response):
    response.headers.update(_HEADERS)
    response.headers["Content-Security-Policy"] = _POLICY.format(flask.g.get("nonce", "none"))
    return response

  return app


def _name_in(host: str) -> str | None:
  """The name in a header `Host`, without port and brackets; None if it is none."""
  try:
    return urllib.parse.urlsplit(f"//{host}").hostname
  except ValueError:
    return None


def _is_local(host: str) -> bool:
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == "localhost"


def serve(
  recognizer: predictor.Predictor,
  *,
  title: str,
  host: str = "127.0.0.1",
  port: int = 8000,
  max_bytes: int,
  max_pixels: int,
) -> None:
  """Serves the application until Ctrl-C; prints its address.

  Args:
    recognizer, title, max_bytes, max_pixels: as in `make_app`.
    host: the address to listen at: a name, or an IP address of either version.
    port: 0: any that is free.

  Raises a UserError if it cannot listen there, and without the extra `serve`.
  """
  # Bound to this machine alone, it answers to the names of this machine alone.
  hosts = list(dict.fromkeys(["localhost", "127.0.0.1", "::1", host])) if _is_local(host) else None
  app = make_app(recognizer, title=title, max_bytes=max_bytes, max_pixels=max_pixels, hosts=hosts)
  import waitress

  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  with os_errors(f"cannot listen at {host}, port {port}", "Name another with --host=ADDRESS or --port=N."):
    listening = socket.create_server((host, port), family=family)
  with listening:
    server = waitress.create_server(
      app,
      sockets=[listening],
      ident=None,
      threads=4,
      max_request_body_size=2 * max_bytes,  # beyond it waitress hangs up; up to it the application says why
      inbuf_overflow=4 * max_bytes,  # images stay in memory
    )
    recognizer.predict([np.zeros((64, 64, 3), np.uint8)])  # compiles, so that the first image does not wait
    shown = f"[{host}]" if ":" in host else host
    print(f"{title}: http://{shown}:{listening.getsockname()[1]}  (Ctrl-C ends it)", flush=True)
    if not _is_local(host):
      print("whoever can reach this machine can use it: there is neither a password nor encryption", flush=True)
    server.run()
