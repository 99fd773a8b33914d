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
        ({"prompt": []}, "make no image"),
        ({"prompt": "3", "num_images_per_prompt": 0}, "make no image"),
        ({"prompt": "3", "seed": [1, 2]}, "2 seeds do not fit 1 image"),
        ({"prompt": ["3", "4"], "negative_prompt": ["5"]}, "1 negative prompts do not fit 2 prompts"),
        ({"prompt": "3", "height": 32}, "32x16"),
        ({"prompt": "3", "guidance_scale": -1.0}, "guidance scale -1"),
        ({"prompt": "3", "temperature": -1.0}, "temperature -1"),
        ({"prompt": "3", "top_k": -1}, "top-k -1"),
        ({"prompt": "3", "top_p": 0.0}, "top-p 0"),
        ({"prompt": "3", "negative_prompt": "4", "guidance_scale": 1.0}, "negative prompt does nothing"),
        ({"prompt": "a fox"}, "class number"),
        ({"prompt": "10"}, "classes 0 to 9"),
    ],
)
def test_bad_arguments_are_named(pipe, arguments, message):
    with pytest.raises(zipar.ZipARError, match=message):
        pipe(**arguments)


def test_a_name_that_is_no_checkpoint():
    with pytest.raises(zipar.ZipARError, match="no checkpoint"):
        zipar.pipeline("nowhere")
