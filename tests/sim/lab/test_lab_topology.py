"""The plan of a lab: names and addresses that fit and never collide, whatever its size."""

from __future__ import annotations

import ipaddress
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.errors import BadInput, NotFound, Refused
from sim.lab.topology import (
    VPC_CIDR,
    LabSpec,
    Topology,
    belongs_to,
    partition_groups,
    plan,
    plan_pod,
)

specs = st.builds(
    LabSpec,
    name=st.just("lab"),
    sites=st.integers(1, 26),
    gateways=st.integers(1, 9),
    pods=st.integers(0, 8),
    vpcs=st.integers(0, 4),
    underlay=st.sampled_from(["ipv4", "ipv6"]),
)


def _distinct(values: list[object]) -> bool:
    return len(values) == len(set(values))


@given(specs)
def test_names_and_addresses_fit_and_are_unique(spec: LabSpec) -> None:
    topology = plan(spec)
    gateways, pods = topology.gateways, topology.pods
    assert len(gateways) == spec.sites * spec.gateways
    assert len(pods) == spec.sites * spec.vpcs * spec.pods
    assert _distinct([*topology.namespaces()])
    assert _distinct([g.underlay_ip for g in gateways])
    network = {"ipv4": "198.18.0.0/16", "ipv6": "fd00:c612::/64"}[spec.underlay]
    for gateway in gateways:
        address = ipaddress.ip_address(gateway.underlay_ip)
        assert str(address) == gateway.underlay_ip
        assert address in ipaddress.ip_network(network)
    assert topology.underlay == spec.underlay
    macs = [*(g.mac for g in gateways), *(p.mac for p in pods)]
    assert _distinct([*macs])
    assert _distinct([(p.vpc, p.ip) for p in pods])
    for name in (*(g.port for g in gateways), *(p.ifname for p in pods)):
        assert len(name) <= 15
    for mac in macs:
        assert int(mac[:2], 16) & 3 == 2, "locally administered, unicast"
    for namespace in topology.namespaces():
        assert belongs_to("lab", namespace)


@given(specs)
def test_every_pod_is_in_a_subnet_of_its_site(spec: LabSpec) -> None:
    topology = plan(spec)
    for pod in topology.pods:
        address = ipaddress.ip_address(pod.ip)
        assert address in ipaddress.ip_network(VPC_CIDR)
        subnets = [s for s in topology.subnets if address in ipaddress.ip_network(s.cidr)]
        assert len(subnets) == 1
        assert pod.site in subnets[0].sites
        hosts = ipaddress.ip_network(subnets[0].cidr).hosts()
        assert pod.router_ip == str(next(hosts))
        assert pod.ip != pod.router_ip
        assert topology.gateway(pod.gateway).site == pod.site


def test_the_default_lab_is_the_one_that_the_manual_describes() -> None:
    topology = plan(LabSpec())
    assert topology.sites == ("a", "b", "c")
    assert [g.name for g in topology.gateways] == ["a1", "b1", "c1"]
    assert [p.name for p in topology.pods] == [
        *("a-v1-1", "a-v2-1"),
        *("b-v1-1", "b-v2-1"),
        *("c-v1-1", "c-v2-1"),
    ]
    assert {p.ip for p in topology.pods} == {"10.0.1.10", "10.0.2.10", "10.0.3.10"}
    assert [s.cidr for s in topology.subnets] == [
        *("10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24"),
        "10.0.200.0/24",
    ]
    assert topology.subnets[-1].sites == ("a", "b", "c")
    assert len({v.tenant for v in topology.vpcs}) == len({v.vni for v in topology.vpcs}) == 2


def test_the_second_pod_lives_in_the_stretched_subnet_of_every_site() -> None:
    topology = plan(LabSpec(pods=3, vpcs=1))
    assert [p.ip for p in topology.pods if p.name.endswith("-2")] == [
        *("10.0.200.10", "10.0.200.11", "10.0.200.12"),
    ]
    assert topology.pod("a-v1-3").ip == "10.0.1.12"


def test_pods_of_a_site_are_dealt_to_its_gateways() -> None:
    topology = plan(LabSpec(sites=1, gateways=2, pods=3, vpcs=1))
    assert [p.gateway for p in topology.pods] == ["a1", "a2", "a1"]


@given(specs)
def test_a_topology_survives_json(spec: LabSpec) -> None:
    topology = plan(spec)
    assert Topology.from_json(json.loads(json.dumps(topology.to_json()))) == topology


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ({"sites": 0}, "--sites 0"),
        ({"sites": 27}, "--sites 27"),
        ({"gateways": 0}, "--gateways 0"),
        ({"gateways": 10}, "--gateways 10"),
        ({"pods": -1}, "--pods -1"),
        ({"pods": 101}, "--pods 101"),
        ({"vpcs": 33}, "--vpcs 33"),
        ({"sites": 26, "pods": 50, "vpcs": 3}, "3900 pods"),
        ({"underlay": "ipx"}, "--underlay ipx"),
        ({"name": "Lab"}, "'Lab'"),
        ({"name": "a/b"}, "'a/b'"),
        ({"name": ""}, "''"),
        ({"name": "x" * 33}, "1 to 32"),
    ],
)
def test_sizes_out_of_bounds_are_refused(size: dict[str, int], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        LabSpec(**size)  # type: ignore[arg-type]


def test_namespaces_of_a_lab_are_not_taken_for_those_of_another() -> None:
    inner, outer = plan(LabSpec(name="x-a", sites=26)), plan(LabSpec(name="x", sites=26))
    for netns in inner.namespaces():
        assert belongs_to("x-a", netns) and not belongs_to("x", netns)
    for netns in outer.namespaces():
        assert belongs_to("x", netns) and not belongs_to("x-a", netns)


@pytest.mark.parametrize(
    ("arguments", "groups"),
    [
        (["a", "b,c"], [("a",), ("b", "c")]),
        (["a"], [("a",), ("b", "c")]),
        (["c,a"], [("a", "c"), ("b",)]),
        (["a", "b", "c"], [("a",), ("b",), ("c",)]),
    ],
)
def test_sites_not_named_stay_together(arguments: list[str], groups: list[tuple[str, ...]]) -> None:
    assert list(partition_groups(("a", "b", "c"), arguments)) == groups


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "cuts nothing"),
        (["a,b,c"], "cuts nothing"),
        (["a", "d"], "'d' is no site"),
        (["a", "a,b"], "a is named twice"),
        (["a,"], "'' is no site"),
    ],
)
def test_partitions_that_make_no_sense_are_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        partition_groups(("a", "b", "c"), arguments)


def test_one_more_pod_gets_what_the_others_have() -> None:
    topology = plan(LabSpec())
    pod = plan_pod(topology, name="b-v2-7", gateway="b1", vpc="v2", ip="10.0.200.77")
    assert (pod.site, pod.router_ip, pod.ifname) == ("b", "10.0.200.1", "b-v2-7")
    assert pod.mac not in {p.mac for p in topology.pods}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"name": "a-v1-1"}, Refused),
        ({"name": "nonsense"}, BadInput),
        ({"gateway": "z1"}, NotFound),
        ({"vpc": "v9"}, NotFound),
        ({"ip": "10.1.0.9"}, BadInput),
        ({"ip": "10.0.1.1"}, BadInput),
        ({"ip": "10.0.01.9"}, BadInput),
        ({"ip": "10.0.1"}, BadInput),
    ],
)
def test_a_pod_that_cannot_be_is_refused(change: dict[str, str], error: type[Exception]) -> None:
    wanted = {"name": "a-v1-9", "gateway": "a1", "vpc": "v1", "ip": "10.0.1.99"} | change
    with pytest.raises(error):
        plan_pod(plan(LabSpec()), **wanted)


def test_an_unknown_member_is_named_with_those_there_are() -> None:
    topology = plan(LabSpec(sites=2))
    with pytest.raises(NotFound, match="'z9'; it has a1, b1"):
        topology.gateway("z9")
    with pytest.raises(NotFound, match="'q'; it has a-v1-1"):
        topology.pod("q")
