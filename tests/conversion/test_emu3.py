"""Conversion of files laid out, named and shaped as those of BAAI/Emu3-Gen and BAAI/Emu3-VisionTokenizer."""

import base64
import itertools
import json
import random
import shutil
import unicodedata

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Emu3ForConditionalGeneration, Emu3Processor

import zipar
from zipar.conversion.emu3 import convert
from zipar.conversion.emu_words import read_vocabulary

CODEBOOK = 40
EXTRAS = [f"<|extra_{i}|>" for i in range(205)]
NAMED = ["<|image token|>", "<|image start|>", "<|image end|>"]
VISION_WORDS = [*NAMED, *(f"<|visual token {code:06}|>" for code in range(CODEBOOK))]


def ranked_words():
    """All bytes, then longer and longer words, many of which can be merged in several ways."""
    rng = random.Random(0)
    words = [bytes([byte]) for byte in range(256)]
    pieces = [b"a", b"b", b"c", b" ", "é".encode()[:1], "é".encode()[1:]]
    while len(words) < 320:
        word = rng.choice(pieces) + rng.choice(pieces)
        if word not in words and len(word) < 6:
            words.append(word)
            pieces.append(word)
    return words


def ids_of_extras():
    first = len(ranked_words()) + 3
    return {name: first + i for i, name in enumerate([*EXTRAS, *NAMED])}


def text_config():
    ids = ids_of_extras()
    return {
        "architectures": ["Emu3ForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_emu3.Emu3Config"},
        "model_type": "Emu3",
        "vocab_size": len(ranked_words()) + 3 + 205 + len(VISION_WORDS),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 300,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
        "attention_dropout": 0.1,
        "rope_theta": 5000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "pad_token_id": len(ranked_words()),
        "bos_token_id": ids["<|extra_203|>"],
        "eos_token_id": ids["<|extra_204|>"],
        "eol_token_id": ids["<|extra_200|>"],
        "eof_token_id": ids["<|extra_201|>"],
        "img_token_id": ids["<|image token|>"],
        "boi_token_id": ids["<|image start|>"],
        "eoi_token_id": ids["<|image end|>"],
    }


VISION_CONFIG = {
    "model_type": "Emu3VisionVQ",
    "auto_map": {"AutoModel": "modeling_emu3visionvq.Emu3VisionVQModel"},
    "codebook_size": CODEBOOK,
    "embed_dim": 4,
    "z_channels": 4,
    "double_z": False,
    "in_channels": 3,
    "out_channels": 3,
    "temporal_downsample_factor": 2,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [1],
    "dropout": 0.0,
}


def text_shapes():
    size = text_config()["vocab_size"]
    yield "model.embed_tokens.weight", (size, 32)
    for i in range(2):
        layer = f"model.layers.{i}"
        for name, width in (("q", 32), ("k", 16), ("v", 16), ("o", 32)):
            yield f"{layer}.self_attn.{name}_proj.weight", (width, 32)
        yield f"{layer}.mlp.gate_proj.weight", (48, 32)
        yield f"{layer}.mlp.up_proj.weight", (48, 32)
        yield f"{layer}.mlp.down_proj.weight", (32, 48)
        yield f"{layer}.input_layernorm.weight", (32,)
        yield f"{layer}.post_attention_layernorm.weight", (32,)
    yield "model.norm.weight", (32,)
    yield "lm_head.weight", (size, 32)


def layer(name, *shape):
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def norm(name, channels, spatial):
    if not spatial:
        yield from layer(name, channels)
        return
    yield from layer(f"{name}.norm_layer", channels)
    yield from layer(f"{name}.conv_y", channels, 4, 1, 1)
    yield from layer(f"{name}.conv_b", channels, 4, 1, 1)


def block(name, before, after, spatial):
    yield from norm(f"{name}.norm1", before, spatial)
    yield from layer(f"{name}.conv1", after, before, 3, 3)
    yield from norm(f"{name}.norm2", after, spatial)
    yield from layer(f"{name}.conv2", after, after, 3, 3)
    if before != after:
        yield from layer(f"{name}.nin_shortcut", after, before, 1, 1)


def attention(name, channels, spatial):
    yield from norm(f"{name}.norm", channels, spatial)
    for part in ("q", "k", "v", "proj_out"):
        yield from layer(f"{name}.{part}", channels, channels, 1, 1)


def middle(name, channels, spatial):
    yield from block(f"{name}.block_1", channels, channels, spatial)
    yield from attention(f"{name}.attn_1", channels, spatial)
    yield from block(f"{name}.block_2", channels, channels, spatial)


def over_time(name, kernel):
    yield from layer(f"{name}.time_conv.0.conv.conv", 4, 4, kernel, 3, 3)
    for part in ("1", "2"):
        yield from layer(f"{name}.time_res_stack.0.norm{part}", 4)
        for statistic in ("running_mean", "running_var"):
            yield f"{name}.time_res_stack.0.norm{part}.{statistic}", (4,)
        yield f"{name}.time_res_stack.0.norm{part}.num_batches_tracked", ()
        yield from layer(f"{name}.time_res_stack.0.conv{part}.conv", 4, 4, 3, 3, 3)


def vision_shapes():
    yield from layer("encoder.conv_in", 32, 3, 3, 3)
    yield from block("encoder.down.0.block.0", 32, 32, False)
    yield from layer("encoder.down.0.downsample.conv", 32, 32, 3, 3)
    yield from block("encoder.down.1.block.0", 32, 64, False)
    yield from attention("encoder.down.1.attn.0", 64, False)
    yield from middle("encoder.mid", 64, False)
    yield from layer("encoder.norm_out", 64)
    yield from layer("encoder.conv_out", 4, 64, 3, 3)
    yield from over_time("encoder", 4)
    yield from over_time("decoder", 3)
    yield from layer("decoder.conv_in", 64, 4, 3, 3)
    yield from middle("decoder.mid", 64, True)
    for i, (before, after) in enumerate([(64, 64), (64, 64)]):
        yield from block(f"decoder.up.1.block.{i}", before, after, True)
        yield from attention(f"decoder.up.1.attn.{i}", 64, True)
    yield from layer("decoder.up.1.upsample.conv", 64, 64, 3, 3)
    for i, (before, after) in enumerate([(64, 32), (32, 32)]):
        yield from block(f"decoder.up.0.block.{i}", before, after, True)
    yield from norm("decoder.norm_out", 32, True)
    yield from layer("decoder.conv_out", 3, 32, 3, 3)
    yield "quantize.embedding.weight", (CODEBOOK, 4)
    yield from layer("quant_conv.conv", 4, 4, 3, 1, 1)
    yield from layer("post_quant_conv.conv", 4, 4, 3, 1, 1)


def tensors(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.tensor(7) if name.endswith("tracked") else torch.rand(shape, generator=generator)
        for name, shape in shapes
    }


def save_sharded(weights, directory):
    names = list(weights)
    halves = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, held in halves.items():
        save_file({name: weights[name] for name in held}, directory / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, held in halves.items() for name in held}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Directories "model" and "vision", with the code that the hub would run in them."""
    folder = tmp_path_factory.mktemp("published")
    model, vision = folder / "model", folder / "vision"
    for directory in (model, vision):
        directory.mkdir()
        (directory / "modeling_emu3.py").write_text("raise SystemExit('code from a hub')")
    (model / "config.json").write_text(json.dumps(text_config()))
    save_sharded(tensors(text_shapes(), 0), model)
    lines = [f"{base64.b64encode(word).decode()} {rank}\n" for rank, word in enumerate(ranked_words())]
    (model / "emu3.tiktoken").write_text("".join(lines))
    (model / "emu3_vision_tokens.txt").write_text("\n".join(VISION_WORDS) + "\n")
    (vision / "config.json").write_text(json.dumps(VISION_CONFIG))
    settings = {"image_processor_type": "Emu3VisionVQImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.4] * 3}
    (vision / "preprocessor_config.json").write_text(json.dumps(settings))
    save_file(tensors(vision_shapes(), 1), vision / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def converted(published):
    convert(published / "model", published / "vision", published / "out", dtype=torch.float32)
    return published / "out"


def merged(piece):
    """What the ranks make of a piece of text: always the neighbours whose union has the least rank."""
    ranks = {word: rank for rank, word in enumerate(ranked_words())}
    parts = [bytes([byte]) for byte in piece.encode()]
    while len(parts) > 1:
        unions = [ranks.get(left + right, 10**9) for left, right in itertools.pairwise(parts)]
        if min(unions) == 10**9:
            break
        i = unions.index(min(unions))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[part] for part in parts]


@pytest.mark.parametrize(
    "pieces",
    [
        ["abcab", " cab", " bca", "'s", " aabb", ","],
        ["a", "1", "2", "*", "3"],
        ["ca", "\n\n", " ", " abba", "!?", " é"],
        ["aéé", "'ll", " cc"],
        [*("".join(random.Random(i).choices("abc", k=9)) + "." for i in range(1))],
    ],
    ids="".join,
)
def test_words_are_those_of_the_ranks(converted, pieces):
    tokenizer = Emu3Processor.from_pretrained(converted).tokenizer
    pieces = [part for piece in pieces for part in ([piece[:-1], "."] if piece.endswith(".") else [piece])]
    text = "".join(pieces)
    assert tokenizer(text)["input_ids"] == [i for piece in pieces for i in merged(piece)]
    assert tokenizer(unicodedata.normalize("NFD", text))["input_ids"] == tokenizer(text)["input_ids"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_random_words_are_those_of_the_ranks(converted):
    tokenizer = Emu3Processor.from_pretrained(converted).tokenizer
    words = ["".join(random.Random(i).choices("abc", k=12)) for i in range(300)]
    assert tokenizer(words)["input_ids"] == [merged(word) for word in words]


def test_named_words_have_their_published_ids(converted):
    processor = Emu3Processor.from_pretrained(converted)
    ids = ids_of_extras()
    ids["<image>"] = ids.pop("<|extra_0|>")
    names = [*ids, "<|endoftext|>", *VISION_WORDS]
    wanted = [*ids.values(), len(ranked_words()), *(ids["<|image token|>"] + i for i in range(len(VISION_WORDS)))]
    assert processor.tokenizer.convert_tokens_to_ids(names) == wanted
    text = "ab<|image start|>9*12<|image token|><|visual token 000039|>"
    written = processor.tokenizer.convert_ids_to_tokens(processor.tokenizer(text)["input_ids"])
    assert written[-7:] == ["<|image start|>", "9", "*", "1", "2", "<|image token|>", "<|visual token 000039|>"]
    config = json.loads((converted / "config.json").read_text())
    assert config["vocabulary_map"] == processor.tokenizer.get_vocab()
    assert processor.image_processor.image_std == [0.4] * 3


def test_every_tensor_finds_its_place(published, converted):
    network, loading = Emu3ForConditionalGeneration.from_pretrained(converted, output_loading_info=True)
    assert not any(loading.values())
    held = network.state_dict()
    text, vision = tensors(text_shapes(), 0), tensors(vision_shapes(), 1)
    assert len(held) == len(text) + len(vision)
    for theirs, ours in {
        "lm_head.weight": "lm_head.weight",
        "model.norm.weight": "model.text_model.norm.weight",
        "model.layers.1.self_attn.k_proj.weight": "model.text_model.layers.1.self_attn.k_proj.weight",
    }.items():
        assert held[ours].equal(text.pop(theirs))
    for theirs, ours in {
        "encoder.mid.attn_1.norm.bias": "encoder.middle_block.attn_norm.bias",
        "encoder.mid.attn_1.proj_out.weight": "encoder.middle_block.attn_1.out_proj.weight",
        "encoder.down.1.attn.0.q.weight": "encoder.down_block.down.1.attn.0.q_proj.weight",
        "encoder.down.1.attn.0.norm.weight": "encoder.down_block.down.1.attn_norms.0.weight",
        "decoder.mid.attn_1.norm.conv_y.weight": "decoder.middle_block.attn_norm.conv_y.weight",
        "decoder.mid.block_2.conv1.bias": "decoder.middle_block.block_2.conv1.bias",
        "decoder.up.1.attn.1.v.bias": "decoder.up_block.up.1.attn.1.v_proj.bias",
        "decoder.up.1.attn.1.norm.conv_b.weight": "decoder.up_block.up.1.attn_norms.1.conv_b.weight",
        "decoder.up.1.upsample.conv.weight": "decoder.up_block.up.1.upsample.conv.weight",
        "decoder.time_res_stack.0.norm1.num_batches_tracked": "decoder.time_res_stack.0.norm1.num_batches_tracked",
        "quantize.embedding.weight": "quantize.embedding.weight",
    }.items():
        ours = held[f"model.vqmodel.{ours}"]
        assert ours.equal(vision.pop(theirs).reshape(ours.shape))
    found = {tuple(tensor.flatten()[:4].tolist()) for tensor in held.values()}
    assert all(tuple(tensor.flatten()[:4].tolist()) in found for tensor in (*text.values(), *vision.values()))
    rope = network.config.text_config.rope_parameters
    assert (rope["rope_theta"], rope["rope_type"]) == (5000.0, "default")
    assert network.generation_config.top_k == 2048


def test_images_are_made_of_what_was_converted(converted):
    output = zipar.pipeline(converted, device="cpu")(["a cab", "bcc"], height=6, width=8, strategy=zipar.ZipAR(2))
    assert output.tokens.shape == (2, 3, 4)
    assert [image.size for image in output.images] == [(8, 6)] * 2


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_types_of_what_is_stored(published, tmp_path, dtype):
    expected = dtype or torch.float32
    assert convert(published / "model", published / "vision", tmp_path / "out", dtype=dtype) == {expected}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(expected).removeprefix("torch.")
    stored = {}
    for file in (tmp_path / "out").glob("*.safetensors"):
        stored |= load_file(file)
    types = {
        part: {tensor.dtype for name, tensor in stored.items() if ("vqmodel" in name) == (part == "vision")}
        for part in ("text", "vision")
    }
    assert types == {"text": {expected}, "vision": {torch.float32, torch.int64}}
    assert zipar.pipeline(tmp_path / "out", device="cpu").model.dtype == torch.float32
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_files_of_a_conversion_are_whole_and_as_the_umask_has_them(published, check_written):
    check_written(lambda out: convert(published / "model", published / "vision", out))


def edit(path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def cut(path, kept):
    path.write_bytes(path.read_bytes()[:kept])


def retensor(path, **changes):
    weights = load_file(path) | changes
    save_file({name: value for name, value in weights.items() if value is not None}, path, {"format": "pt"})


DAMAGE = {
    "no config": (lambda m, v: (m / "config.json").unlink(), "model is no checkpoint directory: it has no config.json"),
    "swapped": (
        lambda m, v: edit(m / "config.json", model_type="Emu3VisionVQ"),
        "'Emu3VisionVQ': give a language model",
    ),
    "converted already": (lambda m, v: edit(m / "config.json", model_type="emu3"), "'emu3': give a language model"),
    "no image tokenizer": (lambda m, v: edit(v / "config.json", model_type="Emu3"), "'Emu3': give an image tokenizer"),
    "no words": (lambda m, v: (m / "emu3.tiktoken").unlink(), "emu3.tiktoken is missing"),
    "no vision words": (lambda m, v: (m / "emu3_vision_tokens.txt").unlink(), "emu3_vision_tokens.txt is missing"),
    "words cut": (lambda m, v: cut(m / "emu3.tiktoken", -9), "is damaged|fetch emu3.tiktoken"),
    "words cut within": (lambda m, v: cut(m / "emu3.tiktoken", 1001), "is damaged|fetch emu3.tiktoken"),
    "words no base 64": (lambda m, v: (m / "emu3.tiktoken").write_text("!!! 0\n"), "is damaged"),
    "words are a page": (lambda m, v: (m / "emu3.tiktoken").write_text("<!DOCTYPE html>\n<html>"), "is damaged"),
    "ranks missing": (lambda m, v: (m / "emu3.tiktoken").write_text("YQ== 5\n"), "its ranks are not 0 to 0"),
    "vision words cut": (lambda m, v: cut(m / "emu3_vision_tokens.txt", -25), "but its vocabulary has"),
    "other ids": (lambda m, v: edit(m / "config.json", eol_token_id=3), r"eol_token_id is 3, but .*<\|extra_200\|> as"),
    "scaled positions": (
        lambda m, v: edit(m / "config.json", rope_scaling={"type": "linear", "factor": 2.0}),
        "scales its rotary embedding",
    ),
    "no width": (lambda m, v: edit(m / "config.json", hidden_size=None), "model"),
    "other depth": (lambda m, v: edit(m / "config.json", num_hidden_layers=3), "lacks 9 of the"),
    "other codebook": (lambda m, v: edit(v / "config.json", codebook_size=41), "names 40 visual tokens, .* holds 41"),
    "no index": (
        lambda m, v: (m / "model.safetensors.index.json").unlink(),
        r"model\.safetensors is missing: fetch it",
    ),
    "empty index": (lambda m, v: (m / "model.safetensors.index.json").write_text("{}"), "names no files"),
    "no shard": (
        lambda m, v: (m / "model-00002-of-00002.safetensors").unlink(),
        "00002-of-00002.safetensors is missing",
    ),
    "shard cut": (lambda m, v: cut(m / "model-00001-of-00002.safetensors", -5), "safetensors is damaged"),
    "pixels cut": (lambda m, v: cut(v / "model.safetensors", 100), "safetensors is damaged"),
    "no head": (
        lambda m, v: retensor(m / "model-00002-of-00002.safetensors", **{"lm_head.weight": None}),
        "model lacks 1 of the .* such as lm_head.weight",
    ),
    "wrong shape": (
        lambda m, v: retensor(v / "model.safetensors", **{"decoder.conv_out.bias": torch.zeros(4)}),
        r"vision: decoder.conv_out.bias is of shape \(4,\)",
    ),
    "unknown tensor": (
        lambda m, v: retensor(v / "model.safetensors", **{"loss.weight": torch.zeros(4)}),
        "vision holds 1 tensors that do not belong, such as loss.weight",
    ),
    "no preprocessor": (lambda m, v: (v / "preprocessor_config.json").unlink(), "has no preprocessor_config.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_bad_input_is_one_line_and_leaves_nothing(published, tmp_path, damage):
    sources = [shutil.copytree(published / name, tmp_path / "sources" / name) for name in ("model", "vision")]
    spoil, message = DAMAGE[damage]
    spoil(*sources)
    with pytest.raises(zipar.ZipARError, match=message) as raised:
        convert(*sources, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["sources"]


def test_an_existing_directory_is_left_alone(published, tmp_path):
    (tmp_path / "note").touch()
    with pytest.raises(zipar.ZipARError, match="exists already"):
        convert(published / "model", published / "vision", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_vocabulary_of_the_published_size():
    """The ids that the published config names follow from 151,643 ranked words."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *EXTRAS, *NAMED]
    ids = {name: 151643 + i for i, name in enumerate(names)}
    assert (ids["<|extra_200|>"], ids["<|extra_201|>"], ids["<|extra_203|>"]) == (151846, 151847, 151849)
    assert (ids["<|image token|>"], ids["<|image end|>"]) == (151851, 151853)
    assert ids["<|image end|>"] + 1 + 32768 == 184622


def test_reading_the_vocabulary_alone(published):
    vocabulary, merges = read_vocabulary(published / "model")
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert all(left + right in vocabulary for left, right in merges)
