"""The view's rules for registers, VNIs, subnets, peerings and names, as people meet them."""

from __future__ import annotations

import pytest

from mesh.core import keys, model
from mesh.core.errors import NotFound
from mesh.core.ops import MESH_SHARD
from tests.mesh.core.core_world import SECOND_NS, World, both_claim, node_id
from tests.mesh.core.view_feed import Change, FedView

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
