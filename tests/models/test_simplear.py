"""What is SimpleAR's own; the rest is in test_extended.py."""

import pytest
import torch

from zipar import ZipARError
from zipar.models import auto
from zipar.models.simplear import NEGATIVE_PROMPT, POSITIVE_PROMPT


@pytest.fixture(scope="module")
def model(simplear_directory):
    return auto.load(simplear_directory, torch.float32, "cpu")


def test_squares_of_four_sizes_are_possible(model):
    assert [model.grid(side, side).tokens for side in (32, 64, 96, 128)] == [4, 16, 36, 64]
    for size in (64, 96), (16, 16), (160, 160), (48, 48):
        with pytest.raises(ZipARError, match=rf"no images of {size[0]}x{size[1]} .* squares of 32, 64, 96 or 128"):
            model.grid(*size)


@torch.inference_mode()
def test_pixels_are_the_first_frame_of_a_video_of_the_tokens(model, cosmos_tokenizer):
    codes = torch.randint(60, (2, 4, 4))
    video = cosmos_tokenizer.decode(codes[:, None].expand(-1, 2, -1, -1))
    assert video.shape == (2, 3, 9, 64, 64)
    expected = ((video[:, :, 0].clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1)
    pixels = model.pixels(codes)
    assert pixels.dtype == torch.uint8
    assert (pixels - expected).abs().max() <= 0.51


def test_what_the_authors_put_before_prompts_is_put_there_once(model):
    grid = model.grid(64, 64)
    plain, whole = (model.prefix([text], None, False, grid) for text in ("a fox", POSITIVE_PROMPT + "a fox"))
    assert plain.embeddings.equal(whole.embeddings)
    own, given = (model.prefix(["a fox"], negative, True, grid) for negative in (None, [NEGATIVE_PROMPT]))
    assert own.embeddings.equal(given.embeddings)
