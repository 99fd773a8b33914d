import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import zipar
from zipar.image_tokenizers.vq import VQConfig, VQModel
from zipar.models.llamagen import LlamaGen, LlamaGenConfig, Transformer


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    decoder = Transformer(
        LlamaGenConfig(layers=2, heads=4, dim=64, vocab_size=64, classes=10, grid_side=8, multiple_of=32)
    )
    for weight in decoder.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    image_tokenizer = VQModel(VQConfig(64, 8, 32, (1, 2), 1, 16, 8))
    defaults = zipar.Sampling(guidance_scale=2.0)
    return zipar.pipeline(LlamaGen(decoder, image_tokenizer, defaults=defaults).eval().requires_grad_(False))


def test_output(pipe):
    output = pipe(["3", "7"], strategy=zipar.ZipAR(2), seed=5, num_images_per_prompt=2)
    assert [image.size for image in output.images] == [(16, 16)] * 4
    assert output.tokens.shape == (4, 8, 8)
    assert output.tokens.dtype == np.int32
    assert output.born.max() + 1 == output.stats.forward_passes == 2 * 8 + 6 * 2
    assert output.stats.slots == 64
    assert output.stats.slots_evaluated >= 63
    assert min(output.stats.prefill_seconds, output.stats.decode_seconds, output.stats.vision_seconds) > 0
    assert output.stats.peak_memory_bytes > 2**20


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_memory_is_in_bytes_whatever_the_system_counts_in(pipe, monkeypatch, platform, unit):
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setitem(sys.modules, "resource", SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda _: Usage))
    assert pipe("3").stats.peak_memory_bytes == 7 * unit


def test_memory_is_unknown_where_the_system_does_not_tell(pipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert pipe("3").stats.peak_memory_bytes is None


class Usage:
    ru_maxrss = 7


def test_images_are_those_of_their_seeds_whatever_the_batch(pipe):
    together = pipe(["3", "7"], seed=5, num_images_per_prompt=2)
    for i, (prompt, seed) in enumerate([("3", 5), ("3", 6), ("7", 7), ("7", 8)]):
        alone = pipe(prompt, seed=seed)
        assert (alone.tokens[0] == together.tokens[i]).all()
        assert np.abs(np.asarray(alone.images[0], int) - np.asarray(together.images[i], int)).max() <= 1
    assert not (pipe("3", seed=5).tokens == pipe("3", seed=6).tokens).all()


def test_defaults_are_the_models_and_arguments_override_them(pipe):
    assert (pipe("3").tokens == pipe("3", guidance_scale=2.0, temperature=1.0).tokens).all()
    assert not (pipe("3").tokens == pipe("3", guidance_scale=1.0).tokens).all()
    greedy = pipe("3", temperature=0)
    assert (greedy.tokens == pipe("3", temperature=0, seed=99).tokens).all()
    assert (greedy.tokens == pipe("3", top_k=1).tokens).all()


def test_a_negative_prompt_replaces_the_unconditional_branch(pipe):
    assert not (pipe("3", negative_prompt="7").tokens == pipe("3").tokens).all()
    # steering from a prompt to itself is no guidance at all
    assert (pipe("3", negative_prompt="3").tokens == pipe("3", guidance_scale=1).tokens).all()


def test_callback_is_told_of_every_pass(pipe):
    seen = []
    output = pipe("3", strategy=zipar.ZipAR(2), callback=seen.append)
    assert [progress.done for progress in seen] == list(range(2, output.stats.forward_passes + 1))
    assert {progress.passes for progress in seen} == {output.stats.forward_passes}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "0 prompts make 0 images"),
        ({"prompt": "3", "num_images_per_prompt": 0}, "num_images_per_prompt 0"),
        ({"prompt": "3", "seed": [1, 2]}, "2 seeds do not fit 1 image"),
        ({"prompt": ["3", "4"], "negative_prompt": ["5"]}, "1 negative prompts do not fit 2 prompts"),
        ({"prompt": "3", "height": 32}, "32x16"),
        ({"prompt": "3", "guidance_scale": -1.0}, "guidance_scale -1"),
        ({"prompt": "3", "temperature": -1.0}, "temperature -1"),
        ({"prompt": "3", "top_k": -1}, "top_k -1"),
        ({"prompt": "3", "top_p": 0.0}, "top_p 0"),
        ({"prompt": "3", "min_p": 2.0}, "min_p 2"),
        ({"prompt": "3", "negative_prompt": "4", "guidance_scale": 1.0}, "negative prompt does nothing"),
        ({"prompt": "a fox"}, "class number"),
        ({"prompt": "10"}, "classes 0 to 9"),
        ({"prompt": "9" * 5000}, "classes 0 to 9"),
        ({"prompt": 10}, "prompt 10 is not possible: use a whole number from 0 to 9"),
        ({"prompt": [3, True]}, "prompt True"),
        ({"prompt": None}, "prompt None"),
        ({"prompt": b"3"}, "prompt b'3'"),
        ({"prompt": {"3": 1}}, "prompt {'3': 1}"),
        ({"prompt": [["3"]]}, r"prompt \['3'\]"),
        ({"prompt": "a \udcff fox"}, r"prompt 'a \\udcff fox' .* UTF-8"),
        ({"prompt": "3", "negative_prompt": 2.5}, "negative_prompt 2.5"),
        ({"prompt": "3", "seed": None}, "seed None is not possible: use a whole number"),
        ({"prompt": "3", "seed": 1.5}, "seed 1.5"),
        ({"prompt": "3", "seed": "1"}, "seed '1'"),
        ({"prompt": "3", "seed": [1.0]}, "seed 1.0"),
        ({"prompt": "3", "seed": itertools.count()}, "seeds do not fit 1 image"),
        ({"prompt": "3", "height": 0}, "height 0"),
        ({"prompt": "3", "width": "16"}, "width '16'"),
        ({"prompt": "3", "top_k": 2.5}, "top_k 2.5"),
        ({"prompt": "3", "temperature": "1"}, "temperature '1'"),
        ({"prompt": "3", "num_images_per_prompt": 10**9}, "num_images_per_prompt 1000000000 .* from 1 to 65536"),
        ({"prompt": "3", "strategy": "zipar:0"}, "window 0"),
        ({"prompt": "3", "strategy": zipar.Raster}, "strategy <class"),
        ({"prompt": "3", "deterministic": "no"}, "deterministic 'no' is not possible: use True or False"),
        ({"prompt": "3", "callback": 1}, "callback 1"),
    ],
)
def test_bad_arguments_are_named(pipe, arguments, message):
    with pytest.raises(zipar.ZipARError, match=message):
        pipe(**arguments)


@pytest.mark.parametrize(
    "prompt", [7, np.int64(7), [7], (7,), np.array([7]), ["7"], iter([7])], ids=lambda prompt: type(prompt).__name__
)
def test_classes_may_be_numbers(pipe, prompt):
    assert (pipe(prompt, seed=4).tokens == pipe("7", seed=4).tokens).all()
    assert (pipe("3", negative_prompt=7).tokens == pipe("3", negative_prompt="7").tokens).all()


def test_numbers_are_no_prompts_of_sentences(tiny_models):
    with pytest.raises(zipar.ZipARError, match="prompt 207 is not possible: use a text"):
        zipar.pipeline(tiny_models.by_text)(207)


def test_arguments_of_one_meaning_are_honoured(pipe):
    plain = pipe(["3", "4"], strategy=zipar.ZipAR(4, 8), seed=[5, 6], temperature=0.5, top_k=9)
    numbers = {"seed": np.array([5, 6]), "temperature": np.float32(0.5), "top_k": np.int64(9), "height": np.int32(16)}
    assert (pipe(("3", "4"), strategy="zipar:4:8", **numbers).tokens == plain.tokens).all()
    assert (
        pipe(iter(["3", "4"]), strategy="ZipAR:4:8", **{**numbers, "seed": range(5, 7)}).tokens == plain.tokens
    ).all()
    assert zipar.Pipeline(pipe.model, "raster").strategy == zipar.Raster()


def test_cold_images_are_greedy(pipe):
    greedy = pipe("3", temperature=0, guidance_scale=1e6)
    assert (pipe("3", temperature=1e-39, guidance_scale=1e6, seed=8).tokens == greedy.tokens).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "float12"}, "dtype 'float12' is not possible: use float32 or bfloat16 or float16"),
        ({"dtype": torch.int32}, "dtype torch.int32"),
        ({"device": 1.5}, "device 1.5 cannot be used here"),
        ({"device": ""}, "device '' cannot be used here"),
        ({"quantize": 8}, "quantize 8 is not possible: use 'int8'"),
        ({"cuda_graphs": 1}, "cuda_graphs 1"),
    ],
)
def test_bad_settings_of_a_pipeline_are_named(janus_directory, arguments, message):
    with pytest.raises(zipar.ZipARError, match=message):
        zipar.pipeline(janus_directory, **arguments)


def test_number_formats_may_be_named(janus_directory):
    pipe = zipar.pipeline(janus_directory, dtype="bfloat16", device="cpu")
    assert pipe.model.dtype == torch.bfloat16
    assert pipe.to(dtype="float32").model.dtype == torch.float32


@pytest.mark.parametrize("model", [None, 3, b"emoji", torch.nn.Linear(1, 1)], ids=repr)
def test_what_is_no_model_is_refused(model):
    with pytest.raises(zipar.ZipARError, match=r"model .* is not possible: use a directory, a hub id or"):
        zipar.pipeline(model)


class Picky:
    """A tokenizer that cannot read everything."""

    def encode(self, text, **settings):
        return SimpleNamespace(ids=self([text])["input_ids"][0])

    def __call__(self, texts):
        if any("bad fox" in text for text in texts):
            raise StopIteration
        return {"input_ids": [[1] for _ in texts]}


@pytest.mark.parametrize(
    "family",
    ["janus", "emu3", "emu3_5", "lumina_mgpt", "lumina_mgpt2", "anole", "liquid", "simplear", "llamagen"],
)
def test_what_a_tokenizer_raises_names_the_prompt(checkpoints, tiny_models, monkeypatch, family):
    model = tiny_models.by_text if family == "llamagen" else zipar.pipeline(checkpoints(family), device="cpu").model
    bad = "a bad fox"
    if family in ("janus", "emu3"):
        bad = "a <image> fox"  # stands for a picture, which there is none of
    else:
        monkeypatch.setattr(model, "text_tokenizer" if family == "llamagen" else "tokenizer", Picky())
    grid = model.grid(16, 16) if family == "emu3" else model.grid(*model.image_size)
    with pytest.raises(zipar.ZipARError, match=f"prompt .*{bad}.* cannot be read by the model's tokenizer"):
        model.prefix(["a fox", bad, "a bird"], None, True, grid)
    assert len(model.prefix(["a fox", "a bird"], None, True, grid).valid) == 4


@pytest.mark.parametrize(("family", "size"), [("janus", (12, 12)), ("emu3", (16, 16)), ("emu3_5", (64, 96))])
def test_a_prompt_beyond_the_last_position_is_refused(checkpoints, family, size):
    pipe = zipar.pipeline(checkpoints(family), device="cpu")
    with pytest.raises(zipar.ZipARError, match=f"leaves no room for an image .* reads {pipe.model.positions} at most"):
        pipe(["a", "fox " * pipe.model.positions], height=size[0], width=size[1])


def test_a_name_that_is_no_checkpoint():
    with pytest.raises(zipar.ZipARError, match="no checkpoint"):
        zipar.pipeline("nowhere")
