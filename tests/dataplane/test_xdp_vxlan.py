"""VXLAN with gateways that say so: single packets, and both ways with the kernel's own device."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from pyroute2 import IPRoute

from dataplane.fib.facts import EndpointFact
from dataplane.reasons import DropReason
from dataplane.xdp import links
from tests.dataplane.conftest import Pod, SitePair, SixPair, configure, made_pair, transfer
from tests.dataplane.workbench import (
    ABROAD,
    PASS,
    REDIRECT,
    ROUTER,
    VNI,
    VPC,
    Bench,
    check_drop,
    make_bench,
)

FAMILIES = pytest.mark.parametrize("kind", [SitePair, SixPair])
FAR_IP, FAR_MAC = "10.0.2.10", "02:00:00:00:0b:01"
MTU = 1430  # inside, over either family


class Device(Pod):
    """The kernel's own VXLAN device in the place of a gateway, with a workload's address."""

    def __init__(self, pair: SitePair) -> None:
        super().__init__(pair.b, "vx", VPC, FAR_IP, FAR_MAC, pair.b.netns)
        self.far = pair.a.underlay
        self.run(self._make)
        first = "10.0.2.1"
        configure(self.netns, "vx0", mac=FAR_MAC, mtu=MTU, address=f"{FAR_IP}/24", route=first)
        for ifname in ("vx0", "wan0"):  # what is left to a device is never done on a veth
            self.run(partial(links.disable_tx_checksum, ifname))
        self.run(partial(self._settle, first))
        self.run(partial(links.attach_pass, "wan0"))

    def _make(self) -> None:
        six = ":" in self.far
        ends = ("vxlan_local6", "vxlan_group6") if six else ("vxlan_local", "vxlan_group")
        own = dict(zip(ends, (self.gateway.underlay, self.far), strict=True))
        with IPRoute() as netlink:
            netlink.link(
                "add", ifname="vx0", kind="vxlan", vxlan_id=VNI, vxlan_port=4789,
                vxlan_learning=0, vxlan_link=socket.if_nametoindex("wan0"), **own,
            )  # fmt: skip

    @staticmethod
    def _settle(address: str) -> None:
        with IPRoute() as netlink:
            index, mac = socket.if_nametoindex("vx0"), ROUTER
            netlink.neigh("add", dst=address, lladdr=mac, ifindex=index, state="permanent")


@FAMILIES
def test_pods_and_the_kernel_s_device_reach_each_other(
    xdp_machine: None, kind: type[SitePair]
) -> None:
    with made_pair(kind) as pair:
        far = Device(pair)
        pair.vpc(VPC, VNI, {"10.0.1.0/24": ("a",), "10.0.2.0/24": ("b",)})
        pair.tell("gateway", replace(pair.b.fact, vxlan=True))
        pair.tell("endpoint", EndpointFact(VPC, FAR_IP, "b", pair.b.id, FAR_MAC))
        pod = pair.pod(pair.a, "one", VPC, "10.0.1.10", mtu=MTU)
        pair.a.open()
        pair.a.sync()
        assert pod.ping(FAR_IP, count=3) == 3
        assert far.ping(pod.ip, count=3) == 3
        payload = os.urandom(1 << 20)
        assert transfer(pod, far, payload) == payload
        assert transfer(far, pod, payload) == payload
        assert pair.a.backend is not None
        (row,) = pair.a.run(pair.a.backend.show)["gateways"]
        assert row["encapsulation"] == "vxlan" and row["rx_packets"] > 100 < row["tx_packets"]


# ---- single packets -----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[SitePair, SixPair])
def bench(xdp_machine: None, either_build: None, request: Any, packets: Any) -> Iterator[Bench]:
    with made_pair(request.param) as pair:
        made = make_bench(pair, packets)
        pair.a.compiler.set_gateway(pair.b.id, replace(pair.b.fact, vxlan=True))
        pair.a.push()
        yield made


def around(bench: Bench) -> int:
    return 70 if ":" in bench.gateway.underlay else 50


def tunnelled(bench: Bench, inner: bytes, *, src: str = "", flags: int = 8) -> bytes:
    body = bench.packets.vxlan(VNI, inner, flags=flags)
    ends = src or bench.peer.underlay, bench.gateway.underlay
    return bytes(bench.packets.outer(*ends, 0xC001, 4789, body))


def test_what_leaves_is_vxlan(bench: Bench) -> None:
    out = bench.from_pod(bench.sent(bench.datagram(ABROAD))).packet
    headers = around(bench)
    assert out[headers - 14 : headers - 12] == (4789).to_bytes(2, "big")
    assert out[headers - 8 : headers] == b"\x08\0\0\0" + VNI.to_bytes(3, "big") + b"\0"
    if headers == 70:
        assert bench.packets.checksum6(out[14:]) == 0
    else:
        assert out[headers - 10 : headers - 8] == b"\0\0", "RFC 7348: no checksum"


@pytest.mark.parametrize("flags", [0x08, 0xFF])
def test_what_arrives_is_delivered_whatever_its_reserved_bits(bench: Bench, flags: int) -> None:
    frame = bench.inner(bench.pod.ip)
    done = bench.from_wan(tunnelled(bench, frame, flags=flags))
    assert done.verdict == REDIRECT and done.packet[34:] == frame[34:]


def test_a_checksum_is_left_to_who_looks_at_the_inner_packet(bench: Bench) -> None:
    at = around(bench) - 10
    good = tunnelled(bench, bench.inner(bench.pod.ip))
    wrong = good[:at] + b"\1\1" + good[at + 2 :]
    assert bench.from_wan(wrong).verdict == REDIRECT
    none = good[:at] + b"\0\0" + good[at + 2 :]
    if at == 60:
        check_drop(bench, "none", bench.from_wan, none, DropReason.TUNNEL_CHECKSUM)
    else:
        assert bench.from_wan(none).verdict == REDIRECT


def test_what_is_wrong_with_it_is_told(bench: Bench) -> None:
    frame = bench.inner(bench.pod.ip)
    cases = {
        "no VNI": (tunnelled(bench, frame, flags=0xF7), DropReason.TUNNEL_PROTOCOL),
        "Geneve": (bench.tunnelled(frame), DropReason.TUNNEL_ENCAPSULATION),
        "nothing inside": (tunnelled(bench, b""), DropReason.MALFORMED),
        "a foreign source": (
            tunnelled(bench, bench.inner(bench.pod.ip, src="10.0.2.66")),
            DropReason.FOREIGN_SOURCE,
        ),
    }
    for name, (packet, reason) in cases.items():
        event = check_drop(bench, name, bench.from_wan, packet, reason)
        assert event.outer == bench.peer.underlay, name


def test_vxlan_of_others_is_the_stack_s(bench: Bench) -> None:
    """The machine may have devices of its own, of which nothing is known here."""
    stranger = "2001:db8::66" if around(bench) == 70 else "192.0.2.66"
    frame = tunnelled(bench, bench.inner(bench.pod.ip), src=stranger)
    assert (bench.from_wan(frame).verdict, bench.from_wan(frame).packet) == (PASS, frame)
    compiler = bench.gateway.compiler
    try:
        compiler.set_gateway(bench.peer.id, bench.peer.fact)
        bench.gateway.push()
        known = tunnelled(bench, bench.inner(bench.pod.ip))
        assert bench.from_wan(known).verdict == PASS, "a gateway that sends Geneve"
    finally:
        compiler.set_gateway(bench.peer.id, replace(bench.peer.fact, vxlan=True))
        bench.gateway.push()
