import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

import zipar
from zipar.conversion.commavq import convert
from zipar.image_tokenizers.commavq import CommaVQTokenizer
from zipar.image_tokenizers.vq import VQConfig
from zipar.models import auto

FILES = ("pytorch_model.bin", "encoder_pytorch_model.bin", "decoder_pytorch_model.bin")


@pytest.fixture(scope="module")
def gpt2():
    """The decoder as it was published: a GPT-2 of transformers, of 60 codes and 2 frames."""
    torch.manual_seed(0)
    shape = {"vocab_size": 61, "n_positions": 258, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=60, eos_token_id=60)).eval()


@pytest.fixture(scope="module")
def published(gpt2, tmp_path_factory):
    """The published files in small, with the masks that transformers stored at the time."""
    folder = tmp_path_factory.mktemp("commavq-gpt2m")
    gpt2.config.save_pretrained(folder)
    weights = gpt2.state_dict()  # whose head is its embeddings
    for layer in range(2):
        weights[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 258, 258, dtype=torch.uint8).tril()
        weights[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(weights, folder / FILES[0])
    torch.manual_seed(1)
    tokenizer = CommaVQTokenizer(VQConfig(60, 8, 32, (1, 1, 1, 1, 1), 1, 8))
    torch.save(tokenizer.encoder.state_dict(), folder / FILES[1])
    torch.save(tokenizer.decoder.state_dict(), folder / FILES[2])
    return folder


@pytest.fixture
def source(published, tmp_path):
    """Published files of one's own."""
    return shutil.copytree(published, tmp_path / "published")


class TestConversion:
    @torch.inference_mode()
    def test_loads_and_computes_what_transformers_does(self, published, gpt2, out):
        convert(published, out)
        model = auto.load(out, device="cpu")
        assert model.family == "commavq"
        assert (model.image_size, model.context, model.fps) == ((128, 256), 2, 20)
        tokens = torch.randint(0, 61, (1, 258), generator=torch.Generator().manual_seed(0))
        mask = torch.full((258, 258), float("-inf")).triu(1)
        logits = model.decoder(model.decoder.transformer.wte(tokens), torch.arange(258)[None], mask)
        torch.testing.assert_close(logits, gpt2(tokens).logits, atol=1e-4, rtol=0)

    def test_keeps_every_number_and_its_format(self, source, out):
        formats = {"transformer.ln_f.weight": torch.bfloat16, "transformer.h.0.attn.c_attn.weight": torch.float16}
        weights = torch.load(source / FILES[0])
        weights |= {name: weights[name].to(dtype) for name, dtype in formats.items()}
        torch.save(weights, source / FILES[0])
        assert convert(source, out) == {torch.float32, *formats.values()}
        stored = load_file(out / "decoder.safetensors")
        assert stored.keys() == {name for name in weights if not name.endswith((".attn.bias", ".masked_bias"))}
        for name, held in stored.items():
            assert held.dtype == weights[name].dtype
            assert held.equal(weights[name]) or held.equal(weights[name].T), name
        halves = load_file(out / "image_tokenizer.safetensors")
        for half, file in (("encoder", FILES[1]), ("decoder", FILES[2])):
            given = torch.load(source / file)
            assert {f"{half}.{name}" for name in given} == {name for name in halves if name.startswith(half)}
            assert all(halves[f"{half}.{name}"].equal(value) for name, value in given.items())

    def test_is_self_contained_and_as_small_as_told(self, source, out):
        assert convert(source, out, dtype=torch.bfloat16) == {torch.bfloat16}
        shutil.rmtree(source)
        assert {tensor.dtype for tensor in load_file(out / "decoder.safetensors").values()} == {torch.bfloat16}
        assert {tensor.dtype for tensor in load_file(out / "image_tokenizer.safetensors").values()} == {torch.float32}
        model = auto.load(out, torch.bfloat16, "cpu")
        assert (model.dtype, model.image_tokenizer.encoder.conv_in.weight.dtype) == (torch.bfloat16, torch.float32)

    @torch.inference_mode()
    def test_reads_and_paints_frames_of_the_published_size(self, published, out):
        convert(published, out)
        model = auto.load(out, device="cpu")
        frames = torch.randint(0, 256, (1, 2, 128, 256, 3), generator=torch.Generator().manual_seed(0)).byte()
        codes = model.read(frames)
        assert codes.shape == (1, 2, 8, 16)
        assert model.pixels(codes).shape == frames.shape


def test_files_are_whole_and_as_the_umask_has_them(published, check_written):
    check_written(lambda out: convert(published, out))


@pytest.mark.usefixtures("nothing_is_written")
class TestConversionOf:
    """Everything that is not what it should be: one clear error, and nothing written."""

    @pytest.mark.parametrize("name", FILES)
    def test_files_that_are_missing(self, source, out, name):
        (source / name).unlink()
        with pytest.raises(zipar.ZipARError, match=f"/{name} is no file: give the published one"):
            convert(source, out)

    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("kept", [0, 50, 5000, -1])
    def test_files_that_are_cut(self, source, out, name, kept):
        (source / name).write_bytes((source / name).read_bytes()[:kept])
        with pytest.raises(zipar.ZipARError, match=f"/{name} is damaged, or is no PyTorch checkpoint: fetch it again"):
            convert(source, out)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model_type": "llama"}, "type 'llama', not commaVQ's GPT-2: .*commaai/commavq-gpt2m"),
            ({"n_head": 5}, "config.json: n_head 5 does not fit a decoder 32 wide"),
            ({"n_head": None}, "config.json: n_head None does not fit"),
            ({"n_head": 0}, "n_head 0"),
        ],
    )
    def test_configs_of_something_else(self, source, out, change, message):
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(zipar.ZipARError, match=message):
            convert(source, out)

    @pytest.mark.parametrize(
        ("file", "name", "tensor", "message"),
        [
            (0, "transformer.wte.weight", None, "no decoder of commaVQ: it has no transformer.wte.weight"),
            (0, "transformer.wte.weight", torch.zeros(62, 32), "knows 61 tokens and the image tokenizer 60"),
            (0, "transformer.wpe.weight", torch.zeros(259, 32), "259 positions are no whole frames of 129"),
            (0, "transformer.wpe.weight", torch.zeros(258), r"transformer.wpe.weight is of shape \(258,\)"),
            (0, "lm_head.weight", None, "lacks 1 of the .* such as lm_head.weight"),
            (0, "transformer.h.1.attn.c_attn.weight", torch.zeros(96, 32), r"\(32, 96\), but should be \(96, 32\)"),
            (0, "transformer.h.1.attn.c_attn.weight", torch.zeros(3), r"of shape \(3,\), but should be \(96, 32\)"),
            (0, "transformer.h.1.mlp.c_fc.bias", torch.zeros(3), r"of shape \(3,\), but should be \(128,\)"),
            (0, "a.weight", torch.zeros(3), "holds 1 tensors that do not belong, such as a.weight"),
            (0, "a.weight", torch.zeros(3, dtype=torch.int64), "holds no weights: give a published file"),
            (0, 7, torch.zeros(3), "holds no weights: give a published file"),
            (1, "conv_in.weight", None, "no encoder of commaVQ: it has no conv_in.weight"),
            (1, "conv_in.weight", torch.zeros(24, 3, 3, 3), "encoder_pytorch_model.bin"),
            (1, "down.3.attn.0.q.weight", torch.zeros(3), "holds 1 tensors that do not belong"),
            (1, "quantize._embedding.weight", torch.zeros(59, 8), "knows 60 tokens and the image tokenizer 59"),
            (2, "up.4.attn.0.q.weight", None, "decoder_pytorch_model.bin lacks 1 of the"),
            (2, "conv_out.bias", torch.zeros(4), r"conv_out.bias is of shape \(4,\), but should be \(3,\)"),
        ],
    )
    def test_inconsistent_weights(self, source, out, file, name, tensor, message):
        weights = {**torch.load(source / FILES[file]), name: tensor}
        torch.save({key: value for key, value in weights.items() if value is not None}, source / FILES[file])
        with pytest.raises(zipar.ZipARError, match=message) as error:
            convert(source, out)
        assert "\n" not in str(error.value)

    def test_halves_of_the_image_tokenizer_that_took_each_other_s_place(self, source, out):
        shutil.copy(source / FILES[2], source / FILES[1])
        with pytest.raises(zipar.ZipARError, match="no encoder of commaVQ"):
            convert(source, out)

    def test_an_encoder_without_levels(self, source, out):
        weights = {name: value for name, value in torch.load(source / FILES[1]).items() if not name.startswith("down")}
        torch.save(weights, source / FILES[1])
        with pytest.raises(zipar.ZipARError, match=r"it has no down\.0\.block\.0\.conv1\.weight"):
            convert(source, out)


def test_conversion_never_touches_what_is_there(published, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(zipar.ZipARError, match="out exists already"):
        convert(published, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "mine"


class TestConverted:
    """Directories that ``convert`` makes, and what may be wrong with them."""

    @pytest.fixture
    def directory(self, published, tmp_path):
        convert(published, tmp_path / "converted")
        return tmp_path / "converted"

    def test_the_outline_needs_no_weights(self, directory):
        for path in directory.glob("*.safetensors"):
            path.unlink()
        outline = auto.outline(directory)
        assert outline.device.type == "meta"
        assert outline.clip(128, 256, 2, 1).tokens == 128

    @pytest.mark.parametrize("name", ["decoder", "image_tokenizer"])
    def test_files_that_are_missing_or_cut(self, directory, name):
        file = directory / f"{name}.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(zipar.ZipARError, match=f"{name}.safetensors is damaged"):
            auto.load(directory, device="cpu")
        file.unlink()
        with pytest.raises(zipar.ZipARError, match=f"{name}.safetensors is missing"):
            auto.load(directory, device="cpu")

    @pytest.mark.parametrize(
        "change",
        [{"decoder": {"a": 1}}, {"decoder": {"heads": 3}}, {"sampling": {"top_k": -1}}, {"image_tokenizer": 3}],
    )
    def test_a_config_that_is_wrong(self, directory, change):
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(zipar.ZipARError):
            auto.load(directory, device="cpu")
