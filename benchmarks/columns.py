"""Where in a row a strategy loses: prints the divergence of its tokens from raster order, column by column.

    python benchmarks/columns.py fashion DIRECTORY... --strategy zipar:4 --images 16

The tokens of a strategy are fed to raster order, which tells how likely it would have drawn each. Nothing is timed.
"""

import argparse

import torch
from torch import Tensor

from studies import Watched
from tried import Bench
from zipar.decoding import names
from zipar.decoding.engine import decode
from zipar.decoding.raster import Raster
from zipar.decoding.sampling import log_probabilities_of
from zipar.decoding.strategy import Evaluated, Step, Strategy


def divergence(bench: Bench, strategy: Strategy) -> Tensor:
    """Log-probability of each token where it was drawn, less that in raster order: float32 (images, rows, columns)."""
    decoded = bench.made(strategy).decoded
    script = decoded.tokens
    likely = torch.zeros(len(script), bench.grid.slots + 1)

    def see(step: Step, evaluated: Evaluated) -> None:
        fixed = script.gather(1, step.targets)
        likely.scatter_(1, step.targets, log_probabilities_of(fixed, evaluated.logits, evaluated.draw))

    raster = Watched(Raster(), see, script)
    decode(bench.model, bench.prefix, bench.grid, raster, bench.model.defaults, bench.seeds)
    places = bench.grid.places().flatten(0, 1)
    return (decoded.log_probabilities - likely[:, :-1])[:, places]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="embedded names or checkpoint directories")
    parser.add_argument("--strategy", nargs="+", default=["zipar:4", names.name(names.DEFAULT)])
    parser.add_argument("--images", type=int, default=16)
    args = parser.parse_args()
    print("| model | strategy | first column | second | third | the rest | all |\n| --- | --- |" + " ---: |" * 5)
    for place in args.models:
        bench = Bench(place, args.images)
        for name in args.strategy:
            lost = divergence(bench, names.parse(name))
            lost[:, 0, 0] = 0  # the prefill's, which every strategy shares
            columns = lost.mean((0, 1))
            parts = [*columns[:3], columns[3:].mean(), columns.mean()]
            print(f"| {bench.name} | {name} | {' | '.join(f'{part + 0.0:.3f}' for part in parts)} |", flush=True)


if __name__ == "__main__":
    main()
