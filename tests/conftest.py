from types import SimpleNamespace

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from zipar.image_tokenizers.vq import VQConfig, VQModel
from zipar.models.llamagen import LlamaGen, LlamaGenConfig, Transformer

settings.register_profile("zipar", deadline=None, derandomize=True)
settings.load_profile("zipar")


def _words(prompts):
    """A stand-in for T5's tokenizer: one id a word, and the end of sentence (1)."""
    return {"input_ids": [[2 + sum(map(ord, word)) % 60 for word in prompt.split()] + [1] for prompt in prompts]}


@pytest.fixture(scope="session")
def tiny_models():
    """Random LlamaGens of 6 x 6 tokens with grouped heads: of a class, of text, and one that attends to the text."""
    torch.manual_seed(0)
    shape = {"layers": 2, "heads": 4, "kv_heads": 2, "dim": 32, "vocab_size": 50, "grid_side": 6, "multiple_of": 16}
    by_class = Transformer(LlamaGenConfig(classes=10, **shape))
    by_text = Transformer(LlamaGenConfig(caption_dim=16, prefix_length=8, **shape))
    attending = Transformer(LlamaGenConfig(caption_dim=16, prefix_length=8, attend_to_prefix=True, **shape))
    for decoder in by_class, by_text, attending:
        for name, weight in decoder.named_parameters():
            if not name.endswith("norm.weight"):
                torch.nn.init.normal_(weight, std=0.3)
    text_encoder = T5EncoderModel(T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=2))
    image_tokenizer = VQModel(VQConfig(50, 4, 16, (1,), 1, 16, 4))
    models = SimpleNamespace(
        by_class=LlamaGen(by_class, image_tokenizer),
        by_text=LlamaGen(by_text, image_tokenizer, text_encoder, _words),
        attending=LlamaGen(attending, image_tokenizer, text_encoder, _words),
    )
    for model in vars(models).values():
        model.eval().requires_grad_(False)
    return models


@pytest.fixture(scope="session")
def janus_directory(tmp_path_factory):
    """A random Janus of 6 x 6 tokens with grouped heads and its processor, as transformers saves them."""
    directory = tmp_path_factory.mktemp("janus")
    special = ["<pad>", "<s>", "</s>", "<image>", "<begin_of_image>", "<end_of_image>", "<unk>"]
    words = ["User", "Assistant", ":", "a", "red", "fox", "in", "the", "snow", "two", "small", "birds", "blurry"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(special + words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = ("pad", "bos", "eos", "image", "boi", "eoi", "unk")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{f"{name}_token": word for name, word in zip(names, special, strict=True)},
    )
    template = (
        "{% for message in messages %}User: {{ message.content[0].text }} {% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    image_processor = JanusImageProcessorPil(
        size={"height": 12, "width": 12}, image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.6, 0.7]
    )
    JanusProcessor(image_processor, tokenizer, template, num_image_tokens=36).save_pretrained(directory)

    config = JanusConfig(
        text_config=LlamaConfig(
            vocab_size=32,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        vision_config=JanusVisionConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=12,
            patch_size=2,
            mlp_ratio=1.0,
            projection_dim=32,
            depth=1,
            num_image_tokens=36,
        ),
        vq_config=JanusVQVAEConfig(
            embed_dim=4,
            num_embeddings=50,
            latent_channels=32,
            base_channels=32,
            channel_multiplier=[1, 1],
            num_res_blocks=1,
            projection_dim=32,
            image_token_embed_dim=32,
        ),
        image_token_id=3,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = JanusForConditionalGeneration(config)
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.3)
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=0, guidance_scale=5.0, temperature=1.0
    )
    model.generation_config.generation_kwargs = {"boi_token_id": 4}  # where the published checkpoints have it
    model.save_pretrained(directory)
    return directory
