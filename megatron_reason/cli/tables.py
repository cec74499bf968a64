"""Tables in the terminal. Not here: what is in them."""

import shutil
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

_WIDTH_OF_A_FILE = 200


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on standard output, in the terminal's width or wide where there is none."""
    console = Console(soft_wrap=False)
    if not console.is_terminal:
        console = Console(width=max(_WIDTH_OF_A_FILE, shutil.get_terminal_size().columns))
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_escaped(cell) for cell in row))
    console.print(table)


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")
