import pytest
import torch

from zipar import ZipARError


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What the conversion is asked for; it refuses an OUT that exists."""
    calls = []

    def convert(*args, **options):
        calls.append((args, options))
        if args[-1].exists():
            raise ZipARError(f"{args[-1]} exists already:\ngive a new directory")
        return {torch.float32, torch.bfloat16}

    monkeypatch.setattr("zipar.conversion.llamagen.convert", convert, raising=False)
    for name in ("gpt.pt", "vq.pt"):
        (tmp_path / name).touch()
    (tmp_path / "t5").mkdir()
    return calls


def test_arguments_reach_the_conversion(zipar, calls):
    code, out, err = zipar("convert", "llamagen", "gpt.pt", "vq.pt", "out", "--image-size", 384)
    assert (code, err) == (0, "")
    assert out == "out: weights stored in bfloat16 and float32; try `zipar generate PROMPT --model out`\n"
    code, *_ = zipar(
        *("convert", "llamagen", "gpt.pt", "vq.pt", "t5", "out"),
        *("--image-size", 256, "--heads", 20, "--dtype", "float16"),
    )
    assert code == 0
    assert zipar("convert", "llamagen", "gpt.pt", "vq.pt", "out")[0] == 0
    (first, options), (second, more), (_, least) = calls
    assert [path and str(path) for path in first] == ["gpt.pt", "vq.pt", None, "out"]
    assert options == {"image_size": 384, "heads": None, "dtype": None}
    assert [str(path) for path in second] == ["gpt.pt", "vq.pt", "t5", "out"]
    assert more == {"image_size": 256, "heads": 20, "dtype": torch.float16}
    assert least["image_size"] is None


def test_arguments_reach_the_conversion_of_emu3(zipar, calls, monkeypatch, tmp_path):
    received = []

    def convert(*args, **options):
        received.append((args, options))
        return {torch.float16}

    monkeypatch.setattr("zipar.conversion.emu3.convert", convert)
    for name in ("model", "vision"):
        (tmp_path / name).mkdir()
    code, out, err = zipar("convert", "emu3", "model", "vision", "out")
    assert (code, err) == (0, "")
    assert "--model out" in out
    assert zipar("convert", "emu3", "model", "vision", "out", "--dtype", "float32")[0] == 0
    assert [[str(path) for path in args] for args, _ in received] == [["model", "vision", "out"]] * 2
    assert [options for _, options in received] == [{"dtype": None}, {"dtype": torch.float32}]
    for arguments in (["model", "out"], ["model", "nowhere", "out"], ["model", "gpt.pt", "out"]):
        code, out, err = zipar("convert", "emu3", *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1


def test_arguments_reach_the_conversion_of_emu35(zipar, calls, monkeypatch, tmp_path):
    from zipar.models.emu35 import GENERAL, IMAGE

    received = []

    def convert(*args, **options):
        received.append(([str(path) for path in args], options))
        return {torch.bfloat16}

    monkeypatch.setattr("zipar.conversion.emu35.convert", convert)
    for name in ("model", "vision", "words"):
        (tmp_path / name).mkdir()
    code, out, err = zipar("convert", "emu3.5", "model", "vision", "out")
    assert (code, err) == (0, "")
    assert "--model out" in out
    assert zipar("convert", "emu3.5-image", "model", "vision", "words", "out", "--dtype", "bfloat16")[0] == 0
    assert [args for args, _ in received] == [["model", "vision", "out"]] * 2
    (general, image) = (options for _, options in received)
    assert general == {"words": None, "sampling": GENERAL, "dtype": None}
    assert str(image.pop("words")) == "words"
    assert image == {"sampling": IMAGE, "dtype": torch.bfloat16}
    for arguments in (
        ["model", "out"],
        ["model", "vision", "nowhere", "out"],
        ["model", "vision", "words", "out", "x"],
    ):
        code, out, err = zipar("convert", "emu3.5", *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["gpt.pt", "vq.pt", "--image-size", "256"],
        ["gpt.pt", "vq.pt", "out", "--image-size", "300"],
        ["gpt.pt", "vq.pt", "out", "--image-size", "256", "--heads", "0"],
        ["gpt.pt", "vq.pt", "out", "--image-size", "256", "--dtype", "int4"],
        ["gpt.pt", "vq.pt", "t5", "--image-size", "256"],
        ["gpt.pt", "vq.pt", "vq.pt", "out", "--image-size", "256"],
        ["gpt.pt", "vq.pt", "t5", "out", "more", "--image-size", "256"],
        ["gpt.pt", "nowhere.pt", "out", "--image-size", "256"],
    ],
    ids=" ".join,
)
def test_bad_arguments_end_in_one_line(zipar, calls, arguments):
    code, out, err = zipar("convert", "llamagen", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_chameleons_reach_their_conversion(zipar, monkeypatch, tmp_path):
    from zipar.models.lumina_mgpt import Anole

    calls = []

    def convert(*args, **options):
        calls.append((args, options))
        return {torch.bfloat16}

    monkeypatch.setattr("zipar.conversion.lumina_mgpt.convert", convert)
    (tmp_path / "lumina").mkdir()
    (tmp_path / "vqgan.ckpt").touch()
    code, out, err = zipar("convert", "lumina-mgpt", "lumina", "vqgan.ckpt", "out", "--image-size", 768)
    assert (code, err) == (0, "")
    assert "--model out" in out
    assert zipar("convert", "anole", "lumina", "vqgan.ckpt", "out", "--dtype", "float32")[0] == 0
    monkeypatch.setattr("zipar.conversion.lumina_mgpt2.convert", convert)
    assert zipar("convert", "lumina-mgpt-2", "lumina", "vqgan.ckpt", "out", "--dtype", "bfloat16")[0] == 0
    (paths, lumina), (_, anole), second = calls
    assert second == (paths, {"dtype": torch.bfloat16})
    assert [str(path) for path in paths] == ["lumina", "vqgan.ckpt", "out"]
    assert lumina == {"image_size": 768, "dtype": None}
    assert anole == {"family": Anole, "dtype": torch.float32}
    for arguments in (["out", "--image-size", "300"], ["out"], ["--image-size", "768"]):
        code, _, err = zipar("convert", "lumina-mgpt", "lumina", "vqgan.ckpt", *arguments)
        assert (code, err.count("\n"), err[:7]) == (2, 1, "error: ")


@pytest.mark.parametrize(("family", "part"), [("liquid", "vqgan.ckpt"), ("simplear", "tokenizer")])
def test_language_models_reach_their_conversion(zipar, monkeypatch, tmp_path, family, part):
    calls = []

    def convert(*args, **options):
        calls.append((args, options))
        return {torch.bfloat16}

    monkeypatch.setattr(f"zipar.conversion.{family}.convert", convert)
    for name in ("model", "tokenizer"):
        (tmp_path / name).mkdir()
    (tmp_path / "vqgan.ckpt").touch()
    code, out, err = zipar("convert", family, "model", part, "out", "--dtype", "bfloat16")
    assert (code, err) == (0, "")
    assert out == "out: weights stored in bfloat16; try `zipar generate PROMPT --model out`\n"
    ((paths, options),) = calls
    assert [str(path) for path in paths] == ["model", part, "out"]
    assert options == {"dtype": torch.bfloat16}
    for arguments in (["vqgan.ckpt", part, "out"], ["model", part], ["model", "nowhere", "out"]):
        code, _, err = zipar("convert", family, *arguments)
        assert (code, err.count("\n"), err[:7]) == (2, 1, "error: ")


def test_commavq_reaches_its_conversion(zipar, monkeypatch, tmp_path):
    calls = []

    def convert(*args, **options):
        calls.append((args, options))
        return {torch.float32}

    monkeypatch.setattr("zipar.conversion.commavq.convert", convert)
    (tmp_path / "gpt2m").mkdir()
    code, out, err = zipar("convert", "commavq", "gpt2m", "out")
    assert (code, err) == (0, "")
    assert "weights stored in float32" in out
    assert zipar("convert", "commavq", "gpt2m", "out", "--dtype", "bfloat16")[0] == 0
    assert [[str(path) for path in args] for args, _ in calls] == [["gpt2m", "out"]] * 2
    assert [options for _, options in calls] == [{"dtype": None}, {"dtype": torch.bfloat16}]
    for arguments in (["gpt2m"], ["nowhere", "out"], ["gpt2m", "out", "more"]):
        code, _, err = zipar("convert", "commavq", *arguments)
        assert (code, err.count("\n"), err[:7]) == (2, 1, "error: ")


def test_cosmos_reaches_its_conversion(zipar, monkeypatch, tmp_path):
    calls = []

    def convert(*args, **options):
        calls.append((args, options))
        return {torch.bfloat16}

    monkeypatch.setattr("zipar.conversion.cosmos.convert", convert)
    (tmp_path / "model.pt").touch()
    (tmp_path / "tokenizer").mkdir()
    code, out, err = zipar("convert", "cosmos", "model.pt", "tokenizer", "out", "--dtype", "bfloat16")
    assert (code, err) == (0, "")
    assert out == 'out: weights stored in bfloat16; try `zipar.pipeline("out")("", given=frames)`\n'
    ((paths, options),) = calls
    assert [str(path) for path in paths] == ["model.pt", "tokenizer", "out"]
    assert options == {"dtype": torch.bfloat16}
    for arguments in (["tokenizer", "model.pt", "out"], ["model.pt", "tokenizer"], ["model.pt", "nowhere", "out"]):
        code, _, err = zipar("convert", "cosmos", *arguments)
        assert (code, err.count("\n"), err[:7]) == (2, 1, "error: ")


def test_janus_reaches_its_conversion(zipar, monkeypatch, tmp_path):
    calls = []

    def convert(*args, **options):
        calls.append((args, options))
        return {torch.bfloat16}

    monkeypatch.setattr("zipar.conversion.janus.convert", convert)
    monkeypatch.setattr("zipar.conversion.janus.template_of", lambda source: "janus-pro")
    (tmp_path / "published").mkdir()
    code, out, err = zipar("convert", "janus", "published", "out")
    assert (code, err) == (0, "")
    stored, template = out.splitlines()
    assert stored == "out: weights stored in bfloat16; try `zipar generate PROMPT --model out`"
    assert template == "out: prompts are put as janus-pro reads them (--template janus|janus-pro|janus-4o|t2i-r1)"
    more = ("--template", "t2i-r1", "--dtype", "float32")
    assert zipar("convert", "janus", "published", "out", *more)[0] == 0
    assert [[str(path) for path in args] for args, _ in calls] == [["published", "out"]] * 2
    assert [options for _, options in calls] == [
        {"template": "janus-pro", "dtype": None},
        {"template": "t2i-r1", "dtype": torch.float32},
    ]
    for arguments in (["published"], ["nowhere", "out"], ["published", "out", "--template", "emu3"]):
        code, _, err = zipar("convert", "janus", *arguments)
        assert (code, err.count("\n"), err[:7]) == (2, 1, "error: ")


def test_every_template_of_janus_is_an_option():
    from zipar.cli.convert import JanusTemplate
    from zipar.conversion.janus import ROLES

    assert {each.value for each in JanusTemplate} == ROLES.keys()
