import errno

import pytest

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


def test_files_are_written_all_or_none(tmp_path):
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    with pytest.raises(ZipARError, match="no luck"):
        write({good: lambda path: path.write_text("good"), bad: half(OSError("no luck"))})
    assert not list(tmp_path.iterdir())
    write({good: lambda path: path.write_text("good")})
    assert good.read_text() == "good"
