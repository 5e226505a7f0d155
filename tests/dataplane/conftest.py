"""Namespaces, interfaces and packets for tests of the kernel data plane.

`xdp_machine` skips where XDP cannot run, naming what is missing, and fails there when CI=true.
`site_pair` is two gateways on one wire, whose pods tests add.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any, Literal

import pytest
from pyroute2 import IPRoute, netns

from dataplane.backend import Capacity, Unavailable
from dataplane.fib.compile import Compiler
from dataplane.fib.facts import (
    AttachmentFact,
    EndpointFact,
    GatewayFact,
    SubnetFact,
    VpcFact,
)
from dataplane.xdp import ahead, links, pins
from dataplane.xdp import backend as xdp_backend

WAIT_S = 30.0
_IPV6_OFF = "/proc/sys/net/ipv6/conf/{}/disable_ipv6"
_NO_PROBE = 0x02  # IFA_F_NODAD: the address is to be had at once


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Poll a condition; fails with `what` after WAIT_S."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {WAIT_S} s: {what}")
        time.sleep(0.01)


@pytest.fixture(scope="session")
def xdp_machine() -> None:
    try:
        xdp_backend.require_xdp()
        return
    except Unavailable as error:
        lacking = error
    if os.environ.get("CI") == "true":
        pytest.fail(f"XDP has to run here, and cannot: {lacking}")
    pytest.skip(f"XDP cannot run here: {lacking}")


class Namespaces:
    """Network namespaces of this test, under names that no other test process uses."""

    def __init__(self) -> None:
        self._made: list[str] = []

    def make(self, name: str) -> str:
        full = f"wt{os.getpid()}-{name}"
        netns.create(full)
        self._made.append(full)

        def up() -> None:
            # Router solicitations would be counted among the packets that a test sends.
            for which in ("all", "default"):
                with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
                    Path(_IPV6_OFF.format(which)).write_text("1")
            with IPRoute() as netlink:
                netlink.link("set", index=1, state="up")

        links.in_netns(full, up)
        return full

    def veth(self, one: tuple[str, str], other: tuple[str, str], mtu: int = 1500) -> None:
        """A pair of interfaces, given as (namespace, name), both up."""

        def make() -> None:
            with IPRoute() as netlink:
                peer = {"ifname": other[1], "net_ns_fd": other[0]}
                netlink.link("add", ifname=one[1], kind="veth", peer=peer)

        links.in_netns(one[0], make)
        for where, ifname in (one, other):
            configure(where, ifname, mtu=mtu)

    def remove(self) -> None:
        for name in self._made:
            with contextlib.suppress(FileNotFoundError):
                netns.remove(name)


def configure(
    where: str, ifname: str, *, mtu: int = 0, address: str = "", mac: str = "", route: str = ""
) -> None:
    """Bring an interface up with these settings; `address` has a prefix length."""

    def apply() -> None:
        with IPRoute() as netlink:
            index = socket.if_nametoindex(ifname)
            if mac:
                netlink.link("set", index=index, address=mac)
            if mtu:
                netlink.link("set", index=index, mtu=mtu)
            netlink.link("set", index=index, state="up")
            if address:
                flags = _NO_PROBE if ":" in address else 0
                netlink.addr("add", index=index, address=address, flags=flags)
            if route:
                family = socket.AF_INET6 if ":" in route else socket.AF_INET
                netlink.route("add", family=family, dst="default", gateway=route)

    links.in_netns(where, apply)


def _ipv6_on(ifname: str) -> None:
    """In the namespace of the calling thread, where it is off from the beginning."""
    Path(_IPV6_OFF.format(ifname)).write_text("0")


class Gateway:
    """A gateway's namespace, compiler and backend; calls go to its namespace."""

    def __init__(self, name: str, site: str, number: int, where: str) -> None:
        self.name = name
        self.site = site
        self.id = bytes([number]) * 16
        self.underlay = f"192.0.2.{number}"
        self.netns = where
        self.instance = f"test{os.getpid()}-{name}"
        self.compiler = Compiler(self.id, site)
        self.backend: xdp_backend.XdpBackend | None = None

    @property
    def fact(self) -> GatewayFact:
        return GatewayFact(self.id, self.site, self.underlay, True)

    @property
    def pin_dir(self) -> Path:
        return pins.PinDir(self.instance).path

    def open(self, **options: Any) -> xdp_backend.XdpBackend:
        def start() -> xdp_backend.XdpBackend:
            return xdp_backend.XdpBackend.open(
                instance=self.instance,
                underlay=self.underlay,
                **{"capacity": Capacity(endpoints=64), **options},
            )

        self.backend = self.run(start)
        return self.backend

    def run(self, call: Callable[[], Any]) -> Any:
        return links.in_netns(self.netns, call)

    def sync(self) -> None:
        """Everything compiled so far into the kernel, until all ways are resolved."""
        backend = self.backend
        assert backend is not None
        self.run(lambda: backend.replace(self.compiler.tables()))
        self.compiler.take_delta()
        wait_for(lambda: self.run(backend.refresh_adjacency) == 0, "adjacency")

    def push(self) -> None:
        """What changed since, as a delta."""
        backend = self.backend
        assert backend is not None
        delta = self.compiler.take_delta()
        self.run(lambda: backend.apply(delta))

    def drops(self, reason: str) -> int:
        assert self.backend is not None
        return int(self.run(self.backend.counters)["drops"][reason])

    def until_dropped(self, reason: str, count: int) -> None:
        """So many and no more: the kernel looks at a packet some time after it was sent."""
        wait_for(lambda: self.drops(reason) >= count, f"drops for {reason}")
        assert self.drops(reason) == count

    def remove(self) -> None:
        if self.backend is not None:
            self.run(self.backend.detach)
            self.backend = None
        pins.remove_instance(self.instance)


class Pod:
    """A workload's namespace behind a gateway; the interface there is `eth0`."""

    def __init__(
        self, gateway: Gateway, name: str, vpc: str, ip: str, mac: str, where: str
    ) -> None:
        self.gateway = gateway
        self.ifname = f"p-{name}"
        self.vpc, self.ip, self.mac, self.netns = vpc, ip, mac, where

    @property
    def attachment(self) -> AttachmentFact:
        return AttachmentFact(self.vpc, self.ip, self.mac, self.ifname)

    @property
    def claim(self) -> EndpointFact:
        return EndpointFact(self.vpc, self.ip, self.gateway.site, self.gateway.id, self.mac)

    def run(self, call: Callable[[], Any]) -> Any:
        return links.in_netns(self.netns, call)

    def ping(self, target: str, *, count: int = 1, timeout_s: float = WAIT_S) -> int:
        """Echo requests one after the other; how many were answered.

        `timeout_s`: for each; less where none is to be answered.
        """
        ping = _ping6 if ":" in target else _ping
        return int(self.run(lambda: ping(target, count, timeout_s)))


class SitePair:
    """Two gateways, on a wire of their own, that know everything about each other."""

    def __init__(self, spaces: Namespaces) -> None:
        self.namespaces = spaces
        self.a = Gateway("a", "a", 1, spaces.make("gw-a"))
        self.b = Gateway("b", "b", 2, spaces.make("gw-b"))
        self.pods: dict[str, Pod] = {}
        self.wire()
        self.tell("gateway", self.a.fact)
        self.tell("gateway", self.b.fact)

    def wire(self) -> None:
        """Make the underlay."""
        self.namespaces.veth((self.a.netns, "wan0"), (self.b.netns, "wan0"))
        for gateway in self.gateways:
            configure(gateway.netns, "wan0", address=f"{gateway.underlay}/24")

    @property
    def gateways(self) -> tuple[Gateway, Gateway]:
        return self.a, self.b

    def tell(
        self,
        kind: Literal["gateway", "vpc", "subnet", "endpoint"],
        fact: GatewayFact | VpcFact | SubnetFact | EndpointFact,
    ) -> None:
        """The same fact for both compilers."""
        for gateway in self.gateways:
            compiler: Any = gateway.compiler
            if isinstance(fact, EndpointFact):
                compiler.set_endpoint(fact.vpc, fact.ip, fact)
            else:
                getattr(compiler, f"set_{kind}")(fact.id, fact)

    def vpc(self, id: str, vni: int, cidrs: dict[str, tuple[str, ...]]) -> None:
        """A VPC with subnets, given as CIDR to sites; the first host is the subnet's gateway."""
        self.tell("vpc", VpcFact(id, vni))
        for cidr, sites in cidrs.items():
            first = str(ip_network(cidr)[1])
            self.tell("subnet", SubnetFact(f"{id}-{cidr}", id, cidr, sites, first))

    def pod(
        self,
        gateway: Gateway,
        name: str,
        vpc: str,
        ip: str,
        mtu: int = 1450,
        *,
        mute: bool = False,
        offloads: bool = False,
    ) -> Pod:
        """Attach a workload, claim its address, and make its interface fit for XDP.

        One that is `mute` has no address in its own kernel, which looks for routers and neighbours
        when it likes otherwise, and is counted. One with `offloads` has its interface as it comes,
        which is not for XDP.
        """
        number = len(self.pods) + 1
        mac = f"02:00:00:00:01:{number:02x}"
        pod = Pod(gateway, name, vpc, ip, mac, self.namespaces.make(f"pod-{name}"))
        self.namespaces.veth((gateway.netns, pod.ifname), (pod.netns, "eth0"), mtu)
        if mute:
            configure(pod.netns, "eth0", mac=pod.mac)
        else:
            self.furnish(pod, offloads=offloads)
        gateway.compiler.set_attachment(pod.ifname, pod.attachment)
        self.tell("endpoint", pod.claim)
        self.pods[name] = pod
        return pod

    @staticmethod
    def furnish(pod: Pod, *, offloads: bool = False) -> None:
        """Address, default route and offloads of a new `eth0`."""
        bits = 64 if ":" in pod.ip else 24
        first = str(ip_interface(f"{pod.ip}/{bits}").network[1])
        if ":" in pod.ip:
            pod.run(lambda: _ipv6_on("eth0"))
        configure(pod.netns, "eth0", mac=pod.mac, address=f"{pod.ip}/{bits}", route=first)
        if not offloads:
            pod.run(lambda: links.disable_tx_checksum("eth0"))
            pod.run(lambda: links.attach_pass("eth0"))

    @staticmethod
    def add_address(gateway: Gateway, address: str, bits: int = 32) -> None:
        if ":" in address:
            gateway.run(lambda: _ipv6_on("wan0"))
        configure(gateway.netns, "wan0", address=f"{address}/{bits}")

    def open(self, **options: Any) -> None:
        for gateway in self.gateways:
            gateway.open(**options)
        self.sync()

    def sync(self) -> None:
        for gateway in self.gateways:
            gateway.sync()

    def push(self) -> None:
        for gateway in self.gateways:
            gateway.push()


class SixPair(SitePair):
    """Two gateways on a wire that has nothing but IPv6."""

    def wire(self) -> None:
        self.namespaces.veth((self.a.netns, "wan0"), (self.b.netns, "wan0"))
        for number, gateway in enumerate(self.gateways, 1):
            gateway.underlay = f"2001:db8::{number}"
            self.add_address(gateway, gateway.underlay, 64)


class RoutedPair(SitePair):
    """Two gateways with a router between, whose link to the second carries `MTU` bytes only."""

    MTU = 1400

    def wire(self) -> None:
        self.router = self.namespaces.make("router")
        self.b.underlay = "198.51.100.2"
        for gateway, mtu in ((self.a, 1500), (self.b, self.MTU)):
            inner = f"to-{gateway.name}"
            router_ip = gateway.underlay.rsplit(".", 1)[0] + ".254"
            self.namespaces.veth((gateway.netns, "wan0"), (self.router, inner), mtu)
            configure(self.router, inner, address=f"{router_ip}/24")
            configure(gateway.netns, "wan0", address=f"{gateway.underlay}/24", route=router_ip)
            links.in_netns(self.router, functools.partial(links.attach_pass, inner))
        links.in_netns(self.router, lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))


class RoutedSixPair(RoutedPair):
    """The same over IPv6."""

    def wire(self) -> None:
        self.router = self.namespaces.make("router")
        for number, (gateway, mtu) in enumerate(((self.a, 1500), (self.b, self.MTU)), 1):
            inner, net = f"to-{gateway.name}", f"2001:db8:0:{number}::"
            gateway.underlay, router_ip = f"{net}1", f"{net}fe"
            self.namespaces.veth((gateway.netns, "wan0"), (self.router, inner), mtu)
            links.in_netns(self.router, functools.partial(_ipv6_on, inner))
            gateway.run(functools.partial(_ipv6_on, "wan0"))
            configure(self.router, inner, address=f"{router_ip}/64")
            address = f"{gateway.underlay}/64"
            configure(gateway.netns, "wan0", address=address, route=router_ip)
            links.in_netns(self.router, functools.partial(links.attach_pass, inner))
        forwarding = Path("/proc/sys/net/ipv6/conf/all/forwarding")
        links.in_netns(self.router, lambda: forwarding.write_text("1"))


@contextlib.contextmanager
def made_pair(kind: type[SitePair] = SitePair) -> Iterator[SitePair]:
    """A pair that leaves nothing behind."""
    spaces = Namespaces()
    pair = None
    try:
        pair = kind(spaces)
        yield pair
    finally:
        for gateway in pair.gateways if pair else ():
            gateway.remove()
        spaces.remove()


@pytest.fixture
def site_pair(xdp_machine: None) -> Iterator[SitePair]:
    with made_pair() as pair:
        yield pair


@pytest.fixture
def routed_pair(xdp_machine: None) -> Iterator[RoutedPair]:
    with made_pair(RoutedPair) as pair:
        assert isinstance(pair, RoutedPair)
        yield pair


@pytest.fixture(scope="session")
def built_ahead(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs as clang builds them, in an object file."""
    path: Path = tmp_path_factory.mktemp("ahead") / "weft.o"
    try:
        ahead.build(path)
    except ahead.NoPrograms as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    return path


@pytest.fixture(scope="module", params=["bcc", "clang"])
def either_build(request: Any) -> Iterator[None]:
    """Backends that a module opens have programs of either build."""
    with pytest.MonkeyPatch.context() as environment:
        if request.param == "clang":
            built = request.getfixturevalue("built_ahead")
            environment.setenv(ahead.OBJECT_VARIABLE, str(built))
        yield


@pytest.fixture(scope="module")
def module_pair(xdp_machine: None, either_build: None) -> Iterator[SitePair]:
    """A pair that the tests of a module share; they only look at what they change."""
    with made_pair() as pair:
        yield pair


def _ping(target: str, count: int, timeout_s: float) -> int:
    answered = 0
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as icmp:
        for sequence in range(count):
            head = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, sequence)
            check = internet_checksum(head)
            request = head[:2] + check.to_bytes(2, "big") + head[4:]
            icmp.sendto(request, (target, 0))
            deadline = time.monotonic() + timeout_s
            while (left := deadline - time.monotonic()) > 0:
                icmp.settimeout(left)
                try:
                    packet, sender = icmp.recvfrom(2048)
                except TimeoutError:
                    break
                if sender[0] == target and packet[20] == 0 and packet[24:28] == head[4:8]:
                    answered += 1
                    break
    return answered


def _ping6(target: str, count: int, timeout_s: float) -> int:
    answered = 0
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as icmp:
        for sequence in range(count):
            own = struct.pack("!HH", os.getpid() & 0xFFFF, sequence)
            icmp.sendto(b"\x80\0\0\0" + own, (target, 0))  # the kernel fills in the checksum
            deadline = time.monotonic() + timeout_s
            while (left := deadline - time.monotonic()) > 0:
                icmp.settimeout(left)
                try:
                    message, sender = icmp.recvfrom(2048)
                except TimeoutError:
                    break
                if sender[0] == target and message[0] == 0x81 and message[4:8] == own:
                    answered += 1
                    break
    return answered


def transfer(sender: Any, receiver: Any, payload: bytes) -> bytes:
    """Send bytes by TCP to another pod; what came out of the other end."""
    ready, result = threading.Event(), []

    def receive() -> None:
        family = socket.AF_INET6 if ":" in receiver.ip else socket.AF_INET
        with socket.create_server((receiver.ip, 5001), family=family) as server:
            server.settimeout(WAIT_S)
            ready.set()
            stream, _ = server.accept()
            with stream:
                stream.settimeout(WAIT_S)
                result.append(b"".join(iter(lambda: stream.recv(1 << 16), b"")))

    thread = threading.Thread(target=lambda: receiver.run(receive))
    thread.start()
    assert ready.wait(WAIT_S)

    def send() -> None:
        with socket.create_connection((receiver.ip, 5001), timeout=WAIT_S) as stream:
            stream.sendall(payload)

    sender.run(send)
    thread.join()
    return bytes(result[0])


# ---- packets ------------------------------------------------------------------------------------


def internet_checksum(data: bytes) -> int:
    """RFC 1071; 0 over data that has its checksum in it."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def mac_of(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


class Packets:
    """Frames by layers; everything valid unless a parameter says otherwise."""

    checksum = staticmethod(internet_checksum)

    @staticmethod
    def ethernet(dst: str, src: str, payload: bytes, kind: int = 0x0800) -> bytes:
        return mac_of(dst) + mac_of(src) + struct.pack("!H", kind) + payload

    @staticmethod
    def ipv4(
        src: str,
        dst: str,
        payload: bytes,
        *,
        protocol: int = 17,
        ttl: int = 64,
        fragment: int = 0x4000,
        total: int | None = None,
        version_ihl: int = 0x45,
    ) -> bytes:
        head = struct.pack(
            "!BBHHHBBH4s4s",
            version_ihl,
            0,
            20 + len(payload) if total is None else total,
            0,
            fragment,
            ttl,
            protocol,
            0,
            socket.inet_aton(src),
            socket.inet_aton(dst),
        )
        check = internet_checksum(head)
        return head[:10] + check.to_bytes(2, "big") + head[12:] + payload

    @staticmethod
    def ipv6(
        src: str,
        dst: str,
        payload: bytes,
        *,
        protocol: int = 17,
        hops: int = 64,
        length: int | None = None,
        version: int = 6,
    ) -> bytes:
        size = len(payload) if length is None else length
        head = struct.pack("!IHBB", version << 28, size, protocol, hops)
        ends = socket.inet_pton(socket.AF_INET6, src) + socket.inet_pton(socket.AF_INET6, dst)
        return head + ends + payload

    @staticmethod
    def checksum6(packet: bytes) -> int:
        """Of an IPv6 packet without extensions: 0 if the one in its message is right."""
        length, protocol = struct.unpack_from("!HB", packet, 4)
        assert length == len(packet) - 40
        pseudo = packet[8:40] + struct.pack("!II", length, protocol)
        return internet_checksum(pseudo + packet[40:])

    @classmethod
    def outer(cls, src: str, dst: str, sport: int, dport: int, body: bytes, **header: Any) -> bytes:
        """A frame with UDP in IPv4 or IPv6, as routers of the underlay hand it over."""
        udp = cls.udp(sport, dport, body)
        if ":" not in src:
            ip, kind = cls.ipv4(src, dst, udp, **header), 0x0800
        else:
            whole = cls.ipv6(src, dst, udp)
            sum = (cls.checksum6(whole) or 0xFFFF).to_bytes(2, "big")
            ip, kind = cls.ipv6(src, dst, udp[:6] + sum + udp[8:], **header), 0x86DD
        return cls.ethernet("02:00:00:00:00:aa", "02:00:00:00:00:bb", ip, kind)

    @staticmethod
    def udp(sport: int, dport: int, payload: bytes) -> bytes:
        return struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload

    @staticmethod
    def geneve(
        vni: int,
        frame: bytes,
        *,
        first: int = 0,
        flags: int = 0,
        protocol: int = 0x6558,
        options: bytes = b"",
    ) -> bytes:
        head = struct.pack("!BBHI", first | len(options) // 4, flags, protocol, vni << 8)
        return head + options + frame

    @staticmethod
    def vxlan(vni: int, frame: bytes, *, flags: int = 8) -> bytes:
        return struct.pack("!II", flags << 24, vni << 8) + frame

    @staticmethod
    def arp(op: int, sha: str, spa: str, tpa: str, tha: str = "00:00:00:00:00:00") -> bytes:
        return (
            struct.pack("!HHBBH", 1, 0x0800, 6, 4, op)
            + mac_of(sha)
            + socket.inet_aton(spa)
            + mac_of(tha)
            + socket.inet_aton(tpa)
        )


@pytest.fixture(scope="session")
def packets() -> type[Packets]:
    return Packets


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], bool], str], None]:
    return wait_for
