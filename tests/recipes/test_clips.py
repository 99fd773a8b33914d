"""The scripts that make the model of clips: scenes and what is said of them, and tiny trainings."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import zipar
from zipar.evaluation.fid import Moments
from zipar.evaluation.judge import Judge, JudgeConfig
from zipar.prompts import PromptVocabulary

RECIPES = Path(__file__).parents[2] / "recipes"
SHARED = ("training", "reading", "prompted", "judging", "kmeans")


@pytest.fixture
def module(monkeypatch):
    """Imports a module of recipes/, and forgets them all in the end."""
    monkeypatch.syspath_prepend(str(RECIPES))
    yield importlib.import_module
    for name in [name for name in sys.modules if name in SHARED or name.partition(".")[0] in ("clips", "emoji")]:
        del sys.modules[name]


@pytest.fixture
def scenes(module):
    return module("clips.scenes")


@pytest.fixture
def artwork(module):
    """Discs of one colour an object."""
    rng = np.random.default_rng(3)
    made = {}
    for names in module("emoji.artwork").OBJECTS.values():
        picture = np.zeros((64, 64, 4), np.uint8)
        far = np.hypot(*(np.mgrid[:64, :64] - 31.5)) < 30
        picture[far] = [*rng.integers(256, size=3), 255]
        made |= {(names[0], style): Image.fromarray(picture) for style in ("flat", "3d")}
    return made


@pytest.fixture
def script(module, monkeypatch, artwork, tmp_path):
    """Runs a script of recipes/clips in a world of one object and one background, with a vocabulary of 16 tokens."""
    monkeypatch.setattr(module("emoji.artwork"), "load", lambda folder: artwork)
    scenes, image_tokenizer = module("clips.scenes"), module("clips.image_tokenizer")
    monkeypatch.setattr(scenes, "BACKGROUNDS", ["white"])
    monkeypatch.setitem(scenes.ATTRIBUTES, "object", ["car"])
    monkeypatch.setitem(scenes.ATTRIBUTES, "background", ["white"])
    monkeypatch.setattr(image_tokenizer, "CONFIG", replace(image_tokenizer.CONFIG, codebook_size=16, channels=8))
    monkeypatch.setattr(image_tokenizer, "HELD_OUT", 1)
    monkeypatch.setattr(module("clips.decoder"), "HELD_OUT", 1)
    judge = module("clips.judge")
    monkeypatch.setattr(judge, "CONFIG", replace(judge.CONFIG, channels=(8, 8, 8, 8), features=4))
    monkeypatch.setattr(judge, "GOAL", 0)
    monkeypatch.setattr(judge, "SHOWN", 2)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments), "--build", str(tmp_path)])
        module(f"clips.{name}").main()

    return run


def drawn(scenes, count, seed=0):
    rng = np.random.default_rng(seed)
    both = scenes.split()
    return [scenes.sample(both[i % 2], rng) for i in range(count)]


def test_the_way_of_a_bouncing_emoji_pixel_by_pixel(scenes):
    for scene in drawn(scenes, 500):
        room = 64 - scenes.SIZES[scene.size]
        ways = []
        for start, velocity in zip(scene.start, scene.velocity, strict=True):
            at, heading, way = start, int(np.sign(velocity)), [start]
            for _ in range(scenes.FRAMES - 1):
                for _ in range(abs(velocity)):
                    if not 0 <= at + heading <= room:
                        heading = -heading
                    at += heading
                way.append(at)
            ways.append(way)
        assert scenes.positions(scene) == list(zip(*ways, strict=True))


def test_two_frames_leave_one_continuation(scenes):
    seen = {}
    for scene in drawn(scenes, 20_000):
        places = scenes.positions(scene)
        assert scenes.continuation(*places[:2], scene.size) == places
        assert seen.setdefault((scene.size, *places[:2]), places) == places


def test_held_out_combinations_are_never_trained_on(scenes):
    train, held_out = scenes.split()
    assert len(set(train) | set(held_out)) == 12 * 2 * 6 * 8 * 3 * 2
    assert not set(train) & set(held_out)
    assert len(held_out) == 691
    assert scenes.split() == (train, held_out)


def test_prompts_mean_what_is_to_be_seen(scenes, module):
    vocabulary = PromptVocabulary(**module("clips.text").vocabulary())
    rng = np.random.default_rng(1)
    for scene in drawn(scenes, 1000):
        prompt, mentioned = scenes.say(scene, rng)
        assert vocabulary.parse(prompt) == {name: getattr(scene, name) for name in ["object", *mentioned]}
        assert not vocabulary.unknown(prompt)
    assert "moves" in vocabulary.sample(3)
    vocabulary.check(vocabulary.sample(4))


def test_what_a_clip_shows(scenes, artwork):
    painter = scenes.Painter(artwork)
    still = scenes.Scene("fox", "small", "blue", "right", "slow", "bar", (0, 8), 2)
    clip = painter.render(still)
    assert clip.shape == (8, 64, 64, 3)
    assert clip.dtype == np.uint8
    assert (clip[:, :, 16:24] == scenes.BAR).all()
    assert (clip[:, 40:, :16] == scenes.COLOURS["blue"]).all()
    fox = artwork["fox", "flat"].getpixel((32, 32))[:3]
    for frame, left in zip(clip, [0, 8, 16, 24, 32, 40, 32, 24], strict=True):
        middle = left + 12
        assert tuple(frame[20, middle]) == (scenes.BAR if 16 <= middle < 24 else fox)
    assert painter.locate(still, clip) == scenes.positions(still)


def test_from_scenes_to_a_checkpoint(script, scenes, module, tmp_path, capsys):
    script("image_tokenizer", "--steps", 2, "--draw-steps", 1)
    script("image_tokenizer", "--steps", 3, "--draw-steps", 2)
    script("judge", "--steps", 2, "--batch", 4)
    script("text_encoder", "--steps", 2, "--batch", 4)
    script("decoder", "--steps", 4, "--own-steps", 1, "--batch", 2)
    script("decoder", "--steps", 5, "--own-steps", 2, "--batch", 2)
    told = capsys.readouterr().out
    for name in ("image_encoder: continuing at step 2", "decoder: continuing at step 4", "decoder_own: continuing"):
        assert name in told
    tokens = module("clips.image_tokenizer").Tokens.load(tmp_path)
    scene = scenes.Scene("car", "large", "white", "up", "slow", "bar", (0, 8), 5)
    known = tokens.frames["car large white"]
    known.copy_(torch.arange(len(known))[:, None, None])  # a number for each place of the emoji
    clip = tokens.clip(scene).view(8, 8, 8)
    assert (clip[:, :, 5] == tokens.bar).all()
    assert torch.equal(clip[0], clip[2])  # up, and back again
    assert not torch.equal(clip[0], clip[3])
    script("export", tmp_path / "made")
    pipe = zipar.pipeline(tmp_path / "made")
    (video,) = pipe(["a small red car moves left"]).videos
    assert [frame.size for frame in video.frames] == [(64, 64)] * 8
    assert video.fps == scenes.FPS
    clip = np.stack([[np.asarray(frame) for frame in video.frames]])
    assert Judge.load(tmp_path / "made" / "judge").classify(clip)["object"] == ["car"]


def test_a_judge_of_renders_alone(script, scenes, tmp_path):
    script("judge", "--steps", 2, "--batch", 4)
    found = json.loads((tmp_path / "judge" / "held_out.json").read_text())
    assert list(found) == ["training renders", "held-out renders"]
    renders = found["held-out renders"]
    assert renders["images"] == 3 * 10  # of the 96 combinations in this world
    assert renders["fid"] == pytest.approx(0, abs=1e-3)
    assert all(0 <= renders[name] <= 1 for name in scenes.ATTRIBUTES)
    assert renders["object"] == 1  # there is but one
    reference = Moments.load(tmp_path / "judge" / "reference.safetensors")
    assert reference.mean.shape == (4,)


def test_what_the_judge_reads_wrongly(module):
    judge = Judge(JudgeConfig({"shape": ["round", "square"], "type": ["old", "new"]}, 16, (8,), 2))
    judge.head.weight.data.zero_()
    judge.head.bias.data.copy_(torch.tensor([0.0, 1.0, 1.0, 0.0]))
    labels = torch.tensor([[1, 0], [1, 1], [0, 1], [1, 1]])
    images = torch.zeros(4, 16, 16, 3, dtype=torch.uint8)
    assert module("judging").accuracy(judge, labels, images) == {"shape": 0.75, "type": 0.25}
