import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import zipar
from zipar import ZipARError
from zipar.evaluation.judge import Judge, JudgeConfig

SHIPPED = sorted((Path(zipar.__file__).parent / "pretrained").glob("*/judge"))
CONFIG = JudgeConfig({"shape": ["round", "square", "long"], "type": ["old", "new"]}, 16, (8, 16), 10, 4)


@pytest.fixture
def judge() -> Judge:
    torch.manual_seed(0)
    return Judge(CONFIG)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)


def test_says_one_value_an_image_and_attribute(judge, images):
    seen = judge.classify(images)
    assert list(seen) == ["shape", "type"]
    assert all(len(values) == 5 and set(values) <= set(CONFIG.attributes[name]) for name, values in seen.items())


def test_features_do_not_depend_on_the_batch(judge, images):
    features = judge.features(images)
    assert features.shape == (5, 10)
    assert features.dtype == torch.float32
    torch.testing.assert_close(judge.features(torch.from_numpy(images[3:4])), features[3:4])
    many = judge.features(np.repeat(images, 60, axis=0))
    torch.testing.assert_close(many, features.repeat_interleave(60, dim=0))


def test_values_follow_the_order_of_the_config(judge, images):
    judge.head.weight.data.zero_()
    judge.head.bias.data.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0]))
    assert judge.classify(images) == {"shape": ["square"] * 5, "type": ["new"] * 5}


def test_survives_a_directory(judge, images, tmp_path):
    judge.save(tmp_path / "judge")
    loaded = Judge.load(tmp_path / "judge")
    torch.testing.assert_close(loaded.features(images), judge.features(images), atol=1e-2, rtol=1e-2)
    assert loaded.config.attributes == CONFIG.attributes
    loaded.save(tmp_path / "again")
    assert torch.equal(Judge.load(tmp_path / "again").features(images), loaded.features(images))


def test_learns_what_it_is_shown(judge):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 100, (60, 16, 16, 3), dtype=np.uint8)
    shapes, types = np.arange(60) % 3, np.arange(60) // 3 % 2
    images[shapes == 1, :8] += 100
    images[shapes == 2, 8:] += 100
    images[types == 1, :, :, 0] += 50
    check_learns(judge, images, {"shape": shapes, "type": types})


def test_learns_which_way_a_clip_moves():
    torch.manual_seed(0)
    judge = Judge(JudgeConfig({"way": ["left", "right"]}, 16, (8, 16), 10, 4, frames=3))
    rng = np.random.default_rng(1)
    clips = np.zeros((20, 3, 16, 16, 3), dtype=np.uint8)
    for clip, top, left in zip(clips, rng.integers(12, size=20), rng.integers(8, size=20), strict=True):
        for time, frame in enumerate(clip):
            frame[top : top + 4, left + 2 * time : left + 2 * time + 4] = 255
    # backwards they have the same frames: only their order tells
    check_learns(judge, np.concatenate([clips, clips[:, ::-1]]), {"way": np.repeat([1, 0], 20)})


def check_learns(judge, images, labels):
    optimizer = torch.optim.Adam(judge.parameters(), 5e-3)
    pixels = judge.pixels(images)
    for _ in range(100):
        optimizer.zero_grad()
        logits = judge.logits(judge(pixels))
        losses = [torch.nn.functional.cross_entropy(logits[name], torch.from_numpy(labels[name])) for name in labels]
        torch.stack(losses).sum().backward()
        optimizer.step()
    for name, seen in judge.classify(images).items():
        assert seen == [judge.config.attributes[name][i] for i in labels[name]]


def test_pixels_are_colours_frame_after_frame(judge, images):
    stacked = np.moveaxis(images, -1, 1) / np.float32(127.5) - 1
    torch.testing.assert_close(judge.pixels(images), torch.from_numpy(stacked))
    clips = np.stack([images, images[::-1]], axis=1)
    both = np.concatenate([stacked, stacked[::-1]], axis=1)
    torch.testing.assert_close(Judge(dataclasses.replace(CONFIG, frames=2)).pixels(clips), torch.from_numpy(both))


def test_clips_survive_a_directory(images, tmp_path):
    torch.manual_seed(0)
    judge = Judge(dataclasses.replace(CONFIG, frames=5))
    clips = np.stack([images, 255 - images])
    assert judge.features(clips).shape == (2, 10)
    assert len(judge.classify(torch.from_numpy(clips))["shape"]) == 2
    judge.save(tmp_path)
    loaded = Judge.load(tmp_path)
    assert loaded.config.frames == 5
    torch.testing.assert_close(loaded.features(clips), judge.features(clips), atol=1e-2, rtol=1e-2)


def test_a_directory_that_tells_of_no_frames_is_of_pictures(judge, images, tmp_path):
    judge.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["frames"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Judge.load(tmp_path).features(images).shape == (5, 10)


@pytest.mark.parametrize("directory", SHIPPED, ids=lambda path: path.parent.name)
def test_shipped_judges_load(directory):
    judge = Judge.load(directory)
    frames = [judge.config.frames] if judge.config.frames > 1 else []
    shape = (2, *frames, judge.config.side, judge.config.side, 3)
    seen = judge.classify(np.zeros(shape, dtype=np.uint8))
    assert {name: len(values) for name, values in seen.items()} == dict.fromkeys(judge.config.attributes, 2)


@pytest.mark.parametrize("shape", [(5, 16, 15, 3), (5, 3, 16, 16), (16, 16, 3)])
def test_refuses_other_shapes(judge, shape):
    with pytest.raises(ZipARError, match="16, 16, 3"):
        judge.features(np.zeros(shape, dtype=np.uint8))


@pytest.mark.parametrize("shape", [(5, 16, 16, 3), (5, 2, 16, 16, 3), (5, 3, 16, 15, 3), (5, 3, 3, 16, 16)])
def test_refuses_other_shapes_of_clips(shape):
    judge = Judge(dataclasses.replace(CONFIG, frames=3))
    for judged in (judge.pixels, judge.features, judge.classify):
        with pytest.raises(ZipARError, match=r"clips should be uint8 \(n, 3, 16, 16, 3\)"):
            judged(np.zeros(shape, dtype=np.uint8))


def test_refuses_other_dtypes(judge, images):
    with pytest.raises(ZipARError, match="uint8"):
        judge.classify(images / 255.0)


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", "{}"), ("config.json", "no JSON"), ("judge.safetensors", "nonsense"), ("judge.safetensors", None)],
)
def test_damaged_directories_are_refused(judge, tmp_path, name, content):
    judge.save(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(ZipARError, match=str(tmp_path)):
        Judge.load(tmp_path)
