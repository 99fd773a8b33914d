"""Teaches the text encoder to read before the decoder needs it (see ``reading.py``)."""

import argparse

import numpy as np

import reading
from emoji import scenes, text


def said(rng: np.random.Generator) -> tuple[str, dict[str, str]]:
    """A random prompt, and what it means."""
    scene = scenes.sample(rng)
    prompt, mentioned = scenes.say(scene, rng)
    return prompt, {name: getattr(scene, name) for name in ["object", *mentioned]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--seed", type=int, default=4)
    args = parser.parse_args()
    reading.learn(
        text.vocabulary(),
        scenes.ATTRIBUTES,
        said,
        scenes.BUILD,
        steps=args.steps,
        batch=args.batch,
        seed=args.seed,
    )


if __name__ == "__main__":
    main()
