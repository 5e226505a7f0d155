"""Python's collector of cycles, and runs: what it may walk, and when."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def few_collections() -> Iterator[None]:
    """A run makes next to no cycles while it lasts, and a collection of everything walks what a
    thousand nodes hold: 4 s each."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 50, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def collect_run() -> None:
    """A run that is over is a cycle itself. Within `few_collections` a short one is young still:
    nothing else is walked for it."""
    gc.collect(0)
