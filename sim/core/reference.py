"""The view once more, from the design's text alone: what all records and the roster add up to.

`read` computes everything anew and knows nothing of `mesh.core.view`; only the decoders of records
are shared. It is written to be read beside DESIGN §3, and as slow as that makes it. `rows_of` puts
a view into the same form, so that the two can be compared row by row:

    ("vpc", id)            (name, vni, cidrs, tenant, owner's site, creator, sites, state)
    ("subnet", id)         (vpc, name, cidr, sites, restrict, state)
    ("endpoint", vpc, ip)  ((node, site, mobility, mac, name, host, state), …), the winner first
    ("peering", a, b)      state
    ("gateway", node)      (site, underlay, addrs, version)
    ("conflict", kind, key text)  (claimants, winner, since)
    ("removed", vpc)       ()
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import lru_cache
from hashlib import sha256
from typing import Any, TypeAlias

from crdt.chain import Chain
from crdt.entry import record_of, seq_of
from crdt.header import common_head
from mesh.core import keys, model
from mesh.core.members import Member
from mesh.core.ops import NodeId
from mesh.core.replica import Replica
from mesh.core.view import View

Held: TypeAlias = tuple[NodeId, str, bytes, bytes]
"""(writer, shard, key, record)"""

Rows: TypeAlias = dict[tuple[Any, ...], Any]


def held_by(replica: Replica) -> Iterator[Held]:
    """The records that count of every chain, a node's own writes as soon as it has taken them."""
    lattice = replica.lattice
    for id in lattice.chains():
        if id.node != replica.node:
            for key, record in effective(lattice.branches(id)):
                yield id.node, id.shard, key, record
    for own in replica.holdings.held(replica.node):
        for key in own.keys:
            if (written := replica.record(own.shard, key)) is not None:
                yield own.node, own.shard, key, written


def effective(branches: Sequence[Chain]) -> Iterator[tuple[bytes, bytes]]:
    """(key, record) of a chain of which several epochs are held, the latest first: per key the
    later epoch counts, and nothing that another epoch has known and has no more."""
    read: set[bytes] = set()
    for chain in branches:
        for key, entry in chain.live.items():
            seq = seq_of(entry)
            gone = any(
                _knew(other, chain, seq) and other.live.get(key) != entry
                for other in branches
                if other is not chain
            )
            if key not in read and not gone:
                read.add(key)
                yield key, record_of(entry)


def _knew(other: Chain, chain: Chain, seq: int) -> bool:
    """Whether what was written at `seq` of `chain` is behind what `other` signs."""
    assert other.header is not None and chain.header is not None
    if other.epoch > chain.epoch and other.header.covers_head(chain.epoch, seq):
        return True
    return seq <= common_head(chain.header, other.header)


def read(held: Iterable[Held], members: Mapping[NodeId, Member]) -> Rows:
    """What everybody who holds these records, each (writer, shard, key) once, should see."""
    return _Reader(held, members).rows()


def admitted(held: Iterable[Held], members: Mapping[NodeId, Member]) -> dict[str, set[str] | None]:
    """Of every VPC that is there: the sites that may have its shard; None: all."""
    return _Reader(held, members).admitted()


def kept(
    held: Iterable[Held], members: Mapping[NodeId, Member], site: str, uses: Set[str]
) -> set[str]:
    """The VPCs that are there and whose shards a node of the site keeps, by what they have to do
    with it. `uses`: those in which it has an interface, or has written."""
    return _Reader(held, members).kept(site, uses)


def rows_of(view: View) -> Rows:
    """The same rows, as a view has them."""
    rows: Rows = {}
    for vpc in view.vpcs.values():
        rows["vpc", vpc.id] = (
            vpc.name, vpc.vni, vpc.cidrs, vpc.tenant, vpc.site, vpc.by, vpc.sites, vpc.state,
        )  # fmt: skip
    for s in view.subnets():
        rows["subnet", s.id] = (s.vpc, s.name, s.cidr, s.sites, s.restrict, s.state)
    for e in view.endpoints():
        claim = (e.node, e.site, e.mobility, e.mac, e.name, e.host, e.state)
        rows["endpoint", e.vpc, e.ip] = (*rows.get(("endpoint", e.vpc, e.ip), ()), claim)
    for peering in view.peerings():
        rows["peering", peering.a, peering.b] = peering.state
    for g in view.gateways.values():
        rows["gateway", g.node] = (g.site, g.underlay, g.addrs, g.version)
    for c in view.conflicts():
        rows["conflict", c.kind, c.key] = (c.claimants, c.winner, c.since_hlc)
    for vpc_id in view.catalog.removed:
        rows["removed", vpc_id] = ()
    return rows


def differences(expected: Rows, found: Rows) -> list[str]:
    """In words: what one has and the other has not, or differently."""
    if expected == found:
        return []
    said = []
    for row in sorted(expected.keys() | found.keys(), key=repr):
        if expected.get(row) != found.get(row):
            said.append(f"{_words(row)}: {_words(found.get(row))}, not {_words(expected.get(row))}")
    return said


def _words(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex()[:8]
    if isinstance(value, tuple):
        return f"({', '.join(map(_words, value))})"
    return str(value)


@lru_cache(maxsize=4096)
def _decoded(shard: str, raw: bytes, record: bytes) -> tuple[keys.Key, model.Record] | None:
    """None: it cannot be read. All nodes hold the same, and it is read again and again."""
    try:
        key = keys.unpack(shard, raw)
        return key, model.decode(key, record)
    except (keys.UnknownKey, keys.InvalidKey, model.UnknownRecord, model.InvalidRecord):
        return None


_network = lru_cache(maxsize=1024)(ipaddress.ip_network)


@lru_cache(maxsize=4096)
def _claimable(addr: bytes, cidr: str) -> bool | None:
    """Whether the address can be claimed in the network; None: it does not lie in it."""
    ip, network = ipaddress.ip_address(addr), _network(cidr)
    return None if ip not in network else ip not in (network[0], network[1], network[-1])


class _Reader:
    """Each method is a sentence or two of the design."""

    def __init__(self, held: Iterable[Held], members: Mapping[NodeId, Member]) -> None:
        self.everybody = members
        self.names = [m.name for m in members.values()]
        self.members = {node: m for node, m in members.items() if m.state != "forgotten"}
        self.registers: dict[keys.Key, dict[NodeId, Any]] = {}
        self.claims: dict[tuple[str, bytes], dict[NodeId, model.Claim]] = {}
        self.keepers: set[tuple[NodeId, str]] = set()
        """(node, VPC) of what nodes say that they keep"""
        creators: dict[str, NodeId] = {}
        for node, shard, raw, record in held:
            found = _decoded(shard, raw, record)
            if found is None:
                continue
            key, decoded = found
            if isinstance(decoded, model.VpcRecord) and isinstance(key, keys.VpcKey):
                creators[key.vpc] = decoded.creator  # proved by the id, whoever wrote it
            if isinstance(decoded, model.Interest) and isinstance(key, keys.InterestKey):
                if key.node == node:
                    self.keepers.add((node, key.vpc))
                continue  # what a node keeps changes nothing of what there is
            if node not in self.members:
                continue
            if isinstance(decoded, model.Claim) and isinstance(key, keys.EndpointKey):
                self.claims.setdefault((shard, key.addr), {})[node] = decoded
            else:
                self.registers.setdefault(key, {})[node] = decoded
        self.creators = creators
        self.decided = {
            key: self.decide(_vpc_of(key), records)
            for key, records in self.registers.items()
            if isinstance(key, keys.VpcKey | keys.SubnetKey | keys.PeeringKey)
        }
        self.live = {
            key.vpc: decided[0]
            for key, decided in self.decided.items()
            if isinstance(key, keys.VpcKey) and decided and not decided[0].deleted
        }
        self.vni_order = self.rank_vnis()
        self.subnets, self.overlaps = self.lay_out()
        self.ranked = {place: self.rank(*place) for place in self.claims}

    def rows(self) -> Rows:
        rows: Rows = {}
        for vpc, r in self.live.items():
            state = "active" if self.vni_order[r.vni][0] == vpc else "vni-conflict"
            owner = self.owner(vpc) or ""
            rows["vpc", vpc] = (r.name, r.vni, r.cidrs, r.tenant, owner, r.creator, r.sites, state)
        for vpc, subnets in self.subnets.items():
            for id, (s, state) in subnets.items():
                rows["subnet", id] = (vpc, s.name, s.cidr, s.sites, s.restrict, state)
        for (vpc, addr), ranked in self.ranked.items():
            if ranked:
                states = self.states(ranked)
                rows["endpoint", vpc, keys.ip_of(addr)] = tuple(
                    (node, self.site(node), c.mobility, c.mac, c.name, c.host, state)
                    for (node, c), state in zip(ranked, states, strict=True)
                )
        rows |= dict(self.peerings())
        for key, records in self.registers.items():
            if isinstance(key, keys.GatewayKey) and key.node in records:
                member, r = self.members[key.node], records[key.node]
                if member.state == "active":
                    rows["gateway", key.node] = (member.site, r.underlay, r.addrs, r.version)
        rows |= dict(self.conflicts())
        for key, decided in self.decided.items():
            if isinstance(key, keys.VpcKey) and decided and decided[0].deleted:
                rows["removed", key.vpc] = ()
        return rows

    # ---- authority ----

    def site(self, node: NodeId) -> str:
        return self.members[node].site

    def owner(self, vpc: str) -> str | None:
        """The creator's site, whatever has become of the creator."""
        creator = self.everybody.get(self.creators.get(vpc, b""))
        return creator.site if creator else None

    def may_write(self, vpc: str, node: NodeId) -> bool:
        """Nodes of the owner's site and admins write the VPC, its subnets, its halves."""
        member = self.members[node]
        return member.admin or member.site == self.owner(vpc)

    def may_evict(self, vpc: str, writer: NodeId, node: NodeId) -> bool:
        """The VPC's owner or an admin; and for a retired node the gateways of its site."""
        evicted = self.members.get(node)
        stands_in = evicted is not None and evicted.state == "retired"
        return self.may_write(vpc, writer) or (
            stands_in and evicted is not None and evicted.site == self.site(writer)
        )

    # ---- registers ----

    def decide(self, vpc: str, records: Mapping[NodeId, Any]) -> tuple[Any, list[NodeId]] | None:
        """(the value, the writers that dispute it): `deleted` wins for good, else the highest
        (revision, hlc, node); equal revisions with different values are a dispute. Those of nodes
        that signed two histories come last, and dispute with an equal or higher revision."""
        allowed = {node: r for node, r in records.items() if self.may_write(vpc, node)}
        if not allowed:
            return None

        def rank(node: NodeId) -> tuple[Any, ...]:
            r = allowed[node]
            return not self.members[node].forked, r.deleted, r.revision, r.hlc, node

        ranked = sorted(allowed, key=rank)[::-1]
        best = allowed[ranked[0]]
        alike = [n for n in ranked if self.members[n].forked == self.members[ranked[0]].forked]
        peers = [
            node
            for node in ranked
            if allowed[node].revision == best.revision
            or (allowed[node].revision > best.revision and node not in alike)
        ]
        agree = all(model.same_value(allowed[node], best) for node in peers)
        return best, [] if best.deleted or agree else peers

    def rank_vnis(self) -> dict[int, list[str]]:
        """A VNI belongs to the VPC with the most allowed sites that bind it, then hlc, then id."""
        order: dict[int, list[str]] = {}
        for vpc, record in self.live.items():
            order.setdefault(record.vni, []).append(vpc)
        for vpcs in order.values():
            vpcs.sort(key=lambda vpc: (-len(self.binding_sites(vpc)), self.live[vpc].since, vpc))
        return order

    def binding_sites(self, vpc: str) -> set[str]:
        record = self.live[vpc]
        return {
            self.site(node)
            for node in self.members
            for binding in [self.registers.get(keys.BindingKey(node, vpc), {}).get(node)]
            if binding is not None
            and binding.vni == record.vni
            and (not record.sites or self.site(node) in record.sites)
        }

    def lay_out(self) -> tuple[dict[str, dict[str, tuple[Any, str]]], dict[str, str]]:
        """Subnets with their state, and who lost against whom: the earlier made is installed."""
        found: dict[str, dict[str, tuple[Any, str]]] = {}
        lost: dict[str, str] = {}
        for vpc, record in self.live.items():
            cidrs = [_network(cidr) for cidr in record.cidrs]
            live = [
                (key.subnet, decided[0])
                for key, decided in self.decided.items()
                if isinstance(key, keys.SubnetKey) and key.vpc == vpc
                if decided and not decided[0].deleted
            ]
            installed: list[tuple[Any, str]] = []
            for subnet, s in sorted(live, key=lambda item: (item[1].since, item[0])):
                network = _network(s.cidr)
                holders = [(other[-1], id) for other, id in installed if _overlap(other, network)]
                if not any(_within(network, cidr) for cidr in cidrs):
                    state = "outside"
                elif holders:
                    state, lost[subnet] = "overlap", max(holders)[1]
                else:
                    state = "active"
                    installed.append((network, subnet))
                found.setdefault(vpc, {})[subnet] = (s, state)
        return found, lost

    # ---- endpoints ----

    def rank(self, vpc: str, addr: bytes) -> list[tuple[NodeId, model.Claim]]:
        """The claims that count, best first: authority, then removals, then mobility, hlc, hash.
        Those of nodes that signed two histories come last."""
        subnet = self.subnet_at(vpc, addr)
        if subnet is None:
            return []
        admitted = self.live[vpc].sites
        found = [
            (
                self.members[node].forked,
                -claim.mobility,
                claim.hlc,
                sha256(node + keys.ENDPOINT + addr).digest(),
                node,
            )
            for node, claim in self.claims[vpc, addr].items()
            if not admitted or self.site(node) in admitted
            if not subnet.restrict or self.site(node) in subnet.sites
            if claim.mobility > self.evicted_up_to(vpc, node, addr)
        ]
        return [(node, self.claims[vpc, addr][node]) for *_, node in sorted(found)]

    def subnet_at(self, vpc: str, addr: bytes) -> Any:
        """The installed subnet of a live VPC in which the address can be claimed: its network,
        gateway and broadcast addresses cannot."""
        for subnet, state in self.subnets.get(vpc, {}).values():
            claimable = _claimable(addr, subnet.cidr)
            if state == "active" and claimable is not None:
                return subnet if claimable else None
        return None

    def evicted_up_to(self, vpc: str, node: NodeId, addr: bytes) -> int:
        """That node's claims for that address up to that mobility are hidden."""
        evictions = self.registers.get(keys.EvictionKey(vpc, node, addr), {})
        allowed = [e for writer, e in evictions.items() if self.may_evict(vpc, writer, node)]
        return max((e.mobility for e in allowed), default=-1)

    def states(self, ranked: list[tuple[NodeId, model.Claim]]) -> list[str]:
        """Equal mobility: of the winner's site it is one claim with several writers, of another
        it is a conflict. Lower mobility: outranked. One of a forked node is never another's."""
        best_node, best = ranked[0]
        states = []
        for node, claim in ranked:
            alike = self.members[node].forked == self.members[best_node].forked
            if claim.mobility >= best.mobility and self.site(node) != self.site(best_node):
                states.append("conflict")
            else:
                states.append("active" if claim.mobility == best.mobility and alike else "shadowed")
        return states

    # ---- peerings ----

    def peerings(self) -> Iterator[tuple[tuple[Any, ...], str]]:
        """Active only when both halves live."""
        halves = {
            (key.a, key.b)
            for key, decided in self.decided.items()
            if isinstance(key, keys.PeeringKey) and decided and not decided[0].deleted
            if key.a != key.b and key.a in self.live and key.b in self.live
        }
        for a, b in halves:
            if (b, a) not in halves:
                yield ("peering", a, b), "half"
            elif a < b:
                yield ("peering", a, b), "active"

    def admitted(self) -> dict[str, set[str] | None]:
        """A VPC's shard is for the sites on its list and the homes of its subnets (no list: all),
        for its owner, and for those that a VPC with an active peering to it is for."""
        own = {
            vpc: {*record.sites, *self.concerned(vpc)} if record.sites else None
            for vpc, record in self.live.items()
        }
        found: dict[str, set[str] | None] = dict(own)
        for vpc, other in self.peered():
            mine, theirs = found[vpc], own[other]
            found[vpc] = None if mine is None or theirs is None else mine | theirs
        return found

    def concerned(self, vpc: str) -> set[str]:
        """A VPC's owner, and the homes of its subnets."""
        homes = {site for s, _ in self.subnets.get(vpc, {}).values() for site in s.sites}
        return {*homes, self.owner(vpc) or ""}

    def peered(self) -> list[tuple[str, str]]:
        """Active peerings, from either side."""
        pairs = [(a, b) for (_, a, b), state in self.peerings() if state == "active"]
        return [*pairs, *((b, a) for a, b in pairs)]

    def kept(self, site: str, uses: Set[str]) -> set[str]:
        """What is for the site and concerns it: its own, those in which it has something or a
        retired node of it had, and those peered with such a one."""
        left = {
            vpc
            for node, vpc in self.keepers
            if node in self.everybody
            and self.everybody[node].state == "retired"
            and self.site(node) == site
        }
        hosted = {
            vpc for vpc in self.live if site in self.concerned(vpc) or vpc in uses or vpc in left
        }
        wanted = hosted | {vpc for vpc, other in self.peered() if other in hosted}
        admitted = self.admitted()
        return {v for v in wanted if (sites := admitted[v]) is None or site in sites}

    # ---- conflicts ----

    def conflicts(self) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """Claims of several sites with equal mobility, a VNI of two VPCs, subnets that overlap,
        equal revisions with different values."""
        for (vpc, addr), ranked in self.ranked.items():
            top = [(node, c) for node, c in ranked if c.mobility >= ranked[0][1].mobility]
            firsts: dict[str, model.Claim] = {}
            for node, claim in top:
                firsts.setdefault(self.site(node), claim)
            if len(firsts) > 1:
                names = tuple(self.node_text(node) for node, _ in top)
                place = f"endpoint/{self.vpc_text(vpc)}/{keys.ip_of(addr)}"
                since = max(claim.hlc for claim in list(firsts.values())[:2])
                yield ("conflict", "endpoint", place), (names, names[0], since)
        for vpcs in self.vni_order.values():
            texts = tuple(f"vpc/{self.vpc_text(vpc)}" for vpc in vpcs)
            for vpc, text in zip(vpcs[1:], texts[1:], strict=True):
                since = max(self.live[vpcs[0]].since, self.live[vpc].since)
                yield ("conflict", "vni", text), (texts, texts[0], since)
        for vpc, subnets in self.subnets.items():
            for subnet in subnets.keys() & self.overlaps.keys():
                pair = tuple(self.subnet_text(vpc, s) for s in (self.overlaps[subnet], subnet))
                since = subnets[subnet][0].since
                yield ("conflict", "subnet", pair[1]), (pair, pair[0], since)
        for key, decided in self.decided.items():
            if decided is None or not decided[1]:
                continue
            names = tuple(self.node_text(node) for node in decided[1])
            match key:
                case keys.VpcKey(vpc):
                    text = f"vpc/{self.vpc_text(vpc)}"
                case keys.SubnetKey(vpc, subnet) if vpc in self.live:
                    text = self.subnet_text(vpc, subnet)
                case _:
                    continue
            since = max(self.registers[key][node].hlc for node in decided[1])
            yield ("conflict", "value", text), (names, names[0], since)

    def vpc_text(self, vpc: str) -> str:
        """The name, or the id where several live VPCs have it."""
        name = self.live[vpc].name
        return name if sum(r.name == name for r in self.live.values()) == 1 else vpc

    def subnet_text(self, vpc: str, subnet: str) -> str:
        name = self.subnets[vpc][subnet][0].name
        alike = sum(s.name == name for s, _ in self.subnets[vpc].values())
        return f"subnet/{self.vpc_text(vpc)}/{name if alike == 1 else subnet}"

    def node_text(self, node: NodeId) -> str:
        name = self.members[node].name
        return name if self.names.count(name) == 1 else node.hex()


def _vpc_of(key: keys.Key) -> str:
    """The VPC whose owner writes the register."""
    if isinstance(key, keys.PeeringKey):
        return key.a
    assert isinstance(key, keys.VpcKey | keys.SubnetKey)
    return key.vpc


def _overlap(a: Any, b: Any) -> bool:
    return bool(a.version == b.version and a.overlaps(b))


def _within(inner: Any, outer: Any) -> bool:
    return bool(inner.version == outer.version and inner.subnet_of(outer))
