"""How chains held here and at a peer differ, and asking a peer for its heads."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from crdt.chain import Chain
from crdt.header import ChainId, Epoch
from crdt.lattice import Lattice
from mesh.core import ed25519, wire
from mesh.core.errors import NotReady
from mesh.core.replica import Replica
from mesh.core.roster import Roster
from mesh.core.statements import found_mesh
from mesh.core.sync import held
from mesh.core.vectors import Vector
from mesh.node.inquiry import ANSWER_S, Inquiries
from mesh.node.service.state import compare

ID = ChainId(b"n" * 16, "mesh")
FIRST, SECOND = Epoch(1, b"1" * 8), Epoch(2, b"2" * 8)


def chain(epoch: Epoch, writes: int, parent: Chain | None = None) -> Chain:
    """A chain with so many writes, sealed after each; of a later epoch if it has a parent."""
    made = parent.copy() if parent else Chain(ID, epoch)
    if parent:
        made.open(epoch)
    for number in range(writes):
        made.put(b"k%d" % number, b"%d" % number)
        made.seal(b"m" * 16, lambda _message: bytes(64), ())
    return made


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        ([], [], None),
        ([chain(FIRST, 2)], [chain(FIRST, 2)], None),
        ([], [chain(FIRST, 2)], "missing here"),
        ([chain(FIRST, 2)], [], "missing there"),
        ([chain(FIRST, 1)], [chain(FIRST, 2)], "older here"),
        ([chain(FIRST, 2)], [chain(FIRST, 1)], "older there"),
        ([chain(FIRST, 2)], [chain(SECOND, 1, chain(FIRST, 2))], "older here"),
        ([chain(SECOND, 1, chain(FIRST, 2))], [chain(FIRST, 3)], "differs"),
    ],
)
def test_compare(mine: list[Chain], theirs: list[Chain], expected: str | None) -> None:
    assert compare(mine, [held(branch) for branch in theirs]) == expected


class Peer:
    """A replica with one link, and the frames it wants sent."""

    def __init__(self) -> None:
        node_seed = bytes([1]) * 32
        peer_key = ed25519.public_key(bytes([2]) * 32)
        roster = Roster.founded_by(found_mesh("m", bytes(32), node_seed, "n", "s"))
        roster.add([roster.admit(node_seed, peer_key, "p", "s")])
        self.id = ed25519.node_id(peer_key)
        self.sent: list[wire.Frame | None] = []
        self.replica = Replica(
            ed25519.node_id(ed25519.public_key(node_seed)),
            roster,
            Lattice(),
            sign=lambda message: ed25519.sign(node_seed, message),
            nonce=lambda size: bytes(size),
            jitter=lambda: 0.5,
            now_ns=0,
        )
        self.replica.peer_up(self.id, 0)
        self.inquiries = Inquiries(
            self.replica, lambda _peer, frame: self.sent.append(wire.decode(frame))
        )


@pytest.mark.trio
async def test_heads_are_gathered_until_the_peer_is_done() -> None:
    peer = Peer()
    found: list[dict[str, Vector]] = []
    vector: Vector = {b"c" * 8: (held(chain(FIRST, 1)),)}
    other: Vector = {b"d" * 8: (held(chain(FIRST, 2)),)}

    async def ask() -> None:
        found.append(await peer.inquiries.ask(peer.id))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(peer.sent[0], wire.Sync)
        peer.inquiries.note(peer.id, b"\xff nonsense")
        peer.inquiries.note(b"x" * 16, wire.encode(wire.Same()))
        peer.inquiries.note(peer.id, wire.encode(wire.Told(99)))
        for piece in (vector, other):
            heads = wire.Heads("mesh", wire.FIRST, wire.LAST, piece)
            peer.inquiries.note(peer.id, wire.encode(heads))
        await trio.testing.wait_all_tasks_blocked()
        assert found == []
        peer.inquiries.note(peer.id, wire.encode(wire.Told(peer.sent[0].number)))
    assert {shard: set(vector) for shard, vector in found[0].items()} == {"mesh": {*vector, *other}}
    peer.inquiries.note(peer.id, wire.encode(wire.Same()))


@pytest.mark.trio
async def test_a_silent_or_unlinked_peer_is_not_waited_for(autojump_clock: object) -> None:
    peer = Peer()
    with pytest.raises(NotReady, match="no link"):
        await peer.inquiries.ask(b"x" * 16)
    started_s = trio.current_time()
    with pytest.raises(NotReady, match="no answer"):
        await peer.inquiries.ask(peer.id)
    assert trio.current_time() - started_s == pytest.approx(ANSWER_S)
