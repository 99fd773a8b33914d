"""Clips over HTTP: files that play, whose frames are the pipeline's of their seed."""

import base64
import io
import json

import numpy as np
import openai
import pytest
from PIL import Image

import zipar
from zipar.errors import ZipARError
from zipar.serving.painter import EMPTY
from zipar.serving.scheduler import Scheduler
from zipar.serving.served import Served
from zipar.videos import Video

PROMPT = "a red fox in the snow"


@pytest.fixture(scope="module")
def pipe(tiny_clips):
    return zipar.pipeline(tiny_clips)


@pytest.fixture(scope="module")
def server(serving, pipe, pipes):
    served = [Served.of("clips", pipe, 16), Served.of("words", pipes["words"], 16)]
    with serving(scheduling=lambda: Scheduler(served, rows=3)) as running:
        yield running


@pytest.fixture
def frames(tmp_path):
    """The frames of a file in base64, uint8 (frames, height, width, 3), and how many of them are shown a second."""

    def read(content, form="png"):
        file = tmp_path / f"clip.{form}"
        file.write_bytes(base64.b64decode(content))
        video = Video.load(file)
        return np.stack(video.frames), video.fps

    return read


@pytest.mark.parametrize("strategy", ["zipar:2", "zipar:2@3", "jacobi:16"])
def test_clips_are_the_pipelines(server, pipe, frames, strategy):
    made = pipe(PROMPT, seed=5, num_images_per_prompt=2, strategy=strategy)
    answer = server.images(seed=5, n=2, strategy=strategy, trace=True)
    assert (answer["size"], answer["usage"]["output_tokens"]) == ("8x8", 2 * 48)
    for i, told in enumerate(answer["data"]):
        pixels, fps = frames(told["b64_json"])
        assert np.array_equal(pixels, np.stack(made.videos[i].frames))
        assert fps == pipe.model.fps
        assert told["tokens"] == made.tokens[i].tolist()  # of each frame, row by row
        assert told["born"] == made.born[i].tolist()


def test_a_png_makes_its_clip_again(server):
    (told,) = server.images(seed=3, strategy="raster", guidance_scale=2.5)["data"]
    image = Image.open(io.BytesIO(base64.b64decode(told["b64_json"])))
    assert (image.n_frames, image.info["loop"]) == (3, 0)
    (again,) = server.images(**json.loads(image.text["zipar"]))["data"]
    assert again["b64_json"] == told["b64_json"]


def test_webp(server, pipe, frames):
    expected = np.stack(pipe(PROMPT, seed=3).videos[0].frames).astype(int)
    errors = []
    for quality in (100, 0):
        (told,) = server.images(seed=3, output_format="webp", output_compression=quality)["data"]
        pixels, fps = frames(told["b64_json"], "webp")
        assert (pixels.shape, fps) == (expected.shape, 8)
        errors.append(abs(pixels - expected).mean())
    assert errors[0] < errors[1]


def test_jpeg_holds_no_clip(server):
    for stream in (False, True):
        with server.openai() as client, pytest.raises(openai.BadRequestError, match="use 'png' or 'webp'") as caught:
            client.images.generate(prompt=PROMPT, output_format="jpeg", stream=stream)
        assert caught.value.param == "output_format"
    assert server.images(model="words", output_format="jpeg")["data"]


def test_streams_show_frames_as_they_grow(server, pipe, frames):
    options = {"seed": 3, "strategy": "raster"}
    with server.openai() as client:
        *partials, last = client.images.generate(prompt=PROMPT, stream=True, partial_images=3, extra_body=options)
        traced = client.images.generate(prompt=PROMPT, stream=True, extra_body={**options, "trace": True})
        *growing, traced_last = traced
    expected = np.stack(pipe(PROMPT, **options).videos[0].frames)
    for event, came in zip(partials, (12, 24, 36), strict=True):  # of 48 tokens, each of 2 x 2 pixels
        pixels, _ = frames(event.b64_json)
        empty = (pixels == EMPTY).all(-1).reshape(3, 4, 2, 4, 2).all((2, 4)).flatten()
        assert empty[came:].all()
        assert not empty[:came].any()
    for event in (last, traced_last):
        assert np.array_equal(frames(event.b64_json)[0], expected)
    final, seen = np.array(traced_last.born), 0
    for event in growing:
        born = np.array(event.born)
        come = born >= 0
        assert born.shape == final.shape == (3, 4, 4)
        assert (born[come] == final[come]).all()
        assert come.sum() > seen
        seen = come.sum()
    assert growing


def test_models_tell_that_they_make_clips(server):
    clips, words = (server.ask("GET", f"/v1/models/{name}")[2] for name in ("clips", "words"))
    assert (clips["frames"], clips["fps"], clips["sizes"]) == (3, 8, ["8x8"])
    assert {each["name"]: each["passes"] for each in clips["strategies"]}["raster"] == 48
    assert not {"frames", "fps"} & words.keys()


def test_clips_that_are_not_decoded_from_words_at_once_are_refused(pipe, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pipe.model, "frames", 5)
        with pytest.raises(ZipARError, match="clips of 5 frames in several decodings, for it sees 3 at a time"):
            Served.of("clips", pipe, 16)
    monkeypatch.setattr(type(pipe.model), "wordless", True)
    with pytest.raises(ZipARError, match="drives goes on from given frames, and requests have none"):
        Served.of("drives", pipe, 16)
