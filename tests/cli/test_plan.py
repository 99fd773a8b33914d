import json
import shutil
from pathlib import Path

import pytest
from transformers import GlmImageConfig


def test_table_and_wave(zipar, text_model, plain):
    code, out, err = zipar("plan", "--model", text_model, "--window", 2)
    assert (code, err) == (0, "")
    assert "16x16 pixels (height x width), 8 x 8 tokens" in out
    assert "raster 64 0.0% 1.00 zipar:2 28 56.2% 2.29 zipar:2:wave 22 65.6% 2.91" in plain(out)
    wave = out.splitlines()[-8:]
    assert wave[1:4] == ["  ▒▒▒▒▒▒▒▒▒▒██· · ", "  ▒▒▒▒▒▒██· · · · ", "  ▒▒██· · · · · · "]


def test_json_from_the_config_alone(zipar, text_model, tmp_path):
    shutil.copy(Path(text_model) / "config.json", tmp_path)
    code, out, err = zipar("plan", "--model", tmp_path, "--window", 4, "--size", "16x16", "--json")
    assert (code, err) == (0, "")
    plan = json.loads(out)
    assert plan["grid"] == {"frames": 1, "rows": 8, "columns": 8, "tokens": 64}
    assert plan["strategies"][1] == {
        "strategy": "zipar:4",
        "forward_passes": 40,
        "fewest_passes": 40,
        "reduction": 0.375,
        "tokens_per_pass": 1.6,
    }


def test_a_lookahead_gives_bounds(zipar, text_model, plain):
    code, out, err = zipar("plan", "--model", text_model, "--window", 2, "--lookahead", 4)
    assert (code, err) == (0, "")
    assert "zipar:2:4 " in plain(out)
    assert " to 28 " in plain(out)
    assert "depend on the image" in out


@pytest.mark.parametrize(
    ("size", "passes"), [("1024x1024", [1280, 448]), ("2048x2048", [4352, 768]), ("1152x768", [1111, 482])]
)
def test_small_grids_that_come_first_count(zipar, tmp_path, size, passes):
    config = GlmImageConfig(text_config={"num_hidden_layers": 1}, vision_config={"depth": 1})
    config.save_pretrained(tmp_path / "vision_language_encoder")
    (tmp_path / "model_index.json").write_text("{}")
    code, out, err = zipar("plan", "--model", tmp_path, "--window", 8, "--size", size, "--json")
    assert (code, err) == (0, "")
    plan = json.loads(out)
    assert [row["forward_passes"] for row in plan["strategies"]][:2] == passes
    assert sum(each["tokens"] for each in plan["decodings"]) == passes[0]
    code, out, err = zipar("plan", "--model", tmp_path, "--window", 8, "--size", size)
    assert (code, err) == (0, "")
    assert f" x {plan['grid']['columns']} tokens" in out.splitlines()[0]
    assert " and " in out.splitlines()[0]


@pytest.mark.parametrize(
    "arguments", [["--window", "0"], ["--size", "8x8"], ["--size", "8"], ["--model", "nowhere"]], ids=" ".join
)
def test_bad_options_end_in_one_line(zipar, text_model, arguments):
    code, out, err = zipar("plan", "--model", text_model, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_frames_of_clips(zipar, clips_directory, plain):
    code, out, err = zipar("plan", "--model", clips_directory, "--window", 2)
    assert (code, err) == (0, "")
    assert "8x8 pixels (height x width), 3 frames of 4 x 4 tokens" in out
    expected = "raster 48 0.0% 1.00 zipar:2 36 25.0% 1.33 zipar:2:wave 30 37.5% 1.60 zipar:2:wave@4 18 62.5% 2.67"
    assert expected in plain(out)
    wave = out.splitlines()[-4:]
    assert wave == [
        "  ▒▒▒▒▒▒▒▒  ▒▒▒▒▒▒▒▒  ██· · · ",
        "  ▒▒▒▒▒▒▒▒  ▒▒▒▒██·   · · · · ",
        "  ▒▒▒▒▒▒▒▒  ██· · ·   · · · · ",
        "  ▒▒▒▒██·   · · · ·   · · · · ",
    ]


def test_given_frames_and_clips_past_the_context(zipar, clips_directory, plain):
    arguments = ("--frames", 5, "--given-frames", 2, "--frame-delay", 1, "--window", 1)
    code, out, _ = zipar("plan", "--model", clips_directory, *arguments, "--json")
    assert code == 0
    plan = json.loads(out)
    # one frame after two given ones, then two that go on from the last
    assert plan["decodings"] == [
        {"frames": 3, "given": 2, "tokens": 16},
        {"frames": 3, "given": 1, "tokens": 32},
    ]
    passes = {row["strategy"]: row["forward_passes"] for row in plan["strategies"]}
    assert passes == {"raster": 48, "zipar:1": 10 * 3, "zipar:1:wave": 7 * 3, "zipar:1:wave@1": 7 + 8}
    assert "3 frames of 4 x 4 tokens, 2 of them given; then 1 decoding that goes on" in plain(
        zipar("plan", "--model", clips_directory, *arguments)[1]
    )


def test_what_is_planned_is_what_it_takes(zipar, clips_directory, tmp_path):
    assert zipar("generate", "a bird", "-m", clips_directory, "-o", "start.webp")[0] == 0
    planned = json.loads(
        zipar("plan", "-m", clips_directory, "--frames", 6, "--given-frames", 1, "--window", 2, "--json")[1]
    )
    for row in planned["strategies"]:
        kind, *rest = row["strategy"].partition("@")[0].split(":")
        options = ["--strategy", kind]
        options += ["--window", rest[0]] if rest else []
        options += ["--first-row", "wave"] if "wave" in rest else []
        options += ["--frame-delay", 4] if "@" in row["strategy"] else []
        given = ("--frames", 6, "--given", "start.webp", "--given-frames", 1)
        assert zipar("generate", "a fox", "-m", clips_directory, *given, *options, "--stats", "x.json")[0] == 0
        stats = json.loads((tmp_path / "x.json").read_text())
        assert (stats["strategy"], stats["forward_passes"]) == (row["strategy"], row["forward_passes"])


@pytest.mark.parametrize(
    "arguments", [["--frames", "0"], ["--given-frames", "3"], ["--frame-delay", "0"], ["--size", "16x16"]], ids=" ".join
)
def test_bad_options_of_clips_end_in_one_line(zipar, clips_directory, arguments):
    code, out, err = zipar("plan", "--model", clips_directory, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("arguments", [["--frames", "2"], ["--given-frames", "1"]], ids=" ".join)
def test_images_have_no_frames(zipar, text_model, arguments):
    code, out, err = zipar("plan", "--model", text_model, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "makes images" in err
