"""Chance as an argument. A run draws from several named streams, so that a change in what one of
them is asked for does not shift the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias, TypeVar

T = TypeVar("T")


class Chance(Protocol):
    """What is used of `random.Random`; the same draws from the same seed on every machine."""

    def random(self) -> float: ...

    def getrandbits(self, bits: int, /) -> int: ...

    def randbytes(self, size: int, /) -> bytes: ...


ChanceOf: TypeAlias = Callable[[str], Chance]
"""The stream of that name. Two calls with one name give two streams of the same draws."""


def below(chance: Chance, bound: int) -> int:
    """A whole number in [0, bound)."""
    return int(chance.random() * bound)


def pick(chance: Chance, items: Sequence[T]) -> T:
    """One of `items`, which must not be empty."""
    return items[below(chance, len(items))]


def pick_weighted(chance: Chance, weights: Mapping[T, float]) -> T:
    """A key of `weights`, in proportion; at least one weight is above 0."""
    point = chance.random() * sum(weights.values())
    last: T | None = None
    for item, weight in weights.items():
        if weight > 0:
            last = item
            point -= weight
            if point < 0:
                break
    assert last is not None
    return last


def spread(chance: Chance, low: float, high: float) -> float:
    """A number in [low, high)."""
    return low + (high - low) * chance.random()
