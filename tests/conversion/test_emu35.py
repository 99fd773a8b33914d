"""Conversion of files laid out, named and shaped as those of BAAI/Emu3.5 and BAAI/Emu3.5-VisionTokenizer."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import Qwen3ForCausalLM

import zipar
from zipar.conversion.emu35 import convert
from zipar.models.emu35 import GENERAL, IMAGE

RECORDED = load_file(Path(__file__).parents[1] / "data" / "emu35.safetensors")


@pytest.fixture
def sources(emu35_files, tmp_path):
    """Published files of one's own."""
    return shutil.copytree(emu35_files, tmp_path / "published")


def stored(directory):
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_transformers_finds_every_tensor_in_its_place(emu35_recipe, sources, out):
    assert convert(sources / "model", sources / "vision", out) == {torch.float32}
    model, loading = Qwen3ForCausalLM.from_pretrained(out / "decoder", output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    held, published = model.state_dict(), emu35_recipe.published("decoder")
    assert held.keys() == published.keys()
    assert all(held[name].equal(tensor) for name, tensor in published.items())
    config, given = model.config, emu35_recipe.DECODER
    assert all(getattr(config, name) == value for name, value in given.items() if name != "rope_theta")
    assert config.rope_parameters["rope_theta"] == given["rope_theta"]
    assert not config.tie_word_embeddings
    assert {path.name for path in (out / "decoder").glob("*.safetensors")} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }


def test_of_the_image_tokenizer_the_decoding_half_is_kept(emu35_recipe, sources, out):
    convert(sources / "model", sources / "vision", out, dtype=torch.bfloat16)
    published = emu35_recipe.published("image_tokenizer")
    held = load_file(out / "image_tokenizer.safetensors")
    assert held.keys() == {name for name in published if not name.startswith(("encoder.", "quant_conv."))}
    assert all(tensor.equal(published[name]) for name, tensor in held.items())
    assert json.loads((out / "config.json").read_text())["image_tokenizer"] == {
        "codebook_size": emu35_recipe.CODES,
        "codebook_dim": emu35_recipe.EMBED_DIM,
        "channels": 32,
        "channel_multipliers": [1, 1, 1, 1, 2],
        "residual_blocks": 1,
        "latent_channels": 8,
        "norm_groups": 32,
    }


def test_words_are_those_of_the_authors_tokenizer(emu35_recipe, sources, out):
    convert(sources / "model", sources / "vision", out)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    for number, prompt in enumerate(emu35_recipe.PROMPTS):
        text = f"<|extra_203|>You are a helpful assistant for t2i task. USER: {prompt} ASSISTANT: <|extra_100|>"
        assert tokenizer.encode(text, add_special_tokens=False).ids == RECORDED[f"prompt.{number}"].tolist()
    for name, place in emu35_recipe.IDS.items():
        if name not in ("PAD", "EOF", "EOL", "BOS", "EOS"):
            word = {"IMG": "<|image token|>", "BOI": "<|image start|>", "EOI": "<|image end|>"}[name]
            assert tokenizer.token_to_id(word) == place
    assert tokenizer.token_to_id("<|visual token 000063|>") == emu35_recipe.FIRST + 63
    assert tokenizer.get_vocab_size() == emu35_recipe.DECODER["vocab_size"]


def test_is_self_contained_and_as_small_as_told(sources, out):
    assert convert(sources / "model", sources / "vision", out, dtype=torch.bfloat16) == {torch.bfloat16}
    shutil.rmtree(sources)
    assert {tensor.dtype for tensor in stored(out / "decoder").values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in load_file(out / "image_tokenizer.safetensors").values()} == {torch.float32}
    pipe = zipar.pipeline(out, dtype=torch.bfloat16, device="cpu")
    assert pipe.model.image_size == (880, 1168)
    assert next(pipe.model.image_tokenizer.parameters()).dtype == torch.float32
    assert zipar.ZipAR(8).passes(pipe.model.grid(1024, 1024)) == 568


def test_keeps_the_number_format_of_each_tensor(sources, out):
    files = sorted((sources / "model").glob("*.safetensors"))
    for file, dtype in zip(files, (torch.bfloat16, torch.float16), strict=True):
        save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    assert convert(sources / "model", sources / "vision", out) == {torch.bfloat16, torch.float16}
    given, held = stored(sources / "model"), stored(out / "decoder")
    assert all(held[name].dtype == tensor.dtype for name, tensor in given.items())
    assert json.loads((out / "decoder" / "config.json").read_text())["dtype"] == "float32"  # holds both


@pytest.mark.parametrize("sampling", [IMAGE, GENERAL])
def test_which_of_the_two_it_is_has_to_be_told(sources, out, sampling):
    convert(sources / "model", sources / "vision", out, sampling=sampling)
    assert zipar.pipeline(out, device="cpu").model.defaults == sampling


def test_words_may_lie_elsewhere_and_weights_be_bare_and_in_one_file(emu35_recipe, sources, out):
    (sources / "words").mkdir()
    for name in ("emu3.tiktoken", "emu3_vision_tokens.txt"):
        shutil.move(sources / "model" / name, sources / "words" / name)
    for file in [*(sources / "model").glob("*.safetensors"), sources / "model" / "model.safetensors.index.json"]:
        file.unlink()
    save_file(emu35_recipe.published("decoder"), sources / "model" / "model.safetensors")
    torch.save(emu35_recipe.published("image_tokenizer"), sources / "vision" / "model.ckpt")
    convert(sources / "model", sources / "vision", out, words=sources / "words")
    assert zipar.pipeline(out, device="cpu").model.tokenizer is not None


def test_files_of_a_conversion_are_whole_and_as_the_umask_has_them(emu35_files, check_written):
    check_written(lambda out: convert(emu35_files / "model", emu35_files / "vision", out))


def test_a_pickle_that_wants_to_run_code_is_not_opened(sources, out, tmp_path, order_to_touch):
    torch.save({"state_dict": {}, "callbacks": order_to_touch(tmp_path / "ran")}, sources / "vision" / "model.ckpt")
    with pytest.raises(zipar.ZipARError, match=r"model\.ckpt was not opened, for it wants to run"):
        convert(sources / "model", sources / "vision", out)
    assert not (tmp_path / "ran").exists()


def edit(path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def cut(path, kept):
    path.write_bytes(path.read_bytes()[:kept])


def repickle(path, **changes):
    weights = torch.load(path)["state_dict"] | changes
    torch.save({"state_dict": {name: value for name, value in weights.items() if value is not None}}, path)


def swap_digits(path):
    lines = path.read_text().splitlines()
    words = [line.split()[0] for line in lines]
    words[15], words[16] = words[16], words[15]
    path.write_text("".join(f"{word} {rank}\n" for rank, word in enumerate(words)))


DAMAGE = {
    "no config": (lambda m, v: (m / "config.json").unlink(), "model is no checkpoint directory: it has no config.json"),
    "another model": (lambda m, v: edit(m / "config.json", model_type="qwen3"), r"'qwen3': give an Emu3\.5, such as"),
    "no words": (lambda m, v: (m / "emu3.tiktoken").unlink(), "emu3.tiktoken is missing"),
    "no vision words": (lambda m, v: (m / "emu3_vision_tokens.txt").unlink(), "emu3_vision_tokens.txt is missing"),
    "words cut": (lambda m, v: cut(m / "emu3.tiktoken", -9), "is damaged|fetch emu3.tiktoken"),
    "digits elsewhere": (lambda m, v: swap_digits(m / "emu3.tiktoken"), "no vocabulary of Emu3.5: '0' is not where"),
    "vision words cut": (lambda m, v: cut(m / "emu3_vision_tokens.txt", -25), "but its vocabulary has"),
    "other ids": (lambda m, v: edit(m / "config.json", eol_token_id=3), r"eol_token_id is 3, but .*<\|extra_200\|> as"),
    "scaled positions": (
        lambda m, v: edit(m / "config.json", rope_scaling={"type": "linear", "factor": 2.0}),
        "scales its rotary embedding",
    ),
    "no width": (lambda m, v: edit(m / "config.json", hidden_size=None), "model"),
    "other depth": (lambda m, v: edit(m / "config.json", num_hidden_layers=3), "lacks 11 of the"),
    "no shard": (
        lambda m, v: (m / "model-00002-of-00002.safetensors").unlink(),
        "lacks 1 of the 2 files of its weights, such as model-00002-of-00002.safetensors",
    ),
    "no index": (
        lambda m, v: (m / "model.safetensors.index.json").unlink(),
        "holds no weights: model.safetensors or its index is missing",
    ),
    "shard cut": (lambda m, v: cut(m / "model-00001-of-00002.safetensors", -5), "safetensors is damaged"),
    "no pixels": (lambda m, v: (v / "model.ckpt").unlink(), r"model\.ckpt is no file"),
    "pixels cut": (lambda m, v: cut(v / "model.ckpt", 5000), "model.ckpt is damaged, or is no PyTorch checkpoint"),
    "no codebook": (
        lambda m, v: repickle(v / "model.ckpt", **{"quantize.embedding.weight": None}),
        r"model\.ckpt is no image tokenizer of Emu3\.5",
    ),
    "other codebook": (
        lambda m, v: repickle(v / "model.ckpt", **{"quantize.embedding.weight": torch.zeros(63, 256)}),
        "image decoder knows 63 codes, the vocabulary 64",
    ),
    "no attention": (
        lambda m, v: repickle(v / "model.ckpt", **{"decoder.up.4.attn.0.q.weight": None}),
        r"model\.ckpt lacks 1 of the .*, such as decoder\.up\.4\.attn\.0\.q\.weight",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_bad_input_is_one_line_and_leaves_nothing(sources, out, damage):
    spoil, message = DAMAGE[damage]
    spoil(sources / "model", sources / "vision")
    with pytest.raises(zipar.ZipARError, match=message) as raised:
        convert(sources / "model", sources / "vision", out)
    assert "\n" not in str(raised.value)
    assert not out.parent.exists()


def test_an_existing_directory_is_left_alone(sources, tmp_path):
    (tmp_path / "note").touch()
    with pytest.raises(zipar.ZipARError, match="exists already"):
        convert(sources / "model", sources / "vision", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"note", "published"}
