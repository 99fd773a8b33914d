"""Records what the authors' code of commaVQ computes, for tests/models/test_commavq.py to compare with.

The models are tiny and their weights are integer arithmetic, so that the tests can make the same ones.

    git clone https://github.com/commaai/commavq
    python tests/data/commavq.py --reference commavq tests/data/commavq.safetensors

It needs torch and einops, and nothing of ZipAR.
"""

import argparse
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file

CODES, ROWS, COLUMNS, FRAMES = 60, 3, 4, 4
DECODER = {
    "block_size": FRAMES * (1 + ROWS * COLUMNS),
    "vocab_size": CODES + 1,
    "n_layer": 2,
    "n_head": 4,
    "dim": 32,
    "intermediate_size": 128,
    "tokens_per_frame": 1 + ROWS * COLUMNS,
}
IMAGE_TOKENIZER = {
    "ch": 32,
    "ch_mult": (1, 1, 2),
    "attn_resolutions": (COLUMNS,),
    "resolution": 4 * COLUMNS,
    "num_res_blocks": 1,
    "z_channels": 8,
    "vocab_size": CODES,
}


def noise(shape: torch.Size, seed: int) -> torch.Tensor:
    """Numbers from -1 to 1 that look random and are the same everywhere: the finaliser of MurmurHash3."""
    bits = 2**32 - 1
    x = (torch.arange(shape.numel()) + 1000003 * seed) & bits
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ (x >> shift)) * factor) & bits
    x = x ^ (x >> 16)
    return (x.double() / 2**31 - 1).float().view(shape)


def made_up(shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Weights that keep activations alive, the same for the same names and shapes."""
    weights = {}
    for seed, name in enumerate(sorted(shapes)):
        shape, parent = shapes[name], name.split(".")[-2]
        if "norm" in parent or parent.startswith("ln_"):
            weights[name] = name.endswith("weight") + 0.1 * noise(shape, seed)
        elif len(shape) == 1:
            weights[name] = 0.1 * noise(shape, seed)
        else:
            scale = 1.0 if parent in ("wte", "wpe", "_embedding") else 3 * shape[1:].numel() ** -0.5
            weights[name] = scale * noise(shape, seed)
    return weights


def frames(count: int) -> torch.Tensor:
    """Pixels, uint8 (count, height, width, 3)."""
    side = 2 ** (len(IMAGE_TOKENIZER["ch_mult"]) - 1)
    return ((noise(torch.Size((count, ROWS * side, COLUMNS * side, 3)), 99) + 1) * 127.5).to(torch.uint8)


def first_frame() -> torch.Tensor:
    """Tokens that the model is given, int64 (rows * columns,)."""
    return (torch.arange(ROWS * COLUMNS) * 7 + 3) % CODES


def fill(module: torch.nn.Module) -> torch.nn.Module:
    """Give ``module`` made-up weights."""
    weights = made_up({name: weight.shape for name, weight in module.named_parameters()})
    module.load_state_dict(weights, strict=False)
    return module.eval()


def import_authors(clone: Path) -> types.SimpleNamespace:
    sys.path.insert(0, str(clone))
    from utils import gpt, vqvae

    return types.SimpleNamespace(gpt=gpt, vqvae=vqvae)


@torch.inference_mode()
def record(authors: types.SimpleNamespace) -> dict[str, torch.Tensor]:
    def greedy(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """In place of their sampling; frames begin where they should, so no token is drawn that begins one."""
        return logits[0, -1, :CODES].argmax(-1, keepdim=True).int(), logits

    authors.gpt.sample = greedy
    config = authors.gpt.GPTConfig(**DECODER)
    model = fill(authors.gpt.GPT(config))
    model.setup_caches(1, config.block_size)
    model.float()  # their cache is of bfloat16, whatever the model is of
    bos = torch.tensor([config.bos_token])
    sequence = torch.cat([bos, first_frame()])
    for _ in range(FRAMES - 1):
        prompt = torch.cat([sequence, bos])
        sequence = torch.cat([prompt, model.generate(prompt, ROWS * COLUMNS).long()])
    found = {"sequence": sequence, "logits": model(sequence[None])[0]}

    config = authors.vqvae.CompressorConfig(**IMAGE_TOKENIZER)
    encoder, decoder = fill(authors.vqvae.Encoder(config)), fill(authors.vqvae.Decoder(config))
    pixels = frames(3).permute(0, 3, 1, 2).float()
    found["codes"] = torch.cat([encoder(pixels[i : i + 1]) for i in range(len(pixels))])
    found["pixels"] = torch.cat([decoder(codes[None]) for codes in sequence.view(FRAMES, -1)[:2, 1:]])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, metavar="CLONE", help="the authors' repository")
    parser.add_argument("out", type=Path, help="the safetensors file to write")
    args = parser.parse_args()
    recorded = record(import_authors(args.reference))
    save_file({name: value.contiguous() for name, value in recorded.items()}, args.out)


if __name__ == "__main__":
    main()
