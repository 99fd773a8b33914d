import argparse
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

import zipar
from zipar.conversion.llamagen import _decoder_config, convert, write
from zipar.image_tokenizers.vq import VQConfig, VQModel
from zipar.models.llamagen import LlamaGen, LlamaGenConfig, Transformer
from zipar.prompts import PromptVocabulary

VQ_16, VQ_8 = (1, 1, 2, 2, 4), (1, 2, 2, 4)


def decoder_weights(*, hidden=256, kv_heads=4, vocab=64, classes=None, caption_dim=None):
    """The tensors of a decoder of 2 layers, 4 heads and 64 dimensions, named and shaped as in the published files."""
    layer = {
        "attention.wqkv.weight": (64 + 2 * 16 * kv_heads, 64),
        "attention.wo.weight": (64, 64),
        "feed_forward.w1.weight": (hidden, 64),
        "feed_forward.w3.weight": (hidden, 64),
        "feed_forward.w2.weight": (64, hidden),
        "attention_norm.weight": (64,),
        "ffn_norm.weight": (64,),
    }
    shapes = {f"layers.{i}.{name}": shape for i in range(2) for name, shape in layer.items()}
    shapes |= {"tok_embeddings.weight": (vocab, 64), "norm.weight": (64,), "output.weight": (vocab, 64)}
    if classes is not None:
        shapes["cls_embedding.embedding_table.weight"] = (classes + 1, 64)
    if caption_dim is not None:
        shapes["cls_embedding.cap_proj.fc1.weight"] = (64, caption_dim)
        shapes["cls_embedding.cap_proj.fc2.weight"] = (64, 64)
        shapes["cls_embedding.uncond_embedding"] = (8, caption_dim)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def tokenizer_weights(multipliers):
    """The tensors of a thin image tokenizer, and the buffer that training leaves in the published ones."""
    torch.manual_seed(0)
    model = VQModel(VQConfig(64, 4, 32, multipliers, 1, 16))
    return {**model.state_dict(), "quantize.codebook_used": torch.zeros(65536)}


def text_tokenizer():
    backend = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "a": 2, "red": 3, "fox": 4}, "<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Published files in small: class.pt, text.pt, vq16.pt, vq8.pt, and t5, a whole T5 with its tokenizer."""
    folder = tmp_path_factory.mktemp("published")
    torch.save({"model": decoder_weights(classes=10)}, folder / "class.pt")
    torch.save({"module": decoder_weights(caption_dim=16)}, folder / "text.pt")
    torch.save({"model": tokenizer_weights(VQ_16)}, folder / "vq16.pt")
    torch.save({"model": tokenizer_weights(VQ_8)}, folder / "vq8.pt")
    torch.manual_seed(0)
    t5 = T5Config(vocab_size=8, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(t5).save_pretrained(folder / "t5")
    text_tokenizer().save_pretrained(folder / "t5")
    return folder


class TestConversion:
    @pytest.mark.parametrize(("vq", "side"), [("vq16.pt", 4), ("vq8.pt", 8)])
    def test_of_a_class_conditional_model(self, sources, out, vq, side):
        convert(sources / "class.pt", sources / vq, None, out, image_size=64, heads=4, dtype=torch.float32)
        given = decoder_weights(classes=10)
        stored = load_file(out / "decoder.safetensors")
        assert stored.keys() == given.keys()
        assert all(torch.equal(stored[name], given[name]) for name in given)
        pipe = zipar.pipeline(out, device="cpu")
        assert pipe.model.defaults == zipar.Sampling(guidance_scale=4.0, temperature=1.0, top_k=2000, top_p=1.0)
        output = pipe("3")
        assert output.images[0].size == (64, 64)
        assert output.tokens.shape == (1, side, side)

    def test_of_a_text_conditional_model_is_self_contained(self, sources, out, tmp_path):
        copies = {name: tmp_path / name for name in ("text.pt", "vq16.pt")}
        for name, copy in copies.items():
            shutil.copy(sources / name, copy)
        t5 = shutil.copytree(sources / "t5", tmp_path / "t5")
        convert(*copies.values(), t5, out, image_size=64, heads=4, dtype=torch.float32)
        for path in [*copies.values(), *t5.iterdir()]:
            path.unlink()
        pipe = zipar.pipeline(out, device="cpu")
        assert pipe.model.defaults == zipar.Sampling(guidance_scale=7.5, temperature=1.0, top_k=1000, top_p=1.0)
        assert pipe(["a red fox", "fox"], seed=0).tokens.shape == (2, 4, 4)
        whole = T5ForConditionalGeneration.from_pretrained(sources / "t5")
        ids = torch.tensor([[2, 3, 4, 1]])
        assert pipe.model.text_tokenizer(["a red fox"])["input_ids"] == ids.tolist()
        wanted = whole.get_encoder()(input_ids=ids).last_hidden_state
        torch.testing.assert_close(pipe.model.text_encoder(input_ids=ids).last_hidden_state, wanted)

    @pytest.mark.parametrize(
        ("text_format", "wanted", "expected"),
        [
            (torch.float32, None, torch.float32),
            (torch.bfloat16, None, torch.bfloat16),
            (torch.float16, None, torch.float16),
            (torch.float32, torch.bfloat16, torch.bfloat16),
        ],
        ids=str,
    )
    def test_of_text_encoders_keeps_their_number_format_unless_told_otherwise(
        self, sources, out, tmp_path, text_format, wanted, expected
    ):
        t5 = Path(shutil.copytree(sources / "t5", tmp_path / "t5"))
        whole = {name: value.to(text_format) for name, value in load_file(t5 / "model.safetensors").items()}
        save_file(whole, t5 / "model.safetensors", {"format": "pt"})
        formats = convert(sources / "text.pt", sources / "vq16.pt", t5, out, image_size=64, heads=4, dtype=wanted)
        assert formats == {expected, wanted or torch.float32}
        stored = load_file(out / "text_encoder" / "model.safetensors")
        for name, value in stored.items():
            assert value.dtype == expected
            assert value.equal(whole[name].to(expected))
        tokenizer = load_file(out / "image_tokenizer.safetensors")
        assert {value.dtype for value in tokenizer.values()} == {torch.float32}

    def test_keeps_the_number_format_of_each_tensor(self, sources, out, tmp_path):
        formats = {"norm.weight": torch.bfloat16, "output.weight": torch.float16}
        given = {name: value.to(formats.get(name)) for name, value in decoder_weights(classes=10).items()}
        torch.save({"model": given}, tmp_path / "gpt.pt")
        found = convert(tmp_path / "gpt.pt", sources / "vq16.pt", None, out, image_size=64, heads=4)
        assert found == {torch.float32, *formats.values()}
        stored = load_file(out / "decoder.safetensors")
        for name, value in given.items():
            assert stored[name].dtype == value.dtype
            assert stored[name].equal(value)
        assert zipar.pipeline(out, device="cpu")("3").tokens.shape == (1, 4, 4)

    @pytest.mark.parametrize("key", ["model", "module", "state_dict", None])
    @pytest.mark.parametrize("zipped", [True, False])
    def test_takes_every_layout_that_the_authors_read(self, sources, out, tmp_path, key, zipped):
        weights = {**decoder_weights(classes=10), "freqs_cis": torch.zeros(17, 8, 2)}
        file = tmp_path / "gpt.pt"
        torch.save({key: weights} if key else weights, file, _use_new_zipfile_serialization=zipped)
        convert(file, sources / "vq16.pt", None, out, image_size=64, heads=4)
        assert zipar.pipeline(out, device="cpu").model.decoder.config.classes == 10

    def test_of_a_checkpoint_written_while_training_knows_the_image_size(self, sources, out, tmp_path):
        checkpoint = {
            "model": decoder_weights(classes=10),
            "optimizer": {"state": {}},
            "steps": 7,
            "args": argparse.Namespace(image_size=32, gpt_model="GPT-B"),
        }
        torch.save(checkpoint, tmp_path / "gpt.pt")
        convert(tmp_path / "gpt.pt", sources / "vq16.pt", None, out, heads=4)
        assert zipar.pipeline(out, device="cpu").model.image_size == (32, 32)

    @pytest.mark.parametrize(("hidden", "kv_heads"), [(256, 1), (192, 2), (168, 4), (700, 4)])
    def test_reads_hidden_width_and_grouped_heads_off_the_tensors(self, sources, out, tmp_path, hidden, kv_heads):
        torch.save({"model": decoder_weights(classes=10, hidden=hidden, kv_heads=kv_heads)}, tmp_path / "gpt.pt")
        convert(tmp_path / "gpt.pt", sources / "vq16.pt", None, out, image_size=32, heads=4)
        config = zipar.pipeline(out, device="cpu").model.decoder.config
        assert (config.hidden_dim, config.kv_heads) == (hidden, kv_heads)

    @pytest.mark.parametrize(
        ("layers", "heads", "dim"),
        [
            (12, 12, 768),
            (24, 16, 1024),
            (36, 20, 1280),
            (48, 24, 1536),
            (48, 40, 2560),
            (22, 32, 2048),
            (24, 32, 3200),
            (32, 32, 4096),
        ],
    )
    @pytest.mark.parametrize("condition", [{"classes": 1000}, {"caption_dim": 2048, "prefix_length": 120}])
    def test_knows_the_published_sizes(self, layers, heads, dim, condition):
        config = LlamaGenConfig(layers, heads, dim, heads, **condition)
        with torch.device("meta"):
            weights = Transformer(config).state_dict()
        assert _decoder_config(weights, Path("gpt.pt"), None) == config


@pytest.mark.usefixtures("nothing_is_written")
class TestConversionOf:
    """Everything that is not what it should be: one clear error, and nothing written."""

    @pytest.fixture
    def gpt(self, tmp_path):
        return tmp_path / "gpt.pt"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"gpt": "nowhere.pt"}, r"nowhere\.pt is no file: give the published one"),
            ({"gpt": "t5"}, "t5 is no file"),
            ({"gpt": "vq16.pt"}, r"vq16\.pt is an image tokenizer and not a decoder: give GPT\.pt first"),
            ({"vq": "class.pt"}, r"class\.pt is a decoder and not an image tokenizer: give GPT\.pt first"),
            ({"gpt": "vq16.pt", "vq": "class.pt"}, "give GPT.pt first, then VQ.pt"),
            ({"gpt": "text.pt"}, "text-conditional: give the directory of its T5 encoder"),
            ({"text_encoder": "t5"}, "class-conditional and takes no text encoder"),
            ({"gpt": "text.pt", "text_encoder": "nowhere"}, "has no config.json"),
            ({"heads": None}, r"no published size \(2 layers, 64 wide\): say how many attention heads"),
            ({"heads": 3}, "3 attention heads do not fit .* must divide 64"),
            ({"heads": 32}, "32 attention heads do not fit"),
            ({"image_size": None}, r"does not say which image size .* \(256 or 384 as published\)"),
            ({"image_size": 70}, "image size 70 is not possible: .* multiple of 16"),
            ({"image_size": -16}, "image size -16"),
        ],
    )
    def test_wrong_arguments(self, sources, out, arguments, message):
        settings = {"gpt": "class.pt", "vq": "vq16.pt", "text_encoder": None, "image_size": 64, "heads": 4} | arguments
        paths = [sources / name if (name := settings.pop(key)) else None for key in ("gpt", "vq", "text_encoder")]
        with pytest.raises(zipar.ZipARError, match=message):
            convert(*paths, out, **settings)

    @pytest.mark.parametrize("kept", [0, 1, 50, 5000, -1])
    @pytest.mark.parametrize("name", ["class.pt", "vq16.pt"])
    def test_truncated_files(self, sources, out, tmp_path, name, kept):
        files = {file: sources / file for file in ("class.pt", "vq16.pt")}
        (tmp_path / name).write_bytes((sources / name).read_bytes()[:kept])
        files[name] = tmp_path / name
        with pytest.raises(zipar.ZipARError, match=f"{name} is damaged, or is no PyTorch checkpoint: fetch it again"):
            convert(*files.values(), None, out, image_size=64, heads=4)

    @pytest.mark.parametrize(
        "content", [b"hello", b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1\n", b"\x80\x02}q\x00."]
    )
    def test_other_files(self, sources, out, gpt, content):
        gpt.write_bytes(content)
        with pytest.raises(zipar.ZipARError, match=r"gpt\.pt"):
            convert(gpt, sources / "vq16.pt", None, out, image_size=64, heads=4)

    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_pickle_that_wants_to_run_code(self, sources, out, gpt, tmp_path, zipped, order_to_touch):
        payload = {"model": decoder_weights(classes=10), "args": order_to_touch(tmp_path / "ran")}
        torch.save(payload, gpt, _use_new_zipfile_serialization=zipped)
        with pytest.raises(
            zipar.ZipARError, match=r"gpt\.pt was not opened, for it wants to run \S+: get the published"
        ):
            convert(gpt, sources / "vq16.pt", None, out, image_size=64, heads=4)
        gpt.write_bytes(pickle.dumps(payload["args"]))
        with pytest.raises(zipar.ZipARError, match=r"gpt\.pt"):
            convert(gpt, sources / "vq16.pt", None, out, image_size=64, heads=4)
        assert not (tmp_path / "ran").exists()
        pickle.loads(gpt.read_bytes())
        assert (tmp_path / "ran").exists()  # the payload does work

    @pytest.mark.parametrize(
        ("checkpoint", "message"),
        [
            ([1, 2], "holds a list instead of weights"),
            (torch.zeros(3), "holds a Tensor instead of weights"),
            ({}, "holds no weights under model or module or state_dict"),
            ({"model": 3}, "holds no weights"),
            ({"model": {"a": 3}}, "holds no weights"),
            ({"model": {"a": torch.zeros(3, dtype=torch.int64)}}, "holds no weights"),
            ({"model": {"a": torch.zeros(3, 4)}}, "no LlamaGen decoder: it has no tok_embeddings.weight"),
        ],
    )
    def test_something_else_than_weights(self, sources, out, gpt, checkpoint, message):
        torch.save(checkpoint, gpt)
        with pytest.raises(zipar.ZipARError, match=message):
            convert(gpt, sources / "vq16.pt", None, out, image_size=64, heads=4)

    @pytest.mark.parametrize(
        ("name", "tensor", "message"),
        [
            ("tok_embeddings.weight", torch.zeros(65, 64), "decoder knows 65 tokens, the image tokenizer 64"),
            ("tok_embeddings.weight", torch.zeros(64), r"tok_embeddings.weight is of shape \(64,\)"),
            ("tok_embeddings.weight", torch.zeros(64, 0), r"tok_embeddings.weight is of shape \(64, 0\)"),
            ("output.weight", torch.zeros(63, 64), r"output.weight is of shape \(63, 64\)"),
            ("layers.1.ffn_norm.weight", None, "lacks 1 of the .* such as layers.1.ffn_norm.weight"),
            ("layers.0.attention.wqkv.weight", None, "has no layers.0.attention.wqkv.weight"),
            ("layers.0.attention.wqkv.weight", torch.zeros(200, 64), "heads do not fit .* 200 wide"),
            ("layers.7.attention.wo.bias", torch.zeros(64), "lacks 7 of the"),
            ("extra.weight", torch.zeros(64), "holds 1 tensors that do not belong, such as extra.weight"),
            ("cls_embedding.embedding_table.weight", None, "has no cls_embedding.embedding_table.weight"),
        ],
    )
    def test_inconsistent_decoders(self, sources, out, gpt, name, tensor, message):
        weights = decoder_weights(classes=10)
        weights[name] = tensor
        torch.save({"model": {key: value for key, value in weights.items() if value is not None}}, gpt)
        with pytest.raises(zipar.ZipARError, match=message):
            convert(gpt, sources / "vq16.pt", None, out, image_size=64, heads=4)

    @pytest.mark.parametrize(
        ("name", "shape", "message"),
        [
            ("encoder.conv_in.weight", (24, 3, 3, 3), "vq.pt"),
            ("encoder.conv_out.weight", None, "no LlamaGen image tokenizer: it has no encoder.conv_out.weight"),
            ("decoder.conv_out.bias", (4,), r"decoder.conv_out.bias is of shape \(4,\)"),
        ],
    )
    def test_inconsistent_image_tokenizers(self, sources, out, tmp_path, name, shape, message):
        weights = tokenizer_weights(VQ_8)
        del weights[name]
        if shape is not None:
            weights[name] = torch.zeros(shape)
        torch.save({"model": weights}, tmp_path / "vq.pt")
        with pytest.raises(zipar.ZipARError, match=message):
            convert(sources / "class.pt", tmp_path / "vq.pt", None, out, image_size=64, heads=4)

    def _convert_with(self, t5, sources, out):
        convert(sources / "text.pt", sources / "vq16.pt", t5, out, image_size=64, heads=4)

    def test_text_encoders_of_another_width(self, sources, out, gpt):
        torch.save({"model": decoder_weights(caption_dim=24)}, gpt)
        with pytest.raises(zipar.ZipARError, match="features 16 wide, the decoder takes 24"):
            convert(gpt, sources / "vq16.pt", sources / "t5", out, image_size=64, heads=4)

    def test_text_encoders_of_another_kind(self, sources, out, tmp_path):
        BertModel(BertConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(
            tmp_path / "bert"
        )
        with pytest.raises(zipar.ZipARError, match="bert does not fit"):
            self._convert_with(tmp_path / "bert", sources, out)
        self._edit(tmp_path / "bert", d_model=16)
        with pytest.raises(zipar.ZipARError, match="type 'bert', but LlamaGen needs a T5"):
            self._convert_with(tmp_path / "bert", sources, out)

    @staticmethod
    def _edit(directory, **values):
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    def test_text_encoders_that_are_damaged(self, sources, out, tmp_path):
        t5 = shutil.copytree(sources / "t5", tmp_path / "t5")
        self._edit(t5, num_layers=2)
        with pytest.raises(zipar.ZipARError, match=r"lacks \d+ tensors of its T5EncoderModel"):
            self._convert_with(t5, sources, out)
        self._edit(t5, num_layers=1, d_ff=48)
        with pytest.raises(zipar.ZipARError, match=r"t5: .* is of shape \(32, 16\), but should be \(48, 16\)"):
            self._convert_with(t5, sources, out)
        self._edit(t5, d_ff=32)
        weights = t5 / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(zipar.ZipARError, match="t5 holds no T5EncoderModel that can be read"):
            self._convert_with(t5, sources, out)
        weights.unlink()
        with pytest.raises(zipar.ZipARError, match="t5 holds no T5EncoderModel that can be read"):
            self._convert_with(t5, sources, out)
        (t5 / "tokenizer.json").unlink()
        with pytest.raises(zipar.ZipARError, match="t5 holds no tokenizer"):
            self._convert_with(t5, sources, out)


def test_files_of_a_conversion_are_whole_and_as_the_umask_has_them(sources, check_written):
    paths = (sources / "text.pt", sources / "vq16.pt", sources / "t5")
    check_written(lambda out: convert(*paths, out, image_size=64, heads=4))


def test_conversion_never_touches_what_is_there(sources, tmp_path):
    taken = tmp_path / "out"
    taken.mkdir()
    (taken / "mine").write_text("mine")
    with pytest.raises(zipar.ZipARError, match="out exists already"):
        convert(sources / "class.pt", sources / "vq16.pt", None, taken, image_size=64, heads=4)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (taken / "mine").read_text() == "mine"
    with pytest.raises(zipar.ZipARError, match="cannot be written"):
        convert(sources / "class.pt", sources / "vq16.pt", None, taken / "mine" / "out", image_size=64, heads=4)


@pytest.fixture(scope="module")
def intact(tiny_models, tmp_path_factory):
    directory = tmp_path_factory.mktemp("written") / "tiny"
    write(tiny_models.by_class, directory, torch.float32)
    return directory


class TestWritten:
    """Directories that ``write`` makes, and what may be wrong with them."""

    def test_the_model_itself_stays_as_it_is(self, tiny_models, tmp_path):
        model = tiny_models.by_text
        written = LlamaGen(model.decoder, model.image_tokenizer, model.text_encoder, text_tokenizer())
        write(written, tmp_path / "tiny", torch.bfloat16)
        assert written.text_encoder.dtype == written.dtype == torch.float32
        stored = load_file(tmp_path / "tiny" / "text_encoder" / "model.safetensors")
        assert {value.dtype for value in stored.values()} == {torch.bfloat16}

    @pytest.fixture
    def directory(self, intact, tmp_path):
        return shutil.copytree(intact, tmp_path / "tiny")

    def test_loads_as_it_was(self, tiny_models, intact):
        loaded = zipar.pipeline(intact, device="cpu")
        assert loaded.model.decoder.config == tiny_models.by_class.decoder.config
        assert (loaded("3").tokens == zipar.pipeline(tiny_models.by_class)("3").tokens).all()

    def test_text_encoder_and_vocabulary_come_along(self, tiny_models, tmp_path):
        model = tiny_models.by_text
        vocabulary = PromptVocabulary({"object": {"fox": ["fox"]}}, ["object"], ["a"], "a fox")
        defaults = zipar.Sampling(2.0, 0.5, 7, 0.9)
        written = LlamaGen(
            model.decoder, model.image_tokenizer, model.text_encoder, text_tokenizer(), defaults, vocabulary
        )
        write(written, tmp_path / "tiny")
        loaded = zipar.pipeline(tmp_path / "tiny", device="cpu")
        assert (loaded.model.defaults, loaded.model.vocabulary) == (defaults, vocabulary)
        assert (loaded("a fox").tokens == zipar.pipeline(written)("a fox").tokens).all()

    @pytest.mark.parametrize("name", ["decoder.safetensors", "image_tokenizer.safetensors"])
    def test_weights_missing_or_truncated(self, directory, name):
        content = (directory / name).read_bytes()
        for kept in (0, 20, len(content) - 1):
            (directory / name).write_bytes(content[:kept])
            with pytest.raises(zipar.ZipARError, match=f"{name} is damaged"):
                zipar.pipeline(directory)
        (directory / name).unlink()
        with pytest.raises(zipar.ZipARError, match=f"{name} is missing"):
            zipar.pipeline(directory)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"norm.weight": None}, "lacks 1 of the .* such as norm.weight"),
            ({"other": torch.zeros(1)}, "holds 1 tensors that do not belong, such as other"),
            ({"norm.weight": torch.zeros(31)}, r"norm.weight is of shape \(31,\)"),
        ],
    )
    def test_tensors_that_are_not_those_of_the_config(self, directory, change, message):
        weights = load_file(directory / "decoder.safetensors") | change
        save_file({k: v for k, v in weights.items() if v is not None}, directory / "decoder.safetensors")
        with pytest.raises(zipar.ZipARError, match=message):
            zipar.pipeline(directory)

    @pytest.mark.parametrize(
        ("part", "change", "message"),
        [
            ("decoder", {"dim": 64}, "is of shape"),
            ("decoder", {"layers": 3}, "lacks 7 of the"),
            ("decoder", {"colour": "red"}, "colour"),
            ("decoder", {"classes": None}, "classes"),
            ("decoder", {"layers": "two"}, "no checkpoint that can be read"),
            ("image_tokenizer", {"codebook_size": 51}, "is of shape"),
            ("image_tokenizer", {"channels": 30}, "no checkpoint that can be read"),
            ("sampling", {"temperature": -1}, "temperature -1"),
        ],
    )
    def test_configs_that_are_wrong(self, directory, part, change, message):
        path = directory / "config.json"
        config = json.loads(path.read_text())
        config[part] |= change
        path.write_text(json.dumps(config))
        with pytest.raises(zipar.ZipARError, match=message):
            zipar.pipeline(directory)

    def test_configs_that_lack_a_part(self, directory):
        (directory / "config.json").write_text('{"model_type": "llamagen"}')
        with pytest.raises(zipar.ZipARError, match="decoder"):
            zipar.pipeline(directory)

    def test_text_models_without_their_text_encoder(self, tiny_models, tmp_path):
        model = tiny_models.by_text
        write(LlamaGen(model.decoder, model.image_tokenizer, model.text_encoder, text_tokenizer()), tmp_path / "tiny")
        shutil.rmtree(tmp_path / "tiny" / "text_encoder")
        with pytest.raises(zipar.ZipARError, match="holds no text encoder"):
            zipar.pipeline(tmp_path / "tiny")
