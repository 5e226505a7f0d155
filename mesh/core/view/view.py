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
- Records that cannot be read (hostile or newer) are read as absent and counted. A claim that begins
  as every claim of this version does is not decoded to be counted: should it be ill-formed further
  on, it is read as absent like the others, and not counted.

Records of the `mesh` shard are kept decoded, endpoint claims are read where they are held: the view
is told what was touched, and has to be told before it is read again. The cost of `update` follows
what changed. A change of a VPC's sites or subnets reads that VPC's claims in those subnets again; a
change of a node's rights, what that node has written, and the VPCs that it created.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from itertools import islice
from operator import itemgetter
from types import MappingProxyType
from typing import Final, cast

import msgpack

from mesh.core import keys, model
from mesh.core.members import Member
from mesh.core.ops import MESH_SHARD, NodeId, Records, Touched
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


_ADDR_KEY_BYTES: Final = {1 + size for size in keys.ADDR_BYTES}
_ENDPOINT_KINDS: Final = {keys.ENDPOINT[0]}
_KIND = itemgetter(0)
_HEAD = itemgetter(slice(0, 3))
_CLAIM_HEADS: Final = frozenset(bytes((0x80 | n, 0, model.RECORD_VERSION)) for n in range(1, 16))
"""How a packed record begins: a map of 1 to 15 fields, of which field 0, the version, is first."""


class DeltaReader:
    """One consumer's place in the stream of changes. Made by `View.reader`."""

    def __init__(self, delta: ViewDelta, *, brief: bool = False) -> None:
        """`brief`: of the endpoints of a VPC no more is named than one."""
        self._delta = delta
        self._brief = brief

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
        for vpc, touched in delta.endpoints.items():
            if not self._brief:
                mine.touch(vpc, touched)
            elif vpc not in mine.endpoints:
                mine.touch(vpc, islice(touched, 1))
        mine.gateways |= delta.gateways
        mine.interests |= delta.interests
        mine.peerings |= delta.peerings
        mine.conflicts |= delta.conflicts


class View:
    """See the module. IPs given to it must be canonical text (`mesh.core.validate.ip`)."""

    def __init__(self, records: Records) -> None:
        self.catalog: Final = Catalog()
        self.table: Final = ClaimTable(self.catalog, records)
        self.names: Final = Names(self.catalog)
        self._records = records
        self._unread: dict[tuple[NodeId, str], dict[bytes, bool]] = {}
        self._unknown_in: Counter[str] = Counter()
        """By chain: keys of records that cannot be read, and whether they are of a newer form."""
        self._invalid = self._unknown = 0
        self._readers: list[DeltaReader] = []
        self._own_reader: DeltaReader | None = None

    # --- what comes in -----------------------------------------------------------------------

    def set_members(self, members: Mapping[NodeId, Member]) -> None:
        """The roster as it is now. Reads again what was written by nodes whose rights changed."""
        delta = ViewDelta()
        registers, claims = self.catalog.set_members(members)
        for node in registers:
            for _, shard, held in self._records.held(node):
                if shard == MESH_SHARD:
                    self._mark(held)
                elif node in claims and keys.is_vpc_shard(shard):
                    delta.touch(shard, (key for key in held if _is_claim(key)))
        self._settle(delta)

    def _mark(self, held: Iterable[bytes]) -> None:
        for key in held:
            try:
                self.catalog.mark(keys.unpack(MESH_SHARD, key))
            except (keys.UnknownKey, keys.InvalidKey):
                continue

    def update(self, touched: Iterable[Touched]) -> None:
        """Read again what was touched. Never raises for what is in a record."""
        delta = ViewDelta()
        for node, shard, changed in touched:
            if self._unread:
                self._forget_unread(node, shard, changed)
            if shard != MESH_SHARD and keys.is_vpc_shard(shard):
                self._read_claims(node, shard, changed, delta)
            else:
                self._read_mesh(node, shard, changed)
        self._settle(delta)

    def _read_claims(
        self, node: NodeId, vpc: str, touched: Sequence[bytes], delta: ViewDelta
    ) -> None:
        self.catalog.writers.add(node)
        records = self._records.read_all(node, vpc, touched)
        held: Sequence[bytes] = touched
        gone: Sequence[bytes] = ()
        if not _are_ordinary(touched, records):
            held, gone = self._sort_out(node, vpc, touched, records)
        self.table.owners.add(node, vpc, held)
        delta.touch(vpc, held)
        if gone:
            self.table.owners.remove(node, vpc, gone)
            delta.touch(vpc, gone)

    def _sort_out(
        self, node: NodeId, vpc: str, touched: Sequence[bytes], records: Sequence[bytes | None]
    ) -> tuple[list[bytes], list[bytes]]:
        """The keys of claims that can be read, and of those that cannot or are not there."""
        held: list[bytes] = []
        gone: list[bytes] = []
        for key, record in zip(touched, records, strict=True):
            parsed = self._parse(node, vpc, key, record)
            if parsed is None:
                continue
            readable = record is not None and (
                record[:3] in _CLAIM_HEADS
                or self._decode(node, vpc, key, parsed, record) is not None
            )
            (held if readable else gone).append(key)
        return held, gone

    def _read_mesh(self, node: NodeId, shard: str, touched: Sequence[bytes]) -> None:
        for key, record in zip(touched, self._records.read_all(node, shard, touched), strict=True):
            parsed = self._parse(node, shard, key, record)
            if parsed is not None:
                decoded = None
                if record is not None:
                    decoded = self._decode(node, shard, key, parsed, record)
                self.catalog.put(node, parsed, decoded)

    def _parse(self, node: NodeId, shard: str, key: bytes, record: bytes | None) -> keys.Key | None:
        try:
            return keys.unpack(shard, key)
        except (keys.UnknownKey, keys.InvalidKey) as error:
            if record is not None:
                self._note_unread(node, shard, key, isinstance(error, keys.UnknownKey))
            return None

    def _decode(
        self, node: NodeId, shard: str, key: bytes, parsed: keys.Key, record: bytes
    ) -> model.Record | None:
        try:
            return model.decode(parsed, record)
        except (model.UnknownRecord, model.InvalidRecord) as error:
            self._note_unread(node, shard, key, isinstance(error, model.UnknownRecord))
            return None

    def _settle(self, delta: ViewDelta) -> None:
        if self.catalog.unsettled:
            rescan = self.catalog.settle(delta)
            for vpc, addr in sorted(rescan.addrs):
                delta.touch(vpc, (keys.ENDPOINT + addr,))
            for vpc, spans in rescan.spans.items():
                named = delta.endpoints.get(vpc, {}).keys()
                if all(part.keys() <= named for part in self.table.owners.parts(vpc)):
                    continue  # at the start all claims come together with what they are judged by
                for found in self.table.owners.within(vpc, spans):
                    delta.touch(vpc, found)
        for vpc, touched in delta.endpoints.items():
            delta.conflicts |= self.table.judge(vpc, touched.keys())
        for reader in self._readers:
            reader.add(delta)

    def _note_unread(self, node: NodeId, shard: str, key: bytes, unknown: bool) -> None:
        if self._invalid + self._unknown < UNREAD_MAX:
            self._unread.setdefault((node, shard), {})[key] = unknown
            self._unknown_in[shard] += unknown
            self._unknown += unknown
            self._invalid += not unknown

    def _forget_unread(self, node: NodeId, shard: str, touched: Iterable[bytes]) -> None:
        noted = self._unread.get((node, shard))
        if noted is None:
            return
        for key in noted.keys() & touched:
            unknown = noted.pop(key)
            self._unknown_in[shard] -= unknown
            self._unknown -= unknown
            self._invalid -= not unknown
        if not noted:
            del self._unread[node, shard]
        if not self._unknown_in[shard]:
            del self._unknown_in[shard]

    # --- changes -----------------------------------------------------------------------------

    def reader(self, *, from_now: bool = False, brief: bool = False) -> DeltaReader:
        """A new consumer of changes, which starts with everything there is, or with nothing.

        `brief`: it is told in which VPCs endpoints changed, by one of each, and not which: keeping
        them for who does not ask costs as much as the view's own reading.
        """
        if from_now:
            self._readers.append(DeltaReader(ViewDelta(), brief=brief))
            return self._readers[-1]
        catalog = self.catalog
        subnets = (layout.subnets for layout in catalog.layouts.values())
        delta = ViewDelta()
        delta.vpcs = {*catalog.vpcs, *catalog.removed}
        delta.subnets = {subnet for ids in subnets for subnet in ids}
        delta.gateways = set(catalog.gateways)
        delta.interests = catalog.all_interests()
        delta.peerings = delta.conflicts = True
        for vpc in self.table.owners.vpcs():
            for part in self.table.owners.parts(vpc):
                delta.touch(vpc, islice(part, 1) if brief else part)
        reader = DeltaReader(delta, brief=brief)
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

    def record(self, node: NodeId, shard: str, key: bytes) -> bytes | None:
        """What the node holds under a key, packed, whether or not it counts or can be read."""
        return self._records.read(node, shard, key)

    def records(self, node: NodeId, shard: str, held: Sequence[bytes]) -> list[bytes | None]:
        """As `record` for many keys."""
        return self._records.read_all(node, shard, held)

    def unknown_in(self, shard: str) -> int:
        """Of `unknown`, those of one shard."""
        return self._unknown_in[shard]

    @property
    def unknown(self) -> int:
        """Records of newer kinds or versions held, up to `UNREAD_MAX`."""
        return self._unknown

    @property
    def invalid(self) -> int:
        """Records held that no version writes, up to `UNREAD_MAX`."""
        return self._invalid

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
        owners = self.table.owners
        for vpc in owners.vpcs() if vpc_id is None else (vpc_id,):
            for key in owners.keys(vpc):
                for endpoint in self.table.endpoints(vpc, key):
                    if site is None or endpoint.site == site:
                        yield endpoint

    def claims(self, vpc_id: str, ip: str) -> tuple[Endpoint, ...]:
        """The claims for the address that count, best first."""
        return self.table.endpoints(vpc_id, keys.ENDPOINT + keys.addr_of(ip))

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
        return self.table.claim(node, vpc_id, keys.ENDPOINT + keys.addr_of(ip))

    def canonical(self) -> list[object]:
        """Everything that can be read, as plain sorted lists: equal for equal views."""
        return [
            [astuple(vpc) for _, vpc in sorted(self.vpcs.items())],
            [astuple(subnet) for subnet in self.subnets()],
            list(map(tuple, self.endpoints())),
            [astuple(gateway) for _, gateway in sorted(self.gateways.items())],
            [astuple(peering) for peering in self.peerings()],
            [astuple(conflict) for conflict in self.conflicts()],
            sorted(self.catalog.removed.items()),
        ]

    def fingerprint(self) -> bytes:
        """32 bytes, equal for equal views. Costs a whole reading."""
        return hashlib.sha256(msgpack.packb(self.canonical())).digest()


def _is_claim(key: bytes) -> bool:
    return key[:1] == keys.ENDPOINT and len(key) in _ADDR_KEY_BYTES


def _are_ordinary(touched: Sequence[bytes], records: Sequence[bytes | None]) -> bool:
    """Whether all of these are claims under keys of claims, as this version writes them. Nothing
    here looks at one after the other, which is what the view's speed hangs on."""
    return (
        None not in records
        and _ADDR_KEY_BYTES.issuperset(map(len, touched))
        and _ENDPOINT_KINDS.issuperset(map(_KIND, touched))
        and _CLAIM_HEADS.issuperset(map(_HEAD, cast("Sequence[bytes]", records)))
    )
