"""What the judges of scenes share: pictures that are not perfect, the loss, and what goes with the weights.

Labels are int64 (n, attributes): the index of each attribute's value, in the order of the judge's attributes. Images
stand for clips too.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import training
from zipar.evaluation.fid import Moments, frechet_distance
from zipar.evaluation.judge import Judge
from zipar.image_tokenizers.vq import VQConfig, VQModel

HELD_OUT = "held-out renders"


def restorer(path: Path, config: VQConfig) -> Callable[[Tensor], Tensor] | None:
    """Pixels (n, 3, height, width) -> what the trained image tokenizer makes of them; None before it is trained."""
    if not path.exists():
        return None
    model = VQModel(config).to(memory_format=torch.channels_last).eval()
    model.load_state_dict(torch.load(path, weights_only=True))

    @torch.inference_mode()
    def restore(pixels: Tensor) -> Tensor:
        return model.decode(model.encode(pixels.contiguous(memory_format=torch.channels_last))).float().clamp(-1, 1)

    return restore


def restored(images: Tensor, restore: Callable[[Tensor], Tensor]) -> Tensor:
    """uint8 images, or clips frame by frame, as the image tokenizer shows them."""
    frames = images.flatten(0, -4)
    parts = [training.to_images(restore(training.to_pixels(list(part.numpy())))) for part in frames.split(64)]
    return torch.cat(parts).view_as(images)


def spoil(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur and noise, each picture to its own degree."""

    def degree(most: float) -> Tensor:
        return torch.from_numpy(rng.uniform(0, most, (len(pixels), 1, 1, 1))).float()

    blurred = F.avg_pool2d(pixels, 3, stride=1, padding=1, count_include_pad=False)
    noise = torch.from_numpy(rng.standard_normal(pixels.shape, dtype=np.float32))
    return pixels.lerp(blurred, degree(1.0)) + noise * degree(0.1)


def loss(judge: Judge, pixels: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, the sum of all attributes'."""
    logits = judge.logits(judge(pixels))
    losses = [F.cross_entropy(each.float(), labels[:, i]) for i, each in enumerate(logits.values())]
    return torch.stack(losses).sum()


def accuracy(judge: Judge, labels: Tensor, images: Tensor) -> dict[str, float]:
    """Share of the images whose attribute the judge reads rightly."""
    seen = judge.classify(images)
    return {
        name: sum(values[label] == value for label, value in zip(column, seen[name], strict=True)) / len(images)
        for (name, values), column in zip(judge.config.attributes.items(), labels.T.tolist(), strict=True)
    }


def report(folder: Path, sets: Mapping[str, tuple[Tensor, Tensor]], goal: float) -> None:
    """Say how well the judge in ``folder`` reads, and keep that beside it, with the statistics of held-out renders.

    Args:
        folder: where the judge is saved.
        sets: name -> labels and uint8 images; one of them is ``HELD_OUT``.
        goal: accuracy of each attribute on held-out renders.

    Raises:
        SystemExit: it is missed.
    """
    judge = Judge.load(folder).to(memory_format=torch.channels_last)  # what ships: rounded to 16 bit
    _, renders = sets[HELD_OUT]
    reference = Moments.of(judge.features(renders))
    reference.save(folder / "reference.safetensors")
    found = {}
    for name, (labels, images) in sets.items():
        distance = frechet_distance(reference, Moments.of(judge.features(images)))
        found[name] = {**accuracy(judge, labels, images), "images": len(images), "fid": distance}
        shares = ", ".join(f"{attribute} {found[name][attribute]:.2%}" for attribute in judge.config.attributes)
        print(f"{len(images)} {name}: {shares}; FID against held-out renders {distance:.4f}")
    (folder / "held_out.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {size / 1e6:.2f} MB")
    if low := [name for name in judge.config.attributes if found[HELD_OUT][name] < goal]:
        raise SystemExit(f"below the goal of {goal:.0%}: {', '.join(low)}")
