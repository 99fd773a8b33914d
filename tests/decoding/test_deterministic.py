"""One seed, one image, in bfloat16 too: whatever the batch, and whoever comes and goes beside it."""

import copy

import pytest
import torch

import zipar
from zipar import CoupledJacobi, ZipAR
from zipar.decoding.decodable import Prefix
from zipar.decoding.engine import PREFIX, ROWS, decode
from zipar.decoding.lane import Lane
from zipar.models import auto

TEXTS = ["a red fox in the snow", "fox", "two small birds", "a bird in the snow"]
IMAGES = 10
SETTINGS = {"guidance_scale": 2.5, "temperature": 0.8, "top_k": 20}


@pytest.fixture(scope="module", params=["llamagen", "janus", "emu3"])
def pipe(request, tiny_models, checkpoints):
    if request.param == "llamagen":
        model = copy.deepcopy(tiny_models.by_text)
        model.decoder.to(torch.bfloat16)
    else:
        directory = checkpoints(request.param)
        model = auto.family(directory).load(directory, torch.bfloat16, torch.device("cpu"))
    return zipar.Pipeline(model)


def size_of(model):
    return {"emu3": (8, 12)}.get(model.family, model.image_size)


def known(image):
    """Tokens and how likely they were, bit by bit: without a deterministic lane, that of most images is another."""
    return torch.cat([image.tokens, image.log_probabilities.view(torch.int32)], -1)


def paint(pipe, first, count, strategy):
    prompts = [TEXTS[i % len(TEXTS)] for i in range(first, first + count)]
    model = pipe.model
    grid = model.grid(*size_of(model))
    with torch.inference_mode():
        alone = [model.prefix([prompt], None, True, grid) for prompt in prompts]
    sampling = zipar.Sampling(**SETTINGS)
    seeds = range(first, first + count)
    return known(decode(model, Prefix.joined(alone), grid, strategy, sampling, seeds, deterministic=True))


@pytest.mark.parametrize(
    "strategy",
    [ZipAR(2), ZipAR(2, 3), CoupledJacobi(6)],
    ids=lambda strategy: str(strategy),
)
def test_every_image_is_the_same_in_any_batch_and_with_random_arrivals(pipe, strategy):
    if pipe.model.family != "llamagen" and strategy != ZipAR(2, 3):
        pytest.skip("one strategy a family")
    assert pipe.model.dtype == torch.bfloat16
    expected = torch.cat([paint(pipe, first, min(8, IMAGES - first), strategy) for first in range(0, IMAGES, 8)])
    assert len(expected.unique(dim=0)) == IMAGES
    assert torch.cat([paint(pipe, i, 1, strategy) for i in range(IMAGES)]).equal(expected)
    assert torch.cat([paint(pipe, i, min(3, IMAGES - i), strategy) for i in range(0, IMAGES, 3)]).equal(expected)
    assert arriving(pipe.model, strategy).equal(expected)


def arriving(model, strategy):
    """The same images through lanes that they come into at random, and in disorder."""
    grid, sampling = model.grid(*size_of(model)), zipar.Sampling(**SETTINGS)
    random = torch.Generator().manual_seed(0)
    lanes, found, names = {}, {}, {}
    waiting = torch.randperm(IMAGES, generator=random).tolist()
    while waiting or any(lane.busy for lane in lanes.values()):
        for _ in range(int(torch.randint(3, (), generator=random))):
            if not waiting:
                break
            with torch.inference_mode():
                prefix = model.prefix([TEXTS[waiting[0] % len(TEXTS)]], None, True, grid)
            length = -(-prefix.valid.shape[1] // PREFIX) * PREFIX
            if length not in lanes:
                options = {"device": torch.device("cpu"), "dtype": torch.bfloat16, "deterministic": True}
                lanes[length] = Lane(model, grid, strategy, sampling, ROWS, length, **options)
            if lanes[length].busy < ROWS:
                image = waiting.pop(0)
                (ticket,) = lanes[length].admit(prefix, sampling, [image])
                names[length, ticket] = image
        for length, lane in lanes.items():
            finished = lane.retire()
            if lane.busy:
                lane.step()
            finished += lane.retire()
            found |= {names[length, image.ticket]: known(image) for image in finished}
    return torch.stack([found[image] for image in range(IMAGES)])


def test_a_pipeline_call_gives_the_same_pixels_in_any_batch(pipe):
    settings = {**SETTINGS, "strategy": ZipAR(2), "deterministic": True}
    height, width = size_of(pipe.model)
    together = pipe(TEXTS, seed=5, height=height, width=width, **settings)
    for i, text in enumerate(TEXTS):
        alone = pipe(text, seed=5 + i, height=height, width=width, **settings)
        assert alone.tokens[0].tolist() == together.tokens[i].tolist()
        assert alone.images[0].tobytes() == together.images[i].tobytes()
