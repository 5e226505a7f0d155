"""Network namespaces, links and addresses of a lab, made and removed through netlink.

Namespaces are entered by threads (`setns` is per thread), never by this process as a whole, and by
children through `nsenter`, which unlike `ip netns exec` leaves /sys alone: pins under /sys/fs/bpf
that a node makes have to be those that everybody sees.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from pyroute2 import IPRoute
from pyroute2 import netns as kernel_netns

from dataplane.xdp import links
from mesh.core.errors import NotReady
from sim.lab.topology import (
    BRIDGE,
    POD_IF,
    POD_MTU,
    UNDERLAY_MTU,
    UNDERLAY_PREFIX_BITS,
    WAN_IF,
    Gateway,
    Pod,
    Topology,
)

NETNS_DIR: Final = Path("/run/netns")
_NO_PROBE: Final = 0x02  # IFA_F_NODAD: the address is to be had at once

_T = TypeVar("_T")


def in_namespace(name: str, call: Callable[[], _T]) -> _T:
    """Run `call` in a thread inside a namespace; sockets it opens stay in there.

    Raises:
        NotReady: there is no such namespace.
        Whatever `call` raises; OSError when the namespace may not be entered.
    """
    if not (NETNS_DIR / name).exists():
        raise NotReady(f"namespace {name} is not there; take the lab down and up again")
    return links.in_netns(name, call)


def enter_command(name: str, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` inside a namespace, in the same process."""
    return ["nsenter", f"--net={NETNS_DIR / name}", "--", *argv]


def list_namespaces() -> list[str]:
    try:
        return sorted(path.name for path in NETNS_DIR.iterdir())
    except FileNotFoundError:
        return []


def create_namespace(name: str) -> None:
    """An empty namespace with its loopback up and IPv6 off (its chatter is no pod's traffic)."""
    kernel_netns.create(name)
    in_namespace(name, _prepare_namespace)


def _prepare_namespace() -> None:
    for which in ("all", "default"):
        # Not there when the kernel has no IPv6, which is as good.
        with contextlib.suppress(FileNotFoundError):
            Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").write_text("1")
    with IPRoute() as netlink:
        netlink.link("set", index=_index(netlink, "lo"), state="up")


def remove_namespace(name: str) -> None:
    """Remove a namespace and with it its links. One that is not there is no error."""
    try:
        kernel_netns.remove(name)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def remove_namespaces(names: Iterable[str]) -> None:
    for name in names:
        remove_namespace(name)


def build(topology: Topology) -> None:
    """Make all namespaces and links of a lab. What is half made on an error stays for `down`."""
    create_namespace(topology.wan_netns)
    in_namespace(topology.wan_netns, _build_bridge)
    for gateway in topology.gateways:
        add_gateway(topology, gateway)
    for pod in topology.pods:
        add_pod(topology, pod)


def _build_bridge() -> None:
    for table in ("iptables", "ip6tables", "arptables"):
        # Bridged frames are none of the IP layer's business here. Absent without br_netfilter.
        with contextlib.suppress(FileNotFoundError):
            Path(f"/proc/sys/net/bridge/bridge-nf-call-{table}").write_text("0")
    with IPRoute() as netlink:
        netlink.link("add", ifname=BRIDGE, kind="bridge")
        netlink.link("set", index=_index(netlink, BRIDGE), state="up", mtu=UNDERLAY_MTU)


def add_gateway(topology: Topology, gateway: Gateway) -> None:
    """A gateway's namespace, with its underlay interface on the bridge."""
    create_namespace(gateway.netns)

    def inside() -> None:
        with IPRoute() as netlink:
            netlink.link(
                "add",
                ifname=WAN_IF,
                kind="veth",
                address=gateway.mac,
                mtu=UNDERLAY_MTU,
                peer={
                    "ifname": gateway.port,
                    "mtu": UNDERLAY_MTU,
                    "net_ns_fd": topology.wan_netns,
                },
            )
            index = _index(netlink, WAN_IF)
            netlink.link("set", index=index, state="up")
            if topology.underlay == "ipv6":
                Path(f"/proc/sys/net/ipv6/conf/{WAN_IF}/disable_ipv6").write_text("0")
            netlink.addr(
                "add",
                index=index,
                address=gateway.underlay_ip,
                prefixlen=UNDERLAY_PREFIX_BITS[topology.underlay],
                flags=_NO_PROBE if topology.underlay == "ipv6" else 0,
            )

    def at_bridge() -> None:
        with IPRoute() as netlink:
            netlink.link(
                "set",
                index=_index(netlink, gateway.port),
                master=_index(netlink, BRIDGE),
                state="up",
            )
        _take_redirects(gateway.port)

    in_namespace(gateway.netns, inside)
    in_namespace(topology.wan_netns, at_bridge)


def add_pod(topology: Topology, pod: Pod) -> None:
    """A pod's namespace, linked to its gateway, with its address and a default route."""
    create_namespace(pod.netns)

    def at_gateway() -> None:
        with IPRoute() as netlink:
            netlink.link(
                "add",
                ifname=pod.ifname,
                kind="veth",
                mtu=POD_MTU[topology.underlay],
                peer={
                    "ifname": POD_IF,
                    "address": pod.mac,
                    "mtu": POD_MTU[topology.underlay],
                    "net_ns_fd": pod.netns,
                },
            )
            netlink.link("set", index=_index(netlink, pod.ifname), state="up")

    def inside() -> None:
        links.disable_tx_checksum(POD_IF)
        with IPRoute() as netlink:
            index = _index(netlink, POD_IF)
            netlink.link("set", index=index, state="up")
            _take_redirects(POD_IF)
            netlink.addr("add", index=index, address=pod.ip, prefixlen=pod.prefix_bits)
            netlink.route("add", dst="default", gateway=pod.router_ip)

    in_namespace(topology.gateway(pod.gateway).netns, at_gateway)
    in_namespace(pod.netns, inside)


def _take_redirects(ifname: str) -> None:
    """Let a veth receive what XDP redirects to its peer.

    Only once it is up: GRO that is switched on before makes it poll, but the kernel (6.18,
    veth_set_features) does not then mark the peer as a target for redirects.
    """
    links.enable_gro(ifname)


def _index(netlink: Any, ifname: str) -> int:
    found = netlink.link_lookup(ifname=ifname)
    if not found:
        raise NotReady(f"interface {ifname} is not there")
    return int(found[0])
