"""Emu3.5 and Emu3.5-Image (Cui et al., "Emu3.5: Native Multimodal Models are World Learners", arXiv 2510.26583).

One decoder over text and images, whose modules and parameters are those of Qwen3: a prompt, the size of the image in
digits, then its rows, with an end-of-line token between them. What the paper does not tell is in the authors'
repository, github.com/baaivision/Emu3.5: prompts, sizes and sampling in ``configs/example_config_t2i.py``, the layout
of an image in ``src/utils/logits_processor.py``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen3ForCausalLM

from zipar.decoding.sampling import Sampling
from zipar.errors import ZipARError
from zipar.grid import TokenGrid
from zipar.image_tokenizers.chameleon import ChameleonImageDecoder
from zipar.image_tokenizers.vq import VQConfig
from zipar.models.base import configured, to_bytes
from zipar.models.emu3 import size_named
from zipar.models.mixed_modal import TOKEN_SIDE, MixedModal

SIZES = ((55, 73), (41, 97), (47, 85), (52, 78), (64, 64), (73, 55), (85, 47), (78, 52))
"""Rows and columns of tokens of the images that the authors make, their default first."""
IMAGE = Sampling(guidance_scale=5.0, top_k=5120)
GENERAL = Sampling(guidance_scale=2.0, top_k=5120)
"""How the authors sample images of text: from Emu3.5-Image, and from Emu3.5."""
PUBLISHED = VQConfig(131072, 256, 256, (1, 1, 2, 2, 4), 4, 256)
"""The image tokenizer."""

REQUEST = "<|extra_203|>You are a helpful assistant for t2i task. USER: {} ASSISTANT: <|extra_100|>"
UNCONDITIONAL = "<|extra_203|>You are a helpful assistant. USER: {} ASSISTANT: <|extra_100|>"
DIGITS = {15 + digit: str(digit) for digit in range(10)} | {9: "*"}
"""What says the size, by its id: printable bytes come first in the vocabulary."""
NAMED_IDS = ("img_token_id", "boi_token_id", "eoi_token_id", "eol_token_id")
"""Of a config: what stands before an image's first row, before its size, behind its last row, and between rows."""


class Emu35(MixedModal):
    """Text-conditional Emu3.5. Tokens are codebook indices, and after them the end of a row.

    Guidance mixes logits, where the authors mix their log-softmaxes: the difference is a constant for all tokens. It
    comes before the constraint that rules out all but visual tokens, and that before top-k, as with the authors.
    """

    family = "emu3_5"
    network = Qwen3ForCausalLM
    attention = True

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer | None = None,
        image_tokenizer: ChameleonImageDecoder | None = None,
        sizes: Sequence[tuple[int, int]] = SIZES,
        defaults: Sampling | None = None,
    ) -> None:
        """Of a loaded model alone: tokens can be decoded; prompts need ``tokenizer``, pixels ``image_tokenizer``.

        Args:
            model: a ``Qwen3ForCausalLM`` whose config names the ids of ``NAMED_IDS``, as converted ones do.
            sizes: rows and columns of tokens of the images that it makes, those to make unless told otherwise first.
            defaults: None for the authors' way of sampling from Emu3.5-Image.

        Raises:
            ZipARError: the parts do not fit each other, or the model is another Qwen3.
        """
        config = model.config
        if not names_images(config):
            raise ZipARError(
                f"this {type(model).__name__} is no Emu3.5, for its config lacks some of {', '.join(NAMED_IDS)}: load "
                "the decoder that `zipar convert` made"
            )
        first = config.eoi_token_id + 1
        super().__init__(model, tokenizer, image_tokenizer, config.vocab_size - first, first)
        self.sizes = list(sizes)
        self.image_size = (self.sizes[0][0] * TOKEN_SIDE, self.sizes[0][1] * TOKEN_SIDE)
        self.positions = config.max_position_embeddings
        self.defaults = defaults or configured(IMAGE, model.generation_config)
        self.ids: Tensor
        ids = [*range(first, config.vocab_size), config.eol_token_id]
        self.register_buffer("ids", torch.tensor(ids, device=self.device), persistent=False)

    @classmethod
    def settings(cls, config: dict[str, Any]) -> dict[str, Any]:
        if not config["sizes"]:
            raise ValueError("config.json names no sizes")
        return {"sizes": [(int(rows), int(columns)) for rows, columns in config["sizes"]]}

    def grid(self, height: int, width: int) -> TokenGrid:
        sizes = [(rows * TOKEN_SIDE, columns * TOKEN_SIDE) for rows, columns in self.sizes]
        if (height, width) not in sizes:
            raise ZipARError(
                f"Emu3.5 makes no images of {height}x{width} pixels (height x width): use one of "
                f"{', '.join(f'{high}x{wide}' for high, wide in sizes)}"
            )
        return self.grid_of_tokens(height // TOKEN_SIDE, width // TOKEN_SIDE)

    def grid_of_tokens(self, rows: int, columns: int) -> TokenGrid:
        """A grid of any size. Behind its last row is the end of one too; see ``written``."""
        return TokenGrid(rows, columns, row_end=self.codebook_size)

    def header(self, grid: TokenGrid) -> list[int]:
        """The token ids between the prompt and the first row."""
        ids, config = {word: token for token, word in DIGITS.items()}, self.model.config
        return [config.boi_token_id, *(ids[word] for word in f"{grid.rows}*{grid.columns}"), config.img_token_id]

    def grid_of(self, input_ids: Tensor) -> TokenGrid:
        """The grid that prompts ask for, int64 (rows, length) that end with a ``header``, of any size.

        Raises:
            ZipARError: a prompt has no header, or another one than the others.
        """
        size = size_named(input_ids, DIGITS, self.model.config.boi_token_id, self.model.config.img_token_id)
        if size is None:
            raise ZipARError(
                "the prompts should all end with one size of an image: <|image start|>, rows*columns in digits, and "
                "<|image token|>"
            )
        return self.grid_of_tokens(*size)

    def conditional(self, prompt: str, grid: TokenGrid) -> list[int]:
        return [*self.read(prompt, REQUEST.format(prompt)), *self.header(grid)]

    def negative(self, prompt: str, grid: TokenGrid) -> list[int]:
        return [*self.read(prompt, UNCONDITIONAL.format(prompt)), *self.header(grid)]

    def unconditional(self, grid: TokenGrid) -> list[int]:
        return self.negative("", grid)

    def vocabulary_ids(self, tokens: Tensor) -> Tensor:
        return self.ids[tokens]

    def written(self, sequences: Tensor) -> Tensor:
        """Decoded tokens, int64 (images, slots), as ids of what the model writes: behind the last row, end-of-image.

        No token of the image depends on that one.
        """
        ids = self.vocabulary_ids(sequences)
        ids[:, -1] = self.model.config.eoi_token_id
        return ids

    def pixels(self, tokens: Tensor) -> Tensor:
        images = [self.decoded(image) for image in tokens.split(1)]  # one alone takes gigabytes
        return to_bytes((torch.cat(images) + 1) * 127.5).permute(0, 2, 3, 1)


def names_images(config: Any) -> bool:
    """Whether the config of a Qwen3 names what is around an image."""
    return all(isinstance(getattr(config, name, None), int) for name in NAMED_IDS)
