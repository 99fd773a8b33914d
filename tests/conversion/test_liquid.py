"""What is Liquid's own; the rest is in test_extended.py."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

import zipar
from zipar.conversion.liquid import convert


@pytest.fixture
def sources(liquid_files, tmp_path):
    return shutil.copytree(liquid_files, tmp_path / "published")


def test_the_image_decoder_is_that_of_the_file(sources, tmp_path):
    convert(sources / "liquid", sources / "vqgan.ckpt", tmp_path / "out", image_size=96)
    published = torch.load(sources / "vqgan.ckpt")["state_dict"]
    made = load_file(tmp_path / "out" / "image_tokenizer.safetensors")
    assert published.keys() - made.keys() == {"encoder.conv_in.weight", "loss.logvar"}
    assert all(value.equal(published[name]) for name, value in made.items())


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (
            "quantize.embedding.weight",
            torch.zeros(65, 4),
            "22 words and 65 codes are more than the 86 that",
        ),
        ("quantize.embedding.weight", None, "vqgan.ckpt is no image tokenizer of Chameleon"),
        ("decoder.conv_out.bias", torch.zeros(4), "vqgan.ckpt: decoder.conv_out.bias is of shape"),
        ("decoder.conv_out.bias", 3, "vqgan.ckpt holds no weights under state_dict"),
    ],
)
def test_another_image_tokenizer(sources, tmp_path, name, tensor, message):
    weights = {**torch.load(sources / "vqgan.ckpt")["state_dict"], name: tensor}
    kept = {key: value for key, value in weights.items() if value is not None}
    torch.save({"state_dict": kept}, sources / "vqgan.ckpt")
    with pytest.raises(zipar.ZipARError, match=message):
        convert(sources / "liquid", sources / "vqgan.ckpt", tmp_path / "out", image_size=96)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kept", [None, 0, 5000, -1])
def test_no_image_tokenizer(sources, tmp_path, kept):
    file = sources / "vqgan.ckpt"
    held = file.read_bytes()
    file.unlink()
    if kept is not None:
        file.write_bytes(held[:kept])
    with pytest.raises(zipar.ZipARError, match=r"vqgan.ckpt is (no file|damaged, or is no PyTorch checkpoint)"):
        convert(sources / "liquid", file, tmp_path / "out", image_size=96)
