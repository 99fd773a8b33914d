"""Trains the judge: a classifier of pictures that prompt accuracy and FID are measured with."""

import argparse
import json
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import training
from emoji import artwork, scenes
from emoji.image_tokenizer import CONFIG as IMAGE_TOKENIZER
from zipar.evaluation.fid import Moments, frechet_distance
from zipar.evaluation.judge import Judge, JudgeConfig
from zipar.image_tokenizers.vq import VQModel

CONFIG = JudgeConfig(scenes.ATTRIBUTES, scenes.SIDE)
GOAL = 0.99  # held-out accuracy of each attribute on real renders


def restorer() -> Callable[[Tensor], Tensor] | None:
    """Pixels -> what the trained image tokenizer makes of them; None before it is trained."""
    path = scenes.BUILD / "image_tokenizer_final.pt"
    if not path.exists():
        return None
    model = VQModel(IMAGE_TOKENIZER).to(memory_format=torch.channels_last).eval()
    model.load_state_dict(torch.load(path, weights_only=True))

    @torch.inference_mode()
    def restore(pixels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            indices = model.encode(pixels.contiguous(memory_format=torch.channels_last))
            return model.decode(indices).float().clamp(-1, 1)

    return restore


def spoil(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur and noise, each picture to its own degree."""

    def degree(most: float) -> Tensor:
        return torch.from_numpy(rng.uniform(0, most, (len(pixels), 1, 1, 1))).float()

    blurred = F.avg_pool2d(pixels, 3, stride=1, padding=1, count_include_pad=False)
    noise = torch.from_numpy(rng.standard_normal(pixels.shape, dtype=np.float32))
    return pixels.lerp(blurred, degree(1.0)) + noise * degree(0.1)


def accuracy(judge: Judge, drawn: list[scenes.Scene], images: Tensor) -> dict[str, float]:
    """Share of the images whose attribute the judge reads rightly."""
    seen = judge.classify(images)
    return {
        name: sum(value == getattr(scene, name) for scene, value in zip(drawn, values, strict=True)) / len(drawn)
        for name, values in seen.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    pictures = artwork.load(scenes.BUILD / "artwork")
    drawn_from, held_out = scenes.split()
    restore = restorer()
    judge = Judge(CONFIG).to(memory_format=torch.channels_last)

    def loss_of(step: int) -> Tensor:
        rng = training.batch_rng(args.seed, step)
        drawn, pixels = scenes.draw_batch(drawn_from, pictures, rng, args.batch)
        quarter = args.batch // 4
        restored, blurred, clean = pixels.split([quarter, quarter, args.batch - 2 * quarter])
        restored = spoil(restored, rng) if restore is None else restore(restored)
        pixels = torch.cat([restored, spoil(blurred, rng), clean]).contiguous(memory_format=torch.channels_last)
        labels = torch.tensor([scene.labels() for scene in drawn])
        with torch.autocast("cpu", torch.bfloat16):
            logits = judge.logits(judge(pixels))
        losses = [F.cross_entropy(each.float(), labels[:, i]) for i, each in enumerate(logits.values())]
        return torch.stack(losses).sum()

    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.01)
    training.run(scenes.BUILD / "judge.pt", judge, [optimizer], loss_of, steps=args.steps, decay=0.99)
    folder = scenes.BUILD / "judge"
    judge.save(folder)

    judge = Judge.load(folder).to(memory_format=torch.channels_last)  # what ships: rounded to 16 bit

    def render(drawn: list[scenes.Scene]) -> Tensor:
        return training.to_images(training.to_pixels([scenes.draw(scene, pictures) for scene in drawn]))

    seen = drawn_from[: len(held_out)]
    renders = render(held_out)
    reference = Moments.of(judge.features(renders))
    reference.save(folder / "reference.safetensors")
    sets = {"training renders": (seen, render(seen)), "held-out renders": (held_out, renders)}
    if restore is not None:
        pixels = renders.permute(0, 3, 1, 2).float() / 127.5 - 1
        restored = torch.cat([training.to_images(restore(batch)) for batch in pixels.split(64)])
        sets["held-out reconstructions"] = (held_out, restored)
    report = {}
    for name, (drawn, images) in sets.items():
        distance = frechet_distance(reference, Moments.of(judge.features(images)))
        report[name] = {**accuracy(judge, drawn, images), "images": len(images), "fid": distance}
        shares = ", ".join(f"{attribute} {report[name][attribute]:.2%}" for attribute in CONFIG.attributes)
        print(f"{len(images)} {name}: {shares}; FID against held-out renders {distance:.4f}")
    (folder / "held_out.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {size / 1e6:.2f} MB")
    if low := [name for name in CONFIG.attributes if report["held-out renders"][name] < GOAL]:
        raise SystemExit(f"below the goal of {GOAL:.0%}: {', '.join(low)}")


if __name__ == "__main__":
    main()
