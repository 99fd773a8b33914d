"""What is the user's stays as it is: in other threads, in copies, after errors; and numbers that are none are told."""

import copy
import pickle
import re
import threading

import pytest
import torch

import zipar
from zipar import ZipAR, ZipARError


def state(model):
    """All that the model's parts hold, but for what training never touches by itself."""
    return [{name: id(value) for name, value in vars(part).items()} for part in model.modules()]


def configs(model):
    return [
        part.config.to_dict() | {"attention": part.config._attn_implementation}
        for part in model.modules()
        if hasattr(part, "config")
    ]


def test_text_and_images_of_many_threads(case):
    """One accelerated model: images in two threads and text in a third are those of one thread alone."""
    model, wrong, done = case.load(), [], threading.Event()
    texts, before = case.text(model), configs(model)

    def guarded(work):
        try:
            while not done.is_set():
                work()
        except Exception as error:
            wrong.append(error)

    def paint():
        if not model.generate(**case.arguments).equal(case.expected):
            wrong.append("image")

    def write():
        if not case.text(model).equal(texts):
            wrong.append("text")
        if configs(model) != before:
            wrong.append("config")

    with zipar.accelerate(model, ZipAR(3)):
        threads = [threading.Thread(target=guarded, args=(work,)) for work in (paint, paint, write)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            write()
        done.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert configs(model) == before


def test_a_pipeline_in_many_threads():
    pipe, found = zipar.pipeline("emoji"), {}

    def paint(pipe, seed=0):
        return pipe("a red fox", seed=seed, strategy="zipar:1").tokens

    expected = [paint(pipe, seed) for seed in range(4)]
    threads = [threading.Thread(target=lambda seed=seed: found.update({seed: paint(pipe, seed)})) for seed in range(4)]
    for thread in threads:
        thread.start()
    copies = [copy.deepcopy(pipe) for _ in range(3)]
    for thread in threads:
        thread.join()
    assert all((found[seed] == expected[seed]).all() for seed in range(4))
    assert all((paint(other) == expected[0]).all() for other in copies)


def test_an_error_in_a_pass_leaves_nothing_behind(case):
    model = case.load()
    before, held, calls = state(model), configs(model), []

    def fail(*_):
        calls.append(0)
        if len(calls) == 5:
            raise KeyboardInterrupt

    layers = {"janus": "language_model", "emu3": "text_model", "glm_image": "language_model"}.get(case.family)
    decoder = getattr(model.model, layers) if layers else model.model
    hook = decoder.layers[0].self_attn.q_proj.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        case.images(model)
    assert len(calls) == 5
    hook.remove()
    assert (state(model), configs(model)) == (before, held)
    assert case.images(model).equal(case.expected)


def test_copies_paint_with_their_own_weights(case):
    model = case.load()
    with zipar.accelerate(model, ZipAR(3)):
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in copies:
        assert other.generate(**case.arguments).equal(case.expected)
        with torch.no_grad():
            other.get_input_embeddings().weight.mul_(-1)
            for weight in [*other.parameters()]:
                weight.copy_(weight.flip(0))
        assert not other.generate(**case.arguments).equal(case.expected)
        assert case.images(model).equal(case.expected)
        case.text(other)


def test_autocast_changes_nothing(case):
    model = case.load()
    with torch.autocast("cpu", torch.bfloat16):
        assert case.images(model).equal(case.expected)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_told(case, number):
    model = case.load()
    with torch.no_grad():
        next(
            weight for name, weight in model.named_parameters() if re.search(r"layers\.1\.mlp\.(gate_)?up_proj", name)
        )[3, 3] = number
    for settings in {}, {"do_sample": True}:
        with pytest.raises(ZipARError, match=r"no finite numbers \(NaN or infinity\): its weights may be damaged"):
            case.images(model, **settings)


def test_an_overflow_of_float16_is_told(case):
    model = case.load(dtype=torch.float16)
    with torch.no_grad():
        next(
            weight for name, weight in model.named_parameters() if re.search(r"layers\.1\.mlp\.(gate_)?up_proj", name)
        ).mul_(30000)
    with pytest.raises(ZipARError, match=r"float16 holds nothing above 65504, so load the model in bfloat16"):
        case.images(model)
