"""Trains the judge: a classifier of pictures that prompt accuracy and FID are measured with."""

import argparse

import torch
from torch import Tensor

import judging
import training
from emoji import artwork, scenes
from emoji.image_tokenizer import CONFIG as IMAGE_TOKENIZER
from zipar.evaluation.judge import Judge, JudgeConfig

CONFIG = JudgeConfig(scenes.ATTRIBUTES, scenes.SIDE)
GOAL = 0.99  # held-out accuracy of each attribute on real renders


def labels_of(drawn: list[scenes.Scene]) -> Tensor:
    return torch.tensor([scene.labels() for scene in drawn])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    pictures = artwork.load(scenes.BUILD / "artwork")
    drawn_from, held_out = scenes.split()
    restore = judging.restorer(scenes.BUILD / "image_tokenizer_final.pt", IMAGE_TOKENIZER)
    judge = Judge(CONFIG).to(memory_format=torch.channels_last)

    def loss_of(step: int) -> Tensor:
        rng = training.batch_rng(args.seed, step)
        drawn, pixels = scenes.draw_batch(drawn_from, pictures, rng, args.batch)
        quarter = args.batch // 4
        restored, blurred, clean = pixels.split([quarter, quarter, args.batch - 2 * quarter])
        with torch.autocast("cpu", torch.bfloat16):
            restored = judging.spoil(restored, rng) if restore is None else restore(restored)
            pixels = torch.cat([restored, judging.spoil(blurred, rng), clean])
            return judging.loss(judge, pixels.contiguous(memory_format=torch.channels_last), labels_of(drawn))

    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.01)
    training.run(scenes.BUILD / "judge.pt", judge, [optimizer], loss_of, steps=args.steps, decay=0.99)
    folder = scenes.BUILD / "judge"
    judge.save(folder)

    def render(drawn: list[scenes.Scene]) -> Tensor:
        return training.to_images(training.to_pixels([scenes.draw(scene, pictures) for scene in drawn]))

    seen = drawn_from[: len(held_out)]
    labels, renders = labels_of(held_out), render(held_out)
    sets = {"training renders": (labels_of(seen), render(seen)), judging.HELD_OUT: (labels, renders)}
    if restore is not None:
        sets["held-out reconstructions"] = (labels, judging.restored(renders, restore))
    judging.report(folder, sets, GOAL)


if __name__ == "__main__":
    main()
