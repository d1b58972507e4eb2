"""The paper's six tables and the two it lacks, as data: what each cell trains, and which cell stands in which row."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rmam_jax import heads

TABLES = ("1", "2", "3", "4", "5", "6", "controls", "systems")
SINGLE, TEN = "centre", "ten"
PAPER_DATA = {"voc2007": "voc/2007", "coco": "coco/2014"}  # the names in `paper_tables.json`
PAPER_CLASSES = {
  **{"aero": "aeroplane", "bike": "bicycle", "table": "diningtable"},
  **{"mbike": "motorbike", "plant": "pottedplant", "tv": "tvmonitor"},
}
# Heads, each trained as configured by the cell of its name; a configuration file may have CONTROLS of its own.
CONTROLS = ("saliency", "recurrent", "fixed_grid", "whole_image", "csra", "score_map", "max_pool", "mean_pool")
SYSTEMS = ("saliency", "recurrent", "rarl", "rlsd", "rlsd_ft_rpn", "score_map", "mean_pool")
BY_REGIONS = ("saliency", "recurrent")  # the controls that are also measured by the number of regions
ABLATIONS = {"null": "rmam-null", "S+P": "rmam-S+P", "A+S": "rmam-A+S", "A+P": "rmam-A+P", "A+S+P": "rmam"}
_BOTH = ("rmam", "rmam-large")
# The paper's losses, where a data set's configuration takes others: Eq. 7-8 and Eq. 10-14, nothing beside.
PRINTED: Mapping[str, Any] = {
  "loss.classification": "euclidean",
  **{
    "loss.localization_weight": 0.1,
    "loss.anchor_weight": 0.01,
    "loss.scale_weight": 1.0,
    "loss.positive_weight": 0.1,
  },
  "stage_two.auxiliary_weight": 0.0,
}


class Spec(NamedTuple):
  """What a cell trains: a head at one of the two scales, and fields that differ from its configuration."""

  head: str
  scale: int = 0
  changes: Mapping[str, Any] = {}
  tuned_as: str = ""  # the spec whose learning rate it takes over; empty: its own


def _rmam(scale: int = 0, head: str = "recurrent", **losses: float) -> Spec:
  changes = {**PRINTED, **{f"loss.{name}": value for name, value in losses.items()}}
  return Spec(head, scale, changes, "rmam" if scale or losses else "")


SPECS: Mapping[str, Spec] = {
  **{head: Spec(head) for head in heads.SPECS},
  "rmam": _rmam(),
  "rmam-large": _rmam(scale=1),
  "rmam-null": _rmam(localization_weight=0.0),
  "rmam-S+P": _rmam(anchor_weight=0.0),
  "rmam-A+S": _rmam(positive_weight=0.0),
  "rmam-A+P": _rmam(scale_weight=0.0),
  "proposals": _rmam(head="proposals", localization_weight=0.0),
}


class Row(NamedTuple):
  """A row: its cells, fused if there are two, and what the paper prints there."""

  label: str
  cells: tuple[str, ...]
  views: str
  paper: Mapping[str, float] = {}


class Table(NamedTuple):
  title: str
  data: str  # the data set of the paper's figures; empty: the table is not the paper's
  figures: Sequence[str]  # the columns
  rows: Sequence[Row]  # in a table of ours, the first is the one that the others are compared with


class Ordering(NamedTuple):
  """A claim that one cell is better than another, measured by mAP."""

  claim: str
  better: Row
  worse: Row


def tables(data: str = "", controls: Sequence[str] = CONTROLS) -> dict[str, Table]:
  """All tables by their number; the last two are ours. Table 6 has the paper's figures for `data`, or else for VOC."""
  paper = json.loads(pathlib.Path(__file__).with_name("paper_tables.json").read_text())
  column = next((name for name, ours in PAPER_DATA.items() if ours == data), "voc2007")
  coco = paper["table2_coco_top3"]
  voc = {
    label: {PAPER_CLASSES.get(name, name): value for name, value in found.items()}
    for label, found in paper["table1_voc2007_ap"].items()
  }
  proposals, two = paper["table3_voc2007_single_crop_512_mAP"], paper["table5_coco_ten_crop_512"]
  ablations, fusions = paper["table4_voc2007_ten_crop_512_mAP"], paper["table6_mAP"]
  scales = {"RMAM (512)": _BOTH[:1], "RMAM (640)": _BOTH[1:], "RMAM": _BOTH}
  regions = {"object proposals": ("proposals",), "attentional regions": _BOTH[:1]}
  views = {
    "512 single-crop": (_BOTH[:1], SINGLE),
    "640 single-crop": (_BOTH[1:], SINGLE),
    "512 ten-crop": (_BOTH[:1], TEN),
    "640 ten-crop": (_BOTH[1:], TEN),
    "two scales ten-crop": (_BOTH, TEN),
  }
  rows = {
    "1": [Row(label, cells, TEN, voc[label]) for label, cells in scales.items()],
    "2": [Row(label, cells, TEN, coco[label]) for label, cells in scales.items()],
    "3": [Row(label, cells, SINGLE, {"mAP": proposals[label]}) for label, cells in regions.items()],
    "4": [Row(label, (cell,), TEN, {"mAP": ablations[label]}) for label, cell in ABLATIONS.items()],
    "5": [Row(label, (ABLATIONS[label],), TEN, two[label]) for label in two],
    "6": [Row(label, *where, {"mAP": fusions[label][column]}) for label, where in views.items()],
    "controls": [Row(cell, (cell,), SINGLE) for cell in controls],
    "systems": [Row(cell, (cell,), SINGLE) for cell in SYSTEMS],
  }
  about = {
    "1": ("average precision by class", "voc2007", ("AP", "mAP")),
    "2": ("precision, recall and F1", "coco", ("CP", "CR", "CF1", "OP", "OR", "OF1")),
    "3": ("attentional regions against proposals", "voc2007", ("mAP",)),
    "4": ("constraints on the regions", "voc2007", ("mAP",)),
    "5": ("constraints on the regions, by F1", "coco", ("CF1", "OF1", "mAP")),
    "6": ("views and scales", column, ("mAP",)),
    "controls": ("what the paper lacks", "", ()),
    "systems": ("the sister systems", "", ()),
  }
  return {name: Table(*about[name], rows[name]) for name in TABLES}


def orderings(chosen: Sequence[str], controls: Sequence[str] = CONTROLS) -> list[Ordering]:
  """The paper's claims that the chosen tables speak of, and ours against every control."""
  every = tables(controls=controls)
  three, four, six = ({row.label: row for row in every[name].rows} for name in ("3", "4", "6"))
  full = four.pop("A+S+P")
  found = {
    "3": [Ordering("attention against proposals", three["attentional regions"], three["object proposals"])],
    "4": [
      Ordering("Eq. 14 against gamma = 0" if label == "null" else f"A+S+P against {label}", full, row)
      for label, row in four.items()
    ],
    "6": [
      Ordering("ten views against one, the smaller scale", six["512 ten-crop"], six["512 single-crop"]),
      Ordering("ten views against one, the larger scale", six["640 ten-crop"], six["640 single-crop"]),
      Ordering("two scales against the smaller", six["two scales ten-crop"], six["512 ten-crop"]),
      Ordering("two scales against the larger", six["two scales ten-crop"], six["640 ten-crop"]),
    ],
  }
  for name in ("controls", "systems"):
    first, *others = every[name].rows
    found[name] = [Ordering(f"{first.label} against {row.label}", first, row) for row in others]
  claimed = [ordering for name in chosen for ordering in found.get(name, [])]
  return list({ordering.claim: ordering for ordering in claimed}.values())
