"""What users ask for: the writes that come of it, and every refusal with its reason."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.core import keys, model
from mesh.core.errors import BadInput, NotFound, Refused, RequestError
from mesh.core.ops import MESH_SHARD
from mesh.core.view import Endpoint
from tests.mesh.core.core_world import SECOND_NS, World, node_id
from tests.mesh.core.view_feed import Change

IP = "10.0.200.5"


def refused(
    world: World, error: type[RequestError], match: str, name: str, method: str, /,
    *args: Any, **fields: Any,
) -> None:  # fmt: skip
    before = world.views[name].fingerprint()
    with pytest.raises(error, match=match):
        world.do(name, method, *args, **fields)
    assert world.views[name].fingerprint() == before


def winner(world: World, vpc: str, ip: str = IP) -> Endpoint:
    found = world.view().winner(vpc, ip)
    assert found is not None
    return found


# --- VPCs ------------------------------------------------------------------------------------


def test_an_identical_vpc_again_writes_nothing_and_a_differing_one_is_refused() -> None:
    world = World("a1", "b1")
    ops = world.everywhere("a1", "add_vpc", "red", 7, ["10.0.0.0/16", "10.1.0.0/16"], "acme")
    assert len(ops) == 1 and ops[0].shard == MESH_SHARD
    vpc = world.view().vpc("red")
    assert (vpc.vni, vpc.cidrs, vpc.tenant) == (7, ("10.0.0.0/16", "10.1.0.0/16"), "acme")
    assert (vpc.site, vpc.by, vpc.revision, vpc.state) == ("a", node_id("a1"), 1, "active")
    for name in ("a1", "b1"):
        again = ("add_vpc", "red", 7, ["10.1.0.0/16", "10.0.0.0/16"], "acme")
        assert world.do(name, *again) == []
    refused(world, Refused, "exists with VNI 7", "a1", "add_vpc", "red", 8, vpc.cidrs, "acme")
    refused(world, Refused, "exists with VNI 7", "a1", "add_vpc", "red", 7, ["10.0.0.0/8"], "acme")
    refused(world, Refused, "VNI 7 is used by VPC red", "b1", "add_vpc", "x", 7, ["10.0.0.0/16"])
    world.everywhere("b1", "add_vpc", "red", 8, ["10.0.0.0/16"])  # another tenant's word
    assert len(world.view().vpcs) == 2


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (("Red", 7, ["10.0.0.0/16"]), "name: 'Red'"),
        (("red", 0, ["10.0.0.0/16"]), "vni: 0"),
        (("red", 7, []), "cidr"),
        (("red", 7, ["10.0.0.1/16"]), "cidr: '10.0.0.1/16'"),
        (("red", 7, ["10.0.0.0/16"], "A B"), "tenant: 'A B'"),
    ],
)
def test_a_malformed_vpc_is_bad_input(args: tuple[Any, ...], match: str) -> None:
    refused(World("a1"), BadInput, match, "a1", "add_vpc", *args)


def test_set_changes_what_is_given_and_keeps_the_rest() -> None:
    world = World("a1", "a2", "b1")
    red = world.red()
    made = world.view().vpcs[red]
    world.now_ns += SECOND_NS
    world.everywhere("a2", "set_vpc", "red", tenant="other")
    vpc = world.view().vpcs[red]
    assert (vpc.tenant, vpc.vni, vpc.revision, vpc.hlc) == ("other", 7, 2, made.hlc)
    world.everywhere("a1", "set_vpc", "red", vni=9)
    vpc = world.view().vpcs[red]
    assert vpc.vni == 9 and vpc.hlc > made.hlc  # it has held this VNI from now on only
    world.everywhere("a1", "set_vpc", red, name="crimson", cidrs=["10.0.0.0/15"])
    vpc = world.view().vpc("crimson")
    assert (vpc.id, vpc.cidrs, vpc.sites) == (red, ("10.0.0.0/15",), ())
    world.everywhere("a1", "set_vpc", "crimson", sites=["b", "a"], tenant="")
    assert world.view().vpcs[red].sites == ("a", "b") and world.view().vpcs[red].tenant == ""
    assert world.do("a1", "set_vpc", "crimson", name="crimson", vni=9, sites=["a", "b"]) == []
    world.everywhere("a1", "set_vpc", "crimson", sites=[])
    assert world.view().vpcs[red].sites == ()


def test_set_is_refused_without_authority_or_where_it_would_break_something() -> None:
    world = World("a1", "b1")
    world.red()
    world.everywhere("b1", "add_vpc", "blue", 8, ["10.0.0.0/16"])
    refused(world, Refused, "belongs to site a", "b1", "set_vpc", "red", tenant="x")
    refused(world, Refused, "VNI 8 is used by VPC blue", "a1", "set_vpc", "red", vni=8)
    refused(world, Refused, r"s-a \(10.0.1.0/24\) would lie outside", "a1", "set_vpc", "red",
            cidrs=["10.0.2.0/23", "10.0.200.0/24"])  # fmt: skip
    refused(world, NotFound, "no site 'z'.*a, b", "a1", "set_vpc", "red", sites=["z"])
    refused(world, NotFound, "no VPC 'green'", "a1", "set_vpc", "green", vni=9)
    for field, value in (
        ("name", "-"),
        ("vni", -1),
        ("cidrs", []),
        ("tenant", "-"),
        ("sites", "-"),
    ):
        refused(world, BadInput, "[a-z]+: ", "a1", "set_vpc", "red", **{field: value})


def test_fields_of_a_newer_version_survive_a_set() -> None:
    world = World("a1", "b1")
    red = world.red()
    record = world.view().catalog.vpc_record(red)
    assert record is not None
    newer = model.VpcRecord(**{f: getattr(record, f) for f in record.__match_args__} | {
        "extra": ((77, b"\x05"),)
    })  # fmt: skip
    key = keys.pack(keys.VpcKey(red))
    for view in world.views.values():
        view.apply([Change(node_id("a1"), MESH_SHARD, key, model.encode(newer))])
    world.everywhere("a1", "set_vpc", "red", tenant="x")
    after = world.view().catalog.vpc_record(red)
    assert after is not None and after.extra == ((77, b"\x05"),) and after.tenant == "x"


def test_a_strangers_revision_cannot_use_the_revisions_up_but_an_owners_can() -> None:
    world = World("a1", "a2", "b1")
    red = world.red()
    record = world.view().catalog.vpc_record(red)
    assert record is not None
    key = keys.pack(keys.VpcKey(red))

    def forge(name: str) -> None:
        forged = model.VpcRecord(
            model.REVISION_MAX, 1, False, record.creator, record.nonce, "red", 7, record.cidrs
        )
        for view in world.views.values():
            view.apply([Change(node_id(name), MESH_SHARD, key, model.encode(forged))])

    forge("b1")
    world.everywhere("a1", "set_vpc", "red", tenant="x")
    assert world.view().vpcs[red].revision == 2
    forge("a2")
    refused(world, Refused, "used up", "a1", "set_vpc", "red", tenant="y")


def test_a_vpc_with_endpoints_is_removed_by_force_only() -> None:
    world = World("a1", "b1", "c1", admins=["c1"])
    red = world.red()
    world.everywhere("b1", "add_endpoint", "red", "10.0.2.5")
    refused(world, Refused, "has 1 endpoints.*--force", "a1", "remove_vpc", "red")
    refused(world, Refused, "belongs to site a", "b1", "remove_vpc", "red", force=True)
    world.everywhere("c1", "remove_vpc", "red", force=True)
    assert red not in world.view().vpcs
    refused(world, NotFound, "no VPC 'red'", "a1", "remove_vpc", "red")
    world.everywhere("a1", "add_vpc", "red", 7, ["10.0.0.0/16"])
    assert world.view().vpc("red").id != red


# --- subnets and peerings --------------------------------------------------------------------


def test_subnets_are_added_once_and_refused_where_they_do_not_fit() -> None:
    world = World("a1", "b1", "c1")
    red = world.red()
    world.everywhere("a1", "add_subnet", "here", "red", "10.0.3.0/24")
    subnet = world.view().subnet("red", "here")
    assert (subnet.sites, subnet.restrict, subnet.gateway) == (("a",), False, "10.0.3.1")
    for name in ("a1", "b1"):
        assert world.do(name, "add_subnet", "here", "red", "10.0.3.0/24", ["a"]) == []
    add = ("a1", "add_subnet")
    refused(world, Refused, "here of VPC red exists with 10.0.3.0/24 at a;", *add, "here", "red",
            "10.0.4.0/24")  # fmt: skip
    refused(world, Refused, "here of VPC red exists", *add, "here", "red", "10.0.3.0/24", ["b"])
    world.everywhere(*add, "own", "red", "10.0.5.0/24", ["a"], True)
    refused(world, Refused, "at a, restricted;", *add, "own", "red", "10.0.5.0/24", ["a"], False)
    refused(world, Refused, r"overlaps subnet here \(10.0.3.0/24\)", *add, "x", "red",
            "10.0.2.0/23")  # fmt: skip
    refused(world, Refused, r"outside VPC red \(10.0.0.0/16\)", *add, "x", "red", "10.1.0.0/24")
    refused(world, NotFound, "no site 'z'", *add, "x", "red", "10.0.9.0/24", ["z"])
    refused(world, NotFound, "no VPC 'green'", *add, "x", "green", "10.0.9.0/24")
    refused(world, Refused, "belongs to site a", "b1", "add_subnet", "x", "red", "10.0.9.0/24")
    refused(world, BadInput, "name", *add, "X", "red", "10.0.9.0/24")
    refused(world, BadInput, "cidr", *add, "x", "red", "10.0.9.1/24")
    refused(world, Refused, "fd00::/64 lies outside VPC red", *add, "x", "red", "fd00::/64")
    refused(world, BadInput, "give a network of unicast", *add, "x", "red", "fe80::/64")
    world.everywhere("a1", "set_vpc", "red", sites=["a", "b"])
    refused(world, Refused, "does not admit site c", *add, "x", "red", "10.0.9.0/24", ["c"])
    assert len(world.view().subnets(red)) == 5


def test_a_subnet_is_removed_for_good_and_only_when_empty() -> None:
    world = World("a1", "a2", "b1")
    red = world.red()
    subnet = world.view().subnet("red", "s-a")
    world.everywhere("a1", "add_endpoint", "red", "10.0.1.5")
    refused(world, Refused, "s-a of VPC red has 1 endpoints", "a1", "remove_subnet", "s-a", "red")
    refused(world, Refused, "belongs to site a", "b1", "remove_subnet", "s-b", "red")
    refused(world, NotFound, "no subnet of red 'x'", "a1", "remove_subnet", "x", "red")
    world.everywhere("a1", "remove_endpoint", "red", "10.0.1.5")
    world.everywhere("a2", "remove_subnet", "s-a", "red")
    assert world.view().subnet_by_id(subnet.id) is None
    refused(world, Refused, "lies in no subnet", "a1", "add_endpoint", "red", "10.0.1.5")
    world.everywhere("a1", "add_subnet", "s-a", "red", "10.0.1.0/24")
    assert world.view().subnet("red", "s-a").id != subnet.id
    assert {s.name for s in world.view().subnets(red)} == {"s-a", "s-b", "wide"}


def test_a_subnet_that_is_not_installed_can_be_removed_whatever_lives_at_its_addresses() -> None:
    world = World("a1", "a2", "b1")
    world.red()
    world.do("a1", "add_subnet", "first", "red", "10.0.8.0/24")
    world.now_ns += SECOND_NS
    world.do("a2", "add_subnet", "second", "red", "10.0.8.0/24")
    world.sync()
    world.everywhere("b1", "add_endpoint", "red", "10.0.8.5")
    refused(world, Refused, "overlaps", "a1", "add_subnet", "third", "red", "10.0.8.0/25")
    world.everywhere("a1", "remove_subnet", "second", "red")
    assert world.view().conflicts() == []


def test_each_side_writes_its_own_half_of_a_peering() -> None:
    world = World("a1", "b1")
    world.red()
    world.everywhere("b1", "add_vpc", "blue", 8, ["10.1.0.0/16"])
    refused(world, Refused, "red belongs to site a", "b1", "add_peering", "red", "blue")
    refused(world, BadInput, "same VPC", "a1", "add_peering", "red", "red")
    refused(world, NotFound, "has no half.*weft peering ls", "a1",
            "remove_peering", "red", "blue")  # fmt: skip
    assert len(world.everywhere("a1", "add_peering", "red", "blue")) == 1
    for name in ("a1", "b1"):
        assert world.do(name, "add_peering", "red", "blue") == []
    refused(world, Refused, "red belongs to site a", "b1", "remove_peering", "red", "blue")
    world.everywhere("a1", "remove_peering", "red", "blue")
    assert world.view().peerings() == []


# --- gateways --------------------------------------------------------------------------------


def test_a_gateway_registers_what_is_new_only() -> None:
    world = World("a1", "b1")
    args = ("192.0.2.1", ["/ip4/192.0.2.1/tcp/7000"], "0.1")
    assert len(world.everywhere("a1", "register_gateway", *args)) == 1
    assert world.do("a1", "register_gateway", *args) == []
    gateway = world.view().gateways[node_id("a1")]
    assert (gateway.underlay, gateway.addrs, gateway.version) == (args[0], tuple(args[1]), "0.1")
    world.everywhere("a1", "register_gateway", "", [], "0.2")
    assert world.view().gateways[node_id("a1")].underlay == ""
    refused(world, BadInput, "underlay", "a1", "register_gateway", "fe80::1", [], "1")
    refused(world, BadInput, "listen", "a1", "register_gateway", "", ["\n"], "1")
    refused(world, BadInput, "give one of geneve", "a1", "register_gateway", "", [], "1", "gre")
    assert len(world.everywhere("a1", "register_gateway", "", [], "0.2", "vxlan")) == 1
    assert world.view().gateways[node_id("a1")].encapsulation == "vxlan"
    world.everywhere("a1", "register_gateway", "", [], "0.2")
    refused(world, BadInput, "at most 16", "a1", "register_gateway", "", ["/a"] * 17, "1")
    refused(world, BadInput, "version", "a1", "register_gateway", "", [], "\n")
