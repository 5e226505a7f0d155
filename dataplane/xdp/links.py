"""Interfaces: attaching programs, the way to a gateway, and offloads that XDP cannot live with.

Everything acts in the network namespace of the calling thread; `in_netns` takes a call elsewhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dataplane.backend import DataplaneError, Hook
from dataplane.fib.rows import address_of
from dataplane.xdp import kernel
from dataplane.xdp.pack import Adjacency, Interface

T = TypeVar("T")

_LINK_TYPES: dict[Hook, int] = {"xdp": kernel.LINK_TYPE_XDP, "tc": kernel.LINK_TYPE_TCX}

_CLONE_NEWNET = 0x40000000
_SIOCETHTOOL = 0x8946
_ETHTOOL_STXCSUM = 0x17
_ETHTOOL_SGRO = 0x2C
_DISCARD_PORT = 9  # RFC 863
_IP_MTU_DISCOVER = 10  # linux/in.h
_IPV6_MTU_DISCOVER = 23  # linux/in6.h
_PMTUDISC_DO = 2  # of both
_UDP_HEADERS_BYTES = 28  # IPv4 and UDP
_UDP6_HEADERS_BYTES = 48
_NEIGHBOUR_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80
"""NUD_REACHABLE, STALE, DELAY, PROBE, NOARP, PERMANENT: the address is known."""
_NATIVE_REFUSED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSPC, errno.ERANGE, errno.ENOMEM)
"""What drivers say when they cannot run a program natively (ENOSPC: too few queues on a veth)."""


def in_netns(netns: str, call: Callable[[], T]) -> T:
    """Run a call in a network namespace, by name (`ip netns`) or path, on a thread of its own."""
    path = Path(netns) if "/" in netns else Path("/run/netns") / netns
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(fd, _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), f"cannot enter {path}")
            finally:
                os.close(fd)
            outcome.append(call())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name=f"netns {netns}")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


# ---- offloads -----------------------------------------------------------------------------------


def _ethtool(ifname: str, command: int, value: int) -> None:
    """One `struct ethtool_value` ioctl."""
    argument = ctypes.create_string_buffer(struct.pack("=II", command, value), 8)
    request = struct.pack("16sQ16x", ifname.encode(), ctypes.addressof(argument))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as carrier:
        fcntl.ioctl(carrier, _SIOCETHTOOL, request)


def disable_tx_checksum(ifname: str) -> None:
    """Make the stack finish its checksums: those it leaves to a device are never made under XDP.

    For a workload's own end of its veth; TCP and UDP from it are dropped by receivers otherwise.
    """
    _ethtool(ifname, _ETHTOOL_STXCSUM, 0)


def enable_gro(ifname: str) -> None:
    """Make a veth's end poll, so that frames redirected to its peer arrive (see `attach_pass`)."""
    _ethtool(ifname, _ETHTOOL_SGRO, 1)


def attach_pass(ifname: str) -> None:
    """Attach a program that passes everything, until the interface goes.

    For the far end of a veth that frames are redirected to: they are lost unless that end polls,
    and a program makes it poll.
    """
    fd = kernel.prog_load(kernel.PASS, "pass", flags=kernel.XDP_HAS_FRAGS)
    try:
        with IPRoute() as netlink:
            netlink.link("set", index=socket.if_nametoindex(ifname), xdp_fd=fd)
    finally:
        os.close(fd)


# ---- programs -----------------------------------------------------------------------------------


def attach(
    prog_fd: int, ifindex: int, pin: Path, former: Iterable[Path] = (), hook: Hook = "xdp"
) -> None:
    """Have a pinned link run this program on an interface.

    A pinned link of ours that is alive (at `pin`, or at one of `former`, an older ABI's) gets the
    new program atomically; otherwise one is made, native if the driver can, generic if not. One of
    the other hook ends when the new one is at work. DataplaneError if the interface has somebody
    else's program.
    """
    other: int | None = None
    try:
        for path in (pin, *former):
            if not path.exists():
                continue
            fd = kernel.get_pinned(str(path))
            try:
                info = kernel.link_info(fd)
                if info.ifindex != ifindex:
                    path.unlink()  # the interface it was for is gone, and its index given again
                elif info.type != _LINK_TYPES[hook]:
                    path.unlink()
                    other = os.dup(fd)
                else:
                    kernel.link_update(fd, prog_fd)
                    if path != pin:
                        kernel.pin(fd, str(pin))
                        path.unlink()
                    return
            finally:
                os.close(fd)
        fd = _link(prog_fd, ifindex) if hook == "xdp" else _link_tcx(prog_fd, ifindex)
        try:
            kernel.pin(fd, str(pin))
        finally:
            os.close(fd)
        if other is not None:
            kernel.link_detach(other)
    finally:
        if other is not None:
            os.close(other)


def _link_tcx(prog_fd: int, ifindex: int) -> int:
    try:
        return kernel.link_create_tcx(prog_fd, ifindex)
    except OSError as error:
        name = socket.if_indextoname(ifindex)
        raise DataplaneError(
            f"cannot attach tc programs to {name}: {error.strerror} (Linux 6.6 or later can)"
        ) from error


def _link(prog_fd: int, ifindex: int) -> int:
    try:
        try:
            return kernel.link_create_xdp(prog_fd, ifindex, kernel.XDP_FLAGS_DRV)
        except OSError as error:
            if error.errno not in _NATIVE_REFUSED:
                raise
            return kernel.link_create_xdp(prog_fd, ifindex, kernel.XDP_FLAGS_SKB)
    except OSError as error:
        name = socket.if_indextoname(ifindex)
        if error.errno in (errno.EBUSY, errno.EEXIST):
            raise DataplaneError(
                f"{name} already runs another XDP program (ip link set {name} xdp off removes it)"
            ) from error
        raise DataplaneError(f"cannot attach XDP to {name}: {error.strerror}") from error


def attached(pin: Path, ifindex: int, prog_id: int) -> bool:
    """Whether the pinned link runs this program on this interface."""
    if not pin.exists():
        return False
    fd = kernel.get_pinned(str(pin))
    try:
        info = kernel.link_info(fd)
    finally:
        os.close(fd)
    return info.ifindex == ifindex and info.prog_id == prog_id


# ---- interfaces and neighbours ------------------------------------------------------------------


def interface(ifname: str) -> Interface | None:
    """Index and MTU; None if there is no such interface."""
    try:
        index = socket.if_nametoindex(ifname)
    except OSError:
        return None
    with IPRoute() as netlink:
        try:
            (link,) = netlink.get_links(index)
        except NetlinkError:
            return None
        return Interface(index, int(link.get_attr("IFLA_MTU")))


def interfaces() -> dict[str, Interface]:
    """All interfaces of the namespace by name."""
    with IPRoute() as netlink:
        return {
            str(link.get_attr("IFLA_IFNAME")): Interface(
                int(link["index"]), int(link.get_attr("IFLA_MTU"))
            )
            for link in netlink.get_links()
        }


def native(ifindex: int) -> bool:
    """Whether the program on an interface runs in its driver, not in the generic path."""
    with IPRoute() as netlink:
        (link,) = netlink.get_links(ifindex)
        xdp = link.get_attr("IFLA_XDP")
        return bool(xdp is not None and xdp.get_attr("IFLA_XDP_ATTACHED") == "xdp")


def family(address: str) -> socket.AddressFamily:
    """Of an address in text."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def interface_with_address(address: str) -> str | None:
    """The interface that has an address, other than loopback."""
    with IPRoute() as netlink:
        for row in netlink.get_addr(family=family(address)):
            own = row.get_attr("IFA_LOCAL") or row.get_attr("IFA_ADDRESS")
            if own == address and row["index"] != 1:
                return socket.if_indextoname(int(row["index"]))
    return None


class _Hop(NamedTuple):
    """Where a route leads next."""

    ifindex: int
    neighbour: str
    mtu: int  # of the path, as routers have told the stack; 0: they have not


class PathProbe:
    """Lets the stack find out what paths carry: datagrams as large as the interface's MTU that may
    not be fragmented (RFC 1191, RFC 8201). A router with a smaller link says so to the stack, which
    keeps it with the route for ten minutes; `Underlay.resolve` reads it there. The socket has to
    stay open: what routers say about no socket is not believed.
    """

    def __init__(self, underlay: str) -> None:
        """For paths from this address of ours, or another of its family."""
        of = family(underlay)
        self._socket = socket.socket(of, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        if of == socket.AF_INET6:
            self._headers_bytes = _UDP6_HEADERS_BYTES
            self._socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DO)
        else:
            self._headers_bytes = _UDP_HEADERS_BYTES
            self._socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DO)

    def close(self) -> None:
        self._socket.close()

    def send(self, destination: str, mtu: int) -> None:
        """One packet of `mtu` bytes; none if the path is known to carry less."""
        payload = bytes(max(0, mtu - self._headers_bytes))
        with contextlib.suppress(OSError):
            self._socket.sendto(payload, socket.MSG_DONTWAIT, (destination, _DISCARD_PORT))


class Underlay:
    """Finds the way to gateways with one netlink session; a context manager."""

    def __enter__(self) -> Underlay:
        self._netlink = IPRoute()
        self._links: dict[int, tuple[bytes, int]] = {}
        return self

    def __exit__(self, *_: object) -> None:
        self._netlink.close()

    def resolve(self, destinations: Iterable[str]) -> dict[str, Adjacency]:
        """The ways that are known now; those of unreachable or unanswering gateways are not in."""
        neighbours: dict[tuple[int, str], bytes] = {}
        wanted = list(destinations)
        for of in sorted(set(map(family, wanted))):
            for row in self._netlink.get_neighbours(family=of):
                mac = row.get_attr("NDA_LLADDR")
                if mac and row["state"] & _NEIGHBOUR_USABLE:
                    neighbours[int(row["ifindex"]), str(row.get_attr("NDA_DST"))] = bytes.fromhex(
                        mac.replace(":", "")
                    )
        ways: dict[str, Adjacency] = {}
        for destination in wanted:
            hop = self._next_hop(destination)
            if hop is not None and hop[:2] in neighbours:
                src_mac, link_mtu = self._link(hop.ifindex)
                mtu = min(hop.mtu or link_mtu, link_mtu)
                way = Adjacency(hop.ifindex, src_mac, neighbours[hop[:2]], mtu, link_mtu)
                ways[destination] = way
        return ways

    def provoke(self, destination: str) -> None:
        """Send an empty datagram, so that the stack looks the neighbour up."""
        with (
            contextlib.suppress(OSError),
            socket.socket(family(destination), socket.SOCK_DGRAM) as probe,
        ):
            probe.sendto(b"", socket.MSG_DONTWAIT, (destination, _DISCARD_PORT))

    def _next_hop(self, destination: str) -> _Hop | None:
        """The route's; None without one, or if the address is our own."""
        try:
            routes: Any = self._netlink.route("get", family=family(destination), dst=destination)
        except NetlinkError:
            return None
        for route in routes:
            out = route.get_attr("RTA_OIF")
            if out is not None and out != 1:
                metrics = route.get_attr("RTA_METRICS")
                mtu = metrics.get_attr("RTAX_MTU") if metrics is not None else None
                neighbour = str(route.get_attr("RTA_GATEWAY") or destination)
                return _Hop(int(out), neighbour, int(mtu or 0))
        return None

    def _link(self, ifindex: int) -> tuple[bytes, int]:
        """MAC and MTU of an interface."""
        if ifindex not in self._links:
            (link,) = self._netlink.get_links(ifindex)
            mac = bytes.fromhex(str(link.get_attr("IFLA_ADDRESS")).replace(":", ""))
            self._links[ifindex] = (mac, int(link.get_attr("IFLA_MTU")))
        return self._links[ifindex]


def canonical(address: str) -> int:
    """An underlay address as a number; DataplaneError if it is none."""
    try:
        return address_of(address)
    except ValueError as error:
        raise DataplaneError(f"{address} is no underlay address") from error
