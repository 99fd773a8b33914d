import json

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

import zipar
from zipar.conversion.llamagen import write
from zipar.models import auto


@pytest.fixture
def checkpoint(tiny_models, tmp_path):
    write(tiny_models.by_class, tmp_path / "tiny", torch.float32)
    return tmp_path / "tiny"


def test_a_directory_is_loaded_whether_path_or_string(checkpoint):
    for name in checkpoint, str(checkpoint):
        model = auto.load(name)
        assert model.family == "llamagen"
        assert model.dtype == (torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    assert auto.load(checkpoint, torch.bfloat16, "cpu").dtype == torch.bfloat16
    assert not any(weight.requires_grad for weight in model.parameters())


def test_an_embedded_model_is_found_by_name(checkpoint, monkeypatch):
    monkeypatch.setattr(zipar.pretrained, "_HERE", checkpoint.parent)
    assert zipar.pretrained.names() == ["tiny"]
    assert auto.find("tiny") == checkpoint
    with pytest.raises(zipar.ZipARError, match=r"big is no checkpoint.*\(tiny\)"):
        auto.find("big")


def test_a_hub_id_is_downloaded(checkpoint, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: {"some/model": checkpoint}[name])
    assert auto.find("some/model") == checkpoint


def test_a_hub_id_that_cannot_be_had_is_an_error(monkeypatch):
    def unreachable(name, **_):
        raise LocalEntryNotFoundError("no connection\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(zipar.ZipARError, match=r"some/model is neither a directory.*hub: .*no connection$"):
        auto.find("some/model")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c"])
def test_what_can_be_no_hub_id_is_not_asked_of_the_hub(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(zipar.ZipARError, match="is no checkpoint"):
        auto.find(name)


def test_a_file_is_no_checkpoint(tmp_path):
    (tmp_path / "model.pt").touch()
    with pytest.raises(zipar.ZipARError, match=r"model\.pt is no checkpoint"):
        auto.load(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "has no config.json"),
        ("{", "is no JSON"),
        ("[]", "JSON object, not a list"),
        ("{}", "type None, which is not supported; supported: llamagen"),
        (json.dumps({"model_type": "bert"}), "type 'bert', which is not supported"),
        (json.dumps({"model_type": "Emu3"}), "layout of its authors: `zipar convert emu3` makes it loadable"),
    ],
)
def test_directories_of_anything_else_are_named(tmp_path, config, message):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(zipar.ZipARError, match=message):
        auto.load(tmp_path)


@pytest.mark.parametrize("device", ["toaster", "cuda:99"])
def test_a_device_that_is_not_there(checkpoint, device):
    with pytest.raises(zipar.ZipARError, match=f"device '{device}' cannot be used here"):
        auto.load(checkpoint, device=device)
