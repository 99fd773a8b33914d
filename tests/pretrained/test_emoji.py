"""The embedded model: an ordinary checkpoint that anyone can load, and that knows what it can be asked for."""

from pathlib import Path

import numpy as np
import pytest

import zipar
from zipar import pretrained

PROMPT = "a large red fox in the center on a blue background, 3d style"


@pytest.fixture(scope="module")
def emoji():
    return zipar.pipeline("emoji", device="cpu")


def test_it_is_small_and_names_its_artwork():
    directory = pretrained.directory("emoji")
    files = [path for path in Path(directory).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40e6
    notice = (directory / "ARTWORK.md").read_text(encoding="utf-8")
    assert "CC-BY 4.0" in notice
    assert "Fluent Emoji" in notice


def test_every_strategy_paints_with_its_number_of_passes(emoji):
    for strategy, passes in (zipar.Raster(), 256), (zipar.ZipAR(3), 74), (zipar.ZipAR(4, first_row="wave"), 76):
        output = emoji(PROMPT, strategy=strategy)
        assert output.stats.forward_passes == passes
        assert output.images[0].size == (64, 64)


def test_the_background_is_that_of_the_prompt(emoji):
    images = emoji([PROMPT.replace("blue", "green"), PROMPT.replace("blue", "black")], strategy=zipar.ZipAR(3)).images
    green, black = (np.median(np.asarray(image)[:, :4].reshape(-1, 3), axis=0) for image in images)
    assert green[1] > green[0] + 30
    assert green[1] > green[2] + 30
    assert black.max() < 80


def test_prompts_are_checked(emoji):
    assert len(emoji.model.vocabulary.attributes["object"]) >= 64
    with pytest.warns(UserWarning, match="wooden, airplane"):
        emoji("a wooden fox, airplane", strategy=zipar.ZipAR(1))
    with pytest.raises(zipar.ZipARError, match="did you mean penguin"):
        emoji("a pengin on a blue background")


def test_its_example_prompt_mentions_all_it_knows(emoji):
    vocabulary = emoji.model.vocabulary
    assert vocabulary.parse(vocabulary.example) == {
        "object": "apple",
        "size": "small",
        "position": "top left",
        "background": "blue",
        "style": "flat",
    }


def test_its_sample_prompts_hold_no_word_it_does_not_know(emoji):
    prompts = emoji.model.examples(30)
    assert len(set(prompts)) == 30
    assert not any(emoji.model.vocabulary.unknown(prompt) for prompt in prompts)
