"""Lumina-mGPT (Liu et al., arXiv 2408.02657) and Anole (Chern et al., arXiv 2407.06135): Chameleons that write images.

Both continue Meta's Chameleon (arXiv 2405.09818), a Llama over one vocabulary of text and image tokens, which
transformers implements. They differ in what stands around an image: Lumina-mGPT says its size in the prompt and in
two tokens before it, and ends every row with a token; Anole writes 32 x 32 tokens and nothing else.

An image token is counted from the first image token of the vocabulary on: that is what logits are of, and what
sequences hold. ``vocabulary_ids`` and ``tokens`` translate.
"""

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import ChameleonForConditionalGeneration

from zipar.checkpoints.files import build, read_config, read_tensors, read_tokenizer
from zipar.checkpoints.pretrained import load_model
from zipar.decoding.decodable import Prefix
from zipar.decoding.sampling import Sampling
from zipar.errors import ZipARError
from zipar.grid import TokenGrid
from zipar.image_tokenizers.chameleon import ChameleonImageDecoder, code_ids
from zipar.image_tokenizers.vq import VQConfig
from zipar.models.backbone import TransformersModel
from zipar.models.base import configured, to_bytes, tokenized

TOKEN_SIDE = 16
"""Pixels along a side of the square that an image token stands for."""


class Chameleon(TransformersModel):
    """What its families share: one vocabulary, a decoder of transformers, and Meta's image decoder."""

    network = ChameleonForConditionalGeneration
    sampling: ClassVar[Sampling]
    """How the family's authors sample."""

    def __init__(
        self,
        model: ChameleonForConditionalGeneration,
        tokenizer: Tokenizer | None = None,
        image_tokenizer: ChameleonImageDecoder | None = None,
        image_size: int = 512,
        defaults: Sampling | None = None,
    ) -> None:
        """Of a loaded model alone: tokens can be decoded; prompts need ``tokenizer``, pixels ``image_tokenizer``.

        Args:
            model: its config's ``vocabulary_map`` says which token is what.
            image_size: side in pixels of the square images it was trained on.
            defaults: None for the authors' way of sampling.

        Raises:
            ZipARError: the parts do not fit each other, or the vocabulary is not that of the family.
        """
        super().__init__(model, model.model)
        self.tokenizer, self.image_tokenizer = tokenizer, image_tokenizer
        self.image_size = (image_size, image_size)
        self.defaults = defaults or configured(self.sampling, model.generation_config)
        self.names: dict[str, int] = model.config.vocabulary_map or {}
        ids = code_ids(self.names)
        self.codebook_size, self.first = len(ids), int(ids.min())
        if int(ids.max()) >= min(self.first + self.codebook_size, model.config.vocab_size):
            raise ZipARError(
                f"the vocabulary's {self.codebook_size} image tokens should have consecutive ids below "
                f"{model.config.vocab_size}, but they have some from {self.first} to {int(ids.max())}"
            )
        if image_tokenizer is not None and image_tokenizer.config.codebook_size != self.codebook_size:
            raise ZipARError(
                f"the image decoder knows {image_tokenizer.config.codebook_size} codes, "
                f"the vocabulary {self.codebook_size}: they do not belong together"
            )
        if image_tokenizer is not None and image_tokenizer.config.downsampling != TOKEN_SIDE:
            raise ZipARError(
                f"the image decoder makes {image_tokenizer.config.downsampling} pixels of a token's side: "
                f"a Chameleon needs {TOKEN_SIDE}"
            )
        self.code_of: Tensor
        self.register_buffer("code_of", ids.argsort().to(self.device), persistent=False)
        self.head_rows = slice(self.first, self.first + self.codebook_size)
        self.start, self.end = self.id_of("<racm3:break>"), self.id_of("<eoss>")
        self.beginning, self.turn_end = self.id_of("<s>"), self.id_of("<reserved08706>")

    @classmethod
    def load(cls, directory: Path, dtype: torch.dtype, device: torch.device) -> "Chameleon":
        settings, image_tokenizer = cls._settings(directory)
        image_tokenizer.load_state_dict(
            read_tensors(directory / "image_tokenizer.safetensors", image_tokenizer), assign=True
        )
        tokenizer = read_tokenizer(directory / "tokenizer.json")
        model = load_model(cls.network, directory / "decoder", dtype)
        image_tokenizer = image_tokenizer.to(device, torch.float32)  # as the authors run it
        return cls(model.to(device), tokenizer, image_tokenizer, **settings).eval().requires_grad_(False)

    @classmethod
    def outline(cls, directory: Path) -> "Chameleon":
        settings, image_tokenizer = cls._settings(directory)
        model = cls.without_weights(directory / "decoder")
        return cls(model, None, image_tokenizer, **settings)

    @classmethod
    def _settings(cls, directory: Path) -> tuple[dict[str, Any], ChameleonImageDecoder]:
        """Arguments that ``config.json`` holds, and the image decoder without weights."""
        config = read_config(directory)
        with build(directory):
            settings = {"image_size": int(config["image_size"]), "defaults": Sampling(**config["sampling"])}
            with torch.device("meta"):
                return settings, ChameleonImageDecoder(VQConfig(**config["image_tokenizer"]))

    @abstractmethod
    def request(self, text: str, grid: TokenGrid) -> str:
        """``text`` as the model was trained to be asked for an image."""

    @abstractmethod
    def header(self, grid: TokenGrid) -> list[int]:
        """The token ids between the prompt and the image."""

    @abstractmethod
    def unconditional(self, grid: TokenGrid) -> list[int]:
        """The token ids before an image that nothing is said of."""

    def id_of(self, name: str) -> int:
        """The vocabulary's id of a token.

        Raises:
            ZipARError: it has none.
        """
        token = self.names.get(name, -1)
        if not 0 <= token < self.model.config.vocab_size:
            raise ZipARError(f"the vocabulary has no token {name}: it is not that of {type(self).__name__}")
        return token

    def vocabulary_ids(self, tokens: Tensor) -> Tensor:
        """Tokens as sequences hold them -> ids of the vocabulary, both int64 of one shape."""
        return tokens + self.first

    def tokens(self, ids: Tensor) -> Tensor:
        """The inverse of ``vocabulary_ids``."""
        return ids - self.first

    def written(self, sequences: Tensor, grid: TokenGrid) -> Tensor:
        """What the model itself writes after a prompt, to the end of its turn.

        Args:
            sequences: decoded tokens, int64 (images, slots).
            grid: their grid.

        Returns:
            int64 (images, length): header, image, end of image, end of turn, as ids of the vocabulary.
        """
        around = [
            torch.tensor(ids, device=sequences.device).expand(len(sequences), -1)
            for ids in (self.header(grid), [self.end, self.turn_end])
        ]
        return torch.cat([around[0], self.vocabulary_ids(sequences), around[1]], dim=1)

    def prefix(
        self, prompts: Sequence[str], negative_prompts: Sequence[str] | None, guided: bool, grid: TokenGrid
    ) -> Prefix:
        if negative_prompts is not None and not guided:
            raise ZipARError("a negative prompt does nothing at guidance scale 1: raise the scale or leave it out")
        sequences = [self._sequence(text, grid) for text in [*prompts, *(negative_prompts or ())]]
        if guided and negative_prompts is None:
            sequences += [self.unconditional(grid)] * len(prompts)
        length = max(map(len, sequences))
        ids = torch.tensor([[0] * (length - len(row)) + row for row in sequences])
        valid = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in sequences])
        return self.prompt(ids, valid)

    def prompt(self, input_ids: Tensor, attention_mask: Tensor) -> Prefix:
        """The prefix of prompts that are token ids already, int64 (rows, length) each, padded on the left."""
        embeddings = self.decoder.get_input_embeddings()(input_ids.to(self.device))
        return Prefix(embeddings, attention_mask.to(self.device).bool())

    def _sequence(self, text: str, grid: TokenGrid) -> list[int]:
        if self.tokenizer is None:
            raise ZipARError(
                f"this {type(self).__name__} was made without a tokenizer and takes no prompts: give it one"
            )
        encode = self.tokenizer.encode
        words = tokenized(lambda texts: encode(self.request(texts[0], grid), add_special_tokens=False).ids, [text])
        sequence = [self.beginning, *words, self.turn_end, *self.header(grid)]
        room = self.model.config.max_position_embeddings - grid.slots
        if len(sequence) > room:  # positions go on, and so do the authors: only trained on they were not
            warnings.warn(
                f"the prompt {text[:40]!r} takes {len(sequence)} tokens, but beside an image of this size "
                f"the model was trained on {room} at most",
                stacklevel=2,
            )
        return sequence

    def embed(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.decoder.get_input_embeddings()(self.vocabulary_ids(tokens))
        return embedded

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    def exact(self) -> list[nn.Module]:
        return [] if self.image_tokenizer is None else [self.image_tokenizer]

    def codes(self, tokens: Tensor) -> Tensor:
        return self.code_of[tokens]

    def pixels(self, tokens: Tensor) -> Tensor:
        if self.image_tokenizer is None:
            raise ZipARError(
                f"this {type(self).__name__} was made without an image decoder, which transformers has not: "
                "load a directory that `zipar convert` made, or give it a ChameleonImageDecoder"
            )
        pixels = self.image_tokenizer.decode(tokens)
        return to_bytes(((pixels + 1) * 127.5).round()).permute(0, 2, 3, 1)


class LuminaMGPT(Chameleon):
    """Lumina-mGPT: images of many shapes, all of about one area; rows end with a token."""

    family = "lumina_mgpt"
    sampling = Sampling(guidance_scale=4.0, top_k=2000)
    """As in the README of the authors' repository."""

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) in pixels of the images it was trained on: as many patches of 32 x 32 as fit the area.

        A patch more on both sides would be too many; no side is more than four times as long as the other.
        """
        patches = (self.image_size[0] // 32) ** 2
        return [
            (32 * high, 32 * wide)
            for wide in range(1, patches + 1)
            for high in range(max(patches // (wide + 1), 1), patches // wide + 1)
            if max(wide, high) <= 4 * min(wide, high)
        ]

    def grid(self, height: int, width: int) -> TokenGrid:
        sizes = self.sizes()
        if (height, width) not in sizes:
            near = sorted(sizes, key=lambda size: abs(size[0] - height) + abs(size[1] - width))[:3]
            raise ZipARError(
                f"this Lumina-mGPT makes no images of {height}x{width} pixels (height x width): sides are multiples "
                f"of 32 with an area near that of {self.image_size[0]}x{self.image_size[1]}, and at most 1:4; "
                f"nearest are {', '.join(f'{h}x{w}' for h, w in near)}"
            )
        return self._grid(height // TOKEN_SIDE, width // TOKEN_SIDE)

    def _grid(self, rows: int, columns: int) -> TokenGrid:
        return TokenGrid(rows, columns, row_end=self.id_of("<reserved08799>") - self.first)

    @staticmethod
    def size_tokens(names: dict[str, int]) -> dict[int, int]:
        """Of a vocabulary: the tokens that say a height or a width, and how many image tokens each stands for."""
        return {names[name]: 2 * n for n in range(1, 100) if (name := f"<reserved{8800 + n:05}>") in names}

    def grid_of(self, input_ids: Tensor) -> TokenGrid:
        """The grid that prompts ask for, int64 (rows, length) that end with a ``header``, of any size.

        Raises:
            ZipARError: a prompt has no header, or another one than the others.
        """
        header, sizes = input_ids[:, -3:].unique(dim=0).tolist(), self.size_tokens(self.names)
        if len(header) != 1 or header[0][:-2] != [self.start] or not sizes.keys() >= set(header[0][1:]):
            raise ZipARError(
                "the prompts should all end with one size of an image: begin-of-image (<racm3:break>), and a token "
                "each for height and width"
            )
        return self._grid(*(sizes[token] for token in header[0][1:]))

    def request(self, text: str, grid: TokenGrid) -> str:
        size = f"{grid.columns * TOKEN_SIDE}x{grid.rows * TOKEN_SIDE}"
        return f"Generate an image of {size} according to the following prompt:\n{text}"

    def header(self, grid: TokenGrid) -> list[int]:
        return [self.start, *(self.id_of(f"<reserved{8800 + tokens // 2:05}>") for tokens in (grid.rows, grid.columns))]

    def unconditional(self, grid: TokenGrid) -> list[int]:
        return self.header(grid)


class Anole(Chameleon):
    """Anole: square images of one size, without row ends."""

    family = "anole"
    sampling = Sampling(guidance_scale=3.0, temperature=0.7, top_p=0.9)
    """As in the authors' repository. Their guidance has a third branch, of the images in the prompt: where there
    are none, it is the unconditional one, and what is left is guidance as everywhere."""

    def grid(self, height: int, width: int) -> TokenGrid:
        if (height, width) != self.image_size:
            raise ZipARError(
                f"this Anole makes no images of {height}x{width} pixels (height x width): "
                f"it was trained on {self.image_size[0]}x{self.image_size[1]} alone"
            )
        return TokenGrid(height // TOKEN_SIDE, width // TOKEN_SIDE)

    def request(self, text: str, grid: TokenGrid) -> str:
        return text

    def header(self, grid: TokenGrid) -> list[int]:
        return [self.start]

    def unconditional(self, grid: TokenGrid) -> list[int]:
        return [self.beginning, self.start]
