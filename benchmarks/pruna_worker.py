"""Times PrunaAI's ZipAR on request, in an environment of its own: one JSON line of standard input, one of output.

    python benchmarks/pruna_worker.py CLONE LAYERS DIM SIDE

Each line read is a window, 0 for the raster decoding of the transformers there; the answer has its seconds and passes.
"""

import json
import sys
import types
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import transformers

from random_janus import paint, random_janus


def zipar_of_pruna(clone: Path) -> Any:
    """Its decoder, without what its packages import besides: dozens of other libraries."""
    for name in "pruna", "pruna.algorithms", "pruna.algorithms.zipar":
        bare = types.ModuleType(name)
        bare.__path__ = [str(clone / "src" / name.replace(".", "/"))]
        sys.modules[name] = bare
    from pruna.algorithms.zipar.utils import JanusZipARGenerator  # type: ignore[import-not-found]

    return JanusZipARGenerator


def main() -> None:
    clone, layers, dim, side = Path(sys.argv[1]), *map(int, sys.argv[2:])
    answers = sys.stdout
    with redirect_stdout(sys.stderr):  # for the answers alone
        zipar = zipar_of_pruna(clone)
        model = random_janus(layers, dim, side)
        print(json.dumps({"transformers": transformers.__version__}), file=answers, flush=True)
        for line in sys.stdin:
            window = int(line)
            helper = zipar(model, window_size=window) if window else None
            if helper:
                helper.enable()
            _, seconds, passes = paint(model)
            if helper:
                helper.disable()
            print(json.dumps({"seconds": seconds, "forward_passes": passes}), file=answers, flush=True)


if __name__ == "__main__":
    main()
