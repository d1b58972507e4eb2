"""A model card: what a published recognizer knows, what it was trained on, what was measured, how it is used.

It states what the model's configuration and its results say, and nothing else.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rmam_jax import heads
from rmam_jax.evaluation import metrics
from rmam_jax.evaluation import views as views_lib
from rmam_jax.training.exported import TrainedModel
from rmam_jax.weights import hub

# Of results, what goes into the table, and what the hub's `model-index` calls it.
_FIGURES = {
  "mAP": "mean average precision",
  "svm_mAP": "mean average precision of linear SVMs on its features, which are not part of this model",
  **{name: f"{name} of the {{top_k}} likeliest labels" for name in metrics.F1_NAMES},
  **{name: metrics.REGION_METRICS[name] for name in ("pointing", "iou_30", "iou_50", "coverage")},
}


def write(trained: TrainedModel, repository: str, *, license: str = "", halved: bool = False) -> str:
  """The card of a model as the content of its README.md.

  Args:
    trained: the model; without `results` the card says that nothing was measured.
    repository: OWNER/NAME.
    license: as the hub names it, e.g. "apache-2.0"; "": the card states none.
    halved: whether the weights are stored as float16.

  Raises UserError: huggingface_hub, which writes the metadata, is not installed.
  """
  sections = {
    "": _about(trained, halved),
    "Classes": ", ".join(f"`{name}`" for name in trained.class_names),
    "Trained on": _training(trained.config),
    "Measured": _measured(trained),
    "How to use": _usage(repository),
    "Limits": "\n".join(f"- {each}" for each in _limits(trained)),
  }
  body = "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections.items())
  return f"---\n{_metadata(trained, repository, license)}\n---\n\n# {repository.partition('/')[2]}\n\n{body}\n"


def _metadata(trained: TrainedModel, repository: str, license: str) -> str:
  """The YAML that the hub reads."""
  client = hub.library(f"a model card is written by huggingface_hub, and {hub.EXTRA} is needed for it")
  results = trained.results or {}
  measured = [
    client.EvalResult(
      task_type="image-classification",
      task_name="Multi-label image classification",
      dataset_type=trained.config.data.name,
      dataset_name=results["data"],
      metric_type=name,
      metric_name=text.format(**results),
      metric_value=results[name],
    )
    for name, text in _FIGURES.items()
    if results.get(name) is not None and name != "svm_mAP"
  ]
  tags = ["multi-label-classification", "jax", trained.config.model.head, trained.config.model.backbone]
  if heads.get(trained.config.model.head).looks:
    tags.insert(1, "weakly-supervised-localization")
  card = client.ModelCardData(
    license=license or None,
    library_name="rmam_jax",
    pipeline_tag="image-classification",
    tags=tags,
    model_name=repository.partition("/")[2],
    eval_results=measured or None,
  )
  return card.to_yaml()


def _about(trained: TrainedModel, halved: bool) -> str:
  model, data = trained.config.model, trained.config.data
  looks = heads.get(model.head).looks
  parts = [
    "A multi-label image recognizer of rmam_jax. It says which labels an image has, how sure it is"
    + (", and where it looked." if looks else "."),
    f"Head `{model.head}` on the backbone `{model.backbone}`, images of {data.crop_size} x {data.crop_size} pixels.",
  ]
  if looks:
    from_boxes = heads.get(model.head).guide == heads.RPN
    parts.insert(
      1, "It learned from image-level labels" + (", its regions from boxes." if from_boxes else ", without boxes.")
    )
  if halved:
    parts.append("Its matrices and kernels are stored as float16.")
  return " ".join(parts)


def _training(config: Any) -> str:
  data, stage = config.data, config.stage_two
  images = "images of its author's own" if data.name == "custom" else f"`{data.name}`"
  split = f", split `{data.train}`" if data.train else ""
  count = f", {counted:,} images" if (counted := dict(data.expected).get(data.train)) else ""
  begins = "random weights" if config.weights == "none" else f"the weights `{config.weights}`"
  digest = f" (digest {config.weights_digest})" if config.weights_digest else ""
  did = "learned too" if stage.backbone_rate else "stayed as it was"
  return "\n".join(
    [
      f"- {images}{split}{count}",
      f"- The backbone began with {begins}{digest}. In the {stage.epochs} epochs of stage two it {did}.",
      f"- Seed {config.seed}; `model.json` holds every field of the configuration.",
    ]
  )


def _percent(value: float | None) -> str:
  return "-" if value is None else f"{100 * value:.1f}"


def _table(head: str, rows: Mapping[str, float | None]) -> str:
  lines = [f"| {name.replace('|', '&#124;')} | {_percent(value)} |" for name, value in rows.items()]
  return "\n".join([head, "|-|-|", *lines])


def _measured(trained: TrainedModel) -> str:
  results = trained.results
  if not results:
    return "Nothing: this model came without results."
  figures = {text.format(**results): results[name] for name, text in _FIGURES.items() if results.get(name) is not None}
  parts = [
    f"On the {results['test_images']:,} images of `{results['data']}`, {views_lib.in_words(results)}, seed"
    f" {results['seed']}, in %. Average precision is that of the method `{results['AP_method']}`.",
    _table("| | |", figures),
  ]
  if results.get("centred_pointing") is not None:
    parts.append(
      "For comparison, a centred box of 0.7 of the image for every label: of the present labels"
      f" {_percent(results['centred_pointing'])} are centred on an object of the label, and"
      f" {_percent(results['centred_iou_50'])} have IoU ≥ 0.5 with one."
    )
  return "\n\n".join([*parts, _table("| class | average precision |", results["AP"])])


def _usage(repository: str) -> str:
  return f"""    pip install 'rmam_jax[hub]'
    rmam-jax predict --workdir=hf:{repository} photo.jpg

```python
import rmam_jax as rmam

recognizer = rmam.load("hf:{repository}")
for found in recognizer.predict(["photo.jpg"]):
  print([(label.name, label.probability, label.box) for label in found.labels])
```

Nothing in the files is run: they are `model.safetensors` and `model.json`."""


def _limits(trained: TrainedModel) -> Sequence[str]:
  config, results = trained.config, trained.results or {}
  data = config.data
  yield f"It knows these {len(trained.class_names)} classes and no others."
  if data.crop_size < data.image_size:
    share = 100 * (data.image_size - data.crop_size) / 2 / data.image_size
    yield f"An image's centre is seen: {share:.0f} % at each side are cut off, unless `--views` asks for more."
  if heads.get(config.model.head).looks:
    yield "Its boxes are regions that it looked at: they need not hold the whole object."
  chosen = (trained.selection or {}).get("chosen_on")
  yield (
    f"Probabilities and thresholds were calibrated on `{chosen}`; on other images they may be off."
    if chosen
    else "Its probabilities are not calibrated, and labels are given by a default threshold."
  )
  if results:
    yield f"The figures are those of `{results['data']}`; of images that look otherwise they say nothing."
  for field, text in (
    ("undefined_classes", "No test image had one of these, so that nothing is known of them"),
    ("never_predicted_classes", f"Never among the {results.get('top_k')} likeliest on the test images"),
  ):
    if results.get(field):
      yield f"{text}: {', '.join(results[field])}."
