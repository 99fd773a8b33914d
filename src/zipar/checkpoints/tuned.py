"""The strategy that ``zipar tune`` chose for a checkpoint, kept beside it."""

from pathlib import Path

from zipar.checkpoints.files import read_config
from zipar.decoding import names
from zipar.decoding.strategy import Strategy
from zipar.errors import ZipARError

FILE = "zipar.json"


def tuned(directory: Path) -> Strategy | None:
    """The strategy chosen for the checkpoint in ``directory``; None where none was.

    Raises:
        ZipARError: the file that says so is damaged.
    """
    if not (directory / FILE).exists():
        return None
    choice = read_config(directory, FILE).get("strategy")
    try:
        return names.parse(str(choice))
    except ZipARError as error:
        raise ZipARError(f"{directory / FILE}: {error}; `zipar tune` writes it anew, and it may be deleted") from error
