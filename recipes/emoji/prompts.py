"""Random prompts for the emoji model, one a line: ``python -m emoji.prompts 1000 > prompts.txt``."""

import sys

import training
from emoji import scenes


def prompts(count: int, seed: int = 7) -> list[str]:
    """``count`` prompts; the first ones do not depend on how many there are."""
    generators = (training.batch_rng(seed, index) for index in range(count))
    return [scenes.say(scenes.sample(rng), rng)[0] for rng in generators]


if __name__ == "__main__":
    print("\n".join(prompts(int(sys.argv[1]))))
