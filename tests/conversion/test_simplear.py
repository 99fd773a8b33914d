"""What is SimpleAR's own; the rest is in test_extended.py."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers

import zipar
from zipar.conversion.simplear import convert
from zipar.models import auto


@pytest.fixture
def sources(simplear_files, tmp_path):
    return shutil.copytree(simplear_files, tmp_path / "published")


def run(sources, out):
    return convert(sources / "simplear", sources / "tokenizer", out, image_size=128)


def test_of_the_video_tokenizer_the_decoder_is_kept_and_none_of_its_code_is_run(
    sources, tmp_path, cosmos_tokenizer, monkeypatch
):
    monkeypatch.setattr(torch._C, "import_ir_module", None)  # what compiles an archive's code
    run(sources, tmp_path / "out")
    made, given = load_file(tmp_path / "out" / "image_tokenizer.safetensors"), cosmos_tokenizer.state_dict()
    assert made.keys() == {name for name in given if name.startswith(("decoder.", "post_quant_conv."))}
    assert all(value.equal(given[name]) for name, value in made.items())


def test_a_text_tokenizer_in_several_files(sources, tmp_path):
    """As older versions of transformers wrote it: bytes, two merges, and the special tokens behind them."""
    source = sources / "simplear"
    (source / "tokenizer.json").unlink()
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "fo", "fox"]
    special = ["<|endoftext|>", "<|t2i|>", "<|i2t|>", "<|soi|>"]
    (source / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (source / "merges.txt").write_text("#version: 0.2\nf o\nfo x\n")
    added = {word: len(words) + i for i, word in enumerate(special)}
    (source / "added_tokens.json").write_text(json.dumps(added))
    kept = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    decoder = {str(i): {"content": word, "special": True, **kept} for word, i in added.items()}
    settings = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": decoder, "pad_token": "<|endoftext|>"}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(zipar.ZipARError, match="262 words and 60 codes are more than the 80 that this SimpleAR knows"):
        run(sources, tmp_path / "out")
    enlarge(source, 262 + 60)
    run(sources, tmp_path / "out")
    model = auto.load(tmp_path / "out", device="cpu")
    assert model.first == 262
    ids = model.tokenizer.encode("<|t2i|>fox<|soi|>", add_special_tokens=False).ids
    assert ids == [added["<|t2i|>"], words.index("fox"), added["<|soi|>"]]


def enlarge(source, size):
    """Give the model a vocabulary of another size."""
    for path in source.glob("*.safetensors"):
        weights = load_file(path)
        if "model.embed_tokens.weight" in weights:
            save_file({**weights, "model.embed_tokens.weight": torch.randn(size, 32)}, path, {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"vocab_size": size}))


def test_no_text_tokenizer(sources, tmp_path):
    (sources / "simplear" / "tokenizer.json").unlink()
    with pytest.raises(zipar.ZipARError, match=r"tokenizer.json is missing"):
        run(sources, tmp_path / "out")
    (sources / "simplear" / "vocab.json").write_text("{")
    with pytest.raises(zipar.ZipARError, match="holds no Qwen2Tokenizer that can be read"):
        run(sources, tmp_path / "out")


def test_no_video_tokenizer(sources, tmp_path):
    (sources / "tokenizer" / "decoder.jit").unlink()
    with pytest.raises(zipar.ZipARError, match=r"decoder.jit is missing: give the published one"):
        run(sources, tmp_path / "out")
    shutil.copy(sources / "tokenizer" / "encoder.jit", sources / "tokenizer" / "decoder.jit")
    with pytest.raises(zipar.ZipARError, match=r"tokenizer lacks \d+ of the \d+ tensors expected, such as decoder"):
        run(sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()
