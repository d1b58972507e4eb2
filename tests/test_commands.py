"""What a newcomer types: configurations, flags, help and errors; and what importing the package loads."""

import os
import pathlib
import subprocess
import sys

import pytest

from configs import common, custom, digits, photographs, rehearsal, voc
from rmam_jax import commands
from rmam_jax.evaluation import views
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import stages

ROOT = pathlib.Path(__file__).parent.parent
COMMANDS = ("train.py", "eval.py", "predict.py", "reproduce.py")


def call(*arguments, cwd=ROOT, **changes):
  """Runs Python; `changes` to the environment: None takes a variable out."""
  environment = {name: value for name, value in (os.environ | changes).items() if value is not None}
  if arguments[0] in COMMANDS:
    arguments = (str(ROOT / arguments[0]), *arguments[1:])
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=cwd,
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


def test_importing_needs_only_jax_flax_optax_and_numpy():
  heavy = [
    "tensorflow",
    "tensorflow_datasets",
    "grain",
    "sklearn",
    "PIL",
    "matplotlib",
    "ml_collections",
    "tqdm",
    "tensorboardX",
    "wandb",
    "flask",
    "orbax",
  ]
  code = f"import sys, rmam_jax; print([name for name in {heavy} if name in sys.modules])"
  assert call("-c", code).stdout.strip() == "[]"


def test_everything_in_all_is_there():
  import rmam_jax

  assert all(hasattr(rmam_jax, name) for name in rmam_jax.__all__)
  assert all(getattr(rmam_jax, name).__doc__ for name in rmam_jax.__all__ if name != "__version__")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      ["train.py", "--config.model.num_region=3"],
      "--config.model.num_region: there is no field 'num_region'; did you mean 'num_regions'?",
    ),
    (
      ["train.py", "--config.modl.num_regions=3"],
      "--config.modl.num_regions: there is no field 'modl'; did you mean 'model'?",
    ),
    (["train.py", "--config.model.num_regions=x"], "flag --config.model.num_regions=x: invalid literal for int()"),
    (["train.py", "--workdr=x"], "Unknown command line flag 'workdr'. Did you mean: workdir ?"),
    (["train.py", "--config=configs/vok.py"], "--config: there is no file configs/vok.py"),
    (["train.py", "--config=configs/digits.py:medium"], "configs/digits.py: 'medium' is none of easy, hard"),
    (["train.py", "stray"], "unexpected argument 'stray'"),
    (
      ["eval.py", "--workdir=x", "--evaluation.view=ten"],
      "--evaluation.view: there is no field 'view'; did you mean 'views'?",
    ),
    (["-m", "rmam_jax", "trian"], "the command must be one of init, train, eval,"),
  ],
)
def test_what_is_misspelt_is_told_in_one_line(tmp_path, arguments, message):
  found = call(*arguments, cwd=tmp_path)
  assert found.returncode == 1
  assert found.stderr.startswith(f"error: {message}")
  assert len(found.stderr.strip().splitlines()) == 1
  assert not list(tmp_path.iterdir())


def test_only_what_a_user_can_mend_becomes_a_sentence():
  with pytest.raises(SystemExit, match=r"^error: the file is gone$"), commands.reported_errors():
    raise UserError("the file is gone")
  for bug in (ValueError, OSError, KeyError):
    with pytest.raises(bug, match="a bug"), commands.reported_errors():
      raise bug("a bug")


def test_a_bug_keeps_its_traceback(tmp_path):
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "mine.py").write_text("def get_config():\n  return 1 / 0\n")
  found = call("train.py", "--config=configs/mine.py", cwd=tmp_path)
  assert "ZeroDivisionError" in found.stderr
  assert "Traceback" in found.stderr


def test_a_configuration_of_one_s_own_may_import_others_beside_it(tmp_path):
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "a.py").write_text("from mine import b\n\nget_config = b.get_config\n")
  (tmp_path / "mine" / "b.py").write_text(
    "from rmam_jax.runtime.errors import UserError\n\ndef get_config():\n  raise UserError('b was read')\n"
  )
  assert call("train.py", "--config=mine/a.py", cwd=tmp_path).stderr == "error: b was read\n"


def test_every_command_is_listed_with_its_help():
  found = call("-m", "rmam_jax")
  for name in commands.NAMES:
    assert f"\n  {name} " in found.stdout
    assert call("-m", "rmam_jax", name, "--help").stdout.startswith(
      found.stdout.split(f"\n  {name} ")[1].splitlines()[0].strip()
    )


def test_unknown_fields_are_refused_in_python():
  config = common.get_config()
  with pytest.raises(AttributeError, match="num_region"):
    config.model.num_region = 3


def test_errors_are_one_sentence_without_a_traceback(tmp_path):
  found = call("eval.py", f"--workdir={tmp_path}")
  assert found.returncode == 1
  assert (
    found.stderr.strip().splitlines()[-1] == f"error: {tmp_path} holds no config.json: it is no workdir of train.py"
  )
  assert "Traceback" not in found.stderr


@pytest.mark.parametrize("command", ["train.py", "eval.py"])
def test_help_says_what_it_does(command):
  found = call(command, "--help")
  assert "--workdir" in found.stdout
  assert (ROOT / "rmam_jax" / "commands" / command).read_text().split('"""')[1].splitlines()[0] in found.stdout


def test_the_paper_s_values_are_the_default():
  config = voc.get_config()
  assert (config.data.image_size, config.data.crop_size, config.data.flip) == (512, 448, True)
  assert voc.get_config("640").data.crop_size == 640 - 64
  assert (config.model.head, config.model.num_regions) == ("recurrent", 5)
  loss = config.loss
  assert loss.classification == "euclidean"
  assert (loss.localization_weight, loss.anchor_weight, loss.positive_weight) == (0.1, 0.01, 0.1)
  assert (loss.max_scale, loss.min_scale) == (0.5, 0.1)
  stage = config.stage_two
  assert (stage.epochs * stage.drop_share, stage.learning_rate, stage.schedule) == (30, 1e-5, "step")
  assert (stage.beta_1, stage.beta_2, config.batch_size) == (0.9, 0.999, 16)
  assert stage.auxiliary_weight == 0
  with pytest.raises(UserError, match="'500' is none of 512, 640, recurrent"):
    voc.get_config("500")


@pytest.mark.parametrize("variant", ["", "easy", "hard", "recurrent", "hard:fixed_grid", "easy:mean_pool"])
def test_digits_variants(variant):
  config = digits.get_config(variant)
  assert config.data.name == ("digits/hard" if "hard" in variant else "digits/easy")
  named = [head for head in digits.HEADS if head in variant.split(":")]
  assert config.model.head == (named[0] if named else "saliency")


def test_an_unknown_variant_is_refused():
  with pytest.raises(UserError, match="'medium' is none of easy, hard"):
    digits.get_config("medium")


@pytest.mark.slow
def test_compiled_programs_are_kept_and_a_damaged_one_is_compiled_again(tmp_path):
  cache = tmp_path / "cache"

  def predict():
    found = call("predict.py", "docs/predicted.png", XDG_CACHE_HOME=str(cache), JAX_COMPILATION_CACHE_DIR=None)
    assert found.returncode == 0, found.stderr
    return found.stdout, {path: path.read_bytes() for path in (cache / "rmam_jax" / "jit").glob("*-cache")}

  first, kept = predict()
  assert kept
  again, more = predict()
  assert again == first
  assert kept.items() <= more.items()  # a loaded machine finds more of them slow enough to be kept
  for path in kept:
    path.write_bytes(b"damaged")
  assert predict()[0] == first


def test_a_cache_folder_of_the_user_s_own_stands(tmp_path):
  code = (
    "from rmam_jax import commands; commands.keep_compiled(); import jax; print(jax.config.jax_compilation_cache_dir)"
  )
  mine = str(tmp_path / "mine")
  assert call("-c", code, JAX_COMPILATION_CACHE_DIR=mine).stdout.strip() == mine
  assert call("-c", code, XDG_CACHE_HOME=mine, JAX_COMPILATION_CACHE_DIR=None).stdout.strip() == f"{mine}/rmam_jax/jit"


@pytest.mark.parametrize("recipe", common.RECIPES)
@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "vgg16"])
def test_every_head_of_the_photographs_can_be_built(backbone, recipe):
  for module in (photographs, custom):
    for head in set(module.HEADS) - set(common.RLSD):
      config = module.get_config(f"{backbone}:{recipe}:{head}")
      one, two = (stages.build(config, name, num_classes=20, num_records=2_366) for name in stages.NAMES)
      assert (config.weights, config.loss.classification, two.trains) == ("imagenet", "sigmoid", head)
      assert (one.frozen, two.frozen) == (True, recipe == "frozen")
      if one.trains == two.trains:
        assert config.stage_one.l2 == config.stage_two.l2 == common.PHOTOGRAPH_L2.get(head, 0)
  paper = custom.get_config(f"paper:640:{backbone.replace('efficientnet_lite0', 'vgg16')}:recurrent")
  assert (paper.data.image_size, paper.stage_two.backbone_rate, paper.stage_two.learning_rate) == (640, 1.0, 1e-5)


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "vgg16", "resnet50"])
@pytest.mark.parametrize("scale", rehearsal.SCALES)
def test_the_rehearsal_is_the_paper_s_system_on_a_frozen_backbone(backbone, scale):
  config = rehearsal.get_config(f"{backbone}:{scale}")
  assert (config.model.head, config.loss.classification) == ("recurrent", "euclidean")
  assert config.loss == voc.get_config().loss
  assert config.data.final_train == "train+validation"
  stages_built = [stages.build(config, name, num_classes=20, num_records=2_366) for name in stages.NAMES]
  assert all(stage.frozen for stage in stages_built)
  ten = views.from_config(config)  # cut from whole maps, windows of which training sees, too
  assert (len(ten.windows), ten.mirror, ten.side) == (5, "image", views.of_frozen(config).side)
