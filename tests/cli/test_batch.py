"""``zipar batch``: what it says, and what it refuses before anything is loaded."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from zipar import pipeline
from zipar.videos import Video


def records(out):
    found = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert len({record["id"] for record in found}) == len(found)
    return {record["id"]: record for record in found}


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_told_to_end_it_ends_in_order(text_model, tmp_path, zipar):
    write(tmp_path / "prompts.jsonl", [{"prompt": "a fox on blue"}] * 4000)
    command = [sys.executable, "-m", "zipar", "batch", tmp_path / "prompts.jsonl", tmp_path / "out", "-m", text_model]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)
    while not list((tmp_path / "out").glob("*.png")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not list((tmp_path / "out").glob(".zipar/*.tries"))
    assert 0 < len(records(tmp_path / "out")) < 4000


def test_a_shard(zipar, text_model, tmp_path):
    write(tmp_path / "prompts.jsonl", [{"prompt": "a fox on blue"}] * 5)
    for part, mine in (("1/2", {"1", "3", "5"}), ("2/2", {"2", "4"})):
        code, out, err = zipar("batch", "prompts.jsonl", "out", "-m", text_model, "--shard", part, "--seed", 7)
        assert (code, err) == (0, "")
        assert out == f"out: {len(mine)} images\n"
        lines = (tmp_path / "out" / f"manifest-{part[0]}-of-2.jsonl").read_text().splitlines()
        found = {record["id"]: record for record in map(json.loads, lines)}
        assert found.keys() == mine
        assert all(record["seed"] == 6 + int(id) for id, record in found.items())


def test_clips(zipar, clips_directory, tmp_path):
    write(tmp_path / "prompts.jsonl", [{"id": "fox", "prompt": "a red fox", "seed": 7}])
    assert zipar("batch", "prompts.jsonl", "out", "-m", clips_directory, "-q", "-s", "zipar:2") == (0, "", "")
    made = pipeline(clips_directory)("a red fox", seed=7, strategy="zipar:2").videos[0]
    found = Video.load(tmp_path / "out" / "fox.png")
    assert found.fps == made.fps
    assert np.array_equal(np.stack(found.frames), np.stack(made.frames))
    told = json.loads(Image.open(tmp_path / "out" / "fox.png").text["zipar"])
    assert told.items() <= records(tmp_path / "out")["fox"].items()


def test_options_are_defaults(zipar, text_model, tmp_path):
    write(tmp_path / "prompts.jsonl", [{"prompt": "a fox on blue"}, {"prompt": "a dog"}])
    options = ("--strategy", "raster", "--guidance-scale", 3, "--negative-prompt", "an apple", "--size", "16x16")
    assert zipar("batch", "prompts.jsonl", "out", "-m", text_model, "-q", *options) == (1, "", "")
    found = records(tmp_path / "out")
    assert "error" in found["2"]  # the model knows none
    assert found["1"]["strategy"] == "raster"
    assert (found["1"]["guidance_scale"], found["1"]["negative_prompt"]) == (3.0, "an apple")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--shard", "0/4"), "error: shard '0/4' is none: use 1/N to N/N, such as 3/8\n"),
        (("--shard", "5/4"), "error: shard '5/4' is none"),
        (("--workers", "2"), "error: --workers 2 are of a Ray cluster: add --ray\n"),
        (("--strategy", "spiral"), "error: strategy 'spiral' is unknown"),
        (("--top-p", "7"), "error: top_p 7.0 is not possible"),
        (("--model", "nowhere"), "error: nowhere is no checkpoint"),
    ],
)
def test_what_is_refused(zipar, text_model, tmp_path, options, said):
    write(tmp_path / "prompts.jsonl", [{"prompt": "a fox on blue"}])
    code, out, err = zipar("batch", "prompts.jsonl", "out", "-m", text_model, *options)
    assert (code, out) == (2, "")
    assert err.startswith(said)


def test_files_that_are_none(zipar, tmp_path):
    for name, content in (("a.txt", "a fox\na dog\n"), ("empty", ""), ("twice", '{"id": 1, "prompt": "x"}\n' * 2)):
        (tmp_path / name).write_text(content)
        code, out, err = zipar("batch", name, "out")
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {name}")
        assert err.count("\n") == 1
    (tmp_path / "file").touch()
    assert zipar("batch", "a.txt", "file")[2].startswith("error: file cannot be made: ")
    assert zipar("batch", "missing", "out")[2].startswith("error: missing cannot be read: No such file")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [("batch", "prompts.jsonl", "out"), ("serve",)])
def test_ray_under_torchrun(zipar, monkeypatch, command):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    code, _, err = zipar(*command, "--ray")
    assert code == 2
    assert err.startswith("error: --ray is not possible under torchrun")
