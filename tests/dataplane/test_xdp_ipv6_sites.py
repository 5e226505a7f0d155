"""IPv6 end to end on the real kernel: pods whose stacks find, reach and hear of each other."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

from tests.dataplane.conftest import WAIT_S, configure, transfer

RED, BLUE = "red", "blue"
SUBNETS = {"fd00:0:0:1::/64": ("a",), "fd00:0:0:2::/64": ("b",), "10.0.1.0/24": ("a",)}
ONE, TWO, THREE = "fd00:0:0:1::10", "fd00:0:0:2::10", "fd00:0:0:1::11"
FIRST = "fd00:0:0:1::1"


@pytest.fixture
def tenants(site_pair: Any) -> Any:
    """Two VPCs with the same addresses: a pod of each at both sites, a second red one at a."""
    for vpc, vni in ((RED, 100), (BLUE, 200)):
        site_pair.vpc(vpc, vni, SUBNETS)
        site_pair.pod(site_pair.a, f"{vpc}1", vpc, ONE)
        site_pair.pod(site_pair.b, f"{vpc}2", vpc, TWO)
    site_pair.pod(site_pair.a, "red3", RED, THREE)
    site_pair.open()
    return site_pair


def test_pods_reach_their_own_vpc_and_no_other(tenants: Any) -> None:
    red, blue = tenants.pods["red1"], tenants.pods["blue1"]
    assert red.ping(TWO, count=3) == 3
    assert red.ping(THREE, count=3) == 3  # the same subnet, so the stack asks for its neighbour
    assert red.ping(FIRST) == 1
    assert tenants.pods["red2"].ping(THREE, count=3) == 3
    assert blue.ping(TWO, count=3) == 3
    assert blue.ping(THREE, timeout_s=0.3) == 0
    ports = tenants.b.run(tenants.b.backend.counters)["ports"]
    assert ports["p-red2"]["rx_packets"] == 6 and ports["p-blue2"]["rx_packets"] == 3
    for gateway in tenants.gateways:
        report = gateway.run(
            lambda gateway=gateway: gateway.backend.audit(gateway.compiler.tables())
        )
        assert report.clean, report


def test_tcp_goes_on_where_the_underlay_carries_less_than_the_pods_send(tenants: Any) -> None:
    one, two = tenants.pods["red1"], tenants.pods["red2"]
    payload = os.urandom(1 << 20)
    assert transfer(one, two, payload) == payload
    assert [gateway.drops("too-big") for gateway in tenants.gateways] == [0, 0]
    for gateway in tenants.gateways:
        configure(gateway.netns, "wan0", mtu=1400)
        gateway.run(gateway.backend.refresh_adjacency)
    assert transfer(one, two, payload) == payload
    assert 0 < tenants.a.drops("too-big") < 50, "the sender was told, and did not go on so"


def test_a_sender_learns_where_a_packet_s_life_ended(tenants: Any) -> None:
    """What traceroute does: the first hop is the subnet's gateway."""

    def send() -> tuple[str, bytes]:
        icmp = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        with icmp, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            icmp.settimeout(WAIT_S)
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 1)
            probe.sendto(b"a probe of some size", (TWO, 33434))
            while True:
                message, sender = icmp.recvfrom(2048)
                if message[0] == 3:
                    return str(sender[0]), message[:2]

    assert tenants.pods["red1"].run(send) == (FIRST, b"\3\0")


def test_ipv4_and_ipv6_pods_of_a_vpc_live_beside_each_other(tenants: Any) -> None:
    four = tenants.pod(tenants.a, "red4", RED, "10.0.1.10")
    tenants.push()
    tenants.a.run(tenants.a.backend.refresh_adjacency)
    assert four.ping("10.0.1.1") == 1
    assert tenants.pods["red1"].ping(TWO) == 1
    rows = tenants.a.run(tenants.a.backend.show)
    assert {row["ip"] for row in rows["endpoints"]} == {ONE, TWO, THREE, "10.0.1.10"}
    assert {row["cidr"] for row in rows["subnets"]} == set(SUBNETS)
    explained = tenants.a.run(lambda: tenants.a.backend.explain(100, "fd00:0:0:2::99"))
    assert (explained["kind"], explained["gateway_ip"]) == ("subnet", "fd00:0:0:2::1")
