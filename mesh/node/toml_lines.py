"""On which line of a TOML document a field stands, which `tomllib` does not tell.

The document has passed `tomllib`, so this only has to find where statements begin; what a key or a
header means is asked of `tomllib` itself. (tomlkit keeps the text of every element and no position
of any: it would be a dependency and this search all the same.)
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

FieldPath: TypeAlias = tuple[str, ...]

# Strings and comments first, since they may hold every other character (toml.io v1.0.0).
_TOKEN = re.compile(
    r'"""(?:[^"\\]|\\.|""?(?!"))*"{3,5}'
    r"|'''(?:[^']|''?(?!'))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|\#[^\n]*"
    r"|[\[\]{}\n=]"
    r"|[^\[\]{}\n=\"'\#]+",
    re.DOTALL,
)
_OPENING, _CLOSING = frozenset("[{"), frozenset("]}")
_DEPTH_MAX = 2
"""A table and a field. What lies deeper is no field of ours and is found by its first two names."""


def lines_of(text: str) -> dict[FieldPath, int]:
    """The line, from 1, on which each table and each field of a valid document first stands.

    Tables are paths of one name, fields of two; of what is nested deeper the first two are kept.
    """
    found: dict[FieldPath, int] = {}
    table: FieldPath = ()
    for line, statement, header in statements(text.replace("\r\n", "\n")):
        path = _path(statement if header else f"{statement} = 0")
        if header:
            table = path
        else:
            path = (*table, *path)
        for length in range(1, min(len(path), _DEPTH_MAX) + 1):
            found.setdefault(path[:length], line)
    return found


def statements(text: str) -> Iterator[tuple[int, str, bool]]:
    """(line, text, whether it is a table's header) of each header and each key before its `=`."""
    line, depth, start_line = 1, 0, 0
    parts: list[str] | None = []  # None: in a value, whose end is awaited
    for match in _TOKEN.finditer(text):
        piece = match[0]
        if parts is not None and depth == 0 and piece == "=":
            yield start_line, "".join(parts), False
            parts = None
        elif piece == "\n" and depth == 0:
            if parts:
                yield start_line, "".join(parts), True
            parts = []
        elif piece[0] != "#" and parts is not None and (parts or piece.strip()):
            start_line = start_line if parts else line
            parts.append(piece)
        if parts is None:
            depth += (piece in _OPENING) - (piece in _CLOSING)
        line += piece.count("\n")
    if parts:
        yield start_line, "".join(parts), True


def item_lines(text: str, key_line: int) -> list[int]:
    """The lines on which the items of a list begin whose key stands on `key_line`; empty where no
    list stands there."""
    found: list[int] = []
    line, depth, begins = 1, 0, True
    for match in _TOKEN.finditer(text):
        piece, there = match[0], line
        line += piece.count("\n")
        if there < key_line or piece[0] == "#":
            continue
        if depth == 0 and piece != "[":
            if piece in "\n{":
                break
            continue
        # What is no text, bracket or line's end may hold several items and the commas between.
        for part in [piece] if piece[0] in "\"'[]{}" else re.split(r"(,)", piece):
            if depth == 1 and part == ",":
                begins = True
            elif depth == 1 and begins and part.strip() and part != "]":
                found.append(there)
                begins = False
        depth += (piece in _OPENING) - (piece in _CLOSING)
        if depth == 0:
            break
    return found


def _path(statement: str) -> FieldPath:
    """The names that a header or a key consists of, at most _DEPTH_MAX."""
    names: list[str] = []
    table: Any = tomllib.loads(statement)
    while isinstance(table, Mapping | list) and table and len(names) < _DEPTH_MAX:
        if isinstance(table, list):  # an array of tables
            table = table[0]
            continue
        (name, table), *_ = table.items()
        names.append(name)
    return tuple(names)
