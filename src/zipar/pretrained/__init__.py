"""Checkpoints that ship in the package."""

from pathlib import Path

_HERE = Path(__file__).parent


def names() -> list[str]:
    """Names of the embedded models."""
    return sorted(config.parent.name for config in _HERE.glob("*/config.json"))


def directory(name: str) -> Path | None:
    """The checkpoint directory of an embedded model, None where there is none of that name."""
    return _HERE / name if name in names() else None
