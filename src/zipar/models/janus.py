"""Janus and Janus-Pro (Chen et al., "Janus-Pro: Unified Multimodal Understanding and Generation", arXiv 2501.17811).

A Llama that reads and writes text, and writes images as 24 x 24 codebook indices in raster order, with embeddings
and an output head of their own. The modules are those of transformers' ``JanusForConditionalGeneration``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, JanusForConditionalGeneration, JanusProcessor

from zipar.checkpoints.pretrained import load_model, load_processor
from zipar.decoding.decodable import Prefix
from zipar.decoding.sampling import Sampling
from zipar.errors import ZipARError
from zipar.grid import TokenGrid
from zipar.models.backbone import TransformersModel
from zipar.models.base import configured, to_bytes, tokenized


class Janus(TransformersModel):
    """Janus or Janus-Pro: prompts are sentences."""

    family = "janus"
    network = JanusForConditionalGeneration
    model: Any

    def __init__(self, model: Any, processor: Any = None) -> None:
        """``model`` is a ``JanusForConditionalGeneration``; only prompts need its ``JanusProcessor``."""
        super().__init__(model, model.model.language_model)
        self.processor = processor
        self.positions = self.decoder.config.max_position_embeddings
        settings = {"guidance_scale": 5.0}
        for name in ("guidance_scale", "temperature", "top_k", "top_p", "min_p"):
            if (value := getattr(model.generation_config, name, None)) is not None:
                settings[name] = value
        self.defaults = configured(Sampling(**settings), model.generation_config)  # type: ignore[arg-type]
        self.side = model.config.vq_config.num_patches
        if (tokens := model.config.vision_config.num_image_tokens) != self.side**2:
            raise ZipARError(f"a Janus of {tokens} tokens an image should have a square of {self.side} x {self.side}")
        pixels = self.side * 2 ** (len(model.config.vq_config.channel_multiplier) - 1)
        self.image_size = (pixels, pixels)

    @classmethod
    def load(cls, directory: Path, dtype: torch.dtype, device: torch.device, sharded: bool = False) -> "Janus":
        processor = load_processor(JanusProcessor, directory)
        if processor.chat_template is None:
            raise ZipARError(f"{directory} holds no chat template: put the chat_template.jinja of the checkpoint there")
        model = load_model(cls.network, directory, dtype, sharded=sharded)
        return cls(model.to(device), processor).eval().requires_grad_(False)

    def grid(self, height: int, width: int) -> TokenGrid:
        if (height, width) != self.image_size:
            raise ZipARError(
                f"this Janus makes no images of {height}x{width} pixels (height x width): "
                f"it was trained on {self.image_size[0]}x{self.image_size[1]} alone"
            )
        return TokenGrid(self.side, self.side)

    def prefix(
        self, prompts: Sequence[str], negative_prompts: Sequence[str] | None, guided: bool, grid: TokenGrid
    ) -> Prefix:
        if negative_prompts is not None and not guided:
            raise ZipARError("a negative prompt does nothing at guidance scale 1: raise the scale or leave it out")
        if self.processor is None:
            raise ZipARError("this Janus has no processor to read prompts with: make it as Janus(model, processor)")
        inputs = tokenized(self._read, [*prompts, *(negative_prompts or ())])
        ids = inputs["input_ids"].to(self.device)
        valid = inputs["attention_mask"].to(ids.device, torch.bool)
        if guided and negative_prompts is None:
            return self.fitting(self.guided_prompt(ids, valid, self.model.generation_config), grid)
        return self.fitting(self.prompt(ids, valid), grid)

    def _read(self, prompts: list[str]) -> Any:
        messages = [[{"role": "user", "content": [{"type": "text", "text": prompt}]}] for prompt in prompts]
        texts = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        return self.processor(text=texts, generation_mode="image", padding=True, return_tensors="pt")

    def prompt(self, ids: Tensor, valid: Tensor) -> Prefix:
        """The prefix of prompts that are token ids already, int64 and bool (rows, length), padded on the left."""
        embeddings = self.decoder.get_input_embeddings()(ids)
        return Prefix(embeddings, valid.to(embeddings.device))

    def guided_prompt(self, ids: Tensor, valid: Tensor, config: GenerationConfig) -> Prefix:
        """Prompts, then the unconditional branch as transformers has it.

        That branch has padding in place of all tokens but BOS and begin-of-image, and attends to it.

        Raises:
            ZipARError: ``config`` lacks one of these tokens.
        """
        special = {
            "bos_token_id": config.bos_token_id,
            "pad_token_id": config.pad_token_id,
            'generation_kwargs["boi_token_id"]': (getattr(config, "generation_kwargs", None) or {}).get("boi_token_id"),
        }
        for name, token in special.items():
            if token is None:
                raise ZipARError(
                    f"the generation config lacks {name}, which the unconditional branch is made of: set it"
                )
        bos, pad, boi = special.values()
        unconditional = ids.masked_fill((ids != bos) & (ids != boi), pad)
        return self.prompt(torch.cat([ids, unconditional]), valid.repeat(2, 1))

    def stepped(self) -> list[nn.Module]:
        return [self.decoder, self.model.model.generation_aligner, self.model.model.generation_head]

    def embed(self, tokens: Tensor) -> Tensor:
        return self.running(self.model).prepare_embeddings_for_image_generation(tokens)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.running(self.model.model.generation_head)(hidden).float()

    def pixels(self, tokens: Tensor) -> Tensor:
        pixels = self.model.decode_image_tokens(tokens.flatten(1)).float()
        normalised = None if self.processor is None else self.processor.image_processor
        mean, std = (0.5, 0.5) if normalised is None else (normalised.image_mean, normalised.image_std)
        shift, scale = (torch.tensor(values, device=pixels.device) for values in (mean, std))
        return to_bytes((pixels * scale + shift) * 255)
