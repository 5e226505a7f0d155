"""Short numbers for long names, the same whatever the order in which the names came.

A number is taken from a hash of the name. Should two names meet in one number, the lesser name
keeps it and the other takes the next number of its own hash sequence, so the assignment is a
function of the set of names alone. Numbers are local to this machine: they never leave it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def assign(names: Iterable[bytes], low: int, high: int) -> dict[bytes, int]:
    """One number of [low, high) for each name. ValueError if there are more names than numbers."""
    ordered = sorted(set(names))
    if len(ordered) > high - low:
        raise ValueError(f"{len(ordered)} names do not fit in {high - low} numbers")
    numbers: dict[bytes, int] = {}
    taken: set[int] = set()
    for name in ordered:
        attempt = 0
        while (number := _candidate(name, attempt, low, high)) in taken:
            attempt += 1
        taken.add(number)
        numbers[name] = number
    return numbers


def _candidate(name: bytes, attempt: int, low: int, high: int) -> int:
    """The attempt-th number a name asks for; after the hash, its successors, so all get a turn."""
    digest = hashlib.sha256(name).digest()
    return low + (int.from_bytes(digest[:8], "big") + attempt) % (high - low)


class IdSpace:
    """`assign` kept up to date over a counted set of names, at constant cost while none collide."""

    def __init__(self, low: int, high: int) -> None:
        self._low = low
        self._high = high
        self._uses: dict[bytes, int] = {}
        self._numbers: dict[bytes, int] = {}
        self._names: dict[int, bytes] = {}
        self._before: dict[bytes, int] = {}  # numbers that names had when moves were last taken
        self._displaced = 0  # names that do not have the first number they ask for

    def acquire(self, name: bytes, uses: int = 1) -> bool:
        """Count so many more uses of a name. True if the number of another name has changed."""
        before = self._uses.get(name, 0)
        self._uses[name] = before + uses
        if before:
            return False
        wanted = _candidate(name, 0, self._low, self._high)
        if wanted not in self._names and not self._displaced:
            self._numbers[name] = wanted
            self._names[wanted] = name
            return False
        return self._reassign()

    def release(self, name: bytes, uses: int = 1) -> bool:
        """Count so many uses less. True if the number of another name has changed."""
        self._uses[name] -= uses
        if self._uses[name]:
            return False
        del self._uses[name]
        del self._names[self._numbers.pop(name)]
        return self._reassign() if self._displaced else False

    def number(self, name: bytes) -> int:
        """The number of a name in use; KeyError otherwise."""
        return self._numbers[name]

    def name(self, number: int) -> bytes:
        """The name in use that has the number; KeyError if none has."""
        return self._names[number]

    def take_moves(self) -> dict[int, int]:
        """Of the names whose numbers changed since the last call: the number before and now."""
        before, self._before = self._before, {}
        numbers = ((number, self._numbers.get(name, number)) for name, number in before.items())
        return {number: now for number, now in numbers if number != now}

    def _reassign(self) -> bool:
        before = self._numbers
        self._numbers = assign(self._uses, self._low, self._high)
        self._names = {number: name for name, number in self._numbers.items()}
        self._displaced = sum(
            number != _candidate(name, 0, self._low, self._high)
            for name, number in self._numbers.items()
        )
        moved = any(self._numbers[name] != number for name, number in before.items())
        if moved:
            self._before = {**before, **self._before}
        return moved
