import json
import re
import shutil
from pathlib import Path

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


def test_an_embedded_name_wins_over_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("emoji").mkdir()
    assert auto.find("emoji") == zipar.pretrained.directory("emoji")
    for name in ("./emoji", "emoji/", Path("emoji")):
        assert auto.find(name) == Path("emoji")


def test_a_hub_id_is_downloaded(checkpoint, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: {"some/model": checkpoint}[name])
    assert auto.find("some/model") == checkpoint


def test_a_hub_id_that_cannot_be_had_is_an_error(monkeypatch):
    def unreachable(name, **_):
        raise LocalEntryNotFoundError("no connection\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(zipar.ZipARError, match=r"some/model is neither a directory.*hub: .*no connection$"):
        auto.find("some/model")


@pytest.mark.parametrize(
    "name",
    [
        *("./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c", "missing/", "owner/name@main", "owner/na me", "é/ü"),
        *("mm[/red]/x", "owner/..", "-/-", "x" * 97 + "/y", "", " ", "a\nb/c", "hf://owner/name", "owner/\udcff"),
        *("owner/name.git", "C:\\model", "/dev/null"),
    ],
)
def test_what_can_be_no_hub_id_is_not_asked_of_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub._snapshot_download.HfApi", None)
    with pytest.raises(zipar.ZipARError, match="is no checkpoint"):
        auto.load(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [("x" * 300, "cannot be looked for: File name too long"), ("a\0b", "is not possible: use a path")],
)
def test_what_can_be_no_file(name, message):
    with pytest.raises(zipar.ZipARError, match=message):
        auto.find(name)


def test_a_hub_that_fails_in_any_way_is_an_error(monkeypatch):
    def fails(name, **_):
        raise RuntimeError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(zipar.ZipARError, match=r"hub: RuntimeError$"):
        auto.find("some/model")


@pytest.mark.parametrize("kind", ["janus", "emu3", "emu3_5", "lumina_mgpt", "lumina_mgpt2", "llamagen"])
def test_files_that_may_not_be_read_are_called_that(kind, checkpoints, tiny_models, forbidding):
    folder, as_nobody = forbidding
    if kind == "llamagen":
        write(tiny_models.by_class, folder / kind)
    else:
        shutil.copytree(checkpoints(kind), folder / kind)
    for path in folder.rglob("*"):  # transformers and safetensors write for the owner alone
        path.chmod(0o755 if path.is_dir() else 0o644)
    auto.load(folder / kind, device="cpu")  # imports what it needs
    for path in sorted(folder.rglob("*.*")):
        if path.suffix == ".safetensors" or path.name in ("config.json", "tokenizer.json"):
            mode = path.stat().st_mode
            path.chmod(0)
            message = re.escape(f"{path} cannot be read: Permission denied")
            with as_nobody(), pytest.raises(zipar.ZipARError, match=message):
                auto.load(folder / kind, device="cpu")
            path.chmod(mode)
    folder.chmod(0o700)
    with as_nobody(), pytest.raises(zipar.ZipARError, match="cannot be looked for: Permission denied"):
        auto.load(folder / kind)


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
        (
            json.dumps({"model_type": "Emu3"}),
            "an Emu3 or Emu3.5 in the layout of its authors: `zipar convert emu3`, .* makes it",
        ),
        (json.dumps({"model_type": "multi_modality"}), "DeepSeek's layout: `zipar convert janus` makes it loadable"),
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
