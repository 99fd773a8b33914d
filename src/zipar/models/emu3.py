"""Emu3-Gen (Wang et al., "Emu3: Next-Token Prediction is All You Need", arXiv 2409.18869).

One Llama over text and images: a prompt, the size of the image in words, then its rows with an end-of-line token
after each. The modules are transformers' ``Emu3ForConditionalGeneration``.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Emu3ForConditionalGeneration, Emu3Processor

from zipar.checkpoints.pretrained import load_model, load_processor
from zipar.decoding.decodable import Prefix
from zipar.decoding.sampling import Sampling
from zipar.errors import ZipARError
from zipar.grid import TokenGrid
from zipar.models.backbone import TransformersModel
from zipar.models.base import configured, to_bytes, tokenized

POSITIVE_PROMPT = " masterpiece, film grained, best quality."
"""The authors end every prompt so."""
NEGATIVE_PROMPT = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, "
    "low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."
)
"""What the authors steer away from."""

BEFORE_IMAGE = ("<|extra_203|>", "<|image start|>", "<|image token|>")
"""Begin of sequence, begin of image, and what stands between the size and the first row."""
ROW_END = "<|extra_200|>"
AFTER_IMAGE = ("<|extra_201|>", "<|image end|>", "<|extra_204|>")
"""End of frame, end of image, end of sequence."""

SIDE = 720
"""Pixels: the square root of the area that images were trained at."""


class Emu3(TransformersModel):
    """Text-conditional Emu3. Tokens are codebook indices, and after them row end, frame end, image end, sequence end.

    Logits are those of visual tokens alone. Guidance does not mind, for it takes each token by itself, but for a
    constant; and temperature and filters come after the constraint that rules out all other tokens.
    """

    family = "emu3"
    network = Emu3ForConditionalGeneration

    def __init__(self, model: Any, processor: Any = None) -> None:
        """``model`` is an ``Emu3ForConditionalGeneration``; only prompts need its ``Emu3Processor``.

        Raises:
            ZipARError: the vocabulary does not fit the codebook, or the processor does not fit the vocabulary.
        """
        super().__init__(model, model.model.text_model)
        self.processor = processor
        self.defaults = configured(Sampling(guidance_scale=3.0, top_k=2048), model.generation_config)
        self.positions = self.decoder.config.max_position_embeddings
        self.codebook_size: int = model.config.vq_config.codebook_size
        self.downsampling: int = model.model.vqmodel.spatial_scale_factor
        self.image_size = (SIDE // self.downsampling * self.downsampling,) * 2
        visual, known = _vocabulary(model.config, model.model.vocabulary_mapping.img2bpe)
        if processor is not None:
            held = model.config.vocabulary_map
            for name in BEFORE_IMAGE:
                if processor.tokenizer.convert_tokens_to_ids(name) != held[name]:
                    raise ZipARError(f"the tokenizer does not fit this Emu3: it does not know {name} as {held[name]}")
        self.ids: Tensor
        self.register_buffer("ids", torch.tensor(visual + known, device=self.device), persistent=False)
        contiguous = visual == list(range(visual[0], visual[0] + len(visual)))
        self.head_rows = slice(visual[0], visual[-1] + 1) if contiguous else self.ids[: self.codebook_size]

    @classmethod
    def load(cls, directory: Path, dtype: torch.dtype, device: torch.device, sharded: bool = False) -> "Emu3":
        processor = load_processor(Emu3Processor, directory)
        model = load_model(cls.network, directory, dtype, sharded=sharded)
        model.model.vqmodel.float()  # as the authors run it, whatever the decoder's
        return cls(model.to(device), processor).eval().requires_grad_(False)

    def grid(self, height: int, width: int) -> TokenGrid:
        step, limit = self.downsampling, self.decoder.config.max_position_embeddings
        if min(height, width) < step or height % step or width % step:
            raise ZipARError(
                f"Emu3 makes no images of {height}x{width} pixels (height x width): both must be multiples of {step}, "
                "such as 720x720 or 544x960"
            )
        row_end, *end = range(self.codebook_size, len(self.ids))
        grid = TokenGrid(height // step, width // step, row_end=row_end, frame_end=tuple(end))
        if grid.slots > limit:
            raise ZipARError(
                f"an image of {height}x{width} pixels (height x width) takes {grid.slots} tokens, but this Emu3 reads "
                f"{limit} at most: make it smaller (it was trained on about {SIDE}x{SIDE} pixels)"
            )
        return grid

    def prefix(
        self, prompts: Sequence[str], negative_prompts: Sequence[str] | None, guided: bool, grid: TokenGrid
    ) -> Prefix:
        if negative_prompts is not None and not guided:
            raise ZipARError("a negative prompt does nothing at guidance scale 1: raise the scale or leave it out")
        if self.processor is None:
            raise ZipARError("this Emu3 has no processor to read prompts with: make it as Emu3(model, processor)")
        texts = [prompt.removesuffix(POSITIVE_PROMPT) + POSITIVE_PROMPT for prompt in prompts]
        if guided:
            texts += negative_prompts or [NEGATIVE_PROMPT] * len(prompts)
        reading = partial(
            self.processor,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            return_for_image_generation=True,
            ratio=f"{grid.columns}:{grid.rows}",
            image_area=grid.tokens * self.processor.downsample_ratio**2,
        )
        inputs = tokenized(lambda each: reading(text=each), texts)
        return self.fitting(self.prompt(inputs["input_ids"], inputs["attention_mask"]), grid)

    def prompt(self, input_ids: Tensor, attention_mask: Tensor) -> Prefix:
        """The prefix of prompts that are token ids already, int64 (rows, length) each, padded on the left."""
        embeddings = self.decoder.get_input_embeddings()(input_ids.to(self.device))
        return Prefix(embeddings, attention_mask.to(self.device).bool())

    def grid_of(self, input_ids: Tensor) -> TokenGrid:
        """The grid that prompts ask for, int64 (rows, length) that end with the size of the image in words.

        Raises:
            ZipARError: a prompt names no size, or another one than the others.
        """
        held = self.model.config.vocabulary_map
        names = {token: name for name, token in held.items()}
        size = size_named(input_ids, names, held[BEFORE_IMAGE[1]], held[BEFORE_IMAGE[2]])
        if size is None:
            raise ZipARError(
                "the prompts should all end with one size of an image: make them with return_for_image_generation=True"
            )
        return self.grid(size[0] * self.downsampling, size[1] * self.downsampling)

    def vocabulary_ids(self, tokens: Tensor) -> Tensor:
        """Tokens as sequences hold them -> ids of the vocabulary, both int64 of one shape."""
        return self.ids[tokens]

    def embed(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.decoder.get_input_embeddings()(self.vocabulary_ids(tokens))
        return embedded

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    def exact(self) -> list[nn.Module]:
        return [self.model.model.vqmodel]

    def pixels(self, tokens: Tensor) -> Tensor:
        vision = self.model.model.vqmodel
        # one at a time, for the image tokenizer decodes each as a video of several frames
        images = torch.cat([vision.decode(image[None]) for image in tokens.to(vision.device)])
        normalised = None if self.processor is None else self.processor.image_processor
        mean, std = (0.5, 0.5) if normalised is None else (normalised.image_mean, normalised.image_std)
        shift, scale = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (mean, std))
        pixels = (images.float() * scale + shift) * 255
        return to_bytes(pixels).permute(0, 2, 3, 1)


def size_named(input_ids: Tensor, names: Mapping[int, str], begin: int, end: int) -> tuple[int, int] | None:
    """The rows and columns of tokens that all prompts, int64 (rows, length), end with; None where they differ.

    Args:
        names: what digits and the ``*`` between them are called, by their ids.
        begin: the id before a size.
        end: the id behind it.
    """
    sizes: set[str] = set()
    for row in input_ids.tolist():
        start = len(row) - row[::-1].index(begin) if begin in row else 0
        words = "".join(names.get(token, "?") for token in row[start:-1])
        sizes.add(words if start and row[-1] == end and re.fullmatch(r"[1-9]\d*\*[1-9]\d*", words) else "")
    if len(sizes) != 1 or "" in sizes:
        return None
    rows, columns = map(int, sizes.pop().split("*"))
    return rows, columns


def _vocabulary(config: Any, visual: dict[int, int]) -> tuple[list[int], list[int]]:
    """The ids of the visual tokens, by codebook index, and those of the known tokens of an image.

    Raises:
        ZipARError: they are not all there.
    """
    held, size = config.vocabulary_map, config.vq_config.codebook_size
    if visual.keys() != set(range(size)):
        raise ZipARError(f"this Emu3 names {len(visual)} visual tokens, but its codebook holds {size}")
    known = (ROW_END, *AFTER_IMAGE)
    if lacking := [name for name in (*BEFORE_IMAGE, *known) if name not in held]:
        raise ZipARError(f"the vocabulary_map of this Emu3 lacks {', '.join(lacking)}")
    ids = [visual[code] for code in range(size)], [held[name] for name in known]
    if max(map(max, ids)) >= config.text_config.vocab_size:
        raise ZipARError(
            f"the vocabulary_map of this Emu3 goes up to {max(map(max, ids))}, but it has "
            f"{config.text_config.vocab_size} embeddings"
        )
    return ids
