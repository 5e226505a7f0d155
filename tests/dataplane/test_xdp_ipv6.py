"""IPv6 in pods' packets: packet in, verdict, packet out, for every branch that IPv4 has not."""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest

from dataplane.fib.facts import EndpointFact
from dataplane.reasons import DropReason
from dataplane.xdp import layout
from tests.dataplane.workbench import (
    DROP,
    MOVED_MAC,
    PASS,
    PEER,
    REDIRECT,
    ROUTER,
    VNI,
    VPC,
    Bench,
    check_drop,
    ip_fields,
)

FIRST, FAR_FIRST = "fd00:0:0:1::1", "fd00:0:0:2::1"
ABROAD = "fd00:0:0:2::10"
IDLE = "fd00:0:0:1::20"
ELSEWHERE = "fd00:0:0:3::10"
LINK = "fe80::5"
ICMP = 58


@pytest.fixture(scope="module")
def bench(module_pair: Any, packets: Any) -> Bench:
    pair = module_pair
    homes = {"1": ("a",), "2": ("b",), "3": ("a", "b")}
    pair.vpc(VPC, VNI, {f"fd00:0:0:{n}::/64": sites for n, sites in homes.items()})
    pair.vpc(VPC, VNI, {"10.9.0.0/24": ("a",)})
    # Only single packets are sent here, and counted.
    pod = pair.pod(pair.a, "one", VPC, "fd00:0:0:1::10", mute=True)
    neighbour = pair.pod(pair.a, "two", VPC, "fd00:0:0:1::11", mtu=1400, mute=True)
    blocked = pair.pod(pair.a, "three", VPC, "fd00:0:0:1::12", mute=True)
    for ip, site, gateway in (
        (ABROAD, "b", pair.b.id),
        (ELSEWHERE, "c", None),
        (IDLE, "a", pair.a.id),
        (blocked.ip, "b", pair.b.id),
    ):
        pair.tell("endpoint", EndpointFact(VPC, ip, site, gateway, MOVED_MAC))
    pair.open()
    return Bench(pair.a, pair.b, pod, neighbour, blocked, packets)


def sent(b: Bench, ip: bytes) -> bytes:
    return b.sent(ip, kind=0x86DD)


def datagram(b: Bench, dst: str, size: int = 10, src: str = "", **header: Any) -> bytes:
    payload = b.packets.udp(1000, 2000, bytes(size))
    return bytes(b.packets.ipv6(src or b.pod.ip, dst, payload, **header))


def inner(b: Bench, ip: bytes) -> bytes:
    return bytes(b.packets.ethernet(b.pod.mac, ROUTER, ip, 0x86DD))


def from_peer(b: Bench, dst: str, src: str = ABROAD, **header: Any) -> bytes:
    return b.tunnelled(inner(b, datagram(b, dst, src=src, **header)))


def fields(packet: bytes, at: int = 14) -> dict[str, Any]:
    version, length, protocol, hops = struct.unpack_from("!IHBB", packet, at)
    ends = (packet[at + 8 : at + 24], packet[at + 24 : at + 40])
    src, dst = (socket.inet_ntop(socket.AF_INET6, end) for end in ends)
    return {
        "version": version >> 28,
        "length": length,
        "protocol": protocol,
        "hops": hops,
        "src": src,
        "dst": dst,
    }


# ---- neighbours ---------------------------------------------------------------------------------


def solicitation(b: Bench, target: str, src: str = "", **changes: Any) -> bytes:
    """As the pod's stack sends it; `option` and `code` and what `ipv6` takes can be others."""
    option = changes.pop("option", b"\1\1" + bytes.fromhex(b.pod.mac.replace(":", "")))
    message = bytes((135, changes.pop("code", 0), 0, 0, 0, 0, 0, 0))
    message += socket.inet_pton(socket.AF_INET6, target) + option
    header = {"protocol": ICMP, "hops": 255, **changes}
    return sent(b, b.packets.ipv6(src or b.pod.ip, "ff02::1:ff00:1", message, **header))


def test_ipv4_written_as_ipv6_is_nobody(bench: Bench) -> None:
    """In that form it stands in keys, where it would be found."""
    known = "::ffff:10.9.0.1"
    for src, dst in (("", known), (known, ABROAD)):
        frame = sent(bench, datagram(bench, dst, src=src))
        check_drop(bench, dst, bench.from_pod, frame, DropReason.MALFORMED)
    asked = solicitation(bench, known)
    check_drop(bench, known, bench.from_pod, asked, DropReason.NEIGHBOUR_OUTSIDE)
    brought = from_peer(bench, bench.pod.ip, src=known)
    check_drop(bench, known, bench.from_wan, brought, DropReason.MALFORMED)


@pytest.mark.parametrize("target", [FIRST, "fd00:0:0:1::99", ABROAD, "fd00:0:0:3::3"])
@pytest.mark.parametrize("source", ["", LINK, "::"])
def test_a_neighbour_solicitation_is_answered(bench: Bench, target: str, source: str) -> None:
    option = {"option": b""} if source == "::" else {}
    for padding in (b"", bytes(20)):
        done = bench.from_pod(solicitation(bench, target, source, **option) + padding)
        assert done.verdict == REDIRECT and len(done.packet) == 86
        assert done.packet[:14] == bench.packets.ethernet(bench.pod.mac, ROUTER, b"", 0x86DD)
        head = fields(done.packet)
        to = "ff02::1" if source == "::" else source or bench.pod.ip
        assert (head["src"], head["dst"], head["hops"]) == (target, to, 255)
        assert (head["protocol"], head["length"], head["version"]) == (ICMP, 32, 6)
        message = done.packet[54:]
        assert message[:2] == b"\x88\0" and bench.packets.checksum6(done.packet[14:]) == 0
        assert message[4:8] == (b"\xa0" if source == "::" else b"\xe0") + bytes(3)
        assert message[8:24] == socket.inet_pton(socket.AF_INET6, target)
        assert message[24:] == b"\2\1" + layout.GATEWAY_MAC


# ---- forwarding ---------------------------------------------------------------------------------


def test_encapsulation_is_that_of_ipv4_around_ipv6(bench: Bench) -> None:
    ip = datagram(bench, ABROAD, hops=9)
    done = bench.from_pod(sent(bench, ip) + b"padding")
    assert done.verdict == REDIRECT
    assert ip_fields(done.packet)["total"] == 36 + 14 + len(ip)
    assert ip_fields(done.packet)["dst"] == PEER
    assert bench.packets.checksum(done.packet[14:34]) == 0
    assert done.packet[42:50] == bytes.fromhex("00006558") + VNI.to_bytes(3, "big") + b"\0"
    assert done.packet[50:64] == bench.packets.ethernet(MOVED_MAC, ROUTER, b"", 0x86DD)
    assert fields(done.packet, 64)["hops"] == 8
    assert done.packet[64 + 8 :][: len(ip) - 8] == ip[8:]


def test_one_flow_keeps_its_outer_port_and_flows_spread(bench: Bench) -> None:
    def port(sport: int, protocol: int = 17, dst: str = ABROAD) -> int:
        ip = bench.packets.ipv6(
            bench.pod.ip, dst, bench.packets.udp(sport, 80, bytes(8)), protocol=protocol
        )
        (outer,) = struct.unpack_from("!H", bench.from_pod(sent(bench, ip)).packet, 34)
        return int(outer)

    assert port(1) == port(1)
    assert len({port(sport) for sport in range(32)}) > 16
    assert len({port(sport, protocol=44) for sport in range(8)}) == 1, "fragments stay together"
    assert len({port(1, dst=f"fd00:0:0:2:{n}::9") for n in range(1, 32)}) > 16


def test_an_unclaimed_address_goes_to_its_subnet_s_home(bench: Bench) -> None:
    done = bench.from_pod(sent(bench, datagram(bench, "fd00:0:0:2::99")))
    assert done.verdict == REDIRECT and ip_fields(done.packet)["dst"] == PEER
    assert done.packet[50:56] == layout.GATEWAY_MAC


def test_a_neighbour_is_reached_directly(bench: Bench) -> None:
    ip = datagram(bench, bench.neighbour.ip)
    done = bench.from_pod(sent(bench, ip))
    assert done.verdict == REDIRECT
    assert done.packet[:14] == bench.packets.ethernet(bench.neighbour.mac, ROUTER, b"", 0x86DD)
    assert done.packet[14:] == ip[:7] + b"\x3f" + ip[8:]


def test_decapsulation_hands_the_frame_to_the_pod(bench: Bench) -> None:
    ip = datagram(bench, bench.pod.ip, src=ABROAD)
    done = bench.from_wan(bench.tunnelled(inner(bench, ip)))
    assert done.verdict == REDIRECT
    assert done.packet[:14] == bench.packets.ethernet(bench.pod.mac, ROUTER, b"", 0x86DD)
    assert done.packet[14:] == ip[:7] + b"\x3f" + ip[8:]


@pytest.mark.parametrize("identifier", range(0, 65536, 4099))
def test_an_echo_to_the_gateway_is_answered(bench: Bench, identifier: int) -> None:
    message = b"\x80\0\0\0" + identifier.to_bytes(2, "big") + b"\0\1payload!"
    ip = bench.packets.ipv6(bench.pod.ip, FIRST, message, protocol=ICMP)
    check = bench.packets.checksum6(ip)
    ip = ip[:42] + check.to_bytes(2, "big") + ip[44:]
    done = bench.from_pod(sent(bench, ip))
    assert done.verdict == REDIRECT
    assert done.packet[:14] == bench.packets.ethernet(bench.pod.mac, ROUTER, b"", 0x86DD)
    head = fields(done.packet)
    assert (head["src"], head["dst"], done.packet[54]) == (FIRST, bench.pod.ip, 129)
    assert bench.packets.checksum6(done.packet[14:]) == 0 and done.packet[58:] == ip[44:]


# ---- what senders are told ----------------------------------------------------------------------


def answered(bench: Bench, out: bytes, source: str, sender: str, ip: bytes) -> bytes:
    """The ICMPv6 message about `ip` in a frame whose addresses, lengths and checksum agree."""
    head = fields(out)
    assert (head["src"], head["dst"], head["protocol"]) == (source, sender, ICMP)
    assert head["length"] == len(out) - 54 == 64 and (head["hops"], head["version"]) == (64, 6)
    assert bench.packets.checksum6(out[14:]) == 0
    assert out[62:] == ip[:56]
    return out[54:]


def test_too_big_is_answered_with_the_size_that_fits(bench: Bench) -> None:
    for dst, size, mtu in ((ABROAD, 1403, 1450), (bench.neighbour.ip, 1353, 1400)):
        ip = datagram(bench, dst, size=size)
        before = bench.drops()["too-big"]
        done = bench.from_pod(sent(bench, ip))
        assert done.verdict == REDIRECT and bench.drops()["too-big"] == before + 1
        assert done.packet[:14] == bench.packets.ethernet(bench.pod.mac, ROUTER, b"", 0x86DD)
        message = answered(bench, done.packet, FIRST, bench.pod.ip, ip)
        assert message[:2] == b"\2\0" and message[4:8] == mtu.to_bytes(4, "big")
    assert bench.from_pod(sent(bench, datagram(bench, ABROAD, size=1402))).verdict == REDIRECT
    assert bench.drops()["too-big"] == before + 1


def test_a_sender_is_told_that_the_hops_have_ended(bench: Bench) -> None:
    for dst in (ABROAD, bench.neighbour.ip):
        ip = datagram(bench, dst, hops=1)
        done = bench.from_pod(sent(bench, ip))
        message = answered(bench, done.packet, FIRST, bench.pod.ip, ip)
        assert message[:2] == b"\3\0" and message[4:8] == bytes(4)


def test_the_far_sender_of_what_does_not_fit_here_is_told_through_the_tunnel(bench: Bench) -> None:
    cases = (
        (datagram(bench, bench.neighbour.ip, src=ABROAD, size=1400), b"\2\0", 1400),
        (datagram(bench, bench.pod.ip, src=ABROAD, hops=1), b"\3\0", 0),
    )
    for ip, kind, mtu in cases:
        done = bench.from_wan(bench.tunnelled(inner(bench, ip)))
        outer = ip_fields(done.packet)
        assert (done.verdict, outer["dst"]) == (REDIRECT, PEER)
        assert outer["total"] == len(done.packet) - 14
        message = answered(bench, done.packet[50:], FIRST, ABROAD, ip)
        assert message[:2] == kind and message[4:8] == mtu.to_bytes(4, "big")


def test_an_error_may_come_from_the_address_of_a_subnet_s_gateway(bench: Bench) -> None:
    for kind in (b"\2\0", b"\3\0"):
        ip = bench.packets.ipv6(FAR_FIRST, bench.pod.ip, kind + bytes(40), protocol=ICMP)
        done = bench.from_wan(bench.tunnelled(inner(bench, ip)))
        assert done.verdict == REDIRECT and done.packet[54:] == ip[40:]


# ---- drops --------------------------------------------------------------------------------------


def pod_drops(b: Bench) -> dict[str, tuple[bytes, DropReason]]:
    p, pod = b.packets, b.pod
    own = pod.ip

    def icmp(dst: str, message: bytes, **header: Any) -> bytes:
        return sent(b, p.ipv6(own, dst, message, protocol=ICMP, **header))

    malformed, expired, too_big = DropReason.MALFORMED, DropReason.TTL_EXPIRED, DropReason.TOO_BIG
    short = p.ipv6(own, ABROAD, bytes(8))
    return {
        "cut short": (sent(b, short[:39]), malformed),
        "another version": (sent(b, datagram(b, ABROAD, version=4)), malformed),
        "beyond the frame": (sent(b, datagram(b, ABROAD, length=100)), malformed),
        "other IP": (sent(b, datagram(b, ABROAD, src="fd00:0:0:1::99")), DropReason.SPOOFED_IP),
        "other in the first half": (
            sent(b, datagram(b, ABROAD, src="fd00:0:0:2::10")),
            DropReason.SPOOFED_IP,
        ),
        "IPv4 from a port that has none": (
            b.sent(b.datagram("10.0.0.1", src="10.0.1.10")),
            DropReason.SPOOFED_IP,
        ),
        "from the link": (sent(b, datagram(b, ABROAD, src=LINK)), DropReason.SPOOFED_IP),
        "multicast": (sent(b, datagram(b, "ff02::2", src=LINK)), DropReason.MULTICAST),
        "outside the VPC": (sent(b, datagram(b, "fd01::1")), DropReason.NO_SUBNET),
        "unclaimed at home": (sent(b, datagram(b, "fd00:0:0:1::99")), DropReason.UNCLAIMED),
        "unclaimed in a stretched subnet": (
            sent(b, datagram(b, "fd00:0:0:3::9")),
            DropReason.UNCLAIMED,
        ),
        "not echo to the gateway": (sent(b, datagram(b, FIRST)), DropReason.UNCLAIMED),
        "an echo reply to the gateway": (icmp(FIRST, b"\x81\0" + bytes(8)), DropReason.UNCLAIMED),
        "an echo cut short": (icmp(FIRST, b"\x80" + bytes(6)), DropReason.UNCLAIMED),
        "nothing attached": (sent(b, datagram(b, IDLE)), DropReason.NOT_ATTACHED),
        "site without gateways": (sent(b, datagram(b, ELSEWHERE)), DropReason.NO_GROUP),
        "last hop of what is too short to quote": (
            sent(b, p.ipv6(own, ABROAD, bytes(15), hops=1) + bytes(20)),
            expired,
        ),
        "last hop of an ICMP error": (icmp(ABROAD, b"\1\0" + bytes(30), hops=1), expired),
        "too big an ICMP error": (icmp(ABROAD, b"\3\0" + bytes(1500)), too_big),
        "solicitation with another source": (
            solicitation(b, FIRST, "fd00:0:0:1::99"),
            DropReason.SPOOFED_NEIGHBOUR,
        ),
        "solicitation for itself": (
            solicitation(b, own, "::", option=b""),
            DropReason.NEIGHBOUR_IGNORED,
        ),
        "solicitation outside": (solicitation(b, "fd01::1"), DropReason.NEIGHBOUR_OUTSIDE),
        "solicitation for the link": (solicitation(b, LINK, "::"), DropReason.NEIGHBOUR_OUTSIDE),
        "solicitation from another link": (solicitation(b, FIRST, hops=254), malformed),
        "solicitation of another kind": (solicitation(b, FIRST, code=1), malformed),
        "solicitation said to be short": (solicitation(b, FIRST, length=23), malformed),
        "solicitation cut short": (icmp("ff02::1", b"\x87" + bytes(22), hops=255), malformed),
        "advertisement": (icmp("ff02::1", b"\x88" + bytes(31), hops=255), DropReason.MULTICAST),
    }


def test_what_a_pod_may_not_send_is_dropped_for_its_reason(bench: Bench) -> None:
    for name, (frame, reason) in pod_drops(bench).items():
        check_drop(bench, name, bench.from_pod, frame, reason)


def wan_drops(b: Bench) -> dict[str, tuple[bytes, DropReason]]:
    p, pod = b.packets, b.pod
    foreign = DropReason.FOREIGN_SOURCE

    def icmp(src: str, message: bytes) -> bytes:
        return b.tunnelled(inner(b, p.ipv6(src, pod.ip, message, protocol=ICMP)))

    good = inner(b, datagram(b, pod.ip, src=ABROAD))
    return {
        "inner frame beyond the outer": (b.tunnelled(good[:-4]) + bytes(4), DropReason.MALFORMED),
        "a VNI of nobody's": (b.tunnelled(good, vni=VNI + 1), DropReason.NOT_ENTITLED),
        "from another site's address": (from_peer(b, pod.ip, ELSEWHERE), foreign),
        "from an address of ours": (from_peer(b, pod.ip, b.neighbour.ip), foreign),
        "from the link": (from_peer(b, pod.ip, LINK), foreign),
        "an echo from a gateway": (icmp(FAR_FIRST, b"\x80\0" + bytes(30)), foreign),
        "an error of another kind": (icmp(FAR_FIRST, b"\1\0" + bytes(30)), foreign),
        "an error from another": (icmp("fd00:0:0:2::99", b"\2\0" + bytes(30)), foreign),
        "an error cut short": (icmp(FAR_FIRST, b"\2" + bytes(6)), foreign),
        "not here": (from_peer(b, "fd00:0:0:1::99"), DropReason.NOT_LOCAL),
        "to many": (from_peer(b, "ff02::1"), DropReason.NOT_LOCAL),
        "nothing attached": (from_peer(b, IDLE), DropReason.NOT_ATTACHED),
        "back where it came from": (from_peer(b, ABROAD), DropReason.LOOP),
        "last hop of an error": (
            b.tunnelled(
                inner(b, p.ipv6(ABROAD, pod.ip, b"\1\0" + bytes(60), protocol=ICMP, hops=1))
            ),
            DropReason.TTL_EXPIRED,
        ),
    }


def test_what_a_tunnel_may_not_bring_is_dropped_for_its_reason(bench: Bench) -> None:
    for name, (frame, reason) in wan_drops(bench).items():
        check_drop(bench, name, bench.from_wan, frame, reason)


def test_a_blocked_port_carries_nothing_and_is_told_nothing(bench: Bench) -> None:
    mac, ip = bench.blocked.mac, bench.blocked.ip
    for packet in (datagram(bench, ABROAD, src=ip), solicitation(bench, FIRST, ip)[14:]):
        frame = bench.packets.ethernet(ROUTER, mac, packet, 0x86DD)
        done = bench.from_pod(frame, bench.blocked.ifname)
        assert done.verdict == DROP
    assert bench.from_wan(sent(bench, datagram(bench, ABROAD))).verdict == PASS


def test_the_drop_of_an_ipv6_packet_names_its_addresses(bench: Bench) -> None:
    bench.window()
    bench.from_wan(from_peer(bench, IDLE))
    (event,) = bench.told()
    assert (event.src, event.dst, event.outer, event.vni) == (ABROAD, IDLE, PEER, VNI)
