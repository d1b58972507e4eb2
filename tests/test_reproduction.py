"""The paper's tables: how sure a difference is, which cells are trained, and that none is trained twice."""

import pathlib

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from test_weights import inner

from rmam_jax.data import splits
from rmam_jax.evaluation import bootstrap
from rmam_jax.reproduction import cells, plan, reproduce, tables
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import pipeline

CONFIG = "configs/digits.py:tiny"


def case(images=60, classes=4, seed=0):
  rng = np.random.default_rng(seed)
  labels = (rng.random((images, classes)) < 0.3).astype(np.float32)
  scores = np.round(labels + rng.normal(0, 1, labels.shape), 1)  # many equal
  return scores, labels, rng.random(labels.shape) < 0.1


def test_weighted_average_precision_is_scikit_learn_s():
  scores, labels, _ = case()
  weights = bootstrap.resample_counts(len(scores), 20)
  assert (weights.sum(axis=1) == len(scores)).all()
  found = bootstrap.weighted_average_precisions(scores[:, 0], labels[:, 0], weights)
  wanted = [average_precision_score(labels[:, 0], scores[:, 0], sample_weight=each) for each in weights]
  np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_resamples_draw_every_image_alike():
  counts = bootstrap.resample_counts(50, 4_000)
  np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.1)
  np.testing.assert_allclose(counts.var(axis=0), 49 / 50, atol=0.15)  # of a binomial of 50 draws


def test_resampled_map_leaves_out_ignored_labels_and_classes_that_were_not_drawn():
  scores, labels, ignore = case()
  labels[:, 3] = 0
  once = np.ones((1, len(scores)), int)
  wanted = [average_precision_score(labels[~ignore[:, c], c], scores[~ignore[:, c], c]) for c in range(3)]
  np.testing.assert_allclose(bootstrap.resampled_maps(scores, labels, ignore, once), [np.mean(wanted)], rtol=1e-12)


def test_an_interval_is_paired():
  """Two methods that are equally far apart on every resample differ for sure, however much both vary."""
  maps = np.linspace(0.2, 0.8, 101)
  found = bootstrap.paired_interval([maps + 0.01, maps + 0.03], [maps, maps])
  np.testing.assert_allclose(found, (0.02, 0.02, 0.02), atol=1e-12)
  assert found.verdict == "holds"
  assert bootstrap.paired_interval([maps], [maps + 0.01]).verdict == "reversed"
  assert bootstrap.Interval(0.1, -0.1, 0.3).verdict == "open"
  spread = np.append(0.4, np.linspace(0, 1, 101))  # of the images as they are, then of the resamples
  np.testing.assert_allclose(bootstrap.paired_interval([spread], [np.zeros(102)]), (0.4, 0.025, 0.975), atol=1e-12)


def test_tables_hold_the_paper_s_figures():
  found = tables.tables()
  printed = {row.label: dict(row.paper) for row in found["4"].rows}
  assert printed == {
    label: {"mAP": value}
    for label, value in (("null", 89.9), ("S+P", 90.2), ("A+S", 90.4), ("A+P", 90.3), ("A+S+P", 91.3))
  }
  assert found["1"].rows[2].paper["mAP"] == 91.9
  assert found["2"].rows[2].paper["OF1"] == 72.0
  assert {row.label: row.paper["mAP"] for row in found["6"].rows}["two scales ten-crop"] == 91.9
  assert set(found) == set(tables.TABLES)
  coco = tables.tables("coco/2014")["6"]
  assert (coco.data, {row.label: row.paper["mAP"] for row in coco.rows}["two scales ten-crop"]) == ("coco", 73.4)
  assert {"aeroplane", "bicycle", "bird", "diningtable", "motorbike", "pottedplant", "tvmonitor"} <= set(
    found["1"].rows[0].paper
  )
  assert len(found["1"].rows[0].paper) == 21  # VOC's classes, and mAP


def test_ablations_leave_out_what_they_name(data_root):
  maker = cells.Maker(CONFIG, {"data.root": str(data_root)})
  loss = {name: maker.cell(name, 0).config.loss for name in tables.SPECS if name.startswith("rmam")}
  weights = {
    name: (each.anchor_weight, each.scale_weight, each.positive_weight, each.localization_weight)
    for name, each in loss.items()
  }
  assert weights == {
    "rmam": (0.01, 1.0, 0.1, 0.1),
    "rmam-large": (0.01, 1.0, 0.1, 0.1),
    "rmam-null": (0.01, 1.0, 0.1, 0.0),
    "rmam-S+P": (0.0, 1.0, 0.1, 0.1),
    "rmam-A+S": (0.01, 1.0, 0.0, 0.1),
    "rmam-A+P": (0.01, 0.0, 0.1, 0.1),
  }
  assert {each.classification for each in loss.values()} == {"euclidean"}
  sizes = [maker.cell(name, 0).config.data.crop_size for name in ("rmam", "rmam-large")]
  assert sizes == [64, 80]


def test_a_cell_is_named_by_what_it_depends_on(data_root):
  maker = cells.Maker(CONFIG, {"data.root": str(data_root)})
  digest = maker.cell("saliency", 0).digest
  assert digest == maker.cell("saliency", 0).digest
  others = [
    maker.cell("saliency", 1),
    maker.cell("saliency", 0, 1e-4),
    maker.cell("recurrent", 0),
    cells.Maker(CONFIG, {"data.root": str(data_root), "batch_size": 8}).cell("saliency", 0),
    cells.Maker("configs/digits.py:tiny:long", {"data.root": str(data_root)}).cell("saliency", 0),
  ]
  assert len({digest, *(cell.digest for cell in others)}) == 6
  threads = cells.Maker(CONFIG, {"data.root": str(data_root), "data.threads": 1})
  assert threads.cell("saliency", 0).digest == digest
  # What belongs to one head alone, for this head and for the others.
  other = cells.Maker(CONFIG, {"data.root": str(data_root), "model.rarl.steps": 2, "loss.rarl.policy_weight": 9.0})
  assert other.cell("saliency", 0).digest == digest
  assert other.cell("rarl", 0).digest != maker.cell("rarl", 0).digest
  assert len({each.cell(head, 0).parts["stage_one"] for each in (maker, other) for head in ("saliency", "rarl")}) == 1


def test_a_cell_depends_on_how_it_is_evaluated_whatever_a_run_may_change(data_root, monkeypatch):
  def digest(**changes):
    changes = {f"evaluation.{name}": value for name, value in changes.items()}
    return cells.Maker(CONFIG, {"data.root": str(data_root), **changes}).cell("saliency", 0).digest

  def determining(fields, config):
    return {name: value for name, value in fields.items() if not name.startswith(("evaluation.", "data.root"))}

  for _ in range(2):
    assert len({digest(), digest(top_k=2), digest(svm_images=60), digest(ap_method="eleven_point")}) == 4
    assert digest(pictures=3) == digest()
    monkeypatch.setattr(cells.workdir, "determining", determining)


def test_what_cells_share(data_root):
  maker = cells.Maker(CONFIG, {"data.root": str(data_root)})
  longer = cells.Maker(CONFIG, {"data.root": str(data_root), "rpn.epochs": 5})
  rlsd, ft_rpn = maker.cell("rlsd", 0).parts, maker.cell("rlsd_ft_rpn", 0).parts
  assert rlsd["stage_one"] == ft_rpn["stage_one"] == maker.cell("saliency", 0).parts["stage_one"]
  assert rlsd["rpn"] == maker.cell("rlsd", 0, 1e-4).parts["rpn"]
  others = [ft_rpn, maker.cell("rlsd", 1).parts, longer.cell("rlsd", 0).parts]
  assert len({rlsd["rpn"], *(each["rpn"] for each in others)}) == 4
  assert "rpn" not in maker.cell("saliency", 0).parts
  assert maker.cell("rmam", 0).parts == maker.cell("proposals", 0).parts
  assert maker.cell("rmam", 0).parts != maker.cell("rmam-large", 0).parts


def test_weights_are_what_a_cell_depends_on_wherever_they_lie(data_root, tmp_path):
  changes = {**THIN, "data.root": str(data_root)}
  found = {}
  for name, seed in (("a", 0), ("again", 0), ("b", 1)):
    path = tmp_path / f"{name}.safetensors"
    inner(path, THIN["model.vgg.blocks"], seed)
    cell = cells.Maker(CONFIG, {**changes, "weights": str(path)}).cell("saliency", 0)
    assert cell.config.model.pixel_mean == (10.0, 20.0, 30.0)
    found[name] = cell.digest, cell.parts["stage_one"]
  assert found["a"] == found["again"]
  assert not set(found["a"]) & set(found["b"])
  with pytest.raises(UserError, match=r"there is no .*nowhere"):
    cells.Maker(CONFIG, {**changes, "weights": str(tmp_path / "nowhere")}).cell("saliency", 0)


THIN = {
  "model.vgg.blocks": ((4,), (8,), (8,)),
  "model.x_width": 16,
  "model.lstm_width": 16,
  "model.z_width": 16,
  "model.num_regions": 3,
  "epoch_size": 32,
  "stage_one.epochs": 1,
  "stage_two.epochs": 1,
  "evaluation.svm_images": 60,
}


@pytest.fixture
def make_tables(data_root, tmp_path):
  def make(**changes):
    options = {"out": tmp_path, "tables_chosen": ["3"], "seeds": 1, "rates": (1e-3,), "dry_run": False}
    reproduce.reproduce(CONFIG, {**THIN, "data.root": str(data_root)}, **(options | changes))
    return tmp_path

  return make


def _undated(root):
  return [line for line in (root / "tables.md").read_text().splitlines() if not line.startswith("20")]


@pytest.mark.slow
def test_cells_without_a_stage_one_have_none_to_share(data_root, tmp_path):
  maker = cells.Maker(CONFIG, {**THIN, "data.root": str(data_root), "stage_one.epochs": 0})
  for rate in (1e-3, 1e-4):
    cells.measure(maker.cell("saliency", 0, rate), tmp_path, "centre")
  assert len(list(tmp_path.glob("cells/*/results.json"))) == 2


@pytest.mark.slow
def test_tables_from_nothing_and_nothing_twice(make_tables, monkeypatch, capsys):
  root = make_tables()
  text, undated = (root / "tables.md").read_text(), _undated(root)
  assert "| object proposals | ours |" in text
  assert "Object proposals: the data set's own boxes, jittered." in text
  assert "|  | paper, voc2007 | 88.6 |" in text
  assert "| attention against proposals |" in text
  assert "| `rmam` |" in text  # the trials
  trained = {path.parents[1].name: path.stat().st_mtime_ns for path in root.glob("cells/*/checkpoints/stage_two")}
  assert len(trained) == 2
  stage_ones = [
    sorted((path.name, path.read_bytes()) for path in folder.rglob("*") if path.is_file())
    for folder in root.glob("cells/*/checkpoints/stage_one")
  ]
  assert stage_ones[0] == stage_ones[1]  # trained once, taken over

  def train(*_):
    raise AssertionError("trained again")

  with monkeypatch.context() as patched:
    patched.setattr(pipeline, "train_and_evaluate", train)
    (root / "tables.md").unlink()
    make_tables()
    assert _undated(root) == undated
    capsys.readouterr()
    make_tables(dry_run=True)
    assert "0 cells are left" in capsys.readouterr().out
    make_tables(dry_run=True, tables_chosen=["3", "4"])
    out = capsys.readouterr().out
    assert "5 cells are left" in out  # four ablations, and rmam, from ten views
    assert "trained already" in out


def test_naming_a_cell_makes_no_proposals(data_root, monkeypatch):
  def make(kind, *_):
    assert not kind, "proposals were made"

  monkeypatch.setattr(splits.proposals_lib, "make", make)
  maker = cells.Maker(CONFIG, {**THIN, "data.root": str(data_root)})
  cell = maker.cell("proposals", 0)
  assert (cell.config.data.proposals, cell.config.data.num_proposals) == ("jittered", 3)
  assert plan.count_operations(cell.config) > 0


def test_the_operations_of_a_backbone_that_is_not_trained_are_not_counted(data_root):
  def operations(rate, pixels):
    changes = {"stage_one.backbone_rate": rate, "stage_two.backbone_rate": rate, "data.crop_size": pixels}
    cell = cells.Maker(CONFIG, {**THIN, "data.root": str(data_root), **changes}).cell("mean_pool", 0)
    return plan.count_operations(cell.config)

  # A linear layer of the map's mean: with four times as many pixels there is only the mean that grows.
  assert operations(0.0, 16) < 1.5 * operations(0.0, 8)
  assert operations(1.0, 16) > 3 * operations(1.0, 8) > 30 * operations(0.0, 8)


def test_proposals_are_edge_boxes_where_their_forest_is_given(data_root):
  plain, given = (
    cells.Maker(CONFIG, {"data.root": str(data_root), **forest}) for forest in ({}, {"data.edge_model": "model.yml.gz"})
  )
  cell = given.cell("proposals", 0)
  assert (cell.config.data.proposals, cell.config.data.edge_model) == ("edge_boxes", "model.yml.gz")
  assert cell.digest != plain.cell("proposals", 0).digest
  assert cell.parts == plain.cell("proposals", 0).parts
  assert given.cell("rmam", 0).digest == plain.cell("rmam", 0).digest


def test_a_cell_that_another_holds_is_left_to_it(data_root, tmp_path):
  cell = cells.Maker(CONFIG, {"data.root": str(data_root)}).cell("rmam", 0)
  with cells.holding(cell, tmp_path) as mine:
    assert mine
    with cells.holding(cell, tmp_path) as other:
      assert not other
  with cells.holding(cell, tmp_path) as again:
    assert again


def test_what_cannot_be_made(data_root, tmp_path):
  maker = cells.Maker(CONFIG, {"data.root": str(data_root)})
  with pytest.raises(UserError, match="--tables must be some of 1, 2, 3, 4, 5, 6, controls, systems, got '7'"):
    plan.make(maker, tmp_path, ["1", "7"], 1, ())
  (tmp_path / "one.py").write_text("def get_config(variant=''):\n  return None\n")
  without = cells.Maker(CONFIG, {"data.root": str(data_root), "evaluation.svm_solver": ""})
  with pytest.raises(UserError, match=r"evaluation\.svm_solver must not be empty"):
    plan.make(without, tmp_path, ["1"], 1, ())
  with pytest.raises(UserError, match=r"--config\.seed cannot be set for all cells"):
    cells.Maker(CONFIG, {"seed": 3})
  clashing = cells.Maker(CONFIG, {"data.root": str(data_root), "loss.anchor_weight": 1.0})
  assert clashing.cell("saliency", 0).config.loss.anchor_weight == 1
  with pytest.raises(UserError, match=r"--config\.loss\.anchor_weight cannot be set .* rmam-S\+P has its own value"):
    clashing.cell("rmam-S+P", 0)
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="file is a file: name a folder"):
    reproduce.reproduce(
      CONFIG,
      {"data.root": str(data_root)},
      out=tmp_path / "file",
      tables_chosen=None,
      seeds=1,
      rates=(),
      dry_run=True,
    )
  for taken in ("320", "saliency"):
    with pytest.raises(UserError, match=f"vgg16:{taken}: leave out {taken}: the tables have both scales"):
      cells.Maker(f"configs/rehearsal.py:vgg16:{taken}", {})
  with pytest.raises(UserError, match="names no SCALES"):
    cells.Maker(str(tmp_path / "one.py"), {})
  with pytest.raises(UserError, match=r"there is no configuration missing\.py"):
    cells.Maker("missing.py", {})
  assert not list(pathlib.Path(tmp_path).glob("cells/*"))
