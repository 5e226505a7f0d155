"""Printing: aligned columns for people, one JSON document for scripts.

A listing's JSON keys are its column names in lower case with `_`. Tables are never wrapped; colour
is only for terminals. Texts may come from other machines, so control characters are escaped.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import click

_GAP: Final = "  "
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"
_COLOURS: Final = {
    **dict.fromkeys(("active", "ready", "✓"), "\x1b[32m"),
    **dict.fromkeys(("shadowed", "half", "retired"), "\x1b[33m"),
    **dict.fromkeys(
        ("conflict", "unreachable", "vni-conflict", "overlap", "outside", "missing", "wrong", "✗"),
        "\x1b[31m",
    ),
}


class Output:
    """Prints one command's answer in the form that was asked for."""

    def __init__(self, form: str) -> None:
        self.json = form == "json"
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def document(self, value: object) -> None:
        """One JSON document."""
        click.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None))

    def rows(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        """A listing: JSON keys in the order of their columns."""
        if self.json:
            self.document(rows)
        else:
            self.table(rows, columns)

    def record(self, record: Mapping[str, Any], keys: Sequence[str] | None = None) -> None:
        """One object: a line a field."""
        if self.json:
            self.document(record)
            return
        shown = list(record) if keys is None else list(keys)
        names = [heading(key) for key in shown]
        width = max(map(len, names), default=0)
        for name, key in zip(names, shown, strict=True):
            click.echo(f"{name:<{width}}{_GAP}{self._paint(cell(record.get(key)))}".rstrip())

    def text(self, value: Mapping[str, Any], key: str) -> None:
        """One value by itself; JSON has the whole object."""
        if self.json:
            self.document(value)
        else:
            click.echo(printable(str(value[key])))

    def table(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        """Aligned columns; numbers to the right. An empty listing has its heading only."""
        lines = [[cell(row.get(column)) for column in columns] for row in rows]
        heads = [heading(column) for column in columns]
        right = [
            bool(rows) and all(_is_number(row.get(column)) for row in rows) for column in columns
        ]
        widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
        head = self._line(heads, widths, right, paint=False)
        click.echo(f"{_BOLD}{head}{_PLAIN}" if self._colour else head)
        for line in lines:
            click.echo(self._line(line, widths, right, paint=True))

    def _line(
        self, cells: Sequence[str], widths: Sequence[int], right: Sequence[bool], *, paint: bool
    ) -> str:
        parts = []
        for text, width, to_right in zip(cells, widths, right, strict=True):
            pad = " " * (width - len(text))
            shown = self._paint(text) if paint else text
            parts.append(pad + shown if to_right else shown + pad)
        return _GAP.join(parts).rstrip()

    def _paint(self, text: str) -> str:
        colour = _COLOURS.get(text) if self._colour else None
        return f"{colour}{text}{_PLAIN}" if colour else text


def heading(key: str) -> str:
    """The column name of a JSON key: upper case, with `-`."""
    return key.upper().replace("_", "-")


def cell(value: object) -> str:
    """A value as people read it in a table."""
    if value is None or value == "" or value == [] or value == {}:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, Mapping):
        return ",".join(f"{printable(str(key))}={cell(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(cell(item) for item in value)
    return printable(str(value))


def printable(text: str) -> str:
    """The text with what is not printable escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@contextmanager
def progress(what: str, total: int) -> Iterator[Any]:
    """A bar on a terminal; yields a function that takes how many more are done."""
    if not sys.stderr.isatty() or not total:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
