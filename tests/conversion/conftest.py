"""What the tests of all conversions share."""

import pytest


@pytest.fixture
def out(tmp_path):
    """A place for the result; nothing else may appear beside it."""
    yield tmp_path / "parent" / "out"
    assert {path.name for path in (tmp_path / "parent").glob("*")} <= {"out"}


@pytest.fixture
def nothing_is_written(out):
    """For conversions that fail."""
    yield
    assert not out.parent.exists()


@pytest.fixture
def order_to_touch():
    """order_to_touch(path) pickles as an order to make a file."""
    return Touch


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)
