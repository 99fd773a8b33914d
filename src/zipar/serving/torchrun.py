"""What torchrun tells the processes that it starts, of which the first one leads."""

import os

from zipar.errors import ZipARError


def several() -> bool:
    """Whether there are others than this process."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


def follows() -> bool:
    """Whether another one leads this process."""
    return several() and os.environ["RANK"] != "0"


def check_without_ray() -> None:
    """Raise where there are others.

    Raises:
        ZipARError: there are.
    """
    if several():
        raise ZipARError("--ray is not possible under torchrun, which has started several processes: use one of both")
