"""Lumina-mGPT (Liu et al., arXiv 2408.02657) and Anole (Chern et al., arXiv 2407.06135): Chameleons that write images.

Both continue Meta's Chameleon (arXiv 2405.09818), a Llama over one vocabulary of text and image tokens, which
transformers implements. They differ in what stands around an image: Lumina-mGPT says its size in the prompt and in
two tokens before it, and ends every row with a token; Anole writes 32 x 32 tokens and nothing else.

An image token is counted from the first image token of the vocabulary on, and from its end to its beginning: that is
what logits are of, and what sequences hold. ``vocabulary_ids`` and ``tokens`` translate.
"""

import warnings
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import ChameleonForConditionalGeneration

from zipar.decoding.sampling import Sampling
from zipar.errors import ZipARError
from zipar.grid import TokenGrid
from zipar.image_tokenizers.chameleon import code_ids
from zipar.models.base import configured, to_bytes
from zipar.models.mixed_modal import MixedModal

PATCH = 32
"""Pixels: sizes of Lumina-mGPT's images are counted in these."""


class Chameleon(MixedModal):
    """What its families share: the names of Chameleon's vocabulary, and transformers' decoder."""

    network = ChameleonForConditionalGeneration
    sampling: ClassVar[Sampling]
    """How the family's authors sample."""
    image_side: ClassVar[int] = 512
    """Pixels along a side of the square images that it was trained on, unless told otherwise."""

    def __init__(
        self,
        model: ChameleonForConditionalGeneration,
        tokenizer: Tokenizer | None = None,
        image_tokenizer: Any = None,
        image_size: int | None = None,
        defaults: Sampling | None = None,
    ) -> None:
        """Of a loaded model alone: tokens can be decoded; prompts need ``tokenizer``, pixels ``image_tokenizer``.

        Args:
            model: its config's ``vocabulary_map`` says which token is what.
            image_tokenizer: as ``image_decoder`` makes it, with its weights.
            image_size: side in pixels of the square images it was trained on; None for ``image_side``.
            defaults: None for the authors' way of sampling.

        Raises:
            ZipARError: the parts do not fit each other, or the vocabulary is not that of the family.
        """
        names: dict[str, int] = model.config.vocabulary_map or {}
        ids = code_ids(names)
        first, last = int(ids.min()), int(ids.max())
        if last >= min(first + len(ids), model.config.vocab_size):
            raise ZipARError(
                f"the vocabulary's {len(ids)} image tokens should have consecutive ids below "
                f"{model.config.vocab_size}, but they have some from {first} to {last}"
            )
        super().__init__(model, tokenizer, image_tokenizer, len(ids), first)
        self.names, self.image_size = names, (self.image_side if image_size is None else image_size,) * 2
        self.defaults = defaults or configured(self.sampling, model.generation_config)
        self.code_of: Tensor
        self.register_buffer("code_of", ids.argsort().to(self.device), persistent=False)
        self.start, self.end = self.id_of("<racm3:break>"), self.id_of("<eoss>")
        self.beginning, self.turn_end = self.first_id(), self.id_of("<reserved08706>")

    @classmethod
    def settings(cls, config: dict[str, Any]) -> dict[str, Any]:
        return {"image_size": int(config["image_size"])}

    @abstractmethod
    def request(self, text: str, grid: TokenGrid) -> str:
        """``text`` as the model was trained to be asked for an image."""

    @abstractmethod
    def header(self, grid: TokenGrid) -> list[int]:
        """The token ids between the prompt and the image."""

    def first_id(self) -> int:
        """The token id that prompts begin with.

        Raises:
            ZipARError: the vocabulary has none.
        """
        return self.id_of("<s>")

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
        return (tokens + self.first) % self.model.config.vocab_size

    def tokens(self, ids: Tensor) -> Tensor:
        """The inverse of ``vocabulary_ids``."""
        return (ids - self.first) % self.model.config.vocab_size

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

    def conditional(self, prompt: str, grid: TokenGrid) -> list[int]:
        words = self.read(prompt, self.request(prompt, grid))
        sequence = [self.beginning, *words, self.turn_end, *self.header(grid)]
        room = self.model.config.max_position_embeddings - grid.slots
        if len(sequence) > room:  # positions go on, and so do the authors: only trained on they were not
            warnings.warn(
                f"the prompt {prompt[:40]!r} takes {len(sequence)} tokens, but beside an image of this size "
                f"the model was trained on {room} at most",
                stacklevel=2,
            )
        return sequence

    def codes(self, tokens: Tensor) -> Tensor:
        return self.code_of[tokens]

    def pixels(self, tokens: Tensor) -> Tensor:
        return to_bytes(((self.decoded(tokens) + 1) * 127.5).round()).permute(0, 2, 3, 1)


class LuminaMGPT(Chameleon):
    """Lumina-mGPT: images of many shapes, all of about one area; rows end with a token."""

    family = "lumina_mgpt"
    sampling = Sampling(guidance_scale=4.0, top_k=2000)
    """As in the README of the authors' repository."""

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) in pixels of the images it was trained on: as many patches of 32 x 32 as fit the area.

        A patch more on both sides would be too many; no side is more than four times as long as the other.
        """
        patches = (self.image_size[0] // PATCH) ** 2
        return [
            (PATCH * high, PATCH * wide)
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
                f"of {PATCH} with an area near that of {self.image_size[0]}x{self.image_size[1]}, and at most 1:4; "
                f"nearest are {', '.join(f'{h}x{w}' for h, w in near)}"
            )
        return self._grid(height // self.token_side, width // self.token_side)

    def _grid(self, rows: int, columns: int) -> TokenGrid:
        row_end = (self.id_of("<reserved08799>") - self.first) % self.model.config.vocab_size
        return TokenGrid(rows, columns, row_end=row_end)

    @classmethod
    def size_tokens(cls, names: dict[str, int]) -> dict[int, int]:
        """Of a vocabulary: the tokens that say a height or a width, and how many image tokens each stands for."""
        each = PATCH // cls.token_side
        return {names[name]: each * n for n in range(1, 100) if (name := f"<reserved{8800 + n:05}>") in names}

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
        size = f"{grid.columns * self.token_side}x{grid.rows * self.token_side}"
        return f"Generate an image of {size} according to the following prompt:\n{text}"

    def header(self, grid: TokenGrid) -> list[int]:
        patches = [tokens * self.token_side // PATCH for tokens in (grid.rows, grid.columns)]
        return [self.start, *(self.id_of(f"<reserved{8800 + count:05}>") for count in patches)]

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
        return TokenGrid(height // self.token_side, width // self.token_side)

    def request(self, text: str, grid: TokenGrid) -> str:
        return text

    def header(self, grid: TokenGrid) -> list[int]:
        return [self.start]

    def unconditional(self, grid: TokenGrid) -> list[int]:
        return [self.beginning, self.start]
