"""Trains the judge: a classifier of whole clips that prompt accuracy and FID are measured with."""

import numpy as np
import torch
from torch import Tensor

import judging
import training
from clips import scenes
from clips.image_tokenizer import CONFIG as IMAGE_TOKENIZER
from clips.scenes import Painter, Scene
from emoji import artwork
from zipar.evaluation.judge import Judge, JudgeConfig

CONFIG = JudgeConfig(scenes.ATTRIBUTES, scenes.SIDE, channels=(32, 64, 96, 96), frames=scenes.FRAMES)
GOAL = 0.97  # held-out accuracy of each attribute on real renders
SHOWN = 512  # clips as the image tokenizer shows them, made once: anew at every step they take most of the time
STARTS = 3  # renders of each held-out combination of attributes


def main() -> None:
    parser = scenes.parser(__doc__)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    painter = Painter(artwork.load(args.build / "artwork"))
    drawn_from, held_out = scenes.split()
    restore = judging.restorer(args.build / "image_tokenizer_final.pt", IMAGE_TOKENIZER)
    judge = Judge(CONFIG).to(memory_format=torch.channels_last)

    def render(drawn: list[Scene]) -> tuple[Tensor, Tensor]:
        """Labels and uint8 clips (n, 8, 64, 64, 3)."""
        clips = np.stack([painter.render(scene) for scene in drawn])
        return torch.tensor([scene.labels() for scene in drawn]), torch.from_numpy(clips)

    rng = np.random.default_rng(args.seed)
    if restore is not None:
        shown_labels, clips = render([scenes.sample(drawn_from, rng) for _ in range(SHOWN)])
        shown = judging.restored(clips, restore)

    def loss_of(step: int) -> Tensor:
        rng = training.batch_rng(args.seed, step)
        labels, clips = render([scenes.sample(drawn_from, rng) for _ in range(args.batch)])
        pixels, quarter = judge.pixels(clips), args.batch // 4
        restored, blurred, clean = pixels.split([quarter, quarter, args.batch - 2 * quarter])
        if restore is None:
            restored = judging.spoil(restored, rng)
        else:
            chosen = torch.from_numpy(rng.integers(SHOWN, size=quarter))
            restored, labels[:quarter] = judge.pixels(shown[chosen]), shown_labels[chosen]
        pixels = torch.cat([restored, judging.spoil(blurred, rng), clean])
        return judging.loss(judge, pixels.contiguous(memory_format=torch.channels_last), labels)

    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.01)
    training.run(args.build / "judge.pt", judge, [optimizer], loss_of, steps=args.steps, decay=0.99)
    folder = args.build / "judge"
    judge.save(folder)

    labels, renders = render([scenes.sample([each], rng) for _ in range(STARTS) for each in held_out])
    seen = render([scenes.sample(drawn_from, rng) for _ in held_out])
    sets = {"training renders": seen, judging.HELD_OUT: (labels, renders)}
    if restore is not None:
        few = len(held_out)
        sets["held-out reconstructions"] = labels[:few], judging.restored(renders[:few], restore)
    judging.report(folder, sets, GOAL)


if __name__ == "__main__":
    main()
