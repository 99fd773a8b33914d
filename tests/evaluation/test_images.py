from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from zipar import Video, ZipARError
from zipar.evaluation.images import checked, folder_features, pictures, read


def test_arrays_and_tensors_pass():
    images = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    assert torch.equal(checked(images), torch.from_numpy(images))
    assert torch.equal(checked(torch.from_numpy(images)), torch.from_numpy(images))


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 3, 4, 3), np.float32), np.zeros((3, 4, 3), np.uint8), torch.zeros(2, 3, 4, 4, dtype=torch.uint8)],
)
def test_other_images_are_refused(images):
    with pytest.raises(ZipARError, match="uint8"):
        checked(images)


def test_folders_that_may_not_be_looked_into_are_not_passed_over(forbidding):
    folder, as_nobody = forbidding
    (folder / "in").mkdir()
    (folder / "a.png").touch(0)
    with as_nobody(), pytest.raises(ZipARError, match=r"a.png cannot be read: Permission denied"):
        read(folder / "a.png")
    (folder / "in").chmod(0)
    with as_nobody(), pytest.raises(ZipARError, match="in cannot be read: Permission denied"):
        pictures(folder)


def test_pictures_are_found_below_the_folder(tmp_path):
    (tmp_path / "b" / "c.png").mkdir(parents=True)
    for name in ("z.PNG", "b/a.jpg", "b/c.png/d.webp", "e.jpeg", "notes.txt"):
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in pictures(tmp_path)]
    assert found == ["b/a.jpg", "b/c.png/d.webp", "e.jpeg", "z.PNG"]


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(ZipARError, match="absent"):
        pictures(tmp_path / "absent")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_all_kinds_of_pictures_are_read_as_rgb(mode, tmp_path):
    image = Image.new("RGB", (4, 3), (204, 204, 204)).convert(mode)
    image.save(tmp_path / "picture.png")
    assert np.array_equal(read(tmp_path / "picture.png"), np.full((3, 4, 3), 204, np.uint8))


def test_a_damaged_picture_is_named(tmp_path):
    path = tmp_path / "damaged.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ZipARError, match=r"damaged\.png"):
        read(path)


def colours(images: np.ndarray) -> torch.Tensor:
    """Features that any size has: the mean and the spread of the colours."""
    pixels = torch.from_numpy(images).double().flatten(1, 2)
    return torch.cat([pixels.mean(1), pixels.std(1)], 1)


def noise(height: int, width: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.random((height, width, 3)) * generator.integers(50, 256, 3)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """More pictures than go at a time, of three sizes, one below the other."""
    sizes = [(5, 7), (7, 5), (8, 8)]
    made = [noise(*sizes[seed % 3], seed) for seed in range(70)]
    for number, image in enumerate(made):
        (tmp_path / "pictures" / str(number % 4)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "pictures" / str(number % 4) / f"{number}.png")
    return SimpleNamespace(path=tmp_path / "pictures", images=made)


def test_features_of_a_folder_are_those_of_its_pictures(folder):
    found = folder_features(folder.path, colours)
    pixels = [image.reshape(-1, 3).astype(float) for image in folder.images]
    expected = np.array([[*each.mean(0), *each.std(0, ddof=1)] for each in pixels])
    np.testing.assert_allclose(found[found[:, 0].argsort()], expected[expected[:, 0].argsort()])


def test_pictures_go_together_where_they_can(folder):
    calls = []
    folder_features(folder.path, lambda images: calls.append(images.shape) or colours(images))
    assert sum(shape[0] for shape in calls) == 70
    assert len(calls) <= 9
    assert max(shape[0] for shape in calls) <= 32


@pytest.mark.parametrize("names", [[], ["only.png"]])
def test_a_folder_of_less_than_two_pictures_is_named(names, tmp_path):
    for name in names:
        Image.fromarray(noise(4, 4, 0)).save(tmp_path / name)
    with pytest.raises(ZipARError, match=rf"{tmp_path.name} .* at least 2 .* {'only.png' if names else 'none'}"):
        folder_features(tmp_path, colours)


def test_a_picture_that_is_none_is_named(folder):
    (folder.path / "broken.jpg").write_text("no picture")
    with pytest.raises(ZipARError, match=r"broken\.jpg"):
        folder_features(folder.path, colours)


def test_features_of_a_folder_of_clips(tmp_path):
    clips = [np.stack([noise(4, 6, 10 * seed + frame) for frame in range(3)]) for seed in range(4)]
    for seed, clip in enumerate(clips):
        Video([Image.fromarray(frame) for frame in clip], 8).save(tmp_path / f"{seed}.webp")
    Image.fromarray(clips[0][0]).save(tmp_path / "cover.png")
    found = folder_features(tmp_path, lambda made: torch.from_numpy(made).double().mean((1, 2, 3)), clips=True)
    expected = np.stack(clips).astype(float).mean((1, 2, 3))
    np.testing.assert_allclose(found[found[:, 0].argsort()], expected[expected[:, 0].argsort()])
    for number in range(1, 4):
        (tmp_path / f"{number}.webp").unlink()
    with pytest.raises(ZipARError, match=r"at least 2 clips .* only 0\.webp"):
        folder_features(tmp_path, colours, clips=True)
