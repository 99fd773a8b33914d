"""A small classifier that says what is to be seen in a picture or a clip, attribute by attribute."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from zipar.checkpoints.files import build, read_config, read_tensors
from zipar.evaluation.images import checked
from zipar.writing import write


@dataclass(frozen=True)
class JudgeConfig:
    """Attribute -> the values it may have; the pictures' side in pixels; the widths of the network.

    A judge of clips sees several frames at once, stacked as channels; one of pictures sees one.
    """

    attributes: dict[str, list[str]]
    side: int = 64
    channels: Sequence[int] = (32, 64, 128, 192)
    features: int = 128
    norm_groups: int = 8
    frames: int = 1


class Judge(nn.Module):
    """Pictures or clips -> features -> the value of each attribute."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        self.stages = nn.Sequential(
            *(Stage(width, out, config.norm_groups) for width, out in pairwise([3 * config.frames, *config.channels]))
        )
        side = config.side // 2 ** len(config.channels)
        # no pooling: where something is counts as much as what it is
        self.project = nn.Linear(config.channels[-1] * side**2, config.features)
        self.head = nn.Linear(config.features, sum(map(len, config.attributes.values())))

    @classmethod
    def load(cls, directory: Path) -> "Judge":
        """The judge that ``save`` wrote to ``directory``, in float32, ready to judge.

        Raises:
            ZipARError: there is none, or it is damaged.
        """
        settings = read_config(directory)
        with build(directory):
            judge = cls(JudgeConfig(**settings))
        judge.load_state_dict(read_tensors(directory / "judge.safetensors", judge))
        return judge.eval().requires_grad_(False)

    def save(self, directory: Path) -> None:
        """Write ``config.json`` and ``judge.safetensors`` (float16)."""
        config = json.dumps(dataclasses.asdict(self.config), indent=1) + "\n"
        tensors = {name: tensor.half().contiguous() for name, tensor in self.state_dict().items()}
        write(
            {
                directory / "config.json": lambda path: path.write_text(config, encoding="utf-8"),
                directory / "judge.safetensors": lambda path: save_file(tensors, path),
            }
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Features (n, features) of float pixels (n, 3 * frames, side, side) in [-1, 1]."""
        return F.silu(self.project(self.stages(pixels).flatten(1)))

    def logits(self, features: Tensor) -> dict[str, Tensor]:
        """Attribute -> logits (n, values)."""
        sizes = [len(values) for values in self.config.attributes.values()]
        return dict(zip(self.config.attributes, self.head(features).split(sizes, dim=-1), strict=True))

    def pixels(self, images: np.ndarray | Tensor) -> Tensor:
        """What ``forward`` takes, float32 (n, 3 * frames, side, side), of uint8 images or clips as ``features`` takes.

        Raises:
            ZipARError: images of another shape or dtype.
        """
        images = checked(images, self.config.side, self.config.frames).to(self.head.weight.device)
        return images.movedim(-1, -3).flatten(1, -3).float() / 127.5 - 1

    @torch.inference_mode()
    def features(self, images: np.ndarray | Tensor) -> Tensor:
        """Features, float32 (n, features), of uint8 images (n, side, side, 3).

        A judge of clips takes (n, frames, side, side, 3), here and in ``classify``.

        Raises:
            ZipARError: images of another shape or dtype.
        """
        images = checked(images, self.config.side, self.config.frames)
        return torch.cat([self(self.pixels(batch)) for batch in images.split(256)])

    @torch.inference_mode()
    def classify(self, images: np.ndarray | Tensor) -> dict[str, list[str]]:
        """Attribute -> its value in each of the uint8 images (n, side, side, 3), or clips.

        Raises:
            ZipARError: images of another shape or dtype.
        """
        logits = self.logits(self.features(images))
        return {
            name: [values[i] for i in logits[name].argmax(-1).tolist()]
            for name, values in self.config.attributes.items()
        }


class Stage(nn.Module):
    """Half the resolution, then one residual convolution.

    The skip path is not normalised, so the absolute colours reach the end of the network.
    """

    def __init__(self, width: int, out: int, groups: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, out, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(groups, out)
        self.conv = nn.Conv2d(out, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return F.silu(x + self.conv(F.silu(self.norm(x))))
