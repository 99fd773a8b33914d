"""What Lumina-mGPT 2.0's converter has of its own; what it shares is tested in test_lumina_mgpt.py."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ChameleonForConditionalGeneration

import zipar
from zipar.conversion.lumina_mgpt2 import convert
from zipar.models import auto


@pytest.fixture
def sources(lumina2_files, tmp_path):
    """Published files of one's own: lumina, the directory of the model, and movqgan_270M.ckpt."""
    return shutil.copytree(lumina2_files, tmp_path / "published")


def tensors(directory):
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


class TestConversion:
    def test_keeps_all_tensors_and_repeats_the_norm_for_each_head(self, lumina2_files, lumina2_directory):
        given, stored = tensors(lumina2_files / "lumina"), tensors(lumina2_directory / "decoder")
        assert stored.keys() == given.keys()
        for name, tensor in given.items():
            repeated = tensor[[0, 0, 0, 0]] if "q_norm" in name or "k_norm" in name else tensor
            assert stored[name].equal(repeated)

    def test_names_the_image_tokens_and_what_prompts_begin_with(self, lumina2_directory):
        config = json.loads((lumina2_directory / "decoder" / "config.json").read_text())
        names = config["vocabulary_map"]
        assert (names["IMGIMGAZ"], names["IMGIMGBGDIDZ"]) == (155000, 155000 + 16383)
        assert (names["<eoss>"], names["fox"], config["bos_token_id"]) == (151666, 102, 151645)
        assert json.loads((lumina2_directory / "config.json").read_text())["image_size"] == 64

    def test_transformers_takes_the_decoder(self, lumina2_directory):
        _, loading = ChameleonForConditionalGeneration.from_pretrained(
            lumina2_directory / "decoder", output_loading_info=True
        )
        assert all(name.startswith("model.vqmodel.") for name in loading["missing_keys"])
        assert not any(loading[kind] for kind in ("unexpected_keys", "mismatched_keys"))

    def test_is_self_contained_and_as_small_as_told(self, sources, tmp_path):
        lumina, out = sources / "lumina", tmp_path / "out"
        for file in lumina.glob("*.safetensors"):  # an image encoder that is none, as training may leave it
            stray = {"model.vqmodel.encoder.conv_in.weight": torch.zeros(3)} if "1" in file.name else {}
            save_file(load_file(file) | stray, file)
        formats = convert(lumina, sources / "movqgan_270M.ckpt", out, image_size=64, dtype=torch.bfloat16)
        assert formats == {torch.bfloat16}
        shutil.rmtree(sources)
        assert {tensor.dtype for tensor in load_file(out / "image_tokenizer.safetensors").values()} == {torch.float32}
        assert {tensor.dtype for tensor in tensors(out / "decoder").values()} == {torch.bfloat16}
        pipe = zipar.pipeline(out, dtype=torch.bfloat16, device="cpu")
        assert pipe("a red fox", strategy=zipar.ZipAR(2), height=64, width=32).images[0].size == (32, 64)

    def test_a_token_of_its_own_for_beginnings_comes_first(self, sources, tmp_path):
        special = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
        (sources / "lumina" / "tokenizer_config.json").write_text(json.dumps(special))
        convert(sources / "lumina", sources / "movqgan_270M.ckpt", tmp_path / "out", image_size=64)
        assert auto.outline(tmp_path / "out").beginning == 151643


def test_files_of_a_conversion_are_whole_and_as_the_umask_has_them(lumina2_files, check_written):
    published = lumina2_files / "lumina", lumina2_files / "movqgan_270M.ckpt"
    check_written(lambda out: convert(*published, out, image_size=64))


class TestConversionOf:
    """What is not what it should be: one clear error, and nothing written."""

    @pytest.fixture
    def fails(self, sources, tmp_path):
        def run(message, **settings):
            given = {"image_size": 64, **settings}
            with pytest.raises(zipar.ZipARError, match=message) as error:
                convert(sources / "lumina", sources / "movqgan_270M.ckpt", tmp_path / "parent" / "out", **given)
            assert "\n" not in str(error.value)
            assert not (tmp_path / "parent").exists()

        return run

    def test_wrong_sizes(self, fails):
        fails("image size 0 is not possible: a Chameleon needs a multiple of 32", image_size=0)
        fails("the vocabulary has no token <reserved08868>", image_size=68 * 32)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("lumina/config.json", "lumina is no checkpoint directory: it has no config.json"),
            ("lumina/tokenizer.json", "tokenizer.json is missing"),
            ("lumina/tokenizer_config.json", "it has no tokenizer_config.json"),
            ("lumina/model-2.safetensors", "lacks 1 of the 2 files of its weights, such as model-2.safetensors"),
            ("movqgan_270M.ckpt", "movqgan_270M.ckpt is no file"),
        ],
    )
    def test_missing_files(self, fails, sources, name, message):
        (sources / name).unlink()
        fails(message)

    @pytest.mark.parametrize("special", [{}, {"eos_token": "<end>"}, {"bos_token": {"content": None}}])
    def test_a_tokenizer_that_says_not_how_prompts_begin(self, fails, sources, special):
        (sources / "lumina" / "tokenizer_config.json").write_text(json.dumps(special))
        fails("tokenizer_config.json says that prompts begin with .*, which tokenizer.json does not know")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model_type": "llama"}, "holds a model of type 'llama'"),
            ({"num_hidden_layers": 3}, "lacks 1. of the .* tensors expected, such as model.layers.2"),
            ({"vocab_size": 160000}, "image tokens should have consecutive ids below 160000"),
        ],
    )
    def test_another_config(self, fails, sources, change, message):
        file = sources / "lumina" / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
        fails(message)

    @pytest.mark.parametrize(
        ("name", "tensor", "message"),
        [
            ("decoder.conv_out.bias", None, "ckpt lacks 1 of the .* such as decoder.conv_out.bias"),
            ("decoder.norm_out.conv_y.bias", torch.zeros(3), "decoder.conv_norm_out.conv_y.bias is of shape"),
            ("decoder.extra", torch.zeros(3), "ckpt holds 1 tensors that do not belong, such as decoder.extra"),
            ("quantize.embedding.weight", None, "ckpt is no MoVQGAN: it has no quantize.embedding.weight"),
            ("quantize.embedding.weight", torch.zeros(16384, 3), "ckpt"),
            ("decoder.conv_out.weight", torch.zeros(3, 12, 3, 3), "ckpt"),
        ],
    )
    def test_another_image_tokenizer(self, fails, sources, name, tensor, message):
        weights = {**torch.load(sources / "movqgan_270M.ckpt"), name: tensor}
        kept = {key: value for key, value in weights.items() if value is not None}
        torch.save(kept, sources / "movqgan_270M.ckpt")
        fails(message)
