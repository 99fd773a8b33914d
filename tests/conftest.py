from types import SimpleNamespace

import pytest
import torch
from hypothesis import settings
from transformers import T5Config, T5EncoderModel

from zipar.image_tokenizers.vq import VQConfig, VQModel
from zipar.models.llamagen import LlamaGen, LlamaGenConfig, Transformer

settings.register_profile("zipar", deadline=None, derandomize=True)
settings.load_profile("zipar")


def _words(prompts):
    """A stand-in for T5's tokenizer: one id a word, and the end of sentence (1)."""
    return {"input_ids": [[2 + sum(map(ord, word)) % 60 for word in prompt.split()] + [1] for prompt in prompts]}


@pytest.fixture(scope="session")
def tiny_models():
    """Random LlamaGens of 6 x 6 tokens with grouped heads: of a class, and of text."""
    torch.manual_seed(0)
    shape = {"layers": 2, "heads": 4, "kv_heads": 2, "dim": 32, "vocab_size": 50, "grid_side": 6, "multiple_of": 16}
    by_class = Transformer(LlamaGenConfig(classes=10, **shape))
    by_text = Transformer(LlamaGenConfig(caption_dim=16, prefix_length=8, **shape))
    for decoder in by_class, by_text:
        for name, weight in decoder.named_parameters():
            if not name.endswith("norm.weight"):
                torch.nn.init.normal_(weight, std=0.3)
    text_encoder = T5EncoderModel(T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=2))
    image_tokenizer = VQModel(VQConfig(50, 4, 16, (1,), 1, 16, 4))
    models = SimpleNamespace(
        by_class=LlamaGen(by_class, image_tokenizer),
        by_text=LlamaGen(by_text, image_tokenizer, text_encoder, _words),
    )
    for model in vars(models).values():
        model.eval().requires_grad_(False)
    return models
