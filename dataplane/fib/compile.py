"""The compiler: facts set one by one, rows out, at a cost that follows what changed.

Rules of this file:
- `Compiler` changes its tables as each fact is set and remembers, for each touched row, what it
  was at the last delta; `take_delta` is the difference. A row that came back is not in it.
- A fact that cannot be parsed raises ValueError and changes nothing.
- Whatever the order of the facts, the tables equal `compile_all` of the facts last set, which is
  written without any of the bookkeeping here, and so checks it.
- Judgement is in `rules.py`; this file only decides which rows to look at again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Final, Generic

from dataplane.fib import rules
from dataplane.fib.endpoints import EndpointTable
from dataplane.fib.facts import (
    AttachmentFact,
    EndpointFact,
    Facts,
    GatewayFact,
    SubnetFact,
    VpcFact,
)
from dataplane.fib.ids import IdSpace, assign
from dataplane.fib.rows import (
    NO_DELTA,
    NO_GROUP,
    VNI_MAX,
    Addr,
    EndpointKey,
    EntitledKey,
    EntitledRow,
    FibDelta,
    GatewayRow,
    GroupRow,
    K,
    PackedKey,
    PackedRow,
    PortRow,
    SubnetKey,
    SubnetRow,
    TableDelta,
    Tables,
    V,
    addr_of,
    address_of,
    group_of,
    mac_bytes,
)

_ANY_DOMAIN: Final = 0
"""Stands for the domain in a subnet's key while the VPC's may still change."""


class _Table(Generic[K, V]):
    """Rows, and what the touched ones were at the last delta."""

    def __init__(self) -> None:
        self.rows: dict[K, V] = {}
        self._before: dict[K, V | None] = {}

    def set(self, key: K, row: V | None) -> None:
        old = self.rows.get(key)
        if old == row:
            return
        self._before.setdefault(key, old)
        if row is None:
            del self.rows[key]
        else:
            self.rows[key] = row

    def clear(self) -> None:
        for key in list(self.rows):
            self.set(key, None)

    def take(self) -> TableDelta[K, V]:
        if not self._before:
            return NO_DELTA
        put: dict[K, V] = {}
        remove: list[K] = []
        for key in sorted(self._before):
            row = self.rows.get(key)
            if row == self._before[key]:
                continue
            if row is None:
                remove.append(key)
            else:
                put[key] = row
        self._before = {}
        return TableDelta(put, tuple(remove))


class Compiler:
    """The forwarding tables of one gateway. See the head of the file."""

    def __init__(self, self_id: bytes, self_site: str, *, id_max: int = rules.ID_MAX) -> None:
        """`id_max` bounds the u32 ids from above; it is less only to bring collisions about."""
        self._self_id = self_id
        self._self_site = self_site
        self._gateway_ids = IdSpace(1, id_max)
        self._group_ids = IdSpace(1, id_max)
        self._domain_ids = IdSpace(
            rules.PRIVATE_DOMAIN_MIN, min(rules.ID_MAX, rules.PRIVATE_DOMAIN_MIN + id_max)
        )
        self._gateways: dict[bytes, GatewayFact] = {}
        self._gateways_at: defaultdict[str, set[bytes]] = defaultdict(set)
        self._vpcs: dict[str, VpcFact] = {}
        self._vni_holders: defaultdict[int, set[str]] = defaultdict(set)
        self._subnets: dict[str, SubnetFact] = {}
        self._subnets_of: defaultdict[str, dict[SubnetKey, set[str]]] = defaultdict(dict)
        self._attachments: dict[str, AttachmentFact] = {}
        self._ifnames: defaultdict[str, dict[Addr, set[str]]] = defaultdict(dict)
        self._gateway_rows: _Table[int, GatewayRow] = _Table()
        self._group_rows: _Table[int, GroupRow] = _Table()
        self._entitled_rows: _Table[EntitledKey, EntitledRow] = _Table()
        self._port_rows: _Table[str, PortRow] = _Table()
        self._endpoint_rows = EndpointTable()
        self._subnet_rows: _Table[SubnetKey, SubnetRow] = _Table()

    # ---- facts ----------------------------------------------------------------------------------

    def set_gateway(self, id: bytes, fact: GatewayFact | None) -> None:
        """A gateway appeared, changed or went (None). Rewrites its row and its two groups."""
        if fact is not None:
            _check(fact.id == id, f"gateway fact of {fact.id.hex()} set as {id.hex()}")
        old = self._gateways.get(id)
        if old == fact:
            return
        if fact is not None:
            addr_of(fact.underlay)
        moved = False
        if fact is not None:
            moved |= self._gateway_ids.acquire(id)
            moved |= self._group_ids.acquire(rules.site_group(fact.site))
            moved |= self._group_ids.acquire(rules.gateway_group(id))
        if old is not None:
            self._emit_gateway(old, gone=True)
        if fact is None:
            del self._gateways[id]
        else:
            self._gateways[id] = fact
            self._gateways_at[fact.site].add(id)
        if old is not None:
            if fact is None or fact.site != old.site:
                _discard(self._gateways_at, old.site, id)
            self._emit_site_group(old.site)
            moved |= self._gateway_ids.release(id)
            moved |= self._group_ids.release(rules.site_group(old.site))
            moved |= self._group_ids.release(rules.gateway_group(id))
        if moved:
            self._rebuild()
        elif fact is not None:
            self._emit_gateway(fact)
            self._emit_site_group(fact.site)

    def set_vpc(self, id: str, fact: VpcFact | None) -> None:
        """A VPC appeared, changed or went. Rewrites its rows if its forwarding domain changed."""
        if fact is not None:
            _check(fact.id == id, f"VPC fact of {fact.id} set as {id}")
            _check(0 < fact.vni <= VNI_MAX, f"not a VNI: {fact.vni}")
        old = self._vpcs.get(id)
        if old == fact:
            return
        touched = {id}
        for each in (old, fact):
            if each is not None:
                touched |= self._vni_holders.get(each.vni, set())
        for vpc in sorted(touched):
            self._retract(vpc)
        moved = False
        if old is None:
            moved |= self._domain_ids.acquire(id.encode())
        elif old.forwarded:
            _discard(self._vni_holders, old.vni, id)
        if fact is None:
            del self._vpcs[id]
            moved |= self._domain_ids.release(id.encode())
        else:
            self._vpcs[id] = fact
            if fact.forwarded:
                self._vni_holders[fact.vni].add(id)
            for site in fact.sites:
                moved |= self._group_ids.acquire(rules.site_group(site))
        for site in old.sites if old is not None else ():
            moved |= self._group_ids.release(rules.site_group(site))
        if moved:
            self._show(touched | self._vpcs.keys())
            self._rebuild()
            return
        self._show(touched)
        for vpc in sorted(touched):
            self._emit_vpc(vpc)

    def set_subnet(self, id: str, fact: SubnetFact | None) -> None:
        """A subnet appeared, changed or went. Of two with one CIDR the lower id is installed."""
        key = None
        if fact is not None:
            _check(fact.id == id, f"subnet fact of {fact.id} set as {id}")
            key = rules.subnet_key(fact, _ANY_DOMAIN)
            addr_of(fact.gateway_ip)
        old = self._subnets.get(id)
        if old == fact:
            return
        moved = False
        if fact is not None:
            group = rules.subnet_group(fact)
            moved |= group is not None and self._group_ids.acquire(group)
            self._subnets[id] = fact
        else:
            del self._subnets[id]
        if old is not None:
            old_key = rules.subnet_key(old, _ANY_DOMAIN)
            _discard_nested(self._subnets_of, old.vpc, old_key, id)
            self._emit_subnet(old.vpc, old_key)
            group = rules.subnet_group(old)
            moved |= group is not None and self._group_ids.release(group)
        if fact is not None and key is not None:
            self._subnets_of[fact.vpc].setdefault(key, set()).add(id)
            self._emit_subnet(fact.vpc, key)
        if moved:
            self._rebuild()

    def set_endpoint(self, vpc: str, ip: str, fact: EndpointFact | None) -> None:
        """The winning claim for an address changed, or there is none any more."""
        addr = addr_of(ip)
        if fact is None:
            self.drop_endpoints(vpc, (addr,))
            return
        _check((fact.vpc, fact.ip) == (vpc, ip), f"endpoint fact of {fact.ip} set as {ip}")
        self.set_endpoints(vpc, fact.site, fact.gateway, {addr: mac_bytes(fact.mac)})

    def set_endpoints(
        self, vpc: str, site: str, gateway: bytes | None, macs: Mapping[bytes, bytes]
    ) -> None:
        """As `set_endpoint` for many addresses of which the same is claimed but for the MAC.

        `macs` is address → MAC (6 bytes); nothing of it is checked.
        """
        name, group, moved = rules.endpoint_group(site, gateway), NO_GROUP, False
        here = rules.claimed_here(site, gateway, self._self_id, self._self_site)
        if not here:
            moved |= self._group_ids.acquire(name)  # also while the rows are written
            self._renumber(moved)
            group = self._group_ids.number(name)
        moved |= self._count(self._endpoint_rows.set_claims(vpc, group, macs))
        if not here:
            moved |= self._group_ids.release(name)
        self._emit_addresses(vpc, macs)
        if moved:
            self._rebuild()

    def drop_endpoints(self, vpc: str, addrs: Collection[bytes]) -> None:
        """As `set_endpoint` with None for many addresses."""
        moved = self._count(self._endpoint_rows.drop_claims(vpc, addrs))
        self._emit_addresses(vpc, addrs)
        if moved:
            self._rebuild()

    def _count(self, rows: Counter[int]) -> bool:
        """Count by how much the rows of each group became more or fewer: those that are led to
        keep their names. Whether a number changed."""
        del rows[NO_GROUP]
        names = [(self._group_ids.name(number), count) for number, count in rows.items()]
        for name, count in names:
            if count > 0:
                self._group_ids.acquire(name, count)  # it is in use: no number changes
        released = [self._group_ids.release(name, -count) for name, count in names if count < 0]
        return any(released)

    def set_attachment(self, ifname: str, fact: AttachmentFact | None) -> None:
        """An interface of this machine was given to an endpoint, or taken from it."""
        if fact is not None:
            _check(fact.ifname == ifname, f"attachment fact of {fact.ifname} set as {ifname}")
            rules.port_row(fact, 0, blocked=False)
        old = self._attachments.get(ifname)
        if old == fact:
            return
        if fact is None:
            del self._attachments[ifname]
        else:
            self._attachments[ifname] = fact
            self._ifnames[fact.vpc].setdefault(addr_of(fact.ip), set()).add(ifname)
        if old is not None:
            if fact is None or (fact.vpc, fact.ip) != (old.vpc, old.ip):
                _discard_nested(self._ifnames, old.vpc, addr_of(old.ip), ifname)
            self._port_rows.set(ifname, None)
            self._emit_address(old.vpc, addr_of(old.ip))
        if fact is not None:
            self._emit_address(fact.vpc, addr_of(fact.ip))

    # ---- results --------------------------------------------------------------------------------

    def take_delta(self, endpoints_max: int | None = None) -> FibDelta:
        """What changed since the last call (or since the beginning); of endpoints no more rows
        than so many, unless they hang together."""
        endpoints, moved = self._endpoint_rows.take(endpoints_max)
        return FibDelta(
            gateways=self._gateway_rows.take(),
            groups=self._group_rows.take(),
            entitled=self._entitled_rows.take(),
            ports=self._port_rows.take(),
            endpoints=endpoints,
            subnets=self._subnet_rows.take(),
            moved=moved,
        )

    def forget_delta(self) -> None:
        """As `take_delta` for whoever takes all rows instead: nothing is sorted for it."""
        self._endpoint_rows.forget()
        self.take_delta()

    def tables(self) -> Tables:
        """All rows, as read-only live mappings: copy what has to outlive the next fact."""
        return Tables(
            gateways=MappingProxyType(self._gateway_rows.rows),
            groups=MappingProxyType(self._group_rows.rows),
            entitled=MappingProxyType(self._entitled_rows.rows),
            ports=MappingProxyType(self._port_rows.rows),
            endpoints=self._endpoint_rows,
            subnets=MappingProxyType(self._subnet_rows.rows),
        )

    def snapshot(self) -> Tables:
        """All rows as they are now, whatever changes after: for another thread."""
        return Tables(
            gateways=dict(self._gateway_rows.rows),
            groups=dict(self._group_rows.rows),
            entitled=dict(self._entitled_rows.rows),
            ports=dict(self._port_rows.rows),
            endpoints=self._endpoint_rows.snapshot(),
            subnets=dict(self._subnet_rows.rows),
        )

    def domain(self, vpc: str) -> int | None:
        """The `vni` in the row keys of a VPC: its VNI, or a private number if it may not use it."""
        fact = self._vpcs.get(vpc)
        if fact is None:
            return None
        return fact.vni if self._forwarded(vpc) else self._domain_ids.number(vpc.encode())

    # ---- rows -----------------------------------------------------------------------------------

    def _forwarded(self, vpc: str) -> bool:
        """Of several VPCs said to be forwarded with one VNI, only the lowest id is believed."""
        fact = self._vpcs[vpc]
        return fact.forwarded and min(self._vni_holders[fact.vni]) == vpc

    def _emit_gateway(self, fact: GatewayFact, *, gone: bool = False) -> None:
        if fact.id == self._self_id:
            return
        number, group_number = self._gateway_ids.number, self._group_ids.number
        name = rules.gateway_group(fact.id)
        gateway, group = None, None
        if not gone:
            gateway = rules.gateway_row(fact, self._self_site, group_number)
            group = rules.group_row(name, gateway.site_group, (fact,), number)
        self._gateway_rows.set(number(fact.id), gateway)
        self._group_rows.set(group_number(name), group)

    def _emit_site_group(self, site: str) -> None:
        if site == self._self_site:
            return
        name = rules.site_group(site)
        members = [self._gateways[id] for id in sorted(self._gateways_at.get(site, ()))]
        number = self._group_ids.number(name)
        row = rules.group_row(name, number, members, self._gateway_ids.number)
        self._group_rows.set(number, row)

    def _emit_subnet(self, vpc: str, key: SubnetKey) -> None:
        domain = self.domain(vpc)
        if domain is None:
            return
        ids = self._subnets_of.get(vpc, {}).get(
            SubnetKey(_ANY_DOMAIN, key.network, key.prefix_bits)
        )
        key = SubnetKey(domain, key.network, key.prefix_bits)
        if not ids:
            self._subnet_rows.set(key, None)
            return
        fact = self._subnets[min(ids)]
        row = rules.subnet_row(
            fact,
            self._self_site,
            forwarded=self._forwarded(vpc),
            number=self._group_ids.number,
        )
        self._subnet_rows.set(key, row)

    def _emit_address(self, vpc: str, addr: Addr) -> None:
        """The port rows of the interfaces that lead to an address, and its row if it is here."""
        ifnames = sorted(self._ifnames.get(vpc, {}).get(addr, ()))
        claim = self._endpoint_rows.claimed(vpc, addr)
        here = claim is not None and group_of(claim) == NO_GROUP
        row = None
        if ifnames and here:
            attachment = self._attachments[ifnames[0]]
            row = rules.local_row(attachment).pack()
        self._endpoint_rows.set_local(vpc, addr, row)
        domain = self.domain(vpc)
        if domain is None:
            return
        for ifname in ifnames:
            blocked = ifname != ifnames[0] or not here
            fact = self._attachments[ifname]
            self._port_rows.set(ifname, rules.port_row(fact, domain, blocked=blocked))

    def _emit_addresses(self, vpc: str, addrs: Iterable[bytes]) -> None:
        """As `_emit_address` for those of the addresses that interfaces lead to."""
        ifnames = self._ifnames.get(vpc)
        if ifnames:
            for addr in sorted(ifnames.keys() & set(addrs)):
                self._emit_address(vpc, addr)

    def _show(self, vpcs: Iterable[str]) -> None:
        """Show endpoint rows under the domains that these VPCs have now."""
        self._endpoint_rows.show(
            {
                vpc: (self.domain(vpc), vpc in self._vpcs and self._forwarded(vpc))
                for vpc in sorted(vpcs)
            }
        )

    def _emit_vpc(self, vpc: str) -> None:
        for entitled, row in self._entitled(vpc).items():
            self._entitled_rows.set(entitled, row)
        for key in sorted(self._subnets_of.get(vpc, ())):
            self._emit_subnet(vpc, key)
        for addr in sorted(self._ifnames.get(vpc, ())):
            self._emit_address(vpc, addr)

    def _retract(self, vpc: str) -> None:
        """Take out a VPC's rows but its endpoints', under the domain that it has now."""
        domain = self.domain(vpc)
        if domain is None:
            return
        for entitled in self._entitled(vpc):
            self._entitled_rows.set(entitled, None)
        for key in self._subnets_of.get(vpc, ()):
            self._subnet_rows.set(key._replace(vni=domain), None)
        for ifnames in self._ifnames.get(vpc, {}).values():
            for ifname in ifnames:
                self._port_rows.set(ifname, None)

    def _entitled(self, vpc: str) -> dict[EntitledKey, EntitledRow]:
        fact = self._vpcs.get(vpc)
        if fact is None:
            return {}
        number = self._group_ids.number
        return rules.entitled_rows(fact, forwarded=self._forwarded(vpc), number=number)

    def _renumber(self, moved: bool) -> None:
        """Have endpoint rows lead to the groups' present numbers."""
        if moved:
            self._endpoint_rows.renumber(self._group_ids.take_moves())

    def _rebuild(self) -> None:
        """Write everything anew. Only when two names collided in one number: about never."""
        self._renumber(True)
        self._gateway_rows.clear()
        self._group_rows.clear()
        self._entitled_rows.clear()
        self._port_rows.clear()
        self._subnet_rows.clear()
        for id in sorted(self._gateways):
            self._emit_gateway(self._gateways[id])
        for site in sorted(self._gateways_at):
            self._emit_site_group(site)
        for vpc in sorted(self._vpcs):
            self._emit_vpc(vpc)


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _discard(index: defaultdict[K, set[V]], key: K, member: V) -> None:
    """Take a member out of an indexed set, and the set with its last member."""
    index[key].discard(member)
    if not index[key]:
        del index[key]


def _discard_nested(index: defaultdict[str, dict[K, set[V]]], vpc: str, key: K, member: V) -> None:
    members = index[vpc][key]
    members.discard(member)
    if not members:
        del index[vpc][key]
    if not index[vpc]:
        del index[vpc]


def compile_all(facts: Facts, *, id_max: int = rules.ID_MAX) -> Tables:
    """All tables at once, straight from the rules. The facts' keys have to be distinct."""
    domains, forwarded = _domains(facts.vpcs, id_max)
    gateway_ids = assign((fact.id for fact in facts.gateways), 1, id_max)
    group_ids = assign(_group_names(facts), 1, id_max)
    gateways, groups = _gateway_tables(facts, gateway_ids, group_ids)

    entitled: dict[EntitledKey, EntitledRow] = {}
    for vpc in facts.vpcs:
        entitled |= rules.entitled_rows(
            vpc, forwarded=vpc.id in forwarded, number=group_ids.__getitem__
        )
    subnets: dict[SubnetKey, SubnetRow] = {}
    for subnet in sorted(facts.subnets, key=lambda fact: fact.id, reverse=True):
        if subnet.vpc in domains:
            subnets[rules.subnet_key(subnet, domains[subnet.vpc])] = rules.subnet_row(
                subnet,
                facts.self_site,
                forwarded=subnet.vpc in forwarded,
                number=group_ids.__getitem__,
            )

    claims = {(fact.vpc, address_of(fact.ip)): fact for fact in facts.endpoints}
    attached: dict[tuple[str, int], AttachmentFact] = {}
    for attachment in sorted(facts.attachments, key=lambda fact: fact.ifname, reverse=True):
        attached[attachment.vpc, address_of(attachment.ip)] = attachment
    endpoints: dict[PackedKey, PackedRow] = {}
    ports: dict[str, PortRow] = {}
    here = {address for address, claim in claims.items() if _is_here(claim, facts)}
    for address in claims.keys() | attached.keys():
        owner, ip = address
        if owner not in domains:
            continue
        row = rules.endpoint_row(
            claims.get(address),
            attached.get(address),
            here=address in here,
            forwarded=owner in forwarded,
            number=group_ids.__getitem__,
        )
        if row is not None:
            endpoints[EndpointKey(domains[owner], ip).pack()] = row.pack()
    for attachment in facts.attachments:
        if attachment.vpc in domains:
            address = (attachment.vpc, address_of(attachment.ip))
            ports[attachment.ifname] = rules.port_row(
                attachment,
                domains[attachment.vpc],
                blocked=address not in here or attached[address] != attachment,
            )
    return Tables(gateways, groups, entitled, ports, endpoints, subnets)


def _domains(vpcs: Iterable[VpcFact], id_max: int) -> tuple[dict[str, int], set[str]]:
    """Each VPC's forwarding domain, and the VPCs that are carried between sites."""
    holders: dict[int, str] = {}
    for fact in vpcs:
        if fact.forwarded:
            holders[fact.vni] = min(fact.id, holders.get(fact.vni, fact.id))
    forwarded = set(holders.values())
    high = min(rules.ID_MAX, rules.PRIVATE_DOMAIN_MIN + id_max)
    private = assign((fact.id.encode() for fact in vpcs), rules.PRIVATE_DOMAIN_MIN, high)
    domains = {
        fact.id: fact.vni if fact.id in forwarded else private[fact.id.encode()] for fact in vpcs
    }
    return domains, forwarded


def _group_names(facts: Facts) -> set[bytes]:
    """The names of all groups that a row may point to, or a gateway makes up."""
    elsewhere = (fact for fact in facts.endpoints if not _is_here(fact, facts))
    names = {rules.endpoint_group(fact.site, fact.gateway) for fact in elsewhere}
    names |= {name for fact in facts.subnets if (name := rules.subnet_group(fact)) is not None}
    names |= {rules.site_group(site) for fact in facts.vpcs for site in fact.sites}
    for fact in facts.gateways:
        names |= {rules.site_group(fact.site), rules.gateway_group(fact.id)}
    return names


def _is_here(claim: EndpointFact, facts: Facts) -> bool:
    return rules.claimed_here(claim.site, claim.gateway, facts.self_id, facts.self_site)


def _gateway_tables(
    facts: Facts, gateway_ids: Mapping[bytes, int], group_ids: Mapping[bytes, int]
) -> tuple[dict[int, GatewayRow], dict[int, GroupRow]]:
    """The peers of this machine and the groups that they form."""
    gateways: dict[int, GatewayRow] = {}
    members: defaultdict[bytes, list[GatewayFact]] = defaultdict(list)
    for fact in facts.gateways:
        if fact.id != facts.self_id:
            row = rules.gateway_row(fact, facts.self_site, group_ids.__getitem__)
            gateways[gateway_ids[fact.id]] = row
            members[rules.gateway_group(fact.id)].append(fact)
        if fact.site != facts.self_site:
            members[rules.site_group(fact.site)].append(fact)
    groups: dict[int, GroupRow] = {}
    for name, those in members.items():
        site = group_ids[rules.site_group(those[0].site)]
        group = rules.group_row(name, site, those, gateway_ids.__getitem__)
        if group is not None:
            groups[group_ids[name]] = group
    return gateways, groups
