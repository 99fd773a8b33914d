"""Tables on stdout."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from zipar.cli.terminal import console


def show(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; all columns but the first hold numbers."""
    shown = console()
    table = Table(box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=i == 0)
    for row in rows:
        table.add_row(
            *([cell.replace("±", "+/-").replace("–", "-") for cell in row] if shown.options.ascii_only else row)
        )
    shown.print(table)
