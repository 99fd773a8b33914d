"""The embedded model of clips: what its clips show, and what they take."""

import numpy as np
import pytest

import zipar
from zipar import pretrained
from zipar.evaluation.judge import Judge

PROMPTS = [
    "a small red fox moves left fast on a blue background without a bar",
    "a large pizza moves down slowly on a green background without a bar",
    "a large rocket moves up right steadily on a black background without a bar",
    "a small penguin moves right slowly on a white background behind a bar",
    "a small panda moves up left steadily on a pink background without a bar",
    "a large donut moves down right slowly on a yellow background behind a bar",
]


@pytest.fixture(scope="module")
def clips():
    return zipar.pipeline("clips", device="cpu")


def shown(made):
    return np.stack([np.stack([np.asarray(frame) for frame in video.frames]) for video in made.videos])


def test_it_is_small():
    directory = pretrained.directory("clips")
    assert sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) < 20e6


def test_the_judge_sees_what_was_asked_for(clips):
    """32 of 36 attributes, where clips by chance would show half of them at most."""
    judge, asked = Judge.load(pretrained.directory("clips") / "judge"), clips.model.vocabulary.parse
    seen = judge.classify(shown(clips(PROMPTS, seed=1)))
    right = [seen[name][i] == value for i, prompt in enumerate(PROMPTS) for name, value in asked(prompt).items()]
    assert len(right) == 36
    assert sum(right) >= 32


def test_the_default_is_lossless_in_a_fifth_of_the_passes(clips):
    raster, ours = (clips(PROMPTS[:2], seed=1, strategy=strategy) for strategy in ("raster", None))
    assert np.array_equal(raster.tokens, ours.tokens)
    passes = [clips(prompt, seed=seed).stats.forward_passes for seed, prompt in enumerate(PROMPTS[::2])]
    assert np.mean(passes) <= 0.2 * raster.stats.forward_passes


def test_given_frames_go_on(clips):
    """What moves in the two frames that are given moves in all that follow."""
    first = clips(PROMPTS[1], seed=1)
    given = shown(first)[:, :2]
    on = clips(PROMPTS[1], seed=2, given=given)
    assert on.tokens.shape == first.tokens.shape
    frames = shown(on)[0].astype(float)
    assert (np.abs(np.diff(frames, axis=0)).mean((1, 2, 3)) > 1).all()
