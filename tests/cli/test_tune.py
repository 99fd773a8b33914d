import json
import re
import shutil
from pathlib import Path

import pytest

import zipar as library
from zipar.decoding import names


@pytest.fixture
def directory(text_model, tmp_path):
    return Path(shutil.copytree(text_model, tmp_path / "model"))


@pytest.fixture
def tune(zipar, directory):
    return lambda *args: zipar("tune", "--model", directory, "--images", "4", *args)


def choice(directory):
    return json.loads((directory / "zipar.json").read_text())


def test_anything_goes(tune, zipar, directory, plain):
    code, out, err = tune("--tolerance", "100", "--lookahead", "4")
    assert (code, err) == (0, "")
    record = choice(directory)
    best = names.parse(record["strategy"])
    tried = {row["strategy"]: row for row in record["tried"]}
    assert record["strategy"] in tried
    assert record["strategy"] + " is the default of" in plain(out)
    for name in tried:
        assert name in out
    seconds = tried[record["strategy"]]["seconds"]
    assert seconds == min(row["seconds"] for name, row in tried.items() if name != "raster")

    # picked up by pipelines and commands, until another strategy is named
    pipe = library.pipeline(directory)
    assert pipe.strategy == best

    assert (pipe("a fox").tokens == pipe("a fox", strategy=best).tokens).all()
    for arguments, strategy in (
        ((), record["strategy"]),
        (("--window", 3), "zipar:3"),
        (("--strategy", "raster"), "raster"),
    ):
        assert zipar("generate", "a fox", "--model", directory, "--stats", "stats.json", *arguments)[0] == 0
        assert json.loads(Path("stats.json").read_text())["strategy"] == strategy


def test_nothing_goes(tune, directory):
    code, _, err = tune("--tolerance", "0.15", "--lookahead", "1", "--images", "24")
    assert (code, err) == (0, "")
    record = choice(directory)
    tried = {row["strategy"]: row for row in record["tried"]}
    lossless = {name: tried.pop(name)["seconds"] for name in ("raster", "jacobi:32")}
    found = [row["excess_difference"] for row in tried.values()]
    assert 0 < len(found) < 10
    assert all(excess["low"] < -0.15 or excess["high"] > 0.15 for excess in found)
    assert record["strategy"] == min(lossless, key=lossless.get)
    assert library.pipeline(directory).strategy == names.parse(record["strategy"])


def test_too_few_images_end_in_one_line_that_says_how_many_would_do(tune, directory, tmp_path):
    code, out, err = tune("--tolerance", "0.05")
    assert (code, out) == (2, "")
    assert err.startswith("error: 4 images tell even raster's surprise excess only to within 0.0")
    assert err.count("\n") == 1
    assert not (directory / "zipar.json").exists()
    assert len(list((tmp_path / "tuning" / "batches").iterdir())) == 1  # nothing but raster's was made
    (named,) = re.findall(r"give --images (\d+)", err)
    code, _, err = tune("--tolerance", "0.05", "--lookahead", "1", "--images", named)
    assert (code, err) == (0, "")


def test_tuning_again_goes_on(tune, directory, tmp_path):
    assert tune("--tolerance", "100")[0] == 0
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "tuning" / "batches").iterdir()}
    assert tune("--tolerance", "100")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tuning" / "batches").iterdir()} == files


def test_without_a_choice_the_default_stays(directory):
    assert library.pipeline(directory).strategy == library.DEFAULT


@pytest.mark.parametrize(
    ("content", "named"),
    [("{}", "strategy 'None' is unknown"), ("[", "no JSON"), ('{"strategy": "zipar:0"}', "window 0 is not possible")],
)
def test_a_damaged_choice_ends_in_one_line(zipar, directory, content, named):
    (directory / "zipar.json").write_text(content)
    code, out, err = zipar("generate", "a fox", "--model", directory)
    assert (code, out) == (2, "")
    assert named in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["--tolerance", "-1"], ["--tolerance", "0"], ["--lookahead", "0"], ["--images", "1"]], ids=" ".join
)
def test_bad_options_end_in_one_line(tune, directory, arguments):
    code, out, err = tune(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not (directory / "zipar.json").exists()


def test_clips_find_a_frame_delay(zipar, clips_directory, tmp_path):
    directory = Path(shutil.copytree(clips_directory, tmp_path / "model"))
    arguments = ("tune", "-m", directory, "--images", "4", "--lookahead", "1", "-q")
    assert zipar(*arguments, "--tolerance", "100")[0] == 0
    record = choice(directory)
    tried = {row["strategy"]: row for row in record["tried"]}
    delays = [names.parse(name).frame_delay for name in tried if "@" in name]
    assert min(delays) == 1
    assert record["strategy"] in tried
    del tried["raster"]
    assert tried[record["strategy"]]["seconds"] == min(row["seconds"] for row in tried.values())
    assert library.pipeline(directory).strategy == names.parse(record["strategy"])


def test_one_frame_has_no_delay(zipar, clips_directory, tmp_path):
    directory = Path(shutil.copytree(clips_directory, tmp_path / "model"))
    arguments = ("tune", "-m", directory, "--images", "2", "--lookahead", "1", "-q", "--frames", "1")
    assert zipar(*arguments, "--tolerance", "100")[0] == 0
    assert not [row for row in choice(directory)["tried"] if "@" in row["strategy"]]
