"""The embedded model that is unsure of its tokens: what it knows, what it weighs, and that it paints it."""

import numpy as np
import pytest

import zipar
from zipar import pretrained
from zipar.evaluation.judge import Judge

CLASSES = ["T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]


@pytest.fixture(scope="module")
def fashion():
    return zipar.pipeline("fashion", device="cpu")


def test_it_is_small_and_names_its_pictures():
    directory = pretrained.directory("fashion")
    assert sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) <= 6e6
    notice = (directory / "PICTURES.md").read_text(encoding="utf-8")
    assert "MIT License" in notice
    assert "Zalando" in notice


def test_prompts_are_classes_by_name_or_number(fashion):
    assert list(fashion.model.vocabulary.attributes["class"]) == CLASSES
    named = fashion(["an ankle boot", "a t-shirt"], seed=3)
    numbered = fashion([9, 0], seed=3)
    assert np.array_equal(named.tokens, numbered.tokens)
    with pytest.raises(zipar.ZipARError, match="did you mean sneaker"):
        fashion("a sneker")


@pytest.mark.parametrize("strategy", [zipar.Raster(), zipar.DEFAULT])
def test_the_judge_sees_what_was_asked_for(fashion, strategy):
    """More than half of 20 pictures: a painter that ignores its prompts has one in ten, and passes with p < 1e-6."""
    judge = Judge.load(pretrained.directory("fashion") / "judge")
    images = fashion(CLASSES * 2, strategy=strategy).images
    seen = judge.classify(np.stack([np.asarray(image) for image in images]))["class"]
    assert sum(value == asked for value, asked in zip(seen, CLASSES * 2, strict=True)) > 10


def test_the_default_takes_a_fifth_of_the_passes(fashion):
    passes = [fashion(name, seed=seed).stats.forward_passes for seed, name in enumerate(CLASSES[::2])]
    assert np.mean(passes) < 0.2 * 256
