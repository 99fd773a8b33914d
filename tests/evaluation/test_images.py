import numpy as np
import pytest
import torch
from PIL import Image

from zipar import ZipARError
from zipar.evaluation.images import checked, pictures, read


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
