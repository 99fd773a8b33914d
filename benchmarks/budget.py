"""How many tokens all images together should draft: seconds of lossless decoding by its budget, beside raster order.

    python benchmarks/budget.py --batches 8 32 64 --budgets 32 64 128

decodes images of the embedded model. No budget changes any image; the smallest time of each batch is what to look for.
"""

import argparse
import time

import torch

import zipar
from decoding import machine
from zipar.decoding.engine import decode
from zipar.decoding.jacobi import CoupledJacobi
from zipar.decoding.raster import Raster


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--budgets", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    model = zipar.pipeline("emoji").model
    print(f"{machine()}\n\n| images | raster | " + " | ".join(f"budget {budget}" for budget in args.budgets) + " |")
    print("| ---: |" + " ---: |" * (1 + len(args.budgets)))
    for batch in args.batches:
        with torch.inference_mode():
            prefix = model.prefix(model.examples(batch), None, True, model.grid(*model.image_size))
        strategies = [Raster(), *(CoupledJacobi(16, budget=budget) for budget in args.budgets)]
        best = [float("inf")] * len(strategies)
        for _ in range(args.repeats):
            for i, strategy in enumerate(strategies):
                started = time.perf_counter()
                decode(model, prefix, model.grid(*model.image_size), strategy, model.defaults, range(batch))
                best[i] = min(best[i], time.perf_counter() - started)
        print(f"| {batch} | " + " | ".join(f"{seconds / batch:.3f} s" for seconds in best) + " |", flush=True)


if __name__ == "__main__":
    main()
