"""Conversion of the published files of NVIDIA Cosmos: autoregressive base models and their video tokenizer."""

import dataclasses
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from zipar.checkpoints.files import build, check_tensors
from zipar.conversion.published import Weights, count, in_format, read_pickle, shape_of
from zipar.conversion.torchscript import read_torchscript
from zipar.decoding.sampling import Sampling
from zipar.errors import ZipARError
from zipar.image_tokenizers.cosmos import CosmosTokenizer, CosmosTokenizerConfig
from zipar.models.cosmos import Cosmos, CosmosConfig, Transformer
from zipar.writing import new_directory

PUBLISHED: dict[tuple[int, int], tuple[tuple[int, int] | None, float]] = {
    (16, 4096): (None, 0.8),
    (40, 5120): ((3, 40), 0.9),
}
"""By (layers, dim) of 4B and 12B, what no tensor tells: the lengths that YaRN stretches, and the authors' top-p."""
PREFIX = "model."
"""Before the published names of the decoder's tensors."""
NOT_WEIGHTS = {"_extra_state"}
"""What training in eight bits leaves."""
COMPUTED = {"wavelets", "_arange", "patch_size_buffer", "_levels", "_basis", "implicit_codebook"}
"""Buffers of the authors' tokenizer that hold nothing learnt."""
RESAMPLING = re.compile(r"\.(up|down)sample\.conv[12]\.")
"""What halves or doubles sides or frames. Cosmos-1.0-Tokenizer has it at each level, and uses what it needs."""


def convert(model: Path, tokenizer: Path, out: Path, *, dtype: torch.dtype | None = None) -> set[torch.dtype]:
    """Turn the published files of a Cosmos base model into a directory that ``zipar.pipeline`` loads.

    ``out`` holds ``config.json``, ``video_tokenizer.safetensors`` and ``decoder/``, a file a layer: no more than one is
    in memory.

    Args:
        model: ``model.pt`` of the 4B or the 12B.
        tokenizer: directory of Cosmos-Tokenize1-DV8x16x16-720p, with ``encoder.jit`` and ``decoder.jit``, or with
            ``autoencoder.jit``. No code in them is run.
        out: the directory to make.
        dtype: of the stored decoder, which the authors run in bfloat16; None for each tensor's own. The tokenizer is
            small, and is stored in float32.

    Returns:
        The number formats of the stored decoder.

    Raises:
        ZipARError: a file that is missing, damaged, or not what it should be, files that do not belong
            together, or ``out`` exists. Nothing is written then.
    """
    weights, _ = read_pickle(model, ("model",), NOT_WEIGHTS)
    weights = {name.removeprefix(PREFIX): value for name, value in weights.items()}
    config, top_p = _decoder_config(weights, model)
    tokenizer_weights, tokenizer_config = read_tokenizer(tokenizer)
    if config.vocab_size != tokenizer_config.codebook_size:
        raise ZipARError(
            f"{model} and {tokenizer} do not belong together: the decoder knows {config.vocab_size} tokens, "
            f"the video tokenizer {tokenizer_config.codebook_size}"
        )
    with build(model), torch.device("meta"):
        check_tensors(weights, Transformer(config), model)
    settings = {
        "model_type": Cosmos.family,
        "decoder": dataclasses.asdict(config),
        "video_tokenizer": dataclasses.asdict(tokenizer_config),
        "sampling": dataclasses.asdict(Sampling(top_p=top_p)),
    }
    formats: set[torch.dtype] = set()
    with new_directory(out) as scratch:
        (scratch / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        save_file(tokenizer_weights, scratch / "video_tokenizer.safetensors")
        (scratch / "decoder").mkdir()
        for shard, part in _shards(weights):
            tensors = {name: in_format(value, dtype).contiguous() for name, value in part.items()}
            formats.update(value.dtype for value in tensors.values())
            save_file(tensors, scratch / "decoder" / f"{shard}.safetensors")
    return formats


def _shards(weights: Weights) -> Iterator[tuple[str, Weights]]:
    """The tensors of each layer, and of each part beside the layers, by its name."""
    parts: dict[str, Weights] = {}
    for name, value in weights.items():
        depth = 2 if name.startswith("layers.") else 1
        parts.setdefault(".".join(name.split(".")[:depth]), {})[name] = value
    yield from parts.items()


def _decoder_config(weights: Weights, source: Path) -> tuple[CosmosConfig, float]:
    """The shape of the decoder, and its top-p.

    Raises:
        ZipARError: these are not the weights of a Cosmos base model of a published size.
    """
    if any("cross_attention" in name for name in weights):
        raise ZipARError(f"{source} is a Cosmos that reads text (Video2World): give a base model, 4B or 12B")
    shape = partial(shape_of, weights, source, "Cosmos decoder")
    vocab_size, dim = shape("tok_embeddings.weight", 2)
    (head_dim,) = shape("layers.0.attention.q_norm.weight", 1)
    layers = count(weights, "layers.")
    if (layers, dim) not in PUBLISHED:
        sizes = " or ".join(f"{layers} layers, {dim} wide" for layers, dim in PUBLISHED)
        raise ZipARError(f"{source} is of no published size ({layers} layers, {dim} wide): give one of {sizes}")
    trained, top_p = PUBLISHED[layers, dim]
    config = CosmosConfig(
        layers=layers,
        dim=dim,
        heads=shape("layers.0.attention.wq.weight", 2)[0] // head_dim,
        kv_heads=shape("layers.0.attention.wk.weight", 2)[0] // head_dim,
        head_dim=head_dim,
        hidden_dim=shape("layers.0.feed_forward.w1.weight", 2)[0],
        vocab_size=vocab_size,
        trained=trained,
    )
    return config, top_p


def read_tokenizer(directory: Path) -> tuple[Weights, CosmosTokenizerConfig]:
    """The tensors of a published DV8x16x16 video tokenizer, in float32, and its shape.

    Raises:
        ZipARError: the directory does not hold one.
    """
    halves = [directory / "encoder.jit", directory / "decoder.jit"]
    whole = directory / "autoencoder.jit"
    held: Weights = {}
    for path in [whole] if whole.exists() and not all(half.exists() for half in halves) else halves:
        held |= read_torchscript(path)
    weights = {name: value for name, value in held.items() if name.rpartition(".")[2] not in COMPUTED}
    shape = partial(shape_of, weights, directory, "Cosmos video tokenizer")
    channels, coefficients = shape("encoder.conv_in.0.conv3d.weight", 5)[:2]
    depth = count(weights, "encoder.down.")
    widths = [shape(f"encoder.down.{level}.block.0.conv1.0.conv3d.weight", 5)[0] for level in range(depth)]
    levels = held.get("quantizer._levels", torch.tensor(CosmosTokenizerConfig.levels))
    config = CosmosTokenizerConfig(
        channels,
        tuple(width // channels for width in widths),
        count(weights, "encoder.down.0.block."),
        shape("encoder.conv_out.0.conv3d.weight", 5)[0],
        tuple(levels.tolist()),
        round((coefficients / 3) ** (1 / 3)),
    )
    with build(directory), torch.device("meta"):
        tokenizer = CosmosTokenizer(config)
    used = tokenizer.state_dict()
    weights = {name: value for name, value in weights.items() if name in used or not RESAMPLING.search(name)}
    check_tensors(weights, tokenizer, directory)
    return {name: value.float().contiguous() for name, value in weights.items()}, config
