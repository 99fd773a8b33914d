"""Whatever users give: all public callables and all options, with values that they were not made for."""

import copy
import inspect
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import GenerationConfig, JanusForConditionalGeneration

import zipar
from zipar.decoding.engine import decode
from zipar.decoding.names import parse, strategy_of
from zipar.evaluation import accuracy, fid, images, manifold, report, tuning
from zipar.evaluation.fidelity import likelihood

EXAMPLES = settings(max_examples=300, suppress_health_check=list(HealthCheck))


class Unruly:
    """Raises, whatever one asks it for."""

    def __repr__(self):
        raise RuntimeError("no")

    __index__ = __float__ = __fspath__ = __repr__


HUGE = 10**5000
"""Has more digits than Python writes."""
NUMBERS = (0, -1, 2**31, 2**63, -(2**70), HUGE, -0.5, 1.5, 1e-320, 1e-39, 3e38, 1e308, math.nan, math.inf, 1j)
TEXTS = ("", " ", "1", "x", "\0", "\udcff", "[/red]", "zipar:2", "zipar:0", "9" * 5000, "16x16", "cpu", "float32")
SEVERAL = ((), [], [1], [None], ["x", 1], [[3]], {}, {"a": 1}, {1}, range(2), b"3")
OBJECTS = (None, True, False, ..., slice(2), object(), Unruly(), Unruly, len, int, Path("x"))
OTHERS = (Decimal("0.5"), Fraction(1, 2), Fraction(HUGE), np.int64(2), np.float32(0.5), np.True_, torch.tensor(3))
ARRAYS = (
    np.array(3),
    np.array([1, 2]),
    np.array([[1.5]]),
    np.array("x"),
    np.zeros((2, 4, 4, 3), np.uint8),
    np.zeros(0),
)
TENSORS = (torch.tensor([1.5, 2.0]), torch.zeros(2, 3), torch.zeros(0, 5), torch.float64, torch.device("cpu"))
OURS = (torch.nn.Linear(1, 1), zipar.Raster(), zipar.Sampling(), zipar.TokenGrid(2, 2), GenerationConfig())
ODD = (*NUMBERS, *TEXTS, *SEVERAL, *OBJECTS, *OTHERS, *ARRAYS, *TENSORS, *OURS)
odd = st.one_of(
    st.sampled_from(ODD),
    st.integers(-3, 3),
    st.floats(),
    st.text(st.characters(codec=None), max_size=6),
    st.lists(st.sampled_from(ODD), max_size=3),
    st.lists(st.sampled_from(ODD), max_size=3).map(iter),
)


@pytest.fixture(scope="module")
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


class Calls(dict):
    """Public callables by name, each with arguments that it takes."""

    def __repr__(self):
        return "calls"


@pytest.fixture(scope="module")
def calls(tiny_models, janus_directory, offline, tiny_clips):
    """Those of the package, and others that the documents name."""
    janus = JanusForConditionalGeneration.from_pretrained(janus_directory)
    ids = torch.tensor([[1, 7, 4]])
    model, grid, sampling = tiny_models.by_class, zipar.TokenGrid(2, 3), zipar.Sampling(2.0)
    pipe = zipar.pipeline(model)
    prefix = model.prefix(["3"], None, True, grid)
    tokens = decode(model, prefix, grid, zipar.Raster(), sampling, [0]).tokens
    moments = fid.Moments.of(torch.randn(5, 2))
    verdicts = np.array([True, False])

    def accelerate(**given):
        with zipar.accelerate(**given):
            pass

    def call(self, **given):
        return self(**given)

    def generate(**given):
        return janus.generate(ids, do_sample=False, custom_generate=zipar.generate, **given)

    sampled = {"guidance_scale": 2.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    called = {
        "prompt": "3",
        "strategy": "zipar:1",
        "seed": 0,
        **sampled,
        "negative_prompt": None,
        "num_images_per_prompt": 1,
        "height": None,
        "width": None,
        "frames": None,
        "given": None,
        "deterministic": False,
        "callback": None,
    }
    loaded = {"model": janus_directory, "dtype": None, "device": "cpu", "cuda_graphs": True, "quantize": None}
    loaded["tensor_parallel"] = False
    drawn = {"prefix": prefix, "grid": grid, "sampling": sampling}
    decoded = {"model": model, **drawn, "strategy": zipar.Raster(), "seeds": [0], "callback": None}
    decoded |= {"deterministic": False, "cuda_graphs": False}
    pictures = [Image.new("RGB", (8, 8))] * 2
    inside = {"model": janus, "input_ids": ids, "generation_config": GenerationConfig()}
    public = {
        "AdaptiveZipAR": (zipar.AdaptiveZipAR, {"min_window": 2, "first_row": "alone", "frame_delay": 2}),
        "CoupledJacobi": (zipar.CoupledJacobi, {"lookahead": 4, "window": None, "budget": None}),
        "Pipeline": (zipar.Pipeline, {"model": model, "strategy": None, "cuda_graphs": True}),
        "Raster": (zipar.Raster, {}),
        "Sampling": (zipar.Sampling, sampled),
        "TokenGrid": (
            zipar.TokenGrid,
            {"rows": 2, "columns": 2, "frames": 2, "row_end": None, "frame_end": (), "given": 1},
        ),
        "Video": (zipar.Video, {"frames": pictures, "fps": 8}),
        "ZipAR": (zipar.ZipAR, {"window": 2, "lookahead": 1, "first_row": "alone", "nats": 2.0, "frame_delay": 2}),
        "accelerate": (accelerate, {"model": janus, "strategy": None}),
        "generate": (generate, {"strategy": "zipar:1", "image_guidance_scale": 5.0}),
        "pipeline": (zipar.pipeline, loaded),
    }
    others = {
        "Pipeline.__call__": (pipe, called),
        "Pipeline.__call__ of text": (zipar.pipeline(tiny_models.by_text), called),
        "Pipeline.__call__ of clips": (zipar.Pipeline(tiny_clips), {**called, "frames": 3, "given": pictures}),
        "Pipeline.to": (zipar.pipeline(copy.deepcopy(model)).to, {"device": None, "dtype": None}),
        "decode": (decode, decoded),
        "generate itself": (zipar.generate, inside),
        "parse": (parse, {"text": "zipar"}),
        "strategy_of": (strategy_of, {"given": None}),
        "wilson": (accuracy.wilson, {"hits": 1, "total": 2, "confidence": 0.95}),
        "paired_difference": (accuracy.paired_difference, {"ours": verdicts, "base": verdicts, "confidence": 0.95}),
        "Moments.of": (fid.Moments.of, {"features": torch.randn(5, 2)}),
        "frechet_distance": (fid.frechet_distance, {"a": moments, "b": moments}),
        "resample": (fid.resample, {"features": torch.randn(5, 2), "reference": moments, "replicates": 2, "seed": 0}),
        "interval": (fid.interval, {"estimate": 1.0, "resampled": torch.randn(5).double(), "confidence": 0.9}),
        "precision_recall": (
            manifold.precision_recall,
            {"real": torch.randn(5, 2), "made": torch.randn(6, 2), "k": 3},
        ),
        "likelihood": (likelihood, {"model": model, **drawn, "tokens": tokens, "chunk": 4}),
        "checked": (images.checked, {"images": np.zeros((2, 4, 4, 3), np.uint8)}),
        "mean": (report.mean, {"values": np.array([1.0, 2.0])}),
        "check_images": (tuning.check_images, {"images": 4, "reach": 0.01, "tolerance": 0.02}),
        "search": (
            tuning.search,
            {"measure": lambda _: tuning.Figures(0, 0, 0, 1), "columns": 4, "lookahead": 2, "tolerance": 0.1},
        ),
    }
    return Calls(public), Calls(others)


def test_all_public_callables_are_walked(calls):
    # results, an interface, an exception, a value
    records = {"DecodingStats", "PipelineOutput", "Strategy", "ZipARError", "DEFAULT"}
    assert calls[0].keys() == set(zipar.__all__) - records
    for name, (function, known) in {**calls[0], "Pipeline.__call__": calls[1]["Pipeline.__call__"]}.items():
        if name not in ("accelerate", "generate"):
            assert known.keys() == inspect.signature(function).parameters.keys(), name
    for function, known in [*calls[0].values(), *calls[1].values()]:
        if function is not zipar.generate:
            function(**known)


@EXAMPLES
@given(st.data())
def test_public_callables_raise_nothing_but_their_error(calls, data):
    walked = [(function, known) for part in calls for function, known in part.values() if known]
    function, known = data.draw(st.sampled_from(walked))
    replaced = data.draw(st.dictionaries(st.sampled_from(sorted(known)), odd, min_size=1, max_size=2))
    assume(not any(callable(replaced.get(name)) for name in ("callback", "measure")))  # what these raise is the user's
    try:
        function(**{**known, **replaced})
    except zipar.ZipARError as error:
        message = str(error)
    else:
        return
    assert "\n" not in message
    assert len(message) < 500
