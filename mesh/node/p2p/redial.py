"""When to dial whom again. Pure: time comes in as `now_ns`, chance as a `random.Random`.

Rules
- Whoever is newly wanted is dialled at once, after that once a second for a minute, and then all
  who are still wanted share SLOW_DIALS_PER_S, at random, for ever.
- Nothing is dialled on the beat of a clock: the second dial comes 0.4 to 1.4 s after the first, at
  random, and each further one a tenth of a second early or late. What hundreds of nodes
  lose at one moment (a member with many links restarts, half a mesh comes back) they do not dial at
  one moment: consul#4511 was 3,000 nodes that did.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from random import Random
from typing import Generic, TypeVar

EAGER_NS = 60 * 10**9
REDIAL_NS = 10**9
SLOW_DIALS_PER_S = 2

DIALS_PER_POLL_MAX = 16
"""Dials started at once. A handshake costs some 10 ms of CPU at each end."""

_JITTER = 0.1
_FIRST_SPREAD = (0.4, 1.4)
"""Seconds to the second dial: a whole second wide, and longer than the first takes to connect."""
_BURST_PAUSE_NS = 100_000_000

K = TypeVar("K", bound=bytes | str)


class Redial(Generic[K]):
    """Those who are wanted, and when each is dialled next."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._since_ns: dict[K, int] = {}
        self._next_ns: dict[K, int] = {}
        self._slow_next_ns = 0

    def __contains__(self, key: K) -> bool:
        return key in self._since_ns

    def wanted(self) -> Collection[K]:
        return self._since_ns.keys()

    def want(self, key: K, now_ns: int) -> None:
        """Dial `key` eagerly from now on, whatever was before."""
        self._since_ns[key] = self._next_ns[key] = now_ns

    def calm(self, key: K, now_ns: int) -> None:
        """Dial `key` with the slow ones only."""
        self._since_ns[key] = min(self._since_ns[key], now_ns - EAGER_NS)

    def forget(self, key: K) -> None:
        self._since_ns.pop(key, None)
        self._next_ns.pop(key, None)

    def due(self, now_ns: int, blocked: Callable[[K], bool]) -> list[K]:
        """Whom to dial now; each of them counts as dialled."""
        ready = [
            key
            for key in sorted(self._since_ns)
            if self._next_ns[key] <= now_ns and not blocked(key)
        ]
        eager = [key for key in ready if now_ns - self._since_ns[key] < EAGER_NS]
        self._rng.shuffle(eager)
        dials = eager[:DIALS_PER_POLL_MAX]
        slow = [key for key in ready if now_ns - self._since_ns[key] >= EAGER_NS]
        if slow and self._slow_next_ns <= now_ns:
            dials.append(self._rng.choice(slow))
            pause_ns = 10**9 // SLOW_DIALS_PER_S
            self._slow_next_ns = now_ns + int(pause_ns * self._rng.uniform(1, 1 + _JITTER))
        for key in dials:
            first = self._next_ns[key] == self._since_ns[key]
            spread = _FIRST_SPREAD if first else (1 - _JITTER, 1 + _JITTER)
            self._next_ns[key] = now_ns + int(REDIAL_NS * self._rng.uniform(*spread))
        return dials

    def next_deadline_ns(self, now_ns: int, blocked_until_ns: Callable[[K], int]) -> int | None:
        """When `due` may next have somebody; None: not before something else happens."""
        deadlines_ns = []
        for key, since_ns in self._since_ns.items():
            at_ns = max(self._next_ns[key], blocked_until_ns(key))
            if max(at_ns, now_ns) - since_ns >= EAGER_NS:
                at_ns = max(at_ns, self._slow_next_ns)
            deadlines_ns.append(at_ns)
        if not deadlines_ns:
            return None
        return max(min(deadlines_ns), now_ns + _BURST_PAUSE_NS)
