"""The paper's six tables and the two it lacks, as data: which cell, seen from which views, stands in which row."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

FIGURES = ("mAP", "CP", "CR", "CF1", "OP", "OR", "OF1")
TABLES = ("1", "2", "3", "4", "5", "6", "controls", "systems")
SINGLE, TEN = "centre", "ten"
PAPER_DATA = {"voc2007": "voc/2007", "coco": "coco/2014"}  # the names in `paper_tables.json`
PAPER_CLASSES = {
  **{"aero": "aeroplane", "bike": "bicycle", "table": "diningtable"},
  **{"mbike": "motorbike", "plant": "pottedplant", "tv": "tvmonitor"},
}


class Row(NamedTuple):
  """A row: its cells, fused if there are two, and what the paper prints there."""

  label: str
  cells: tuple[str, ...]
  views: str
  paper: Mapping[str, float] = {}


class Table(NamedTuple):
  title: str
  data: str  # the data set of the paper's figures
  figures: Sequence[str]  # the columns
  rows: Sequence[Row]


class Ordering(NamedTuple):
  """A claim that one cell is better than another, measured by mAP."""

  claim: str
  better: Row
  worse: Row


def _paper() -> dict[str, Any]:
  return json.loads(pathlib.Path(__file__).with_name("paper_tables.json").read_text())


LOOKING = ("saliency", "recurrent", "fixed_grid")
CONTROLS = (*LOOKING, "whole_image", "score_map", "max_pool", "mean_pool")
SYSTEMS = ("saliency", "recurrent", "rarl", "rlsd", "rlsd_ft_rpn", "score_map", "mean_pool")
ABLATIONS = {"null": "rmam-null", "S+P": "rmam-S+P", "A+S": "rmam-A+S", "A+P": "rmam-A+P", "A+S+P": "rmam"}
_BOTH = ("rmam", "rmam-large")


def tables(data: str = "") -> dict[str, Table]:
  """All tables by their number; the last two are ours.

  Args:
    data: the data set; Table 6 has figures for both of `PAPER_DATA`, and VOC's for any other.
  """
  paper = _paper()
  column = next((name for name, ours in PAPER_DATA.items() if ours == data), "voc2007")
  voc, coco = paper["table1_voc2007_ap"], paper["table2_coco_top3"]
  scales = {"RMAM (512)": _BOTH[:1], "RMAM (640)": _BOTH[1:], "RMAM": _BOTH}
  fusion = {
    "512 single-crop": (_BOTH[:1], SINGLE),
    "640 single-crop": (_BOTH[1:], SINGLE),
    "512 ten-crop": (_BOTH[:1], TEN),
    "640 ten-crop": (_BOTH[1:], TEN),
    "two scales ten-crop": (_BOTH, TEN),
  }
  proposals = paper["table3_voc2007_single_crop_512_mAP"]
  ablations, two = paper["table4_voc2007_ten_crop_512_mAP"], paper["table5_coco_ten_crop_512"]
  return {
    "1": Table(
      "average precision by class",
      "voc2007",
      ("AP", "mAP"),
      [
        Row(label, cells, TEN, {PAPER_CLASSES.get(name, name): value for name, value in voc[label].items()})
        for label, cells in scales.items()
      ],
    ),
    "2": Table(
      "precision, recall and F1",
      "coco",
      FIGURES[1:],
      [Row(label, cells, TEN, coco[label]) for label, cells in scales.items()],
    ),
    "3": Table(
      "attentional regions against proposals",
      "voc2007",
      ("mAP",),
      [
        Row("object proposals", ("proposals",), SINGLE, {"mAP": proposals["object proposals"]}),
        Row("attentional regions", _BOTH[:1], SINGLE, {"mAP": proposals["attentional regions"]}),
      ],
    ),
    "4": Table(
      "constraints on the regions",
      "voc2007",
      ("mAP",),
      [Row(label, (cell,), TEN, {"mAP": ablations[label]}) for label, cell in ABLATIONS.items()],
    ),
    "5": Table(
      "constraints on the regions, by F1",
      "coco",
      ("CF1", "OF1", "mAP"),
      [Row(label, (ABLATIONS[label],), TEN, two[label]) for label in two],
    ),
    "6": Table(
      "views and scales",
      column,
      ("mAP",),
      [Row(label, *where, {"mAP": paper["table6_mAP"][label][column]}) for label, where in fusion.items()],
    ),
    "controls": Table("what the paper lacks", "", (), [Row(cell, (cell,), SINGLE) for cell in CONTROLS]),
    "systems": Table("the sister systems", "", (), [Row(cell, (cell,), SINGLE) for cell in SYSTEMS]),
  }


def orderings(chosen: Sequence[str]) -> list[Ordering]:
  """The paper's claims that the chosen tables speak of, and ours against every control."""
  by_label = {name: {row.label: row for row in table.rows} for name, table in tables().items()}
  full = by_label["4"]["A+S+P"]
  six = by_label["6"]
  found = {
    "3": [
      Ordering(
        "attention against proposals",
        *(by_label["3"][kind] for kind in ("attentional regions", "object proposals")),
      )
    ],
    "4": [
      Ordering("Eq. 14 against gamma = 0" if label == "null" else f"A+S+P against {label}", full, row)
      for label, row in by_label["4"].items()
      if row is not full
    ],
    "6": [
      Ordering("ten views against one, the smaller scale", six["512 ten-crop"], six["512 single-crop"]),
      Ordering("ten views against one, the larger scale", six["640 ten-crop"], six["640 single-crop"]),
      Ordering("two scales against the smaller", six["two scales ten-crop"], six["512 ten-crop"]),
      Ordering("two scales against the larger", six["two scales ten-crop"], six["640 ten-crop"]),
    ],
    **{
      name: [
        Ordering(f"saliency against {label}", by_label[name]["saliency"], row)
        for label, row in by_label[name].items()
        if label != "saliency"
      ]
      for name in ("controls", "systems")
    },
  }
  every = [ordering for name in chosen for ordering in found.get(name, [])]
  return list({ordering.claim: ordering for ordering in every}.values())
