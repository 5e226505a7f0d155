"""Where others can dial this node: wildcard listen addresses resolved to the machine's own."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeAlias

import trio

ADDRESSES_MAX = 8
NETWORKS_MAX = 32
"""A machine with containers may have hundreds; each costs a socket where it is announced in."""

Cidr: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_IFF_MULTICAST = 0x1000  # linux/if.h

# linux/if_addr.h: not the machine's for long, or not yet (RFC 4941, RFC 4862)
_TEMPORARY, _DADFAILED, _DEPRECATED, _TENTATIVE = 0x01, 0x08, 0x20, 0x40
_IN6_UNFIT = _TEMPORARY | _DADFAILED | _DEPRECATED | _TENTATIVE


async def of_host(underlay: str | None) -> list[str]:
    """The machine's addresses, the underlay one first, IPv4 and IPv6 in turn.

    Loopback and link-local ones are left out, and IPv6 ones that do not last. When there are no
    others, loopback is what is left: nodes on one machine can use it.
    """
    return await trio.to_thread.run_sync(_of_host, underlay)


def _of_host(underlay: str | None) -> list[str]:
    from pyroute2 import IPRoute

    found: list[tuple[str, int]] = []
    with IPRoute() as route:
        for message in route.get_addr():
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            if text:
                found.append((text, message.get_attr("IFA_FLAGS") or message["flags"]))
    return choose(underlay, found)


@dataclass(frozen=True, slots=True)
class Network:
    """A network that one of this machine's interfaces is in."""

    own: str
    """this machine's address in it"""
    prefix_bits: int
    multicast: bool
    """whether others are reached there"""

    @property
    def cidr(self) -> Cidr:
        return ipaddress.ip_network(f"{self.own}/{self.prefix_bits}", strict=False)


async def networks() -> tuple[Network, ...]:
    """Those that this machine is in, at most NETWORKS_MAX, without loopback and IPv6 link-local."""
    return await trio.to_thread.run_sync(_networks)


def _networks() -> tuple[Network, ...]:
    from pyroute2 import IPRoute

    with IPRoute() as route:
        flags = {link["index"]: link["flags"] for link in route.get_links()}
        found = {
            Network(
                text, message["prefixlen"], bool(flags.get(message["index"], 0) & _IFF_MULTICAST)
            )
            for message in route.get_addr()
            if (text := message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))
            and _reachable(text)
        }
    return tuple(sorted(found, key=lambda network: (":" in network.own, network.own)))[
        :NETWORKS_MAX
    ]


def choose(underlay: str | None, found: Sequence[tuple[str, int]]) -> list[str]:
    """Of addresses and their flags (IFA_F_*) those to advertise, at most ADDRESSES_MAX.

    In turn, because a machine with many of one family (a bridge for each container network) would
    otherwise leave no room for the other.
    """
    fit = [text for text, flags in found if ":" not in text or not flags & _IN6_UNFIT]
    usable = [text for text in fit if _reachable(text)] or ["127.0.0.1"]
    families = [[t for t in usable if ":" not in t], [t for t in usable if ":" in t]]
    turns = [text for pair in zip_longest(*families) for text in pair if text is not None]
    first = [underlay] if underlay else []
    return list(dict.fromkeys([*first, *turns]))[:ADDRESSES_MAX]


def _reachable(text: str) -> bool:
    address = ipaddress.ip_address(text)
    return not (address.is_loopback or address.is_link_local or address.is_unspecified)


def advertised(listening: Sequence[str], host_addrs: Sequence[str]) -> list[str]:
    """`listening` with each wildcard address replaced by the machine's of its family."""
    addrs: list[str] = []
    for multiaddr in listening:
        _, family, host, protocol, port = multiaddr.split("/")[:5]
        if not ipaddress.ip_address(host).is_unspecified:
            addrs.append(multiaddr)
            continue
        for text in host_addrs:
            if (":" in text) == (family == "ip6"):
                addrs.append(f"/{family}/{text}/{protocol}/{port}")
    return list(dict.fromkeys(addrs))[:ADDRESSES_MAX]
