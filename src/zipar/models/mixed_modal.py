"""Decoders of text and images over one vocabulary, in transformers, with an image decoder that transformers lacks.

A checkpoint directory holds ``config.json``, ``tokenizer.json``, ``image_tokenizer.safetensors``, and ``decoder/``,
which is whole for transformers.
"""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from zipar.checkpoints.files import build, read_config, read_tensors, read_tokenizer
from zipar.checkpoints.pretrained import load_model
from zipar.decoding.decodable import Prefix
from zipar.decoding.sampling import Sampling
from zipar.errors import ZipARError
from zipar.grid import TokenGrid
from zipar.image_tokenizers.chameleon import ChameleonImageDecoder
from zipar.image_tokenizers.vq import VQConfig
from zipar.models.backbone import TransformersModel
from zipar.models.base import tokenized

TOKEN_SIDE = 16
"""Pixels along a side of the square that an image token of most families stands for."""


class MixedModal(TransformersModel):
    """What its families share: prompts and images are ids of one vocabulary, and pixels come of a decoder beside it."""

    model: Any
    attention: ClassVar[bool] = False
    """Whether the image decoder, if it is like Chameleon's, has attention at its lowest resolution."""
    token_side: ClassVar[int] = TOKEN_SIDE
    """Pixels along a side of the square that an image token stands for."""

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer | None,
        image_tokenizer: Any,
        codebook_size: int,
        first: int,
    ) -> None:
        """``first`` is the id of the first image token; the others follow it.

        Raises:
            ZipARError: the image decoder does not fit the vocabulary.
        """
        super().__init__(model, model.model)
        self.tokenizer, self.image_tokenizer = tokenizer, image_tokenizer
        self.codebook_size, self.first = codebook_size, first
        self.head_rows = slice(first, first + codebook_size)
        if image_tokenizer is not None and image_tokenizer.config.codebook_size != codebook_size:
            raise ZipARError(
                f"the image decoder knows {image_tokenizer.config.codebook_size} codes, "
                f"the vocabulary {codebook_size}: they do not belong together"
            )
        if image_tokenizer is not None and image_tokenizer.config.downsampling != self.token_side:
            raise ZipARError(
                f"the image decoder makes {image_tokenizer.config.downsampling} pixels of a token's side: "
                f"{type(self).__name__} needs {self.token_side}"
            )

    @classmethod
    def load(cls, directory: Path, dtype: torch.dtype, device: torch.device, sharded: bool = False) -> "MixedModal":
        parts = cls._parts(directory)
        model = load_model(cls.network, directory / "decoder", dtype, sharded=sharded)
        return cls._whole(model.to(device), device, parts)

    @classmethod
    def around(cls, model: Any, directory: str | Path) -> "MixedModal":
        """A checkpoint of this family whose ``decoder`` you loaded yourself: quantised, say, or over several devices.

        Its image decoder goes where prompts do.

        Raises:
            ZipARError: the checkpoint is damaged, or does not fit the decoder.
        """
        place = model.get_input_embeddings().weight.device
        return cls._whole(model, torch.device("cpu") if place.type == "meta" else place, cls._parts(Path(directory)))

    @classmethod
    def outline(cls, directory: Path) -> "MixedModal":
        settings, image_tokenizer = cls._settings(directory)
        return cls(cls.without_weights(directory / "decoder"), None, image_tokenizer, **settings)

    @classmethod
    def _whole(cls, model: Any, device: torch.device, parts: tuple[Any, Any, dict[str, Any]]) -> "MixedModal":
        tokenizer, image_tokenizer, settings = parts
        whole = cls(model, tokenizer, image_tokenizer.to(device, torch.float32), **settings)  # as the authors run it
        return whole.eval().requires_grad_(False)

    @classmethod
    def _parts(cls, directory: Path) -> tuple[Tokenizer, nn.Module, dict[str, Any]]:
        """All but the decoder, and arguments that ``config.json`` holds."""
        settings, image_tokenizer = cls._settings(directory)
        tensors = read_tensors(directory / "image_tokenizer.safetensors", image_tokenizer)
        image_tokenizer.load_state_dict(tensors, assign=True)
        return read_tokenizer(directory / "tokenizer.json"), image_tokenizer, settings

    @classmethod
    def _settings(cls, directory: Path) -> tuple[dict[str, Any], nn.Module]:
        """Arguments that ``config.json`` holds, and the image decoder without weights."""
        config = read_config(directory)
        with build(directory):
            settings = cls.settings(config) | {"defaults": Sampling(**config["sampling"])}
            with torch.device("meta"):
                return settings, cls.image_decoder(config["image_tokenizer"])

    @classmethod
    def image_decoder(cls, shape: dict[str, Any]) -> nn.Module:
        """The image decoder of the shape that ``config.json`` holds: like Chameleon's."""
        return ChameleonImageDecoder(VQConfig(**shape), attention=cls.attention)

    @classmethod
    @abstractmethod
    def settings(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The family's own arguments that ``config.json`` holds."""

    @abstractmethod
    def conditional(self, prompt: str, grid: TokenGrid) -> list[int]:
        """The token ids before an image of ``prompt``.

        Raises:
            ZipARError: a prompt that the model cannot take.
        """

    def negative(self, prompt: str, grid: TokenGrid) -> list[int]:
        """The token ids before an image of a negative prompt."""
        return self.conditional(prompt, grid)

    @abstractmethod
    def unconditional(self, grid: TokenGrid) -> list[int]:
        """The token ids before an image that nothing is said of."""

    @abstractmethod
    def vocabulary_ids(self, tokens: Tensor) -> Tensor:
        """Tokens as sequences hold them -> ids of the vocabulary, both int64 of one shape."""

    def prefix(
        self, prompts: Sequence[str], negative_prompts: Sequence[str] | None, guided: bool, grid: TokenGrid
    ) -> Prefix:
        if negative_prompts is not None and not guided:
            raise ZipARError("a negative prompt does nothing at guidance scale 1: raise the scale or leave it out")
        sequences = [self.conditional(text, grid) for text in prompts]
        sequences += [self.negative(text, grid) for text in negative_prompts or ()]
        if guided and negative_prompts is None:
            sequences += [self.unconditional(grid)] * len(prompts)
        length = max(map(len, sequences))
        ids = torch.tensor([[0] * (length - len(row)) + row for row in sequences])
        valid = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in sequences])
        return self.fitting(self.prompt(ids, valid), grid)

    def prompt(self, input_ids: Tensor, attention_mask: Tensor) -> Prefix:
        """The prefix of prompts that are token ids already, int64 (rows, length) each, padded on the left."""
        embeddings = self.decoder.get_input_embeddings()(input_ids.to(self.device))
        return Prefix(embeddings, attention_mask.to(embeddings.device).bool())

    def read(self, prompt: str, text: str) -> list[int]:
        """The token ids of ``text``, which a user's ``prompt`` was put into.

        Raises:
            ZipARError: the tokenizer is missing, or cannot read it.
        """
        if self.tokenizer is None:
            raise ZipARError(
                f"this {type(self).__name__} was made without a tokenizer and takes no prompts: give it one"
            )
        encode = self.tokenizer.encode
        return tokenized(lambda _: encode(text, add_special_tokens=False).ids, [prompt])

    def embed(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.decoder.get_input_embeddings()(self.vocabulary_ids(tokens))
        return embedded

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    def exact(self) -> list[nn.Module]:
        return [] if self.image_tokenizer is None else [self.image_tokenizer]

    def decoded(self, codes: Tensor) -> Tensor:
        """Codebook indices (images, rows, columns) -> pixels, float (images, 3, height, width), roughly in [-1, 1].

        Raises:
            ZipARError: there is no image decoder.
        """
        if self.image_tokenizer is None:
            raise ZipARError(
                f"this {type(self).__name__} was made without an image decoder, which transformers has not: "
                "load a directory that `zipar convert` made, or give it one"
            )
        place = next(self.image_tokenizer.parameters()).device  # not where all of the decoder is
        pixels: Tensor = self.image_tokenizer.decode(codes.to(place))
        return pixels
