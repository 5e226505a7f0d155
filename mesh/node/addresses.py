"""Where others can dial this node: wildcard listen addresses resolved to the machine's own."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import trio

ADDRESSES_MAX = 8


async def of_host(underlay: str | None) -> list[str]:
    """The machine's addresses, the underlay one first; loopback and link-local ones are left out.

    When there are no others, loopback is what is left: nodes on one machine can use it.
    """
    return await trio.to_thread.run_sync(_of_host, underlay)


def _of_host(underlay: str | None) -> list[str]:
    from pyroute2 import IPRoute

    found = [underlay] if underlay else []
    with IPRoute() as route:
        for message in route.get_addr():
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            if text:
                found.append(text)
    unique = list(dict.fromkeys(found))
    usable = [text for text in unique if _reachable(text)] or ["127.0.0.1"]
    return usable[:ADDRESSES_MAX]


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
