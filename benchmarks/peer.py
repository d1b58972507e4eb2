"""What the torch sides have in common."""

import itertools

import numpy as np
import torch
from torch.nn import functional

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
  """Until the device has done all that it was given."""
  if DEVICE == "cuda":
    torch.cuda.synchronize()


def images(array: np.ndarray, memory_format=torch.channels_last) -> torch.Tensor:
  """[B, H, W, C] -> [B, C, H, W], in this order in memory."""
  return torch.tensor(array).permute(0, 3, 1, 2).contiguous(memory_format=memory_format)


def kernel(array) -> torch.Tensor:
  """[h, w, in, out] -> [out, in, h, w], channels last in memory."""
  return torch.tensor(np.asarray(array)).permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)


def vgg_map(x, blocks, kernels, biases=None):
  """VGG's feature map of images [B, 3, H, W]; `blocks` has the width of each convolution, block by block."""
  layers = zip(kernels, biases or itertools.repeat(None))  # noqa: B905
  for number, widths in enumerate(blocks):
    if number:
      x = functional.max_pool2d(x, 2)
    for _ in widths:
      x = functional.relu(functional.conv2d(x, *next(layers), padding=1))
  return x


def libraries():
  """torchvision's models, and timm; raises ImportError where one is not installed.

  Where torchvision was built for another torch than is here, its compiled operators are absent and it does not even
  import. No network needs one: that they are declared is enough.
  """
  try:
    import torchvision
  except RuntimeError:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
      library.define(f"{name}(Tensor boxes) -> Tensor")
    import torchvision
  import timm

  return torchvision.models, timm


def backbone(name: str):
  """The published network of a backbone but VGG, with random weights, and the function from images to its last map."""
  if name.startswith("efficientnet"):
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name(name.replace("_", "-"), image_size=None)  # padded by the size of its input
    return model.eval(), model.extract_features
  models, timm = libraries()
  if name == "vit_small_dinov2":
    model = timm.create_model("vit_small_patch14_dinov2", dynamic_img_size=True)
    return model.eval(), lambda images: _token_map(model.forward_features(images)[:, 1:], images, 14)
  model = getattr(models, name)().eval()
  if name.startswith("resnet"):
    return model, torch.nn.Sequential(*list(model.children())[:-2])  # without the mean and the classifier
  return model, model.features


def _token_map(tokens, images, patch: int):
  height, width = (side // patch for side in images.shape[2:])
  return tokens.permute(0, 2, 1).reshape(len(tokens), -1, height, width)


def sample(feature_map, theta, size: tuple[int, int]):
  """Regions [B, C, h, w] at theta [B, 4] of (s_x, s_y, t_x, t_y)."""
  s_x, s_y, t_x, t_y = theta.unbind(1)
  nothing = torch.zeros_like(s_x)
  matrix = torch.stack([s_x, nothing, t_x, nothing, s_y, t_y], dim=1).reshape(-1, 2, 3)
  grid = functional.affine_grid(matrix, (len(theta), 1, *size), align_corners=True)
  return functional.grid_sample(feature_map, grid.to(feature_map), align_corners=True)
