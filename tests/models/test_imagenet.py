from collections import Counter
from importlib.resources import files

import pytest

import zipar
from zipar.models.imagenet import imagenet_class

LINES = files("zipar.models").joinpath("imagenet.txt").read_text(encoding="utf-8").splitlines()


def test_there_are_a_thousand_classes():
    assert len(LINES) == 1000


@pytest.mark.parametrize(
    ("prompt", "number"),
    [
        ("207", 207),
        (" 0 ", 0),
        ("golden retriever", 207),
        ("Golden Retriever", 207),
        ("tench", 0),
        ("Tinca tinca", 0),
        ("tench, Tinca tinca", 0),
        ("volcano", 980),
        ("giant panda", 388),
        ("toilet tissue", 999),
    ],
)
def test_numbers_and_names(prompt, number):
    assert imagenet_class(prompt, 1000) == number


def test_every_name_of_one_class_alone_finds_it():
    names = [(name.lower(), number) for number, line in enumerate(LINES) for name in dict.fromkeys(line.split(", "))]
    times = Counter(name for name, _ in names)
    for name, number in names:
        if times[name] == 1 and name not in map(str.lower, LINES):
            assert imagenet_class(name, 1000) == number


@pytest.mark.parametrize(
    ("prompt", "classes", "message"),
    [
        ("crane", 1000, "several classes.*134: crane; 517: crane"),
        ("panda", 1000, "several classes.*387: .*388: "),
        ("golden retreiver", 1000, "did you mean golden retriever"),
        ("retriever", 1000, "did you mean .*retriever"),
        ("qqqqqqqq", 1000, "no ImageNet class: Class-conditional"),
        ("", 1000, "no ImageNet class"),
        ("-1", 1000, "no ImageNet class"),
        ("1000", 1000, "classes 0 to 999"),
        ("tench", 10, "class number, 0 to 9"),
        ("10", 10, "classes 0 to 9"),
    ],
)
def test_what_is_no_class_is_an_error_that_helps(prompt, classes, message):
    with pytest.raises(zipar.ZipARError, match=message):
        imagenet_class(prompt, classes)
