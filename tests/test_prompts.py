import json
from dataclasses import replace

import pytest

from zipar import ZipARError
from zipar.prompts import PromptVocabulary

VOCABULARY = {
    "example": "a small red apple on a blue background",
    "required": ["object"],
    "attributes": {
        "object": {"apple": ["apple", "red apple"], "hot dog": ["hot dog"], "dog": ["dog"]},
        "background": {"red": ["red background"], "blue": ["blue background"]},
        "position": {"top": ["top"], "top left": ["top left"]},
    },
    "fillers": ["a", "an", "the", "at", "on"],
}


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(VOCABULARY))
    return PromptVocabulary.load(path)


def test_parse_prefers_longer_phrases(vocabulary):
    assert vocabulary.parse("A red apple at the top left, on a BLUE background!") == {
        "object": "apple",
        "background": "blue",
        "position": "top left",
    }
    assert vocabulary.parse("a hot dog at the top") == {"object": "hot dog", "position": "top"}
    assert vocabulary.parse("a dog") == {"object": "dog"}
    assert vocabulary.parse("") == {}


def test_unknown_words_are_listed_in_order(vocabulary):
    assert vocabulary.unknown("a shiny red apple on the moon") == ["shiny", "moon"]
    assert vocabulary.unknown("a red apple on a blue background") == []


def test_a_prompt_without_a_required_attribute_is_refused_with_close_matches(vocabulary):
    vocabulary.check("an apple")
    with pytest.raises(ZipARError, match=r"no object.*'a red aple'.*did you mean apple"):
        vocabulary.check("a red aple")
    with pytest.raises(ZipARError, match="lists the 3 known"):
        vocabulary.check("on a blue background")


def test_samples_are_prompts_the_model_knows(vocabulary):
    drawn = [vocabulary.sample(seed) for seed in range(50)]
    assert drawn == [vocabulary.sample(seed) for seed in range(50)]
    for prompt in drawn:
        vocabulary.check(prompt)
        assert vocabulary.parse(prompt).keys() == vocabulary.parse(vocabulary.example).keys()
    for attribute in vocabulary.parse(vocabulary.example):
        assert len({vocabulary.parse(prompt)[attribute] for prompt in drawn}) > 1


def test_samples_of_examples_with_capitals_and_punctuation():
    values = {"T-shirt": ["T-shirt", "T shirt"], "ankle boot": ["ankle boot"], "{0} 100%\\1": ["{0} 100%\\1"]}
    for example in ("T-shirt", "A nice {t-shirt}, {}!", "One t  SHIRT on a T-shirtless"):
        vocabulary = PromptVocabulary({"class": values, "other": {"x": ["x"]}}, ["class"], ["a"], example)
        drawn = {vocabulary.sample(seed) for seed in range(50)}
        spelt = {"T-shirt": "T-shirt", "A nice {t-shirt}, {}!": "t-shirt"}.get(example, "t  SHIRT")
        assert drawn == {example.replace(spelt, phrases[0]) for phrases in values.values()}
    assert PromptVocabulary({"class": values}, [], [], "{what} you like").sample(0) == "{what} you like"


def test_values_may_have_numbers():
    values = {"T-shirt": ["T-shirt"], "ankle boot": ["ankle boot"]}
    named = PromptVocabulary({"class": values}, ["class"], ["an"], "T-shirt")
    numbered = replace(named, numbered="class")
    assert numbered.parse(" 1 ") == numbered.parse("An Ankle Boot") == {"class": "ankle boot"}
    assert numbered.unknown("1") == []
    numbered.check("0")
    for refused in ("2", "-1", "9" * 5000):
        with pytest.raises(ZipARError, match="or is a number, 0 to 1"):
            numbered.check(refused)
    assert named.parse("1") == {}
    assert named.unknown("1") == ["1"]
    with pytest.raises(ZipARError, match="reads like 'T-shirt'; "):
        named.check("1")
