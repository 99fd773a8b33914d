"""The scripts that make models of photographs, from folders of pictures to a checkpoint that paints."""

import importlib
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image

import zipar

RECIPES = Path(__file__).parents[2] / "recipes"
CLASSES = ["T-shirt", "bag", "coat"]


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Runs a script of recipes/photos on a tiny recipe."""
    monkeypatch.syspath_prepend(str(RECIPES))
    recipe = importlib.import_module("photos.recipe")
    tiny = recipe.Recipe(16, 1, 32, 8, (8, 8, 8), True, 3, 3)
    monkeypatch.setitem(recipe.RECIPES, "tiny", tiny)

    def run(name, *arguments):
        given = ["tiny", *map(str, arguments), "--build", str(tmp_path / "build")]
        monkeypatch.setattr(sys, "argv", [name, *given])
        importlib.import_module(f"photos.{name}").main()

    yield run
    for name in [name for name in sys.modules if name == "training" or name.startswith("photos")]:
        del sys.modules[name]


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 4)):
        for name in CLASSES:
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "pictures"


def test_from_pictures_to_a_checkpoint(script, folders, tmp_path, capsys):
    script("pictures", folders)
    script("tokens")
    script("decoder")
    script("decoder", "--steps", 5)  # goes on where it was
    script("image_tokenizer", "--steps", 2)
    script("judge")
    script("export", tmp_path / "made")
    assert "decoder: continuing at step 3 of 5" in capsys.readouterr().out
    pipe = zipar.pipeline(tmp_path / "made")
    assert list(pipe.model.vocabulary.attributes["class"]) == CLASSES
    images = pipe(["a t-shirt", "coat"]).images
    assert [image.size for image in images] == [(32, 32)] * 2
    assert (tmp_path / "made" / "judge" / "reference.safetensors").exists()


def test_tokens_are_the_nearest_centres(script, folders, tmp_path):
    script("pictures", folders)
    script("tokens")
    held = torch.load(tmp_path / "build" / "tokens.pt", weights_only=True)
    with np.load(tmp_path / "build" / "test.npz") as test:
        patch = test["images"][3, 2:4, 6:8].transpose(
            2, 0, 1
        )  # row 1, column 3; colours first, as unfolding gives them
    distances = ((patch.reshape(-1) / 127.5 - 1 - held["centres"].numpy()) ** 2).sum(-1)
    assert held["test"][3, 16 + 3] == distances.argmin()
    assert held["flipped"].shape == held["train"].shape == (60, 256)


def test_the_official_archive_is_read(script, tmp_path):
    rng = np.random.default_rng(1)
    records = rng.integers(10, size=(6, 1 + 3 * 1024), dtype=np.uint8)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    script("pictures", tmp_path / "cifar-10-binary.tar.gz")
    with np.load(tmp_path / "build" / "train.npz") as train:
        assert train["images"].shape == (12, 32, 32, 3)
        assert sorted(train["labels"]) == sorted(records[:, 0].tolist() * 2)
        reds = records[records[:, 0] == train["labels"][0]][:, 1 : 1 + 1024].reshape(-1, 32, 32)
        assert any(np.array_equal(train["images"][0, ..., 0], red) for red in reds)


def test_parts_of_textures_are_read(script, tmp_path):
    rng = np.random.default_rng(2)
    shade = rng.integers(1, 256, 50, dtype=np.uint8)
    with ZipFile(tmp_path / "0textures.pk3", "w") as archive:

        def add(name, color, size=(64, 80)):
            held = BytesIO()
            Image.new("RGB", size, color).save(held, "png")
            archive.writestr(f"textures/{name}", held.getvalue())

        for i, value in enumerate(shade):
            add(f"tex_stone/s{i:02}.png", (int(value), 0, 0))
            add(f"tex_stone/s{i:02}_nm.png", (0, 0, 255))  # no picture
        add("tex_stone/small.png", (0, 255, 0), (40, 40))
        add("tex_rare/r.png", (0, 255, 0))
    script("pictures", tmp_path / "0textures.pk3")
    for split, held in (("test", shade[9::10]), ("train", np.delete(shade, slice(9, None, 10)))):
        with np.load(tmp_path / "build" / f"{split}.npz") as found:
            assert found["classes"].tolist() == ["stone"]
            assert found["images"].shape == (16 * len(held), 32, 32, 3)
            assert not found["images"][..., 1:].any()
            assert set(found["images"][..., 0].flat) == set(held)
