"""Files and directories that are written whole or not at all, whoever else writes there."""

import os
import stat
import threading
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file

from zipar import ZipARError
from zipar.writing import new_directory, write

posix = pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")


def saves(text):
    return lambda path: path.write_text(text)


@contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def weights(path):
    save_file({"a": torch.zeros(3)}, path)


@posix
@pytest.mark.parametrize(("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o007, 0o660, 0o770)])
def test_modes_are_those_of_the_umask(tmp_path, mask, file, folder):
    def closed(path):
        path.write_text("")
        path.chmod(0o400)  # as files that are copied may be

    with umask(mask):
        write({tmp_path / "made" / "w.safetensors": weights, tmp_path / "made" / "t.json": closed})
        with new_directory(tmp_path / "new") as scratch:
            (scratch / "part").mkdir()
            weights(scratch / "part" / "w.safetensors")
            closed(scratch / "t.json")
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert {path.name for path in modes} == {"made", "new", "part", "w.safetensors", "t.json"}
    assert all(mode == (folder if path.is_dir() else file) for path, mode in modes.items())


def test_writers_of_one_file_do_not_meet(tmp_path):
    barrier, failed = threading.Barrier(4), []

    def save(path):
        path.write_text("whole")
        barrier.wait(30)  # until all have written, and none has moved

    def writer():
        try:
            write({tmp_path / "file.txt": save})
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=writer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]
    assert (tmp_path / "file.txt").read_text() == "whole"


def test_names_as_long_as_there_are(tmp_path):
    name = "x" * (os.pathconf(tmp_path, "PC_NAME_MAX") - 4) + ".txt"
    write({tmp_path / name: saves("whole")})
    with new_directory(tmp_path / name[:-1]):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, name[:-1]])
    with pytest.raises(ZipARError, match=r"x cannot be written: .*too long"):
        write({tmp_path / f"{name}x": saves("")})
    with pytest.raises(ZipARError, match=r"x cannot be written: .*too long"), new_directory(tmp_path / f"{name}x"):
        pass


def test_links_stay(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "link.txt").symlink_to("store/real")  # is not there yet
    for text in ("one", "two"):
        write({tmp_path / "link.txt": saves(text)})
        assert (tmp_path / "link.txt").is_symlink()
        assert (tmp_path / "store" / "real").read_text() == text
    (tmp_path / "folder").symlink_to("elsewhere")
    with new_directory(tmp_path / "folder") as scratch:
        (scratch / "a").touch()
    assert (tmp_path / "folder").is_symlink()
    assert (tmp_path / "elsewhere" / "a").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"store", "link.txt", "folder", "elsewhere"}


@posix
def test_what_is_no_file_is_not_replaced(tmp_path):
    (tmp_path / "pipe").symlink_to("fifo")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "directory").mkdir()
    before = {path.name: path.lstat().st_ino for path in tmp_path.iterdir()}
    for name in before:
        with pytest.raises(ZipARError, match=f"{name} is a .*: give the name of a file"):
            write({tmp_path / name: saves("")})
    assert {path.name: path.lstat().st_ino for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("error", [OSError("no luck"), KeyboardInterrupt()], ids=repr)
def test_nothing_is_left_behind(tmp_path, error):
    def fails(path):
        path.write_text("half")
        raise error

    expected = ZipARError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write({tmp_path / "a" / "good": saves("good"), tmp_path / "b" / "c" / "bad": fails})
    with pytest.raises(expected), new_directory(tmp_path / "a" / "new") as scratch:
        fails(scratch / "bad")
    assert not list(tmp_path.iterdir())


def test_mistakes_are_no_matter_of_the_disk(tmp_path):
    with pytest.raises(KeyError), new_directory(tmp_path / "new"):
        raise KeyError("a bug")
    with pytest.raises(ZipARError, match=r"new cannot be written: No space"), new_directory(tmp_path / "new"):
        raise Exception("No space left on device (os error 28)")  # as tokenizers has it


def test_two_may_not_make_one_directory(tmp_path):
    def make(name, meanwhile):
        with new_directory(tmp_path / "new") as scratch:
            (scratch / name).touch()
            meanwhile()

    with pytest.raises(ZipARError, match="new cannot be written"):
        make("a", lambda: make("b", lambda: None))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
