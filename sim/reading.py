"""Scenario files: read, checked, and every mistake told with its line and what to write instead."""

from __future__ import annotations

import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mesh.core.errors import BadInput
from mesh.node.toml_lines import item_lines, statements
from sim.core.scenario import Scenario, parse
from sim.core.tables import Misread, Place

SEED_MAX: Final = (1 << 63) - 1
FILE_BYTES_MAX: Final = 4 << 20
"""Ten thousand events take a fifth of it."""


def load(file: Path, *, small: bool = False) -> Scenario:
    """Read and check a scenario; `small`: with what its [small] says.

    Raises:
        BadInput: with the file's name and, where there is one, the line in front.
    """
    return checked(text_of(file), str(file), small=small)


def checked(text: str, name: str, *, small: bool = False) -> Scenario:
    """The scenario that a text of that name is. Raises BadInput."""
    raw = _tables(text, name)
    if not raw:
        raise BadInput(f"{name}: says nothing: `weft sim init FILE` writes an example")
    try:
        scenario = parse(raw, small=small)
        if "small" in raw:
            small = not small
            parse(raw, small=small)  # a mistake is told before it is met
        return scenario
    except Misread as error:
        line = (_line_in_small(text, error.place) if small else None) or line_of(text, error.place)
        where = name if line is None else f"{name}, line {line}"
        raise BadInput(f"{where}: {error}") from None


def text_of(file: Path) -> str:
    """What a scenario file holds. Raises BadInput."""
    try:
        # Before it is opened: opening a pipe waits for a writer, a device may never end.
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):
            what = "a directory" if stat.S_ISDIR(mode) else "no regular file"
            raise BadInput(f"{file}: is {what}: give a scenario file")
        with file.open("rb") as opened:
            data = opened.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise BadInput(f"{file}: no such file: `weft sim init FILE` writes an example") from None
    except OSError as error:
        raise BadInput(f"{file}: cannot be read: {error.strerror}") from None
    if len(data) > FILE_BYTES_MAX:
        raise BadInput(f"{file}: has more than {FILE_BYTES_MAX >> 20} MiB: is it a scenario?")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadInput(
            f"{file}, line {line}: is no text in UTF-8 (byte 0x{data[error.start]:02x}):"
            " is it a scenario?"
        ) from None


def _tables(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        words, line = _words_of(str(error), text)
        raise BadInput(f"{name}, line {line}: is not TOML: {words}") from None
    except RecursionError:
        raise BadInput(f"{name}: lists in lists, too deep to read: no scenario has such") from None
    except ValueError:
        # Python's own bound on digits; tomllib lets it through.
        raise BadInput(f"{name}: a number has thousands of digits: write a smaller one") from None


def _words_of(said: str, text: str) -> tuple[str, int]:
    """What tomllib says, for people, and the line."""
    said = said.replace("Cannot overwrite a value", "this key is written twice")
    if declared := re.match(r"Cannot declare \('(\w+)',\) twice", said):
        name = declared[1]
        twice = (
            f"[{name}] is there twice: write all into one, or [[{name}]] where there are several"
        )
        said = twice + said[declared.end() :]
    words, _, place = said.rpartition(" (at ")
    line, _, column = place.rstrip(")").removeprefix("line ").partition(", column ")
    if not line.isdecimal() and "twice" in words:
        return words, text.rstrip().count("\n") + 1
    if not line.isdecimal():
        return f"{words}: something that was opened is not closed", text.count("\n") + 1
    return f"{words} (column {column})", int(line)


def line_of(text: str, place: Place) -> int | None:
    """The line of a document, from 1, at which what `place` names is written; where only the table
    or the list around it is found, where that begins. None: nowhere."""
    found = _lines(text)
    end = next((end for end in range(len(place), 0, -1) if place[:end] in found), 0)
    if not end:
        return None
    line = found[place[:end]]
    if end < len(place) and isinstance(item := place[end], int):
        items = item_lines(text.replace("\r\n", "\n"), line)
        line = items[item - 1] if item <= len(items) else line
    return line


def _line_in_small(text: str, place: Place) -> int | None:
    """The same, if it is [small] that says it: a key that is there, or what is in a list that is
    there, since lists of [small] take the place of others."""
    found = _lines(text)
    lists = (place[:i] for i, name in enumerate(place) if isinstance(name, int))
    if any(("small", *part) in found for part in (place, *lists)):
        return line_of(text, ("small", *place))
    return None


def _lines(text: str) -> dict[Place, int]:
    """place -> the line of its header or key; tables of a list are numbered from 1."""
    found: dict[Place, int] = {}
    counts: dict[Place, int] = {}
    table: Place = ()
    for line, statement, header in statements(text.replace("\r\n", "\n")):
        names, of_list = _names(statement if header else f"{statement} = 0")
        if not header:
            place: Place = (*table, *names)
        elif of_list:
            counts[names] = counts.get(names, 0) + 1
            place = table = (*names, counts[names])
        else:
            place = table = names
        for end in range(1, len(place) + 1):
            found.setdefault(place[:end], line)
    return found


def _names(statement: str) -> tuple[Place, bool]:
    """The names that a header or a key consists of, and whether it is a table of a list."""
    names: list[str] = []
    table: Any = tomllib.loads(statement)
    of_list = False
    while isinstance(table, Mapping | list) and table:
        if isinstance(table, list):
            table, of_list = table[0], True
            continue
        (name, table), *_ = table.items()
        names.append(name)
    return tuple(names), of_list
