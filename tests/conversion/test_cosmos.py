import json

import pytest
import torch
from safetensors.torch import load_file

import zipar
from zipar.conversion import cosmos
from zipar.conversion.cosmos import convert
from zipar.models import auto

YARN = (3, 40)


def published(model):
    """The tensors of a decoder, named as they are published, and what training in eight bits leaves."""
    weights = {f"model.{name}": value for name, value in model.decoder.state_dict().items()}
    extra = dict.fromkeys(["model.norm._extra_state", "model.layers.0.attention._extra_state"])
    return {**weights, **extra}


@pytest.fixture(scope="module")
def sources(cosmos_models, publish_cosmos_tokenizer, tmp_path_factory):
    """model.pt and the tokenizer, in small."""
    folder, model = tmp_path_factory.mktemp("published"), cosmos_models("yarn")
    torch.save(published(model), folder / "model.pt")
    publish_cosmos_tokenizer(folder / "halves", model.image_tokenizer)
    publish_cosmos_tokenizer(folder / "whole", model.image_tokenizer, halves=False)
    publish_cosmos_tokenizer(folder / "first release", model.image_tokenizer, idle=True)
    return folder


@pytest.fixture(autouse=True)
def sizes(monkeypatch):
    """Of which the tiny one is published too."""
    monkeypatch.setitem(cosmos.PUBLISHED, (2, 48), (YARN, 0.9))


@pytest.mark.parametrize("tokenizer", ["halves", "whole", "first release"])
def test_of_a_model_and_its_tokenizer(sources, out, cosmos_models, tokenizer, monkeypatch):
    monkeypatch.setattr(torch._C, "import_ir_module", None)  # what compiles an archive's code
    assert convert(sources / "model.pt", sources / tokenizer, out) == {torch.float32}
    tiny = cosmos_models("yarn")
    model = auto.load(out, device="cpu")
    assert model.family == "cosmos"
    assert model.defaults == zipar.Sampling(temperature=1.0, top_p=0.9)
    assert (model.image_size, model.frames, model.decoder.config.trained) == ((640, 1024), 33, [3, 40])
    for made, given in ((model.decoder, tiny.decoder), (model.image_tokenizer, tiny.image_tokenizer)):
        weights = made.state_dict()
        assert weights.keys() == given.state_dict().keys()
        assert all(value.equal(weights[name]) for name, value in given.state_dict().items())
    assert {path.name for path in (out / "decoder").iterdir()} == {
        f"{part}.safetensors" for part in ("tok_embeddings", "layers.0", "layers.1", "norm", "output")
    }


def test_the_whole_of_it_reads_and_paints_frames(sources, out):
    convert(sources / "model.pt", sources / "halves", out)
    model = auto.load(out, device="cpu")
    with torch.inference_mode():
        codes = model.read(torch.randint(256, (1, 1, 640, 1024, 3), dtype=torch.uint8))
        assert codes.shape == (1, 1, 40, 64)
        assert model.pixels(codes).shape == (1, 1, 640, 1024, 3)
    assert auto.outline(out).clip(640, 1024, 33, 9).slots == 12800


def test_number_formats(sources, out, tmp_path, cosmos_models):
    weights = published(cosmos_models("yarn"))
    weights = {name: value if value is None else value.bfloat16() for name, value in weights.items()}
    torch.save({"model": weights}, tmp_path / "model.pt")
    assert convert(tmp_path / "model.pt", sources / "halves", out) == {torch.bfloat16}
    stored = load_file(out / "decoder" / "layers.1.safetensors")
    assert all(value.equal(weights[f"model.{name}"]) for name, value in stored.items())
    assert {value.dtype for value in load_file(out / "video_tokenizer.safetensors").values()} == {torch.float32}
    assert auto.load(out, device="cpu").dtype == torch.float32
    assert auto.load(out, torch.bfloat16, "cpu").dtype == torch.bfloat16


def test_stored_in_another_number_format(sources, out):
    assert convert(sources / "model.pt", sources / "halves", out, dtype=torch.bfloat16) == {torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop("model.norm.weight"), r"model.pt lacks 1 of the 25 tensors.*norm.weight"),
        (lambda held: held.update({"model.more": torch.ones(1)}), "holds 1 tensors that do not belong, such as more"),
        (lambda held: held.update({"model.norm.weight": torch.ones(3)}), r"norm.weight is of shape \(3,\)"),
        (lambda held: held.pop("model.layers.0.attention.q_norm.weight"), "model.pt is no Cosmos decoder: it has no"),
        (
            lambda held: held.update({"model.layers.0.cross_attention.wq.weight": torch.ones(2, 2)}),
            r"reads text \(Video2World\): give a base model, 4B or 12B",
        ),
        (lambda held: held.clear(), "holds no weights"),
    ],
)
def test_of_other_models(sources, out, tmp_path, cosmos_models, change, message):
    weights = published(cosmos_models("yarn"))
    change(weights)
    torch.save(weights, tmp_path / "model.pt")
    with pytest.raises(zipar.ZipARError, match=message):
        convert(tmp_path / "model.pt", sources / "halves", out)
    assert not out.exists()


def test_of_sizes_that_are_not_published(sources, out, monkeypatch):
    monkeypatch.delitem(cosmos.PUBLISHED, (2, 48))
    with pytest.raises(zipar.ZipARError, match=r"\(2 layers, 48 wide\): give one of 16 layers, 4096 wide or 40 layers"):
        convert(sources / "model.pt", sources / "halves", out)


def test_of_a_tokenizer_of_other_codes(sources, out, tmp_path, cosmos_models):
    weights = published(cosmos_models("yarn"))
    for name in ("model.tok_embeddings.weight", "model.output.weight"):
        weights[name] = weights[name][:48].clone()
    torch.save(weights, tmp_path / "model.pt")
    with pytest.raises(zipar.ZipARError, match=r"do not belong together: the decoder knows 48 tokens, .* 60$"):
        convert(tmp_path / "model.pt", sources / "halves", out)


def test_of_incomplete_tokenizers(sources, out, tmp_path):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "encoder.jit").write_bytes((sources / "halves" / "encoder.jit").read_bytes())
    with pytest.raises(zipar.ZipARError, match=r"decoder.jit is missing: give the published one"):
        convert(sources / "model.pt", tmp_path / "half", out)
    (tmp_path / "half" / "decoder.jit").write_bytes((sources / "halves" / "encoder.jit").read_bytes())
    with pytest.raises(zipar.ZipARError, match=r"half lacks \d+ of the \d+ tensors expected, such as decoder"):
        convert(sources / "model.pt", tmp_path / "half", out)
    (tmp_path / "half" / "encoder.jit").write_bytes((sources / "halves" / "decoder.jit").read_bytes())
    (tmp_path / "half" / "decoder.jit").write_bytes((sources / "halves" / "decoder.jit").read_bytes())
    with pytest.raises(zipar.ZipARError, match=r"half is no Cosmos video tokenizer: it has no encoder.conv_in"):
        convert(sources / "model.pt", tmp_path / "half", out)


def test_checkpoints_that_lack_a_file_or_hold_a_damaged_one(sources, out):
    convert(sources / "model.pt", sources / "halves", out)
    layer = out / "decoder" / "layers.1.safetensors"
    whole = layer.read_bytes()
    layer.write_bytes(whole[:-9])
    with pytest.raises(zipar.ZipARError, match=r"layers.1.safetensors is damaged .*: fetch or convert it again"):
        auto.load(out, device="cpu")
    layer.unlink()
    with pytest.raises(zipar.ZipARError, match=r"decoder lacks 11 of the 25 tensors expected, such as layers.1.att"):
        auto.load(out, device="cpu")
    layer.write_bytes(whole)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "decoder": {}}))
    with pytest.raises(zipar.ZipARError, match="is no checkpoint that can be read"):
        auto.load(out, device="cpu")


def test_results_are_written_whole_or_not_at_all(sources, check_written):
    check_written(lambda out: convert(sources / "model.pt", sources / "halves", out))


def test_a_place_that_is_taken(sources, tmp_path):
    with pytest.raises(zipar.ZipARError, match="exists already"):
        convert(sources / "model.pt", sources / "halves", tmp_path.parent)
