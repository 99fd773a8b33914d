"""Strategies for one image and for many: prints seconds an image, and how many times as fast as raster order that is.

    python benchmarks/batches.py emoji fashion --images 1 8 32

Strategies take turns; the fastest of ``--repeats`` turns counts. Give it idle cores.
"""

import argparse
import time

from decoding import machine
from tried import VARIANTS
from zipar.decoding import names
from zipar.decoding.strategy import Strategy
from zipar.models import auto
from zipar.pipeline import Pipeline

STRATEGIES: dict[str, Strategy] = {
    **{name: names.parse(name) for name in ("raster", "zipar:4", "zipar:2", names.name(names.DEFAULT), "jacobi:32")},
    "the default, lookahead adaptive": VARIANTS["adaptive lookahead, wider"][1],
}


def measured(pipe: Pipeline, images: int, repeats: int) -> dict[str, float]:
    """Seconds an image, by strategy."""
    prompts, found = pipe.model.examples(images), dict.fromkeys(STRATEGIES, float("inf"))
    for turn in range(repeats + 1):
        for name, strategy in STRATEGIES.items():
            started = time.perf_counter()
            pipe(prompts, strategy=strategy, seed=0)
            if turn:  # the first one warms up
                found[name] = min(found[name], (time.perf_counter() - started) / images)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["emoji", "fashion"], help="embedded names or directories")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    print(machine())
    for place in args.models:
        directory = auto.find(place)
        pipe = Pipeline(auto.load(directory, device="cpu"))
        columns = [measured(pipe, images, args.repeats) for images in args.images]
        heads = "".join(f" {images} image{'s' * (images > 1)} |" for images in args.images)
        print(f"\n| {directory.name} |{heads}\n| --- |{' ---: |' * len(columns)}")
        for name in STRATEGIES:
            cells = (f"{column[name]:.3f} s, {column['raster'] / column[name]:.2f}x" for column in columns)
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
