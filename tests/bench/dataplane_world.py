"""What the data plane's bench measures in: two sites joined by Weft, and two joined by the kernel's
own VXLAN devices, each with a pod; and programs of its own around those of Weft."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from dataplane.backend import Capacity, Hook
from dataplane.fib.facts import EndpointFact
from dataplane.fib.rows import (
    MAPPED,
    PackedKey,
    PackedRow,
    Tables,
    addr_of,
    mac_text,
    packed_domain,
)
from dataplane.xdp import kernel, layout, links, programs
from tests.dataplane.conftest import (
    Namespaces,
    Packets,
    SitePair,
    configure,
    made_pair,
    wait_for,
)

VPC, VNI = "v", 0xABCDEF
ROUTER = mac_text(layout.GATEWAY_MAC)
MANY_FIRST = IPv4Address("10.16.0.0")
SIX_FIRST = "fd00:2::a10:0"  # its last 32 bits are those of the above
FAR_MAC = "02:00:00:00:09:01"
FRAME_BYTES = 64
MTU = 1450
PODS = "10.1.0.10", "10.2.0.10"
"""In both worlds, and with the same MACs: they compile to the same."""
TIMEOUT_S = 60.0
WRAPPED = (
    *("pod4_hot", "pod4_random", "pod6_hot", "wan4_hot", "wan4_random", "wan6_hot"),
    *("bare", "undone", "xdp_pass"),
)
_SOURCE = Path(__file__).with_name("dataplane.c")
_VXLAN_PORT = 4789


def wrapped(
    names: Sequence[str],
    macs: tuple[str, str],
    first: IPv4Address,
    endpoints: int,
    maps: Mapping[str, int],
) -> dict[str, int]:
    """Descriptors of programs of dataplane.c, for pods of IPv4 and IPv6 with these MACs, and so
    many addresses from `first` on, a power of two."""
    code = _compiled(tuple(names), macs, first, endpoints).linked(maps)
    return {name: _loaded(name, instructions) for name, instructions in code.items()}


@functools.cache
def _compiled(
    names: tuple[str, ...], macs: tuple[str, str], first: IPv4Address, endpoints: int
) -> programs.Programs:
    told = {
        "FIRST": f"{int(first)}u",
        "DRAWN": f"{endpoints - 1}u",
    }
    for name, mac in zip(("MAC4", "MAC6"), macs, strict=True):
        told[name] = "{" + ", ".join(f"0x{octet}" for octet in mac.split(":")) + "}"
    text = "".join(f"#define {name} {value}\n" for name, value in told.items())
    return programs.compiled(text + _SOURCE.read_text(), names)


def _loaded(name: str, instructions: bytes) -> int:
    return kernel.prog_load(instructions, name, flags=kernel.XDP_HAS_FRAGS, log=True)


def opened_maps(pin_dir: Path) -> dict[str, int]:
    return {name: kernel.get_pinned(str(pin_dir / f"map-{name}")) for name in layout.maps()}


def close_all(fds: Mapping[str, int]) -> None:
    for fd in fds.values():
        os.close(fd)


# ---- one gateway with many endpoints elsewhere --------------------------------------------------


@dataclass
class Crowd:
    """A gateway with a pod of each family, and `endpoints` addresses at the other site."""

    pair: SitePair
    four: Any
    six: Any
    tables: Tables

    @property
    def gateway(self) -> Any:
        return self.pair.a

    def sent(self, six: bool) -> bytes:
        """A frame of the pod to the first of the addresses."""
        pod = self.six if six else self.four
        return _frame(pod.mac, pod.ip, SIX_FIRST if six else str(MANY_FIRST))

    def tunnelled(self, six: bool) -> bytes:
        """A frame from the first of the addresses to the pod, as it comes in from the underlay."""
        pod = self.six if six else self.four
        body = Packets.geneve(VNI, _frame(FAR_MAC, SIX_FIRST if six else str(MANY_FIRST), pod.ip))
        a, b = self.pair.gateways
        outer = Packets.ipv4(b.underlay, a.underlay, Packets.udp(0xC001, 6081, body))
        return Packets.ethernet("02:00:00:00:00:aa", "02:00:00:00:00:bb", outer)


def _frame(mac: str, src: str, dst: str) -> bytes:
    """A datagram in a frame of FRAME_BYTES, in IPv6 as few more as need be."""
    if ":" in src:
        return Packets.ethernet(
            ROUTER, mac, Packets.ipv6(src, dst, Packets.udp(1000, 2000, bytes(2))), 0x86DD
        )
    payload = Packets.udp(1000, 2000, bytes(FRAME_BYTES - 42))
    return Packets.ethernet(ROUTER, mac, Packets.ipv4(src, dst, payload))


def many(endpoints: int, row: PackedRow) -> dict[PackedKey, PackedRow]:
    """So many endpoints with consecutive addresses, and the same row."""
    head, first = packed_domain(VNI) + MAPPED, int(MANY_FIRST)
    return {head + (first + i).to_bytes(4, "big"): row for i in range(endpoints)}


@contextlib.contextmanager
def crowd(endpoints: int) -> Iterator[Crowd]:
    """The endpoints' rows are in the tables, and not installed yet."""
    with made_pair() as pair:
        pair.vpc(
            VPC,
            VNI,
            {
                "10.1.0.0/24": ("a",),
                "10.16.0.0/12": ("b",),
                "fd00:1::/64": ("a",),
                "fd00:2::/64": ("b",),
            },
        )
        four = pair.pod(pair.a, "four", VPC, "10.1.0.10")
        six = pair.pod(pair.a, "six", VPC, "fd00:1::10")
        for ip in (str(MANY_FIRST), SIX_FIRST):
            pair.tell("endpoint", EndpointFact(VPC, ip, "b", pair.b.id, FAR_MAC))
        pair.a.open(capacity=Capacity(endpoints=endpoints + layout.U32.size))
        pair.b.open()
        pair.sync()
        few = pair.a.compiler.tables()
        row = few.endpoints[packed_domain(VNI) + MAPPED + addr_of(str(MANY_FIRST))]
        tables = replace(few, endpoints={**few.endpoints, **many(endpoints, row)})
        yield Crowd(pair, four, six, tables)


# ---- two pods that send to each other -----------------------------------------------------------


@dataclass(frozen=True)
class End:
    """A pod of either world."""

    netns: str
    ip: str
    mac: str

    def run(self, call: Callable[[], Any]) -> Any:
        return links.in_netns(self.netns, call)


@dataclass(frozen=True)
class Joined:
    """Two sites with a pod each, and whoever the first pod has to name as its frames' receiver."""

    a: End
    b: End
    next_mac: str


@contextlib.contextmanager
def joined_by_weft(hook: Hook = "xdp") -> Iterator[Joined]:
    """Pods have their interfaces as is best with the hook."""
    with made_pair() as pair:
        pair.vpc(VPC, VNI, {"10.1.0.0/24": ("a",), "10.2.0.0/24": ("b",)})
        raw = hook == "tc"
        pods = (
            pair.pod(pair.a, "one", VPC, PODS[0], offloads=raw),
            pair.pod(pair.b, "two", VPC, PODS[1], offloads=raw),
        )
        pair.open(hook=hook)
        a, b = (End(pod.netns, pod.ip, pod.mac) for pod in pods)
        yield Joined(a, b, ROUTER)


@contextlib.contextmanager
def joined_by_vxlan() -> Iterator[Joined]:
    """Bridges with a VXLAN device each, all offloads as they come."""
    spaces = Namespaces()
    try:
        gateways = [spaces.make(f"vx-{name}") for name in "ab"]
        pods = [spaces.make(f"vp-{name}") for name in "ab"]
        spaces.veth((gateways[0], "wan0"), (gateways[1], "wan0"))
        ends = []
        for number, (gateway, pod) in enumerate(zip(gateways, pods, strict=True), 1):
            configure(gateway, "wan0", address=f"192.0.2.{number}/24")
            spaces.veth((gateway, "p-one"), (pod, "eth0"), MTU)
            end = End(pod, PODS[number - 1], f"02:00:00:00:01:0{number}")
            configure(pod, "eth0", mac=end.mac, address=f"{end.ip}/8")
            links.in_netns(gateway, partial(_bridge, f"192.0.2.{number}", f"192.0.2.{3 - number}"))
            links.in_netns(gateway, lambda: links.enable_gro("p-one"))
            ends.append(end)
        yield Joined(ends[0], ends[1], ends[1].mac)
    finally:
        spaces.remove()


def _bridge(local: str, remote: str) -> None:
    with IPRoute() as netlink:
        netlink.link("add", ifname="br0", kind="bridge")
        netlink.link(
            "add",
            ifname="vxlan0",
            kind="vxlan",
            vxlan_id=VNI,
            vxlan_local=local,
            vxlan_group=remote,
            vxlan_port=_VXLAN_PORT,
        )
        bridge = socket.if_nametoindex("br0")
        for ifname in ("vxlan0", "p-one"):
            index = socket.if_nametoindex(ifname)
            netlink.link("set", index=index, master=bridge)
            netlink.link("set", index=index, state="up")
        netlink.link("set", index=bridge, state="up")


def packets_per_s(world: Joined, count: int) -> float:
    """What arrives at the second pod of `count` datagrams that the first sends as fast as one
    processor makes and carries them, by the second of wall time."""
    made = _compiled(("stream",), (world.a.mac, world.a.mac), IPv4Address(world.b.ip), 1)
    fd = _loaded("stream", made.instructions["stream"])  # it refers to no map
    payload = Packets.udp(1000, 9, bytes(FRAME_BYTES - 42))
    frame = Packets.ethernet(
        world.next_mac, world.a.mac, Packets.ipv4(world.a.ip, world.b.ip, payload)
    )

    def send() -> float:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # of this thread only
        start_s = time.perf_counter()
        ifindex = socket.if_nametoindex("eth0")
        kernel.prog_live_run(fd, frame, ifindex=ifindex, repeat=count)
        return time.perf_counter() - start_s

    try:
        before = world.b.run(received)
        spent_s: float = world.a.run(send)
        return float(world.b.run(received) - before) / spent_s
    finally:
        os.close(fd)


def received() -> int:
    """Packets that have come in by eth0."""
    with IPRoute() as netlink:
        (link,) = netlink.get_links(socket.if_nametoindex("eth0"))
        return int(link.get_attr("IFLA_STATS64")["rx_packets"])


def tcp_bytes_per_s(world: Joined, streams: int, seconds: float) -> float:
    """From the first pod to the second, all streams together."""
    ports = range(5001, 5001 + streams)
    totals: list[int] = []
    ready = threading.Barrier(streams + 1)

    def receive(port: int) -> None:
        with socket.create_server((world.b.ip, port)) as server:
            ready.wait(TIMEOUT_S)
            server.settimeout(TIMEOUT_S)
            stream, _ = server.accept()
            buffer, total = bytearray(1 << 20), 0
            with stream:
                stream.settimeout(TIMEOUT_S)
                while got := stream.recv_into(buffer):
                    total += got
            totals.append(total)

    def send(port: int) -> None:
        chunk = bytes(1 << 18)
        with socket.create_connection((world.b.ip, port), timeout=TIMEOUT_S) as stream:
            until_s = time.monotonic() + seconds
            while time.monotonic() < until_s:
                stream.sendall(chunk)

    threads = [
        threading.Thread(target=end.run, args=(partial(call, port),))
        for end, call in ((world.b, receive), (world.a, send))
        for port in ports
    ]
    for thread in threads[:streams]:
        thread.start()
    ready.wait(TIMEOUT_S)
    start_s = time.perf_counter()
    for thread in threads[streams:]:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(totals) / (time.perf_counter() - start_s)


def round_trips_us(world: Joined, count: int) -> list[float]:
    """Of echo requests one after the other. TimeoutError where one is not answered in time."""

    def ping() -> list[float]:
        found = []
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as icmp:
            icmp.settimeout(TIMEOUT_S)
            for sequence in range(count):
                head = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, sequence)
                check = Packets.checksum(head).to_bytes(2, "big")
                start_s = time.perf_counter()
                icmp.sendto(head[:2] + check + head[4:], (world.b.ip, 0))
                while icmp.recv(2048)[24:28] != head[4:8]:
                    pass
                found.append((time.perf_counter() - start_s) * 1e6)
        return found

    result: list[float] = world.a.run(ping)
    return result


def settle(world: Joined) -> None:
    """Have both sides know where the other pod is."""
    wait_for(lambda: _answers(world), "the pods reach each other")


def _answers(world: Joined) -> bool:
    with contextlib.suppress(TimeoutError):
        return bool(round_trips_us(world, 1))
    return False
