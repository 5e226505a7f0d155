"""A mesh to measure on: real members, signed chains of real endpoint claims, real frames.

50 nodes of 10 sites write into 20 VPCs: 1,000 chains. The VPCs, their subnets and the gateways are
given to the view directly; every endpoint claim goes through frames and the replica.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import NamedTuple

from crdt.chain import Chain
from crdt.header import ChainId, Epoch
from crdt.lattice import Lattice
from dataplane.xdp.state import Resolved
from mesh.core import ed25519, keys, model, wire
from mesh.core.effects import Effect, Send
from mesh.core.forwarding import Forwarding
from mesh.core.ops import MESH_SHARD, NodeId, Records, Touched
from mesh.core.replica import Replica
from mesh.core.roster import Roster
from mesh.core.statements import found_mesh
from mesh.core.view import View

NODES, SITES, VPCS = 50, 10, 20
CHAINS = NODES * VPCS
BATCH = 256
HLC = 1_700_000_000_000 << 16
RECORD_BYTES = 40

Item = tuple[bytes, bytes | None]
"""(key, record), the record None for a delete"""


class Writer(NamedTuple):
    seed: bytes
    node: NodeId
    site: str


class MeshWorld:
    """The roster, the writers and the VPCs; `receiver` makes a node that knows them."""

    def __init__(self) -> None:
        self.writers: list[Writer] = []
        for i in range(NODES + 1):
            seed = sha256(b"bench %d" % i).digest()
            node = ed25519.node_id(ed25519.public_key(seed))
            self.writers.append(Writer(seed, node, f"s{i % SITES}"))
        self.me = self.writers.pop()
        founding = found_mesh("bench", b"r" * 32, self.me.seed, "me", self.me.site)
        self.roster = Roster.founded_by(founding)
        for i, writer in enumerate(self.writers):
            key = ed25519.public_key(writer.seed)
            self.roster.add([self.roster.admit(self.me.seed, key, f"n{i}", writer.site)])
        self._nonces = [sha256(b"vpc %d" % i).digest()[:16] for i in range(VPCS)]
        self.vpcs = [model.vpc_id(self.me.node, nonce) for nonce in self._nonces]

    def chain_id(self, number: int) -> ChainId:
        return ChainId(self.writers[number % NODES].node, self.vpcs[number // NODES])

    def frames(self, chain: Chain, items: Iterable[Item], batch: int) -> Iterator[bytes]:
        """Write the items into a chain, a signed flush and its frame for each `batch` of them."""
        writer = next(w for w in self.writers if w.node == chain.id.node)
        pending = list(items)
        for first in range(0, len(pending), batch):
            base = chain.head
            for key, record in pending[first : first + batch]:
                if record is None:
                    chain.delete(key)
                else:
                    chain.put(key, record)
            chain.seal(self.roster.mesh_id, lambda text: ed25519.sign(writer.seed, text), ())
            yield wire.encode(wire.Deltas((chain.since(chain.epoch, base),)))

    def new_chain(self, number: int) -> Chain:
        return Chain(self.chain_id(number), Epoch(1, b"benchmrk"))

    def facts(self) -> dict[NodeId, dict[bytes, bytes]]:
        """The VPCs, a subnet of all sites in each, and the gateways: records by node and key."""
        me, sites = self.me.node, tuple(sorted({writer.site for writer in self.writers}))
        found: dict[NodeId, dict[bytes, bytes]] = {}

        def add(node: NodeId, key: keys.Key, record: model.Record) -> None:
            found.setdefault(node, {})[keys.pack(key)] = model.encode(record)

        for vni, (vpc, nonce) in enumerate(zip(self.vpcs, self._nonces, strict=True), 1):
            vpc_record = model.VpcRecord(
                1, HLC, False, me, nonce, f"v{vni}", vni, ("10.0.0.0/8",), sites=sites, since=HLC
            )
            subnet_record = model.SubnetRecord(
                1, HLC, False, me, nonce, "all", "10.0.0.0/8", sites, since=HLC
            )
            add(me, keys.VpcKey(vpc), vpc_record)
            add(me, keys.SubnetKey(vpc, model.subnet_id(vpc, me, nonce)), subnet_record)
        for i, writer in enumerate(self.writers):
            registration = model.Registration(HLC, f"192.0.2.{i + 1}", (), "1")
            add(writer.node, keys.GatewayKey(writer.node), registration)
        return found

    def receiver(self, me: Writer | None = None, peer: Writer | None = None) -> Receiver:
        return Receiver(self, me or self.me, peer or self.writers[0])

    def replica(self, me: Writer) -> Replica:
        return Replica(
            me.node,
            self.roster,
            Lattice(),
            sign=lambda text: ed25519.sign(me.seed, text),
            nonce=bytes,
            jitter=lambda: 0.5,
            now_ns=0,
        )


class Given:
    """The records of a replica, and the world's facts for the `mesh` shard."""

    def __init__(self, facts: dict[NodeId, dict[bytes, bytes]], held: Records) -> None:
        self._facts = facts
        self._held = held

    def read(self, node: NodeId, shard: str, key: bytes) -> bytes | None:
        if shard == MESH_SHARD:
            return self._facts.get(node, {}).get(key)
        return self._held.read(node, shard, key)

    def read_all(self, node: NodeId, shard: str, keys: Sequence[bytes]) -> list[bytes | None]:
        if shard == MESH_SHARD:
            return [self.read(node, shard, key) for key in keys]
        return self._held.read_all(node, shard, keys)

    def held(self, node: NodeId) -> Iterator[Touched]:
        yield Touched(node, MESH_SHARD, tuple(self._facts.get(node, ())))
        yield from self._held.held(node)


class Receiver:
    """A node that takes frames of a peer up to its view, and to its rows once asked to."""

    def __init__(self, world: MeshWorld, me: Writer, peer: Writer) -> None:
        self.node = me.node
        self.site = me.site
        self.peer = peer.node
        self.replica = world.replica(me)
        self.replica.peer_up(self.peer, 0)
        self.replica.drain()
        facts = self._facts = world.facts()
        self.view = View(Given(facts, self.replica.holdings))
        self.view.set_members(world.roster.members())
        self.view.update(Touched(node, MESH_SHARD, tuple(held)) for node, held in facts.items())

    def join(self, frame: bytes) -> list[Touched]:
        """From the wire into the lattice; what is to be read again."""
        self.replica.receive(self.peer, frame, 1)
        touched = self.replica.take_touched()
        assert touched, "a frame brought nothing"
        self.replica.drain()
        return touched

    def take(self, frame: bytes) -> None:
        """From the wire into the view."""
        self.view.update(self.join(frame))

    def take_and_prove(self, frame: bytes) -> None:
        """As `take`, and the root of what came is recomputed now."""
        self.take(frame)
        assert not self.replica.lattice.prove()

    def change_sites(self, vpc: str) -> list[Touched]:
        """The VPC does not admit the first of its sites any more."""
        key = keys.VpcKey(vpc)
        ((node, held),) = [(n, h) for n, h in self._facts.items() if keys.pack(key) in h]
        record = model.decode(key, held[keys.pack(key)])
        assert isinstance(record, model.VpcRecord)
        held[keys.pack(key)] = model.encode(replace(record, revision=2, sites=record.sites[1:]))
        return [Touched(node, MESH_SHARD, (keys.pack(key),))]

    def rows(self) -> Rows:
        """The rows of this node, brought up to the view as it is."""
        rows = Rows(Forwarding(self.node, self.site, self.view))
        rows.take()
        return rows


class Rows:
    """From the view to what the kernel's maps are given."""

    def __init__(self, forwarding: Forwarding) -> None:
        self.forwarding = forwarding
        self._resolved = Resolved(0)

    def take(self, endpoints_max: int | None = None) -> list[tuple[bytes, bytes]]:
        """The packed keys and values of endpoint rows that changed, and the keys of those gone."""
        self.forwarding.update(endpoints_max)
        delta = self.forwarding.take_delta().endpoints
        packed = self._resolved.endpoint_rows(delta.put, 1)
        return packed + [(key, b"") for key in delta.remove]


def claim(number: int, index: int, hlc: int = 0) -> tuple[bytes, bytes]:
    """Key and record, of 40 bytes, of the claim `index` of the chain `number`."""
    addr = bytes((10, number % NODES + 1, index >> 8 & 0xFF, index & 0xFF))
    mac = "02:" + ":".join(f"{part:02x}" for part in (number & 0xFF, *addr))
    record = model.encode(model.Claim(0, HLC + hlc, mac, f"w-{number % NODES:02}-{index:011}"))
    assert len(record) == RECORD_BYTES
    return keys.pack(keys.EndpointKey(addr)), record


def claims(number: int, count: int, hlc: int = 0) -> list[Item]:
    return [claim(number, index, hlc) for index in range(count)]


def sent(effects: Iterable[Effect]) -> list[bytes]:
    return [effect.frame for effect in effects if isinstance(effect, Send)]
