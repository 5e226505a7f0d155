"""Memory that is freed goes back to the system."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_M_TRIM_THRESHOLD: Final = -1  # <malloc.h>
_M_MMAP_THRESHOLD: Final = -3
_LARGE_BYTES: Final = 128 << 10
"""What the C library begins with, for both."""


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect no garbage meanwhile: of a million records that are read hardly anything is garbage,
    and looking for it again and again would take a tenth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def give_back() -> None:
    """Let the C library keep little of what is freed, for the rest of this process.

    As it comes it maps blocks from 128 KiB on by themselves, raises that to the largest block ever
    freed, up to 32 MiB, and keeps twice as much at the end of its heap (mallopt(3)): what a crowd's
    frames have taken once stays with the node for good. Limits that are set stay as they are.
    A C library without mallopt is left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)
