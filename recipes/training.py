"""What the training scripts share: seeded batches, optimizers, a resumable loop, an exponential average."""

import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zipar.models.llamagen import Transformer
from zipar.writing import write


def keep(state: Any, path: Path) -> None:
    """``torch.save`` of a whole file, or of none."""
    write({path: partial(torch.save, state)})


def batch_rng(seed: int, step: int) -> np.random.Generator:
    """The generator of one training step: a resumed run sees what an uninterrupted one would."""
    return np.random.default_rng((seed, step))


def to_pixels(images: list[np.ndarray]) -> Tensor:
    """uint8 images (height, width, 3) -> float32 pixels (n, 3, height, width) in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(pixels: Tensor) -> Tensor:
    """Float pixels (n, 3, h, w) in [-1, 1] -> uint8 images (n, h, w, 3)."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def initialise(decoder: Transformer) -> None:
    """Weights that a decoder begins with: every block adds nothing, every logit is zero."""
    nn.init.normal_(decoder.tok_embeddings.weight, std=0.1)
    for place in () if decoder.places is None else decoder.places.children():
        nn.init.normal_(place.weight, std=0.1)
    for layer in decoder.layers:
        nn.init.normal_(layer.attention.wqkv.weight, std=0.03)
        nn.init.zeros_(layer.attention.wo.weight)
        nn.init.zeros_(layer.feed_forward.w2.weight)
    nn.init.zeros_(decoder.output.weight)


def make_optimizers(
    model: nn.Module, between: Iterable[nn.Module], muon_rate: float, adam_rate: float
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the parts ``between`` embeddings and output, Adam for the rest of ``model``."""
    matrices = [weight for part in between for weight in part.parameters() if weight.ndim == 2]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=muon_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.Adam(others, lr=adam_rate, betas=(0.9, 0.98)),
    ]


def schedule(step: int, steps: int, warmup: int = 100, cooldown: float = 0.4) -> float:
    """Learning-rate factor: linear warm-up, constant, then a linear descent over the last part."""
    return min(1.0, (step + 1) / warmup, (steps - step) / (steps * cooldown))


class Average:
    """Exponential moving average of a model's parameters, with a warm-up of its horizon."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))
        for name, value in self.model.state_dict().items():
            self.weights[name].lerp_(value, 1 - decay)


def run(
    path: Path,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    loss_of: Callable[[int], Tensor],
    *,
    steps: int,
    decay: float,
    report: Callable[[int], str] = lambda step: "",
    every: int = 100,
) -> None:
    """Train, keeping all in ``path`` so that a killed run continues where it was.

    When done, ``model`` holds the averaged weights.
    """
    name = path.stem
    average = Average(model, decay)
    first = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        average.weights = state["average"]
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first = state["step"]
        print(f"{name}: continuing at step {first} of {steps}", flush=True)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    if first:
        rates = state["rates"]
    started, smooth = time.monotonic(), math.nan
    for step in range(first, steps):
        factor = schedule(step, steps)
        for optimizer, base in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * factor
            optimizer.zero_grad(set_to_none=True)
        loss = loss_of(step)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        average.update(step)
        smooth = loss.item() if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss.item()
        if (step + 1) % every == 0 or step + 1 == steps:
            left = (time.monotonic() - started) / (step + 1 - first) * (steps - step - 1) / 60
            print(f"{name}: step {step + 1}/{steps} loss {smooth:.4f} {report(step)} {left:.0f} min left", flush=True)
            state = {
                "model": model.state_dict(),
                "average": average.weights,
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "rates": rates,
                "step": step + 1,
            }
            keep(state, path)
    model.load_state_dict(average.weights)
