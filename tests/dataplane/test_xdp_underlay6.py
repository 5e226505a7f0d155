"""An underlay that has nothing but IPv6: packet in, verdict, packet out."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from dataplane.fib.facts import GatewayFact
from dataplane.reasons import DropReason
from tests.dataplane.conftest import SixPair, made_pair
from tests.dataplane.workbench import (
    ABROAD,
    ABROAD_MAC,
    PASS,
    REDIRECT,
    ROUTER,
    VNI,
    Bench,
    check_drop,
    make_bench,
)


@pytest.fixture(scope="module")
def bench(xdp_machine: None, either_build: None, packets: Any) -> Iterator[Bench]:
    with made_pair(SixPair) as pair:
        yield make_bench(pair, packets)


# ---- single packets -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 2, 3, 400, 401, 470, 912, 981, 982, 983, 1402])
def test_what_leaves_is_ipv6_with_a_right_checksum(bench: Bench, size: int) -> None:
    """Sizes about whole pieces of what is summed, and what is left of them."""
    payload = bench.packets.udp(1000, 2000, random.Random(size).randbytes(size))
    ip = bench.packets.ipv4(bench.pod.ip, ABROAD, payload, ttl=9)
    padding = b"padding" if size < 10 else b""
    done = bench.from_pod(bench.sent(ip) + padding)
    out = done.packet
    assert done.verdict == REDIRECT and len(out) == 70 + 14 + len(ip) + len(padding)
    first, length, protocol, hops = struct.unpack_from("!IHBB", out, 14)
    assert (first >> 20, length, protocol, hops) == (0x600, 16 + 14 + len(ip), 17, 64)
    ends = [socket.inet_ntop(socket.AF_INET6, out[at : at + 16]) for at in (22, 38)]
    assert ends == [bench.gateway.underlay, bench.peer.underlay]
    sport, dport, udp_bytes, checksum = struct.unpack_from("!4H", out, 54)
    assert sport >= 0xC000 and dport == 6081 and udp_bytes == length and checksum
    assert bench.packets.checksum6(out[14 : 54 + length]) == 0
    assert out[62:70] == bytes.fromhex("00006558") + VNI.to_bytes(3, "big") + b"\0"
    assert out[70:84] == bench.packets.ethernet(ABROAD_MAC, ROUTER, b"")
    assert out[84:][20:] == ip[20:] + padding


def test_a_checksum_that_comes_to_nothing_is_sent_as_its_complement(bench: Bench) -> None:
    """RFC 768: zero would say that there is none. Two bytes of the payload make it so."""
    ip = bench.datagram(ABROAD, size=8)
    (found,) = struct.unpack_from("!H", bench.from_pod(bench.sent(ip)).packet, 60)
    done = bench.from_pod(bench.sent(ip[:-2] + found.to_bytes(2, "big")))
    assert done.packet[60:62] == b"\xff\xff"
    assert bench.packets.checksum6(done.packet[14:]) == 0


def test_flows_have_labels_and_ports_of_their_own(bench: Bench) -> None:
    def hashed(sport: int) -> bytes:
        payload = bench.packets.udp(sport, 80, b"")
        out = bench.from_pod(bench.sent(bench.packets.ipv4(bench.pod.ip, ABROAD, payload))).packet
        return out[15:18] + out[54:56]

    assert hashed(1) == hashed(1)
    labels = {hashed(sport)[:3] for sport in range(32)}
    assert len(labels) > 28 and len({label[2] for label in labels}) > 20


def test_too_big_is_answered_with_what_fits_between_longer_headers(bench: Bench) -> None:
    fits = bench.from_pod(bench.sent(bench.datagram(ABROAD, size=1402)))
    assert len(fits.packet) == 14 + 1500
    done = bench.from_pod(bench.sent(bench.datagram(ABROAD, size=1403)))
    assert done.packet[34:36] == b"\3\4" and done.packet[40:42] == (1430).to_bytes(2, "big")
    event = check_drop(
        bench,
        "fragments are not answered",
        bench.from_pod,
        bench.sent(bench.datagram(ABROAD, size=1403, fragment=0)),
        DropReason.TOO_BIG,
    )
    assert event.outer == bench.peer.underlay


@pytest.mark.parametrize("size", [0, 1, 393, 394, 395, 396, 904, 1400])
def test_what_arrives_is_delivered(bench: Bench, size: int) -> None:
    payload = bench.packets.udp(1000, 2000, random.Random(size).randbytes(size))
    ip = bench.packets.ipv4(ABROAD, bench.pod.ip, payload)
    frame = bench.packets.ethernet(bench.pod.mac, ROUTER, ip)
    done = bench.from_wan(bench.tunnelled(frame, options=bytes(8 if size == 0 else 0)))
    assert done.verdict == REDIRECT and done.packet[14 + 20 :] == frame[14 + 20 :]
    assert done.packet[:14] == bench.packets.ethernet(bench.pod.mac, ROUTER, b"")


def test_what_is_wrong_with_a_tunnel_packet_is_told(bench: Bench) -> None:
    good = bench.tunnelled(bench.inner(bench.pod.ip, size=600))
    checksum = slice(60, 62)

    def with_bytes(at: slice, raw: bytes) -> bytes:
        return good[: at.start] + raw + good[at.stop :]

    cases = {
        "no checksum": (with_bytes(checksum, bytes(2)), DropReason.TUNNEL_CHECKSUM),
        "a bit of the payload": (good[:-1] + b"\1", DropReason.TUNNEL_CHECKSUM),
        "a bit of the first piece": (with_bytes(slice(90, 91), b"\7"), DropReason.TUNNEL_CHECKSUM),
        "UDP's length": (with_bytes(slice(58, 60), b"\0\x20"), DropReason.TUNNEL_CHECKSUM),
        "cut short": (good[:-1], DropReason.MALFORMED),
        "stranger": (
            bench.tunnelled(bench.inner(bench.pod.ip), src="2001:db8::66"),
            DropReason.UNKNOWN_PEER,
        ),
        "version": (bench.tunnelled(b"", first=0x40), DropReason.TUNNEL_VERSION),
        "control": (bench.tunnelled(b"", flags=0x80), DropReason.TUNNEL_CONTROL),
        "critical": (bench.tunnelled(b"", flags=0x40), DropReason.TUNNEL_CRITICAL),
        "protocol": (bench.tunnelled(b"", protocol=0x0800), DropReason.TUNNEL_PROTOCOL),
        "nothing inside": (bench.tunnelled(b""), DropReason.MALFORMED),
        "foreign source": (
            bench.tunnelled(bench.inner(bench.pod.ip, src="10.0.2.66")),
            DropReason.FOREIGN_SOURCE,
        ),
    }
    for name, (frame, reason) in cases.items():
        event = check_drop(bench, name, bench.from_wan, frame, reason)
        wanted = "2001:db8::66" if name == "stranger" else bench.peer.underlay
        assert event.outer == wanted, name
    assert bench.from_wan(good).verdict == REDIRECT


def test_what_is_no_tunnel_of_ours_is_the_stack_s(bench: Bench) -> None:
    good = bench.tunnelled(bench.inner(bench.pod.ip))
    elsewhere = bench.tunnelled(bench.inner(bench.pod.ip), dst="2001:db8::77")
    cases = {
        "another address": elsewhere,
        "another port": good[:56] + b"\x17\xc0" + good[58:],
        "TCP": good[:20] + b"\6" + good[21:],
        "an extension before UDP": good[:20] + b"\0" + good[21:],
        "a fragment": good[:20] + b"\x2c" + good[21:],
        "not version 6": good[:14] + b"\x40" + good[15:],
        "too short to tell": good[:69],
        "over IPv4": bench.tunnelled(b"", src="192.0.2.2", dst="192.0.2.1"),
    }
    for name, frame in cases.items():
        done = bench.from_wan(frame)
        assert (done.verdict, done.packet) == (PASS, frame), name


def test_the_far_sender_is_told_through_the_tunnel(bench: Bench) -> None:
    done = bench.from_wan(bench.tunnelled(bench.inner(bench.pod.ip, ttl=1)))
    assert done.verdict == REDIRECT and bench.packets.checksum6(done.packet[14:]) == 0
    assert done.packet[70 + 34 :][:2] == b"\x0b\0"


def test_a_gateway_of_the_other_family_has_no_way_and_drops_say_so(
    bench: Bench,
) -> None:
    """Even where this machine could reach the address: it has none of that family to send from."""
    gateway = bench.gateway
    other = GatewayFact(b"\x77" * 16, "b", "192.0.2.2", True)
    nearby = GatewayFact(bench.peer.id, "b", bench.peer.underlay, False)
    gateway.compiler.set_gateway(other.id, other)
    gateway.compiler.set_gateway(nearby.id, nearby)  # nothing is heard of it: the other is chosen
    try:
        gateway.push()
        rows = {r["underlay"]: r for r in gateway.run(gateway.backend.show)["gateways"]}
        assert not rows["192.0.2.2"]["resolved"] and rows[bench.peer.underlay]["resolved"]
        assert gateway.run(gateway.backend.refresh_adjacency) == 0, "nothing to be waited for"
        unclaimed = bench.sent(bench.datagram("10.0.2.99"))
        check_drop(bench, "other family", bench.from_pod, unclaimed, DropReason.UNRESOLVED)
    finally:
        gateway.compiler.set_gateway(other.id, None)
        gateway.compiler.set_gateway(nearby.id, bench.peer.fact)
        gateway.push()
