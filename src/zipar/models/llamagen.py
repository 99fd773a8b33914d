"""LlamaGen (Sun et al., "Autoregressive Model Beats Diffusion", arXiv 2406.06525).

A Llama over image tokens: a conditioning prefix (one class embedding, or projected T5 features), then
the tokens of the image in raster order, with a 2-D rotary embedding over the token grid.
Parameter names are those of the published checkpoints, so their tensors load unchanged.
"""

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipar.checkpoints.files import build, check_readable, read_config, read_tensors
from zipar.checkpoints.pretrained import load_model, load_processor
from zipar.decoding.attention import attend
from zipar.decoding.cache import SlotCache
from zipar.decoding.decodable import Prefix
from zipar.decoding.sampling import Sampling
from zipar.errors import ZipARError
from zipar.grid import TokenGrid
from zipar.image_tokenizers.vq import VQConfig, VQModel
from zipar.models.base import VisualModel, to_bytes, tokenized
from zipar.models.imagenet import imagenet_class
from zipar.prompts import PromptVocabulary

CLASS = "class"
"""The attribute of a vocabulary that names classes."""


@dataclass(frozen=True)
class LlamaGenConfig:
    """Shape of the decoder. ``classes`` is set for class-conditional models, ``caption_dim`` for text ones."""

    layers: int
    heads: int
    dim: int
    kv_heads: int | None = None
    vocab_size: int = 16384
    prefix_length: int = 1
    classes: int | None = None
    caption_dim: int | None = None
    grid_side: int = 16
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    rope_base: float = 10000.0
    frames: int = 1
    """Of clips, where more than one: places are then embedded too (see ``zipar.models.clips``)."""
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def hidden_dim(self) -> int:
        """Width of the SwiGLU layer."""
        hidden = int(2 * 4 * self.dim / 3)
        if self.ffn_dim_multiplier is not None:
            hidden = int(self.ffn_dim_multiplier * hidden)
        return -(-hidden // self.multiple_of) * self.multiple_of


class LlamaGen(VisualModel):
    """Class- or text-conditional LlamaGen: prompts are classes, or sentences for its T5 encoder.

    A vocabulary names the classes: the values of its attribute "class", in order. Without one, 1,000 classes are
    ImageNet's.
    """

    family = "llamagen"

    def __init__(
        self,
        decoder: "Transformer",
        image_tokenizer: VQModel,
        text_encoder: Any = None,
        text_tokenizer: Any = None,
        defaults: Sampling | None = None,
        vocabulary: PromptVocabulary | None = None,
    ) -> None:
        super().__init__()
        config = decoder.config
        if (config.caption_dim is None) != (text_encoder is None):
            raise ZipARError("a text encoder belongs to a text-conditional LlamaGen, and to no other")
        self.decoder, self.image_tokenizer, self.text_encoder = decoder, image_tokenizer, text_encoder
        self.text_tokenizer = text_tokenizer
        self.defaults = defaults or Sampling()
        self.layers, self.classes = config.layers, config.classes
        self.vocabulary = _naming(vocabulary, config.classes, "the vocabulary")
        side = config.grid_side * image_tokenizer.config.downsampling
        self.image_size = (side, side)
        rotary = rotary_2d(config.grid_side, config.head_dim, config.rope_base)
        self.rotary = rotary.to(self.device)

    @classmethod
    def load(cls, directory: Path, dtype: torch.dtype, device: torch.device) -> "LlamaGen":
        decoder, image_tokenizer, settings = cls._parts(directory)
        decoder_weights = read_tensors(directory / "decoder.safetensors", decoder)
        decoder.load_state_dict(decoder_weights, assign=True)
        image_tokenizer.load_state_dict(
            read_tensors(directory / "image_tokenizer.safetensors", image_tokenizer), assign=True
        )
        text_encoder, text_tokenizer = None, None
        if decoder.config.caption_dim is not None:
            text_encoder, text_tokenizer = load_text_encoder(directory / "text_encoder", dtype)
        decoder = decoder.to(device, dtype)
        image_tokenizer = image_tokenizer.to(device, torch.float32)  # as the authors run it, whatever the decoder's
        if text_encoder is not None:
            text_encoder = text_encoder.to(device)
        model = cls(decoder, image_tokenizer, text_encoder, text_tokenizer, **settings)
        return model.eval().requires_grad_(False)

    @classmethod
    def outline(cls, directory: Path) -> "LlamaGen":
        decoder, image_tokenizer, settings = cls._parts(directory)
        text_encoder = None if decoder.config.caption_dim is None else object()
        return cls(decoder, image_tokenizer, text_encoder, **settings)

    @classmethod
    def _parts(cls, directory: Path) -> tuple["Transformer", VQModel, dict[str, Any]]:
        """The networks without weights, on the meta device, and arguments that the directory holds."""
        config, prompts = read_config(directory), directory / "prompts.json"
        with build(directory):
            shape = LlamaGenConfig(**config["decoder"])
            vocabulary = PromptVocabulary.load(prompts) if prompts.exists() else None
            settings = {
                "defaults": Sampling(**config.get("sampling", {})),
                "vocabulary": _naming(vocabulary, shape.classes, str(prompts)),
            }
            with torch.device("meta"):
                return Transformer(shape), VQModel(VQConfig(**config["image_tokenizer"])), settings

    @property
    def dtype(self) -> torch.dtype:
        return next(self.decoder.tok_embeddings.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.decoder.tok_embeddings.parameters()).device

    def grid(self, height: int, width: int) -> TokenGrid:
        if (height, width) != self.image_size:
            raise ZipARError(
                f"this LlamaGen makes no images of {height}x{width} pixels (height x width): "
                f"it was trained on {self.image_size[0]}x{self.image_size[1]} alone"
            )
        return TokenGrid(self.decoder.config.grid_side, self.decoder.config.grid_side)

    def prefix(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str] | None,
        guided: bool,
        grid: TokenGrid | None = None,
    ) -> Prefix:
        if negative_prompts is not None and not guided:
            raise ZipARError("a negative prompt does nothing at guidance scale 1: raise the scale or leave it out")
        both = [*prompts, *negative_prompts] if negative_prompts is not None else list(prompts)
        if self.text_encoder is None:
            return self._class_prefix(both, guided and negative_prompts is None)
        return self._text_prefix(both, guided and negative_prompts is None)

    def _class_prefix(self, prompts: Sequence[str], unconditional: bool) -> Prefix:
        assert self.classes is not None
        labels = [self._label(prompt, self.classes) for prompt in prompts]
        if unconditional:
            labels += [self.classes] * len(labels)
        embeddings = self.decoder.cls_embedding(torch.tensor(labels, device=self.device))
        return Prefix(embeddings, torch.ones(len(labels), 1, dtype=torch.bool, device=self.device))

    def _label(self, prompt: str, classes: int) -> int:
        if self.vocabulary is None:
            return imagenet_class(prompt, classes)
        self.vocabulary.check(prompt)
        return list(self.vocabulary.attributes[CLASS]).index(self.vocabulary.parse(prompt)[CLASS])

    def _text_prefix(self, prompts: Sequence[str], unconditional: bool) -> Prefix:
        # T5 has relative positions only: padded on the left, it gives the features that the authors
        # compute padded on the right and then move there
        limit = self.decoder.config.prefix_length
        words = tokenized(self.text_tokenizer, [" ".join(prompt.lower().split()) for prompt in prompts])["input_ids"]
        for prompt, ids in zip(prompts, words, strict=True):
            if len(ids) > limit:
                warnings.warn(
                    f"only the first {limit} tokens of {len(ids)} count in the prompt {prompt!r}", stacklevel=2
                )
        words = [ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in words]
        length = max(map(len, words))
        ids = torch.tensor([[0] * (length - len(w)) + w for w in words], device=self.device)
        valid = torch.tensor([[False] * (length - len(w)) + [True] * len(w) for w in words], device=self.device)
        features = self.text_encoder(input_ids=ids, attention_mask=valid).last_hidden_state.to(self.dtype)
        embedder = self.decoder.cls_embedding
        assert isinstance(embedder, CaptionEmbedder)
        if unconditional:
            absent = embedder.uncond_embedding[-length:].expand(len(words), -1, -1)
            features, valid = torch.cat([features, absent]), valid.repeat(2, 1)
        return Prefix(embedder(features), valid)

    def prefill(self, prefix: Prefix, cache: SlotCache, mask: Tensor) -> Tensor:
        self._follow(self.decoder)
        self.rotary = self.rotary.to(self.device)
        prompt = prefix_rotary(self.decoder.config, prefix.prompt).to(self.device)
        rotary = torch.cat([prompt, self.rotary[: prefix.opening]])[None]
        decoder = self.running(self.decoder)
        hidden = decoder(prefix.embeddings, rotary, mask, cache)
        return decoder.output(hidden[:, -1:]).float()

    def step(self, tokens: Tensor, slots: Tensor, lengths: Tensor, cache: SlotCache, mask: Tensor) -> Tensor:
        decoder = self.running(self.decoder)
        hidden = decoder(decoder.embed(tokens, slots), self.rotary[slots], mask, cache)
        return decoder.output(hidden).float()

    def stepped(self) -> list[nn.Module]:
        return [self.decoder]

    def exact(self) -> list[nn.Module]:
        return [self.image_tokenizer]

    def examples(self, count: int) -> list[str]:
        if self.vocabulary is not None:
            return [self.vocabulary.sample(i) for i in range(count)]
        if self.classes is not None:
            return [str(draw.randrange(self.classes)) for draw in map(random.Random, range(count))]
        return super().examples(count)

    def pixels(self, tokens: Tensor) -> Tensor:
        pixels = self.image_tokenizer.decode(tokens).float()
        return to_bytes(((pixels + 1) * 127.5).round()).permute(0, 2, 3, 1)


def _naming(vocabulary: PromptVocabulary | None, classes: int | None, source: str) -> PromptVocabulary | None:
    """``vocabulary`` where it names so many classes; prompts may then be their numbers too.

    Raises:
        ZipARError: it names others.
    """
    if vocabulary is None or classes is None:
        return vocabulary
    named = len(vocabulary.attributes.get(CLASS, {}))
    if named != classes or CLASS not in vocabulary.required:
        raise ZipARError(
            f"{source} should name the {classes} classes of the decoder as the values of a required attribute "
            f"{CLASS!r}, but {'does not require one' if named == classes else f'names {named}'}: mend it, or leave it "
            "out, and prompts are class numbers"
        )
    return replace(vocabulary, numbered=CLASS)


def load_text_encoder(directory: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """The T5 encoder and tokenizer in ``directory``, as transformers saves them.

    Raises:
        ZipARError: they are missing, damaged or incomplete.
    """
    from transformers import AutoTokenizer, T5EncoderModel

    absent = f"{directory} holds no text encoder: a text-conditional LlamaGen needs its T5 encoder there"
    check_readable(directory / "config.json", absent)
    if (kind := read_config(directory).get("model_type")) != "t5":
        raise ZipARError(f"{directory} holds a text encoder of type {kind!r}, but LlamaGen needs a T5")
    tokenizer = load_processor(AutoTokenizer, directory)
    return load_model(T5EncoderModel, directory, dtype, use_safetensors=None), tokenizer


class Transformer(nn.Module):
    """The decoder: embeddings of the prefix or of image tokens -> logits of the next token."""

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.config = config
        if config.classes is not None:
            self.cls_embedding: LabelEmbedder | CaptionEmbedder = LabelEmbedder(config.classes, config.dim)
        elif config.caption_dim is not None:
            self.cls_embedding = CaptionEmbedder(config.caption_dim, config.dim, config.prefix_length)
        else:
            raise ValueError("a LlamaGen config needs classes (class-conditional) or caption_dim (text)")
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.places = Places(config) if config.frames > 1 else None
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)

    def embed(self, tokens: Tensor, slots: Tensor) -> Tensor:
        """Embeddings (..., dim) of tokens at slots, both int64 (...)."""
        embeddings = self.tok_embeddings(tokens)
        return embeddings if self.places is None else embeddings + self.places(slots)

    def forward(self, hidden: Tensor, rotary: Tensor, mask: Tensor | None, cache: Any = None) -> Tensor:
        """Last hidden states (rows, queries, dim), to be turned into logits by ``output``.

        Args:
            hidden: embeddings (rows, queries, dim).
            rotary: complex rotations (rows or 1, queries, head_dim / 2).
            mask: additive attention mask.
            cache: what the keys and values of each layer pass through (``cache.layers[i].update``);
                None to attend to the given positions alone.
        """
        rotary = rotary[:, :, None]  # the same for all heads
        for i, layer in enumerate(self.layers):
            hidden = layer(hidden, rotary, mask, None if cache is None else cache.layers[i])
        return self.norm(hidden)


class Places(nn.Module):
    """Where a token of a clip is: the sum of an embedding of its frame, of its grid row and of its column."""

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.side = config.grid_side
        self.frame = nn.Embedding(config.frames, config.dim)
        self.row, self.column = (nn.Embedding(config.grid_side, config.dim) for _ in range(2))

    def forward(self, slots: Tensor) -> Tensor:
        frame, row = slots // self.side**2, slots // self.side % self.side
        return self.frame(frame) + self.row(row) + self.column(slots % self.side)


class Block(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        norm = partial(RMSNorm, config.dim, config.norm_eps)
        self.attention_norm = norm()
        self.attention = Attention(config)
        self.ffn_norm = norm()
        self.feed_forward = FeedForward(config.dim, config.hidden_dim)

    def forward(self, x: Tensor, rotary: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotary, mask, cache)
        return x + self.feed_forward(self.ffn_norm(x))


class RMSNorm(nn.RMSNorm):
    """Divides by the root of the mean square; on CPUs, where no gradient is wanted, by half of PyTorch's operators."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__(dim, eps=eps)
        self._floor = torch.tensor((dim * eps) ** 0.5, device="cpu")  # a number to ``hypot``, wherever the weights are
        self._scale = dim**-0.5

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda or torch.is_grad_enabled():
            return super().forward(x)
        length = torch.linalg.vector_norm(x, 2, -1, True, dtype=torch.float32)
        return (x / length.hypot_(self._floor).mul_(self._scale)).mul_(self.weight).type_as(x)


class Attention(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.kv_heads = config.kv_heads or config.heads
        self.wqkv = nn.Linear(config.dim, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, rotary: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        heads = self.wqkv(x).unflatten(-1, (-1, self.head_dim))
        rotate_(heads[:, :, : self.heads + self.kv_heads], rotary)
        query, key, value = heads.transpose(1, 2).split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        if cache is not None:
            key, value = cache.update(key, value)
        return self.wo(attend(query, key, value, mask).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class LabelEmbedder(nn.Module):
    """One embedding a class; the last one stands for "no class"."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, dim)

    def forward(self, labels: Tensor) -> Tensor:
        """Class numbers (rows,) -> a prefix (rows, 1, dim)."""
        return self.embedding_table(labels)[:, None]


class CaptionEmbedder(nn.Module):
    """Projects T5 features; ``uncond_embedding`` stands for the features of no prompt."""

    def __init__(self, caption_dim: int, dim: int, length: int) -> None:
        super().__init__()
        self.cap_proj = MLP(caption_dim, dim)
        self.uncond_embedding = nn.Parameter(torch.randn(length, caption_dim) / caption_dim**0.5)

    def forward(self, features: Tensor) -> Tensor:
        """T5 features (rows, length, caption_dim) -> a prefix (rows, length, dim)."""
        return self.cap_proj(features)


class MLP(nn.Module):
    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_dim, dim, bias=False)
        self.fc2 = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def rotary_2d(side: int, head_dim: int, base: float) -> Tensor:
    """Complex rotations (side * side, head_dim / 2) of the slots of a square grid.

    The first half of each row turns with the grid row, the second with the column.
    """
    half = head_dim // 2
    frequencies = base ** (-torch.arange(0, half, 2)[: half // 2].float() / half)
    angles = torch.outer(torch.arange(side), frequencies)
    rows, columns = angles[:, None].expand(-1, side, -1), angles[None].expand(side, -1, -1)
    angles = torch.cat([rows, columns], dim=-1).flatten(0, 1)
    return torch.polar(torch.ones_like(angles), angles)


def prefix_rotary(config: LlamaGenConfig, length: int) -> Tensor:
    """Complex rotations (length, head_dim / 2) of the prefix: zeros, as in the authors' code.

    They make the queries and keys of the prefix vanish: image tokens attend to all of it evenly.
    """
    return torch.zeros(length, config.head_dim // 2, dtype=torch.complex64)


def rotate_(x: Tensor, rotary: Tensor) -> None:
    """Rotate the (interleaved) pairs of ``x`` (rows, queries, heads, head_dim) in place; the product is float32.

    ``rotary`` is complex (rows or 1, queries, 1, head_dim / 2).
    """
    pairs = x.unflatten(-1, (-1, 2))
    if x.dtype == torch.float32:
        torch.view_as_complex(pairs).mul_(rotary)
    else:
        pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()) * rotary))
