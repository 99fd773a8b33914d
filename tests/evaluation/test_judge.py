import numpy as np
import pytest
import torch

from zipar import ZipARError
from zipar.evaluation.judge import Judge, JudgeConfig

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
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    optimizer = torch.optim.Adam(judge.parameters(), 5e-3)
    for _ in range(100):
        optimizer.zero_grad()
        logits = judge.logits(judge(pixels))
        loss = torch.nn.functional.cross_entropy(logits["shape"], torch.from_numpy(shapes))
        loss = loss + torch.nn.functional.cross_entropy(logits["type"], torch.from_numpy(types))
        loss.backward()
        optimizer.step()
    seen = judge.classify(images)
    assert seen["shape"] == [CONFIG.attributes["shape"][i] for i in shapes]
    assert seen["type"] == [CONFIG.attributes["type"][i] for i in types]


@pytest.mark.parametrize("shape", [(5, 16, 15, 3), (5, 3, 16, 16), (16, 16, 3)])
def test_refuses_other_shapes(judge, shape):
    with pytest.raises(ZipARError, match="16, 16, 3"):
        judge.features(np.zeros(shape, dtype=np.uint8))


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
