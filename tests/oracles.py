"""The other implementations of the backbones."""

import pytest


def networks():
  """torch, torchvision's models and timm; skips where they are not installed.

  Where torchvision was built for another torch than is here, its compiled operators are absent, and it does not even
  import. No network needs one: that they are declared is enough.
  """
  torch = pytest.importorskip("torch")
  try:
    import torchvision
  except ImportError:
    pytest.skip("torchvision is not installed")
  except RuntimeError:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
      library.define(f"{name}(Tensor boxes) -> Tensor")
    import torchvision
  return torch, torchvision.models, pytest.importorskip("timm")
