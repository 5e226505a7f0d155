"""The subnets of one VPC laid out over its addresses.

Of two that overlap, the one made earlier (then the lower id) is installed. Addresses are compared
as bytes of one length, which is their numeric order; IPv4 and IPv6 never compare.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right, insort
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final, TypeAlias

from mesh.core.view.types import Subnet

Span: TypeAlias = tuple[bytes, bytes]
"""First and last address of a network."""

AFTER_ALL: Final = b"\xff" * 17
"""Greater than any address."""
EVERYTHING: Final[tuple[Span, ...]] = ((b"\0" * 4, b"\xff" * 4), (b"\0" * 16, b"\xff" * 16))


@lru_cache(maxsize=65_536)
def span(cidr: str) -> Span:
    """The addresses of a canonical CIDR."""
    network = ipaddress.ip_network(cidr)
    return network[0].packed, network[-1].packed


@lru_cache(maxsize=65_536)
def claimable_span(cidr: str) -> Span:
    """Those that can be claimed: not the network's own, its gateway's and its broadcast's."""
    first, last = (int.from_bytes(addr, "big") for addr in span(cidr))
    size = len(span(cidr)[0])
    return (first + 2).to_bytes(size, "big"), (last - 1).to_bytes(size, "big")


def within(inner: Span, outer: Span) -> bool:
    """Whether `inner` lies within `outer`."""
    return len(inner[0]) == len(outer[0]) and outer[0] <= inner[0] and inner[1] <= outer[1]


@lru_cache(maxsize=65_536)
def gateway_of(cidr: str) -> str:
    """The first host of a network with at least two host bits."""
    return str(ipaddress.ip_network(cidr)[1])


@dataclass(slots=True)
class Layout:
    """What is installed, sorted by address, and who lost against whom."""

    subnets: dict[str, Subnet] = field(default_factory=dict)
    """Every live subnet of the VPC, by id."""
    losers: dict[str, str] = field(default_factory=dict)
    """Subnet that is not installed → the active one it overlaps."""
    _spans: dict[int, list[tuple[bytes, bytes, str]]] = field(
        default_factory=lambda: {4: [], 16: []}
    )
    """Address length → (first, last, subnet id) of the active subnets. They do not overlap."""

    def at(self, addr: bytes) -> Subnet | None:
        """The active subnet that covers `addr`."""
        found = self._meeting(addr, addr)
        return None if found is None else self.subnets[found]

    def claimable(self, addr: bytes) -> Subnet | None:
        """As `at`, unless the address is the network's own, its gateway's or its broadcast's."""
        subnet = self.at(addr)
        if subnet is None:
            return None
        first, last = claimable_span(subnet.cidr)
        return subnet if first <= addr <= last else None

    def add(self, subnet: Subnet, within_vpc: bool) -> None:
        """Install `subnet` unless it may not be. Called in the order in which they rank."""
        first, last = span(subnet.cidr)
        holder = self._meeting(first, last)
        if not within_vpc:
            self.subnets[subnet.id] = replace(subnet, state="outside")
        elif holder is not None:
            self.losers[subnet.id] = holder
            self.subnets[subnet.id] = replace(subnet, state="overlap")
        else:
            insort(self._spans[len(first)], (first, last, subnet.id))
            active = subnet.state == "active"
            self.subnets[subnet.id] = subnet if active else replace(subnet, state="active")

    def _meeting(self, first: bytes, last: bytes) -> str | None:
        """The active subnet with the highest addresses among those that meet [first, last]."""
        spans = self._spans[len(first)]
        index = bisect_right(spans, (last, AFTER_ALL, ""))  # all that begin up to `last`
        if index == 0 or spans[index - 1][1] < first:
            return None
        return spans[index - 1][2]


def lay_out(cidrs: Iterable[str], subnets: Iterable[Subnet]) -> Layout:
    """Decide which of a VPC's live subnets are installed. Their `state` on entry is ignored."""
    outer = [span(cidr) for cidr in cidrs]
    layout = Layout()
    for subnet in sorted(subnets, key=lambda s: (s.hlc, s.id)):
        inner = span(subnet.cidr)
        layout.add(subnet, any(within(inner, cidr) for cidr in outer))
    return layout
