"""Why an address is where it is, in every situation that an address can be in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mesh.core import keys, model
from mesh.core.errors import BadInput, NotFound
from mesh.core.explain import explain
from mesh.core.ops import Put
from tests.mesh.core.core_world import SECOND_NS, World, node_id

IP = "10.0.200.5"


def explained(world: World, ip: str = IP, vpc: str = "red") -> dict[str, Any]:
    found = explain(world.view(), vpc, ip)
    json.dumps(found)
    return found


def test_a_claim_and_where_it_leads() -> None:
    world = World("a1", "b1")
    world.red()
    world.everywhere("b1", "add_endpoint", "red", IP, name="web")
    found = explained(world)
    assert (found["vpc"], found["vni"], found["ip"]) == ("red", 7, IP)
    assert found["subnet"]["name"] == "wide" and found["winner"] == found["claims"][0]
    assert found["winner"]["node"] == "b1" and found["winner"]["outranked_by"] is None
    assert found["verdict"] == f"{IP} is at site b, gateway b1, attached to it (only claim)"


def test_a_host_behind_the_gateway_is_named() -> None:
    world = World("a1", "b1")
    world.red()
    world.everywhere("b1", "add_endpoint", "red", IP, host="192.0.2.7")
    assert "behind it on host 192.0.2.7" in explained(world)["verdict"]


def test_a_conflict_names_the_rule_and_what_is_outranked_by_what() -> None:
    world = World("a1", "b1")
    world.red()
    world.do("a1", "add_endpoint", "red", IP)
    world.now_ns += SECOND_NS
    world.do("b1", "add_endpoint", "red", IP)
    world.sync()
    first, second = explained(world)["claims"]
    assert (first["rule"], second["rule"]) == ("earlier hlc", "later hlc")
    assert (second["state"], second["outranked_by"]) == ("conflict", "a1")


def test_an_eviction_is_shown_with_the_claim_it_hides() -> None:
    world = World("a1", "b1")
    world.red()
    world.everywhere("b1", "add_endpoint", "red", IP)
    world.everywhere("a1", "remove_endpoint", "red", IP)
    found = explained(world)
    assert found["claims"] == [] and found["winner"] is None
    (ignored,) = found["ignored"]
    assert (ignored["node"], ignored["reason"]) == ("b1", "evicted up to mobility 0; it has 0")
    (eviction,) = found["evictions"]
    assert (eviction["node"], eviction["by"], eviction["counts"]) == ("b1", "a1", True)


@pytest.mark.parametrize(
    ("ip", "reason"),
    [
        ("10.0.77.5", "in no installed subnet of the VPC"),
        ("10.0.1.1", "an address that cannot be claimed: gateway, network or broadcast"),
        ("10.0.7.5", "the subnet is restricted to b"),
        ("10.0.1.5", "the VPC does not admit site c"),
        ("10.0.1.6", "its node is not in the roster or forgotten"),
    ],
)
def test_a_claim_that_does_not_count_has_its_reason(ip: str, reason: str) -> None:
    world = World("a1", "b1", "c1", "z1")
    red = world.red()
    world.everywhere("a1", "add_subnet", "own", "red", "10.0.7.0/24", ["b"], True)
    world.everywhere("a1", "set_vpc", "red", sites=["a", "b"])
    name = {"10.0.1.5": "c1", "10.0.1.6": "z1"}.get(ip, "a1")
    key = keys.pack(keys.EndpointKey(keys.addr_of(ip)))
    record = model.encode(model.Claim(0, 1, "02:00:00:00:00:01"))
    world.carry_out(name, [Put(red, key, record)])
    world.sync()
    del world.members[node_id("z1")]
    world.set_members()
    (ignored,) = explained(world, ip)["ignored"]
    assert ignored["reason"] == reason


@pytest.mark.parametrize(
    ("ip", "verdict"),
    [
        ("10.0.77.5", "lies in no installed subnet of VPC red: dropped"),
        ("10.0.1.1", "is the gateway address of subnet s-a: answered by every gateway"),
        ("10.0.2.5", "to the home of subnet s-b, site b; dropped there"),
        (IP, "subnet wide is stretched: dropped at once"),
    ],
)
def test_an_address_that_nobody_has_says_what_becomes_of_its_packets(ip: str, verdict: str) -> None:
    world = World("a1", "b1")
    world.red()
    assert explained(world, ip)["verdict"].endswith(verdict)


def test_a_vpc_that_lost_its_vni_says_so() -> None:
    world = World("a1", "b1")
    world.red()
    world.everywhere("a1", "add_endpoint", "red", IP)
    nonce = b"0" * 16
    vpc = keys.VpcKey(model.vpc_id(node_id("b1"), nonce))
    record = model.VpcRecord(1, 1, False, node_id("b1"), nonce, "blue", 7, ("10.0.0.0/16",))
    world.carry_out("b1", [Put("mesh", keys.pack(vpc), model.encode(record))])
    world.sync()
    found = explained(world)
    assert found["vpc_state"] == "vni-conflict"
    assert "VPC red lost VNI 7 and is not forwarded between sites" in found["verdict"]


def test_bad_input_and_unknown_vpcs_are_refused() -> None:
    world = World("a1", "b1")
    world.red()
    with pytest.raises(BadInput):
        explain(world.view(), "red", "10.0.0")
    with pytest.raises(NotFound):
        explain(world.view(), "green", IP)
