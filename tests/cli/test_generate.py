import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import zipar as library
from zipar.cli import options, outputs
from zipar.decoding import names


@pytest.fixture
def generate(zipar, text_model):
    return lambda *args: zipar("generate", "a fox on a blue background", "--model", text_model, *args)


def test_one_image_with_everything(generate, tmp_path, text_model):
    files = ("--output", "fox.png", "--tokens", "fox.npy", "--stats", "fox.json", "--animate", "fox.gif")
    code, out, err = generate("--window", 2, "--seed", 7, *files)
    assert (code, err) == (0, "")
    assert out.startswith("fox.png: 28 forward passes instead of 64, ")

    expected = library.pipeline(text_model)("a fox on a blue background", strategy=library.ZipAR(2), seed=7)
    tokens = np.load("fox.npy")
    assert tokens.dtype == np.int32
    assert (tokens == expected.tokens).all()
    assert np.array_equal(Image.open("fox.png"), expected.images[0])
    stats = json.loads((tmp_path / "fox.json").read_text())
    assert stats.keys() >= expected.stats.to_dict().keys()
    assert stats["forward_passes"] == expected.stats.forward_passes == Image.open("fox.gif").n_frames
    assert (stats["strategy"], stats["seed"], stats["prompts"]) == ("zipar:2", 7, ["a fox on a blue background"])
    assert stats["sampling"] == {"guidance_scale": 2.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fox.gif", "fox.json", "fox.npy", "fox.png"]


def test_defaults_are_those_of_the_library(generate, tmp_path):
    assert generate("--stats", "fox.json")[0] == 0
    assert json.loads((tmp_path / "fox.json").read_text())["strategy"] == names.name(library.DEFAULT)
    assert names.name(library.DEFAULT) == options.DEFAULT_STRATEGY
    assert str(library.ZipAR().window) == options.DEFAULT_WINDOW
    assert (tmp_path / "zipar.png").exists()


def test_sampling_options_reach_the_model(generate, tmp_path):
    filters = ("--top-k", 5, "--top-p", 0.9, "--min-p", 0.05)
    given = ("--guidance-scale", 3, "--temperature", 0.5, *filters, "--negative-prompt", "an apple")
    code, _, err = generate(*given, "--size", "16x16", "--dtype", "bfloat16", "--device", "cpu", "--stats", "fox.json")
    assert (code, err) == (0, "")
    stats = json.loads((tmp_path / "fox.json").read_text())
    assert stats["sampling"] == {"guidance_scale": 3.0, "temperature": 0.5, "top_k": 5, "top_p": 0.9, "min_p": 0.05}
    assert (stats["negative_prompt"], stats["dtype"], stats["size"]) == ("an apple", "bfloat16", [16, 16])


def test_quantised_weights(generate, tmp_path, plain):
    if torch.backends.quantized.engine not in ("x86", "fbgemm"):
        pytest.skip("FBGEMM computes on x86 CPUs alone")
    assert generate("--quantize", "int8", "--device", "cpu", "--stats", "fox.json")[0] == 0
    assert json.loads((tmp_path / "fox.json").read_text())["quantize"] == "int8"
    code, _, err = generate("--quantize", "int4")
    assert code == 2
    assert "int8" in plain(err)


def test_raster_and_the_wave(generate, tmp_path):
    for arguments, name, passes in (
        (("--strategy", "raster"), "raster", 64),
        (("--window", 2, "--first-row", "wave"), "zipar:2:wave", 8 + 7 * 2),
    ):
        assert generate(*arguments, "--stats", "fox.json")[0] == 0
        stats = json.loads((tmp_path / "fox.json").read_text())
        assert (stats["strategy"], stats["forward_passes"]) == (name, passes)


def test_several_images_are_numbered_like_the_rows_of_the_tokens(zipar, text_model, tmp_path):
    prompts = ("a fox", "an apple on a green background")
    code, out, err = zipar("generate", *prompts, "-m", text_model, "-n", 2, "-o", "out.jpg", "--tokens", "out.npy")
    assert (code, out.split(":")[0]) == (0, "out-0.jpg ... out-3.jpg")
    assert err == "warning: words that the model does not know are passed over: an\n"
    assert sorted(path.name for path in tmp_path.glob("*.jpg")) == [f"out-{i}.jpg" for i in range(4)]
    assert np.load("out.npy").shape == (4, 8, 8)


def test_numbers_are_padded_so_that_names_sort(tmp_path):
    names = [path.name for path in outputs.numbered(tmp_path / "fox.png", 12)]
    assert names == sorted(names)
    assert (names[0], names[-1]) == ("fox-00.png", "fox-11.png")


def test_a_bar_on_a_terminal_and_silence_otherwise(generate, monkeypatch):
    assert generate("--quiet") == (0, "", "")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert "passes" in generate()[2]
    assert generate("--quiet") == (0, "", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--size", "0x0"],
        ["--size", "16"],
        ["--size", "16x"],
        ["--size", "-16x16"],
        ["--size", "32x32"],
        ["--window", "0"],
        ["--window", "-3"],
        ["--window", "wide"],
        ["--strategy", "diagonal"],
        ["--strategy", "raster", "--window", "4"],
        ["--first-row", "never"],
        ["--dtype", "int8"],
        ["--device", "toaster"],
        ["--device", "cuda:99"],
        ["--model", "nowhere"],
        ["--model", "."],
        ["--num-images", "0"],
        ["--num-images", "-1"],
        ["--seed", "-1"],
        ["--seed", str(2**63)],
        ["--seed", "lucky"],
        ["--guidance-scale", "-1"],
        ["--guidance-scale", "1", "--negative-prompt", "an apple"],
        ["--negative-prompt", " "],
        ["--temperature", "-1"],
        ["--temperature", "nan"],
        ["--top-k", "-1"],
        ["--top-p", "0"],
        ["--top-p", "1.5"],
        ["--min-p", "1.5"],
        ["--output", "fox"],
        ["--output", "fox.txt"],
        ["--output", "nowhere/fox.png"],
        ["--output", "folder.png"],
        ["--tokens", "fox.npz"],
        ["--stats", "fox.yaml"],
        ["--animate", "fox.mp4"],
        ["--frobnicate"],
    ],
    ids=" ".join,
)
def test_bad_options_end_in_one_line(generate, tmp_path, arguments):
    (tmp_path / "folder.png").mkdir()
    code, out, err = generate(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


@pytest.mark.parametrize("prompts", [[], [""], ["a fox", " \n"], ["a dragon"]], ids=str)
def test_bad_prompts_end_in_one_line(zipar, text_model, prompts):
    code, out, err = zipar("generate", *prompts, "--model", text_model)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_folders_that_cannot_be_written_are_found_before_the_model_loads(generate, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr("zipar.models.auto.load", None)
    code, _, err = generate("--output", "fox.png")
    assert code == 2
    assert "no permission" in err


def test_deterministic_images_are_recorded_and_the_same_with_others(generate, zipar, text_model):
    assert generate("--deterministic", "--tokens", "one.npy", "--stats", "one.json", "--seed", "4")[0] == 0
    assert json.loads(Path("one.json").read_text())["deterministic"] is True
    arguments = ("--deterministic", "--tokens", "two.npy", "--seed", "3", "--num-images", "2", "--no-cuda-graphs")
    assert generate(*arguments)[0] == 0
    assert (np.load("two.npy")[1] == np.load("one.npy")[0]).all()


@pytest.fixture
def clip(zipar, clips_directory):
    return lambda *args: zipar("generate", "a red fox", "--model", clips_directory, *args)


def test_a_clip_with_everything(clip, clips_directory, tmp_path):
    files = ("--output", "fox.webp", "--tokens", "fox.npy", "--stats", "fox.json", "--animate", "wave.gif")
    code, out, err = clip("--window", 2, "--frame-delay", 3, "--seed", 7, *files)
    assert (code, err) == (0, "")
    # a frame takes 2 * 4 + 2 * 2 passes, and each starts 3 after the one before
    assert out.startswith("fox.webp: 18 forward passes instead of 48, ")
    expected = library.pipeline(clips_directory)("a red fox", strategy="zipar:2@3", seed=7)
    tokens = np.load("fox.npy")
    assert tokens.shape == (1, 3, 4, 4)
    assert (tokens == expected.tokens).all()
    with Image.open("fox.webp") as file:
        assert (file.n_frames, file.size) == (3, (8, 8))
        for number, frame in enumerate(expected.videos[0].frames):
            file.seek(number)
            assert np.array_equal(file.convert("RGB"), frame)
    stats = json.loads((tmp_path / "fox.json").read_text())
    assert (stats["strategy"], stats["frames"], stats["given_frames"]) == ("zipar:2@3", 3, 0)
    assert stats["forward_passes"] == Image.open("wave.gif").n_frames == 18
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fox.json", "fox.npy", "fox.webp", "wave.gif"]


@pytest.mark.parametrize("name", ["fox.gif", "fox.webp", "fox.mp4", "fox.png"])
def test_files_of_clips(clip, clips_directory, tmp_path, name):
    if name == "fox.mp4":
        pytest.importorskip("av")
    assert clip("--output", name, "--fps", "5", "--quiet") == (0, "", "")
    made = library.Video.load(tmp_path / name)
    if name == "fox.png":
        assert made.frames[0].size == (24, 8)
    else:
        assert (len(made.frames), made.fps) == (3, pytest.approx(5))


def test_the_file_of_a_clip_is_a_gif_unless_named(clip, zipar, clips_directory, tmp_path):
    assert clip("--quiet") == (0, "", "")
    assert library.Video.load(tmp_path / "zipar.gif").fps == pytest.approx(8, abs=0.2)
    arguments = ("generate", "a red fox", "a bird", "-n", 2, "-q", "-m", clips_directory, "-o", "out.webp")
    assert zipar(*arguments) == (0, "", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [*(f"out-{i}.webp" for i in range(4)), "zipar.gif"]


def test_clips_go_on_from_files_and_past_the_context(clip, clips_directory, tmp_path):
    pipe = library.pipeline(clips_directory)
    start = pipe("a bird", seed=1).videos[0]
    start.save("start.webp")
    start.frames[1].save("one.png")
    for number, (arguments, given) in enumerate(
        [
            (("--given", "start.webp", "--given-frames", 2), start.frames[1:]),
            (("--given", "one.png"), start.frames[1:2]),
            (("--given", "one.png", "--given", "one.png"), [start.frames[1]] * 2),
        ]
    ):
        code, out, err = clip(
            *arguments, "--frames", 6, "-o", "x.webp", "--tokens", f"{number}.npy", "--stats", "x.json"
        )
        assert (code, err) == (0, "")
        expected = pipe("a red fox", given=given, frames=6)
        assert (np.load(f"{number}.npy") == expected.tokens).all()
        record = json.loads((tmp_path / "x.json").read_text())
        assert (record["frames"], record["given_frames"]) == (6, len(given))
        assert out.startswith(
            f"x.webp: {expected.stats.forward_passes} forward passes instead of {16 * (6 - len(given))}, "
        )
        assert len(library.Video.load("x.webp").frames) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "fox.jpg"], ".mp4 or .gif or .webp or .png"),
        (["--output", "fox"], ".mp4 or .gif or .webp or .png"),
        (["--fps", "0"], "fps"),
        (["--fps", "fast"], "fps"),
        (["--frames", "0"], "frames"),
        (["--given-frames", "1"], "--given"),
        (["--given", "absent.gif"], "absent.gif"),
        (["--given", "notes.txt"], "notes.txt"),
        (["--given", "large.png"], "9x8"),
        (["--given", "start.gif"], "3 are given"),
        (["--given", "start.gif", "--given-frames", "4"], "start.gif holds 3"),
        (["--frame-delay", "0"], "frame-delay"),
        (["--strategy", "raster", "--frame-delay", "2"], "frame delay 2"),
        (["--size", "16x16"], "16x16"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_of_clips_end_in_one_line(clip, tmp_path, plain, arguments, message):
    Path("notes.txt").write_text("a fox")
    Image.new("RGB", (8, 9)).save("large.png")
    library.Video([Image.new("RGB", (8, 8), (80 * i,) * 3) for i in range(3)], 8).save("start.gif")
    code, out, err = clip(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in plain(err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.png", "notes.txt", "start.gif"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-o", "x.mp4"],
        ["-o", "x.gif"],
        ["--frames", "2"],
        ["--fps", "8"],
        ["--given", "a.png"],
        ["--given-frames", "1"],
    ],
    ids=" ".join,
)
def test_models_of_images_refuse_options_of_clips(generate, tmp_path, arguments):
    Image.new("RGB", (16, 16)).save("a.png")
    code, out, err = generate(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_pyav_is_missed_before_the_model_loads(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr("zipar.models.auto.load", None)
    code, _, err = clip("-o", "fox.mp4")
    assert (code, err.count("\n")) == (2, 1)
    assert "zipar-torch[video]" in err


def test_models_without_words_take_no_prompt(zipar, clips_directory, monkeypatch, tmp_path):
    asked = ("generate", "-m", clips_directory, "-o", "x.gif", "-q")
    assert zipar(*asked)[0] == 2
    monkeypatch.setattr("zipar.models.clips.Clips.wordless", True)
    assert zipar(*asked) == (0, "", "")
    assert "takes no prompt" in zipar("prompts", "-m", clips_directory)[1]


def test_both_grids_of_glm_image(zipar, glm_pipeline_directory, tmp_path):
    asked = ("--model", glm_pipeline_directory, "--size", "64x96", "--window", 1, "--seed", 7)
    files = ("--tokens", "fox.npy", "--stats", "fox.json", "--animate", "fox.gif")
    code, out, err = zipar("generate", 'a "red" fox', *asked, *files, "--guidance-scale", 2)
    passes = 2 * 19 + 11 * 1 + 2 * 3
    assert (code, err) == (0, "")
    assert out.startswith(f"zipar.png: {passes} forward passes instead of {13 * 19 + 2 * 3}, ")
    expected = library.pipeline(glm_pipeline_directory, device="cpu")(
        'a "red" fox', strategy=library.ZipAR(1), seed=7, height=64, width=96, guidance_scale=2
    )
    assert np.array_equal(np.load("fox.npy"), expected.tokens)
    assert np.array_equal(Image.open("zipar.png"), expected.images[0])
    stats = json.loads((tmp_path / "fox.json").read_text())
    assert (stats["forward_passes"], stats["sampling"]["guidance_scale"]) == (passes, 2.0)
    assert Image.open("fox.gif").size[0] > 96
    code, out, err = zipar("generate", "fox", "--model", glm_pipeline_directory, "--negative-prompt", "bird")
    assert (code, out, err.count("\n")) == (2, "", 1)
