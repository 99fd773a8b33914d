"""A whole GLM-Image of diffusers, tiny: accelerated, its pictures are its own."""

import numpy as np
import pytest
import torch
from transformers import ByT5Tokenizer, GlmImageForConditionalGeneration, GlmImageProcessor, T5Config, T5EncoderModel

import zipar
from zipar import Raster, ZipAR
from zipar.models import auto

diffusers = pytest.importorskip("diffusers")

SIZE = {"height": 64, "width": 96}
"""2 x 3 tokens, after 13 x 19 of the small grid."""


@pytest.fixture(scope="module")
def directory(glm_directory, tmp_path_factory):
    """In the layout that it is published in."""
    torch.manual_seed(0)
    model = GlmImageForConditionalGeneration.from_pretrained(glm_directory / "vision_language_encoder")
    model.generation_config.update(do_sample=True, top_k=1)  # what is drawn does not depend on whose noise it is
    pipe = diffusers.GlmImagePipeline(
        tokenizer=ByT5Tokenizer(),
        processor=GlmImageProcessor.from_pretrained(glm_directory / "processor"),
        text_encoder=T5EncoderModel(T5Config(vocab_size=384, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)),
        vision_language_encoder=model,
        vae=diffusers.AutoencoderKL(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
            mid_block_add_attention=False,
        ),
        transformer=diffusers.GlmImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=16,
            time_embed_dim=8,
            condition_dim=4,
            prior_vq_quantizer_codebook_size=64,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )
    out = tmp_path_factory.mktemp("pipeline")
    pipe.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def pipe(directory):
    loaded = diffusers.GlmImagePipeline.from_pretrained(directory)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def painted(pipe, prompt='a "red" fox'):
    generator = torch.Generator().manual_seed(3)
    return pipe(prompt, **SIZE, num_inference_steps=2, generator=generator, output_type="np").images


def test_pictures_are_those_of_the_pipeline(pipe, passes):
    own = painted(pipe)
    assert own.shape == (1, 64, 96, 3)
    with zipar.accelerate(pipe, Raster()) as given:
        assert given is pipe
        assert np.array_equal(painted(pipe), own)
    assert passes == [13 * 19, 2 * 3]
    assert "generate" not in vars(pipe.vision_language_encoder)
    assert np.array_equal(painted(pipe), own)
    assert len(passes) == 2


def test_several_prompts_in_fewer_passes(pipe, passes):
    with zipar.accelerate(pipe, ZipAR(2)):
        both = painted(pipe, ["a red fox", "bird"])
    assert both.shape == (2, 64, 96, 3)
    assert passes == [2 * 19 + 11 * 2, 2 * 3]


def test_the_stages_directory_is_planned(directory):
    grids = auto.outline(directory).grids(1024, 1024)
    assert [(grid.rows, grid.columns) for grid in grids] == [(16, 16), (32, 32)]
