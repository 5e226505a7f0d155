"""Nodes that left, died or were taken over: what replicas do about them, in whatever order they
hear of it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.header import ChainId
from crdt.lattice import Lattice
from mesh.core import wire
from mesh.core.effects import DropPeer, Forget, PersistStatements, Send
from mesh.core.errors import NotReady
from mesh.core.ops import Put, Touched
from mesh.core.replica import FAREWELL_NS, Replica
from mesh.core.roster import Roster
from tests.mesh.core.test_replica import SHARD, Wire, put


def line(*nodes: int) -> Wire:
    """Three nodes that hold what node 2 wrote, linked as told."""
    mesh = Wire(3)
    for a, b in pairwise(nodes):
        mesh.link(a, b)
    put(mesh.replicas[2], b"k")
    put(mesh.replicas[2], b"k", b"y", SHARD)
    mesh.tick(12)
    return mesh


def say(mesh: Wire, blob: bytes, at: int = 0) -> None:
    mesh.replicas[at].add_statements([blob], mesh.now_ns)


def forget(mesh: Wire, node: int) -> bytes:
    return mesh.replicas[0].roster.forget(mesh.seeds[0], mesh.nodes[node])


def retire(mesh: Wire, node: int, *, compromised: bool = False) -> bytes:
    roster = mesh.replicas[0].roster
    return roster.retire(mesh.seeds[0], mesh.nodes[node], compromised=compromised)


def holds(replica: Replica, node: bytes) -> bool:
    return any(id.node == node for id in replica.lattice.chains())


@pytest.mark.parametrize("how", ["forget", "compromised"])
def test_what_a_forgotten_node_wrote_is_dropped_by_all_and_its_link_cut(how: str) -> None:
    mesh = line(0, 1, 2)
    for replica in mesh.replicas:
        replica.take_touched()
    mesh.effects.clear()
    say(mesh, forget(mesh, 2) if how == "forget" else retire(mesh, 2, compromised=True))
    mesh.run()
    gone = mesh.nodes[2]
    for i in (0, 1):
        assert not holds(mesh.replicas[i], gone)
        assert mesh.replicas[i].lattice.shards() == []
        assert set(mesh.replicas[i].take_touched()) == {
            Touched(gone, "mesh", (b"k",)),
            Touched(gone, SHARD, (b"k",)),
        }
        assert mesh.replicas[i].read(gone, "mesh", b"k") is None
        assert (i, Forget(gone)) in mesh.effects
        kinds = [type(effect) for at, effect in mesh.effects if at == i]
        assert kinds.index(PersistStatements) < kinds.index(Forget)
    cut = [(i, e.peer) for i, e in mesh.effects if isinstance(e, DropPeer)]
    assert cut == [(1, gone)]
    assert mesh.replicas[1].peers() == [mesh.nodes[0]]


def test_a_forgotten_node_is_refused_from_everybody_and_as_a_peer() -> None:
    mesh = line(2, 0)
    chain = mesh.replicas[2].lattice.latest(ChainId(mesh.nodes[2], "mesh"))
    assert chain is not None
    say(mesh, forget(mesh, 2))
    mesh.run()
    mesh.link(0, 1)
    mesh.run()
    mesh.replicas[0].receive(mesh.nodes[1], wire.encode(wire.Deltas((chain.snapshot(),))), 0)
    assert not holds(mesh.replicas[0], mesh.nodes[2])
    assert mesh.nodes[1] in mesh.replicas[0].peers()  # whoever passes it on may not know yet
    mesh.replicas[0].drain()
    mesh.replicas[0].peer_up(mesh.nodes[2], mesh.now_ns)
    (effect,) = mesh.replicas[0].drain()
    assert isinstance(effect, DropPeer) and mesh.nodes[2] not in mesh.replicas[0].peers()


def test_what_is_about_to_be_passed_on_of_a_node_that_is_forgotten_is_not() -> None:
    mesh = line(2, 0)
    mesh.link(0, 1)
    mesh.run()
    put(mesh.replicas[2], b"late")
    for effect in mesh.replicas[2].drain():
        if isinstance(effect, Send):
            mesh.replicas[0].receive(mesh.nodes[2], effect.frame, mesh.now_ns)
    say(mesh, forget(mesh, 2))
    sent = [wire.decode(e.frame) for e in mesh.replicas[0].drain() if isinstance(e, Send)]
    assert sent and not any(isinstance(frame, wire.Deltas) for frame in sent)


def test_a_start_drops_what_the_disk_still_has_of_a_forgotten_node() -> None:
    mesh = line(0, 1, 2)
    disk = Lattice()
    disk.join(mesh.replicas[1].lattice)
    mesh.blobs = [*mesh.blobs, forget(mesh, 2)]
    replica = mesh.make(1, disk)
    assert not holds(replica, mesh.nodes[2])
    assert replica.drain() == [Forget(mesh.nodes[2])]


def test_a_retired_node_hears_of_it_then_its_link_is_cut_and_its_chains_stay() -> None:
    mesh = line(0, 1, 2)
    say(mesh, retire(mesh, 2))
    mesh.run()
    retired = mesh.replicas[2]
    assert retired.retired and not retired.writable
    with pytest.raises(NotReady, match="retired"):
        retired.local([Put("mesh", b"more", b"x")], mesh.now_ns)
    assert mesh.nodes[2] in mesh.replicas[1].peers() and mesh.replicas[1].parting(mesh.nodes[2])
    deadline_ns = mesh.replicas[1].next_deadline_ns()
    assert deadline_ns is not None and deadline_ns <= mesh.now_ns + FAREWELL_NS
    mesh.now_ns += FAREWELL_NS
    mesh.replicas[1].timer(mesh.now_ns)
    assert mesh.replicas[1].peers() == [mesh.nodes[0]]
    mesh.replicas[1].peer_up(mesh.nodes[2], mesh.now_ns)
    assert mesh.replicas[1].peers() == [mesh.nodes[0]]
    mesh.links -= {(1, 2), (2, 1)}
    mesh.tick()
    assert mesh.replicas[0].lattice.digest("mesh") == mesh.replicas[1].lattice.digest("mesh")
    assert holds(mesh.replicas[0], mesh.nodes[2])


def test_a_node_that_hears_that_it_is_forgotten_drops_its_own_too() -> None:
    mesh = line(0, 1, 2)
    put(mesh.replicas[2], b"unsigned")
    mesh.replicas[2].take_touched()
    say(mesh, forget(mesh, 2), at=2)
    touched = mesh.replicas[2].take_touched()
    assert {key for each in touched for key in each.keys} == {b"k", b"unsigned"}
    assert mesh.replicas[2].record("mesh", b"unsigned") is None
    assert mesh.replicas[2].lattice.shards() == []


def _history() -> tuple[Wire, list[tuple[str, bytes]]]:
    """Everything that may reach node 0 of nodes 1 (retired) and 2 (retired, then forgotten)."""
    mesh = Wire(4)
    inputs: list[tuple[str, bytes]] = []
    for i in (1, 2):
        for key in (b"a", b"b", b"a"):
            put(mesh.replicas[i], key, key * 3)
            mesh.replicas[i].drain()
            chain = mesh.replicas[i].lattice.latest(ChainId(mesh.nodes[i], "mesh"))
            assert chain is not None
            inputs.append(("frame", wire.encode(wire.Deltas((chain.snapshot(),)))))
    inputs += [("word", blob) for blob in (retire(mesh, 1), retire(mesh, 2), forget(mesh, 2))]
    return mesh, inputs


HISTORY, INPUTS = _history()


@given(st.permutations(range(len(INPUTS))))
def test_the_order_in_which_words_and_records_arrive_changes_nothing(order: list[int]) -> None:
    mesh = HISTORY
    replica = Replica(
        mesh.nodes[0], Roster.founded_by(mesh.blobs), Lattice(), sign=lambda _: b"",
        nonce=bytes, jitter=lambda: 0.0, now_ns=0,
    )  # fmt: skip
    replica.peer_up(mesh.nodes[3], 0)
    view: dict[tuple[bytes, bytes], bytes] = {}
    for i in order:
        kind, blob = INPUTS[i]
        if kind == "word":
            replica.add_statements([blob], 0)
        else:
            replica.receive(mesh.nodes[3], blob, 0)
        for node, shard, touched in replica.take_touched():
            for key in touched:
                view.pop((node, key), None)
                if (record := replica.read(node, shard, key)) is not None:
                    view[node, key] = record
    assert not holds(replica, mesh.nodes[2])
    states = [replica.roster.members()[node].state for node in mesh.nodes]
    assert states == ["active", "retired", "forgotten", "active"]
    assert view == {(mesh.nodes[1], key): key * 3 for key in (b"a", b"b")}
    latest = HISTORY.replicas[1].lattice.digest("mesh")
    assert replica.lattice.digest("mesh") == latest
