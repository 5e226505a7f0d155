"""From the view to rows: who is reached how, and that updates add up to a fresh compilation."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.fib.compile import compile_all
from dataplane.fib.facts import (
    AttachmentFact,
    EndpointFact,
    Facts,
    GatewayFact,
    SubnetFact,
    VpcFact,
)
from dataplane.fib.rows import (
    NO_GROUP,
    EndpointKey,
    EndpointRow,
    SubnetKey,
    Tables,
    address_of,
    apply_delta,
)
from mesh.core import keys, model
from mesh.core.forwarding import Forwarding
from mesh.core.ops import NodeId
from tests.mesh.core import view_records as laws
from tests.mesh.core.core_world import SECOND_NS, World, node_id
from tests.mesh.core.view_feed import Change, FedView

IP = "10.0.200.5"
MAC = "02:00:00:00:00:05"


class Gateways:
    """A forwarding for each node of a world; rows are what the deltas have added up to."""

    def __init__(self, *names: str) -> None:
        self.world = World(*names)
        self.forwardings = {
            name: Forwarding(node_id(name), name[0], self.world.views[name]) for name in names
        }
        for i, name in enumerate(names):
            self.world.do(name, "register_gateway", f"192.0.2.{i + 1}", [], "1")
        self.red = self.world.red()
        self._rows = {name: Tables() for name in names}

    def rows(self, name: str) -> Tables:
        forwarding = self.forwardings[name]
        forwarding.update()
        assert not forwarding.update()
        self._rows[name] = apply_delta(self._rows[name], forwarding.take_delta())
        tables = forwarding.tables()
        for table in ("gateways", "groups", "ports", "endpoints", "subnets"):
            assert dict(getattr(self._rows[name], table)) == dict(getattr(tables, table))
        return self._rows[name]

    def row(self, name: str, ip: str = IP, vni: int = 7) -> EndpointRow | None:
        row = self.rows(name).endpoints.get(EndpointKey(vni, address_of(ip)).pack())
        return None if row is None else EndpointRow.unpack(row)

    def group(self, name: str, ip: str = IP) -> tuple[str, set[str]] | None:
        """The group that leads to an address and the names of its gateways."""
        row, rows = self.row(name, ip), self.rows(name)
        if row is None or row.group == NO_GROUP:
            return None
        group = rows.groups[row.group]
        members = self.world.members
        return group.name, {members[rows.gateways[g].node].name for g in group.gateways}


def test_an_attached_endpoint_is_reached_at_its_gateway_and_one_behind_a_host_at_its_site() -> None:
    it = Gateways("a1", "b1", "b2")
    it.world.everywhere("b1", "add_endpoint", "red", IP, MAC)
    it.world.everywhere("b1", "add_endpoint", "red", "10.0.2.6", host="192.0.2.77")
    assert it.group("a1") == (f"gateway/{node_id('b1').hex()}", {"b1"})
    assert it.group("a1", "10.0.2.6") == ("site/b", {"b1", "b2"})
    it.forwardings["b1"].attach("p5", it.red, IP, MAC)
    row = it.row("b1")
    assert row is not None and row.ifname == "p5" and not it.rows("b1").ports["p5"].blocked


def test_a_site_that_is_not_reached_keeps_its_rows_and_a_gateway_that_is_up_is_preferred() -> None:
    it = Gateways("a1", "b1", "b2")
    it.world.everywhere("b1", "add_endpoint", "red", IP, host="192.0.2.77")
    forwarding = it.forwardings["a1"]
    forwarding.update()
    forwarding.set_live(node_id("b1"), True)
    assert not forwarding.update()
    forwarding.set_live(node_id("b1"), False)
    assert forwarding.update()
    forwarding.set_live(node_id("b1"), False)
    assert not forwarding.update()
    assert it.group("a1") == ("site/b", {"b2"})
    forwarding.set_live(node_id("b2"), False)
    assert it.group("a1") == ("site/b", {"b1", "b2"})
    forwarding.set_live(node_id("b1"), True)
    forwarding.set_live(node_id("b1"), True)
    assert it.group("a1") == ("site/b", {"b1"})


def test_the_losers_port_is_blocked_until_it_wins() -> None:
    it = Gateways("a1", "b1")
    for name in ("a1", "b1"):
        it.world.do(name, "add_endpoint", "red", IP, MAC)
        it.forwardings[name].attach("p5", it.red, IP, MAC)
        it.world.now_ns += SECOND_NS
    assert not it.rows("b1").ports["p5"].blocked  # it knows of nobody else
    it.world.sync()
    assert it.rows("b1").ports["p5"].blocked and not it.rows("a1").ports["p5"].blocked
    assert it.group("b1") == (f"gateway/{node_id('a1').hex()}", {"a1"})
    it.world.everywhere("b1", "move_endpoint", "red", IP)
    assert it.rows("a1").ports["p5"].blocked and not it.rows("b1").ports["p5"].blocked


def test_a_second_writer_of_the_winning_claim_has_the_endpoint_too() -> None:
    it = Gateways("a1", "a2", "b1")
    for name in ("a1", "a2"):
        it.world.everywhere(name, "add_endpoint", "red", IP, MAC)
        it.forwardings[name].attach("p5", it.red, IP, MAC)
    for name in ("a1", "a2"):
        row = it.row(name)
        assert row is not None and row.ifname == "p5" and not it.rows(name).ports["p5"].blocked


def test_of_several_writers_elsewhere_the_best_that_is_reached_is_the_next_hop() -> None:
    it = Gateways("a1", "b1", "b2", "b3")
    for name in ("b1", "b2"):
        it.world.everywhere(name, "add_endpoint", "red", IP, MAC)
    forwarding = it.forwardings["a1"]

    def next_hop(name: str = "a1") -> str:
        found = it.group(name)
        assert found is not None
        (gateway,) = found[1]
        return gateway

    assert next_hop() == "b1"
    assert next_hop("b3") == "b1"  # of their site, and none of them
    it.forwardings["b3"].set_live(node_id("b1"), False)
    assert next_hop("b3") == "b2"
    for down, expected in (("b1", "b2"), ("b2", "b1")):  # with none up, the best
        forwarding.set_live(node_id(down), False)
        assert next_hop() == expected
    forwarding.set_live(node_id("b2"), True)
    assert next_hop() == "b2"
    forwarding.set_live(node_id("b1"), True)
    assert next_hop() == "b1"
    it.world.change_member("b1", state="retired")
    assert next_hop() == "b2"
    forwarding.set_live(node_id("b2"), False)
    assert next_hop() == "b2"  # not reached, but not retired either
    forwarding.set_live(node_id("b2"), True)
    it.world.everywhere("b3", "add_endpoint", "red", IP, MAC)
    it.world.everywhere("b2", "register_gateway", "", [], "1")  # it carries nothing any more
    assert next_hop() == "b3"
    it.world.everywhere("b2", "register_gateway", "192.0.2.3", [], "1")
    it.world.everywhere("b3", "move_endpoint", "red", IP)
    forwarding.set_live(node_id("b3"), False)
    assert next_hop() == "b3"


def test_a_co_writer_that_says_something_else_is_no_next_hop() -> None:
    it = Gateways("a1", "b1", "b2")
    it.world.do("b1", "add_endpoint", "red", IP, MAC)
    it.world.now_ns += SECOND_NS
    it.world.do("b2", "add_endpoint", "red", IP, "02:00:00:00:00:06")
    it.world.sync()
    it.forwardings["a1"].set_live(node_id("b1"), False)
    assert it.group("a1") == (f"gateway/{node_id('b1').hex()}", {"b1"})


def test_nothing_is_sent_to_a_retired_gateway_and_its_site_takes_over() -> None:
    it = Gateways("a1", "b1", "b2")
    it.world.everywhere("b1", "add_endpoint", "red", IP, MAC)
    it.world.everywhere("b1", "add_endpoint", "red", "10.0.2.6", host="192.0.2.77")
    it.world.change_member("b1", state="retired")
    for name in ("a1", "b2"):
        rows = it.rows(name)
        assert node_id("b1") not in {row.node for row in rows.gateways.values()}
        row = it.row(name)
        assert row is not None and row.group not in rows.groups  # no gateway leads to it: dropped
    assert it.group("a1", "10.0.2.6") == ("site/b", {"b2"})
    it.world.everywhere("b2", "add_endpoint", "red", IP, MAC)
    assert it.group("a1") == (f"gateway/{node_id('b2').hex()}", {"b2"})


def test_an_endpoint_without_a_claim_is_not_carried_where_it_is_attached_either() -> None:
    it = Gateways("a1", "b1")
    it.forwardings["b1"].attach("p5", it.red, IP, MAC)  # before it is claimed
    assert it.row("b1") is None and it.rows("b1").ports["p5"].blocked
    it.world.everywhere("b1", "add_endpoint", "red", IP, MAC)
    assert it.row("b1") is not None and not it.rows("b1").ports["p5"].blocked
    it.world.everywhere("a1", "remove_endpoint", "red", IP)
    assert it.row("a1") is None and it.row("b1") is None
    assert it.rows("b1").ports["p5"].blocked  # not gone: the host would carry what it sends
    it.world.everywhere("b1", "add_endpoint", "red", IP, MAC)
    row = it.row("b1")
    assert row is not None and row.ifname == "p5" and not it.rows("b1").ports["p5"].blocked


def test_attachments_come_change_and_go() -> None:
    it = Gateways("a1", "b1")
    forwarding = it.forwardings["a1"]
    for ip in (IP, "10.0.200.6"):
        it.world.everywhere("a1", "add_endpoint", "red", ip, MAC)
    forwarding.attach("p5", it.red, IP, MAC)
    assert forwarding.update()
    forwarding.attach("p5", it.red, "10.0.200.6", MAC)
    assert it.rows("a1").ports["p5"].ip == address_of("10.0.200.6")
    with pytest.raises(ValueError, match="does not appear to be"):
        forwarding.attach("p5", it.red, "10.0.200", MAC)
    with pytest.raises(ValueError, match="02:00"):
        forwarding.attach("p5", it.red, IP, "02:00")
    assert it.rows("a1").ports["p5"].ip == address_of("10.0.200.6")
    forwarding.attach("p6", it.red, "10.0.200.6", MAC)
    forwarding.detach("p6")
    forwarding.detach("p5")
    forwarding.detach("p5")
    assert it.rows("a1").ports == {}


def test_the_vpc_that_lost_its_vni_has_rows_for_what_is_attached_here_only() -> None:
    it = Gateways("a1", "b1")
    it.world.everywhere("a1", "add_endpoint", "red", IP, MAC)
    it.forwardings["a1"].attach("p5", it.red, IP, MAC)
    assert it.forwardings["a1"].domain(it.red) is None
    it.rows("a1")
    assert it.forwardings["a1"].domain(it.red) == 7
    view = it.world.views["a1"]
    b1 = node_id("b1")
    # earlier by its stamp, though its id is the greater
    nonce = next(n for i in range(64) if model.vpc_id(b1, n := bytes([i]) * 16) > it.red)
    key = keys.pack(keys.VpcKey(model.vpc_id(b1, nonce)))
    record = model.VpcRecord(1, 1, False, b1, nonce, "blue", 7, ("10.0.0.0/16",), since=1)
    view.apply([Change(b1, "mesh", key, model.encode(record))])
    assert view.vpcs[it.red].state == "vni-conflict"
    assert it.row("a1") is None
    domain = it.forwardings["a1"].domain(it.red)
    assert domain is not None and domain > 0xFFFFFF
    assert it.row("a1", vni=domain) is not None


def test_a_subnet_that_lost_against_another_has_no_row() -> None:
    it = Gateways("a1", "a2", "b1")
    it.world.do("a1", "add_subnet", "first", "red", "10.0.8.0/23")
    it.world.now_ns += SECOND_NS
    it.world.do("a2", "add_subnet", "second", "red", "10.0.9.0/24")
    assert len(it.rows("a2").subnets) == 4
    it.world.sync()
    lengths = {key.prefix_bits for key in it.rows("a2").subnets}
    assert lengths == {96 + 23, 96 + 24} and len(it.rows("a2").subnets) == 4
    assert it.rows("a2").subnets == it.rows("a1").subnets


def test_a_removed_subnet_vpc_or_gateway_takes_its_rows_along() -> None:
    it = Gateways("a1", "b1")
    it.world.everywhere("b1", "add_endpoint", "red", "10.0.2.5", MAC)
    assert len(it.rows("a1").subnets) == 3 and len(it.rows("a1").gateways) == 1
    it.world.everywhere("a1", "remove_subnet", "s-a", "red")
    assert len(it.rows("a1").subnets) == 2
    it.world.change_member("b1", state="retired")
    assert it.rows("a1").gateways == {}
    it.world.everywhere("a1", "remove_vpc", "red", force=True)
    assert it.rows("a1").subnets == {} and it.rows("a1").endpoints == {}


def test_a_gateway_without_an_underlay_carries_no_traffic() -> None:
    it = Gateways("a1", "b1")
    assert len(it.rows("a1").gateways) == 1
    it.world.everywhere("b1", "register_gateway", "", [], "1")
    assert it.rows("a1").gateways == {}


@settings(max_examples=80)
@given(laws.steps, st.integers(0, 3))
def test_updates_add_up_to_a_fresh_compilation(played: list[Any], self_index: int) -> None:
    node = laws.NODES[self_index]
    site = laws.FULL[node].site
    view = FedView()
    forwarding = Forwarding(node, site, view)
    rows = Tables()
    for i, ip in enumerate(("10.0.1.5", "10.0.1.6")):
        forwarding.attach(f"p{i}", laws.VPC_IDS[i], ip, MAC)
    for i, step in enumerate([laws.FULL, *played]):
        laws.play(view, [step])
        forwarding.set_live(laws.NODES[i % 4], i % 3 == 0)
        forwarding.update(2)
        rows = apply_delta(rows, forwarding.take_delta())
    while forwarding.behind:
        forwarding.update(2)
        rows = apply_delta(rows, forwarding.take_delta())
    fresh = Forwarding(node, site, view)
    for i, ip in enumerate(("10.0.1.5", "10.0.1.6")):
        fresh.attach(f"p{i}", laws.VPC_IDS[i], ip, MAC)
    for i in range(len(played) + 1):
        fresh.set_live(laws.NODES[i % 4], i % 3 == 0)
    fresh.update()
    assert rows == Tables(**{f: dict(getattr(fresh.tables(), f)) for f in Tables.__match_args__})
    assert rows == compile_all(facts_of(view, node, site, forwarding._down))


def facts_of(view: FedView, node: NodeId, site: str, down: set[NodeId]) -> Facts:
    """What the compiler should have been told, read from the whole view claim by claim."""
    endpoints = []
    reached = {g.node: g for g in view.gateways.values() if g.underlay}
    own_vxlan = node in view.gateways and view.gateways[node].encapsulation == "vxlan"
    for vpc, ip in {(claim.vpc, claim.ip) for claim in view.endpoints()}:
        claims = [claim for claim in view.claims(vpc, ip) if claim.state == "active"]
        best, gateway = claims[0], None
        if best.host is None:
            alike = [c.node for c in claims if (c.mac, c.host) == (best.mac, None)]
            carrying = [n for n in alike if n in reached]
            ordered = [n for n in carrying if n not in down] or carrying or alike
            gateway = node if node in [c.node for c in claims] else ordered[0]
        endpoints.append(EndpointFact(vpc, ip, best.site, gateway, best.mac))
    return Facts(
        node,
        site,
        tuple(
            GatewayFact(
                g.node,
                g.site,
                g.underlay,
                g.node not in down,
                own_vxlan or g.encapsulation == "vxlan",
            )
            for g in reached.values()
        ),
        tuple(VpcFact(v.id, v.vni, v.state == "active", v.sites) for v in view.vpcs.values()),
        tuple(
            SubnetFact(s.id, s.vpc, s.cidr, s.sites, s.gateway)
            for s in view.subnets()
            if s.state == "active"
        ),
        tuple(endpoints),
        tuple(
            AttachmentFact(laws.VPC_IDS[i], ip, MAC, f"p{i}")
            for i, ip in enumerate(("10.0.1.5", "10.0.1.6"))
        ),
    )


def test_what_a_restricted_subnet_does_not_admit_has_no_row() -> None:
    it = Gateways("a1", "b1")
    it.world.everywhere("a1", "add_subnet", "own", "red", "10.0.9.0/24", ["a"], True)
    claim = model.encode(model.Claim(0, 1 << 40, MAC))
    for view in it.world.views.values():
        for ip in ("10.0.9.5", "10.0.2.5"):
            key = keys.ENDPOINT + keys.addr_of(ip)
            view.apply([Change(node_id("b1"), it.red, key, claim)])
    assert it.row("a1", "10.0.9.5") is None and it.row("a1", "10.0.2.5") is not None


def test_many_endpoints_are_taken_up_a_few_at_a_time() -> None:
    world = World("a1", "b1")
    world.red()
    forwarding = Forwarding(node_id("a1"), "a", world.views["a1"])
    for end in range(2, 12):
        world.do("b1", "add_endpoint", "red", f"10.0.2.{end}")
    world.sync()
    counts = []
    while forwarding.update(4):
        counts.append(len(forwarding.take_delta().endpoints.put))
    assert counts == [4, 4, 2] and not forwarding.behind


def founded() -> tuple[FedView, Forwarding]:
    """The laws' mesh as it is founded, and the rows of its first node at site a."""
    view = FedView()
    view.set_members(laws.FULL)
    view.apply(laws.founding())
    forwarding = Forwarding(laws.NODES[0], "a", view)
    forwarding.update()
    return view, forwarding


def test_ipv6_has_rows_inside_and_outside() -> None:
    view, forwarding = founded()
    tables = forwarding.tables()
    before = dict(tables.endpoints), dict(tables.subnets)
    creator, _ = laws.VPCS[0]
    vpc, v6 = laws.VPC_IDS[0], laws.ADDRS[-1]
    subnet = model.SubnetRecord(
        1, 1, False, creator, laws.NONCES[1], "six", "fd00::/64", ("a",), since=2
    )
    key = keys.SubnetKey(vpc, model.subnet_id(vpc, creator, laws.NONCES[1]))
    claim = model.Claim(0, 1, MAC)
    registration = model.Registration(1, "2001:db8::1", (), "1")
    view.apply(
        [
            Change(creator, "mesh", keys.pack(key), model.encode(subnet)),
            Change(creator, vpc, keys.pack(keys.EndpointKey(v6)), model.encode(claim)),
            Change(
                laws.NODES[2],
                "mesh",
                keys.pack(keys.GatewayKey(laws.NODES[2])),
                model.encode(registration),
            ),
        ]
    )
    assert view.winner(vpc, "fd00::5") is not None
    forwarding.update()
    domain = forwarding.domain(vpc)
    assert domain is not None
    assert [row.underlay for row in tables.gateways.values()] == [address_of("2001:db8::1")]
    endpoints = dict(tables.endpoints)
    row = EndpointRow.unpack(endpoints.pop(EndpointKey(domain, address_of("fd00::5")).pack()))
    assert (row.mac.hex(":"), endpoints) == (MAC, before[0])
    subnets = dict(tables.subnets)
    assert subnets.pop(SubnetKey(domain, address_of("fd00::"), 64)).gateway_ip == address_of(
        "fd00::1"
    )
    assert subnets == before[1]
    view.apply([Change(creator, vpc, keys.pack(keys.EndpointKey(v6)), None)])
    forwarding.update()
    assert tables.endpoints == before[0]


def registered(node: bytes, underlay: str, encapsulation: str = "geneve") -> Change:
    record = model.encode(model.Registration(1, underlay, (), "1", encapsulation))
    return Change(node, "mesh", keys.pack(keys.GatewayKey(node)), record)


def test_gateways_of_the_other_family_are_told_apart() -> None:
    view, forwarding = founded()
    own, *others = laws.NODES
    view.apply([registered(others[0], "2001:db8::1"), registered(others[1], "192.0.2.9")])
    assert forwarding.apart() == [], "this node carries nothing"
    view.apply([registered(own, "192.0.2.1")])
    assert forwarding.apart() == [others[0]]
    view.apply([registered(own, "2001:db8::2")])
    assert forwarding.apart() == [others[1]]
    view.apply([registered(own, "")])
    assert forwarding.apart() == []


def test_two_gateways_send_vxlan_where_either_says_so() -> None:
    view, forwarding = founded()
    own, plain, vxlan = laws.NODES[:3]

    def told(made_of: str) -> dict[bytes, bool]:
        view.apply([registered(own, "192.0.2.1", made_of)])
        forwarding.update()
        rows = forwarding.tables().gateways.values()
        return {row.node: row.vxlan for row in rows if row.node != own}

    view.apply([registered(plain, "192.0.2.2"), registered(vxlan, "192.0.2.3", "vxlan")])
    assert told("geneve") == {plain: False, vxlan: True}
    assert told("vxlan") == {plain: True, vxlan: True}
    assert told("geneve") == {plain: False, vxlan: True}
    view.apply([registered(plain, "192.0.2.2", "of a later version")])
    assert told("geneve") == {vxlan: True}, "this version cannot send it"


@pytest.mark.parametrize("underlay", ["fe80::1", "ff02::1", "::", "0.0.0.0", "224.0.0.1"])
def test_a_gateway_that_says_what_is_no_machine_s_address_has_no_row(underlay: str) -> None:
    view, forwarding = founded()
    view.apply([registered(laws.NODES[2], underlay)])
    forwarding.update()
    assert forwarding.tables().gateways == {}


def test_ipv4_in_the_form_of_ipv6_has_no_row() -> None:
    """No node of ours takes it from people, but any may have written it."""
    view, forwarding = founded()
    tables = forwarding.tables()
    before = dict(tables.endpoints), dict(tables.subnets)
    creator, _ = laws.VPCS[0]
    vpc = laws.VPC_IDS[0]
    for cidr in ("::/0", "::ffff:0:0/96", "::ffff:a00:0/112"):
        subnet = model.SubnetRecord(
            1, 1, False, creator, laws.NONCES[1], "s", cidr, ("a",), since=2
        )
        id = model.subnet_id(vpc, creator, laws.NONCES[1])
        raw = model.encode(subnet)
        mapped = keys.EndpointKey(bytes(10) + bytes.fromhex("ffff 0a000105"))
        claim = model.Claim(0, 1, MAC)
        view.apply([Change(creator, "mesh", keys.pack(keys.SubnetKey(vpc, id)), raw)])
        view.apply([Change(creator, vpc, keys.pack(mapped), model.encode(claim))])
        forwarding.update()
        assert (dict(tables.endpoints), dict(tables.subnets)) == before, cidr
