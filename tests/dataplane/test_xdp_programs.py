"""Packet in, verdict, packet out: every branch of the programs, run by the kernel on one packet."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest

from dataplane.reasons import DropReason
from dataplane.xdp import kernel, layout
from tests.dataplane.workbench import (
    ABROAD,
    ABROAD_MAC,
    CLOSED_VNI,
    IDLE,
    ME,
    MOVED,
    NOWHERE,
    PASS,
    PEER,
    REDIRECT,
    ROUTER,
    VNI,
    Bench,
    check_drop,
    ip_fields,
    make_bench,
)


@pytest.fixture(scope="module")
def bench(module_pair: Any, packets: Any) -> Bench:
    return make_bench(module_pair, packets)


# ---- from a pod ---------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["10.0.1.1", "10.0.1.99", "10.0.2.10", "10.0.200.3"])
def test_arp_is_answered_for_addresses_of_the_vpc(bench: Bench, asked: str) -> None:
    request = bench.packets.arp(1, bench.pod.mac, bench.pod.ip, asked)
    done = bench.from_pod(
        bench.packets.ethernet("ff:ff:ff:ff:ff:ff", bench.pod.mac, request, 0x0806)
    )
    reply = bench.packets.arp(2, ROUTER, asked, bench.pod.ip, bench.pod.mac)
    assert done.verdict == REDIRECT
    assert done.packet == bench.packets.ethernet(bench.pod.mac, ROUTER, reply, 0x0806)


def test_an_address_probe_is_answered_as_it_was_asked(bench: Bench) -> None:
    request = bench.packets.arp(1, bench.pod.mac, "0.0.0.0", "10.0.1.99")
    done = bench.from_pod(bench.sent(request, kind=0x0806))
    assert done.verdict == REDIRECT
    assert done.packet[14:] == bench.packets.arp(2, ROUTER, "10.0.1.99", "0.0.0.0", bench.pod.mac)


def test_encapsulation_is_geneve_with_the_right_vni(bench: Bench) -> None:
    ip = bench.datagram(ABROAD, ttl=9)
    done = bench.from_pod(bench.sent(ip))
    assert done.verdict == REDIRECT
    out, inner = done.packet, done.packet[50:]
    assert len(out) == 50 + 14 + len(ip)
    assert ip_fields(out) == {
        "total": 36 + 14 + len(ip),
        "fragment": 0x4000,
        "ttl": 64,
        "protocol": 17,
        "src": ME,
        "dst": PEER,
    }
    assert bench.packets.checksum(out[14:34]) == 0
    sport, dport, udp_bytes, udp_check = struct.unpack_from("!4H", out, 34)
    assert sport >= 0xC000 and dport == 6081 and udp_check == 0
    assert udp_bytes == 16 + 14 + len(ip)
    assert out[42:50] == bytes.fromhex("00006558") + VNI.to_bytes(3, "big") + b"\0"
    assert inner[:14] == bench.packets.ethernet(ABROAD_MAC, ROUTER, b"")
    assert ip_fields(inner)["ttl"] == 8 and bench.packets.checksum(inner[14:34]) == 0
    assert inner[34:] == ip[20:]


def test_one_flow_keeps_its_outer_port_and_flows_spread(bench: Bench) -> None:
    def port(sport: int, fragment: int = 0) -> int:
        payload = bench.packets.udp(sport, 80, b"")
        ip = bench.packets.ipv4(bench.pod.ip, ABROAD, payload, fragment=fragment)
        (outer,) = struct.unpack_from("!H", bench.from_pod(bench.sent(ip)).packet, 34)
        return int(outer)

    assert port(1) == port(1)
    assert len({port(sport) for sport in range(32)}) > 16
    # Fragments have no ports to look at: those of one packet stay together.
    assert len({port(sport, fragment) for sport in (1, 2) for fragment in (0x2000, 0x0010)}) == 1


def test_lengths_come_from_the_packet_not_from_the_frame(bench: Bench) -> None:
    ip = bench.datagram(ABROAD, size=0)
    done = bench.from_pod(bench.sent(ip) + b"padding")
    assert ip_fields(done.packet)["total"] == 36 + 14 + len(ip)


def test_an_unclaimed_address_goes_to_its_subnet_s_home(bench: Bench) -> None:
    done = bench.from_pod(bench.sent(bench.datagram("10.0.2.99")))
    assert done.verdict == REDIRECT and ip_fields(done.packet)["dst"] == PEER
    assert done.packet[50:56] == layout.GATEWAY_MAC


def test_a_neighbour_is_reached_directly(bench: Bench) -> None:
    ip = bench.datagram(bench.neighbour.ip)
    done = bench.from_pod(bench.sent(ip))
    assert done.verdict == REDIRECT and len(done.packet) == 14 + len(ip)
    assert done.packet[:14] == bench.packets.ethernet(bench.neighbour.mac, ROUTER, b"")
    assert ip_fields(done.packet)["ttl"] == 63
    assert bench.packets.checksum(done.packet[14:34]) == 0


def test_an_echo_to_the_gateway_is_answered(bench: Bench) -> None:
    echo = bytes.fromhex("0800000000010002") + b"payload!"
    echo = echo[:2] + bench.packets.checksum(echo).to_bytes(2, "big") + echo[4:]
    ip = bench.packets.ipv4(bench.pod.ip, "10.0.1.1", echo, protocol=1)
    done = bench.from_pod(bench.sent(ip))
    assert done.verdict == REDIRECT
    assert done.packet[:14] == bench.packets.ethernet(bench.pod.mac, ROUTER, b"")
    fields = ip_fields(done.packet)
    assert (fields["src"], fields["dst"]) == ("10.0.1.1", bench.pod.ip)
    assert bench.packets.checksum(done.packet[14:34]) == 0
    assert done.packet[34] == 0 and bench.packets.checksum(done.packet[34:]) == 0


def test_too_big_is_answered_with_the_size_that_fits(bench: Bench) -> None:
    ip = bench.datagram(ABROAD, size=1423)  # 1451 bytes, where 1450 fit
    before = bench.drops()["too-big"]
    done = bench.from_pod(bench.sent(ip))
    assert done.verdict == REDIRECT
    out = done.packet
    assert len(out) == 14 + 56
    assert out[:14] == bench.packets.ethernet(bench.pod.mac, ROUTER, b"")
    fields = ip_fields(out)
    assert (fields["src"], fields["dst"], fields["protocol"]) == ("10.0.1.1", bench.pod.ip, 1)
    assert fields["total"] == 56 and bench.packets.checksum(out[14:34]) == 0
    assert out[34:36] == b"\3\4" and bench.packets.checksum(out[34:]) == 0
    assert struct.unpack_from("!HH", out, 38) == (0, 1450)
    assert out[42:] == ip[:28]
    assert bench.drops()["too-big"] == before + 1


def test_too_big_for_a_neighbour_is_answered_with_what_fits_there(bench: Bench) -> None:
    ip = bench.datagram(bench.neighbour.ip, size=1400)
    done = answered(bench, bench.from_pod(bench.sent(ip)), "10.0.1.1", bench.pod.ip, ip)
    assert done[:14] == bench.packets.ethernet(bench.pod.mac, ROUTER, b"")
    assert done[34:36] == b"\3\4" and struct.unpack_from("!HH", done, 38) == (0, 1400)


@pytest.mark.parametrize("dst", [ABROAD, "10.0.1.11"])
def test_a_sender_is_told_that_the_ttl_has_ended(bench: Bench, dst: str) -> None:
    ip = bench.datagram(dst, ttl=1)
    before = bench.drops()["ttl-expired"]
    done = answered(bench, bench.from_pod(bench.sent(ip)), "10.0.1.1", bench.pod.ip, ip)
    assert done[34:36] == b"\x0b\0" and done[38:42] == bytes(4)
    assert bench.drops()["ttl-expired"] == before + 1


def answered(bench: Bench, done: kernel.TestRun, source: str, sender: str, ip: bytes) -> bytes:
    """The frame with an ICMP error about `ip`, whose addresses, lengths and checksums agree."""
    assert done.verdict == REDIRECT
    out = done.packet
    fields = ip_fields(out)
    assert (fields["src"], fields["dst"], fields["protocol"]) == (source, sender, 1)
    assert fields["total"] == len(out) - 14 == 56 and fields["ttl"] == 64
    assert bench.packets.checksum(out[14:34]) == 0 == bench.packets.checksum(out[34:])
    assert out[42:] == ip[:28]
    return out


def test_the_far_sender_of_what_does_not_fit_here_is_told_through_the_tunnel(bench: Bench) -> None:
    pod, neighbour = bench.pod.ip, bench.neighbour.ip
    cases = {
        "too big": (bench.datagram(neighbour, src=ABROAD, size=1400), b"\3\4\0\0", 1400),
        "last hop": (bench.datagram(pod, src=ABROAD, ttl=1), b"\x0b\0\0\0", 0),
    }
    for name, (ip, head, mtu) in cases.items():
        done = bench.from_wan(bench.tunnelled(bench.packets.ethernet(bench.pod.mac, ROUTER, ip)))
        outer = ip_fields(done.packet)
        assert (done.verdict, outer["src"], outer["dst"]) == (REDIRECT, ME, PEER), name
        assert outer["total"] == len(done.packet) - 14 and outer["protocol"] == 17
        assert bench.packets.checksum(done.packet[14:34]) == 0
        assert done.packet[46:49] == VNI.to_bytes(3, "big")
        inner = kernel.TestRun(done.verdict, done.packet[50:], 0)
        error = answered(bench, inner, "10.0.1.1", ABROAD, ip)
        assert (error[34:36], error[40:42]) == (head[:2], mtu.to_bytes(2, "big")), name


def test_fragments_are_carried_as_they_are(bench: Bench) -> None:
    """First, middle and last parts of a datagram, both ways: only the TTL is another after."""
    for fragment in (0x2000, 0x2010, 0x0020):
        ip = bench.packets.ipv4(bench.pod.ip, ABROAD, bytes(range(128)), fragment=fragment)
        out = bench.from_pod(bench.sent(ip))
        assert out.verdict == REDIRECT and out.packet[84:] == ip[20:]
        assert ip_fields(out.packet, 64)["fragment"] == fragment
        assert bench.packets.checksum(out.packet[64:84]) == 0
        ip = bench.packets.ipv4(ABROAD, bench.pod.ip, bytes(range(128)), fragment=fragment)
        frame = bench.packets.ethernet(bench.pod.mac, ROUTER, ip)
        out = bench.from_wan(bench.tunnelled(frame))
        assert out.verdict == REDIRECT and out.packet[34:] == ip[20:]
        assert ip_fields(out.packet)["fragment"] == fragment
        assert bench.packets.checksum(out.packet[14:34]) == 0


def test_too_big_an_echo_is_answered_too(bench: Bench) -> None:
    ip = bench.packets.ipv4(bench.pod.ip, ABROAD, b"\x08" + bytes(1500), protocol=1)
    done = bench.from_pod(bench.sent(ip))
    assert done.verdict == REDIRECT and done.packet[34:36] == b"\3\4"
    assert done.packet[42:] == ip[:28]


def test_what_just_fits_is_sent(bench: Bench) -> None:
    done = bench.from_pod(bench.sent(bench.datagram(ABROAD, size=1422)))
    assert done.verdict == REDIRECT and ip_fields(done.packet)["total"] == 1500


def pod_drops(b: Bench) -> dict[str, tuple[bytes, DropReason]]:
    """Name of the case, frame from the pod, reason."""
    p, pod = b.packets, b.pod
    to = b.datagram

    def arp(op: int, sha: str, spa: str, tpa: str) -> bytes:
        return b.sent(p.arp(op, sha, spa, tpa), kind=0x0806)

    icmp_error = b"\3\4" + bytes(1500)
    return {
        "short frame": (b"\0" * 13 + b"\1", DropReason.SPOOFED_MAC),
        "other MAC": (b.sent(to(ABROAD), src="02:00:00:00:00:99"), DropReason.SPOOFED_MAC),
        "other IP": (b.sent(to(ABROAD, src="10.0.1.99")), DropReason.SPOOFED_IP),
        "ARP with another MAC": (
            arp(1, "02:00:00:00:00:99", pod.ip, "10.0.1.1"),
            DropReason.SPOOFED_NEIGHBOUR,
        ),
        "ARP with another IP": (
            arp(1, pod.mac, "10.0.1.9", "10.0.1.1"),
            DropReason.SPOOFED_NEIGHBOUR,
        ),
        "ARP reply": (arp(2, pod.mac, pod.ip, "10.0.1.1"), DropReason.NEIGHBOUR_IGNORED),
        "ARP for itself": (arp(1, pod.mac, pod.ip, pod.ip), DropReason.NEIGHBOUR_IGNORED),
        "ARP outside": (arp(1, pod.mac, pod.ip, "10.9.0.1"), DropReason.NEIGHBOUR_OUTSIDE),
        "ARP cut short": (b.sent(b"\0\1\x08\0", kind=0x0806), DropReason.MALFORMED),
        "ARP of another kind": (
            b.sent(b"\0\6" + p.arp(1, pod.mac, pod.ip, "10.0.1.1")[2:], kind=0x0806),
            DropReason.MALFORMED,
        ),
        "not IP": (b.sent(bytes(40), kind=0x88CC), DropReason.NOT_IP),
        "multicast": (b.sent(to("224.0.0.251")), DropReason.MULTICAST),
        "multicast at the end": (b.sent(to("239.255.255.255")), DropReason.MULTICAST),
        "broadcast": (b.sent(to("255.255.255.255", src="0.0.0.0")), DropReason.MULTICAST),
        "reserved": (b.sent(to("240.0.0.1")), DropReason.NO_SUBNET),
        "IP cut short": (b.sent(b"\x45" + bytes(10)), DropReason.MALFORMED),
        "IP version": (b.sent(to(ABROAD, version_ihl=0x65)), DropReason.MALFORMED),
        "IP header length": (b.sent(to(ABROAD, version_ihl=0x44)), DropReason.MALFORMED),
        "IP beyond the frame": (b.sent(to(ABROAD, total=100)), DropReason.MALFORMED),
        "IP shorter than its header": (b.sent(to(ABROAD, total=19)), DropReason.MALFORMED),
        "outside the VPC": (b.sent(to("10.9.0.1")), DropReason.NO_SUBNET),
        "unclaimed at home": (b.sent(to("10.0.1.99")), DropReason.UNCLAIMED),
        "unclaimed in a stretched subnet": (b.sent(to("10.0.200.9")), DropReason.UNCLAIMED),
        "not echo to the gateway": (b.sent(to("10.0.1.1")), DropReason.UNCLAIMED),
        "nothing attached": (b.sent(to(IDLE)), DropReason.NOT_ATTACHED),
        "site without gateways": (b.sent(to(NOWHERE)), DropReason.NO_GROUP),
        "last hop of a later fragment": (
            b.sent(to(ABROAD, ttl=1, fragment=1)),
            DropReason.TTL_EXPIRED,
        ),
        "last hop of an ICMP error": (
            b.sent(p.ipv4(pod.ip, ABROAD, b"\3\4" + bytes(30), protocol=1, ttl=1)),
            DropReason.TTL_EXPIRED,
        ),
        "last hop of what is too short to quote": (
            b.sent(p.ipv4(pod.ip, ABROAD, bytes(7), protocol=6, ttl=1) + bytes(20)),
            DropReason.TTL_EXPIRED,
        ),
        "last hop with IP options": (
            b.sent(p.ipv4(pod.ip, ABROAD, bytes(40), version_ihl=0x46, ttl=1)),
            DropReason.TTL_EXPIRED,
        ),
        "too big without DF": (b.sent(to(ABROAD, size=1450, fragment=0)), DropReason.TOO_BIG),
        "too big a later fragment": (
            b.sent(to(ABROAD, size=1450, fragment=0x4001)),
            DropReason.TOO_BIG,
        ),
        "too big an ICMP error": (
            b.sent(p.ipv4(pod.ip, ABROAD, icmp_error, protocol=1)),
            DropReason.TOO_BIG,
        ),
        "too big for a neighbour without DF": (
            b.sent(to(b.neighbour.ip, size=1400, fragment=0)),
            DropReason.TOO_BIG,
        ),
    }


def test_what_a_pod_may_not_send_is_dropped_for_its_reason(bench: Bench) -> None:
    for name, (frame, reason) in pod_drops(bench).items():
        event = check_drop(bench, name, bench.from_pod, frame, reason)
        assert (event.vni, event.ifname) == (VNI, bench.pod.ifname), name


def test_a_drop_event_says_whose_packet_it_was(bench: Bench) -> None:
    p, pod = bench.packets, bench.pod
    six = bytes.fromhex("60000000 0008 3a ff") + bytes(15) + b"\1" + bytes(15) + b"\2" + bytes(8)
    arp = p.arp(1, pod.mac, pod.ip, "10.9.0.1")
    from_pod = {
        (pod.ip, "10.9.0.1", ""): bench.sent(bench.datagram("10.9.0.1")),
        (pod.ip, IDLE, ""): bench.sent(bench.datagram(IDLE)),
        ("::1", "::2", ""): bench.sent(six, kind=0x86DD),
        ("10.0.1.10", "10.9.0.1", ""): bench.sent(arp, kind=0x0806),
        ("", "", ""): bench.sent(b"\x45" + bytes(10)),
        (pod.ip, ABROAD, PEER): bench.sent(bench.datagram(ABROAD, size=1450, fragment=0)),
    }
    started_ns = time.time_ns()
    for texts, frame in from_pod.items():
        bench.window()
        bench.from_pod(frame)
        (event,) = bench.told()
        assert (event.src, event.dst, event.outer) == texts
        assert (event.vni, event.ifname) == (VNI, pod.ifname)
        assert started_ns - 1e9 < event.at_ns < time.time_ns() + 1e9
    from_wan = {
        ("", "", "192.0.2.9", 0): bench.tunnelled(bench.inner(pod.ip), src="192.0.2.9"),
        ("", "", PEER, 0): bench.tunnelled(bench.inner(pod.ip), flags=0x40),
        (ABROAD, IDLE, PEER, VNI): bench.tunnelled(bench.inner(IDLE)),
        (ABROAD, pod.ip, PEER, VNI + 1): bench.tunnelled(bench.inner(pod.ip), vni=VNI + 1),
        (NOWHERE, pod.ip, PEER, VNI): bench.tunnelled(bench.inner(pod.ip, src=NOWHERE)),
    }
    for told, frame in from_wan.items():
        bench.window()
        bench.from_wan(frame)
        (event,) = bench.told()
        assert (event.src, event.dst, event.outer, event.vni) == told
        assert event.ifname == "wan0"


@pytest.fixture
def one_processor() -> Iterator[None]:
    """Events count what came before them on their processor: let there be one."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)


def test_a_flood_of_drops_is_counted_whole_and_told_in_bounds(
    bench: Bench, one_processor: None
) -> None:
    bench.window()
    bench.from_pod(bench.sent(bench.datagram("10.9.0.1")))
    bench.window()
    frame = bench.sent(bench.datagram("10.9.0.1"))
    before = bench.drops()["no-subnet"]
    others = [bench.sent(bench.datagram(f"10.9.0.{n}")) for n in range(1, 20)]
    begun_ns = time.monotonic_ns()
    flood = [others[number % len(others)] for number in range(5000)]
    bench.run_all("xdp_pod", bench.pod.ifname, flood)
    windows = (time.monotonic_ns() - begun_ns) // layout.DROP_EVENTS_WINDOW_NS + 2
    assert bench.drops()["no-subnet"] == before + 5000
    events = bench.told()
    assert 1 <= len(events) <= windows * layout.DROP_EVENTS_IN_WINDOW
    bench.window()
    bench.from_pod(frame)
    events += bench.told()
    assert sum(event.packets for event in events) == 5001, "each stands for those before it"


def test_a_flow_that_floods_hides_no_other(bench: Bench, one_processor: None) -> None:
    bench.window()
    begun_ns = time.monotonic_ns()
    for dst in ["10.9.0.1"] * 50 + ["10.9.0.2"] + ["10.9.0.1"] * 50:
        bench.from_pod(bench.sent(bench.datagram(dst)))
    windows = (time.monotonic_ns() - begun_ns) // layout.DROP_EVENTS_WINDOW_NS + 1
    told = [event.dst for event in bench.told()]
    assert "10.9.0.2" in told and len(told) <= windows + 2, "one a window, and where flows change"


def test_a_full_ring_loses_events_and_no_count(bench: Bench, one_processor: None) -> None:
    frame = bench.sent(bench.datagram("10.9.0.1"))
    before = bench.drops()["no-subnet"]
    room = layout.DROP_EVENTS_BYTES // (layout.DROP_EVENT.packer.size + 8)
    for _ in range(room + 5):
        bench.window(drain=False)
        bench.from_pod(frame)
    taken = [*bench.told(), *bench.told()]
    assert len(taken) == room
    bench.window()
    bench.from_pod(frame)
    (event,) = bench.told()
    assert event.packets == 6, "with the five that had no room"
    assert bench.drops()["no-subnet"] == before + room + 6


def test_drops_are_counted_per_vpc_port_and_peer_site(bench: Bench) -> None:
    def counts() -> tuple[int, int, int]:
        counters = bench.gateway.run(bench.gateway.backend.counters)
        return (
            counters["vpcs"][str(VNI)]["drops"],
            counters["ports"][bench.pod.ifname]["drops"],
            counters["sites"]["b"]["drops"],
        )

    before = counts()
    bench.from_pod(bench.sent(bench.datagram("10.9.0.1")))
    bench.from_wan(bench.tunnelled(bench.inner(IDLE)))
    bench.from_wan(bench.tunnelled(bench.inner(IDLE), flags=0x40))  # no VPC is known yet
    bench.from_wan(bench.tunnelled(bench.inner(IDLE), src="192.0.2.9"))  # nor a site
    assert tuple(n - old for n, old in zip(counts(), before, strict=True)) == (2, 1, 2)


def test_a_blocked_port_carries_nothing(bench: Bench) -> None:
    frame = bench.packets.ethernet(
        ROUTER, bench.blocked.mac, bench.datagram(ABROAD, src=bench.blocked.ip)
    )
    check_drop(
        bench,
        "blocked",
        lambda frame: bench.from_pod(frame, bench.blocked.ifname),
        frame,
        DropReason.PORT_BLOCKED,
    )


def test_an_interface_without_a_row_carries_nothing(bench: Bench) -> None:
    check_drop(
        bench,
        "no row",
        lambda frame: bench.from_pod(frame, "wan0"),
        bench.sent(bench.datagram(ABROAD)),
        DropReason.NO_PORT,
    )


# ---- from the underlay --------------------------------------------------------------------------


@pytest.mark.parametrize("options", [b"", bytes.fromhex("0123040100000000"), bytes(4 * 63)])
def test_decapsulation_hands_the_frame_to_the_pod(bench: Bench, options: bytes) -> None:
    ip = bench.datagram(bench.pod.ip, src=ABROAD)
    frame = bench.packets.ethernet("02:00:00:00:00:77", "02:00:00:00:00:78", ip)
    done = bench.from_wan(bench.tunnelled(frame, options=options))
    assert done.verdict == REDIRECT
    assert done.packet[:14] == bench.packets.ethernet(bench.pod.mac, ROUTER, b"")
    assert ip_fields(done.packet)["ttl"] == 63
    assert bench.packets.checksum(done.packet[14:34]) == 0
    assert done.packet[34:] == ip[20:]


def not_for_us(b: Bench) -> dict[str, bytes]:
    p = b.packets
    frame = b.tunnelled(b.inner(b.pod.ip))
    fragment = p.ipv4(PEER, ME, frame[34:], fragment=0x2000)
    with_options = p.ipv4(PEER, ME, bytes(4) + frame[34:], version_ihl=0x46)
    return {
        "ARP": p.ethernet("ff:ff:ff:ff:ff:ff", b.pod.mac, p.arp(1, b.pod.mac, PEER, ME), 0x0806),
        "short": b"\0" * 20,
        "TCP": p.ethernet(ROUTER, ROUTER, p.ipv4(PEER, ME, bytes(40), protocol=6)),
        "another UDP port": p.ethernet(ROUTER, ROUTER, p.ipv4(PEER, ME, p.udp(1, 4789, bytes(40)))),
        "IPv6": p.ethernet(ROUTER, ROUTER, bytes(60), 0x86DD),
        "a fragment": p.ethernet(ROUTER, ROUTER, fragment),
        "IP options": p.ethernet(ROUTER, ROUTER, with_options),
        "another machine's": b.tunnelled(b.inner(b.pod.ip), dst="192.0.2.3"),
    }


def test_what_is_not_our_geneve_passes_untouched(bench: Bench) -> None:
    before = bench.drops()
    for name, frame in not_for_us(bench).items():
        done = bench.from_wan(frame)
        assert (done.verdict, done.packet) == (PASS, frame), name
    assert bench.drops() == before


def wan_drops(b: Bench) -> dict[str, tuple[bytes, DropReason]]:
    p = b.packets
    good = b.inner(b.pod.ip)
    # The options are said to go on beyond the packet.
    overlong = b.tunnelled(b"", first=0x3F)
    malformed = DropReason.MALFORMED

    def source(ip: str) -> bytes:
        return b.tunnelled(b.inner(b.pod.ip, src=ip))

    def icmp(src: str, kind: bytes, size: int = 30) -> bytes:
        error = p.ipv4(src, b.pod.ip, kind + bytes(size), protocol=1)
        return b.tunnelled(p.ethernet(b.pod.mac, ROUTER, error))

    longer_inside = b.tunnelled(b.inner(b.pod.ip)[:-4]) + bytes(4)
    return {
        "a stranger": (b.tunnelled(good, src="192.0.2.9"), DropReason.UNKNOWN_PEER),
        "version": (b.tunnelled(good, first=0x40), DropReason.TUNNEL_VERSION),
        "control": (b.tunnelled(good, flags=0x80), DropReason.TUNNEL_CONTROL),
        "critical": (b.tunnelled(good, flags=0x40), DropReason.TUNNEL_CRITICAL),
        "not Ethernet": (b.tunnelled(good, protocol=0x0800), DropReason.TUNNEL_PROTOCOL),
        "options beyond the packet": (overlong, DropReason.MALFORMED),
        "inner frame in the padding": (b.tunnelled(b"", first=2) + bytes(8) + good, malformed),
        "no inner frame": (b.tunnelled(b"\0" * 13), DropReason.MALFORMED),
        "inner frame beyond the outer": (longer_inside, DropReason.MALFORMED),
        "inner not IP": (
            b.tunnelled(p.ethernet(ROUTER, ROUTER, bytes(40), 0x0806)),
            DropReason.NOT_IP,
        ),
        "a VNI of nobody's": (b.tunnelled(good, vni=VNI + 1), DropReason.NOT_ENTITLED),
        "a VPC that its site is not in": (
            b.tunnelled(good, vni=CLOSED_VNI),
            DropReason.NOT_ENTITLED,
        ),
        "from an address that nobody claims": (source("10.0.2.99"), DropReason.FOREIGN_SOURCE),
        "from another site's address": (source(NOWHERE), DropReason.FOREIGN_SOURCE),
        "from an address of ours": (source(b.neighbour.ip), DropReason.FOREIGN_SOURCE),
        "from a subnet's gateway, and no error": (source("10.0.2.1"), DropReason.FOREIGN_SOURCE),
        "an echo from a subnet's gateway": (
            icmp("10.0.2.1", b"\x08\0"),
            DropReason.FOREIGN_SOURCE,
        ),
        "an error from another address": (icmp("10.0.2.99", b"\3\4"), DropReason.FOREIGN_SOURCE),
        "an error from outside": (icmp("10.9.0.1", b"\3\4"), DropReason.FOREIGN_SOURCE),
        "an error cut short": (icmp("10.0.2.1", b"\3\4", 5), DropReason.FOREIGN_SOURCE),
        "not here": (b.tunnelled(b.inner("10.0.1.99")), DropReason.NOT_LOCAL),
        "nothing attached": (b.tunnelled(b.inner(IDLE)), DropReason.NOT_ATTACHED),
        "last hop of a fragment": (
            b.tunnelled(b.inner(b.pod.ip, ttl=1, fragment=9)),
            DropReason.TTL_EXPIRED,
        ),
        "back where it came from": (b.tunnelled(b.inner(MOVED)), DropReason.LOOP),
        "onwards without gateways": (b.tunnelled(b.inner(NOWHERE)), DropReason.NO_GROUP),
        "too big for the pod": (
            b.tunnelled(b.inner(b.neighbour.ip, size=1400, fragment=0)),
            DropReason.TOO_BIG,
        ),
    }


def test_what_a_tunnel_may_not_bring_is_dropped_for_its_reason(bench: Bench) -> None:
    for name, (frame, reason) in wan_drops(bench).items():
        check_drop(bench, name, bench.from_wan, frame, reason)


def test_traffic_is_counted_per_port_and_per_gateway(bench: Bench) -> None:
    def counts() -> tuple[dict[str, int], dict[str, int]]:
        counters = bench.gateway.run(bench.gateway.backend.counters)
        (gateway,) = counters["gateways"].values()
        return counters["ports"][bench.pod.ifname], gateway

    before = counts()
    ip = bench.datagram(ABROAD)
    bench.from_pod(bench.sent(ip))
    bench.from_wan(bench.tunnelled(bench.inner(bench.pod.ip)))
    after = counts()
    size = 14 + len(ip)
    for old, new in zip(before, after, strict=True):
        assert {key: new[key] - old[key] for key in new} == {
            "tx_packets": 1,
            "tx_bytes": size,
            "rx_packets": 1,
            "rx_bytes": size,
            "drops": 0,
        }
