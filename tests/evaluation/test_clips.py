import numpy as np
import torch

from zipar.evaluation.clips import framewise, framewise_score

CLIPS = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 5, 3), np.uint8)


def colours(images):
    assert images.ndim == 4
    return torch.from_numpy(images).double().mean((1, 2))


def test_features_of_a_clip_are_the_mean_of_its_frames():
    np.testing.assert_allclose(framewise(colours)(CLIPS), CLIPS.astype(float).mean((1, 2, 3)))


def test_scores_of_a_clip_are_the_mean_of_its_frames_with_its_prompt():
    def score(images, prompts):
        return colours(images)[:, 0] + torch.tensor([len(prompt) for prompt in prompts], dtype=torch.float64)

    found = framewise_score(score)(CLIPS, ["a", "fox", "birds"])
    np.testing.assert_allclose(found, CLIPS[..., 0].astype(float).mean((1, 2, 3)) + np.array([1, 3, 5]))
