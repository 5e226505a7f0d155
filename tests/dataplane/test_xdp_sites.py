"""End to end on the real kernel: pods behind two gateways."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from typing import Any

import pytest

from dataplane.drops import DropEvent
from dataplane.fib.facts import EndpointFact, VpcFact
from dataplane.reasons import DropReason
from tests.dataplane.conftest import WAIT_S, configure, transfer, wait_for

SUBNETS = {"10.0.1.0/24": ("a",), "10.0.2.0/24": ("b",), "10.0.200.0/24": ("a", "b")}
RED, BLUE = "red", "blue"


@pytest.fixture
def tenants(site_pair: Any) -> Any:
    """Two VPCs with the same addresses: a pod of each at both sites, a second red one at a."""
    site_pair.vpc(RED, 100, SUBNETS)
    site_pair.vpc(BLUE, 200, SUBNETS)
    for vpc in (RED, BLUE):
        site_pair.pod(site_pair.a, f"{vpc}1", vpc, "10.0.1.10")
        site_pair.pod(site_pair.b, f"{vpc}2", vpc, "10.0.2.10")
    site_pair.pod(site_pair.a, "red3", RED, "10.0.200.10")
    site_pair.open()
    return site_pair


def test_pods_reach_their_own_vpc_and_no_other(tenants: Any) -> None:
    red, blue = tenants.pods["red1"], tenants.pods["blue1"]
    assert red.ping("10.0.2.10", count=3) == 3
    assert red.ping("10.0.200.10", count=3) == 3  # the same gateway, another subnet
    assert red.ping("10.0.1.1") == 1  # the subnet's gateway
    assert tenants.pods["red2"].ping("10.0.200.10", count=3) == 3
    assert blue.ping("10.0.2.10", count=3) == 3
    assert blue.ping("10.0.200.10", timeout_s=0.3) == 0
    tenants.a.until_dropped("unclaimed", 1)
    # Both tenants have the address 10.0.2.10: who was pinged is seen at the ports.
    ports = tenants.b.run(tenants.b.backend.counters)["ports"]
    assert ports["p-red2"]["rx_packets"] == 6 and ports["p-blue2"]["rx_packets"] == 3


def test_tcp_carries_bytes_intact(tenants: Any) -> None:
    payload = os.urandom(1 << 20) * 8
    arrived = transfer(tenants.pods["red1"], tenants.pods["red2"], payload)
    assert hashlib.sha256(arrived).digest() == hashlib.sha256(payload).digest()


def test_tcp_goes_on_where_the_underlay_carries_less_than_the_pods_send(tenants: Any) -> None:
    """The pods' interfaces carry 1450 bytes; then the underlay has room for 1250 only."""
    one, two = tenants.pods["red1"], tenants.pods["red2"]
    payload = os.urandom(1 << 20)
    assert transfer(one, two, payload) == payload
    for gateway in tenants.gateways:
        assert gateway.drops("too-big") == 0
        configure(gateway.netns, "wan0", mtu=1300)
        gateway.run(gateway.backend.refresh_adjacency)
    assert transfer(one, two, payload) == payload
    assert transfer(two, one, payload) == payload
    # The other way round the first packet already says what fits (TCP's MSS).
    told = [gateway.drops("too-big") for gateway in tenants.gateways]
    assert 0 < told[0] < 50 and told[1] < 50, "senders were told, and did not go on so"


def test_a_sender_learns_where_a_packet_s_life_ended(tenants: Any) -> None:
    """What traceroute does: the first hop is the subnet's gateway."""

    def send() -> tuple[str, bytes]:
        icmp = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        with icmp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            icmp.settimeout(WAIT_S)
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
            probe.sendto(b"probe", ("10.0.2.10", 33434))
            packet, (source, _) = icmp.recvfrom(2048)
            return source, packet[20:22]

    assert tenants.pods["red1"].run(send) == ("10.0.1.1", b"\x0b\0")


def test_drops_are_told_with_whose_packets_they_were(tenants: Any) -> None:
    one = tenants.pods["red1"]
    assert one.ping("10.0.200.99", timeout_s=0.1) == 0
    events: list[DropEvent] = []

    def told() -> bool:
        events.extend(tenants.a.run(tenants.a.backend.take_drops))
        return bool(events)

    wait_for(told, "the drop is told")
    (event,) = events
    assert event.reason is DropReason.UNCLAIMED
    assert (event.vni, event.src, event.dst) == (100, "10.0.1.10", "10.0.200.99")
    assert (event.ifname, event.outer, event.packets) == (one.ifname, "", 1)
    assert not tenants.a.run(tenants.a.backend.take_drops)


def test_traffic_is_summed_by_vpc_and_by_site_and_stays_when_a_port_goes(tenants: Any) -> None:
    one = tenants.pods["red1"]

    def sums() -> tuple[Any, Any]:
        counters = tenants.a.run(tenants.a.backend.counters)
        return counters["vpcs"]["100"], counters["sites"]["b"]

    assert one.ping("10.0.2.10", count=5) == 5
    assert one.ping("10.0.200.99", timeout_s=0.1) == 0
    tenants.a.until_dropped("unclaimed", 1)
    vpc, site = sums()
    assert vpc["rx_packets"] == site["rx_packets"] == 5
    assert vpc["tx_packets"] == site["tx_packets"] == 5 and vpc["drops"] == 1
    tenants.a.compiler.set_attachment(one.ifname, None)
    tenants.push()
    tenants.sync()
    assert sums() == (vpc, site)
    tenants.a.compiler.set_gateway(tenants.b.id, None)
    tenants.push()
    assert sums() == (vpc, site)


def test_a_pod_that_sends_with_another_source_is_dropped_and_counted(tenants: Any) -> None:
    liar = tenants.pods["red1"]

    def lie() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            head = struct.pack(
                "!BBHHHBBH4s4s",
                0x45,
                0,
                28,
                1,
                0,
                64,
                17,
                0,
                socket.inet_aton("10.0.1.99"),
                socket.inet_aton("10.0.2.10"),
            )
            raw.sendto(head + struct.pack("!HHHH", 1, 2, 8, 0), ("10.0.2.10", 0))

    liar.run(lie)
    tenants.a.until_dropped("spoofed-ip", 1)


def test_a_tunnel_packet_from_a_stranger_is_dropped_and_counted(
    tenants: Any, packets: Any, eventually: Any
) -> None:

    def send(outer: str, inner: str = "10.0.2.10", vni: int = 100) -> None:
        ip = packets.ipv4(inner, "10.0.1.10", packets.udp(1, 2, b"x"))
        frame = packets.ethernet("02:00:00:00:01:01", "02:00:00:00:01:02", ip)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as tunnel:
            tunnel.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK: it is left to no device
            tunnel.bind((outer, 0))
            tunnel.sendto(packets.geneve(vni, frame), (tenants.a.underlay, 6081))

    tenants.add_address(tenants.b, "192.0.2.66")

    def received() -> int:
        ports = tenants.a.run(tenants.a.backend.counters)["ports"]
        return int(ports["p-red1"]["rx_packets"])

    before = received()
    tenants.b.run(lambda: send("192.0.2.66"))
    tenants.a.until_dropped("unknown-peer", 1)
    assert received() == before
    tenants.b.run(lambda: send(tenants.b.underlay))  # the same packet from a gateway arrives
    eventually(lambda: received() == before + 1, "the packet is delivered")
    # But a gateway sends for its own site's endpoints only, and for the VPCs that it may.
    tenants.b.run(lambda: send(tenants.b.underlay, "10.0.200.10"))
    tenants.a.until_dropped("foreign-source", 1)
    tenants.tell("vpc", VpcFact(RED, 100, sites=("a",)))
    tenants.tell("endpoint", EndpointFact(RED, "10.0.2.10", "c", None, "02:00:00:00:01:01"))
    tenants.push()
    tenants.b.run(lambda: send(tenants.b.underlay))
    tenants.a.until_dropped("not-entitled", 1)
    assert received() == before + 1


def test_a_pod_that_moves_is_reached_by_those_who_have_not_heard(tenants: Any) -> None:
    """The second site knows that it is gone, the first site does not: through there and back."""
    red1, red2 = tenants.pods["red1"], tenants.pods["red2"]
    assert red2.ping("10.0.200.10") == 1
    mover = tenants.pods["red3"]
    moved = tenants.pod(tenants.b, "red4", RED, mover.ip)
    assert tenants.a.compiler.take_delta(), "what the first site is not told"
    tenants.b.push()
    tenants.b.run(tenants.b.backend.refresh_adjacency)
    assert red2.ping(moved.ip) == 1
    assert red1.ping(red2.ip) == 1
    # What the first site's tables call its own is sent by the second: that waits for the news.
    assert moved.ping(red1.ip, timeout_s=0.3) == 0
    tenants.a.until_dropped("foreign-source", 1)
    tenants.a.sync()
    assert moved.ping(red1.ip) == 1 and red1.ping(moved.ip) == 1


def test_everything_else_on_the_underlay_is_the_stack_s(tenants: Any) -> None:
    with_stack = tenants.a.run(lambda: socket.create_server((tenants.a.underlay, 4001)))

    def connect() -> bytes:
        with socket.create_connection((tenants.a.underlay, 4001), timeout=WAIT_S) as stream:
            accepted, _ = with_stack.accept()
            with accepted:
                accepted.sendall(b"hello")
                return stream.recv(5)

    with with_stack:
        assert tenants.b.run(connect) == b"hello"


def test_an_endpoint_that_is_removed_gets_nothing_more(tenants: Any) -> None:
    red1, red2 = tenants.pods["red1"], tenants.pods["red2"]
    assert red1.ping("10.0.2.10") == 1
    for gateway in tenants.gateways:
        gateway.compiler.set_endpoint(RED, red2.ip, None)
    tenants.push()
    assert red1.ping("10.0.2.10", timeout_s=0.3) == 0
    # Nobody claims it, so it is sent home, and dropped there.
    tenants.b.until_dropped("not-local", 1)
    # Its port is still there, and lets nothing through to the gateway's own stack.
    assert red2.ping("10.0.1.10", timeout_s=0.3) == 0
    tenants.b.until_dropped("port-blocked", 1)
    for gateway in tenants.gateways:
        report = gateway.run(
            lambda gateway=gateway: gateway.backend.audit(gateway.compiler.tables())
        )
        assert report.clean, report


def test_a_sender_learns_the_path_s_size(site_pair: Any) -> None:
    """The pods' interfaces allow more than the tunnel does: ICMP tells them, and TCP goes on."""
    site_pair.vpc(RED, 100, SUBNETS)
    sender = site_pair.pod(site_pair.a, "red1", RED, "10.0.1.10", mtu=1500)
    site_pair.pod(site_pair.b, "red2", RED, "10.0.2.10", mtu=1500)
    site_pair.open()

    def send() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
            datagrams.settimeout(WAIT_S)
            datagrams.connect(("10.0.2.10", 9))
            datagrams.send(bytes(1472))
            with pytest.raises(OSError):  # the answer arrives as an error on the socket
                while True:
                    datagrams.recv(1)
            return int(datagrams.getsockopt(socket.IPPROTO_IP, 14))  # IP_MTU

    assert sender.run(send) == 1450
    site_pair.a.until_dropped("too-big", 1)


def test_what_a_path_carries_is_measured_and_told_to_senders(routed_pair: Any) -> None:
    """A router in the underlay has a smaller link than either gateway knows of by itself."""
    pair = routed_pair
    pair.vpc(RED, 100, SUBNETS)
    one = pair.pod(pair.a, "red1", RED, "10.0.1.10")
    two = pair.pod(pair.b, "red2", RED, "10.0.2.10")
    pair.open()

    def measured() -> bool:
        pair.a.run(pair.a.backend.refresh_adjacency)
        (row,) = pair.a.run(pair.a.backend.show)["gateways"]
        return bool(row["mtu"] == pair.MTU)

    wait_for(measured, "the gateway knows what the path carries")
    assert audit(pair.a).clean
    assert one.ping("10.0.2.10") == 1
    payload = os.urandom(1 << 20)
    assert transfer(one, two, payload) == payload
    assert 0 < pair.a.drops("too-big") < 50, "the sender was told, and did not go on so"


def audit(gateway: Any) -> Any:
    return gateway.run(lambda: gateway.backend.audit(gateway.compiler.tables()))
