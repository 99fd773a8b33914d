"""The machines of a Ray cluster."""

import logging
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import Any

from zipar.errors import ZipARError, reason

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
import ray
from ray.exceptions import RayError

OBJECTS = 256 * 2**20
"""Bytes for what processes of a cluster of our own tell each other, which is never pixels of many images."""

PATIENCE = 10.0
"""Seconds in which the head of a cluster has to answer."""


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """On a cluster.

    Args:
        address: of the cluster; None for one of this machine alone, which ends with the block.

    Raises:
        ZipARError: there is no such cluster.
    """
    own = {"address": "local", "include_dashboard": False, "object_store_memory": OBJECTS}
    given: dict[str, Any] = {"address": address} if address else own
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if there := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address or ""):
            # Ray would wait for minutes where nobody listens
            socket.create_connection((there[1].strip("[]"), int(there[2])), PATIENCE).close()
        ray.init(**given, log_to_driver=False, logging_level=logging.ERROR)
        if current_thread() is main_thread():
            # Ray's own ends the process 3 s later, whatever is still to be finished
            signal.signal(signal.SIGTERM, handler)
    except (RayError, OSError, RuntimeError, ValueError, OverflowError) as error:
        where = address or "on this machine"
        raise ZipARError(f"no Ray cluster {where} ({reason(error)}): give the address of one that runs") from error
    try:
        yield
    finally:
        ray.shutdown()


def needs(device: str | None) -> dict[str, int]:
    """What a process with a model takes of a machine: a GPU, where the cluster has any and ``device`` is not cpu."""
    return {"num_cpus": 1, "num_gpus": int(device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1)}
