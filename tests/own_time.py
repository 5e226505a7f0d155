"""Time as a thread has it on a machine of its own, for tests on real sockets that claim durations.

What is to happen within a second takes longer where others want the processors as well, and what
is told by a deadline (a peer that was silent for three seconds) is told of peers that only waited
for their turn. Here the clock stands still while the thread is ready to run and does not: what a
test claims of durations, and the deadlines of what it tests, hold whatever else the machine does.

    pytestmark = OWN_TIME

Where no socket is needed a virtual clock (`autojump_clock`) is better still.
"""

from __future__ import annotations

import math
import os
import time
from typing import Any

import pytest
import trio


class OwnTime(trio.abc.Clock):
    """The monotonic clock, less what this thread has waited for a processor.

    The kernel counts it (the second number of schedstat, ns). A kernel that does not say leaves
    the monotonic clock as it is. What a hypervisor takes away is nowhere to be seen.
    """

    def start_clock(self) -> None:
        try:
            self._stat: int | None = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        except OSError:
            self._stat = None

    def current_time(self) -> float:
        now_ns = time.monotonic_ns()
        if self._stat is not None:
            now_ns -= int(os.pread(self._stat, 100, 0).split()[1])
        return now_ns / 1e9

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return math.inf if deadline == math.inf else deadline - self.current_time()

    def close(self) -> None:
        if self._stat is not None:
            os.close(self._stat)
            self._stat = None


def _run(*args: Any, clock: trio.abc.Clock | None = None, **options: Any) -> Any:
    if clock is not None:
        return trio.run(*args, clock=clock, **options)
    own = OwnTime()
    try:
        return trio.run(*args, clock=own, **options)
    finally:
        own.close()


OWN_TIME = pytest.mark.trio(run=_run)
"""In place of `pytest.mark.trio`; a test that asks for `autojump_clock` gets that one."""
