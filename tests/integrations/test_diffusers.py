"""A whole GLM-Image of diffusers, tiny: accelerated, its pictures are its own."""

import numpy as np
import pytest
import torch

import zipar
from zipar import Raster, ZipAR
from zipar.models import auto

diffusers = pytest.importorskip("diffusers")

SIZE = {"height": 64, "width": 96}
"""2 x 3 tokens, after 13 x 19 of the small grid."""


@pytest.fixture(scope="module")
def pipe(glm_pipeline_directory):
    loaded = diffusers.GlmImagePipeline.from_pretrained(glm_pipeline_directory)
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


def test_the_stages_directory_is_planned(glm_pipeline_directory):
    outline = auto.outline(glm_pipeline_directory)
    grids = outline.grids(outline.grid(1024, 1024))
    assert [(grid.rows, grid.columns) for grid in grids] == [(16, 16), (32, 32)]
