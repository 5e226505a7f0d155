"""The view: the deterministic reading of all records of all nodes.

A pure, incremental function of the records and the roster: two views with the same of both have
the same `fingerprint`, whatever the order of arrival and however it was cut into batches.

- **Authority first.** A VPC's registers, its subnets, its halves of peerings and its evictions are
  read from nodes of its owner site (its creator's) and from admins, evictions of a retired node's
  claims from nodes of that node's site, too; endpoint claims from nodes of a site that the VPC and
  a restricted subnet admit; registrations and VNI bindings from the node itself. Nothing is read
  from nodes that are not in the roster or forgotten; retired ones are read as before.
- **Then removals.** What is deleted stays deleted; what belongs to a removed VPC is hidden at once.
- **Then rank.** See `claims` for endpoints, `registers` for registers, `layout` for subnets that
  overlap, `Catalog.votes` for a VNI that two VPCs have.
- A claim counts while it lies in an installed subnet of its VPC; it appears and vanishes with it.
- Records that cannot be read (hostile or newer) are read as absent and counted.

The cost of `apply` follows what changed. A change of a VPC's sites or subnets reads that VPC's
claims in those subnets again; a change of the roster reads everything again only if it changes the
rights of a node that has written something.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple
from types import MappingProxyType
from typing import Final

import msgpack

from mesh.core import keys, model
from mesh.core.members import Member
from mesh.core.ops import Change, NodeId
from mesh.core.view.catalog import Catalog
from mesh.core.view.claims import ClaimTable
from mesh.core.view.names import Names
from mesh.core.view.types import (
    Conflict,
    Endpoint,
    Gateway,
    Peering,
    Subnet,
    ViewDelta,
    Vpc,
)

UNREAD_MAX: Final = 10_000
"""Unreadable records that are remembered. Past it `unknown` and `invalid` are lower bounds: a
hostile member can fill its chains with such records and must not fill this machine's memory."""


class DeltaReader:
    """One consumer's place in the stream of changes. Made by `View.reader`."""

    def __init__(self, delta: ViewDelta) -> None:
        self._delta = delta

    def __bool__(self) -> bool:
        """Whether anything has changed since `take`."""
        return bool(self._delta)

    def take(self) -> ViewDelta:
        """What may have changed since the last call; at the first, everything there is."""
        delta, self._delta = self._delta, ViewDelta()
        return delta

    def add(self, delta: ViewDelta) -> None:
        """For the view."""
        mine = self._delta
        mine.vpcs |= delta.vpcs
        mine.subnets |= delta.subnets
        mine.endpoints |= delta.endpoints
        mine.gateways |= delta.gateways
        mine.peerings |= delta.peerings
        mine.conflicts |= delta.conflicts


class View:
    """See the module. IPs given to it must be canonical text (`mesh.core.validate.ip`)."""

    def __init__(self) -> None:
        self.catalog: Final = Catalog()
        self.table: Final = ClaimTable(self.catalog)
        self.names: Final = Names(self.catalog)
        self._unread: dict[tuple[NodeId, str, bytes], bool] = {}
        self._unknown = 0
        self._readers: list[DeltaReader] = []
        self._own_reader: DeltaReader | None = None

    # --- what comes in -----------------------------------------------------------------------

    def set_members(self, members: Mapping[NodeId, Member]) -> None:
        """The roster as it is now."""
        self.catalog.set_members(members)
        self._settle(set())

    def apply(self, changes: Iterable[Change]) -> None:
        """Records that nodes hold now, or hold no longer. Never raises for what is in a record.

        Afterwards the view is whole: of two changes for one (node, shard, key) the later counts.
        """
        touched: set[tuple[str, bytes]] = set()
        for node, shard, key, record in changes:
            if self._unread:
                self._forget_unread(node, shard, key)
            try:
                parsed = keys.unpack(shard, key)
            except (keys.UnknownKey, keys.InvalidKey) as error:
                if record is not None:
                    self._note_unread(node, shard, key, isinstance(error, keys.UnknownKey))
                continue
            decoded: model.Record | None = None
            if record is not None:
                try:
                    decoded = model.decode(parsed, record)
                except (model.UnknownRecord, model.InvalidRecord) as error:
                    self._note_unread(node, shard, key, isinstance(error, model.UnknownRecord))
                    record = None
            if isinstance(parsed, keys.EndpointKey):
                self.catalog.note_writer(node)
                self.table.put(node, shard, parsed.addr, record)
                touched.add((shard, parsed.addr))
            else:
                self.catalog.put(node, parsed, decoded)
        self._settle(touched)

    def _settle(self, touched: set[tuple[str, bytes]]) -> None:
        delta = ViewDelta()
        rescan = self.catalog.settle(delta)
        touched |= rescan.addrs
        for vpc, spans in rescan.spans.items():
            touched.update((vpc, addr) for addr in self.table.within(vpc, spans))
        for vpc, addr in touched:
            delta.endpoints.add((vpc, keys.ip_of(addr)))
            delta.conflicts |= self.table.judge(vpc, addr)
        for reader in self._readers:
            reader.add(delta)

    def _note_unread(self, node: NodeId, shard: str, key: bytes, unknown: bool) -> None:
        if len(self._unread) < UNREAD_MAX:
            self._unread[node, shard, key] = unknown
            self._unknown += unknown

    def _forget_unread(self, node: NodeId, shard: str, key: bytes) -> None:
        self._unknown -= self._unread.pop((node, shard, key), False)

    # --- changes -----------------------------------------------------------------------------

    def reader(self) -> DeltaReader:
        """A new consumer of changes, which starts with everything there is."""
        catalog = self.catalog
        subnets = (layout.subnets for layout in catalog.layouts.values())
        reader = DeltaReader(
            ViewDelta(
                vpcs=set(catalog.vpcs) | set(catalog.removed),
                subnets={subnet for ids in subnets for subnet in ids},
                endpoints={
                    (vpc, keys.ip_of(addr))
                    for vpc in self.table.vpcs()
                    for addr in self.table.addrs(vpc)
                },
                gateways=set(catalog.gateways),
                peerings=True,
                conflicts=True,
            )
        )
        self._readers.append(reader)
        return reader

    def release(self, reader: DeltaReader) -> None:
        """The reader gets nothing any more. One that is neither read nor released only grows."""
        self._readers.remove(reader)

    def take_delta(self) -> ViewDelta:
        """As a reader's `take`, for the one consumer that has no reader of its own."""
        if self._own_reader is None:
            self._own_reader = self.reader()
        return self._own_reader.take()

    # --- reading -----------------------------------------------------------------------------

    @property
    def unknown(self) -> int:
        """Records of newer kinds or versions held, up to `UNREAD_MAX`."""
        return self._unknown

    @property
    def invalid(self) -> int:
        """Records held that no version writes, up to `UNREAD_MAX`."""
        return len(self._unread) - self._unknown

    @property
    def members(self) -> Mapping[NodeId, Member]:
        """The roster as it was last set."""
        return MappingProxyType(self.catalog.members)

    @property
    def vpcs(self) -> Mapping[str, Vpc]:
        """Live VPCs by id, in no order."""
        return MappingProxyType(self.catalog.vpcs)

    @property
    def gateways(self) -> Mapping[NodeId, Gateway]:
        """Active members that have registered, by node, in no order."""
        return MappingProxyType(self.catalog.gateways)

    def sites(self) -> tuple[str, ...]:
        """The sites of all members that count, sorted."""
        return self.catalog.sites()

    def vpc(self, name_or_id: str) -> Vpc:
        """Raises NotFound: no live VPC has it, or several have that name (their ids are named)."""
        return self.names.vpc(name_or_id)

    def member(self, name_or_id: str) -> Member:
        """Raises NotFound: no member has it, or several have that name (their ids are named)."""
        return self.names.member(name_or_id)

    def subnets(self, vpc_id: str | None = None) -> list[Subnet]:
        """Live subnets of one VPC or all, installed or not, by (VPC, name, id)."""
        ids = self.catalog.layouts if vpc_id is None else (vpc_id,)
        found = [s for vpc in ids for s in self.catalog.layout(vpc).subnets.values()]
        return sorted(found, key=lambda s: (s.vpc, s.name, s.id))

    def subnet(self, vpc: str, name_or_id: str) -> Subnet:
        """A live subnet of the VPC (name or id). Raises NotFound as `vpc` does."""
        return self.names.subnet(self.vpc(vpc).id, name_or_id)

    def subnet_by_id(self, subnet_id: str) -> Subnet | None:
        """The live subnet of this id."""
        return self.catalog.subnet(subnet_id)

    def subnet_of(self, vpc_id: str, ip: str) -> Subnet | None:
        """The installed subnet that covers the address, its gateway address included."""
        return self.catalog.layout(vpc_id).at(keys.addr_of(ip))

    def endpoints(self, vpc_id: str | None = None, site: str | None = None) -> Iterator[Endpoint]:
        """Every claim that counts, by (VPC id, address), best first for each address."""
        for vpc in self.table.vpcs() if vpc_id is None else (vpc_id,):
            for addr in self.table.addrs(vpc):
                for endpoint in self.table.endpoints(vpc, addr):
                    if site is None or endpoint.site == site:
                        yield endpoint

    def claims(self, vpc_id: str, ip: str) -> tuple[Endpoint, ...]:
        """The claims for the address that count, best first."""
        return self.table.endpoints(vpc_id, keys.addr_of(ip))

    def winner(self, vpc_id: str, ip: str) -> Endpoint | None:
        """The claim that decides where the address is."""
        claims = self.claims(vpc_id, ip)
        return claims[0] if claims else None

    def peerings(self) -> list[Peering]:
        """Peerings of which both VPCs live and at least one half does, by ids."""
        return self.catalog.peerings()

    def conflicts(self) -> list[Conflict]:
        """Everything contested, by key text."""
        return sorted(
            [
                *self.names.endpoint_conflicts(self.table.contests()),
                *self.names.catalog_conflicts(),
            ],
            key=lambda c: (c.key, c.kind),
        )

    def claim(self, node: NodeId, vpc_id: str, ip: str) -> model.Claim | None:
        """What the node itself claims, whether or not it counts."""
        record = self.table.record(node, vpc_id, keys.addr_of(ip))
        return None if record is None else model.decode_claim(record)

    def canonical(self) -> list[object]:
        """Everything that can be read, as plain sorted lists: equal for equal views."""
        return [
            [astuple(vpc) for _, vpc in sorted(self.vpcs.items())],
            [astuple(subnet) for subnet in self.subnets()],
            [astuple(endpoint) for endpoint in self.endpoints()],
            [astuple(gateway) for _, gateway in sorted(self.gateways.items())],
            [astuple(peering) for peering in self.peerings()],
            [astuple(conflict) for conflict in self.conflicts()],
            sorted(self.catalog.removed.items()),
        ]

    def fingerprint(self) -> bytes:
        """32 bytes, equal for equal views. Costs a whole reading."""
        return hashlib.sha256(msgpack.packb(self.canonical())).digest()
