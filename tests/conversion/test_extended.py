"""Conversion of language models whose vocabulary goes on with a codebook."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import GemmaForCausalLM, Qwen2ForCausalLM

import zipar
from zipar.conversion import liquid, simplear

NETWORKS = {"liquid": GemmaForCausalLM, "simplear": Qwen2ForCausalLM}


@dataclass
class Published:
    """Published files of one's own."""

    family: str
    folder: Path

    @property
    def model(self):
        return self.folder / self.family

    def convert(self, out, **settings):
        if self.family == "liquid":
            return liquid.convert(self.model, self.folder / "vqgan.ckpt", out, image_size=96, **settings)
        return simplear.convert(self.model, self.folder / "tokenizer", out, image_size=128, **settings)

    def weights(self):
        return weights_of(self.model)

    def rewrite(self, change):
        """Change the weights, which are in one file from then on."""
        weights = self.weights()
        change(weights)
        for file in [*self.model.glob("*.safetensors"), self.model / "model.safetensors.index.json"]:
            file.unlink()
        save_file(weights, self.model / "model.safetensors", {"format": "pt"})

    def config(self):
        return json.loads((self.model / "config.json").read_text())

    def reconfigure(self, **changes):
        (self.model / "config.json").write_text(json.dumps(self.config() | changes))


@pytest.fixture(params=NETWORKS)
def published(request, tmp_path):
    files = request.getfixturevalue(f"{request.param}_files")
    return Published(request.param, Path(shutil.copytree(files, tmp_path / "published")))


def weights_of(directory):
    return {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}


def test_weights_and_tokenizer_are_the_published_ones(published, out):
    assert published.convert(out) == {torch.float32}
    given, stored = published.weights(), weights_of(out / "decoder")
    assert stored.keys() == given.keys()
    assert all(value.equal(given[name]) for name, value in stored.items())
    shards = [len(list(path.glob("*.safetensors"))) for path in (published.model, out / "decoder")]
    assert shards == [3, 3]
    texts = ["a red fox <boi>", "<unconditional><boi>", "<|t2i|>a fox<|soi|>"]
    before, after = (Tokenizer.from_file(str(path / "tokenizer.json")) for path in (published.model, out))
    assert [before.encode(text).ids for text in texts] == [after.encode(text).ids for text in texts]


def test_transformers_loads_the_decoder(published, out):
    published.convert(out)
    network = NETWORKS[published.family]
    model, loading = network.from_pretrained(out / "decoder", output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.arange(70)[None]
    assert model(ids).logits.equal(network.from_pretrained(published.model, dtype=torch.float32)(ids).logits)


def test_number_formats(published, out, tmp_path):
    published.rewrite(lambda held: held.update({name: value.bfloat16() for name, value in held.items()}))
    assert published.convert(out) == {torch.bfloat16}
    assert {value.dtype for value in load_file(out / "image_tokenizer.safetensors").values()} == {torch.float32}
    assert published.convert(tmp_path / "wide", dtype=torch.float32) == {torch.float32}
    shutil.rmtree(published.folder)
    pipe = zipar.pipeline(out, dtype=torch.bfloat16, device="cpu")
    assert pipe("a red fox", strategy=zipar.ZipAR(2), height=96, width=96).images[0].size == (96, 96)


def test_a_head_that_is_the_embeddings_may_be_stored(published, out):
    published.rewrite(lambda held: held.update({"lm_head.weight": torch.zeros(3)}))
    published.convert(out)
    assert "lm_head.weight" not in weights_of(out / "decoder")
    assert zipar.pipeline(out, device="cpu").model.model.lm_head.weight.std() > 0.1


def test_a_head_of_its_own_is_kept(published, out):
    head = torch.randn(published.config()["vocab_size"], 32)
    published.reconfigure(tie_word_embeddings=False)
    published.rewrite(lambda held: held.update({"lm_head.weight": head}))
    published.convert(out)
    assert zipar.pipeline(out, device="cpu").model.model.lm_head.weight.equal(head)


def test_codes_come_behind_the_words_of_the_tokenizer_whatever_comes_behind_them(published, out):
    """As in the authors' code, which adds how many words the tokenizer knows."""
    size, name = published.config()["vocab_size"], "model.embed_tokens.weight"
    published.reconfigure(vocab_size=size + 4)
    published.rewrite(lambda held: held.update({name: torch.cat([held[name], torch.zeros(4, 32)])}))
    published.convert(out)
    words = Tokenizer.from_file(str(published.model / "tokenizer.json")).get_vocab_size()
    assert zipar.pipeline(out, device="cpu").model.head_rows == slice(words, size)


def test_what_a_tokenizer_was_last_told_is_forgotten(published, out):
    file = str(published.model / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=70)
    tokenizer.save(file)
    published.convert(out)
    model = zipar.pipeline(out, device="cpu").model
    prefix = model.prefix(["a red fox"], None, False, model.grid(96, 96))
    assert prefix.valid.sum() == {"liquid": 13, "simplear": 10}[published.family]


def test_files_of_a_conversion_are_whole_and_as_the_umask_has_them(liquid_files, check_written):
    check_written(lambda out: Published("liquid", liquid_files).convert(out))


class TestConversionOf:
    """Everything that is not what it should be: one clear error, and nothing written."""

    @pytest.fixture
    def fails(self, published, out):
        def failing(message):
            with pytest.raises(zipar.ZipARError, match=message) as error:
                published.convert(out)
            assert "\n" not in str(error.value)
            assert not out.parent.exists()

        return failing

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("config.json", "is no checkpoint directory: it has no config.json"),
            ("tokenizer.json", "tokenizer.json is missing"),
            ("model-00002-of-00003.safetensors", "lacks 1 of the 3 files of its weights"),
            ("model.safetensors.index.json", "holds no weights: model.safetensors or its index is missing"),
        ],
    )
    def test_missing_files(self, fails, published, name, message):
        (published.model / name).unlink()
        fails(message)

    @pytest.mark.parametrize("kept", [0, 5000, -1])
    def test_truncated_files(self, fails, published, kept):
        file = published.model / "model-00001-of-00003.safetensors"
        file.write_bytes(file.read_bytes()[:kept])
        fails("model-00001-of-00003.safetensors is damaged")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model_type": "llama"}, "holds a model of type 'llama': give the directory of a (Liquid|SimpleAR)"),
            ({"num_hidden_layers": 3}, r"lacks \d+ of the .* tensors expected, such as model.layers.2"),
            ({"intermediate_size": 40}, "should be"),
            ({"hidden_size": "wide"}, "is no checkpoint that can be read"),
            ({"vocab_size": 70}, r"embed_tokens.weight is of shape .*, but should be \(70, 32\)"),
        ],
    )
    def test_another_config(self, fails, published, changes, message):
        published.reconfigure(**changes)
        fails(message)

    def test_another_tokenizer(self, fails, published):
        file = published.model / "tokenizer.json"
        begin = {"liquid": "<boi>", "simplear": "<|soi|>"}[published.family]
        file.write_text(file.read_text().replace(begin, "<other>"))
        fails(rf"the tokenizer has no token {begin.replace('|', '.')}: it is not that of a")


def test_a_result_that_is_there_already_is_not_touched(published, out):
    out.mkdir(parents=True)
    (out / "mine").touch()
    with pytest.raises(zipar.ZipARError, match="out exists already"):
        published.convert(out)
    assert [path.name for path in out.iterdir()] == ["mine"]
