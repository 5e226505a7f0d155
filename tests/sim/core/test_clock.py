"""Virtual time: the order of events, and leaps over ticks that would change nothing."""

from __future__ import annotations

from functools import partial

from sim.core.clock import SECOND_NS, Clock


def test_events_of_one_instant_happen_in_the_order_they_were_scheduled_in() -> None:
    clock, seen = Clock(), list[int]()
    for number in (3, 1, 2):
        clock.at(SECOND_NS, partial(seen.append, number))
    clock.run(2 * SECOND_NS)
    assert seen == [3, 1, 2]
    assert clock.now_ns == 2 * SECOND_NS


def test_ticks_are_played_while_they_may_change_something() -> None:
    clock, seen = Clock(), list[int]()
    clock.tick_at(SECOND_NS, lambda: seen.append(clock.now_ns))
    clock.at(5 * SECOND_NS, lambda: seen.append(clock.now_ns))
    clock.run(10 * SECOND_NS)
    assert seen == [SECOND_NS, 5 * SECOND_NS]


def test_idle_time_is_leapt_over_and_ticks_come_that_much_later_in_their_order() -> None:
    clock, seen, leaps = Clock(), list[tuple[str, int]](), list[int]()
    clock.idle = lambda: clock.now_ns < 5 * SECOND_NS
    clock.leapt = leaps.append

    def note(what: str) -> None:
        seen.append((what, clock.now_ns // SECOND_NS))

    clock.tick_at(2 * SECOND_NS, partial(note, "second"))
    clock.tick_at(1 * SECOND_NS, partial(note, "first"))
    clock.at(5 * SECOND_NS, partial(note, "event"))
    clock.run(20 * SECOND_NS)
    assert seen == [("event", 5), ("first", 6), ("second", 7)]
    assert leaps == [5 * SECOND_NS]
    assert clock.leapt_ns == 5 * SECOND_NS


def test_the_active_time_stands_still_while_time_is_leapt_over() -> None:
    """So what is due by it is due when its tick comes, neither sooner nor long ago."""
    clock, seen = Clock(), list[tuple[int, int]]()
    clock.idle = lambda: clock.now_ns < 5 * SECOND_NS

    def tick() -> None:
        seen.append((clock.now_ns // SECOND_NS, clock.active_ns // SECOND_NS))

    clock.tick_at(2 * SECOND_NS, tick)
    clock.at(5 * SECOND_NS, lambda: None)
    clock.run(20 * SECOND_NS)
    assert seen == [(7, 2)]
