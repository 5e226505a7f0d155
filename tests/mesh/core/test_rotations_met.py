"""Replicas and rotations: what an old key signs is taken as far as it counts, whoever serves it."""

from __future__ import annotations

from hashlib import sha256

import pytest

from crdt.chain import Chain
from crdt.header import ChainId
from crdt.lattice import Lattice
from mesh.core import ed25519
from mesh.core.effects import Alarm, DropBranches, DropPeer
from mesh.core.errors import NotReady
from mesh.core.ops import Delete
from mesh.core.replica import Replica
from mesh.core.statements import ROTATE, Statement
from tests.mesh.core.test_replica import SHARD, Wire, put

NEW = sha256(b"new").digest()


def line(count: int = 3) -> Wire:
    """Nodes in a row that agree; node 0 has written."""
    mesh = Wire(count)
    for i in range(count - 1):
        mesh.link(i, i + 1)
    put(mesh.replicas[0], b"k")
    put(mesh.replicas[0], b"k", shard=SHARD)
    mesh.tick(3)
    assert len(mesh.digests()) == 1
    return mesh


def rotate(mesh: Wire, i: int = 0, seed: bytes = NEW) -> None:
    replica = mesh.replicas[i]
    blobs = replica.rotation(mesh.seeds[i], seed)
    mesh.seeds[i] = seed
    replica.rotated(blobs, ed25519.public_key(seed), mesh.now_ns)


def key_of(replica: Replica, node: bytes) -> bytes:
    return replica.roster.members()[node].key


def agreed(mesh: Wire) -> None:
    for shard in ("mesh", SHARD):
        assert len(mesh.digests(shard)) == 1
    assert len({replica.roster.digest() for replica in mesh.replicas}) == 1


def dropped(mesh: Wire) -> list[object]:
    return [e for _, e in mesh.effects if isinstance(e, DropPeer | DropBranches)]


def thief(mesh: Wire, i: int, seed: bytes) -> Replica:
    """Another process that has stolen the store and the key of node `i`."""
    lattice = Lattice()
    source = mesh.replicas[i].lattice
    for id in source.chains():
        for branch in source.branches(id):
            assert branch.header is not None
            lattice.add(Chain.restore(branch.header, dict(branch.live)))
    other = Replica(
        mesh.nodes[i],
        type(mesh.replicas[i].roster).founded_by(mesh.replicas[i].roster.statements()),
        lattice,
        sign=lambda message: ed25519.sign(seed, message),
        nonce=lambda size: b"t" * size,
        jitter=lambda: 0.5,
        now_ns=mesh.now_ns,
    )
    other.timer(mesh.now_ns + 10**10)
    return other


def test_a_new_key_reaches_everybody_and_nothing_is_lost_or_dropped() -> None:
    mesh = line()
    rotate(mesh)
    put(mesh.replicas[0], b"after")
    mesh.run()
    agreed(mesh)
    for replica in mesh.replicas:
        assert key_of(replica, mesh.nodes[0]) == ed25519.public_key(NEW)
        assert replica.read(mesh.nodes[0], "mesh", b"k") == b"x"
        assert replica.read(mesh.nodes[0], "mesh", b"after") == b"x"
        for shard in ("mesh", SHARD):
            latest = replica.lattice.latest(ChainId(mesh.nodes[0], shard))
            assert latest is not None and latest.header is not None
            message = latest.header.message(replica.roster.mesh_id)
            assert ed25519.verify(ed25519.public_key(NEW), message, latest.header.signature), (
                "every chain is signed anew, also where nothing was written"
            )
    assert dropped(mesh) == []
    assert not [e for _, e in mesh.effects if isinstance(e, Alarm)]


def test_a_relay_serves_what_the_old_key_has_signed_to_a_newcomer() -> None:
    mesh = line()
    mesh.unlink(0, 1)
    mesh.unlink(1, 2)
    blobs = mesh.replicas[0].rotation(mesh.seeds[0], NEW)
    # Only the statements get out: the node dies before its chains are signed anew.
    mesh.replicas[1].add_statements(blobs, mesh.now_ns)
    mesh.run()
    assert dropped(mesh) == [], "what was signed before stays"
    mesh.replicas[2] = mesh.make(2)
    mesh.link(1, 2)
    mesh.tick(5)
    for replica in mesh.replicas[1:]:
        assert key_of(replica, mesh.nodes[0]) == ed25519.public_key(NEW)
        assert replica.read(mesh.nodes[0], "mesh", b"k") == b"x"
        assert replica.read(mesh.nodes[0], SHARD, b"k") == b"x"
    assert dropped(mesh) == []


def test_a_peer_that_was_cut_off_behind_keeps_what_it_has_and_follows() -> None:
    mesh = line()
    mesh.unlink(1, 2)
    for key in (b"l", b"m"):
        put(mesh.replicas[0], key)
        mesh.run()
    mesh.replicas[0].local([Delete("mesh", b"l")], 0)
    rotate(mesh)
    rotate(mesh, seed=sha256(b"newer").digest())
    put(mesh.replicas[0], b"n")
    mesh.tick(3)
    put(mesh.replicas[2], b"own")
    mesh.link(1, 2)
    mesh.tick(5)
    agreed(mesh)
    assert mesh.replicas[2].read(mesh.nodes[0], "mesh", b"n") == b"x"
    assert mesh.replicas[2].roster.members()[mesh.nodes[0]].rotations == 2
    assert dropped(mesh) == []


def test_an_earlier_epoch_that_a_peer_still_holds_goes_on_counting() -> None:
    mesh = line()
    mesh.unlink(1, 2)
    mesh.replicas[0].drain()
    mesh.replicas[0] = mesh.make(0, mesh.replicas[0].lattice)
    mesh.unlink(0, 1)
    mesh.replicas[0].timer(mesh.now_ns + 10**10)
    put(mesh.replicas[0], b"second life")
    mesh.replicas[0].drain()
    blobs = mesh.replicas[0].rotation(mesh.seeds[0], NEW)
    mesh.replicas[2].add_statements(blobs, mesh.now_ns)
    mesh.run()
    assert dropped(mesh) == []
    assert mesh.replicas[2].read(mesh.nodes[0], "mesh", b"k") == b"x"


def test_what_the_old_key_signs_later_is_refused_and_dropped_where_it_was_taken() -> None:
    mesh = line()
    old = mesh.seeds[0]
    other = thief(mesh, 0, old)
    mesh.unlink(1, 2)
    rotate(mesh)
    mesh.run()
    put(other, b"stolen")
    other.drain()
    latest = other.lattice.latest(ChainId(mesh.nodes[0], "mesh"))
    assert latest is not None
    snapshot = latest.snapshot()
    for i in (1, 2):
        mesh.replicas[i]._take_delta(mesh.nodes[0], snapshot, True, mesh.now_ns)
    assert mesh.replicas[1].read(mesh.nodes[0], "mesh", b"stolen") is None, "refused"
    assert mesh.replicas[2].read(mesh.nodes[0], "mesh", b"stolen") == b"x", "not known there yet"
    mesh.link(1, 2)
    mesh.tick(5)
    agreed(mesh)
    assert mesh.replicas[2].read(mesh.nodes[0], "mesh", b"stolen") is None, "dropped"
    assert mesh.replicas[2].read(mesh.nodes[0], "mesh", b"k") == b"x"
    assert [i for i, e in mesh.effects if isinstance(e, DropBranches)] == [2]
    assert not [e for _, e in mesh.effects if isinstance(e, DropPeer)]


def test_a_relay_that_knows_earlier_costs_nobody_a_link() -> None:
    """What is signed with a key that is not known here yet waits, whatever comes first."""
    mesh = line()
    mesh.unlink(1, 2)
    rotate(mesh)
    put(mesh.replicas[0], b"late")
    mesh.run()
    mesh.replicas[1].lattice.prove()
    latest = mesh.replicas[1].lattice.latest(ChainId(mesh.nodes[0], "mesh"))
    assert latest is not None
    mesh.links |= {(1, 2), (2, 1)}
    mesh.replicas[2].peer_up(mesh.nodes[1], mesh.now_ns)
    mesh.replicas[2]._take_delta(mesh.nodes[1], latest.snapshot(), True, mesh.now_ns)
    assert mesh.replicas[2].read(mesh.nodes[0], "mesh", b"late") is None
    mesh.replicas[1].peer_up(mesh.nodes[2], mesh.now_ns)
    mesh.tick(5)
    agreed(mesh)
    assert dropped(mesh) == []


def test_two_rotations_of_one_key_are_an_alarm_and_the_one_that_lost_writes_no_more() -> None:
    mesh = line()
    other = thief(mesh, 0, mesh.seeds[0])
    theirs = other.rotation(mesh.seeds[0], sha256(b"thief").digest())
    rotate(mesh)
    mesh.run()
    mesh.replicas[2].add_statements(theirs, mesh.now_ns)
    mesh.tick(5)
    assert len({replica.roster.digest() for replica in mesh.replicas}) == 1
    ours = mesh.replicas[0].roster.statements()
    hashes = [s.hash for s in map(Statement.parse, {*ours, *theirs}) if s.kind == ROTATE]
    lost = Statement.parse(theirs[0]).hash == min(hashes)
    assert mesh.replicas[0].ousted == lost
    alarms = {i for i, e in mesh.effects if isinstance(e, Alarm) and e.event == "key.contested"}
    assert alarms == {0, 1, 2}
    if lost:
        with pytest.raises(NotReady, match="replaced"):
            put(mesh.replicas[0], b"more")
        assert not mesh.replicas[0].writable
    else:
        put(mesh.replicas[0], b"more")
        mesh.run()
        agreed(mesh)


def test_whoever_may_not_write_does_not_rotate() -> None:
    mesh = Wire(2)
    starting = mesh.make(0)
    with pytest.raises(NotReady, match="asking peers"):
        starting.rotation(mesh.seeds[0], NEW)
    mesh.replicas[0].add_statements(
        [mesh.replicas[0].roster.retire(mesh.seeds[0], mesh.nodes[0])], mesh.now_ns
    )
    with pytest.raises(NotReady, match="retired"):
        mesh.replicas[0].rotation(mesh.seeds[0], NEW)


def test_writes_between_making_and_using_a_rotation_do_not_get_lost() -> None:
    mesh = line()
    blobs = mesh.replicas[0].rotation(mesh.seeds[0], NEW)
    put(mesh.replicas[0], b"between")
    mesh.seeds[0] = NEW
    mesh.replicas[0].rotated(blobs, ed25519.public_key(NEW), mesh.now_ns)
    mesh.run()
    agreed(mesh)
    assert mesh.replicas[2].read(mesh.nodes[0], "mesh", b"between") == b"x"
