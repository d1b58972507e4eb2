"""Multi-label recognition by recurrently discovered attentional regions, as pure JAX functions.

After Wang, Chen, Li, Xu, Lin: "Multi-label Image Recognition by Recurrently Discovering Attentional Regions", ICCV
2017. Importing this package needs jax, flax, optax and numpy only.
"""

from rmam_jax.ops.attention import Attention, attend, init_attention, lstm_step, max_pool_scores, winning_region
from rmam_jax.ops.losses import (
  anchor_loss,
  classification_loss,
  joint_loss,
  localization_loss,
  positive_loss,
  scale_loss,
  sigmoid_loss,
)
from rmam_jax.ops.spatial_transformer import affine_grid, anchor_points, grid_sample, spatial_transform
from rmam_jax.version import __version__


def load(folder=None, **options):
  """A trained recognizer, ready for any images: `rmam_jax.load("runs/voc").predict(["photo.jpg"])`.

  Args:
    folder: a workdir of train.py, an exported model, `hf:OWNER/NAME[@REVISION]` of the Hugging Face hub (the extra
      `hub`), or the name of a shipped one; by default that of photographs.
    **options: `top`, `threshold`, `views`, `batch_size`, `threads`; see `rmam_jax.inference.predictor.Predictor`.

  Returns:
    A `rmam_jax.inference.predictor.Predictor`.
  """
  from rmam_jax.inference import predictor

  return predictor.load(folder, **options)


__all__ = [
  "Attention",
  "__version__",
  "affine_grid",
  "anchor_loss",
  "anchor_points",
  "attend",
  "classification_loss",
  "grid_sample",
  "init_attention",
  "joint_loss",
  "load",
  "localization_loss",
  "lstm_step",
  "max_pool_scores",
  "positive_loss",
  "scale_loss",
  "sigmoid_loss",
  "spatial_transform",
  "winning_region",
]
