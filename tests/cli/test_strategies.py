import pytest

from zipar import Raster, ZipAR
from zipar.cli import strategies
from zipar.cli.compare import STRATEGIES


@pytest.mark.parametrize(
    ("text", "strategy"),
    [("raster", Raster()), ("ZipAR:8", ZipAR(8)), ("zipar:3:wave", ZipAR(3, first_row="wave")), ("zipar:3:alone", ZipAR(3))],
)
def test_names(text, strategy):
    assert strategies.parse(text) == strategy
    assert strategies.parse(strategies.name(strategy)) == strategy


def test_defaults():
    assert strategies.parse("zipar") == strategies.zipar() == ZipAR()
    assert [strategies.name(strategies.parse(name)) for name in STRATEGIES] == list(STRATEGIES)
