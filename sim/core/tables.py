"""Reading the tables of a scenario file: every key is checked, and every mistake has its place.

A mistake is a `Misread`: `place` is the way to it, such as ("event", 3, "at_s") for the third
[[event]], so that whoever has the file's text can name the line.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from mesh.core.errors import BadInput
from sim.core.clock import MS_NS, ns_of

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
SHOWN_MAX = 20
_HEADER = re.compile(r"\[[a-z0-9_.\" -]+\]\s*(#.*)?$")

Place: TypeAlias = tuple[str | int, ...]


class Misread(BadInput):
    """Something in a scenario is not as it must be."""

    def __init__(self, words: str, place: Place) -> None:
        super().__init__(words)
        self.place = place


class Table:
    """A table of the file and where it is, for errors. Every key must be asked for."""

    def __init__(self, where: str, raw: object, place: Place = ()) -> None:
        if not isinstance(raw, Mapping):
            raise Misread(f"{where}: is not a table", place)
        self._where = where
        self._place = place
        self._raw: Mapping[str, Any] = raw
        self._asked: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._raw

    def __bool__(self) -> bool:
        return bool(self._raw)

    def bad(self, key: str, words: str) -> Misread:
        """The error about a key of the table; an empty one: about the table."""
        where = " ".join(part for part in (self._where, key) if part)
        place = (*self._place, key.partition("[")[0]) if key else self._place
        return Misread(f"{where}: {words}" if where else words, place)

    def get(self, key: str) -> Any:
        self._asked.add(key)
        return self._raw.get(key)

    def done(self) -> None:
        """Raise BadInput if the table has a key that nobody asked for."""
        for key in self._raw:
            if key not in self._asked:
                near = difflib.get_close_matches(key, sorted(self._asked), 1)
                known = (
                    f"did you mean {near[0]}"
                    if near
                    else "known: " + ", ".join(sorted(self._asked))
                )
                raise self.bad(key, f"is not known here: {known}")

    def absent(self, key: str, words: str) -> None:
        if key in self._raw:
            raise self.bad(key, words)

    def table(self, key: str) -> Table:
        raw = self.get(key)
        place = f"[{self._where.strip('[]')}.{key}]" if self._where else f"[{key}]"
        return Table(place, {} if raw is None else raw, (*self._place, key))

    def tables(self, key: str, count_max: int) -> list[Table]:
        raw = self.get(key)
        if raw is None:
            return []
        if not isinstance(raw, list) or len(raw) > count_max:
            raise self.bad(key, f"write at most {count_max} tables [[{key}]]")
        return [
            Table(f"[[{key}]] {i}", item, (*self._place, key, i)) for i, item in enumerate(raw, 1)
        ]

    def list(self, key: str) -> list[Any]:
        raw = self.get(key)
        if raw is None:
            return []
        if not isinstance(raw, list):
            raise self.bad(key, "is not a list")
        return raw

    def checked(self, key: str, value: object, low: float, high: float) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.bad(key, f"{value!r} is not a number")
        if not low <= value <= high:
            raise self.bad(key, f"{value} is out of bounds: use {low:g} to {high:g}")
        return float(value)

    def number(self, key: str, default: float | None, *, low: float, high: float) -> float:
        value = self.get(key)
        if value is None:
            if default is None:
                raise self.bad(key, f"is missing: give a number from {low:g} to {high:g}")
            return default
        return self.checked(key, value, low, high)

    def whole(self, key: str, default: int, *, low: int, high: int) -> int:
        value = self.get(key)
        if value is None:
            return default
        if type(value) is not int:
            raise self.bad(key, f"{value!r} is not a whole number")
        return int(self.checked(key, value, low, high))

    def ms(self, key: str, default_ms: float) -> int:
        return round(self.number(key, default_ms, low=0.0, high=60_000.0) * MS_NS)

    def probability(self, key: str) -> float:
        return self.number(key, 0.0, low=0.0, high=0.95)

    def one_of(self, key: str, default: str, known: tuple[str, ...]) -> str:
        value = self.get(key)
        if value is None:
            return default
        if value not in known:
            raise self.bad(key, f"{value!r} is none of {', '.join(known)}")
        return str(value)

    def name(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str) or not NAME.fullmatch(value):
            raise self.bad(key, f"{value!r} is no name: use a-z, 0-9 and -")
        return value

    def seconds(self, key: str, default_s: float | None, *, low: float, high: float) -> int:
        """In nanoseconds."""
        return ns_of(self.number(key, default_s, low=low, high=high))

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if value is not None and type(value) is not bool:
            raise self.bad(key, f"{value!r} is neither true nor false")
        return bool(value)

    def known(self, key: str, value: object, what: str, known: Sequence[str]) -> str:
        """`value`, which must be one of `known`."""
        if value not in known:
            shown = ", ".join(known[:SHOWN_MAX])
            raise self.bad(key, f"no {what} {value!r}: there are {shown}")
        return str(value)

    def pair(self, key: str, known: Sequence[str], words: str) -> tuple[str, str]:
        """Two different sites."""
        found = self.list(key)
        if len(found) != 2 or found[0] == found[1]:
            raise self.bad(key, words)
        a, b = (self.known(key, name, "site", known) for name in found)
        return a, b


def line_of(text: str, place: Place) -> int | None:
    """The line of a file, from 1, at which what `place` names is written; where only the table
    around it is found, the line of its header. None: nowhere."""
    for end in range(len(place), 0, -1):
        lines = [n for n, written in _written(text) if written == place[:end]]
        if lines:
            return lines[0]
    return None


def _written(text: str) -> Iterator[tuple[int, Place]]:
    """(line, place) of each header and each key at the beginning of a line."""
    table: Place = ()
    counts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if line.startswith("[["):
            name = line[2:].partition("]]")[0].strip()
            counts[name] = counts.get(name, 0) + 1
            table = (*name.split("."), counts[name])
            yield number, table
        elif _HEADER.match(line):
            table = tuple(line[1:].partition("]")[0].strip().split("."))
            yield number, table
        elif "=" in line and not line.startswith("#"):
            yield number, (*table, line.partition("=")[0].strip().strip('"'))
