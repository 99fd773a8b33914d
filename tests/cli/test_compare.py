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


def test_clips_play_side_by_side(zipar, clips_directory, tmp_path, plain):
    arguments = ("compare", "a red fox", "-m", clips_directory, "--frames", "4")
    code, out, err = zipar(*arguments, "--stats", "out.json", "--animate", "wave.gif")
    assert (code, err) == (0, "")
    rows = {row["strategy"]: row for row in json.loads((tmp_path / "out.json").read_text())["strategies"]}
    assert list(rows) == ["raster", "zipar:4", "zipar:12:16:4:wave", "jacobi:32", "zipar:4:wave@4"]
    # 3 frames, then one more that goes on from one
    assert [rows[name]["forward_passes"] for name in ("raster", "zipar:4", "zipar:4:wave@4")] == [64, 64, 24 + 16]
    assert rows["raster"]["as_raster"] == rows["jacobi:32"]["as_raster"] == 1
    assert rows["zipar:4:wave@4"]["as_raster"] < 1
    assert rows["zipar:4:wave@4"]["tokens_per_pass"] == 64 / 40
    assert "zipar:4:wave@4 40 37.5%" in plain(out)
    assert Image.open("wave.gif").n_frames == 64
    assert Image.open("compare.gif").n_frames == 4
    assert out.endswith("compare.gif, out.json, wave.gif\n")


def test_given_frames_do_not_count_as_the_same(zipar, clips_directory, tmp_path):
    assert zipar("generate", "a bird", "-m", clips_directory, "-o", "start.webp")[0] == 0
    shares = []
    for strategy in ("zipar:1:wave", "zipar:1:wave@1"):
        arguments = ("--given", "start.webp", "--given-frames", "2", "--output", "out.webp", "--stats", "out.json")
        assert zipar("compare", "a red fox", "-m", clips_directory, "-s", strategy, *arguments)[0] == 0
        record = json.loads((tmp_path / "out.json").read_text())
        assert record["given_frames"] == 2
        shares.append([row["as_raster"] for row in record["strategies"]])
    assert shares[0] == shares[1]  # one frame to decode
    assert shares[0][0] == 1
    assert shares[0][1] * 16 == round(shares[0][1] * 16)
    assert shares[0][1] < 0.6
    assert Image.open("out.webp").n_frames == 3


@pytest.mark.parametrize("name", ["out.jpg", "out.txt"])
def test_other_files_of_clips_end_in_one_line(zipar, clips_directory, tmp_path, name):
    code, out, err = zipar("compare", "a red fox", "-m", clips_directory, "-o", name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert ".gif" in err
    assert not list(tmp_path.iterdir())


def test_both_grids_of_glm_image(zipar, glm_pipeline_directory, tmp_path):
    asked = ("--model", glm_pipeline_directory, "--size", "64x96", "-s", "zipar:19", "--stats", "x.json")
    assert zipar("compare", "a red fox", *asked)[0] == 0
    raster, wide = json.loads((tmp_path / "x.json").read_text())["strategies"]
    assert raster["forward_passes"] == wide["forward_passes"] == 13 * 19 + 2 * 3
    assert (raster["tokens_per_pass"], wide["as_raster"]) == (1, 1)
    assert wide["vision_seconds"] > 0
