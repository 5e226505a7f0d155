"""What users ask for, of endpoints: the writes that come of it, and every refusal."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.core import keys, model
from mesh.core.errors import BadInput, NotFound, Refused, RequestError
from mesh.core.importing import EndpointSpec
from mesh.core.ops import MESH_SHARD, Delete, Put
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


def test_an_endpoint_is_added_once_with_a_mac_of_its_own() -> None:
    world = World("a1", "b1")
    red = world.red()
    (op,) = world.everywhere("a1", "add_endpoint", "red", IP, name="web", labels={"app": "x"})
    assert op.shard == red and isinstance(op, Put)
    endpoint = winner(world, red)
    assert endpoint.mac == model.derived_mac(red, IP)
    assert (endpoint.name, endpoint.host, endpoint.labels) == ("web", None, (("app", "x"),))
    again = {"name": "web", "labels": {"app": "x"}}
    assert world.do("a1", "add_endpoint", "red", IP, **again) == []
    assert world.do("a1", "add_endpoint", red, IP, endpoint.mac.upper(), **again) == []
    refused(world, Refused, f"exists with other values .mac {endpoint.mac}, name web.", "a1",
            "add_endpoint", "red", IP)  # fmt: skip
    refused(world, Refused, f"lives at site a on gateway a1; .*endpoint move --vpc red {IP}", "b1",
            "add_endpoint", "red", IP, **again)  # fmt: skip


def test_ipv6_subnets_and_endpoints_are_as_those_of_ipv4() -> None:
    world = World("a1", "b1")
    world.everywhere("a1", "add_vpc", "six", 66, ["fd00::/48", "10.0.0.0/16"], "acme")
    add = ("a1", "add_subnet")
    world.everywhere(*add, "one", "six", "fd00:0:0:1::/64")
    world.everywhere(*add, "four", "six", "10.0.1.0/24")
    refused(world, Refused, "overlaps subnet one", *add, "x", "six", "fd00:0:0:1:8000::/80")
    refused(world, Refused, "gateway address", "a1", "add_endpoint", "six", "fd00:0:0:1::1")
    ip = "fd00:0:0:1::10"
    world.everywhere("a1", "add_endpoint", "six", ip)
    six = world.view().vpc("six").id
    assert [claim.ip for claim in world.view().claims(six, ip)] == [ip]
    refused(world, Refused, "has 1 endpoints", "a1", "remove_subnet", "one", "six")
    world.everywhere("a1", "remove_endpoint", "six", ip)
    world.everywhere("a1", "remove_subnet", "one", "six")
    assert [subnet.name for subnet in world.view().subnets(six)] == ["four"]


@pytest.mark.parametrize(
    ("error", "ip", "fields", "match"),
    [
        (BadInput, "10.0.1", {}, "ip: '10.0.1'"),
        (Refused, "fd00::1", {}, "lies in no subnet of VPC red"),
        (BadInput, "fe80::1", {}, "unicast"),
        (BadInput, "127.0.0.1", {}, "unicast"),
        (BadInput, IP, {"mac": "01:00:00:00:00:00"}, "mac"),
        (BadInput, IP, {"name": "Web"}, "name"),
        (BadInput, IP, {"host": "host7"}, "host"),
        (BadInput, IP, {"labels": {"a": "\n"}}, "labels"),
        (Refused, "10.0.99.5", {}, "lies in no subnet of VPC red"),
        (Refused, "10.0.200.1", {}, "gateway address of subnet wide"),
        (Refused, "10.0.200.0", {}, "network or broadcast address"),
        (Refused, "10.0.200.255", {}, "network or broadcast address"),
        (Refused, "10.0.7.5", {}, "subnet own is restricted to b; a may not"),
    ],
)
def test_an_endpoint_that_cannot_be_is_refused(
    error: type[RequestError], ip: str, fields: dict[str, Any], match: str
) -> None:
    world = World("a1", "b1")
    world.red()
    world.everywhere("a1", "add_subnet", "own", "red", "10.0.7.0/24", ["b"], True)
    refused(world, error, match, "a1", "add_endpoint", "red", ip, **fields)
    refused(world, NotFound, "no VPC 'green'", "a1", "add_endpoint", "green", IP)


def test_a_site_that_the_vpc_does_not_admit_claims_nothing() -> None:
    world = World("a1", "b1")
    world.red()
    world.everywhere("a1", "set_vpc", "red", sites=["a"])
    refused(world, Refused, "does not admit site b", "b1", "add_endpoint", "red", IP)


def test_a_second_gateway_of_the_site_may_claim_the_same_and_nothing_else() -> None:
    world = World("a1", "a2", "b1")
    red = world.red()
    world.everywhere("a1", "add_endpoint", "red", IP, host="192.0.2.7")
    refused(world, Refused, "lives at site a on gateway a1", "a2", "add_endpoint", "red", IP)
    assert len(world.everywhere("a2", "add_endpoint", "red", IP, host="192.0.2.7")) == 1
    assert world.do("a2", "add_endpoint", "red", IP, host="192.0.2.7") == []
    refused(world, Refused, "host 192.0.2.7", "a2", "add_endpoint", "red", IP)
    assert len(world.view().claims(red, IP)) == 2


def test_an_endpoint_of_a_retired_gateway_is_taken_over_by_its_site() -> None:
    world = World("a1", "a2", "b1")
    red = world.red()
    world.everywhere("a1", "add_endpoint", "red", IP)
    world.change_member("a1", state="retired")
    world.everywhere("a2", "add_endpoint", "red", IP, "02:00:00:00:00:09")
    endpoint = winner(world, red)
    assert (endpoint.node, endpoint.mobility) == (node_id("a2"), 1)


@pytest.mark.parametrize("name", ["b2", "a1", "c1"])
def test_an_endpoint_of_a_retired_gateway_moves_to_its_site_or_any_other(name: str) -> None:
    world = World("a1", "b1", "b2", "c1", admins=["c1"])
    red = world.red()
    world.everywhere("b1", "add_endpoint", "red", IP, name="web")
    world.change_member("b1", state="retired")
    world.everywhere(name, "move_endpoint", "red", IP)
    endpoint = winner(world, red)
    assert (endpoint.node, endpoint.mobility, endpoint.name) == (node_id(name), 1, "web")
    assert world.view().conflicts() == []


def test_an_endpoint_of_a_retired_gateway_is_removed_by_its_site_and_stays_removed() -> None:
    world = World("a1", "b1", "b2", "c1")
    red = world.red()
    world.everywhere("b1", "add_endpoint", "red", IP)
    refused(world, Refused, "on gateway b1; remove it there", "b2", "remove_endpoint", "red", IP)
    world.change_member("b1", state="retired")
    refused(world, Refused, "on gateway b1; remove it there", "c1", "remove_endpoint", "red", IP)
    world.everywhere("b2", "remove_endpoint", "red", IP)
    assert world.view().claims(red, IP) == ()
    # taken over and removed there: what it was taken over from does not come back
    world.everywhere("b1", "add_endpoint", "red", "10.0.200.6")
    world.everywhere("b2", "add_endpoint", "red", "10.0.200.6")
    world.everywhere("b2", "remove_endpoint", "red", "10.0.200.6")
    assert world.view().claims(red, "10.0.200.6") == ()


def test_a_retired_co_writer_does_not_outlive_the_endpoint() -> None:
    world = World("a1", "b1", "b2", "b3")
    red = world.red()
    for name in ("b1", "b2", "b3"):
        world.everywhere(name, "add_endpoint", "red", IP)
    world.change_member("b1", state="retired")
    world.everywhere("b2", "remove_endpoint", "red", IP)
    assert [claim.node for claim in world.view().claims(red, IP)] == [node_id("b3")]
    world.everywhere("b3", "remove_endpoint", "red", IP)
    assert world.view().claims(red, IP) == ()


def test_what_is_retired_is_not_removed_while_a_claim_that_is_not_ones_own_would_take_over() -> (
    None
):
    world = World("a1", "b1", "b2", "c1")
    world.red()
    world.everywhere("c1", "add_endpoint", "red", IP)
    world.everywhere("b1", "move_endpoint", "red", IP)
    world.change_member("b1", state="retired")
    refused(world, Refused, "at site c on gateway c1", "b2", "remove_endpoint", "red", IP)


@pytest.mark.parametrize("name", ["a2", "c1"])
def test_the_registers_of_a_retired_node_are_written_by_its_site_and_admins(name: str) -> None:
    world = World("a1", "a2", "b1", "c1", admins=["c1"])
    red = world.red()
    world.everywhere("a1", "add_vpc", "blue", 8, ["10.8.0.0/16"])
    blue = world.view().vpc("blue").id
    world.everywhere("a1", "add_peering", "red", "blue")
    world.everywhere("a1", "add_peering", "blue", "red")
    world.change_member("a1", state="retired")
    assert world.view().vpcs[red].site == "a" and len(world.view().peerings()) == 1
    refused(world, Refused, "belongs to site a", "b1", "set_vpc", "red", vni=9)
    refused(world, Refused, "belongs to site a", "b1", "remove_subnet", "s-b", "red")
    world.everywhere(name, "set_vpc", "red", vni=9)
    assert (world.view().vpcs[red].vni, world.view().vpcs[red].revision) == (9, 2)
    world.everywhere(name, "remove_subnet", "s-b", "red")
    world.everywhere(name, "add_subnet", "new", "red", "10.0.2.0/24", ["b"])
    assert {s.name for s in world.view().subnets(red)} == {"s-a", "wide", "new"}
    world.everywhere(name, "remove_peering", "red", "blue")
    assert [p.state for p in world.view().peerings()] == ["half"]
    world.everywhere(name, "remove_vpc", "blue")
    assert blue not in world.view().vpcs and world.view().conflicts() == []


def test_a_move_claims_above_all_that_is_seen_and_keeps_what_is_not_said() -> None:
    world = World("a1", "b1")
    red = world.red()
    refused(world, NotFound, "no endpoint.*weft endpoint add", "b1", "move_endpoint", "red", IP)
    world.everywhere("a1", "add_endpoint", "red", IP, name="web", host="192.0.2.7",
                     labels={"a": "1"})  # fmt: skip
    first = winner(world, red)
    world.everywhere("b1", "move_endpoint", "red", IP)
    moved = winner(world, red)
    assert (moved.site, moved.mobility, moved.host) == ("b", 1, None)
    assert (moved.mac, moved.name, moved.labels) == (first.mac, "web", (("a", "1"),))
    assert moved.hlc > first.hlc
    assert world.do("b1", "move_endpoint", "red", IP) == []
    world.everywhere("b1", "move_endpoint", "red", IP, "02:00:00:00:00:09", "db", "192.0.2.8",
                     {"b": "2"})  # fmt: skip
    moved = winner(world, red)
    assert (moved.mac, moved.name, moved.host) == ("02:00:00:00:00:09", "db", "192.0.2.8")
    assert (moved.mobility, moved.labels) == (2, (("b", "2"),))


def contested(world: World) -> str:
    red = world.red()
    world.do("a1", "add_endpoint", "red", IP)
    world.now_ns += SECOND_NS
    world.do("b1", "add_endpoint", "red", IP)
    world.sync()
    return red


def test_a_move_by_a_claimant_ends_the_conflict() -> None:
    world = World("a1", "b1")
    red = contested(world)
    refused(world, Refused, "lives at site a", "b1", "add_endpoint", "red", IP)
    world.everywhere("a1", "move_endpoint", "red", IP)
    assert world.view().conflicts() == [] and winner(world, red).mobility == 1


def test_the_highest_mobility_cannot_be_moved_past_but_evicted() -> None:
    world = World("a1", "b1")
    red = world.red()
    key = keys.pack(keys.EndpointKey(keys.addr_of(IP)))
    top = model.encode(model.Claim(model.MOBILITY_MAX, 1, "02:00:00:00:00:01"))
    for view in world.views.values():
        view.apply([Change(node_id("b1"), red, key, top)])
    refused(world, Refused, "weft endpoint rm", "a1", "move_endpoint", "red", IP)
    world.everywhere("a1", "remove_endpoint", "red", IP)
    assert world.view().claims(red, IP) == ()
    refused(world, Refused, "weft endpoint rm", "b1", "add_endpoint", "red", IP)
    world.everywhere("a1", "add_endpoint", "red", IP)
    assert winner(world, red).mobility == 0


def test_the_own_claim_is_withdrawn_and_a_foreign_one_evicted_by_the_owner_only() -> None:
    world = World("a1", "b1", "c1")
    red = world.red()
    refused(world, NotFound, f"no endpoint {IP} in VPC red", "a1", "remove_endpoint", "red", IP)
    refused(world, BadInput, "ip", "a1", "remove_endpoint", "red", "x")
    world.everywhere("b1", "add_endpoint", "red", IP)
    refused(world, Refused, "lives at site b on gateway b1; remove it there, .* site a", "c1",
            "remove_endpoint", "red", IP)  # fmt: skip
    ops = world.everywhere("b1", "remove_endpoint", "red", IP)
    assert ops == [Delete(red, keys.pack(keys.EndpointKey(keys.addr_of(IP))))]
    assert world.view().claims(red, IP) == ()
    world.everywhere("b1", "add_endpoint", "red", IP)
    (op,) = world.everywhere("a1", "remove_endpoint", "red", IP)
    assert op.shard == MESH_SHARD
    assert world.view().claims(red, IP) == ()
    world.everywhere("b1", "remove_endpoint", "red", IP)  # the hidden claim that is still stored
    assert world.views["a1"].claim(node_id("b1"), red, IP) is None


def test_removing_the_winner_removes_with_authority_what_it_outranked() -> None:
    for owner_moves in (True, False):
        world = World("a1", "b1")
        red = world.red()
        here, there = ("a1", "b1") if owner_moves else ("b1", "a1")
        world.everywhere(there, "add_endpoint", "red", IP)
        world.everywhere(here, "move_endpoint", "red", IP)
        ops = world.everywhere(here, "remove_endpoint", "red", IP)
        assert len(ops) == (2 if owner_moves else 1)
        left = [claim.site for claim in world.view().claims(red, IP)]
        assert left == ([] if owner_moves else ["a"])


def test_removing_where_it_was_moved_away_from_is_removing_a_foreign_one() -> None:
    world = World("a1", "b1")
    red = world.red()
    world.everywhere("b1", "add_endpoint", "red", IP)
    world.everywhere("a1", "move_endpoint", "red", IP)
    refused(world, Refused, "lives at site a", "b1", "remove_endpoint", "red", IP)
    world.everywhere("b1", "move_endpoint", "red", IP)
    world.everywhere("a1", "remove_endpoint", "red", IP)
    assert world.view().claims(red, IP) == ()


def test_removing_the_winner_of_a_conflict_leaves_the_address_to_the_other() -> None:
    world = World("a1", "b1")
    red = contested(world)
    assert len(world.everywhere("a1", "remove_endpoint", "red", IP)) == 1
    assert winner(world, red).site == "b" and world.view().conflicts() == []


def test_a_loser_of_a_conflict_withdraws_its_own_claim() -> None:
    world = World("a1", "b1")
    red = contested(world)
    assert len(world.everywhere("b1", "remove_endpoint", "red", IP)) == 1
    assert winner(world, red).site == "a" and world.view().conflicts() == []


def evict(world: World, vpc: str, name: str, mobility: int) -> None:
    """The owner's a1 evicts the node at `IP`, whatever is claimed there."""
    key = keys.pack(keys.EvictionKey(vpc, node_id(name), keys.addr_of(IP)))
    world.carry_out("a1", [Put(MESH_SHARD, key, model.encode(model.Eviction(mobility, 1)))])
    world.sync()


def test_an_evicted_gateway_claims_above_its_eviction_or_not_at_all() -> None:
    world = World("a1", "a2", "b1")
    red = world.red()
    for name in ("a1", "a2"):
        world.everywhere(name, "add_endpoint", "red", IP)
    evict(world, red, "a2", 0)
    # beside a1's claim it could only be hidden again
    refused(world, Refused, "lives at site a on gateway a1", "a2", "add_endpoint", "red", IP)
    evict(world, red, "b1", 5)
    world.everywhere("b1", "move_endpoint", "red", IP)
    assert (winner(world, red).site, winner(world, red).mobility) == ("b", 6)


def test_the_owner_resolves_a_conflict() -> None:
    world = World("a1", "a2", "b1", "c1")
    red = contested(world)
    key = f"endpoint/red/{IP}"
    resolve = "resolve_conflict"
    refused(world, Refused, "belongs to site a", "b1", resolve, key, "b1")
    refused(world, Refused, "c1 does not claim.*keep one of a1, b1", "a1", resolve, key, "c1")
    refused(world, NotFound, "no node 'z'", "a1", resolve, key, "z")
    refused(world, BadInput, "write it as", "a1", resolve, "pod/red/1", "a1")
    refused(world, NotFound, "no conflict about endpoint/red/10.0.200.9", "a1", resolve,
            "endpoint/red/10.0.200.9", "a1")  # fmt: skip
    refused(world, Refused, "weft vpc set", "a1", resolve, "vpc/red", "a1")
    world.everywhere("a2", resolve, key, node_id("b1").hex())
    assert winner(world, red).site == "b" and world.view().conflicts() == []
    refused(world, NotFound, "no conflict", "a1", resolve, key, "b1")


def test_all_gateways_of_the_site_that_is_kept_are_kept() -> None:
    world = World("a1", "a2", "b1")
    red = contested(world)
    world.everywhere("a2", "add_endpoint", "red", IP)
    world.everywhere("a2", "resolve_conflict", f"endpoint/red/{IP}", "a2")
    claims = world.view().claims(red, IP)
    assert [claim.node for claim in claims] == [node_id("a1"), node_id("a2")]


def test_many_endpoints_at_once_tell_which_are_bad() -> None:
    world = World("a1", "b1")
    red = world.red()
    world.everywhere("b1", "add_endpoint", "red", "10.0.200.9")
    specs = [
        EndpointSpec("red", "10.0.200.5"),
        EndpointSpec("red", "10.0.200.9"),
        EndpointSpec(red, "10.0.200.5"),
        EndpointSpec("red", "10.0.200.5", name="other"),
        EndpointSpec("red", "nonsense"),
        EndpointSpec("red", "10.0.200.6"),
    ]
    ops, errors = world.writers["a1"].add_endpoints(specs, now_ns=world.now_ns)
    assert [index for index, _ in errors] == [1, 3, 4]
    assert "lives at site b" in str(errors[0][1])
    assert "differs from entry 1" in str(errors[1][1]) and isinstance(errors[1][1], BadInput)
    assert len(ops) == 2
    world.carry_out("a1", ops)
    assert world.writers["a1"].add_endpoints(specs[:1], now_ns=world.now_ns) == ([], [])


def test_a_stamp_is_later_than_those_seen_unless_they_are_far_ahead() -> None:
    world = World("a1", "b1")
    red = world.red()
    world.now_ns += 5 * SECOND_NS
    world.everywhere("b1", "add_endpoint", "red", IP)
    world.now_ns -= 5 * SECOND_NS
    world.everywhere("a1", "move_endpoint", "red", IP)
    mine, other = world.view().claims(red, IP)
    assert mine.hlc == other.hlc + 1
    world.now_ns += 3600 * SECOND_NS
    world.everywhere("b1", "move_endpoint", "red", IP)
    world.now_ns -= 3600 * SECOND_NS
    world.everywhere("a1", "move_endpoint", "red", IP)
    mine, other = world.view().claims(red, IP)
    assert mine.site == "a" and mine.hlc < other.hlc
