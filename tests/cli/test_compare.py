import json

import pytest
from PIL import Image


@pytest.fixture
def compare(zipar, text_model):
    return lambda *args: zipar("compare", "a fox on a blue background", "--model", text_model, *args)


def test_picture_table_json_and_animation(compare, tmp_path, plain):
    strategies = ("--strategy", "zipar:4", "--strategy", "zipar:2:wave", "--strategy", "raster")
    code, out, err = compare(*strategies, "--output", "out.png", "--stats", "out.json", "--animate", "out.gif")
    assert (code, err) == (0, "")
    record = json.loads((tmp_path / "out.json").read_text())
    rows = record["strategies"]
    assert [row["strategy"] for row in rows] == ["raster", "zipar:4", "zipar:2:wave"]
    assert [row["forward_passes"] for row in rows] == [64, 40, 22]
    assert [row["reduction"] for row in rows] == [0, 1 - 40 / 64, 1 - 22 / 64]
    assert [row["tokens_per_pass"] for row in rows] == [1, 64 / 40, 64 / 22]
    for row in rows:
        assert row["seconds"] == row["prefill_seconds"] + row["decode_seconds"] + row["vision_seconds"]
        assert row["speedup"] == rows[0]["seconds"] / row["seconds"]
    assert (record["seed"], record["prompts"]) == (0, ["a fox on a blue background"])
    assert "zipar:2:wave 22 65.6%" in plain(out)
    assert Image.open("out.gif").n_frames == 64
    width, height = Image.open("out.png").size
    assert width > 3 * 256
    assert height > 256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gif", "out.json", "out.png"]


def test_defaults(compare, tmp_path, plain):
    code, out, _ = compare("--stats", "all.json")
    assert code == 0
    rows = {row["strategy"]: row for row in json.loads((tmp_path / "all.json").read_text())["strategies"]}
    (tmp_path / "all.json").unlink()
    assert rows["raster"]["as_raster"] == rows["jacobi:32"]["as_raster"] == 1  # one of many, so it is no accident
    assert rows["zipar:4"]["as_raster"] < 0.9
    for name in ("raster", "zipar:4", "zipar:12:16:4:wave", "jacobi:32"):
        assert name in out
    assert [path.name for path in tmp_path.iterdir()] == ["compare.png"]
    assert compare("--quiet") == (0, "", "")


def test_a_warning_is_told_once(zipar, text_model):
    code, _, err = zipar("compare", "a purple fox", "--model", text_model, "--strategy", "zipar:2")
    assert code == 0
    assert err == "warning: words that the model does not know are passed over: purple\n"


@pytest.mark.parametrize("name", ["", "zipar:0", "zipar:x", "zipar:4:never", "zipar:4:wave:5", "raster:2", "diagonal"])
def test_bad_strategies_end_in_one_line(compare, tmp_path, name):
    code, out, err = compare("--strategy", name)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [["--output", "fox.pdf"], ["--animate", "fox.png"], ["--stats", "nowhere/fox.json"], ["--seed", "-1"]],
    ids=" ".join,
)
def test_bad_options_end_in_one_line(compare, arguments):
    code, out, err = compare(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
