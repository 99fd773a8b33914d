import csv
import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from zipar import Video
from zipar.evaluation.fid import Moments
from zipar.evaluation.judge import Judge, JudgeConfig

FILES = ["images.png", "curves.png", "report.csv", "report.json", "report.md"]
PROMPTS = ["a fox on a blue background", "an apple", "a red fox", "an apple on a green background"]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n\n".join(PROMPTS) + "\n")
    return path


@pytest.fixture
def evaluate(zipar, text_model, prompts):
    return lambda *args: zipar("eval", prompts, "--model", text_model, *args)


def figures(path):
    """A report without what a clock says."""
    record = json.loads(path.read_text())
    for row in record["strategies"]:
        for name in ("seconds", "images_per_second", "speedup"):
            assert row.pop(name) > 0
    return record


def test_files_and_table(evaluate, tmp_path, plain):
    code, out, err = evaluate("-s", "zipar:2", "-s", "jacobi:4", "--images", "6", "--seed", "5", "--output", "out")
    assert (code, err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(["batches", *FILES])
    record = figures(tmp_path / "out" / "report.json")
    assert record["prompts"] == [*PROMPTS, *PROMPTS[:2]]
    assert (record["seed"], record["sampling"]["guidance_scale"]) == (5, 2.0)
    raster, zipar, jacobi = record["strategies"]
    assert [raster["forward_passes"], zipar["forward_passes"]] == [64, 28]
    assert jacobi["gap"]["value"] == pytest.approx(0, abs=1e-6)  # the very images of raster order
    assert jacobi["excess"]["value"] == pytest.approx(raster["excess"]["value"], abs=1e-6)
    excess = zipar["excess"]
    assert f"{excess['value']:+.3f} ±{(excess['high'] - excess['low']) / 2:.3f}" in plain(out)
    assert f"{zipar['divergence']['value']:.4f}" in plain(out)
    assert zipar["gap"]["low"] < zipar["gap"]["value"] < zipar["gap"]["high"]
    with (tmp_path / "out" / "report.csv").open() as file:
        assert [row["strategy"] for row in csv.DictReader(file)] == ["raster", "zipar:2", "jacobi:4"]
    assert "zipar:2 28.0" in plain(out)
    assert out.endswith("out: report.json, report.csv, report.md, curves.png, images.png\n")
    for name in FILES[:2]:
        assert Image.open(tmp_path / "out" / name).width > 300


def test_the_embedded_model_with_its_judge(zipar, tmp_path, plain):
    code, _, err = zipar("eval", "-s", "zipar:1", "--images", "3", "--output", "out", "--batch-size", "3")
    assert (code, err) == (0, "")
    raster, narrow = figures(tmp_path / "out" / "report.json")["strategies"]
    assert raster["accuracy"].keys() >= {"object", "style", "background", "size", "position", "all"}
    print("RATIO", narrow.get("fid_ratio"), narrow["fid"], raster["fid"])
    assert narrow["fid"]["low"] < narrow["fid"]["value"] < narrow["fid"]["high"]


def test_a_folder_of_pictures_on_features_of_the_judge(zipar, evaluate, text_model, tmp_path):
    shutil.copytree(text_model, tmp_path / "judged")
    torch.manual_seed(0)
    seen = {"object": ["fox", "apple"], "background": ["blue", "green"]}
    Judge(JudgeConfig(seen, 16, (8,), 4, 2)).save(tmp_path / "judged" / "judge")
    (tmp_path / "real").mkdir()
    model = ("--model", "judged")
    made = zipar("generate", "a red fox", *model, "--num-images", "5", "--quiet", "--output", "real/fox.png")
    assert made[0] == 0
    arguments = ["-s", "zipar:8", "--images", "4", "--output", "out", "--reference", "real", "--features", "judge"]
    code, _, err = evaluate(*model, *arguments)
    assert (code, err) == (0, "")
    raster, wide = figures(tmp_path / "out" / "report.json")["strategies"]
    for row in raster, wide:
        assert row["fid"]["value"] > 0
        assert 0 <= row["precision"] <= 1
        assert 0 <= row["recall"] <= 1
    assert "precision" in (tmp_path / "out" / "report.md").read_text()


def test_networks_that_are_not_at_hand(evaluate, tmp_path, monkeypatch):
    for name in ("torch_fidelity", "efficientnet_lite_pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "real").mkdir()
    for features, named in (
        ([], "zipar-torch[fid]"),
        (["--features", "inception"], "zipar-torch[fid]"),
        (["--features", "efficientnet"], "zipar-torch[efficientnet]"),
        (["--features", "judge"], "use inception or efficientnet"),
    ):
        code, out, err = evaluate("--reference", "real", *features)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert named in err


def test_killed_and_run_again_gives_the_same_report(evaluate, prompts, text_model, tmp_path):
    """Killed outright after some batches; the report is that of a run that was let alone."""
    arguments = ["-s", "zipar:2", "-s", "adaptive:1", "--images", "16", "--batch-size", "2"]
    command = [sys.executable, "-m", "zipar.cli.main", "eval", prompts, "--model", text_model, *arguments]
    batches = tmp_path / "killed" / "batches"
    with subprocess.Popen([*command, "--output", "killed"], cwd=tmp_path) as process:
        while len(list(batches.glob("*.npz"))) < 3:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    done = {path: path.stat().st_mtime_ns for path in batches.glob("*.npz")}
    assert 3 <= len(done) < 24
    assert not (tmp_path / "killed" / "report.json").exists()
    for folder in ("killed", "whole"):
        code, _, err = evaluate(*arguments, "--output", folder)
        assert (code, err) == (0, "")
    assert figures(tmp_path / "killed" / "report.json") == figures(tmp_path / "whole" / "report.json")
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-s", "zipar:0"], "window 0"),
        (["-s", "raster"], "raster order alone leaves nothing to compare"),
        (["--images", "1"], "--images"),
        (["--batch-size", "0"], "--batch-size"),
        (["--output", "prompts.txt"], "prompts.txt is no directory"),
        (["--reference", "nowhere"], "nowhere"),
        (["--features", "judge"], "--reference"),
        (["--features", "vgg"], "--features"),
        (["--temperature", "-1"], "temperature -1.0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_end_in_one_line(evaluate, tmp_path, arguments, named):
    code, out, err = evaluate(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert named in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "cannot be read: give a UTF-8 text file with a prompt a line"),
        (b"\n \n", "holds no prompt"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"a fox\na purple house", "no object that the model knows"),
        (b"a fox", "a single image says nothing"),
    ],
)
def test_bad_prompt_files_end_in_one_line(zipar, text_model, tmp_path, content, named):
    if content is not None:
        (tmp_path / "bad.txt").write_bytes(content)
    code, out, err = zipar("eval", "bad.txt", "--model", text_model)
    assert (code, out) == (2, "")
    assert named in err
    assert err.count("\n") == 1


@pytest.fixture
def evaluate_clips(zipar, clips_directory, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red fox\na bird\n")
    arguments = ("eval", "prompts.txt", "--model", clips_directory, "--images", "3", "--output", "out")
    return lambda *args: zipar(*arguments, *args)


def test_clips(evaluate_clips, tmp_path):
    code, _, err = evaluate_clips()
    assert (code, err) == (0, "")
    record = figures(tmp_path / "out" / "report.json")
    assert (record["frames"], record["given_frames"]) == (3, 0)
    rows = {row["strategy"]: row for row in record["strategies"]}
    assert list(rows) == ["raster", "zipar:4", "zipar:2", "zipar:12:16:4:wave", "jacobi:32", "zipar:4:wave@4"]
    assert [rows[name]["forward_passes"] for name in ("raster", "zipar:2", "zipar:4:wave@4")] == [48, 36, 24]
    assert rows["jacobi:32"]["gap"]["value"] == pytest.approx(0, abs=1e-6)
    assert rows["zipar:4:wave@4"]["gap"]["value"] != pytest.approx(0, abs=1e-3)
    for name in FILES[:2]:
        assert Image.open(tmp_path / "out" / name).width > 300


def test_clips_against_real_ones_and_from_given_ones(evaluate_clips, tmp_path, monkeypatch):
    clips = np.random.default_rng(0).integers(0, 256, (5, 2, 8, 8, 3), np.uint8)
    for folder in ("real", "starts"):
        (tmp_path / folder).mkdir()
        for number, clip in enumerate(clips):
            Video([Image.fromarray(frame) for frame in clip], 8).save(tmp_path / folder / f"{number}.webp")

    class Inception:
        def __init__(self, device):
            pass

        def features(self, images):
            assert images.shape[1:] == (8, 8, 3)
            return torch.from_numpy(images).float().mean((1, 2))

    monkeypatch.setattr("zipar.evaluation.inception.Inception", Inception)
    arguments = ("-s", "zipar:2", "--given", "starts", "--given-frames", "1", "--reference", "real")
    code, _, err = evaluate_clips(*arguments)
    assert (code, err) == (0, "")
    record = figures(tmp_path / "out" / "report.json")
    assert (record["frames"], record["given_frames"]) == (3, 1)
    raster, zipar = record["strategies"]
    assert [raster["forward_passes"], zipar["forward_passes"]] == [32, 24]
    assert raster["fid"]["value"] > 0
    print("RATIO", zipar.get("fid_ratio"), zipar["fid"], raster["fid"])
    assert zipar["fid"]["low"] < zipar["fid"]["value"] < zipar["fid"]["high"]


def test_a_judge_sees_clips_whole(evaluate_clips, clips_directory, tmp_path):
    shutil.copytree(clips_directory, tmp_path / "judged")
    vocabulary = {
        "attributes": {"object": {"fox": ["fox"], "bird": ["bird"]}},
        "required": ["object"],
        "fillers": ["a", "red"],
        "example": "a fox",
    }
    (tmp_path / "judged" / "prompts.json").write_text(json.dumps(vocabulary))
    torch.manual_seed(0)
    Judge(JudgeConfig({"object": ["fox", "bird"]}, 8, (8,), 4, 2, frames=3)).save(tmp_path / "judged" / "judge")
    Moments.of(torch.randn(50, 4)).save(tmp_path / "judged" / "judge" / "reference.safetensors")
    code, _, err = evaluate_clips("--model", "judged", "-s", "zipar:2")
    assert (code, err) == (0, "")
    for row in figures(tmp_path / "out" / "report.json")["strategies"]:
        assert row["accuracy"]["object"]["value"] in (0, 1 / 3, 2 / 3, 1)
        assert row["fid"]["value"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frames", "4"], "--frames 3 at most"),
        (["--given", "absent"], "absent"),
        (["--given", "empty"], "neither videos nor pictures"),
        (["--given-frames", "1"], "--given"),
        (["--given", "uneven"], "do not make one batch"),
        (["--given", "uneven", "--given-frames", "2"], "a.webp holds 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_clips_cannot_go_on_from_ends_in_one_line(evaluate_clips, tmp_path, arguments, message):
    for folder in ("empty", "uneven"):
        (tmp_path / folder).mkdir()
    for name, frames in (("a", 1), ("b", 2)):
        Video([Image.new("RGB", (8, 8), (90 * i,) * 3) for i in range(frames)], 8).save(f"uneven/{name}.webp")
    code, out, err = evaluate_clips("-s", "zipar:2", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_both_grids_of_glm_image(zipar, prompts, glm_pipeline_directory, tmp_path):
    asked = ("--model", glm_pipeline_directory, "--size", "64x96", "--images", 2, "--temperature", 1, "--top-k", 0)
    assert zipar("eval", prompts, *asked, "-s", "zipar:1", "-o", "out")[0] == 0
    raster, zipar_1 = json.loads((tmp_path / "out" / "report.json").read_text())["strategies"]
    assert [raster["forward_passes"], zipar_1["forward_passes"]] == [13 * 19 + 2 * 3, 2 * 19 + 11 + 2 * 3]
    assert zipar_1["gap"]["value"] > 0.2
    assert Image.open(tmp_path / "out" / "images.png").width > 2 * 96
