"""Everything of the `mesh` shard, read: VPCs, VNIs, subnets, peerings, evictions, gateways.

The catalog stores each writer's decodable records and derives from them. `put` and `set_members`
only store and mark; `settle` derives anew what was marked, in this order, and says what came out
different:

    VPC registers → VNI groups → subnets and their layout → the spans whose claims must be read anew

Nothing derived depends on the order in which records came: each step is a function of what is
stored and of the steps before it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Set
from dataclasses import replace
from typing import NamedTuple, TypeVar

from mesh.core import keys, model
from mesh.core.members import Member
from mesh.core.model import (
    Binding,
    Eviction,
    PeeringRecord,
    Registration,
    SubnetRecord,
    VpcRecord,
)
from mesh.core.ops import NodeId
from mesh.core.view.evictions import Evictions
from mesh.core.view.layout import EVERYTHING, Layout, Span, gateway_of, lay_out, span
from mesh.core.view.registers import Decided, R, decide
from mesh.core.view.types import Gateway, Peering, Subnet, ViewDelta, Vpc, VpcState

T = TypeVar("T")
K = TypeVar("K", str, int, bytes)
Outer = TypeVar("Outer")
Inner = TypeVar("Inner")
V = TypeVar("V")

_NO_LAYOUT = Layout()


class _Marks:
    """What `settle` has to derive anew."""

    __slots__ = (
        "addrs",
        "conflicts",
        "gateways",
        "interests",
        "layouts",
        "peerings",
        "subnets",
        "vnis",
        "vpcs",
    )

    def __init__(self) -> None:
        self.vpcs: set[str] = set()
        self.vnis: set[int] = set()
        self.subnets: set[tuple[str, str]] = set()
        self.layouts: set[str] = set()
        self.gateways: set[NodeId] = set()
        self.interests: set[tuple[NodeId, str]] = set()
        self.addrs: set[tuple[str, bytes]] = set()
        """(VPC, address) whose evictions changed."""
        self.peerings = False
        self.conflicts = False


class Rescan:
    """Which claims must be read anew: single addresses, and spans of a VPC."""

    __slots__ = ("addrs", "spans")

    def __init__(self, addrs: set[tuple[str, bytes]]) -> None:
        self.addrs = addrs
        self.spans: defaultdict[str, list[Span]] = defaultdict(list)


class VniRank(NamedTuple):
    """A VPC's standing among those of its VNI; they sort best first."""

    minus_votes: int
    hlc: int
    vpc: str

    def rule_over(self, other: VniRank) -> str:
        """In words: why this one has the VNI and not `other`."""
        if self.minus_votes != other.minus_votes:
            return "bound at more of its sites"
        return "earlier hlc" if self.hlc != other.hlc else "lower id"


class Catalog:
    """See the module. `vpcs`, `layouts` and `gateways` are for reading only."""

    def __init__(self) -> None:
        self.members: dict[NodeId, Member] = {}
        self.vpcs: dict[str, Vpc] = {}
        self.layouts: dict[str, Layout] = {}
        self.gateways: dict[NodeId, Gateway] = {}
        self.removed: dict[str, int] = {}
        """Removed VPC → stamp of its deletion."""
        self.vni_ranks: dict[int, list[VniRank]] = {}
        """Contested VNI → its VPCs, best first."""
        self.vpc_disputes: dict[str, Decided[VpcRecord]] = {}
        self.subnet_disputes: dict[tuple[str, str], Decided[SubnetRecord]] = {}
        self._creators: dict[str, NodeId] = {}
        self._created: defaultdict[NodeId, set[str]] = defaultdict(set)
        """The same the other way round."""
        self._owners: dict[str, str] = {}
        self._subnet_vpc: dict[str, str] = {}
        """Of the subnets in `layouts`."""
        self._names: defaultdict[str, set[str]] = defaultdict(set)
        self._vnis: defaultdict[int, set[str]] = defaultdict(set)
        self._live_subnets: dict[str, dict[str, Subnet]] = {}
        self._vpc_records: dict[str, dict[NodeId, VpcRecord]] = {}
        self._subnet_records: dict[str, dict[str, dict[NodeId, SubnetRecord]]] = {}
        self._halves: dict[tuple[str, str], dict[str, dict[NodeId, PeeringRecord]]] = {}
        self._evictions = Evictions()
        self._registrations: dict[NodeId, Registration] = {}
        self._bindings: dict[str, dict[NodeId, Binding]] = {}
        self._interests: defaultdict[NodeId, set[str]] = defaultdict(set)
        """Node → the VPCs of which it says that it keeps the shard."""
        self.writers: set[NodeId] = set()
        """Nodes of which anything was read: a change of another one's rights changes nothing."""
        self._marks = _Marks()

    # --- authority ---------------------------------------------------------------------------

    def reads(self, node: NodeId) -> bool:
        """Whether the node's records count: it is in the roster and not forgotten."""
        member = self.members.get(node)
        return member is not None and member.state != "forgotten"

    def owner_site(self, vpc: str) -> str | None:
        """The site of the VPC's creator; None while no record of the VPC, or not the creator, is
        known. Every record of its register proves the same creator."""
        return self._owners.get(vpc)

    def may_write(self, vpc: str, node: NodeId) -> bool:
        """Whether the node may write the VPC's registers and evict from it."""
        member = self.members.get(node)
        if member is None or member.state == "forgotten":
            return False
        return member.admin or member.site == self._owners.get(vpc)

    def may_evict(self, vpc: str, writer: NodeId, node: NodeId) -> bool:
        """Whether `writer` may evict claims of `node`: with the VPC's authority, or for a retired
        node of its own site, which withdraws nothing itself any more."""
        if self.may_write(vpc, writer):
            return True
        member, evicted = self.members.get(writer), self.members.get(node)
        if member is None or member.state == "forgotten" or evicted is None:
            return False
        return evicted.state == "retired" and evicted.site == member.site

    # --- storing -----------------------------------------------------------------------------

    def put(self, node: NodeId, key: keys.Key, record: model.Record | None) -> None:
        """Store what the node holds under the key now. Endpoint keys are not for here."""
        self.writers.add(node)
        match key:
            case keys.VpcKey(vpc):
                _store(self._vpc_records.setdefault(vpc, {}), node, record, VpcRecord)
            case keys.SubnetKey(vpc, subnet):
                subnets = self._subnet_records.setdefault(vpc, {})
                _store(subnets.setdefault(subnet, {}), node, record, SubnetRecord)
            case keys.PeeringKey(a, b, half):
                halves = self._halves.setdefault((a, b), {})
                _store(halves.setdefault(half, {}), node, record, PeeringRecord)
                if not halves[half]:
                    _prune(self._halves, (a, b), half)
            case keys.EvictionKey(vpc, evicted, addr):
                self._evictions.put(vpc, addr, evicted, node, record)
            case keys.GatewayKey(gateway) if gateway == node:
                _store(self._registrations, node, record, Registration)
            case keys.BindingKey(binder, vpc) if binder == node:
                _store(self._bindings.setdefault(vpc, {}), node, record, Binding)
                if not self._bindings[vpc]:
                    del self._bindings[vpc]
            case keys.InterestKey(holder, vpc) if holder == node:
                if record is None:
                    self._interests[node].discard(vpc)
                else:
                    self._interests[node].add(vpc)
            case _:
                return  # another node's own fact: not this writer's to state
        self.mark(key)

    def mark(self, key: keys.Key) -> None:
        """Have `settle` derive anew what follows from any node's record under the key."""
        match key:
            case keys.VpcKey(vpc):
                self._marks.vpcs.add(vpc)
            case keys.SubnetKey(vpc, subnet):
                self._marks.subnets.add((vpc, subnet))
            case keys.PeeringKey():
                self._marks.peerings = True
            case keys.EvictionKey(vpc, _, addr):
                self._marks.addrs.add((vpc, addr))
            case keys.GatewayKey(node):
                self._marks.gateways.add(node)
            case keys.BindingKey(_, vpc):
                self._mark_vni(vpc)
            case keys.InterestKey(node, vpc):
                self._marks.interests.add((node, vpc))
            case _:
                pass  # an endpoint claim: the view names its key itself

    def set_members(self, members: Mapping[NodeId, Member]) -> tuple[list[NodeId], list[NodeId]]:
        """The roster as it is now. Returns the writers whose registers and evictions may count
        otherwise than before, and those whose claims may: what they hold is to be marked.

        What follows from others' records about a node is marked here: the VPCs that it created,
        and the evictions of its claims.
        """
        before, self.members = self.members, dict(members)
        registers: list[NodeId] = []
        claims: list[NodeId] = []
        for node in sorted(before.keys() | self.members.keys()):
            old, new = before.get(node), self.members.get(node)
            if old == new:
                continue
            self._marks.gateways.add(node)
            self._marks.conflicts = True  # they are shown with names
            if (old and (old.site, old.state)) != (new and (new.site, new.state)):
                self._marks.addrs.update(self._evictions.of(node))
            if (old and old.site) != (new and new.site):
                self._marks.vpcs.update(self._created.get(node, ()))
            if node in self.writers:
                if _authority(old) != _authority(new):
                    registers.append(node)
                if _standing(old) != _standing(new):
                    claims.append(node)
        return registers, claims

    def _mark_vni(self, vpc: str) -> None:
        if vpc in self.vpcs:
            self._marks.vnis.add(self.vpcs[vpc].vni)

    # --- deriving ----------------------------------------------------------------------------

    @property
    def unsettled(self) -> bool:
        """Whether `settle` has anything to do."""
        marks = self._marks
        return bool(
            marks.vpcs
            or marks.vnis
            or marks.subnets
            or marks.layouts
            or marks.gateways
            or marks.interests
            or marks.addrs
            or marks.peerings
            or marks.conflicts
        )

    def settle(self, delta: ViewDelta) -> Rescan:
        """Derive what was marked, add to `delta` what came out different."""
        marks, self._marks = self._marks, _Marks()
        rescan = Rescan(marks.addrs)
        before = {vpc: self.vpcs.get(vpc) for vpc in marks.vpcs}
        for vpc in sorted(marks.vpcs):
            self._read_vpc(vpc, marks, rescan)
        for vni in sorted(marks.vnis):
            for vpc in self._vnis.get(vni, ()):
                before.setdefault(vpc, self.vpcs[vpc])
            self._rank_vni(vni, delta)
        delta.vpcs.update(vpc for vpc, old in before.items() if self.vpcs.get(vpc) != old)
        for vpc, subnet in sorted(marks.subnets):
            self._read_subnet(vpc, subnet)
            marks.layouts.add(vpc)
        for vpc in sorted(marks.layouts):
            self._lay_out(vpc, delta, rescan)
        for node in sorted(marks.gateways):
            self._read_gateway(node, delta)
        delta.interests |= marks.interests
        delta.peerings |= marks.peerings
        # Conflicts are shown with names and decided with values of these.
        delta.conflicts |= bool(marks.conflicts or marks.vpcs or marks.subnets or delta.vpcs)
        return rescan

    def _read_vpc(self, vpc: str, marks: _Marks, rescan: Rescan) -> None:
        owner_changed = self._read_owner(vpc)
        decided = self.decide(vpc, self.vpc_records(vpc))
        old = self.vpcs.pop(vpc, None)
        new = None if decided is None else self._vpc_of(vpc, decided.record)
        self.removed.pop(vpc, None)
        self.vpc_disputes.pop(vpc, None)
        if decided is not None and decided.record.deleted:
            self.removed[vpc] = decided.record.hlc
        if decided is not None and decided.disputed:
            self.vpc_disputes[vpc] = decided
        if old is not None:
            _discard(self._names, old.name, vpc)
            _discard(self._vnis, old.vni, vpc)
            marks.vnis.add(old.vni)
        if new is not None:
            self.vpcs[vpc] = new
            self._names[new.name].add(vpc)
            self._vnis[new.vni].add(vpc)
            marks.vnis.add(new.vni)
        if old is None or new is None or old.cidrs != new.cidrs:
            marks.layouts.add(vpc)
        if owner_changed:
            marks.subnets.update((vpc, subnet) for subnet in self._subnet_records.get(vpc, ()))
            marks.addrs.update((vpc, addr) for addr in self._evictions.addrs(vpc))
        marks.peerings |= owner_changed or (old is None) != (new is None)
        if old is not None and new is not None and old.sites != new.sites:
            rescan.spans[vpc].extend(EVERYTHING)  # else the layout says what to read again

    def _read_owner(self, vpc: str) -> bool:
        """Derive who owns the VPC; whether that has changed."""
        records = self._vpc_records.get(vpc)
        before = self._owners.pop(vpc, None)
        if not records:
            self._vpc_records.pop(vpc, None)
            creator = self._creators.pop(vpc, None)
            if creator is not None:
                _discard(self._created, creator, vpc)
            return before is not None
        creator = self._creators[vpc] = next(iter(records.values())).creator
        self._created[creator].add(vpc)
        if creator in self.members:
            self._owners[vpc] = self.members[creator].site
        return self._owners.get(vpc) != before

    def decide(self, vpc: str, records: Mapping[NodeId, R]) -> Decided[R] | None:
        """What a register of the VPC says, given each writer's record of it."""
        return decide(
            records, lambda node: self.may_write(vpc, node), lambda node: self.members[node].forked
        )

    def _vpc_of(self, vpc: str, record: VpcRecord) -> Vpc | None:
        if record.deleted:
            return None
        return Vpc(
            id=vpc,
            name=record.name,
            vni=record.vni,
            cidrs=record.cidrs,
            tenant=record.tenant,
            site=self.owner_site(vpc) or "",
            by=record.creator,
            sites=record.sites,
            state="active",
            revision=record.revision,
            hlc=record.since,
        )

    def votes(self, vpc: Vpc) -> int:
        """How many sites that the VPC admits have bound its VNI to it."""
        return len(
            {
                self.members[node].site
                for node, binding in self._bindings.get(vpc.id, {}).items()
                if binding.vni == vpc.vni
                and self.reads(node)
                and vpc.admits(self.members[node].site)
            }
        )

    def _rank_vni(self, vni: int, delta: ViewDelta) -> None:
        ranked = sorted(
            VniRank(-self.votes(self.vpcs[vpc]), self.vpcs[vpc].hlc, vpc)
            for vpc in self._vnis.get(vni, ())
        )
        for place, rank in enumerate(ranked):
            state: VpcState = "vni-conflict" if place else "active"
            if self.vpcs[rank.vpc].state != state:
                self.vpcs[rank.vpc] = replace(self.vpcs[rank.vpc], state=state)
        before = self.vni_ranks.pop(vni, None)
        if len(ranked) > 1:
            self.vni_ranks[vni] = ranked
        delta.conflicts |= self.vni_ranks.get(vni) != before

    def _read_subnet(self, vpc: str, subnet: str) -> None:
        records = self.subnet_records(vpc, subnet)
        if not records and subnet in self._subnet_records.get(vpc, ()):
            _prune(self._subnet_records, vpc, subnet)
        decided = self.decide(vpc, records)
        if subnet in self._live_subnets.get(vpc, ()):
            _prune(self._live_subnets, vpc, subnet)
        self.subnet_disputes.pop((vpc, subnet), None)
        if decided is None or decided.record.deleted:
            return
        record = decided.record
        if decided.disputed:
            self.subnet_disputes[vpc, subnet] = decided
        self._live_subnets.setdefault(vpc, {})[subnet] = Subnet(
            id=subnet,
            vpc=vpc,
            name=record.name,
            cidr=record.cidr,
            sites=record.sites,
            restrict=record.restrict,
            state="active",
            revision=record.revision,
            hlc=record.since,
            gateway=gateway_of(record.cidr),
        )

    def _lay_out(self, vpc: str, delta: ViewDelta, rescan: Rescan) -> None:
        old = self.layouts.pop(vpc, _NO_LAYOUT)
        new = _NO_LAYOUT
        if vpc in self.vpcs:
            new = lay_out(self.vpcs[vpc].cidrs, self._live_subnets.get(vpc, {}).values())
            self.layouts[vpc] = new
        for subnet in sorted(old.subnets.keys() | new.subnets.keys()):
            before, after = old.subnets.get(subnet), new.subnets.get(subnet)
            if before == after:
                continue
            delta.subnets.add(subnet)
            if after is None:
                del self._subnet_vpc[subnet]
            else:
                self._subnet_vpc[subnet] = vpc
            for changed in (before, after):
                if changed is not None and changed.state == "active":
                    rescan.spans[vpc].append(span(changed.cidr))
        delta.conflicts |= old.losers != new.losers

    def _read_gateway(self, node: NodeId, delta: ViewDelta) -> None:
        old = self.gateways.pop(node, None)
        member, record = self.members.get(node), self._registrations.get(node)
        if member is not None and member.state == "active" and record is not None:
            self.gateways[node] = Gateway(
                node=node,
                name=member.name,
                site=member.site,
                underlay=record.underlay,
                addrs=record.addrs,
                version=record.version,
                hlc=record.hlc,
                encapsulation=record.encapsulation,
            )
        if self.gateways.get(node) != old:
            delta.gateways.add(node)

    # --- reading -----------------------------------------------------------------------------

    def named(self, name: str) -> list[str]:
        """Ids of the live VPCs of this name, sorted."""
        return sorted(self._names.get(name, ()))

    def with_vni(self, vni: int) -> list[str]:
        """Ids of the live VPCs of this VNI, sorted."""
        return sorted(self._vnis.get(vni, ()))

    def layout(self, vpc: str) -> Layout:
        """The subnets of a VPC; empty if it is not live."""
        return self.layouts.get(vpc, _NO_LAYOUT)

    def hidden_up_to(self, vpc: str, addr: bytes, node: NodeId) -> int:
        """The highest mobility of the node's claims for the address that is evicted; -1: none."""
        by_writer = self._evictions.at(vpc, addr).get(node)
        if by_writer is None:
            return -1
        allowed = (e.mobility for w, e in by_writer.items() if self.may_evict(vpc, w, node))
        return max(allowed, default=-1)

    def evicted(self, vpc: str) -> Collection[bytes]:
        """The VPC's addresses from which anything is evicted."""
        return self._evictions.addrs(vpc)

    def evictions(self, vpc: str, addr: bytes) -> Mapping[NodeId, dict[NodeId, Eviction]]:
        """Node → writer → eviction, whether or not the writer may evict."""
        return self._evictions.at(vpc, addr)

    def vpc_records(self, vpc: str) -> Mapping[NodeId, VpcRecord]:
        """Each writer's record of the VPC's register, whether or not it may write it."""
        return self._vpc_records.get(vpc, {})

    def vpc_record(self, vpc: str) -> VpcRecord | None:
        """The record that counts, a deletion too."""
        decided = self.decide(vpc, self.vpc_records(vpc))
        return None if decided is None else decided.record

    def subnet_records(self, vpc: str, subnet: str) -> Mapping[NodeId, SubnetRecord]:
        """Each writer's record of the subnet's register, whether or not it may write it."""
        return self._subnet_records.get(vpc, {}).get(subnet, {})

    def half_records(self, a: str, b: str) -> Mapping[str, Mapping[NodeId, PeeringRecord]]:
        """Half id → writer → record of what a's side says about b."""
        return self._halves.get((a, b), {})

    def subnet(self, subnet: str) -> Subnet | None:
        """The live subnet of this id, installed or not."""
        vpc = self._subnet_vpc.get(subnet)
        return None if vpc is None else self.layouts[vpc].subnets[subnet]

    def live_halves(self, a: str, b: str) -> list[str]:
        """Ids of the halves by which a's side lets b in."""
        decided = (
            (half, self.decide(a, records))
            for half, records in self._halves.get((a, b), {}).items()
        )
        return sorted(half for half, d in decided if d is not None and not d.record.deleted)

    def peerings(self) -> list[Peering]:
        """The peerings between live VPCs, sorted by their ids."""
        found: list[Peering] = []
        for a, b in sorted(self._halves):
            if a == b or a not in self.vpcs or b not in self.vpcs or not self.live_halves(a, b):
                continue
            if not self.live_halves(b, a):
                found.append(Peering(a, b, "half"))
            elif a < b:
                found.append(Peering(a, b, "active"))
        return found

    def registration(self, node: NodeId) -> Registration | None:
        """What the node says about itself, whether or not it is active."""
        return self._registrations.get(node)

    def binding(self, vpc: str, node: NodeId) -> Binding | None:
        """The VNI that the node has bound to the VPC."""
        return self._bindings.get(vpc, {}).get(node)

    def interest(self, node: NodeId) -> Set[str]:
        """The VPCs of which the node says that it keeps the shard, whether or not it is active."""
        return self._interests.get(node, set())

    def all_interests(self) -> set[tuple[NodeId, str]]:
        return {(node, vpc) for node, vpcs in self._interests.items() for vpc in vpcs}

    def written_by(self, node: NodeId) -> list[keys.LongLived]:
        """The registers and evictions of which the node holds a record. Reads every key."""
        vpcs = (keys.VpcKey(v) for v, held in self._vpc_records.items() if node in held)
        subnets = (
            keys.SubnetKey(vpc, subnet)
            for vpc, by_subnet in self._subnet_records.items()
            for subnet, held in by_subnet.items()
            if node in held
        )
        halves = (
            keys.PeeringKey(a, b, half)
            for (a, b), by_half in self._halves.items()
            for half, held in by_half.items()
            if node in held
        )
        return sorted((*vpcs, *subnets, *halves, *self._evictions.by(node)), key=keys.pack)

    def sites(self) -> tuple[str, ...]:
        """The sites of all members that count, sorted."""
        return tuple(sorted({m.site for m in self.members.values() if m.state != "forgotten"}))


def _standing(member: Member | None) -> tuple[str, bool] | None:
    """What of a member decides how its claims are read; None: they are not."""
    if member is None or member.state == "forgotten":
        return None
    return member.site, member.forked


def _authority(member: Member | None) -> tuple[str, bool, bool] | None:
    """What of a member decides how its registers and evictions are read; None: they are not."""
    standing = _standing(member)
    return None if member is None or standing is None else (*standing, member.admin)


def _store(held: dict[NodeId, T], node: NodeId, record: object, kind: type[T]) -> None:
    """Replace or drop a writer's record. `model.decode` gives the kind that belongs to the key."""
    if record is None:
        held.pop(node, None)
    else:
        assert isinstance(record, kind)
        held[node] = record


def _prune(held: dict[Outer, dict[Inner, V]], outer: Outer, inner: Inner) -> None:
    """Drop `held[outer][inner]`, and `held[outer]` with its last."""
    del held[outer][inner]
    if not held[outer]:
        del held[outer]


def _discard(index: defaultdict[K, set[str]], key: K, member: str) -> None:
    index[key].discard(member)
    if not index[key]:
        del index[key]
