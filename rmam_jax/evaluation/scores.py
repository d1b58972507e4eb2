"""Saved scores: tables are made from them without another pass, and the scores of two runs become one."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmam_jax.evaluation import calibration, metrics
from rmam_jax.evaluation import views as views_lib
from rmam_jax.evaluation.outputs import Outputs
from rmam_jax.runtime import files
from rmam_jax.runtime.errors import UserError, check_name

FILE = "scores.npz"
NETWORK = "log-odds"  # what the network's scores in it are; those of before were its own, which Eq. 7-8 does not fix


class Scores(NamedTuple):
  """Of one split. N images, L classes."""

  ids: np.ndarray  # [N]
  class_names: np.ndarray  # [L]
  labels: np.ndarray  # float32 [N, L]
  ignore: np.ndarray  # bool [N, L]
  network: np.ndarray  # float32 [N, L], log-odds
  svm: np.ndarray  # float64 [N, L], margins; [N, 0] without SVMs
  made_by: np.ndarray  # str, JSON, from `made_by`


ALIKE = ("views", "mirror", "feature", "svm_normalize")  # in which runs must agree whose scores become one


def made_by(config: Any, checkpoint: str) -> dict[str, Any]:
  """What scores depend on: the configuration of the evaluation, and the digest of the best epoch's checkpoint."""
  names = (*ALIKE, "svm_solver", "svm_images", "svm_c", "svm_refit", "ap_method")
  fields = {name: config.evaluation[name] for name in names}
  return {"checkpoint": checkpoint, "network": NETWORK, **fields, **views_lib.names(config)}


def save(
  folder: pathlib.Path,
  outputs: Outputs,
  class_names: Sequence[str],
  kind: str,
  svm: np.ndarray | None,
  made: Mapping[str, Any],
) -> None:
  """The scores of a split to WORKDIR/scores.npz, the network's as log-odds.

  `kind` is the classification loss that they were trained with, `svm` are the margins, `made` is from `made_by`.
  """
  scores = Scores(
    ids=np.array(outputs.ids),
    class_names=np.array(class_names),
    labels=outputs.labels,
    ignore=outputs.ignore,
    network=calibration.log_odds(outputs.scores, kind),
    svm=np.zeros((len(outputs.labels), 0)) if svm is None else svm,
    made_by=np.array(json.dumps(made)),
  )
  files.write_npz(folder / FILE, scores._asdict())


def load(folder: pathlib.Path) -> Scores:
  """From WORKDIR/scores.npz, no pickle; raises a UserError for a run not evaluated yet, and for a damaged file."""
  path = folder / FILE
  if not path.exists():
    raise UserError(f"{folder} holds no {FILE}: run eval.py --workdir={folder} first")
  remedy = f"run eval.py --workdir={folder} again"
  try:
    return Scores(**files.read_npz(path, remedy))
  except TypeError as error:
    raise UserError(f"{path} holds other things than scores ({error}): {remedy}") from error


# From the scores of the runs [R, N, L] to one's [N, L].
FUSIONS = {
  "mean": lambda scores: scores.mean(axis=0),  # the paper's, as read here
  "max": lambda scores: scores.max(axis=0),
  "rank": lambda scores: (scores.argsort(axis=1).argsort(axis=1) / max(scores.shape[1] - 1, 1)).mean(axis=0),
}


def fuse(runs: Mapping[str, Scores], fusion: str = "mean") -> Scores:
  """The scores of several runs, by name, on the same images as those of one, e.g. the paper's two scales.

  "rank" is the mean place of an image among all by a class's score: such scores lie in [0, 1] and say nothing but the
  order. Raises a UserError for an unknown fusion, and for runs that differ in images, labels, classes or evaluation.
  """
  check_name("--fusion", fusion, FUSIONS)
  (first_name, first), *others = runs.items()
  for name, other in others:
    for field in ("class_names", "ids", "labels", "ignore"):
      if not np.array_equal(getattr(first, field), getattr(other, field)):
        raise UserError(f"{first_name} and {name} differ in {field}: they were not evaluated on the same split")
    if first.svm.shape != other.svm.shape:
      raise UserError(f"of {first_name} and {name} one has no SVMs: evaluate both with evaluation.svm_solver")
    ours, theirs = about(first), about(other)
    for field in ALIKE:
      if ours[field] != theirs[field]:
        raise UserError(
          f"{first_name} and {name} were evaluated with another {field}, {ours[field]} and {theirs[field]}: evaluate"
          f" both alike, --evaluation.{field}={ours[field]}"
        )
  every = runs.values()
  together = {name: FUSIONS[fusion](np.stack([getattr(run, name) for run in every])) for name in ("network", "svm")}
  return first._replace(**together)


def about(scores: Scores) -> dict[str, Any]:
  """What `made_by` said of them."""
  return json.loads(str(scores.made_by))


def describe(scores: Scores) -> str:
  """In words: the views, and the SVMs."""
  made = about(scores)
  svms = f"SVMs ({made['svm_solver']}) on features {made['feature']}" if scores.svm.shape[1] else "no SVMs"
  return f"{views_lib.in_words(made)}; {svms}"


def protocol(name: str) -> metrics.Protocol:
  """The protocol of this name; raises UserError if there is none."""
  check_name("--protocol", name, metrics.PROTOCOLS)
  return metrics.PROTOCOLS[name]


def measure(scores: Scores, names: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
  """`metrics.measure` by the named protocols, or by all with scores here; raises a UserError if a named one has none."""
  found = {}
  for name in names or metrics.PROTOCOLS:
    rules = protocol(name)
    if not rules.ap_method:
      rules = rules._replace(ap_method=about(scores)["ap_method"])
    measured = getattr(scores, rules.scores)
    if measured.shape[1]:
      found[name] = metrics.measure(rules, measured, scores.labels, scores.ignore)
    elif names:
      raise UserError(f"--protocol={name} measures SVMs and there are none: set --evaluation.svm_solver=newton")
  return found
