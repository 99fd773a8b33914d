"""Inception features, between whose moments lies the Fréchet Inception distance (FID).

The network is torch-fidelity's port of the Inception-v3 that Heusel et al. (NeurIPS 2017) took from TensorFlow, with
its weights, its padding and its way of resizing: torchvision's Inception gives other distances. It is an extra,
``pip install "zipar-torch[fid]"``, and brings torchvision, which must be of the same build as torch: beside a CPU build
of torch, from the index that torch came from.

FID is the ``frechet_distance`` of the moments of made and of real pictures. It depends on how many there are of each
(papers take 30,000 or 50,000), and on the file format of the real ones: report both.

Tested: with random weights, distances are torch-fidelity's own. Not tested: the published weights themselves.
"""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from torch import Tensor

from zipar.errors import ZipARError, reason
from zipar.evaluation.images import BATCH, checked
from zipar.models.auto import usable


class Inception:
    """The network of FID, with its published weights: downloaded once (96 MB), to where torch.hub keeps such files."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        """
        Raises:
            ZipARError: the extra is missing or broken, or the weights can be neither read nor downloaded.
        """
        library, place = _library(), usable(device)
        url: str = library.URL_INCEPTION_V3
        path = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)
        try:
            with redirect_stdout(sys.stderr):  # torch.hub prints what it downloads
                # the library would load the same file, but without these checks
                torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
            network = library.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        except Exception as error:  # of the network, of the disk, of unpickling
            if path.exists():
                raise ZipARError(
                    f"{path} does not hold Inception's weights ({reason(error)}): remove it, and it is downloaded again"
                ) from error
            raise ZipARError(
                f"Inception's weights could not be downloaded ({reason(error)}): put {url} at {path} by other means"
            ) from error
        self.device = place
        self.network = network.to(self.device)

    @torch.inference_mode()
    def features(self, images: np.ndarray | Tensor) -> Tensor:
        """Features, float32 (n, 2048) on the CPU, of uint8 images (n, height, width, 3) of any size.

        Raises:
            ZipARError: images of another shape or dtype.
        """
        parts = checked(images).split(BATCH)
        return torch.cat([self.network(part.to(self.device).permute(0, 3, 1, 2))[0].cpu() for part in parts])


def _library() -> Any:
    try:
        from torch_fidelity import feature_extractor_inceptionv3
    except ImportError as error:
        raise ZipARError(
            f'Inception features need an extra that is missing here ({error}): pip install "zipar-torch[fid]"'
        ) from error
    return feature_extractor_inceptionv3
