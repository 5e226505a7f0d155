"""Whom to dial: the policy alone, over virtual time."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from mesh.core.ops import NodeId
from mesh.node.p2p.overlay import FULL_MESH_MAX, LINKS_MIN, Overlay
from mesh.node.p2p.redial import DIALS_PER_POLL_MAX, EAGER_NS

S = 10**9


def nodes(count: int) -> list[NodeId]:
    return [n.to_bytes(16, "big") for n in range(1, count + 1)]


def play(
    overlay: Overlay, from_ns: int, to_ns: int, reachable: set[NodeId]
) -> list[tuple[int, NodeId]]:
    """Dial as the transport would: who is reachable links at once, who is not fails."""
    dials = []
    now_ns = from_ns
    while now_ns < to_ns:
        for node in overlay.due(now_ns):
            dials.append((now_ns, node))
            if node in reachable:
                overlay.up(node, now_ns)
            else:
                overlay.failed(node, now_ns)
        deadline_ns = overlay.next_deadline_ns(now_ns)
        if deadline_ns is None:
            break
        assert deadline_ns > now_ns
        now_ns = deadline_ns
    return dials


def test_a_small_mesh_is_linked_completely_at_once() -> None:
    all_nodes = nodes(FULL_MESH_MAX)
    overlay = Overlay(Random(1))
    overlay.set_targets(all_nodes, 0)
    dials = play(overlay, 0, 10 * S, set(all_nodes))
    assert sorted(node for _, node in dials) == all_nodes
    assert max(at for at, _ in dials) == 0
    assert overlay.next_deadline_ns(0) is None


def test_a_large_mesh_keeps_a_few_links() -> None:
    overlay = Overlay(Random(1))
    overlay.set_targets(nodes(100), 0)
    assert len(play(overlay, 0, 10 * S, set(nodes(100)))) == LINKS_MIN


def test_in_a_large_mesh_others_are_picked_for_those_who_cannot_be_reached() -> None:
    all_nodes = nodes(100)
    reachable = set(all_nodes[50:])
    overlay = Overlay(Random(1))
    overlay.set_targets(all_nodes, 0)
    dials = play(overlay, 0, 5 * S, reachable)
    assert len({node for _, node in dials} & reachable) >= LINKS_MIN


def test_links_that_others_dialled_count() -> None:
    overlay = Overlay(Random(1))
    for node in nodes(LINKS_MIN):
        overlay.up(node, 0)
    overlay.set_targets(nodes(100), 0)
    assert overlay.due(0) == []
    assert overlay.next_deadline_ns(0) is None


def test_who_was_lost_is_dialled_every_second_for_a_minute_then_twice_a_second_in_all() -> None:
    all_nodes = nodes(6)
    overlay = Overlay(Random(1))
    overlay.set_targets(all_nodes, 0)
    play(overlay, 0, S, set(all_nodes))
    for node in all_nodes:
        overlay.down(node, 2 * S)
    minute = play(overlay, 2 * S, 2 * S + EAGER_NS, set())
    for node in all_nodes:
        times = [at for at, dialled in minute if dialled == node]
        assert times[0] == 2 * S
        assert len(times) in (59, 60, 61)
        assert 0.4 * S <= times[1] - times[0] <= 1.5 * S
        assert all(0.9 * S <= b - a <= 1.2 * S for a, b in pairwise(times[1:]))
    late = play(overlay, 2 * S + EAGER_NS, 2 * S + EAGER_NS + 600 * S, set())
    assert 1100 <= len(late) <= 1201
    assert {node for _, node in late} == set(all_nodes)


def test_a_partition_longer_than_a_minute_is_undone() -> None:
    """However content the rest of a large mesh is, the lost neighbours are dialled for ever."""
    all_nodes = nodes(50)
    overlay = Overlay(Random(1))
    overlay.set_targets(all_nodes, 0)
    play(overlay, 0, S, set(all_nodes))
    lost = [n for n in all_nodes if n in overlay._linked]
    for node in lost:
        overlay.down(node, 2 * S)
    reachable = set(all_nodes) - set(lost)
    play(overlay, 2 * S, 3600 * S, reachable)
    assert len(overlay._linked) >= LINKS_MIN
    healed = play(overlay, 3600 * S, 3610 * S, set(all_nodes))
    assert set(lost) <= {node for _, node in healed}


def test_nobody_is_dialled_while_blocked() -> None:
    overlay = Overlay(Random(1))
    (node,) = nodes(1)
    overlay.set_targets([node], 0)
    overlay.block(node, 30 * S)
    overlay.set_targets([], 0)
    overlay.set_targets([node], 0)
    assert overlay.due(0) == []
    assert overlay.next_deadline_ns(0) == 30 * S
    assert overlay.blocked(node, 30 * S - 1) and not overlay.blocked(node, 30 * S)
    assert overlay.due(30 * S) == [node]


def test_who_is_no_target_any_more_is_forgotten() -> None:
    overlay = Overlay(Random(1))
    overlay.set_targets(nodes(3), 0)
    overlay.due(0)
    overlay.set_targets([], S)
    assert overlay.next_deadline_ns(S) is None
    overlay.down(nodes(1)[0], 2 * S)
    assert overlay.next_deadline_ns(2 * S) is None


def test_many_lost_at_once_are_dialled_in_bursts() -> None:
    overlay = Overlay(Random(1))
    all_nodes = nodes(200)
    for node in all_nodes:
        overlay.up(node, 0)
    overlay.set_targets(all_nodes, 0)
    for node in all_nodes:
        overlay.down(node, 0)
    assert len(overlay.due(0)) == DIALS_PER_POLL_MAX
    assert {node for _, node in play(overlay, 1, 3 * S, set())} == set(all_nodes)


def test_the_same_seed_dials_the_same() -> None:
    runs = []
    for _ in range(2):
        overlay = Overlay(Random(7))
        overlay.set_targets(nodes(40), 0)
        runs.append(play(overlay, 0, 100 * S, set(nodes(20))))
    assert runs[0] == runs[1]
