"""commaVQ's gpt2m by its authors' loop and by ours: frames a second, measured in one run.

    python benchmarks/commavq.py --reference COMMAVQ --output benchmarks/results

runs a GPT-2 of the published size (24 layers x 1024, 8 x 16 tokens a frame) with random weights and writes
``commavq.json`` and ``commavq.md``. COMMAVQ is a clone of commaai/commavq; without it the authors are left out. Random
weights accept no sensible drafts, so ``--acceptance`` says how often a guess comes true: 0.35 is how often a token of
the frames in the authors' ``examples/tokens.npy`` is that of the same place one frame earlier. ``--toy`` tries all of
it with a small decoder.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from decoding import Row, machine, measure
from gpu import Forced
from zipar import CoupledJacobi, Raster, Sampling, Strategy, ZipAR
from zipar.decoding.engine import decode
from zipar.image_tokenizers.commavq import CommaVQTokenizer
from zipar.image_tokenizers.vq import VQConfig
from zipar.models.commavq import GPT, CommaVQ, CommaVQConfig
from zipar.models.packing import pack

PUBLISHED, TOY = CommaVQConfig(), CommaVQConfig(layers=2, heads=4, dim=64)
RASTER = "raster"


def strategies(config: CommaVQConfig, acceptance: float) -> dict[str, Strategy]:
    """By the name that the table gives them."""
    return {
        RASTER: Raster(),
        "ZipAR 4": ZipAR(4),
        f"ZipAR 4, frame delay {config.columns}": ZipAR(4, frame_delay=config.columns),
        "ZipAR 4, 8 ahead": Forced(ZipAR(4, lookahead=8), acceptance),
        "Jacobi, 16 ahead": Forced(CoupledJacobi(16), acceptance),
    }


def build(config: CommaVQConfig) -> CommaVQ:
    """The model with random weights; its image tokenizer is small, for it is not what is timed."""
    torch.manual_seed(0)
    decoder = GPT(config)
    for weight in decoder.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.02)
    image_tokenizer = CommaVQTokenizer(VQConfig(config.codes, 32, 32, (1, 1, 1, 1, 1), 1, 32))
    return CommaVQ(decoder, image_tokenizer).eval().requires_grad_(False)


def ours(model: CommaVQ, given: Tensor, new: int, strategy: Strategy) -> Row:
    """Go on from ``given``, int64 (1, frames, rows, columns), by ``new`` frames; prefill and decoding are timed."""
    grid = model.clip(*model.image_size, given.shape[1] + new, given.shape[1])
    started = time.perf_counter()
    with torch.inference_mode():
        prefix = model.prefix([""], None, False, grid, given)
    decoded = decode(model, prefix, grid, strategy, Sampling(), [0])
    return {"forward_passes": decoded.forward_passes, "seconds": time.perf_counter() - started}


def authors(clone: Path, model: CommaVQ, given: Tensor, new: int) -> dict[str, Callable[[], Row]]:
    """The authors' ``generate`` with the same weights, as their notebook calls it, and all frames in one call."""
    sys.path.insert(0, str(clone))
    import utils.gpt as theirs  # type: ignore[import-not-found]

    config = model.decoder.config
    shape = theirs.GPTConfig(
        config.positions, config.codes + 1, config.layers, config.heads, config.dim, 4 * config.dim, config.frame
    )
    gpt = theirs.GPT(shape)
    gpt.load_state_dict(model.decoder.state_dict(), strict=False)  # all but a mask
    gpt.setup_caches(1, config.positions)
    gpt = gpt.eval().requires_grad_(False).float()  # their cache is of bfloat16, whatever the model is of
    passes: list[None] = []
    for name in ("prefill", "decode_one_token"):
        run = getattr(gpt, name)
        setattr(gpt, name, lambda *arguments, run=run: (passes.append(None), run(*arguments))[1])
    begun = torch.full((given.shape[1], 1), config.bos)
    prompt = torch.cat([begun, given[0].flatten(1)], dim=1).flatten()

    def imagine(frames_a_call: int) -> Row:
        passes.clear()
        started, clip = time.perf_counter(), prompt
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of the attention that they choose
            for _ in range(new // frames_a_call):
                context = clip[-(config.positions - frames_a_call * config.frame) :]
                clip = torch.cat([clip, gpt.generate(context, frames_a_call * config.frame)])
        return {"forward_passes": len(passes), "seconds": time.perf_counter() - started}

    return {
        "authors, a call a frame as in their notebook": partial(imagine, 1),
        "authors, all frames in one call": partial(imagine, new),
    }


def table(rows: dict[str, Row], new: int) -> str:
    """A markdown table; what is first in ``rows`` and raster are what others are compared with."""
    first = next(iter(rows))
    bases = {"faster than raster": RASTER} | ({"faster than the authors": first} if first != RASTER else {})
    lines = [
        f"| | forward passes | frames a second | {' | '.join(bases)} |",
        f"| --- | ---: | ---: |{' ---: |' * len(bases)}",
    ]
    for name, row in rows.items():
        ratios = " | ".join(f"{rows[base]['seconds'] / row['seconds']:.2f}x" for base in bases.values())
        lines.append(f"| {name} | {row['forward_passes']} | {new / row['seconds']:.3f} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--reference", type=Path, metavar="CLONE", help="a clone of commaai/commavq")
    parser.add_argument("--given", type=int, default=5, help="frames to go on from (default: %(default)s)")
    parser.add_argument("--new", type=int, default=3, help="frames to decode (default: %(default)s)")
    parser.add_argument("--acceptance", type=float, default=0.35, help="of guesses (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="after a round that warms up (default: %(default)s)")
    parser.add_argument("--toy", action="store_true", help="a small decoder")
    args = parser.parse_args()
    if args.reference is not None and not (args.reference / "utils" / "gpt.py").is_file():
        parser.error(f"{args.reference / 'utils' / 'gpt.py'} is missing: give a clone of commaai/commavq")
    args.output.mkdir(parents=True, exist_ok=True)

    config = TOY if args.toy else PUBLISHED
    if args.given + args.new > config.frames:
        parser.error(f"{args.given} + {args.new} frames are more than the {config.frames} that the model sees")
    model = build(config)
    given = torch.randint(0, config.codes, (1, args.given, config.rows, config.columns))
    contenders: dict[str, Callable[[], Row]] = {}
    if args.reference is not None:
        contenders |= authors(args.reference, model, given, args.new)
    pack(model.stepped())  # as loading a checkpoint does
    for name, strategy in strategies(config, args.acceptance).items():
        contenders[name] = partial(ours, model, given, args.new, strategy)
    rows = measure(contenders, args.repeats)
    report: dict[str, Any] = {
        "machine": machine(),
        "shape": {"layers": config.layers, "dim": config.dim, "rows": config.rows, "columns": config.columns},
        "given": args.given,
        "new": args.new,
        "acceptance": args.acceptance,
        "results": rows,
    }
    text = (
        f"Machine: {report['machine']}. GPT-2 of {config.layers} layers x {config.dim} with random weights, "
        f"{config.rows} x {config.columns} tokens a frame, float32, one clip, "
        f"{args.new} frames after {args.given} given ones, prefill counted, median of {args.repeats}. Guesses come "
        f"true with probability {args.acceptance:g}.\n\n{table(rows, args.new)}"
    )
    (args.output / "commavq.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (args.output / "commavq.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
