"""Endpoints that move too often: counted as RFC 7432 counts them, held, shown, let go again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import damping, keys
from mesh.core.damping import MOVES_MAX, WINDOW_NS, HeldMove, MoveDamper
from mesh.core.errors import Refused
from mesh.core.view import Endpoint
from tests.mesh.core.core_world import SECOND_NS, START_NS, World, node_id

IP = "10.0.200.5"
PLACE = ("red", IP)


def claim(mobility: int, made_ns: int = START_NS) -> Endpoint:
    mac, node = "02:00:00:00:00:05", node_id("a1")
    hlc = made_ns // 1_000_000 << 16
    return Endpoint("red", IP, mac, "", node, "a", None, mobility, hlc, (), "active", "")


def flap(world: World, moves: int, every_ns: int = SECOND_NS) -> None:
    """The endpoint goes to and fro between a1 and b1, ending at a1 after an even number."""
    for i in range(moves):
        world.now_ns += every_ns
        world.everywhere("ba"[i % 2] + "1", "move_endpoint", "red", IP)
        for name in world.views:
            world.tend(name)
        world.sync()


def claimed() -> tuple[World, str]:
    world = World("a1", "b1")
    red = world.red()
    world.everywhere("a1", "add_endpoint", "red", IP)
    for name in world.views:
        world.tend(name)
    return world, red


def test_more_than_five_moves_in_180_s_hold_further_ones_until_the_first_is_180_s_past() -> None:
    world, red = claimed()
    first_ns = world.now_ns + SECOND_NS
    flap(world, MOVES_MAX)
    assert world.writers["b1"].held(world.now_ns) == []
    flap(world, 0)
    world.now_ns += SECOND_NS
    world.everywhere("a1", "move_endpoint", "red", IP)
    for name in world.views:  # though housekeeping has not seen the last move yet
        with pytest.raises(Refused, match=r"more than 5 times within 180 s.*at site a.*for 175 s"):
            world.do(name, "move_endpoint", "red", IP, "02:00:00:00:00:09")
        assert world.writers[name].held(world.now_ns) == [HeldMove(red, IP, first_ns + WINDOW_NS)]
    assert world.do("a1", "move_endpoint", "red", IP) == []  # it is here: nothing is moved
    world.now_ns = first_ns + WINDOW_NS - 1
    with pytest.raises(Refused, match="for 1 s more"):
        world.do("b1", "move_endpoint", "red", IP)
    world.now_ns += 1
    assert world.writers["b1"].held(world.now_ns) == []
    assert len(world.do("b1", "move_endpoint", "red", IP)) == 1
    with pytest.raises(Refused, match="within 180 s"):
        world.do("b1", "move_endpoint", "red", IP, "02:00:00:00:00:09")


def test_moves_further_apart_are_never_held() -> None:
    world, _ = claimed()
    flap(world, 4 * MOVES_MAX, every_ns=WINDOW_NS // MOVES_MAX)
    assert world.writers["a1"].held(world.now_ns) == []


def test_one_endpoint_that_flaps_holds_no_other() -> None:
    world, _ = claimed()
    world.everywhere("b1", "add_endpoint", "red", "10.0.200.6")
    flap(world, MOVES_MAX + 1)
    assert len(world.do("a1", "move_endpoint", "red", "10.0.200.6")) == 1


def test_what_others_write_counts_as_ever_and_the_owner_can_still_evict() -> None:
    world, red = claimed()
    flap(world, MOVES_MAX + 1)
    assert world.view().claims(red, IP)[0].site == "a"
    world.everywhere("a1", "remove_endpoint", "red", IP)
    assert world.view().claims(red, IP) == ()


def test_a_move_that_ends_and_one_above_it_again_are_both_counted() -> None:
    damper = MoveDamper()
    for i in range(MOVES_MAX + 1):
        assert damper.held(START_NS + i) == []
        damper.note(PLACE, claim(1, START_NS), START_NS + i)
        damper.note(PLACE, claim(1, START_NS), START_NS + i)  # the same again is no move
        damper.note(PLACE, None if i % 2 else claim(0), START_NS + i)
    assert damper.held(START_NS + 9) == [HeldMove(*PLACE, START_NS + WINDOW_NS)]


def test_old_claims_met_for_the_first_time_and_great_steps_are_not_many_moves() -> None:
    damper = MoveDamper()
    damper.note(PLACE, claim(9, START_NS - WINDOW_NS), START_NS)
    for i in range(MOVES_MAX):
        damper.note(PLACE, claim(1_000 * (i + 1), START_NS), START_NS)
    assert damper.held(START_NS) == []
    damper.note(PLACE, claim(1_000_000, START_NS), START_NS)
    assert len(damper.held(START_NS)) == 1


def test_a_clock_set_back_holds_nothing_for_longer() -> None:
    damper = MoveDamper()
    for i in range(MOVES_MAX + 1):
        damper.note(PLACE, claim(i + 1), START_NS)
    long_ago_ns = START_NS - 10 * WINDOW_NS
    assert damper.held_until_ns(PLACE, long_ago_ns) == long_ago_ns + WINDOW_NS


def test_what_is_remembered_is_bounded_and_forgets_what_moved_longest_ago(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(damping, "TRACKED_MAX", 2)
    damper = MoveDamper()
    for i in range(MOVES_MAX + 1):
        for ip in ("10.0.0.1", "10.0.0.2"):
            damper.note(("red", ip), claim(i + 1), START_NS)
    assert [held.ip for held in damper.held(START_NS)] == ["10.0.0.1", "10.0.0.2"]
    damper.note(("red", "10.0.0.3"), claim(1), START_NS)
    assert [held.ip for held in damper.held(START_NS)] == ["10.0.0.2"]
    assert [set(damper.tracked(vpc)) for vpc in ("red", "blue")] == [
        {keys.ENDPOINT + keys.addr_of(ip) for _, ip in damper._tracks},
        set(),
    ]
    damper.note(("blue", "10.0.0.9"), None, START_NS + WINDOW_NS)
    assert damper.held(START_NS) == [] and not damper.tracked("red"), "all have lapsed"
    damper.note(PLACE, claim(7), START_NS + WINDOW_NS)
    assert damper.held(START_NS) == []


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 3)), max_size=40))
def test_it_is_held_exactly_while_more_than_five_rises_lie_in_the_window(
    steps: list[tuple[int, int]],
) -> None:
    damper, now_ns, rises, mobility = MoveDamper(), START_NS, [START_NS], 1
    damper.note(PLACE, claim(1), now_ns)
    for seconds, seen in steps:
        now_ns += seconds * SECOND_NS
        recent = [at_ns for at_ns in rises if at_ns + WINDOW_NS > now_ns]
        if seen > mobility or (not recent and seen):
            rises.append(now_ns)
        mobility = seen
        damper.note(PLACE, claim(seen, now_ns), now_ns)
        recent = [at_ns for at_ns in rises if at_ns + WINDOW_NS > now_ns]
        assert bool(damper.held(now_ns)) == (len(recent) > MOVES_MAX)
