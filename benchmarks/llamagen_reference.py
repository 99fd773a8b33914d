"""The authors' LlamaGen as an oracle: their models, converted to ours, must compute the same.

    python benchmarks/llamagen_reference.py --reference DIR_OF_A_LLAMAGEN_CLONE --size tiny

builds the authors' decoders and image tokenizers with random weights, saves them as the published files are laid out,
converts them, and compares logits, greedy raster tokens, pixels and codebook indices, in float32. It ends with exit
code 1 where a bound is broken.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

import zipar
from zipar.conversion.llamagen import convert
from zipar.decoding.engine import decode
from zipar.decoding.raster import Raster
from zipar.decoding.sampling import Sampling
from zipar.grid import TokenGrid
from zipar.models.llamagen import LlamaGen

BOUND = 1e-4
LONGEST_PROMPT = 120
CLASSES = ["207", "980"]
PROMPTS = ["a blue porsche parked in front of a yellow brick wall", "a fox"]


@dataclass(frozen=True)
class Size:
    """What is built: the decoder, its T5, how many tokens are decoded, the levels of the image tokenizer."""

    decoder: dict[str, int]
    caption_dim: int
    grid_side: int
    tokens: int
    levels: tuple[int, ...]

    @property
    def image_size(self) -> int:
        return self.grid_side * 2 ** (len(self.levels) - 1)


SIZES = {
    "tiny": Size({"n_layer": 2, "n_head": 4, "dim": 64, "vocab_size": 64}, 32, 6, 36, (1, 2, 2, 4)),
    "B": Size({"n_layer": 12, "n_head": 12, "dim": 768, "vocab_size": 16384}, 2048, 24, 32, (1, 1, 2, 2, 4)),
}


@dataclass(frozen=True)
class FirstTokens(Raster):
    """Raster decoding that stops early."""

    tokens: int

    def plan(self, grid: TokenGrid) -> list[list[tuple[int, int, int]]]:
        return super().plan(grid)[: self.tokens]


def randomise(module: nn.Module) -> None:
    """Weights that keep the scale of activations, so that every part of the module matters to its output."""
    for name, weight in module.state_dict().items():
        if weight.ndim == 1:
            weight.uniform_(0.5, 1.5) if "norm" in name and name.endswith("weight") else weight.normal_(std=0.1)
        else:
            weight.normal_(std=1.0 if "embedding" in name else weight[0].numel() ** -0.5)


def reference_decoder(size: Size, kind: str) -> nn.Module:
    from autoregressive.models.gpt import ModelArgs, Transformer  # type: ignore[import-not-found]

    shape: dict[str, Any] = {**size.decoder, "block_size": size.grid_side**2, "model_type": kind}
    if kind == "t2i":
        shape.update(cls_token_num=LONGEST_PROMPT, caption_dim=size.caption_dim)
    decoder = Transformer(ModelArgs(**shape)).eval().requires_grad_(False)
    randomise(decoder)
    return decoder


def reference_tokenizer(size: Size) -> nn.Module:
    from tokenizer.tokenizer_image.vq_model import ModelArgs, VQModel  # type: ignore[import-not-found]

    levels = list(size.levels)
    codebook = size.decoder["vocab_size"]
    model = VQModel(ModelArgs(codebook_size=codebook, encoder_ch_mult=levels, decoder_ch_mult=levels))
    model = model.eval().requires_grad_(False)
    randomise(model)
    return model


def save_text_encoder(size: Size, directory: Path) -> None:
    """A small random T5 with a word-level tokenizer."""
    words = sorted({word for prompt in PROMPTS for word in prompt.split()})
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<pad>", "</s>", *words])}, "<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>").save_pretrained(directory)
    shape = {"d_model": size.caption_dim, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    encoder = T5EncoderModel(T5Config(vocab_size=64, **shape))
    randomise(encoder)
    encoder.save_pretrained(directory)


def caption_features(model: LlamaGen) -> tuple[Tensor, Tensor]:
    """The features and the mask that the authors' sample script makes: padded on the right, then moved there."""
    model.text_tokenizer.padding_side = "right"
    words = model.text_tokenizer(PROMPTS, max_length=LONGEST_PROMPT, padding="max_length", return_tensors="pt")
    mask = words["attention_mask"]
    features = model.text_encoder(input_ids=words["input_ids"], attention_mask=mask).last_hidden_state
    moves = (LONGEST_PROMPT - mask.sum(1)).tolist()
    features = torch.stack([row.roll(move, 0) for row, move in zip(features, moves, strict=True)])
    mask = mask.flip(-1)
    return features * mask[..., None], mask


class Recorder:
    """Keeps the logits of the last position of each pass of ``output``."""

    def __init__(self, output: nn.Module) -> None:
        self.passes: list[Tensor] = []
        self.hook = output.register_forward_hook(lambda module, inputs, logits: self.passes.append(logits[:, -1]))

    def logits(self) -> Tensor:
        """(passes, rows, vocabulary); records no more."""
        self.hook.remove()
        return torch.stack(self.passes)


def compare_decoder(size: Size, kind: str, scale: float, reference: nn.Module, model: LlamaGen) -> dict[str, Any]:
    """Both decode the same prompts greedily in raster order."""
    from autoregressive.models.generate import generate  # type: ignore[import-not-found]

    prompts = CLASSES if kind == "c2i" else PROMPTS
    condition, mask = (torch.tensor([int(p) for p in prompts]), None) if kind == "c2i" else caption_features(model)
    theirs = Recorder(reference.output)
    tokens = generate(reference, condition, size.tokens, mask, cfg_scale=scale, temperature=1.0, sample_logits=False)
    ours = Recorder(model.decoder.output)
    sampling = Sampling(scale, temperature=0.0)
    grid = model.grid(size.image_size, size.image_size)
    prefix = model.prefix(prompts, None, sampling.guided, grid)
    decoded = decode(model, prefix, grid, FirstTokens(size.tokens), sampling, [0] * len(prompts))
    left, right = theirs.logits(), ours.logits()
    if sampling.guided:  # we have the two rows of an image side by side, they have all conditional ones first
        right = right.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)
    difference = (left - right).abs().flatten(1).max(1).values
    return {
        "what": f"{kind} decoder, {len(prompts)} prompts, guidance {scale:g}",
        "prefix_logits": difference[0].item(),
        "decode_logits": difference[1:].max().item(),
        "logits_std": left.std().item(),
        "tokens": size.tokens,
        "tokens_differ": int((tokens != decoded.tokens[:, : size.tokens]).sum()),
    }


def compare_tokenizer(size: Size, reference: nn.Module, model: LlamaGen) -> dict[str, Any]:
    """Both decode the same indices, then encode the same pixels."""
    side = 6
    levels, ours = len(size.levels), model.image_tokenizer
    indices = torch.randint(0, size.decoder["vocab_size"], (1, side, side))
    pixels = reference.decode_code(indices, [1, 8, side, side])  # type: ignore[operator]
    noise = torch.rand(1, 3, side * ours.config.downsampling, side * ours.config.downsampling) * 2 - 1
    encoded = reference.encode(noise)[2][2].view(1, side, side)  # type: ignore[operator]
    return {
        "what": f"VQ-{2 ** (levels - 1)} image tokenizer",
        "pixels": (pixels - ours.decode(indices)).abs().max().item(),
        "pixels_std": pixels.std().item(),
        "indices": side * side,
        "indices_differ": int((encoded != ours.encode(noise)).sum()),
    }


def compare(size: Size, folder: Path) -> list[dict[str, Any]]:
    """Build, save, convert and compare; a row a comparison."""
    torch.manual_seed(0)
    image_tokenizer = reference_tokenizer(size)
    torch.save({"model": image_tokenizer.state_dict()}, folder / "vq.pt")
    save_text_encoder(size, folder / "t5")
    rows = []
    for kind, key, text_encoder, scales in (("c2i", "model", None, (4.0, 1.0)), ("t2i", "module", "t5", (7.5, 1.0))):
        decoder = reference_decoder(size, kind)
        torch.save({key: decoder.state_dict()}, folder / f"{kind}.pt")
        convert(
            folder / f"{kind}.pt",
            folder / "vq.pt",
            folder / text_encoder if text_encoder else None,
            folder / kind,
            image_size=size.image_size,
            heads=size.decoder["n_head"],
            dtype=torch.float32,
        )
        model = zipar.pipeline(folder / kind, dtype=torch.float32, device="cpu").model
        assert isinstance(model, LlamaGen)
        rows += [compare_decoder(size, kind, scale, decoder, model) for scale in scales]
    return [*rows, compare_tokenizer(size, image_tokenizer, model)]


def holds(row: dict[str, Any]) -> bool:
    """Whether a comparison stays within the bounds."""
    differences = [row[key] for key in ("prefix_logits", "decode_logits", "pixels") if key in row]
    return max(differences) <= BOUND and row.get("tokens_differ", 0) == row.get("indices_differ", 0) == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="a clone of FoundationVision/LlamaGen")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    if not (args.reference / "autoregressive").is_dir():
        parser.error(f"{args.reference} is no clone of FoundationVision/LlamaGen")
    sys.path.insert(0, str(args.reference))
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        rows = compare(SIZES[args.size], Path(folder))
    for row in rows:
        figures = (f"{key} {value:.3g}" for key, value in row.items() if key != "what")
        print(f"{'ok  ' if holds(row) else 'FAIL'} {row['what']}: {', '.join(figures)}")
    if args.json is not None:
        report = {"size": args.size, "bound": BOUND, "torch": torch.__version__, "results": rows}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if all(map(holds, rows)) else 1)


if __name__ == "__main__":
    main()
