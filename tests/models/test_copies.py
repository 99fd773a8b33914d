"""Pipelines are copied, pickled, sent elsewhere, moved and converted, and go on painting, with weights of their own."""

import copy
import multiprocessing
import pickle

import numpy as np
import pytest
import torch

import zipar
from zipar import ZipAR, ZipARError
from zipar.models.packing import PackedInPlace

SIZES = {
    "emoji": (64, 64),
    "janus": (12, 12),
    "emu3": (8, 12),
    "emu3_5": (64, 96),
    "lumina_mgpt": (64, 96),
    "lumina_mgpt2": (64, 32),
    "anole": (96, 96),
    "liquid": (96, 96),
    "simplear": (96, 96),
}
QUANTISED = pytest.mark.skipif(
    torch.backends.quantized.engine not in ("x86", "fbgemm"), reason="int8 on CPUs is for x86 alone"
)


def paint(pipe):
    height, width = SIZES[pipe.model.family if pipe.model.family in SIZES else "emoji"]
    return pipe("a red fox", strategy=ZipAR(1), height=height, width=width, temperature=0).tokens


def packed(pipe):
    return sum(type(module) is PackedInPlace for module in pipe.model.modules())


def formats(pipe):
    """Of what computes exactly."""
    return {weight.dtype for module in pipe.model.exact() for weight in module.parameters()}


@pytest.fixture(scope="module", params=SIZES)
def pipe(request, checkpoints):
    """One for all tests of a family, whatever number formats its weights have been through."""
    return zipar.pipeline("emoji" if request.param == "emoji" else checkpoints(request.param), device="cpu")


def test_a_copy_and_a_pickle_of_any_family(pipe):
    held, expected = packed(pipe), paint(pipe)
    assert packed(pipe) == held  # painting is no reason to look at the weights
    for other in copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe)):
        assert (paint(other) == expected).all()
        for weight in other.model.stepped()[0].parameters():
            weight.copy_(weight.flip(0))
        assert (paint(other) != expected).any()
    assert (paint(pipe) == expected).all()


def test_another_number_format_of_any_family(pipe):
    expected, exact = paint(pipe), formats(pipe)
    assert pipe.to(dtype=torch.bfloat16) is pipe
    assert pipe.model.dtype == torch.bfloat16
    assert formats(pipe) == exact <= {torch.float32}
    assert paint(pipe).shape == expected.shape
    pipe.to("cpu", torch.float32)
    assert pipe.model.dtype == torch.float32


def test_what_computes_exactly_loses_nothing_on_the_way(pipe):
    before = [weight.clone() for module in pipe.model.exact() for weight in module.parameters()]
    pipe.to(dtype=torch.bfloat16).to(dtype=torch.float32)
    after = [weight for module in pipe.model.exact() for weight in module.parameters()]
    assert all(one.equal(other) for one, other in zip(before, after, strict=True))


def test_autocast_changes_nothing_in_any_family(pipe):
    expected = paint(pipe)
    with torch.autocast("cpu", torch.bfloat16):
        assert (paint(pipe) == expected).all()


@QUANTISED
def test_int8(checkpoints):
    pipe = zipar.pipeline(checkpoints("janus"), device="cpu", quantize="int8")
    expected = paint(pipe)
    for other in copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe)):
        assert (paint(other) == expected).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert (paint(pipe) == expected).all()
    with pytest.raises(ZipARError, match="int8 are laid out for 'cpu', where they were loaded: load the checkpoint"):
        pipe.model.to("meta")
    assert (paint(pipe) == expected).all()


def test_a_device_that_is_not_there_is_named(checkpoints):
    pipe = zipar.pipeline(checkpoints("janus"), device="cpu")
    for device in "meta", "cuda:99", "nowhere":
        with pytest.raises(ZipARError, match=f"device '{device}' cannot be used here"):
            pipe.to(device)
    paint(pipe)


def work(pipe, results):
    results.put(paint(pipe))


def test_a_pipeline_is_sent_to_a_spawned_process():
    pipe = zipar.pipeline("emoji")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=work, args=(pipe, results))
    process.start()
    found = results.get(timeout=120)
    process.join()
    assert process.exitcode == 0
    assert (np.asarray(found) == paint(pipe)).all()
