import pytest

from zipar import AdaptiveZipAR, CoupledJacobi, Raster, ZipAR, ZipARError
from zipar.cli.compare import STRATEGIES
from zipar.decoding import names


@pytest.mark.parametrize(
    ("text", "strategy"),
    [
        ("raster", Raster()),
        ("ZipAR:8", ZipAR(8)),
        ("zipar:3:wave", ZipAR(3, first_row="wave")),
        ("zipar:3:alone", ZipAR(3)),
        ("zipar:wave", ZipAR(first_row="wave")),
        ("zipar:3:16", ZipAR(3, 16)),
        ("zipar:3:16:wave", ZipAR(3, 16, "wave")),
        ("zipar:8:16:4:wave", ZipAR(8, 16, "wave", 4.0)),
        ("zipar:8:1:2.5", ZipAR(8, nats=2.5)),
        ("zipar:1234567:1:0.30000000000000004", ZipAR(1234567, nats=0.1 + 0.2)),
        ("zipar:8:1:1e-07:wave", ZipAR(8, 1, "wave", 1e-7)),
        ("jacobi:2000000", CoupledJacobi(2000000)),
        ("adaptive:3", AdaptiveZipAR(3)),
        ("adaptive:3:wave", AdaptiveZipAR(3, "wave")),
        ("zipar:4@8", ZipAR(4, frame_delay=8)),
        ("zipar:3:16:0.5:wave@12", ZipAR(3, 16, "wave", 0.5, 12)),
        ("zipar@1", ZipAR(frame_delay=1)),
        ("adaptive:3:wave@5", AdaptiveZipAR(3, "wave", 5)),
        ("jacobi", CoupledJacobi()),
        ("jacobi:8", CoupledJacobi(8)),
        ("jacobi:8:2", CoupledJacobi(8, 2)),
    ],
)
def test_names(text, strategy):
    assert names.parse(text) == strategy
    assert names.parse(names.name(strategy)) == strategy


def test_defaults():
    assert names.parse("zipar") == names.make("zipar") == ZipAR()
    assert [names.name(names.parse(name)) for name in STRATEGIES] == list(STRATEGIES)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("fast", "'fast' is unknown: use raster, zipar"),
        ("raster:1", "'raster:1' is unknown"),
        ("zipar:1:2:3:4", "is unknown"),
        ("zipar:4@", "frame_delay '' is no number"),
        ("zipar:4@0", "frame_delay 0 is not possible"),
        ("zipar:4@1.5", "frame_delay '1.5' is no number"),
        ("jacobi:8@4", "is unknown"),
        ("raster@4", "is unknown"),
        ("zipar:x", "first_row 'x'"),
        ("jacobi:8:wave", "window 'wave' is no number"),
        ("adaptive:0", "window 0"),
    ],
)
def test_what_is_no_strategy_is_refused(text, named):
    with pytest.raises(ZipARError, match=named):
        names.parse(text)


def test_options_that_a_strategy_lacks_are_refused():
    with pytest.raises(ZipARError, match="lookahead 4 does not belong to strategy adaptive"):
        names.make("adaptive", lookahead=4)
