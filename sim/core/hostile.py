"""A member whose key is in the wrong hands: it sends what no honest node would.

Frames of its own and of others, cut short, with bits turned, or as they were some time ago; headers
that it has signed for others, or with a root that its chain does not lead to; chains beyond their
quota; new keys for others; and two histories of one chain, one to some of its peers and one to the
others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from crdt.chain import Chain, Disproved
from crdt.delta import Delta
from crdt.header import ChainId
from mesh.core import ed25519, keys, model, wire
from mesh.core.errors import PeerError
from mesh.core.ops import MESH_SHARD
from mesh.core.statements import ROTATE, make_statement, rotation_message
from sim.core.chance import below, pick
from sim.core.clock import SECOND_NS
from sim.core.node import Machine
from sim.core.stage import Stage

EVERY_NS = SECOND_NS // 2
EXCEEDED_MAX = 1000
"""Records that it makes at most: a scenario with a larger quota does not see it exceeded."""
HEARD_MAX = 200
"""Frames that it remembers."""


class Hostile:
    """What `machine` does beside running as it did. It ends with its process."""

    def __init__(self, machine: Machine, stage: Stage) -> None:
        self._machine = machine
        self._stage = stage
        self._heard: deque[bytes] = deque(maxlen=HEARD_MAX)
        self._proven: dict[ChainId, Chain] = {}
        self._acts = (
            self._cut_short, self._turn_bits, self._replay, self._forge, self._misroot,
            self._exceed, self._fork, self._fork, self._usurp, self._pry,
        )  # fmt: skip
        self._deck: list[Callable[[], None]] = []
        """what it has not done in this round: it is cut off after most, so each has its turn"""
        self._next()

    def heard(self, frame: bytes) -> None:
        """A frame that it has sent or received; of one that it has cut to nothing nothing more can
        be made."""
        if frame:
            self._heard.append(frame)

    def _next(self) -> None:
        self._stage.later(EVERY_NS, self._act)

    def _act(self) -> None:
        if self._machine.process is None or self._machine.state != "hostile":
            return
        if self._heard and self._stage.network.peers(self._machine.identity.index):
            self._deck = self._deck or list(self._acts)
            self._deck.pop(below(self._stage.chance, len(self._deck)))()
        self._next()

    def _send(self, frame: bytes, peer: int | None = None) -> None:
        me, network = self._machine.identity.index, self._stage.network
        if peer is None:
            peer = pick(self._stage.chance, network.peers(me))
        network.send(me, peer, frame, True)

    # ---- frames ----

    def _cut_short(self) -> None:
        frame = pick(self._stage.chance, self._heard)
        self._send(frame[: below(self._stage.chance, len(frame))])

    def _turn_bits(self) -> None:
        chance = self._stage.chance
        frame = bytearray(pick(chance, self._heard))
        for _ in range(1 + below(chance, 3)):
            frame[below(chance, len(frame))] ^= 1 << below(chance, 8)
        self._send(bytes(frame))

    def _replay(self) -> None:
        self._send(pick(self._stage.chance, self._heard))

    def _usurp(self) -> None:
        """A new key for another node, that neither that node nor its key has signed."""
        process, chance = self._machine.process, self._stage.chance
        assert process is not None
        roster, me = process.replica.roster, process.identity.node
        members = roster.members()
        victim = members[pick(chance, sorted(members))]
        mine = chance.randbytes(32)
        heads = chance.randbytes(32)
        key = ed25519.public_key(mine)
        message = rotation_message(roster.mesh_id, victim.node, victim.key, key, heads)
        fields = {
            "node": victim.node, "old": victim.key, "key": key, "heads": heads,
            "proof": ed25519.sign(mine, message),
        }  # fmt: skip
        if victim.node != me:
            mesh, turn = roster.mesh_id, victim.rotations
            blob = make_statement(mine, victim.node, mesh, ROTATE, fields, turn)
            self._send(wire.encode(wire.Statements((blob,))))

    def _pry(self) -> None:
        """It says that it keeps everything, and asks what there is."""
        process, chance = self._machine.process, self._stage.chance
        assert process is not None
        roster = process.replica.roster
        digest = roster.digest()[-wire.DIGEST_BYTES :]
        number = 1 + below(chance, 1 << 20)
        self._send(wire.encode(wire.Sync(roster.mesh_id, digest, {}, True, True, number)))

    # ---- deltas ----

    def _forge(self) -> None:
        """Another's flush goes on by a seq, under a signature of this node."""
        deltas = [delta for frame in self._heard for delta in _deltas(frame)]
        if not deltas:
            return
        delta = pick(self._stage.chance, deltas)
        header = delta.header._replace(hi=delta.header.hi + 1)
        self._send_delta(self._signed(replace(delta, header=header)))

    def _misroot(self) -> None:
        """The next flush of the own chain, with a root that it does not lead to."""
        made = self._made(b"misroot")
        if made is not None:
            root = self._stage.chance.randbytes(32)
            self._send_delta(self._signed(replace(made, header=made.header._replace(root=root))))

    def _exceed(self) -> None:
        """More records than the admission lets it have."""
        process = self._machine.process
        assert process is not None
        quota = process.replica.roster.quota(self._machine.identity.node, MESH_SHARD)
        made = self._made(b"exceed", min(quota + 1, EXCEEDED_MAX))
        if made is not None:
            self._send_delta(made)

    def _fork(self) -> None:
        """Two flushes of one interval: half of the peers get the one, half the other; one peer that
        is alone, both."""
        one, other = self._made(b"one"), self._made(b"other")
        if one is None or other is None:
            return
        peers = self._stage.network.peers(self._machine.identity.index)
        for i, peer in enumerate(peers if len(peers) > 1 else 2 * peers):
            self._send_delta(one if i % 2 else other, peer)

    def _made(self, text: bytes, count: int = 1) -> Delta | None:
        """An own flush that follows what the own chain holds: keys that belong to nobody."""
        process = self._machine.process
        assert process is not None
        identity = self._machine.identity
        lattice = process.replica.lattice
        own = [id for id in lattice.chains(MESH_SHARD) if id.node == identity.node]
        dropped = not own
        if dropped:
            own = sorted(self._proven)
        if not own:
            return None
        held = self._last_proven(pick(self._stage.chance, own))
        if held is None or held.header is None or held.header.hi != held.head:
            return None
        chain = held.copy()
        for i in range(count):
            node = text.ljust(keys.ID_BYTES - 2, b"\0") + i.to_bytes(2, "big")
            chain.put(keys.pack(keys.GatewayKey(node)), model.encode(model.Binding(1, 1)))
        sign = process.sign
        chain.seal(process.replica.roster.mesh_id, sign, held.header.covers)
        # Whoever found its root out has dropped the chain: then it is told whole.
        return chain.since(held.epoch, 0 if dropped else held.head)

    def _last_proven(self, id: ChainId) -> Chain | None:
        """The own chain as the others have it: what it sent them with a false root comes back to
        itself, which takes it up as if a former process of it had written it."""
        process = self._machine.process
        assert process is not None
        held = process.replica.lattice.latest(id)
        if held is not None:
            with suppress(Disproved):
                found = held.copy()
                found.prove()
                self._proven[id] = found
        return self._proven.get(id)

    def _signed(self, delta: Delta) -> Delta:
        process = self._machine.process
        assert process is not None
        mesh = process.replica.roster.mesh_id
        return replace(delta, header=delta.header.signed(mesh, process.sign))

    def _send_delta(self, delta: Delta, peer: int | None = None) -> None:
        self._send(wire.encode(wire.Deltas((delta,))), peer)


def _deltas(frame: bytes) -> tuple[Delta, ...]:
    try:
        found = wire.decode(frame)
    except PeerError:
        return ()
    return found.deltas if isinstance(found, wire.Deltas) else ()
