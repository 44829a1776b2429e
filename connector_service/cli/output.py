"""What commands print for people: tables, plain when nobody watches."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import click
from texttable import Texttable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["print_table"]

_LEAST = 4  # columns of a terminal that a column of a table takes: a letter and what parts it


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under headings; in a pipe every cell stays whole, however long its line."""
    widest = 0  # without bounds
    if sys.stdout.isatty():
        widest = max(shutil.get_terminal_size().columns, _LEAST * len(headings))
    table = Texttable(widest)
    table.set_deco(Texttable.HEADER)
    table.set_chars(["-"] * 4)
    table.set_header_align(["l"] * len(headings))
    table.set_cols_dtype(["t"] * len(headings))  # as text: it would write 1e3 as 1000
    table.header(headings)
    for row in rows:
        table.add_row([_printable(str(cell)) for cell in row])
    for line in table.draw().splitlines():
        click.echo(line.rstrip())
    click.echo()


def _printable(cell: str) -> str:
    """Keep what another chose as a name on its line, and from steering the terminal."""
    return "".join(c if c.isprintable() else " " for c in cell)
