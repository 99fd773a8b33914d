"""Images over HTTP: asked for by OpenAI's client and by what front ends send, each is the pipeline's of its seed."""

import asyncio

import numpy as np
import openai
import pytest

from zipar.serving.painter import EMPTY

PROMPT = "a red fox in the snow"
SETTINGS = [
    {},
    {"temperature": 0.5},
    {"guidance_scale": 2.5},
    {"guidance_scale": 3.5, "negative_prompt": "blurry"},
    {"strategy": "zipar:2"},
    {"strategy": "zipar:2", "top_k": 9},
    {"strategy": "raster", "temperature": 0},
    {"strategy": "jacobi:4", "guidance_scale": 2.0},
    {"strategy": "adaptive:1", "top_p": 0.8},
    {"temperature": 1.2, "min_p": 0.1},
]


def test_the_client_of_openai(server, expected, helpers):
    found = server.openai().images.generate(prompt=PROMPT, model="words", n=3, size="6x6", extra_body={"seed": 5})
    assert [image.seed for image in found.data] == [5, 6, 7]
    for image in found.data:
        assert np.array_equal(helpers.pixels(image.b64_json), expected(seed=image.seed))
    assert (found.size, found.output_format, found.background) == ("6x6", "png", "opaque")
    usage = found.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (7, 108, 115)  # an end comes to 6 words
    assert usage.input_tokens_details.text_tokens == 7
    assert found._request_id.startswith("req_")


def test_many_at_once_and_of_all_kinds(server, expected, helpers):
    """More styles than lanes, in random company."""

    async def all_of_them():
        async with server.openai(asynchronous=True) as client:
            settings = [(seed, kind) for seed in range(2) for kind in SETTINGS]
            asked = [
                client.images.generate(prompt=PROMPT, extra_body={"seed": seed, **kind}) for seed, kind in settings
            ]
            return list(zip(settings, await asyncio.gather(*asked), strict=True))

    for (seed, kind), found in asyncio.run(all_of_them()):
        (image,) = found.data
        assert np.array_equal(helpers.pixels(image.b64_json), expected(seed=seed, **kind)), kind


def test_streams_show_rows_as_they_grow(server, expected, helpers):
    options = {"seed": 3, "strategy": "raster"}
    with server.openai() as client:
        events = list(client.images.generate(prompt=PROMPT, stream=True, partial_images=3, extra_body=options))
    assert [event.type.rpartition(".")[2] for event in events] == [*["partial_image"] * 3, "completed"]
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]
    for event, came in zip(events[:3], (9, 18, 27), strict=True):  # a pixel a token
        empty = (helpers.pixels(event.b64_json) == EMPTY).all(-1).flatten()
        assert empty[came:].all()
        assert not empty[:came].any()
    last = events[-1]
    assert np.array_equal(helpers.pixels(last.b64_json), expected(seed=3, strategy="raster"))
    assert (last.usage.output_tokens, last.size, last.quality, last.seed) == (36, "6x6", "auto", 3)


def test_streams_of_several_images_in_any_strategy(server, expected, helpers):
    async def stream(strategy):
        async with server.openai(asynchronous=True) as client:
            body = {"seed": 7, "strategy": strategy}
            asked = {"prompt": PROMPT, "n": 2, "stream": True, "partial_images": 2, "extra_body": body}
            return [event async for event in await client.images.generate(**asked)]

    async def streams(strategies):
        return await asyncio.gather(*map(stream, strategies))

    strategies = ["zipar:2", "zipar:12:16:4:wave", "jacobi:8"]
    for strategy, events in zip(strategies, asyncio.run(streams(strategies)), strict=True):
        done = {event.image_index: event for event in events if event.type == "image_generation.completed"}
        assert done.keys() == {0, 1}
        for index, event in done.items():
            assert np.array_equal(helpers.pixels(event.b64_json), expected(seed=7 + index, strategy=strategy))


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("response_format", ["b64_json", "url"])
def test_formats(server, helpers, form, response_format):
    (image,) = server.images(output_format=form, response_format=response_format, output_compression=40)["data"]
    content = image.get("b64_json") or image["url"].removeprefix(f"data:image/{form};base64,")
    assert helpers.pixels(content).shape == (6, 6, 3)
    (finest,) = server.images(output_format=form, seed=image["seed"])["data"]
    smaller = len(content) < len(finest["b64_json"])
    assert smaller == (form != "png")


def test_without_a_seed_images_differ(server):
    seeds = {server.images()["data"][0]["seed"] for _ in range(5)}
    assert len(seeds) == 5


def test_models_and_their_other_names(server, expected, helpers):
    with server.openai() as client:
        assert [model.id for model in client.models.list()] == ["words", "clothes", "gpt-image-1"]
        assert client.models.retrieve("clothes").object == "model"
        found = client.images.generate(prompt="coat", model="clothes", extra_body={"seed": 1})
        assert np.array_equal(helpers.pixels(found.data[0].b64_json), expected("clothes", "coat", 1))
        found = client.images.generate(prompt=PROMPT, model="gpt-image-1", extra_body={"seed": 1})
        assert np.array_equal(helpers.pixels(found.data[0].b64_json), expected(seed=1))
        for lacking in (
            lambda: client.models.retrieve("dall-e-3"),
            lambda: client.images.generate(prompt=PROMPT, model="dall-e-3"),
        ):
            with pytest.raises(openai.NotFoundError, match="use words, clothes, gpt-image-1") as caught:
                lacking()
            assert caught.value.code == "model_not_found"


FRONT_ENDS = {
    "vLLM-Omni": {
        "prompt": PROMPT,
        "model": "words",
        "n": 1,
        "size": "6x6",
        "response_format": "b64_json",
        "user": "someone",
        "negative_prompt": "blurry",
        "num_inference_steps": 50,
        "guidance_scale": 7.5,
        "true_cfg_scale": 4.0,
        "seed": 42,
        "generator_device": "cuda",
        "lora": None,
        "layers": None,
        "vae_use_slicing": False,
        "vae_use_tiling": False,
    },
    "Open WebUI": {"model": "gpt-image-1", "prompt": PROMPT, "n": 1, "size": "6x6", "response_format": "b64_json"},
    "LibreChat": {
        "model": "gpt-image-1",
        "prompt": PROMPT,
        "n": 1,
        "size": "auto",
        "background": "auto",
        "quality": "auto",
        "output_format": "png",
    },
    "ComfyUI": {
        "model": "gpt-image-1",
        "prompt": PROMPT,
        "quality": "low",
        "background": "opaque",
        "n": 1,
        "size": "auto",
        "seed": 42,
        "moderation": "low",
    },
    "OpenAI's other fields": {
        "prompt": PROMPT,
        "style": "vivid",
        "quality": "hd",
        "user": "someone",
        "safety_identifier": "x",
        "complexity": "low",
        "partial_images": 2,
        "stream": False,
    },
}


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_what_front_ends_send(server, expected, helpers, name):
    fields = FRONT_ENDS[name]
    path = "/proxy/openai/images/generations" if name == "ComfyUI" else "/v1/images/generations"
    status, _, body = server.ask("POST", path, fields, {"content-type": "application/json"})
    assert status == 200, body
    assert body["usage"]["input_tokens_details"]["image_tokens"] == 0
    own = {key: fields[key] for key in ("guidance_scale", "negative_prompt") if key in fields}
    (image,) = body["data"]
    if "seed" in fields:
        assert image["seed"] == 42
    assert np.array_equal(helpers.pixels(image["b64_json"]), expected(seed=image["seed"], **own))


def test_a_size_that_there_is_not_names_those_there_are(server):
    """Open WebUI asks for 512x512 unless told otherwise."""
    with server.openai() as client, pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt=PROMPT, size="512x512")
    assert caught.value.body["message"] == "size '512x512' is not possible: use 6x6 or auto"
    assert (caught.value.param, caught.value.type) == ("size", "invalid_request_error")


def test_errors_in_streams_are_errors_of_the_client(server, monkeypatch):
    def fail(*_):
        raise RuntimeError("no pixels")

    monkeypatch.setattr("zipar.serving.scheduler.encode", fail)
    with server.openai() as client:
        stream = client.images.generate(prompt=PROMPT, stream=True)
        with pytest.raises(openai.APIError, match="the server failed over this image"):
            list(stream)
        with pytest.raises(openai.InternalServerError, match="the server failed over this image"):
            client.images.generate(prompt=PROMPT)


def test_prompts_that_the_tokenizer_makes_too_long_are_refused(serving):
    with serving(longest_prompt=3) as short, short.openai() as client:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="prompt of 7 tokens is too long: this server takes 3"):
                client.images.generate(prompt=PROMPT, stream=stream)
        assert client.images.generate(prompt="fox").data
