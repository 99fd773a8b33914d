"""What is shown on a terminal while one waits: a spinner, and a bar for each decoding."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from zipar.decoding.engine import Progress


def spinner(text: str, quiet: bool) -> AbstractContextManager[Any]:
    """A spinner on stderr, where that is a terminal and not to be ``quiet``."""
    console = Console(stderr=True)
    return nullcontext() if quiet or not console.is_terminal else console.status(text)


@contextmanager
def bars(quiet: bool) -> Iterator[Callable[[str, int], Callable[[Progress], None]]]:
    """Yields a function that takes a title and the number of passes, and returns a callback that moves a new bar."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} passes"),
        TextColumn("{task.fields[tokens]} tokens a pass"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with Bars(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as shown:

        def add(title: str, passes: int) -> Callable[[Progress], None]:
            task = shown.add_task(title, total=passes, tokens=1)

            def moved(progress: Progress) -> None:
                shown.update(task, completed=progress.done, total=progress.passes, tokens=progress.queries)

            return moved

        yield add
