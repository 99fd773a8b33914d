"""Records what the authors' code of NVIDIA Cosmos computes, for the tests of Cosmos to compare with.

The models are tiny and their weights are made up, so that the tests can make up the same ones; what is recorded is what
the authors' video tokenizer, decoder and sampling loop do with them, the rotary embedding of the published sizes, and
how their tensors are named and shaped.

    git clone https://github.com/nvidia-cosmos/cosmos-predict1
    python tests/data/cosmos.py --reference cosmos-predict1 tests/data/cosmos.safetensors

It needs torch and einops, and nothing of ZipAR.
"""

import argparse
import hashlib
import importlib
import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

GRID = (5, 3, 6)
LEVELS = [4, 3, 5]
TOKENIZER = {"channels": 8, "channels_mult": [1, 2, 2], "num_res_blocks": 1, "z_channels": 6, "levels": LEVELS}
DECODER = {"n_layers": 2, "dim": 48, "n_heads": 4, "n_kv_heads": 2, "head_dim": 24, "ffn_hidden_size": 64}
PUBLISHED = {
    "4b": {"n_layers": 16, "dim": 4096, "n_heads": 32, "n_kv_heads": 8, "head_dim": 128, "ffn_hidden_size": 14336},
    "12b": {"n_layers": 40, "dim": 5120, "n_heads": 32, "n_kv_heads": 8, "head_dim": 128, "ffn_hidden_size": 14336},
}
YARN = {"plain": None, "yarn": (3, 40)}
SLOTS = slice(None, None, 331)
"""Of a clip of 5 x 40 x 64 tokens, those whose rotations are recorded."""
PIXELS = (slice(None), slice(None, None, 4), slice(None, None, 7), slice(None, None, 5))
"""Of a clip (3, frames, height, width), those that are recorded."""


def made_up(shapes: dict[str, torch.Size], seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights that keep activations alive, the same for the same names and shapes."""
    weights = {}
    for number, name in enumerate(sorted(shapes)):
        index = torch.arange(shapes[name].numel(), dtype=torch.float64)
        wave = (index * 1.7 + index.square() * 0.0131 + number + 100 * seed).sin().float().view(shapes[name])
        if "norm" in name:
            weights[name] = name.endswith("weight") + 0.2 * wave
        else:
            gain = 0.05 if name.startswith("decoder.conv_out") else 2.5  # the former's results are pixels
            weights[name] = wave * (gain * shapes[name][1:].numel() ** -0.5 if wave.ndim > 1 else 0.2)
    return weights


def video(frames: int) -> torch.Tensor:
    """A made-up clip, uint8 (frames, 48, 96, 3)."""
    t, y, x, c = torch.meshgrid(*map(torch.arange, (frames, 48, 96, 3)), indexing="ij")
    return ((x * (c + 2) + y * (t + 3) + t * t * 5 + (x * y) // 16 * (c + 1)) % 256).to(torch.uint8)


def digest(shapes: dict[str, torch.Size]) -> torch.Tensor:
    """Of names and shapes, uint8 (32,)."""
    lines = "\n".join(f"{name} {tuple(shapes[name])}" for name in sorted(shapes))
    return torch.tensor(list(hashlib.sha256(lines.encode()).digest()), dtype=torch.uint8)


class Settings(dict[str, Any]):
    """Settings as the authors ask for them: by key, and as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def import_authors(clone: Path) -> types.SimpleNamespace:
    """What is run of the authors' code, without the CUDA device and the parallelism that it asks for."""
    sys.path.insert(0, str(clone))
    silent = types.SimpleNamespace(debug=lambda text: None)
    for name, members in {
        "megatron": {},
        "megatron.core": {"parallel_state": None, "ModelParallelConfig": None},
        "cosmos_predict1.utils": {"log": silent},
        "cosmos_predict1.autoregressive.modules.linear": dict.fromkeys(
            ("VocabParallelEmbedding", "ColumnParallelLinear", "RowParallelLinear")
        ),
        "cosmos_predict1.autoregressive.utils.misc": {"maybe_convert_to_namespace": lambda settings: settings},
    }.items():
        stub = types.ModuleType(name)
        vars(stub).update(members)
        sys.modules[name] = stub
    torch.Tensor.cuda = lambda tensor: tensor
    torch.cuda.current_device = lambda: torch.get_default_device()
    home = "cosmos_predict1.autoregressive"
    return types.SimpleNamespace(
        tokenizer=importlib.import_module(f"{home}.tokenizer.networks").CausalDiscreteVideoTokenizer,
        transformer=importlib.import_module(f"{home}.networks.transformer").Transformer,
        sampling=importlib.import_module(f"{home}.utils.sampling"),
        rotary=importlib.import_module(f"{home}.modules.embedding").RotaryPositionEmbeddingPytorchV2,
    )


def settings(size: dict[str, int], grid: tuple[int, ...], yarn: Any, vocab_size: int, precision: str) -> Settings:
    """The authors' settings of a decoder."""
    length = -(-torch.tensor(grid).prod().item() // 64) * 64
    return Settings(
        **size,
        vocab_size=vocab_size,
        precision=precision,
        video_latent_shape=list(grid),
        max_seq_len=length,
        max_batch_size=1,
        num_video_frames=33,
        rope_dim="3D",
        pytorch_rope_version="v2",
        rope_theta=500000,
        apply_yarn=yarn is not None,
        original_latent_shape=yarn and [*yarn, 64],
        yarn_scale=2,
        yarn_beta_fast=4,
        yarn_beta_slow=1,
        original_seq_len=8192,
        pad_to_multiple_of=64,
        norm_type="rmsnorm",
        norm_eps=1e-5,
        use_qk_normalization=True,
        causal_mask=True,
        tensor_model_parallel_size=1,
        insert_cross_attn=False,
        apply_abs_pos_emb=False,
    )


def tokenizer_settings(**size: Any) -> dict[str, Any]:
    """The authors' settings of DV8x16x16."""
    published = {"channels": 128, "channels_mult": [2, 4, 4], "num_res_blocks": 2, "z_channels": 16}
    return {
        **published,
        "levels": [8, 8, 8, 5, 5, 5],
        "attn_resolutions": [32],
        "dropout": 0.0,
        "in_channels": 3,
        "out_channels": 3,
        "resolution": 1024,
        "patch_size": 4,
        "patch_method": "haar",
        "z_factor": 1,
        "num_groups": 1,
        "legacy_mode": False,
        "spatial_compression": 16,
        "temporal_compression": 8,
        **size,
        "embedding_dim": len(size.get("levels", [8, 8, 8, 5, 5, 5])),
    }


def shapes_of(module: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


def filled(module: torch.nn.Module, seed: int = 0) -> Any:
    module.load_state_dict(made_up(shapes_of(module), seed))
    return module.eval()


@torch.inference_mode()
def record(authors: types.SimpleNamespace) -> dict[str, torch.Tensor]:
    found = {"names.tokenizer": digest(shapes_of(authors.tokenizer(**tokenizer_settings())))}
    for (name, size), yarn in zip(PUBLISHED.items(), YARN.values(), strict=True):
        given = settings(size, (5, 40, 64), yarn, 64000, "bfloat16")
        with torch.device("meta"):
            decoder = authors.transformer(given)
        found[f"names.{name}"] = digest(shapes_of(decoder))
        rotary = authors.rotary(seq_len=given.max_seq_len, **decoder.rope_config)
        turned = torch.cat([rotary.cos_cached, rotary.sin_cached])[:, SLOTS, 0, : size["head_dim"] // 2]
        found[f"rotary.{name}"] = turned.contiguous()

    tokenizer = filled(authors.tokenizer(**tokenizer_settings(**TOKENIZER)))
    for frames in (1, 9, 33):
        clip = torch.cat([video(frames), video(frames)[-1:].expand(33 - frames, -1, -1, -1)])
        indices, codes, _ = tokenizer.encode(clip.permute(3, 0, 1, 2)[None].float() / 127.5 - 1)
        found[f"codes.{frames}"] = indices[0, : 1 + (frames - 1) // 8].to(torch.int16)
    found["pixels"] = tokenizer.decode(codes)[0][PIXELS].contiguous()

    slots, frame = torch.tensor(GRID).prod().item(), GRID[1] * GRID[2]
    vocab_size = torch.tensor(LEVELS).prod().item()
    for name, yarn in YARN.items():
        decoder = filled(authors.transformer(settings(DECODER, GRID, yarn, vocab_size, "float32")), 1)
        for frames in (1, 9):
            given = found[f"codes.{frames}"].long().view(1, -1)
            first = given.shape[1]
            token = authors.sampling.prefill(decoder, torch.arange(first), given, temperature=0.0)
            later = authors.sampling.decode_n_tokens(
                decoder, token, torch.tensor([first]), slots - first - 1, temperature=0.0
            )
            tokens = torch.cat([given, token, *later], dim=1)
            found[f"{name}.{frames}.tokens"] = tokens[0].view(GRID).to(torch.int16)
        logits = decoder(tokens, torch.arange(slots))[0, frame - 1 : -1]
        best = logits.topk(2).values
        print(f"{name}: the least lead of a best token is {(best[:, 0] - best[:, 1]).min():.4f}")
        found[f"{name}.logits"] = logits[::3].contiguous()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, metavar="CLONE", help="the authors' repository")
    parser.add_argument("out", type=Path, help="the safetensors file to write")
    args = parser.parse_args()
    save_file(record(import_authors(args.reference)), args.out)


if __name__ == "__main__":
    main()
