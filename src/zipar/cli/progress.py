"""What is shown on a terminal while one waits: a spinner, and a bar for each decoding."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from zipar.cli.terminal import console
from zipar.decoding.engine import Progress
from zipar.decoding.strategy import Strategy
from zipar.grid import TokenGrid


def spinner(text: str, quiet: bool) -> AbstractContextManager[Any]:
    """A spinner on stderr, where that is a terminal and not to be ``quiet``."""
    shown = console(stderr=True)
    if quiet or not shown.is_terminal:
        return nullcontext()
    return shown.status(Text(text), spinner="line" if shown.options.ascii_only else "dots")


@contextmanager
def bars(grids: Sequence[TokenGrid], quiet: bool) -> Iterator[Callable[[str, Strategy], Callable[[Progress], None]]]:
    """Yields a function that adds a bar for a strategy, and returns the callback that moves it.

    ``grids`` are those of the decodings that an image or a clip takes.
    """
    screen = console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} passes"),
        TextColumn("{task.fields[tokens]:.1f} tokens a pass"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    silent = quiet or not screen.is_terminal
    # drawn seldom, for compare takes the time meanwhile
    with Bars(*columns, console=screen, transient=True, disable=silent, refresh_per_second=4) as shown:

        def add(title: str, strategy: Strategy) -> Callable[[Progress], None]:
            passes = sum(strategy.passes(grid) for grid in grids)
            task = shown.add_task(title, total=passes, tokens=sum(grid.tokens for grid in grids) / passes)

            def moved(progress: Progress) -> None:
                shown.update(task, completed=progress.done, total=max(progress.passes, passes))

            return moved

        yield add


@contextmanager
def counter(images: int | None, quiet: bool) -> Iterator[Callable[[str, int], None]]:
    """Yields a function that says what is being made, and how many more of ``images`` (None if nobody knows) are."""
    screen = console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with Bars(*columns, console=screen, transient=True, disable=quiet or not screen.is_terminal) as shown:
        task = shown.add_task("warming up", total=images)
        yield lambda title, made: shown.update(task, description=title, advance=made)
