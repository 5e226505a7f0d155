"""Whom to dial: the policy alone, over virtual time."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from statistics import fmean

import pytest

from mesh.core.ops import NodeId
from mesh.node.p2p.overlay import (
    FULL_MESH_MAX,
    LINKS_MAX,
    LINKS_MIN,
    LINKS_PLENTY,
    PICK_BURST,
    PICKS_PER_S,
    SURPLUS_AGE_NS,
    Overlay,
)
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


# -- whole meshes, by policy alone -----------------------------------------------------------------


class Mesh:
    """The overlays of a whole mesh: who dials somebody reachable has a link, both ends know."""

    def __init__(self, count: int, seed: int = 1) -> None:
        self.nodes = nodes(count)
        self.rng = Random(seed)
        self.overlays = {n: Overlay(Random(seed * 1000 + i)) for i, n in enumerate(self.nodes)}
        self.side: dict[NodeId, int] = dict.fromkeys(self.nodes, 0)
        self.links: dict[NodeId, set[NodeId]] = {n: set() for n in self.nodes}
        self.dials: list[tuple[int, NodeId, NodeId]] = []
        """(when, from, to) of those that get through"""
        for node, overlay in self.overlays.items():
            overlay.set_targets([n for n in self.nodes if n != node], 0)

    def run(self, from_ns: int, to_ns: int) -> None:
        """Every node looks when its deadline says so, to within 100 ms."""
        next_ns = {n: from_ns + self.rng.randrange(10**8) for n in self.nodes}
        now_ns = from_ns
        while now_ns < to_ns:
            for node in [n for n in self.nodes if next_ns[n] <= now_ns]:
                next_ns[node] = self._poll(node, now_ns) or to_ns
            now_ns += 10**8

    def _poll(self, node: NodeId, now_ns: int) -> int | None:
        overlay = self.overlays[node]
        for other in overlay.due(now_ns):
            if self.side[node] != self.side[other] or len(self.links[other]) >= LINKS_MAX:
                overlay.failed(other, now_ns)
            elif other not in self.links[node]:
                self.dials.append((now_ns, node, other))
                self.links[node].add(other)
                self.links[other].add(node)
                overlay.up(other, now_ns, dialled=True)
                self.overlays[other].up(node, now_ns)
        return overlay.next_deadline_ns(now_ns)

    def cut(self, now_ns: int) -> None:
        """Two halves that do not reach each other."""
        for i, node in enumerate(self.nodes):
            self.side[node] = i % 2
        for node in self.nodes:
            for other in sorted(self.links[node]):
                if self.side[node] != self.side[other]:
                    self.links[node].discard(other)
                    self.overlays[node].down(other, now_ns)

    def heal(self) -> None:
        self.side = dict.fromkeys(self.nodes, 0)

    def connected(self, among: set[NodeId]) -> bool:
        """Whether those hang together over links between themselves."""
        first = min(among)
        reached, border = {first}, [first]
        while border:
            for other in self.links[border.pop()] & among - reached:
                reached.add(other)
                border.append(other)
        return reached == among


def test_a_thousand_nodes_hang_together_with_few_links_each() -> None:
    mesh = Mesh(1000)
    mesh.run(0, 5 * S)
    counts = [len(links) for links in mesh.links.values()]
    assert min(counts) >= LINKS_MIN
    assert fmean(counts) <= 2 * LINKS_MIN and max(counts) <= 5 * LINKS_MIN
    assert mesh.connected(set(mesh.nodes))


def test_a_thousand_nodes_that_find_together_again_do_not_do_so_all_at_once() -> None:
    mesh = Mesh(1000)
    mesh.run(0, 5 * S)
    mesh.cut(5 * S)
    mesh.run(5 * S, 200 * S)  # far past the minute in which everybody dials eagerly
    assert all(len(links) >= LINKS_MIN for links in mesh.links.values())
    assert not mesh.connected(set(mesh.nodes))
    mesh.heal()
    mesh.dials.clear()
    mesh.run(200 * S, 230 * S)
    assert mesh.connected(set(mesh.nodes))
    # Handshakes of one node, both directions, in any second; one costs it some 10 ms of CPU.
    busiest: dict[tuple[NodeId, int], int] = {}
    for at_ns, node, other in mesh.dials:
        for end in (node, other):
            busiest[end, at_ns // S] = busiest.get((end, at_ns // S), 0) + 1
    assert max(busiest.values()) <= 12
    # The mesh as a whole makes each lost link good within seconds and not within one.
    per_second = [sum(1 for at, _, _ in mesh.dials if at // S == s) for s in range(200, 230)]
    assert 0 < max(per_second) <= 2 * len(mesh.nodes)
    first_s = next(s for s in range(30) if mesh_met(mesh, 200 + s))
    assert first_s <= 2


def mesh_met(mesh: Mesh, second: int) -> bool:
    """Whether the halves had a link between them by the end of that second."""
    return any(at // S <= second for at, a, b in mesh.dials)


def test_neighbours_of_a_node_that_restarts_do_not_come_back_in_step() -> None:
    """It takes two seconds to start; each of its 200 neighbours dials once a second meanwhile."""
    hub = nodes(1)[0]
    arrivals = []
    for seed in range(200):
        overlay = Overlay(Random(seed))
        overlay.set_targets([hub], 0)
        overlay.up(hub, 0)
        overlay.down(hub, 0)
        dials = play(overlay, 0, 10 * S, set())
        arrivals.append(next(at for at, _ in dials if at >= 2 * S))
    per_tenth = [sum(1 for at in arrivals if at // (S // 10) == t) for t in range(20, 40)]
    assert sum(per_tenth) == 200 and max(arrivals) < 3.2 * S
    assert max(per_tenth) <= 40  # in step it would be 200


@pytest.mark.parametrize("near", [True, False])
def test_links_tend_to_the_near_and_leave_no_islands(near: bool) -> None:
    """Ten cities, 2 ms inside and 80 ms between: with measurements half of the picks stay near."""
    mesh = Mesh(400)
    city = {node: i % 10 for i, node in enumerate(mesh.nodes)}
    for node, overlay in mesh.overlays.items():
        for other in mesh.nodes:
            if near and other != node:
                overlay.measured(other, (2 if city[node] == city[other] else 80) * 10**6)
    mesh.run(0, 5 * S)
    assert mesh.connected(set(mesh.nodes))
    inside = [
        sum(city[n] == city[other] for other in links) / len(links)
        for n, links in mesh.links.items()
    ]
    if near:
        assert 0.4 <= fmean(inside) <= 0.6
    else:
        assert fmean(inside) <= 0.15


def test_who_is_cut_off_from_everybody_does_not_run_through_the_mesh() -> None:
    overlay = Overlay(Random(1))
    overlay.set_targets(nodes(1000), 0)
    dials = play(overlay, 0, 60 * S, set())
    new = {node for _, node in dials}
    assert len(new) <= PICK_BURST + 60 * PICKS_PER_S
    play(overlay, 60 * S, 600 * S, set())
    last_minute = play(overlay, 600 * S, 660 * S, set())
    assert len(last_minute) <= 60 * (PICKS_PER_S + 2) + 1


# -- shards ----------------------------------------------------------------------------------------


def interests(mesh: Mesh, shards: int, rng: Random) -> dict[str, frozenset[NodeId]]:
    """Shards of very different sizes: most in a few sites, some nearly everywhere."""
    sizes = [max(2, min(len(mesh.nodes), int(rng.lognormvariate(4.3, 1.1)))) for _ in range(shards)]
    held = {f"{n:032x}": frozenset(rng.sample(mesh.nodes, k)) for n, k in enumerate(sizes)}
    for node, overlay in mesh.overlays.items():
        overlay.set_holders({s: nodes - {node} for s, nodes in held.items() if node in nodes})
    return held


def check_shards(mesh: Mesh, held: dict[str, frozenset[NodeId]]) -> None:
    for holders in held.values():
        for node in holders:
            assert len(mesh.links[node] & holders) >= min(LINKS_MIN, len(holders) - 1)
        assert mesh.connected(set(holders))


def test_every_shard_hangs_together_over_shared_links() -> None:
    mesh = Mesh(200)
    held = interests(mesh, 200, Random(5))
    mesh.run(0, 40 * S)
    check_shards(mesh, held)
    counts = [len(links) for links in mesh.links.values()]
    rings = [2 * sum(node in holders for holders in held.values()) for node in mesh.nodes]
    assert fmean(counts) < fmean(rings) / 2


def test_a_lost_link_is_made_good_in_every_shard_that_it_served() -> None:
    mesh = Mesh(60)
    held = interests(mesh, 40, Random(6))
    mesh.run(0, 20 * S)
    gone = mesh.nodes[7]
    mesh.side[gone] = 9
    for other in sorted(mesh.links[gone]):
        mesh.links[other].discard(gone)
        mesh.overlays[other].down(gone, 20 * S)
    mesh.links[gone].clear()
    mesh.run(20 * S, 22 * S)
    left = {shard: holders - {gone} for shard, holders in held.items()}
    check_shards(mesh, {s: holders for s, holders in left.items() if len(holders) > 1})


def test_without_a_word_about_shards_all_hold_all() -> None:
    overlay = Overlay(Random(1))
    overlay.set_targets(nodes(100), 0)
    overlay.set_holders({"a": frozenset(nodes(3)), "b": frozenset(nodes(100)[50:])})
    dialled = {node for _, node in play(overlay, 0, 5 * S, set(nodes(100)))}
    assert set(nodes(3)) <= dialled and len(dialled & set(nodes(100)[50:])) >= LINKS_MIN
    overlay.set_holders({})
    for node in dialled:
        overlay.block(node, 10**6 * S)
        overlay.down(node, 6 * S)
    dialled = {node for _, node in play(overlay, 6 * S, 9 * S, set(nodes(100)))}
    assert len(dialled) == LINKS_MIN


def test_there_are_never_more_links_than_a_node_can_hold() -> None:
    overlay = Overlay(Random(1))
    everybody = nodes(2000)
    overlay.set_targets(everybody, 0)
    # Far more shards than one node should be interested in, none overlapping.
    parts = {f"{n}": frozenset(everybody[n * 20 : n * 20 + 20]) for n in range(100)}
    overlay.set_holders(parts)
    dialled = play(overlay, 0, 600 * S, set(everybody))
    assert len(dialled) == LINKS_MAX


# -- letting go ------------------------------------------------------------------------------------


def test_links_that_came_back_one_by_one_are_let_go_one_by_one() -> None:
    overlay = Overlay(Random(1))
    everybody = nodes(100)
    overlay.set_targets(everybody, 0)
    for n, node in enumerate(everybody[:30]):
        overlay.up(node, n * S, dialled=n % 2 == 0)
    assert overlay.surplus(SURPLUS_AGE_NS - 1) is None
    now_ns, gone = SURPLUS_AGE_NS + 30 * S, []
    while (spare := overlay.surplus(now_ns)) is not None:
        gone.append(spare)
        overlay.down(spare, now_ns, lost=False)
        assert overlay.due(now_ns) == []  # it was not lost, and is not dialled again
    # Only what this end dialled, and not one more than there is plenty.
    assert all(everybody.index(node) % 2 == 0 for node in gone)
    assert overlay.links == max(30 - len(gone), LINKS_PLENTY) == 15


def test_a_link_that_some_shard_needs_is_kept() -> None:
    overlay = Overlay(Random(1))
    everybody = nodes(100)
    overlay.set_targets(everybody, 0)
    overlay.set_holders({"rare": frozenset(everybody[:5])})
    for node in everybody[:30]:
        overlay.up(node, 0, dialled=True)
    now_ns = 2 * SURPLUS_AGE_NS
    while (spare := overlay.surplus(now_ns)) is not None:
        overlay.down(spare, now_ns, lost=False)
        assert spare not in everybody[:5]
    assert overlay.links == LINKS_PLENTY


def test_in_a_small_mesh_no_link_is_too_many() -> None:
    overlay = Overlay(Random(1))
    overlay.set_targets(nodes(FULL_MESH_MAX), 0)
    for node in nodes(FULL_MESH_MAX):
        overlay.up(node, 0, dialled=True)
    assert overlay.surplus(10**6 * S) is None
