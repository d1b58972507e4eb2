"""Two phases: what the first chooses on the validation split, the second carries to all labelled images."""

import json

import jax
import pytest
from test_training import tiny_config

from configs import common
from rmam_jax.data.splits import open_split
from rmam_jax.runtime import processes
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import checkpoints, loop, pipeline, stages


def two_phases(data_root):
  config = tiny_config(data_root)
  config.model.head = config.stage_one.head = "mean_pool"
  config.stage_two.auxiliary_weight = 0.0
  config.controls = ("max_pool",)
  config.data.final_train = "train+validation"
  return config


@pytest.fixture(scope="module")
def trained(data_root, tmp_path_factory):
  folder = tmp_path_factory.mktemp("phases") / "run"
  return folder, pipeline.train_and_evaluate(two_phases(data_root), folder)


def test_the_second_phase_carries_what_the_first_has_chosen(trained):
  folder, results = trained
  first, second = (json.loads((path / "config.json").read_text())["data"] for path in (folder / "choose", folder))
  assert (first["train"], first["validation"], first["test"]) == ("train", "validation", "")
  assert (second["train"], second["validation"], second["test"]) == ("train+validation", "", "test")
  assert (folder / "selection.json").read_bytes() == (folder / "choose" / "selection.json").read_bytes()
  assert json.loads((folder / "selection.json").read_text())["chosen_on"] == "digits/tiny validation"
  assert results["data"] == "digits/tiny test"
  assert json.loads((folder / "choose" / "results.json").read_text())["data"] == "digits/tiny validation"
  lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  assert not any("validation_mAP" in line for line in lines)
  last = {stage: max(line["epoch"] for line in lines if line["stage"] == stage) for stage in stages.NAMES}
  assert last == checkpoints.best_epochs(folder / "choose") == checkpoints.best_epochs(folder)


def test_a_control_goes_through_both_phases(trained):
  folder, results = trained
  control = folder / "controls" / "max_pool"
  assert json.loads((control / "selection.json").read_text())["chosen_on"] == "digits/tiny validation"
  assert json.loads((control / "config.json").read_text())["data"]["train"] == "train+validation"
  assert results["controls"] == {"max_pool": json.loads((control / "results.json").read_text())["mAP"]}


def test_a_folder_of_another_configuration_is_refused_before_the_first_phase(trained, data_root, monkeypatch):
  other = two_phases(data_root)
  other.model.z_width = 17

  def train(*_, **__):
    raise AssertionError("trained")

  monkeypatch.setattr(loop, "train", train)
  with pytest.raises(UserError, match=r"belongs to another configuration; it differs in model\.z_width"):
    pipeline.train_and_evaluate(other, trained[0])


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data.test": "tset"}, "tset"),
    ({"data.test": "validation"}, "nothing may be chosen on the test split"),
    ({"controls": ("mean_poool",)}, "controls must be one of .*, got 'mean_poool'; did you mean 'mean_pool'"),
    ({"data.validation": "", "controls": ("max_pool",)}, "holds no selection"),
    ({"evaluation.feature": "y"}, r"evaluation\.feature must be one of z, h, x, class, got 'y'"),
    ({"evaluation.feature": "class"}, "head 'saliency' has no features by class, as two_stream, csra have"),
    (
      {"model.head": "csra", "stage_one.head": "csra", "evaluation.feature": "class", "controls": ("mean_pool",)},
      "control mean_pool cannot be trained: head 'mean_pool' has no features by class",
    ),
    ({"evaluation.svm_solver": "sgd"}, r"evaluation\.svm_solver must be one of , newton, liblinear, got 'sgd'"),
    ({"evaluation.thresholds": "best"}, r"evaluation\.thresholds must be one of per_class, global, got 'best'"),
    ({"evaluation.ap_method": "mean"}, r"evaluation\.ap_method must be one of all_point, .*, got 'mean'"),
    ({"evaluation.top_k": 0}, r"evaluation\.top_k must be at least 1, got 0"),
    ({"evaluation.batch_size": 0}, r"evaluation\.batch_size must be at least 1, got 0"),
    ({"evaluation.svm_images": -5}, r"evaluation\.svm_images must be at least 0, got -5"),
    ({"evaluation.pictures": -1}, r"evaluation\.pictures must be at least 0, got -1"),
    ({"evaluation.svm_c": (0.0, 1.0)}, r"evaluation\.svm_c must hold positive values, got \(0\.0, 1\.0\)"),
    ({"epoch_size": -1}, "epoch_size must be 0 or more, got -1"),
    ({"evaluation.views": "three"}, r"evaluation\.views must be one of"),
    ({"data.crop_size": 80}, r"data\.crop_size must be between 1 and data\.image_size 72, got 80"),
    ({"data.crop_size": 1, "data.image_size": 1}, r"data\.crop_size 1 is less than one cell of vgg_thin's map"),
    ({"seed": -1}, "seed must be 0 or more, got -1"),
    ({"controls": ("max_pool", "saliency")}, "control saliency cannot be trained: head 'saliency' looks by the dense"),
    ({"controls": ("proposals",)}, "control proposals cannot be trained: .* looks at proposals: set data.proposals"),
    ({"stage_one.head": ""}, r"stage_one\.head is empty, but stage_one trains an auxiliary head beside 'saliency'"),
    (
      {"stage_one.head": "max_pool"},
      "'saliency' looks by the dense scores of an auxiliary 'score_map'.*, got 'max_pool'",
    ),
    ({"stage_one.head": "max_poool"}, r"stage_one\.head must be one of .*did you mean 'max_pool'"),
    ({"model.head": "rlsd"}, r"learns from another data set's boxes: name it in rpn\.data"),
    ({"model.region_size": (3,)}, r"model\.region_size must be \(height, width\) in samples, got \(3,\)"),
    ({"model.backbone": "vgg17"}, r"model\.backbone must be one of .*'vgg17'; did you mean 'vgg16'"),
  ],
)
def test_what_cannot_be_evaluated_is_not_trained(data_root, tmp_path, changes, message):
  config = tiny_config(data_root, **changes)
  with pytest.raises(UserError, match=message):
    pipeline.train_and_evaluate(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("more", "said"), [(-1, ""), (0, ""), (2, "  and 2 notes more, which")])
def test_some_notes_on_the_data_are_printed_and_the_others_counted(
  data_root, tmp_path, monkeypatch, capsys, more, said
):
  count = pipeline.NOTES + more

  def noted(data, split):
    found = open_split(data, split)
    found.notes = [f"number {i} of {split}" for i in range(count)]
    return found

  monkeypatch.setattr(pipeline, "open_split", noted)
  config = two_phases(data_root)
  pipeline.check(config, pipeline.phases(config, tmp_path))
  printed = capsys.readouterr().out
  for split in ("train", "validation", "test"):
    assert printed.count(f" of {split}\n") == min(count, pipeline.NOTES)
  assert said in printed
  assert printed.count("notes more") == (4 if said else 0)  # of each split, train+validation among them


def test_the_same_command_again_trains_nothing(trained, data_root):
  folder, results = trained
  logs = [(path / "metrics.jsonl").read_bytes() for path in (folder, folder / "choose")]
  again = pipeline.train_and_evaluate(two_phases(data_root), folder)
  assert logs == [(path / "metrics.jsonl").read_bytes() for path in (folder, folder / "choose")]
  assert again["AP"] == results["AP"]


def test_another_process_waits_for_the_selection_that_the_first_copies(tmp_path, monkeypatch):
  phase = pipeline.Phase("second", tmp_path / "run", common.get_config(), tmp_path / "choose")
  found = []

  def the_first_copies(place):
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "selection.json").write_text("chosen")
    found.append(place)

  monkeypatch.setattr(jax, "process_index", lambda: 1)
  monkeypatch.setattr(processes, "wait_for_all", the_first_copies)
  monkeypatch.setattr(checkpoints, "best_epochs", lambda folder: {})
  monkeypatch.setattr(loop, "train", lambda *_, **__: None)
  monkeypatch.setattr(pipeline, "evaluate", lambda folder: (folder / "selection.json").read_text())
  assert pipeline._run(phase, None) == "chosen"
  assert found == ["selection"]


def test_a_carried_epoch_ends_the_stage_but_not_its_schedule(data_root):
  config = tiny_config(data_root)
  whole = stages.build(config, "stage_two", num_classes=10, num_records=160)
  config.stage_two.stop_epoch = 2
  short = stages.build(config, "stage_two", num_classes=10, num_records=160)
  assert (whole.epochs, short.epochs) == (3, 2)
  assert short.steps == 2 * whole.steps_per_epoch
  params = {"w": jax.numpy.ones(3)}

  def last_update(stage):
    state = stage.optimizer.init(params)
    for _ in range(short.steps):
      update, state = stage.optimizer.update(params, state)
    return update["w"]

  assert (last_update(short) == last_update(whole)).all()
  config.stage_two.stop_epoch = 4
  with pytest.raises(UserError, match=r"stage_two\.stop_epoch must be between 0 and its 3 epochs, got 4"):
    stages.build(config, "stage_two", num_classes=10, num_records=160)


def test_a_run_that_has_nothing_to_choose_on_says_so_before_it_trains(data_root, tmp_path):
  config = tiny_config(data_root)
  config.data.validation = ""
  with pytest.raises(UserError, match=r"data\.validation is empty and .* holds no selection\.json: copy the one"):
    pipeline.train_and_evaluate(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
