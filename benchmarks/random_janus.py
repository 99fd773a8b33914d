"""A Janus with random weights, made alike by the versions of transformers that peers need."""

import time
from typing import Any, NamedTuple

import torch
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
)

PROMPT = torch.tensor([[1, *range(10, 40), 4]])


def random_janus(layers: int, dim: int, side: int) -> Any:
    """A decoder of ``layers`` x ``dim`` over ``side`` x ``side`` tokens; what is not timed is small."""
    torch.manual_seed(0)
    config = JanusConfig(
        text_config=LlamaConfig(
            vocab_size=64,
            hidden_size=dim,
            intermediate_size=dim * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=max(dim // 64, 1),
            num_key_value_heads=max(dim // 64, 1),
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        vision_config=JanusVisionConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=side * 16,
            patch_size=16,
            projection_dim=dim,
            num_image_tokens=side**2,
        ),
        vq_config=JanusVQVAEConfig(base_channels=32, num_res_blocks=1, projection_dim=dim, image_token_embed_dim=dim),
        image_token_id=3,
    )
    model = JanusForConditionalGeneration(config).eval().requires_grad_(False)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0, guidance_scale=5.0)
    model.generation_config.generation_kwargs = {"boi_token_id": 4}
    return model


class Painted(NamedTuple):
    """An image and what it took."""

    tokens: torch.Tensor
    """(1, side * side)"""
    seconds: float
    forward_passes: int
    """Of the decoder."""


@torch.inference_mode()
def paint(model: Any) -> Painted:
    """One image, greedy, with guidance, through ``model.generate``."""
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    handle = model.model.language_model.register_forward_hook(count)
    started = time.perf_counter()
    tokens = model.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), generation_mode="image", do_sample=False)
    seconds = time.perf_counter() - started
    handle.remove()
    return Painted(tokens, seconds, passes)
