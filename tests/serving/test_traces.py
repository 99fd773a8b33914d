"""What answers tell of the decoding, the files of their settings, and /v1/models of what may be asked for."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from zipar.decoding import names
from zipar.serving.events import Made, Partial

PROMPT = "a red fox in the snow"


def text(image):
    """What the file of an image says."""
    return getattr(Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))), "text", {})


def events(server, **fields):
    """Of a stream, by type."""
    _, _, body = server.ask("POST", "/v1/images/generations", {"prompt": PROMPT, "stream": True, **fields})
    told = [json.loads(line.removeprefix(b"data: ")) for line in body.splitlines() if line.startswith(b"data: ")]
    return [[each for each in told if each["type"].endswith(kind)] for kind in ("partial_image", "completed")]


@pytest.mark.parametrize("strategy", ["raster", "zipar:2", "jacobi:8", "adaptive:1"])
def test_traces_are_the_pipelines(server, pipes, strategy):
    made = pipes["words"](PROMPT, seed=[4, 5], num_images_per_prompt=2, strategy=strategy)
    answer = server.images(seed=4, n=2, strategy=strategy, trace=True)
    _, streamed = events(server, seed=4, n=2, strategy=strategy, trace=True)
    for told in (answer["data"], sorted(streamed, key=lambda event: event["image_index"])):
        for i, image in enumerate(told):
            assert image["tokens"] == made.tokens[i].tolist()
            assert image["born"] == made.born[i].tolist()
            assert image["passes"] == made.born[i].max() + 1
            assert image["seconds"] > 0


def test_without_a_trace_there_is_none(server):
    for image in (*server.images()["data"], *events(server)[1]):
        assert image["passes"] > 1
        assert not {"tokens", "born"} & image.keys()
    assert not events(server)[0]


def test_a_trace_shows_images_as_they_grow(server, helpers):
    partials, (last,) = events(server, seed=3, strategy="raster", trace=True)
    assert [each["partial_image_index"] for each in partials] == list(range(len(partials)))
    assert partials
    final = np.array(last["born"])
    seen = -1
    for each in partials:
        born = np.array(each["born"])
        come = born >= 0
        assert come.sum() > seen
        assert (born[come] == final[come]).all()  # raster order decodes each token once
        assert (final[~come] > final[come].max()).all()
        assert helpers.pixels(each["b64_json"]).shape == (6, 6, 3)
        seen = come.sum()


def test_traces_wait_for_their_readers(serving, request_of, helpers):
    """One partial image of each image is on its way at most, and nobody waits for it to be read."""
    with serving() as server:
        told = []
        job = server.scheduler.submit(request_of(stream=True, trace=True, n=3, strategy="raster"), told.append)
        helpers.until(lambda: sum(isinstance(event, Made) for event in told) == 3)
        assert [event.image for event in told if isinstance(event, Partial)] == [0, 1, 2]

        def tell(event):
            told.append(event)
            if isinstance(event, Partial):
                job.read(event)

        told.clear()
        job = server.scheduler.submit(request_of(stream=True, trace=True, strategy="raster"), tell)
        helpers.until(lambda: any(isinstance(event, Made) for event in told))
        assert len(told) > 3


def test_a_png_makes_itself_again(server):
    asked = {"guidance_scale": 2.5, "negative_prompt": "blurry \u2603", "strategy": "zipar:2", "top_p": 0.9}
    images = server.images(**asked, seed=8, n=2)["data"]
    for i, image in enumerate(images):
        settings = json.loads(text(image)["zipar"])
        assert settings.items() >= {**asked, "seed": 8 + i, "model": "words", "size": "6x6", "prompt": PROMPT}.items()
        (again,) = server.images(**settings)["data"]
        assert again["b64_json"] == image["b64_json"]
    assert not text(server.images(output_format="webp")["data"][0])


def test_models_tell_what_may_be_asked_of_them(server, pipes):
    listed = {model["id"]: model for model in server.ask("GET", "/v1/models")[2]["data"]}
    assert listed["gpt-image-1"]["root"] == "words"
    assert listed["clothes"] == server.ask("GET", "/v1/models/clothes")[2]
    for name, pipe in pipes.items():
        found = listed[name]
        assert found["root"] == name
        assert found["sizes"] == ["6x6"]
        assert found["negative_prompt"] is True
        assert found["strategies"][0]["name"] == names.name(pipe.strategy)
        assert found["defaults"]["temperature"] == pipe.model.defaults.temperature
        for strategy in found["strategies"]:
            made = pipe(found["examples"][0], strategy=strategy["name"], seed=0)
            assert strategy["passes"] in (None, made.stats.forward_passes)
        assert {each["name"]: each["passes"] for each in found["strategies"]}["raster"] == 36
    assert listed["words"]["words"] == {}
    assert ["coat"] in listed["clothes"]["words"]["class"]


def test_the_page_is_closed_to_what_is_foreign(server):
    for path, kind in {"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript"}.items():
        status, headers, body = server.ask("GET", path)
        assert (status, headers.get_content_type()) == (200, kind)
        assert "default-src 'none'" in headers["content-security-policy"]
        assert b"https://" not in body
    assert server.ask("GET", "/page.py")[0] == 404
