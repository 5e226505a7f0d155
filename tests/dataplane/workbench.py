"""One gateway with pods and a peer, its programs on single packets, and what becomes of those."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dataplane.backend import Hook
from dataplane.drops import DropEvent
from dataplane.fib.facts import EndpointFact, VpcFact
from dataplane.fib.rows import mac_text
from dataplane.reasons import DropReason
from dataplane.xdp import kernel, layout

SKB_BYTES = {b"\x08\x00": 34, b"\x86\xdd": 54}
"""By ethertype: of shorter ones the kernel makes no skb for a program to be tried on."""
DROP, PASS, REDIRECT = 1, 2, 4
_OF_TC = {2: DROP, 0: PASS, 7: REDIRECT}
VPC, VNI = "v", 0xABCDEF
ROUTER = mac_text(layout.GATEWAY_MAC)
ME, PEER = "192.0.2.1", "192.0.2.2"
CLOSED, CLOSED_VNI = "closed", 0x123456  # the peer's site is not in it
ABROAD, ABROAD_MAC = "10.0.2.10", "02:00:00:00:09:01"
MOVED, MOVED_MAC = "10.0.200.77", "02:00:00:00:09:02"
NOWHERE = "10.0.200.88"  # claimed for a site without gateways
IDLE = "10.0.1.20"  # claimed for this gateway, nothing attached


@dataclass
class Bench:
    """One gateway with two local pods and one peer, and its programs on single packets."""

    gateway: Any
    peer: Any
    pod: Any
    neighbour: Any
    blocked: Any
    packets: Any

    def run(self, program: str, ifname: str, packet: bytes) -> kernel.TestRun:
        (result,) = self.run_all(program, ifname, [packet])
        return result

    def run_all(self, program: str, ifname: str, packets: Sequence[bytes]) -> list[kernel.TestRun]:
        """One after the other: far quicker than as many calls of `run`."""
        backend = self.gateway.backend

        def each() -> list[kernel.TestRun]:
            ifindex = socket.if_nametoindex(ifname)
            return [run_program(backend, program, packet, ifindex) for packet in packets]

        results: list[kernel.TestRun] = self.gateway.run(each)
        return results

    def from_pod(self, packet: bytes, ifname: str = "") -> kernel.TestRun:
        return self.run("xdp_pod", ifname or self.pod.ifname, packet)

    def from_wan(self, packet: bytes) -> kernel.TestRun:
        return self.run("xdp_wan", "wan0", packet)

    def drops(self) -> dict[str, int]:
        counts: dict[str, int] = self.gateway.run(self.gateway.backend.counters)["drops"]
        return counts

    def told(self) -> list[DropEvent]:
        """The drop events since the last call."""
        events: list[DropEvent] = self.gateway.run(self.gateway.backend.take_drops)
        return events

    def window(self, *, drain: bool = True) -> None:
        """Have the next drop of every reason told, as if a second had passed since the last."""
        maps = self.gateway.backend._maps
        count = layout.DROP_COUNT.packer
        for reason in DropReason:
            key, width = struct.pack("=I", reason), count.size * kernel.processors()
            raw = kernel.lookup(maps._fds["drops"], key, width) or b""
            copies = [
                count.pack(packets, told, 0, 0, 0) for packets, told, *_ in count.iter_unpack(raw)
            ]
            kernel.update(maps._fds["drops"], key, b"".join(copies))
        if drain:
            self.told()

    def sent(self, ip: bytes, src: str = "", kind: int = 0x0800) -> bytes:
        """A frame as the pod sends it."""
        return bytes(self.packets.ethernet(ROUTER, src or self.pod.mac, ip, kind))

    def datagram(self, dst: str, size: int = 10, **header: Any) -> bytes:
        payload = self.packets.udp(1000, 2000, bytes(size))
        return bytes(self.packets.ipv4(header.pop("src", self.pod.ip), dst, payload, **header))

    def tunnelled(self, inner: bytes, src: str = "", dst: str = "", **header: Any) -> bytes:
        """A frame as it comes from the peer, or from `src`."""
        body = self.packets.geneve(header.pop("vni", VNI), inner, **header)
        ends = src or self.peer.underlay, dst or self.gateway.underlay
        return bytes(self.packets.outer(*ends, 0xC001, 6081, body))

    def inner(self, dst: str, **header: Any) -> bytes:
        """A frame as the peer puts it into the tunnel."""
        ip = self.datagram(dst, src=header.pop("src", ABROAD), **header)
        return bytes(self.packets.ethernet(self.pod.mac, ROUTER, ip))


def run_program(backend: Any, program: str, packet: bytes, ifindex: int) -> kernel.TestRun:
    """Run `xdp_pod` or `xdp_wan`, or what there is in its place at another hook, with a verdict as
    XDP's."""
    fd = backend._programs[program.replace("xdp", backend._hook)]
    if backend._hook == "xdp":
        return kernel.prog_test_run(fd, packet, ifindex=ifindex)
    done = kernel.prog_test_run(fd, packet, ifindex=ifindex, type=kernel.PROG_TYPE_SCHED_CLS)
    return replace(done, verdict=_OF_TC[done.verdict])


def make_bench(pair: Any, packets: Any, hook: Hook = "xdp") -> Bench:
    """On a new pair."""
    pair.vpc(VPC, VNI, {"10.0.1.0/24": ("a",), "10.0.2.0/24": ("b",), "10.0.200.0/24": ("a", "b")})
    pair.tell("vpc", VpcFact(CLOSED, CLOSED_VNI, sites=("a", "c")))
    pod = pair.pod(pair.a, "one", VPC, "10.0.1.10", mute=True)
    neighbour = pair.pod(pair.a, "two", VPC, "10.0.1.11", mtu=1400, mute=True)
    blocked = pair.pod(pair.a, "three", VPC, "10.0.1.12", mute=True)
    far = pair.b.id
    for ip, site, gateway, mac in (
        (ABROAD, "b", far, ABROAD_MAC),
        (MOVED, "b", far, MOVED_MAC),
        (NOWHERE, "c", None, MOVED_MAC),
        (IDLE, "a", pair.a.id, MOVED_MAC),
        (blocked.ip, "b", far, MOVED_MAC),
    ):
        pair.tell("endpoint", EndpointFact(VPC, ip, site, gateway, mac))
    pair.open(hook=hook)
    return Bench(pair.a, pair.b, pod, neighbour, blocked, packets)


def ip_fields(packet: bytes, at: int = 14) -> dict[str, Any]:
    total, fragment, ttl, protocol = struct.unpack_from("!2xH2xHBB", packet, at)
    src, dst = packet[at + 12 : at + 16], packet[at + 16 : at + 20]
    return {
        "total": total,
        "fragment": fragment,
        "ttl": ttl,
        "protocol": protocol,
        "src": ".".join(map(str, src)),
        "dst": ".".join(map(str, dst)),
    }


def check_drop(bench: Bench, name: str, run: Any, frame: bytes, reason: DropReason) -> DropEvent:
    """The frame is dropped for the reason, counted once, and told of."""
    bench.window()
    before = bench.drops()
    done = run(frame)
    after = bench.drops()
    counted = {text: n - before[text] for text, n in after.items() if n != before[text]}
    assert (done.verdict, counted) == (DROP, {reason.text: 1}), name
    (event,) = bench.told()
    assert (event.reason, event.packets) == (reason, 1), name
    return event
