import json
import shutil
from pathlib import Path

import pytest


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
    "arguments", [["--window", "0"], ["--size", "8x8"], ["--size", "8"], ["--model", "nowhere"]], ids=" ".join
)
def test_bad_options_end_in_one_line(zipar, text_model, arguments):
    code, out, err = zipar("plan", "--model", text_model, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
