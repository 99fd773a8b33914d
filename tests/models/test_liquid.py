"""What is Liquid's own; the rest is in test_extended.py."""

import pytest
import torch

from zipar import Raster, ZipAR, ZipARError
from zipar.models import auto


@pytest.fixture(scope="module")
def model(liquid_directory):
    return auto.load(liquid_directory, torch.float32, "cpu")


def test_one_size_is_possible(model):
    with pytest.raises(ZipARError, match=r"Liquid makes no images of 64x96 .* it was trained on 96x96 alone"):
        model.grid(64, 96)


def test_pixels_are_those_of_the_image_decoder(model):
    codes = torch.randint(64, (2, 6, 6))
    with torch.inference_mode():
        pixels = model.pixels(codes)
        expected = ((model.image_tokenizer.decode(codes).clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1)
    assert pixels.dtype == torch.uint8
    assert (pixels - expected).abs().max() <= 0.51


def test_published_shape(model):
    """The passes that the published grid takes."""
    model.image_size = (512, 512)
    grid = model.grid(512, 512)
    model.image_size = (96, 96)
    assert [strategy.passes(grid) for strategy in (Raster(), ZipAR(16), ZipAR(8), ZipAR(4))] == [1024, 544, 304, 184]
