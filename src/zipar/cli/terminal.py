"""What all commands print through: terminals that cannot show every letter, and text that is no markup."""

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


def console(stderr: bool = False) -> Console:
    """A console that prints text as it is: what users type may look like rich's markup."""
    return Console(stderr=stderr, markup=False, emoji=False)


def spell_out() -> None:
    """Have stdout and stderr spell letters out that they cannot encode, as \\u escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def give_up_stdout() -> None:
    """Where nothing can be written to stdout any more, forget what waits: Python would fail over it on its way out."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def orderly() -> Iterator[None]:
    """SIGTERM ends what runs here as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
