"""What links cost beside frames: counted from times, whenever that is asked for."""

from __future__ import annotations

from sim.core.clock import SECOND_NS, Clock
from sim.core.upkeep import (
    BEAT_BYTES,
    DETOUR_BYTES,
    DETOURS_MAX,
    ESTABLISH_BYTES,
    Upkeep,
)


class Links:
    """Four nodes: 0 has links to all others."""

    def __init__(self, others: int = 3) -> None:
        self.clock = Clock()
        self.sent = dict.fromkeys(range(others + 1), 0)
        links = {0: set(range(1, others + 1)), 9: set[int]()}
        self.upkeep = Upkeep(self.clock, links, self._sent)

    def _sent(self, node: int, size_bytes: int, since_ns: int) -> None:
        assert size_bytes > 0
        assert since_ns <= self.clock.now_ns
        self.sent[node] += size_bytes

    def run(self, seconds: float) -> None:
        self.clock.run(self.clock.now_ns + int(seconds * SECOND_NS))


def test_a_link_costs_its_making_and_a_heartbeat_every_so_often() -> None:
    links = Links()
    links.upkeep.made(0, 1, 1)
    links.upkeep.made(1, 0, 2)
    assert (links.sent[0], links.sent[1]) == (ESTABLISH_BYTES, 2 * ESTABLISH_BYTES)
    links.run(8.0)
    links.upkeep.ended(0, 1)
    links.run(8.0)
    links.upkeep.count()
    assert links.sent[0] - ESTABLISH_BYTES == 10 * BEAT_BYTES
    assert links.sent[1] - 2 * ESTABLISH_BYTES == 20 * BEAT_BYTES


def test_however_often_it_is_counted_it_is_the_same() -> None:
    often, once = Links(), Links()
    for links, pauses_s in ((often, [0.3] * 100), (once, [30.0])):
        links.upkeep.made(0, 1, 1)
        links.upkeep.lost((0, 9))
        for pause_s in pauses_s:
            links.run(pause_s)
            links.upkeep.count()
    assert often.sent == once.sent


def test_who_does_not_reach_a_member_asks_some_of_its_peers_for_a_way() -> None:
    links = Links(others=DETOURS_MAX + 2)
    links.upkeep.lost((0, 9))  # of whom nothing is said: it has nobody to ask
    links.run(9.9)
    links.upkeep.count()
    assert not any(links.sent.values())
    links.run(20.0)
    links.upkeep.found((0, 9))
    links.run(100.0)
    links.upkeep.count()
    asked = [2 * DETOUR_BYTES] * DETOURS_MAX
    assert list(links.sent.values()) == [sum(asked), *asked, 0, 0]
