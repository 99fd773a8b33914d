"""Times LlamaGen-B as its authors, or those of ZipAR, decode it: one JSON line of standard input, one of output.

    python benchmarks/llamagen_peers.py FOLDER WEIGHTS SIDE GUIDANCE

FOLDER is a clone of FoundationVision/LlamaGen, or ``LlamaGen-ZipAR`` in a clone of ThisisBillhe/ZipAR; both name their
package ``autoregressive``, so each has a process to itself. WEIGHTS is a file with the decoder's state. Each line read
is a window, 0 for raster decoding; the answer has its seconds and passes.
"""

import json
import sys
import time
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

LABEL = 207


def decoder(weights: Path, side: int) -> Any:
    """The authors' LlamaGen-B."""
    from autoregressive.models.gpt import GPT_models  # type: ignore[import-not-found]

    model = GPT_models["GPT-B"](block_size=side**2, model_type="c2i").eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model


def paint(model: Any, window: int, guidance: float) -> dict[str, Any]:
    """Decode one image; all of their ``generate`` is timed: making the caches, prefill and decoding."""
    generate = import_module(f"autoregressive.models.{'generate_zipar' if window else 'generate'}").generate
    if window:
        model.zipar_window_size = window
        model.reset_zipar()  # as their script does between images
    passes: list[None] = []
    counter = model.register_forward_pre_hook(lambda *_: passes.append(None))
    label, slots = torch.tensor([LABEL]), model.block_size
    started = time.perf_counter()
    tokens = generate(model, label, slots, cfg_scale=guidance, temperature=1.0, top_k=0, top_p=1.0)
    seconds = time.perf_counter() - started
    counter.remove()
    if tokens.shape != (1, slots):
        raise SystemExit(f"window {window} gave tokens of shape {tuple(tokens.shape)} and not {(1, slots)}")
    return {"seconds": seconds, "forward_passes": len(passes)}


def main() -> None:
    folder, weights, side, guidance = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    sys.path.insert(0, str(folder))
    answers = sys.stdout
    with redirect_stdout(sys.stderr):  # for the answers alone
        model = decoder(weights, side)
        print(json.dumps({"threads": torch.get_num_threads()}), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(paint(model, int(line), guidance)), file=answers, flush=True)


if __name__ == "__main__":
    main()
