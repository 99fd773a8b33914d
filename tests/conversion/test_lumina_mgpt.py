import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ChameleonForConditionalGeneration

import zipar
from zipar.conversion.lumina_mgpt import convert


@pytest.fixture
def sources(lumina_files, tmp_path):
    """Published files of one's own: lumina, the directory of the model, and vqgan.ckpt."""
    return shutil.copytree(lumina_files("7b"), tmp_path / "published")


def published(lumina):
    return {name: tensor for file in lumina.glob("*.safetensors") for name, tensor in load_file(file).items()}


class TestConversion:
    def test_repeats_each_shards_norm_for_its_heads_and_keeps_the_rest(self, sources, out):
        convert(sources / "lumina", sources / "vqgan.ckpt", out, image_size=96, dtype=torch.float32)
        given, stored = published(sources / "lumina"), published(out / "decoder")
        image = {name for name in stored if name.startswith("model.vqmodel.")}
        assert stored.keys() - image == given.keys()
        for name, tensor in given.items():
            repeated = tensor[[0, 0, 1, 1]] if "q_norm" in name or "k_norm" in name else tensor
            assert stored[name].equal(repeated)

    def test_gives_transformers_a_whole_chameleon(self, sources, out):
        convert(sources / "lumina", sources / "vqgan.ckpt", out, image_size=96)
        model, loading = ChameleonForConditionalGeneration.from_pretrained(out / "decoder", output_loading_info=True)
        assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        encoder = torch.load(sources / "vqgan.ckpt")["state_dict"]["encoder.conv_in.weight"]
        assert model.model.vqmodel.encoder.conv_in.weight.equal(encoder)
        assert model.dtype == torch.float32

    def test_keeps_the_number_format_of_each_tensor(self, sources, out):
        (first, second), formats = sorted((sources / "lumina").glob("*.safetensors")), (torch.bfloat16, torch.float16)
        for file, dtype in zip((first, second), formats, strict=True):
            save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file, {"format": "pt"})
        assert convert(sources / "lumina", sources / "vqgan.ckpt", out, image_size=96) == set(formats)
        given, stored = published(sources / "lumina"), published(out / "decoder")
        assert all(stored[name].dtype == tensor.dtype for name, tensor in given.items())
        assert json.loads((out / "decoder" / "config.json").read_text())["dtype"] == "float32"  # holds both

    def test_is_self_contained_and_as_small_as_told(self, sources, out):
        formats = convert(sources / "lumina", sources / "vqgan.ckpt", out, image_size=96, dtype=torch.bfloat16)
        assert formats == {torch.bfloat16}
        shutil.rmtree(sources)
        assert {tensor.dtype for tensor in load_file(out / "image_tokenizer.safetensors").values()} == {torch.float32}
        decoder = {tensor.dtype for name, tensor in published(out / "decoder").items() if "vqmodel" not in name}
        assert decoder == {torch.bfloat16}
        pipe = zipar.pipeline(out, dtype=torch.bfloat16, device="cpu")
        assert pipe.model.image_size == (96, 96)
        assert pipe("a red fox", height=64, width=96).images[0].size == (96, 64)

    def test_of_one_file_whose_vocabulary_is_the_tokenizers(self, sources, out):
        lumina = sources / "lumina"
        weights = published(lumina)
        for file in [*lumina.glob("*.safetensors"), lumina / "model.safetensors.index.json"]:
            file.unlink()
        encoder = {"model.vqmodel.encoder.conv_in.weight": torch.zeros(3)}  # vqgan.ckpt has it
        save_file(weights | encoder, lumina / "model.safetensors")
        config = json.loads((lumina / "config.json").read_text())
        (lumina / "config.json").write_text(json.dumps({**config, "vocabulary_map": None, "auto_map": {"a": "b.c"}}))
        convert(lumina, sources / "vqgan.ckpt", out, image_size=96)
        assert zipar.pipeline(out, device="cpu").model.names["fox"] == 8915
        assert "auto_map" not in json.loads((out / "decoder" / "config.json").read_text())


def test_files_of_a_conversion_are_whole_and_as_the_umask_has_them(lumina_files, check_written):
    sources = lumina_files("7b")
    check_written(lambda out: convert(sources / "lumina", sources / "vqgan.ckpt", out, image_size=96))


@pytest.mark.usefixtures("nothing_is_written")
class TestConversionOf:
    """Everything that is not what it should be: one clear error, and nothing written."""

    @pytest.fixture
    def fails(self, sources, out):
        def run(message, image_size=96):
            with pytest.raises(zipar.ZipARError, match=message) as error:
                convert(sources / "lumina", sources / "vqgan.ckpt", out, image_size=image_size)
            assert "\n" not in str(error.value)

        return run

    @pytest.mark.parametrize("size", [0, -32, 100])
    def test_wrong_sizes(self, fails, size):
        fails(f"image size {size} is not possible: a Chameleon needs a multiple of 32", size)

    def test_a_size_that_the_vocabulary_has_no_token_for(self, fails):
        fails("the vocabulary has no token <reserved08900>", 3200)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("lumina/config.json", "lumina is no checkpoint directory: it has no config.json"),
            ("lumina/tokenizer.json", "tokenizer.json is missing"),
            ("lumina/model-2.safetensors", "lacks 1 of the 2 files of its weights, such as model-2.safetensors"),
            ("lumina/model.safetensors.index.json", "holds no weights: model.safetensors or its index is missing"),
            ("vqgan.ckpt", "vqgan.ckpt is no file"),
        ],
    )
    def test_missing_files(self, fails, sources, name, message):
        (sources / name).unlink()
        fails(message)

    @pytest.mark.parametrize("kept", [0, 5, 5000, -1])
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("lumina/model-1.safetensors", "model-1.safetensors is damaged"),
            ("vqgan.ckpt", "vqgan.ckpt is damaged, or is no PyTorch checkpoint"),
            ("lumina/tokenizer.json", "tokenizer.json is no tokenizer that can be read"),
            ("lumina/config.json", "config.json is no JSON"),
        ],
    )
    def test_truncated_files(self, fails, sources, name, message, kept):
        (sources / name).write_bytes((sources / name).read_bytes()[:kept])
        fails(message)

    @pytest.mark.parametrize(
        "index", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../out"}}', '{"weight_map": {"a": 3}}']
    )
    def test_an_index_of_something_else(self, fails, sources, index):
        (sources / "lumina" / "model.safetensors.index.json").write_text(index)
        fails(r"model\.safetensors\.index\.json")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model_type": "llama"}, "holds a model of type 'llama': give the directory of a Lumina-mGPT or Anole"),
            ({"num_hidden_layers": 3}, "lacks 1. of the .* tensors expected, such as model.layers.2"),
            ({"num_hidden_layers": 1}, "holds .* tensors that do not belong, such as model.layers.1"),
            ({"intermediate_size": 40}, "should be"),
            ({"hidden_size": "wide"}, "lumina is no checkpoint that can be read"),
            ({"num_attention_heads": 3}, "lumina is no checkpoint that can be read"),
            ({"vocabulary_map": {"fox": 3}}, "vocabulary of config.json is not that of tokenizer.json"),
            ({"vocabulary_map": [1]}, "vocabulary of config.json is not that of tokenizer.json"),
        ],
    )
    def test_another_config(self, fails, sources, change, message):
        file = sources / "lumina" / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
        fails(message)

    @pytest.mark.parametrize(
        ("name", "tensor", "message"),
        [
            ("encoder.conv_in.weight", None, "vqgan.ckpt lacks 1 of the .* such as encoder.conv_in.weight"),
            ("decoder.conv_out.bias", None, "vqgan.ckpt lacks 1 of the .* such as decoder.conv_out.bias"),
            ("quantize.embedding.weight", None, "vqgan.ckpt is no image tokenizer of Chameleon"),
            ("quantize.embedding.weight", torch.zeros(512, 4), "image decoder knows 512 codes, the vocabulary 8192"),
            ("decoder.up.1.attn.0.q.weight", torch.zeros(3), "vqgan.ckpt"),
            ("extra", torch.zeros(3), "vqgan.ckpt holds 1 tensors that do not belong, such as extra"),
            ("quant_conv.weight", 3, "vqgan.ckpt holds no weights under state_dict"),
        ],
    )
    def test_another_image_tokenizer(self, fails, sources, name, tensor, message):
        weights = {**torch.load(sources / "vqgan.ckpt")["state_dict"], name: tensor}
        kept = {key: value for key, value in weights.items() if value is not None}
        torch.save({"state_dict": kept}, sources / "vqgan.ckpt")
        fails(message)

    def test_a_pickle_that_wants_to_run_code(self, fails, sources, tmp_path, order_to_touch):
        torch.save({"state_dict": {}, "callbacks": order_to_touch(tmp_path / "ran")}, sources / "vqgan.ckpt")
        fails("vqgan.ckpt was not opened, for it wants to run")
        assert not (tmp_path / "ran").exists()

    def test_a_pickle_in_place_of_safetensors(self, fails, sources):
        shutil.copy(sources / "vqgan.ckpt", sources / "lumina" / "model-1.safetensors")
        fails("model-1.safetensors is damaged")


def test_a_result_that_is_there_already_is_not_touched(sources, out):
    out.mkdir(parents=True)
    (out / "mine").touch()
    with pytest.raises(zipar.ZipARError, match="out exists already"):
        convert(sources / "lumina", sources / "vqgan.ckpt", out, image_size=96)
    assert [path.name for path in out.iterdir()] == ["mine"]
