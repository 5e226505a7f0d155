"""The view's rules one by one, as people meet them."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from mesh.core import keys, model
from mesh.core.errors import NotFound
from mesh.core.ops import MESH_SHARD
from mesh.core.view import View, claims
from mesh.core.view.view import UNREAD_MAX
from tests.mesh.core.core_world import SECOND_NS, World, node_id, shape
from tests.mesh.core.view_feed import Change, FedView


def both_claim(world: World) -> str:
    """Sites a and b claim one address without knowing of each other, a first."""
    red = world.red()
    world.do("a1", "add_endpoint", "red", "10.0.200.5")
    world.now_ns += SECOND_NS
    world.do("b1", "add_endpoint", "red", "10.0.200.5")
    world.sync()
    return red


# --- claims ----------------------------------------------------------------------------------


def test_one_claim_is_the_endpoint() -> None:
    world = World("a1", "b1")
    red = world.red()
    world.everywhere("b1", "add_endpoint", "red", "10.0.1.5", name="web")
    view = world.view()
    endpoint = view.winner(red, "10.0.1.5")
    assert endpoint is not None
    assert (endpoint.site, endpoint.name, endpoint.state) == ("b", "web", "active")
    assert endpoint.rule == claims.RULE_ONLY and endpoint.mobility == 0
    assert list(view.endpoints()) == list(view.endpoints(red)) == [endpoint]
    assert list(view.endpoints(site="b")) == [endpoint]
    assert list(view.endpoints(site="a")) == list(view.endpoints("00" * 16)) == []
    assert view.winner(red, "10.0.1.6") is None and view.conflicts() == []


def test_claims_of_two_sites_are_a_conflict_that_the_earlier_wins() -> None:
    world = World("a1", "b1", "c1")
    red = both_claim(world)
    view = world.view()
    assert shape(view.claims(red, "10.0.200.5"), view) == [
        ("a1", "active", claims.RULE_HLC),
        ("b1", "conflict", claims.LOST_HLC),
    ]
    (conflict,) = view.conflicts()
    assert conflict.key == "endpoint/red/10.0.200.5" and conflict.kind == "endpoint"
    assert (conflict.claimants, conflict.winner) == (("a1", "b1"), "a1")
    assert conflict.rule == claims.RULE_HLC
    loser = view.claims(red, "10.0.200.5")[1]
    assert conflict.since_hlc == loser.hlc


def test_equal_stamps_are_decided_by_hash() -> None:
    world = World("a1", "b1")
    red = world.red()
    for name in ("a1", "b1"):
        world.writers[name]._author.clock.last = 0
        world.do(name, "add_endpoint", "red", "10.0.200.5")
    world.sync()
    found = world.view().claims(red, "10.0.200.5")
    assert found[0].hlc == found[1].hlc
    assert [claim.rule for claim in found] == [claims.RULE_HASH, claims.LOST_HASH]
    assert world.view().conflicts()[0].rule == claims.RULE_HASH


def test_gateways_of_one_site_with_equal_mobility_are_one_claim() -> None:
    world = World("a1", "a2", "b1")
    red = world.red()
    world.everywhere("a1", "add_endpoint", "red", "10.0.200.5")
    world.everywhere("a2", "add_endpoint", "red", "10.0.200.5")
    view = world.view()
    assert shape(view.claims(red, "10.0.200.5"), view) == [
        ("a1", "active", claims.RULE_ONLY),
        ("a2", "active", claims.RULE_SITE),
    ]
    assert view.conflicts() == []


def test_a_move_outranks_and_its_end_brings_the_former_claim_back() -> None:
    world = World("a1", "b1")
    red = world.red("a1")
    world.everywhere("b1", "add_endpoint", "red", "10.0.200.5")
    world.everywhere("a1", "move_endpoint", "red", "10.0.200.5")
    view = world.view()
    assert shape(view.claims(red, "10.0.200.5"), view) == [
        ("a1", "active", claims.RULE_MOBILITY),
        ("b1", "shadowed", claims.LOST_MOBILITY),
    ]
    assert view.conflicts() == []
    key = keys.pack(keys.EndpointKey(keys.addr_of("10.0.200.5")))
    view.apply([Change(node_id("a1"), red, key, None)])
    assert shape(view.claims(red, "10.0.200.5"), view) == [("b1", "active", claims.RULE_ONLY)]


def test_an_eviction_hides_claims_up_to_its_mobility() -> None:
    world = World("a1", "b1")
    red = both_claim(world)
    world.everywhere("a1", "resolve_conflict", "endpoint/red/10.0.200.5", "b1")
    view = world.view()
    assert shape(view.claims(red, "10.0.200.5"), view) == [("b1", "active", claims.RULE_ONLY)]
    assert view.conflicts() == []
    world.everywhere("b1", "remove_endpoint", "red", "10.0.200.5")
    world.everywhere("a1", "add_endpoint", "red", "10.0.200.5")
    endpoint = world.view().winner(red, "10.0.200.5")
    assert endpoint is not None and (endpoint.site, endpoint.mobility) == ("a", 1)


def test_an_eviction_by_a_stranger_hides_nothing() -> None:
    world = World("a1", "b1")
    red = both_claim(world)
    addr = keys.addr_of("10.0.200.5")
    key = keys.pack(keys.EvictionKey(red, node_id("a1"), addr))
    record = model.encode(model.Eviction(9, 1))
    world.views["a1"].apply([Change(node_id("b1"), MESH_SHARD, key, record)])
    assert len(world.views["a1"].claims(red, "10.0.200.5")) == 2
    world.change_member("b1", admin=True)
    assert len(world.views["a1"].claims(red, "10.0.200.5")) == 1
    world.views["a1"].apply([Change(node_id("b1"), MESH_SHARD, key, None)])
    assert len(world.views["a1"].claims(red, "10.0.200.5")) == 2


def test_an_eviction_by_a_gateway_of_its_site_hides_what_a_retired_one_claims() -> None:
    world = World("a1", "b1", "b2", "c1")
    red = both_claim(world)
    key = keys.pack(keys.EvictionKey(red, node_id("b1"), keys.addr_of("10.0.200.5")))
    record = model.encode(model.Eviction(9, 1))
    view = world.views["a1"]
    for name in ("b2", "c1"):
        view.apply([Change(node_id(name), MESH_SHARD, key, record)])
    assert len(view.claims(red, "10.0.200.5")) == 2
    world.change_member("b1", state="retired")
    assert [claim.site for claim in view.claims(red, "10.0.200.5")] == ["a"]
    assert view.conflicts() == []
    world.change_member("b2", state="forgotten")
    assert len(view.claims(red, "10.0.200.5")) == 2  # the other eviction is a stranger's


# --- where a claim counts --------------------------------------------------------------------


def claim_raw(world: World, name: str, vpc: str, ip: str) -> None:
    """Claim without asking the writer, as a hostile or outdated node can."""
    key = keys.pack(keys.EndpointKey(keys.addr_of(ip)))
    record = model.encode(model.Claim(0, 1, "02:00:00:00:00:01"))
    for view in world.views.values():
        view.apply([Change(node_id(name), vpc, key, record)])


def test_gateway_network_and_broadcast_addresses_cannot_be_claimed() -> None:
    world = World("a1", "b1")
    red = world.red()
    for end in (0, 1, 255):
        claim_raw(world, "a1", red, f"10.0.1.{end}")
        assert world.view().claims(red, f"10.0.1.{end}") == ()
    for end in (2, 254):
        claim_raw(world, "a1", red, f"10.0.1.{end}")
        assert len(world.view().claims(red, f"10.0.1.{end}")) == 1
    subnet = world.view().subnet_of(red, "10.0.1.1")
    assert subnet is not None and subnet.gateway == "10.0.1.1"


def test_a_claim_appears_and_vanishes_with_its_subnet() -> None:
    world = World("a1", "b1")
    red = world.red()
    claim_raw(world, "a1", red, "10.0.7.5")
    claim_raw(world, "b1", red, "10.0.7.5")
    assert world.view().claims(red, "10.0.7.5") == ()
    world.view().take_delta()
    world.everywhere("a1", "add_subnet", "late", "red", "10.0.7.0/24")
    view = world.views["a1"]
    assert (red, "10.0.7.5") in view.take_delta().places()
    assert len(view.claims(red, "10.0.7.5")) == 2 and len(view.conflicts()) == 1
    subnet = view.subnet("red", "late")
    removal = model.SubnetRecord(2, 2, True, node_id("a1"), _nonce_of(view, subnet.id, red))
    key = keys.pack(keys.SubnetKey(red, subnet.id))
    view.apply([Change(node_id("a1"), MESH_SHARD, key, model.encode(removal))])
    assert (red, "10.0.7.5") in view.take_delta().places()
    assert view.claims(red, "10.0.7.5") == () and view.conflicts() == []
    assert view.subnet_by_id(subnet.id) is None


def _nonce_of(view: View, subnet: str, vpc: str) -> bytes:
    return view.catalog.subnet_records(vpc, subnet)[node_id("a1")].nonce


def test_a_restricted_subnet_and_a_vpcs_site_list_say_who_may_claim() -> None:
    world = World("a1", "b1", "c1")
    red = world.red()
    world.everywhere("a1", "add_subnet", "own", "red", "10.0.9.0/24", ["a"], True)
    for name in ("a1", "b1"):
        claim_raw(world, name, red, "10.0.9.5")
        claim_raw(world, name, red, "10.0.1.5")
    view = world.view()
    assert [c.site for c in view.claims(red, "10.0.9.5")] == ["a"]
    assert len(view.claims(red, "10.0.1.5")) == 2 and len(view.conflicts()) == 1
    view.take_delta()
    world.everywhere("a1", "set_vpc", "red", sites=["a", "c"])
    assert (red, "10.0.1.5") in view.take_delta().places()
    assert [c.site for c in world.view().claims(red, "10.0.1.5")] == ["a"]
    assert world.view().conflicts() == []


def test_nothing_is_read_from_strangers_and_forgotten_nodes_and_retired_ones_as_before() -> None:
    world = World("a1", "b1")
    red = both_claim(world)
    world.do("b1", "register_gateway", "192.0.2.2", ["/ip4/192.0.2.2/tcp/1"], "1")
    world.sync()
    assert node_id("b1") in world.view().gateways
    world.change_member("b1", state="retired")
    assert len(world.view().conflicts()) == 1
    assert node_id("b1") not in world.view().gateways
    world.change_member("b1", state="forgotten")
    assert world.view().conflicts() == []
    assert len(world.view().claims(red, "10.0.200.5")) == 1
    assert world.view().sites() == ("a",)
    del world.members[node_id("b1")]
    world.set_members()
    assert len(world.view().claims(red, "10.0.200.5")) == 1


def test_what_a_forgotten_node_wrote_is_gone_and_its_site_stays_the_owner() -> None:
    world = World("a1", "a2", "b1")
    red = world.red()
    world.everywhere("a2", "set_vpc", "red", tenant="other")
    world.change_member("a1", state="forgotten")
    view = world.view()
    assert view.vpcs[red].site == "a" and view.vpcs[red].tenant == "other"
    assert view.subnets() == []
    world.everywhere("a2", "add_subnet", "s-a", "red", "10.0.1.0/24")
    world.change_member("a2", state="forgotten")
    assert not world.view().vpcs and not world.view().subnets()


# --- registers -------------------------------------------------------------------------------


def test_a_vpc_is_written_by_its_owner_site_and_admins_only() -> None:
    world = World("a1", "a2", "b1", "c1", admins=["c1"])
    red = world.red()
    record = world.view().catalog.vpc_record(red)
    assert record is not None
    key = keys.pack(keys.VpcKey(red))
    forged = model.encode(model.VpcRecord(9, 9, True, record.creator, record.nonce))
    for view in world.views.values():
        view.apply([Change(node_id("b1"), MESH_SHARD, key, forged)])
    assert red in world.view().vpcs
    world.everywhere("a2", "set_vpc", "red", tenant="other")
    assert world.view().vpcs[red].tenant == "other"
    world.everywhere("c1", "set_vpc", "red", tenant="third")
    vpc = world.view().vpcs[red]
    assert (vpc.tenant, vpc.revision, vpc.site, vpc.by) == ("third", 3, "a", node_id("a1"))


def test_an_owner_not_known_yet_is_waited_for() -> None:
    world = World("a1", "b1")
    red = world.red()
    world.do("a1", "add_endpoint", "red", "10.0.1.5")
    late = FedView()
    late.set_members({node: m for node, m in world.members.items() if m.name != "a1"})
    late.apply(world.log)
    assert not late.vpcs and not late.subnets()
    late.set_members(world.members)
    assert late.fingerprint() == world.views["a1"].fingerprint()
    assert late.vpc("red").id == red


def test_concurrent_values_of_one_revision_are_a_conflict_until_written_again() -> None:
    world = World("a1", "a2", "b1")
    red = world.red()
    world.do("a1", "set_vpc", "red", tenant="one")
    world.now_ns += SECOND_NS
    world.do("a2", "set_vpc", "red", tenant="two")
    world.sync()
    view = world.view()
    assert view.vpcs[red].tenant == "two"
    (conflict,) = view.conflicts()
    assert (conflict.key, conflict.kind) == ("vpc/red", "value")
    assert (conflict.claimants, conflict.winner) == (("a2", "a1"), "a2")
    assert conflict.since_hlc == view.catalog.vpc_records(red)[node_id("a2")].hlc
    world.everywhere("a1", "set_vpc", "red", tenant="three")
    assert world.view().conflicts() == [] and world.view().vpcs[red].tenant == "three"


def test_concurrent_equal_values_are_no_conflict() -> None:
    world = World("a1", "a2", "b1")
    world.red()
    world.do("a1", "set_vpc", "red", tenant="one")
    world.do("a2", "set_vpc", "red", tenant="one")
    world.sync()
    assert world.view().conflicts() == []


def test_a_removal_beside_an_edit_is_no_conflict_it_wins() -> None:
    world = World("a1", "a2", "b1")
    red = world.red()
    world.do("a1", "remove_vpc", "red")
    world.now_ns += SECOND_NS
    world.do("a2", "set_vpc", "red", tenant="two")
    world.sync()
    records = world.view().catalog.vpc_records(red)
    assert {record.revision for record in records.values()} == {2}
    assert red not in world.view().vpcs and world.view().conflicts() == []


def test_a_disputed_subnet_is_listed_while_its_vpc_lives() -> None:
    world = World("a1", "a2", "b1")
    red = world.red()
    subnet = world.views["a1"].subnet("red", "s-a")
    held = world.views["a1"].catalog.subnet_records(red, subnet.id)[node_id("a1")]
    key = keys.pack(keys.SubnetKey(red, subnet.id))
    other = model.SubnetRecord(
        1, 1, False, held.creator, held.nonce, "s-a", held.cidr, ("b",), since=held.since
    )
    for view in world.views.values():
        view.apply([Change(node_id("a2"), MESH_SHARD, key, model.encode(other))])
    (conflict,) = world.view().conflicts()
    assert (conflict.key, conflict.kind, conflict.winner) == ("subnet/red/s-a", "value", "a1")
    world.everywhere("a1", "remove_vpc", "red")
    assert world.view().conflicts() == []


def test_a_removed_vpc_hides_what_belongs_to_it_and_comes_back_for_nobody() -> None:
    world = World("a1", "a2", "b1")
    red = both_claim(world)
    stale = list(world.log)
    world.everywhere("a1", "remove_vpc", "red", force=True)
    view = world.view()
    assert not view.vpcs and not view.subnets() and not list(view.endpoints())
    assert view.conflicts() == [] and red in view.catalog.removed
    view.apply([change for change in stale if change.node != node_id("a1")])
    record = next(c.record for c in stale if c.key == keys.pack(keys.VpcKey(red)))
    view.apply([Change(node_id("a2"), MESH_SHARD, keys.pack(keys.VpcKey(red)), record)])
    assert not view.vpcs and red in view.catalog.removed


# --- VNIs and subnets ------------------------------------------------------------------------


def two_vpcs_of_one_vni() -> World:
    world = World("a1", "b1", "c1")
    world.do("a1", "add_vpc", "red", 7, ["10.0.0.0/16"])
    world.now_ns += SECOND_NS
    world.do("b1", "add_vpc", "blue", 7, ["10.0.0.0/16"])
    for name, vpc in (("a1", "red"), ("b1", "blue")):
        world.do(name, "add_subnet", "s", vpc, "10.0.1.0/24")
    return world


def test_of_two_vpcs_with_one_vni_the_earlier_has_it() -> None:
    world = two_vpcs_of_one_vni()
    world.sync()
    view = world.view()
    red, blue = view.vpc("red"), view.vpc("blue")
    assert (red.state, blue.state) == ("active", "vni-conflict")
    (conflict,) = view.conflicts()
    assert (conflict.key, conflict.kind) == ("vpc/blue", "vni")
    assert (conflict.claimants, conflict.winner) == (("vpc/red", "vpc/blue"), "vpc/red")
    assert conflict.rule == "earlier hlc" and conflict.since_hlc == blue.hlc
    world.everywhere("b1", "set_vpc", "blue", vni=8)
    assert world.view().vpc("blue").state == "active" and world.view().conflicts() == []


def test_the_vni_belongs_to_the_vpc_that_more_of_its_sites_have_bound() -> None:
    world = two_vpcs_of_one_vni()
    world.do("b1", "add_endpoint", "blue", "10.0.1.5")
    world.sync("c1")
    world.tend("b1")
    world.sync()
    assert world.view().vpc("blue").state == "active"
    assert world.view().vpc("red").state == "vni-conflict"
    (conflict,) = world.view().conflicts()
    assert (conflict.key, conflict.rule) == ("vpc/red", "bound at more of its sites")
    # only sites that the VPC admits count
    world.everywhere("b1", "set_vpc", "blue", sites=["c"])
    assert world.view().vpc("blue").state == "vni-conflict"


def test_equal_stamps_leave_the_vni_to_the_lower_id() -> None:
    view = FedView()
    world = World("a1")
    view.set_members(world.members)
    ids = []
    for nonce in (b"1" * 16, b"2" * 16):
        vpc = model.vpc_id(node_id("a1"), nonce)
        record = model.VpcRecord(
            1, 1, False, node_id("a1"), nonce, "red", 7, ("10.0.0.0/16",), since=1
        )
        ids.append(vpc)
        key = keys.pack(keys.VpcKey(vpc))
        view.apply([Change(node_id("a1"), MESH_SHARD, key, model.encode(record))])
    assert view.vpcs[min(ids)].state == "active" and view.vpcs[max(ids)].state == "vni-conflict"
    (conflict,) = view.conflicts()
    assert conflict.rule == "lower id" and conflict.key == f"vpc/{max(ids)}"


def overlapping(world: World) -> None:
    world.do("a1", "add_subnet", "first", "red", "10.0.8.0/23")
    world.now_ns += SECOND_NS
    world.do("a2", "add_subnet", "second", "red", "10.0.9.0/24")
    world.sync()


def test_of_two_subnets_that_overlap_the_earlier_is_installed() -> None:
    world = World("a1", "a2", "b1")
    red = world.red()
    overlapping(world)
    view = world.view()
    first, second = view.subnet("red", "first"), view.subnet("red", "second")
    assert (first.state, second.state) == ("active", "overlap")
    assert view.subnet_of(red, "10.0.9.5") == first
    (conflict,) = view.conflicts()
    assert (conflict.key, conflict.kind) == ("subnet/red/second", "subnet")
    assert conflict.claimants == ("subnet/red/first", "subnet/red/second")
    assert conflict.winner == "subnet/red/first" and conflict.rule == "earlier hlc"
    assert conflict.since_hlc == second.hlc
    world.everywhere("a1", "remove_subnet", "first", "red")
    assert world.view().subnet("red", "second").state == "active"
    assert world.view().conflicts() == []


def test_of_two_subnets_made_at_one_stamp_the_lower_id_is_installed() -> None:
    world = World("a1", "a2", "b1")
    red = world.red()
    changes = []
    for name in ("a1", "a2"):
        nonce = b"0" * 16
        subnet = model.subnet_id(red, node_id(name), nonce)
        record = model.SubnetRecord(
            1, 1, False, node_id(name), nonce, name, "10.0.8.0/24", ("a",), since=1
        )
        key = keys.pack(keys.SubnetKey(red, subnet))
        changes.append(Change(node_id(name), MESH_SHARD, key, model.encode(record)))
    for name, order in (("a1", 1), ("a2", -1)):
        for change in changes[::order]:
            world.views[name].apply([change])
    view = world.views["a1"]
    states = [(s.state, s.id) for s in view.subnets(red) if s.cidr == "10.0.8.0/24"]
    assert sorted(states) == sorted(states, key=lambda found: found[1])
    assert view.conflicts()[0].rule == "lower id"
    assert view.conflicts() == world.views["a2"].conflicts()


def test_a_subnet_outside_its_vpc_is_not_installed() -> None:
    world = World("a1", "a2", "b1")
    red = world.red()
    world.do("a1", "add_subnet", "edge", "red", "10.0.99.0/24")
    world.do("a2", "set_vpc", "red", cidrs=["10.0.0.0/18", "10.0.128.0/17"])
    world.sync()
    view = world.view()
    assert view.subnet("red", "edge").state == "outside"
    assert view.subnet_of(red, "10.0.99.5") is None and view.conflicts() == []
    assert view.subnet("red", "s-a").state == "active"


# --- peerings, gateways, names ---------------------------------------------------------------


def test_a_peering_is_active_when_both_halves_live() -> None:
    world = World("a1", "b1")
    world.red()
    world.everywhere("b1", "add_vpc", "blue", 8, ["10.1.0.0/16"])
    a, b = world.view().vpc("red").id, world.view().vpc("blue").id
    world.everywhere("a1", "add_peering", "red", "blue")
    (peering,) = world.view().peerings()
    assert (peering.a, peering.b, peering.state) == (a, b, "half")
    world.everywhere("b1", "add_peering", "blue", "red")
    (peering,) = world.view().peerings()
    assert (peering.a, peering.b, peering.state) == (min(a, b), max(a, b), "active")
    world.everywhere("a1", "remove_peering", "red", "blue")
    (peering,) = world.view().peerings()
    assert (peering.a, peering.b, peering.state) == (b, a, "half")
    world.everywhere("a1", "add_peering", "red", "blue")
    assert world.view().peerings()[0].state == "active"
    world.everywhere("b1", "remove_vpc", "blue")
    assert world.view().peerings() == []


def test_a_node_registers_nobody_but_itself() -> None:
    world = World("a1", "b1")
    view = world.view()
    record = model.encode(model.Registration(1, "192.0.2.66", (), "1"))
    key = keys.pack(keys.GatewayKey(node_id("a1")))
    binding = keys.pack(keys.BindingKey(node_id("a1"), "11" * 16))
    view.apply(
        [
            Change(node_id("b1"), MESH_SHARD, key, record),
            Change(node_id("b1"), MESH_SHARD, binding, model.encode(model.Binding(1, 7))),
        ]
    )
    assert dict(view.gateways) == {}
    assert view.catalog.binding("11" * 16, node_id("a1")) is None
    view.apply([Change(node_id("a1"), MESH_SHARD, key, record)])
    gateway = view.gateways[node_id("a1")]
    assert (gateway.name, gateway.site, gateway.underlay) == ("a1", "a", "192.0.2.66")
    view.apply([Change(node_id("a1"), MESH_SHARD, key, None)])
    assert dict(view.gateways) == {}


def test_names_that_are_ambiguous_list_the_ids_and_ids_always_work() -> None:
    world = World("a1", "b1")
    world.do("a1", "add_vpc", "red", 7, ["10.0.0.0/16"], "one")
    world.do("b1", "add_vpc", "red", 8, ["10.0.0.0/16"], "two")
    world.sync()
    view = world.view()
    ids = sorted(view.vpcs)
    with pytest.raises(NotFound, match=f"ambiguous.*{ids[0]}, {ids[1]}"):
        view.vpc("red")
    assert view.vpc(ids[0]).id == ids[0]
    assert view.names.vpc_key(ids[0]) == f"vpc/{ids[0]}"
    with pytest.raises(NotFound, match="no VPC 'blue'; see weft vpc ls"):
        view.vpc("blue")
    owner = world.view().members[view.vpcs[ids[0]].by].name
    world.everywhere(owner, "add_subnet", "s", ids[0], "10.0.1.0/24")
    with pytest.raises(NotFound, match="no subnet"):
        view.subnet(ids[0], "t")
    assert view.subnet(ids[0], view.subnet(ids[0], "s").id).name == "s"
    assert view.member("a1").node == node_id("a1")
    assert view.member(node_id("a1").hex()).name == "a1"
    world.change_member("b1", name="a1")
    with pytest.raises(NotFound, match="ambiguous"):
        view.member("a1")
    assert view.names.node_text(node_id("a1")) == node_id("a1").hex()
    assert view.names.node_text(b"?" * 16) == (b"?" * 16).hex()
    assert len(view.members) == 2


def test_two_subnets_of_one_name_go_by_their_ids() -> None:
    world = World("a1", "a2", "b1")
    red = world.red()
    world.do("a1", "add_subnet", "twin", "red", "10.0.20.0/24")
    world.do("a2", "add_subnet", "twin", "red", "10.0.21.0/24")
    world.sync()
    view = world.view()
    ids = [subnet.id for subnet in view.subnets(red) if subnet.name == "twin"]
    with pytest.raises(NotFound, match=f"{ids[0]}, {ids[1]}"):
        view.subnet("red", "twin")
    assert view.names.subnet_key(red, ids[0]) == f"subnet/red/{ids[0]}"


# --- what cannot be read ---------------------------------------------------------------------


def test_what_cannot_be_read_is_counted_while_it_is_held() -> None:
    view = FedView()
    key = b"zfuture"
    changes = [
        Change(b"n" * 16, MESH_SHARD, key, b"?"),
        Change(b"n" * 16, MESH_SHARD, b"v", b"?"),
        Change(b"n" * 16, "11" * 16, b"e\x0a\0\0\5", b"\xc1"),
        Change(b"n" * 16, "11" * 16, b"e\x0a\0\0\6", b"\x81\x00\x02"),
    ]
    view.apply(changes)
    assert (view.unknown, view.invalid) == (2, 2)
    view.apply(changes)
    assert (view.unknown, view.invalid) == (2, 2)
    view.apply([change._replace(record=None) for change in changes])
    assert (view.unknown, view.invalid) == (0, 0)


def test_a_flood_of_unreadable_records_is_counted_up_to_a_bound() -> None:
    view = FedView()
    view.apply(Change(b"n" * 16, MESH_SHARD, b"z%d" % i, b"") for i in range(UNREAD_MAX + 1))
    assert view.unknown == UNREAD_MAX
    view.apply([Change(b"n" * 16, MESH_SHARD, b"z%d" % UNREAD_MAX, None)])
    assert view.unknown == UNREAD_MAX


def test_an_unreadable_record_replaces_the_readable_one_before_it() -> None:
    world = World("a1", "b1")
    red = world.red()
    world.everywhere("a1", "add_endpoint", "red", "10.0.1.5")
    view = world.view()
    key = keys.pack(keys.EndpointKey(keys.addr_of("10.0.1.5")))
    view.apply([Change(node_id("a1"), red, key, b"\xc1")])
    assert view.claims(red, "10.0.1.5") == () and view.invalid == 1


# --- readers and cost ------------------------------------------------------------------------


def test_readers_are_independent_until_released() -> None:
    world = World("a1", "b1")
    view = world.view()
    one, two = view.reader(), view.reader()
    one.take()
    two.take()
    world.red()
    assert one and one.take().vpcs and not one.take()
    view.release(two)
    world.everywhere("a1", "add_endpoint", "red", "10.0.1.5")
    assert one.take().endpoints and not two.take().endpoints


def test_a_change_of_one_endpoint_judges_one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World("a1", "b1")
    red = world.red()
    for end in range(2, 100):
        world.do("a1", "add_endpoint", "red", f"10.0.1.{end}")
    view = world.views["a1"]
    judged: list[bytes] = []
    judge = claims.ClaimTable.judge

    def counting(table: claims.ClaimTable, vpc: str, touched: Iterable[bytes]) -> bool:
        judged.extend(touched)
        return judge(table, vpc, touched)

    monkeypatch.setattr(claims.ClaimTable, "judge", counting)
    world.do("a1", "add_endpoint", "red", "10.0.1.200")
    assert judged == [keys.pack(keys.EndpointKey(keys.addr_of("10.0.1.200")))]
    judged.clear()
    world.do("a1", "add_subnet", "x", "red", "10.0.50.0/24")
    view.set_members({**world.members, node_id("c1"): view.member("a1")})
    assert judged == []
    assert red in view.vpcs
