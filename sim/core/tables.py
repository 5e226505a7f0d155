"""Reading the tables of a scenario file: every key is checked, and every mistake has its place.

A mistake is a `Misread`: `place` is the way to it, such as ("event", 3, "at_s") for the third
[[event]], so that whoever has the file's text can name the line.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from mesh.core.errors import BadInput
from sim.core.clock import MS_NS, ns_of

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
SHOWN_MAX = 20
SHOWN_CHARS_MAX = 60
"""Of a value in an error: it stays one line that people can read."""

Place: TypeAlias = tuple[str | int, ...]


def shown(value: object) -> str:
    """A value of a file, for an error."""
    try:
        text = repr(value)
    except ValueError:  # a number, written in hexadecimal, of more digits than Python prints
        return "…"
    return text if len(text) <= SHOWN_CHARS_MAX else text[: SHOWN_CHARS_MAX - 1] + "…"


def plain(number: float) -> str:
    """Without an exponent."""
    return f"{number:.12g}"


def shown_key(key: str) -> str:
    return key if NAME.fullmatch(key.replace("_", "-")) else shown(key)


def nearest(name: str, known: Sequence[str]) -> str:
    """Which of those known may be meant, in words; empty: none is near."""
    near = difflib.get_close_matches(name[:SHOWN_CHARS_MAX].lower(), known, 1)
    return f"did you mean {near[0]}?" if near else ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class Misread(BadInput):
    """Something in a scenario is not as it must be."""

    def __init__(self, words: str, place: Place) -> None:
        super().__init__(words)
        self.place = place


class Table:
    """A table of the file and where it is, for errors. Every key must be asked for."""

    def __init__(self, where: str, raw: object, place: Place = ()) -> None:
        if not isinstance(raw, Mapping):
            raise Misread(
                f"{where}: {shown(raw)} is not a table: write its keys under it, or in {{ }}", place
            )
        self._where = where
        self._place = place
        self._raw: Mapping[str, Any] = raw
        self._asked: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._raw

    def __bool__(self) -> bool:
        return bool(self._raw)

    def bad(self, key: str, words: str) -> Misread:
        """The error about a key of the table, or "key[1]", an item; an empty one: the table."""
        where = " ".join(part for part in (self._where, key) if part)
        name, _, item = key.rstrip("]").partition("[")
        place = (*self._place, *([name] if name else []), *([int(item)] if item else []))
        return Misread(f"{where}: {words}" if where else words, place)

    def __iter__(self) -> Iterator[str]:
        """The keys, in the order of the file."""
        return iter(self._raw)

    def get(self, key: str) -> Any:
        self._asked.add(key)
        return self._raw.get(key)

    def peek(self, key: str) -> Any:
        """Without asking for it."""
        return self._raw.get(key)

    def done(self) -> None:
        """Raise BadInput if the table has a key that nobody asked for."""
        for key in self._raw:
            if key not in self._asked:
                raise self.unknown(key, self._asked)

    def unknown(self, key: str, known: Iterable[str]) -> Misread:
        """The error about a key that is none of those known here."""
        there = sorted(known)
        fix = nearest(key, there) or "known: " + ", ".join(there)
        return Misread(
            f"{self._where} {shown_key(key)}: is not known here: {fix}".lstrip(),
            (*self._place, key),
        )

    def missing(self, key: str, what: str) -> Misread:
        """The error about a key that must be there; one that is nearly that may be meant."""
        if near := difflib.get_close_matches(
            key, [k for k in self._raw if k not in self._asked], 1
        ):
            return self.unknown(near[0], [key])
        return self.bad(key, f"is missing: give {what}")

    def past(self, key: str, end_s: float) -> None:
        """Raise Misread if a time is after the end of the run."""
        value: object = self.peek(key)
        if isinstance(value, int | float) and value > end_s:
            words = (
                f"{shown(value)} is after the end: use at most {plain(end_s)}, or raise duration_s"
            )
            raise self.bad(key, words)

    def absent(self, key: str, words: str) -> None:
        if key in self._raw:
            raise self.bad(key, words)

    def table(self, key: str) -> Table:
        raw = self.get(key)
        if self._where.startswith("[["):
            place = f"{self._where} {key}"
        else:
            place = f"[{self._where.strip('[]')}.{key}]" if self._where else f"[{key}]"
        return Table(place, {} if raw is None else raw, (*self._place, key))

    def tables(self, key: str, count_max: int) -> list[Table]:
        raw = self.get(key)
        if raw is None:
            return []
        if not isinstance(raw, list):
            raise self.bad(key, f"{shown(raw)} is no list of tables: write [[{key}]] for each")
        if len(raw) > count_max:
            raise self.bad(key, f"{len(raw)} tables [[{key}]]: write at most {count_max}")
        return [
            Table(f"[[{key}]] {i}", item, (*self._place, key, i)) for i, item in enumerate(raw, 1)
        ]

    def list(self, key: str) -> list[Any]:
        raw = self.get(key)
        if raw is None:
            return []
        if not isinstance(raw, list):
            raise self.bad(key, f"{shown(raw)} is not a list: write it in [ ]")
        return raw

    def checked(self, key: str, value: object, low: float, high: float) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            quoted = isinstance(value, str) and _is_number(value)
            fix = (
                "write it without quotes"
                if quoted
                else f"give one from {plain(low)} to {plain(high)}"
            )
            raise self.bad(key, f"{shown(value)} is not a number: {fix}")
        if not low <= value <= high:
            raise self.bad(
                key, f"{shown(value)} is out of bounds: use {plain(low)} to {plain(high)}"
            )
        return float(value)

    def number(self, key: str, default: float | None, *, low: float, high: float) -> float:
        value = self.get(key)
        if value is None:
            if default is None:
                raise self.missing(key, f"a number from {plain(low)} to {plain(high)}")
            return default
        return self.checked(key, value, low, high)

    def whole(self, key: str, default: int, *, low: int, high: int) -> int:
        value = self.get(key)
        if value is None:
            return default
        if type(value) is not int:
            fix = f"give one from {low} to {high}, without quotes or fractions"
            raise self.bad(key, f"{shown(value)} is not a whole number: {fix}")
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
            raise self.bad(key, f"{shown(value)} is none of {', '.join(known)}")
        return str(value)

    def name(self, key: str) -> str:
        value = self.get(key)
        if value is None:
            raise self.missing(key, "a name of a-z, 0-9 and -")
        if not isinstance(value, str) or not NAME.fullmatch(value):
            raise self.bad(key, f"{shown(value)} is no name: use a-z, 0-9 and -")
        return value

    def seconds(self, key: str, default_s: float | None, *, low: float, high: float) -> int:
        """In nanoseconds."""
        return ns_of(self.number(key, default_s, low=low, high=high))

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if value is not None and type(value) is not bool:
            raise self.bad(
                key, f"{shown(value)} is neither true nor false: write one, without quotes"
            )
        return bool(value)

    def known(self, key: str, value: object, what: str, known: Sequence[str]) -> str:
        """`value`, which must be one of `known`."""
        if value not in known:
            some = ", ".join(known[:SHOWN_MAX]) + (", …" if len(known) > SHOWN_MAX else "")
            fix = nearest(value, known) if isinstance(value, str) else ""
            raise self.bad(key, f"no {what} {shown(value)}: {fix or f'there are {some}'}")
        return str(value)

    def pair(self, key: str, known: Sequence[str], words: str) -> tuple[str, str]:
        """Two different sites."""
        found = self.list(key)
        if len(found) != 2 or found[0] == found[1]:
            raise self.bad(key, words)
        a, b = (self.known(key, name, "site", known) for name in found)
        return a, b
