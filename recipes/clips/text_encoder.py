"""Teaches the text encoder to read before the decoder needs it (see ``reading.py``)."""

import numpy as np

import reading
from clips import scenes, text

EVERY, _ = scenes.split(held_out=0)


def said(rng: np.random.Generator) -> tuple[str, dict[str, str]]:
    """A random prompt, and what it means."""
    scene = scenes.sample(EVERY, rng)
    prompt, mentioned = scenes.say(scene, rng)
    return prompt, {name: getattr(scene, name) for name in ["object", *mentioned]}


def main() -> None:
    parser = scenes.parser(__doc__)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--seed", type=int, default=4)
    args = parser.parse_args()
    reading.learn(
        text.vocabulary(),
        scenes.ATTRIBUTES,
        said,
        args.build,
        steps=args.steps,
        batch=args.batch,
        seed=args.seed,
    )


if __name__ == "__main__":
    main()
