import errno
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from zipar import ZipARError
from zipar.cli import outputs
from zipar.writing import write


def half(error):
    """Writes half a file, then raises."""

    def save(path):
        path.write_text("half")
        raise error

    return save


@pytest.mark.parametrize("moment", ["while decoding", "while writing"])
def test_an_interrupt_leaves_no_file_and_changes_none(zipar, text_model, tmp_path, monkeypatch, moment):
    (tmp_path / "fox.png").write_text("an older picture")
    if moment == "while decoding":

        def step(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("zipar.models.llamagen.LlamaGen.step", step)
    else:
        monkeypatch.setattr(outputs, "array", lambda _: half(KeyboardInterrupt()))
    code, out, err = zipar("generate", "a fox", "-m", text_model, "-o", "fox.png", "--tokens", "fox.npy")
    assert (code, out) == (130, "")
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["fox.png"]
    assert (tmp_path / "fox.png").read_text() == "an older picture"


def test_a_full_disk_is_one_line(zipar, text_model, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "array", lambda _: half(OSError(errno.ENOSPC, "No space left on device")))
    code, _, err = zipar("generate", "a fox", "-m", text_model, "--tokens", "fox.npy")
    assert code == 2
    assert err.startswith("error: ")
    assert "No space left" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.npy", "x.json", "x.gif"])
def test_disks_that_fill_up_are_one_line(zipar, text_model, tmp_path, small_files, name):
    options = {"npy": "--tokens", "json": "--stats", "gif": "--animate"}
    (tmp_path / name).write_text("an older one")
    with small_files(60):
        code, out, err = zipar("generate", "a fox", "-m", text_model, options.get(name[2:], "-o"), name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "cannot be written: File too large" in err
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "an older one"


@pytest.mark.parametrize("command", ["compare", "eval", "tune"])
def test_disks_that_fill_up_are_one_line_of_other_commands(zipar, text_model, tmp_path, small_files, command):
    shutil.copytree(text_model, tmp_path / "model")
    arguments = {
        "compare": ["a fox", "-s", "zipar:2"],
        "eval": ["-s", "zipar:2", "--images", "2", "-o", "some/where"],
        "tune": ["--images", "2", "--lookahead", "1", "-o", "some/where"],
    }
    with small_files(600):
        code, out, err = zipar(command, "-m", "model", *arguments[command])
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "cannot be written: File too large" in err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_may_not_be_written_or_read_is_one_line(zipar, text_model, forbidding, monkeypatch):
    folder, as_nobody = forbidding
    monkeypatch.chdir(folder)
    shutil.copytree(text_model, "model")
    for name in ("closed", "private"):
        Path(name).mkdir()
    Path("prompts.txt").touch()
    arguments = ["generate", "a fox", "-m", "model"]
    assert zipar(*arguments, "--stats", "x.json")[0] == 0  # imports what it needs
    Path("zipar.png").unlink()
    Path("closed").chmod(0o555)
    Path("private").chmod(0o700)
    Path("prompts.txt").chmod(0)
    with as_nobody():
        for more in (
            [*arguments, "-o", "closed/x.png"],
            [*arguments, "-o", "private/x.png"],
            [*arguments, "--stats", "private/y/x.json"],
            ["compare", "a fox", "-m", "model", "-o", "closed/x.png"],
            ["eval", "-m", "model", "-o", "closed/x"],
            ["eval", "-m", "model", "-o", "private/x"],
            ["eval", "prompts.txt", "-m", "model"],
            ["tune", "-m", "model"],
            ["plan", "-m", "private/x"],
            ["prompts", "-m", "private"],
            ["convert", "emu3", "model", "model", "closed/x"],
            ["convert", "llamagen", "prompts.txt", "x.json", "x"],
        ):
            code, out, err = zipar(*more)
            assert (code, out, err.count("\n")) == (2, "", 1), more
            assert re.search(r"[Pp]ermission|not readable", err), err
    assert {path.name for path in folder.iterdir()} == {"model", "closed", "private", "prompts.txt", "x.json"}


def test_links_stay_and_devices_too(zipar, text_model, tmp_path):
    for name, place in (("link.png", "store.bin"), ("full.png", "/dev/full"), ("loop.png", "loop.png")):
        (tmp_path / name).symlink_to(place)
    arguments = ["generate", "a fox", "-m", text_model, "-q", "-o"]
    assert zipar(*arguments, "link.png") == (0, "", "")
    assert Image.open(tmp_path / "store.bin").format == "PNG"
    for name in ("full.png", "loop.png"):
        code, _, err = zipar(*arguments, name)
        assert (code, err.count("\n")) == (2, 1)
        assert "give the name of a file" in err
    assert all((tmp_path / name).is_symlink() for name in ("link.png", "full.png", "loop.png"))


def test_names_near_the_limit_of_length_are_found_before_the_work(zipar, text_model, tmp_path, monkeypatch):
    longest = "x" * 251 + ".png"
    arguments = ["generate", "a fox", "-m", text_model, "-q", "-o"]
    assert zipar(*arguments, longest) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == [longest]
    monkeypatch.setattr("zipar.models.auto.load", None)
    for more in ([f"x{longest}"], [longest, "--num-images", "2"]):
        code, _, err = zipar(*arguments, *more)
        assert (code, err.count("\n")) == (2, 1)
        assert "too long" in err


def test_files_are_written_all_or_none(tmp_path):
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    with pytest.raises(ZipARError, match="no luck"):
        write({good: lambda path: path.write_text("good"), bad: half(OSError("no luck"))})
    assert not list(tmp_path.iterdir())
    write({good: lambda path: path.write_text("good")})
    assert good.read_text() == "good"
