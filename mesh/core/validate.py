"""What people type, checked and made canonical. Every function raises `BadInput` with what is
wrong, the value, and what to do; none has another effect. Single values are `object`: that what
should be a text is one is a part of what is checked.

`what` names the argument as the person knows it ("--ip", "line 7: ip").
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Final, TypeAlias

from mesh.core.errors import BadInput

NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
MAC: Final = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
ID: Final = re.compile(r"[0-9a-f]{32}")

VNI_MAX: Final = (1 << 24) - 1
HOST_BITS_MIN: Final = 2
"""Of a subnet: network, gateway, one endpoint and broadcast."""

CIDRS_MAX: Final = 32
SITES_MAX: Final = 128
LABELS_MAX: Final = 16
LABEL_CHARS_MAX: Final = 63
TEXT_CHARS_MAX: Final = 256
"""Version strings and multiaddrs. All five keep a record below `model.RECORD_BYTES_MAX`."""

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_SHOWN_CHARS_MAX: Final = 80

_OCTET: Final = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4: Final = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}")
"""Canonical IPv4, which is most of what comes: `ipaddress` takes ten times as long."""

_NOT_FOR_PODS: Final = tuple(
    ipaddress.IPv4Network(c) for c in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3")
)
"""This network, loopback, multicast and reserved: no host's stack sends to these as to a pod."""
_NOT_FOR_PODS_6: Final = tuple(ipaddress.IPv6Network(c) for c in ("::/8", "fe80::/10", "ff00::/8"))
"""Unspecified, loopback and IPv4 in other forms; link-local, which no router carries; multicast."""
_NOT_FOR_PODS_FIRST: Final = frozenset(
    octet
    for network in _NOT_FOR_PODS
    for octet in range(network.network_address.packed[0], network.broadcast_address.packed[0] + 1)
)
"""The same by first octet: none of them is smaller than a /8."""


def bad(what: str, value: object, fix: str) -> BadInput:
    """The error for one argument, on one line however long or strange the value is."""
    shown = repr(value) if isinstance(value, str) else str(value)
    if len(shown) > _SHOWN_CHARS_MAX:
        shown = shown[: _SHOWN_CHARS_MAX - 1] + "…"
    return BadInput(f"{what}: {shown}: {fix}")


def _text(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise bad(what, value, "give a text")
    return value


def name(what: str, value: object) -> str:
    """A name people give: a DNS label in lower case."""
    given = _text(what, value)
    if not NAME.fullmatch(given):
        raise bad(
            what, given, "use 1 to 63 of a-z, 0-9 and '-', with a letter or digit at both ends"
        )
    return given


def optional_name(what: str, value: object) -> str:
    """A name, or the empty text for none."""
    return "" if value is None or value == "" else name(what, value)


def names(what: str, values: Iterable[str], count_max: int = SITES_MAX) -> tuple[str, ...]:
    """Names, sorted, each once."""
    found = tuple(sorted({name(what, value) for value in values}))
    if len(found) > count_max:
        raise bad(what, len(found), f"give at most {count_max}")
    return found


def vni(what: str, value: object) -> int:
    """A VXLAN network identifier, 24 bits, not 0."""
    if type(value) is not int or not 1 <= value <= VNI_MAX:
        raise bad(what, value, f"use a number from 1 to {VNI_MAX}")
    return value


def mac(what: str, value: object) -> str:
    """A unicast MAC address, in lower case."""
    canonical = _text(what, value).lower()
    if not MAC.fullmatch(canonical):
        raise bad(what, value, "write it as aa:bb:cc:dd:ee:ff")
    if int(canonical[:2], 16) & 1:
        raise bad(what, value, "use a unicast address: the first byte must be even")
    if canonical == "00:00:00:00:00:00":
        raise bad(what, value, "use the address of an interface, not zeros")
    return canonical


def ip(what: str, value: object) -> str:
    """An IPv4 or IPv6 address in canonical text, without a zone."""
    given = _text(what, value)
    if _IPV4.fullmatch(given):
        return given
    try:
        canonical = str(ipaddress.ip_address(given))
    except ValueError:
        raise bad(what, given, "give an IP address such as 10.0.1.5") from None
    if "%" in given:
        raise bad(what, given, "give the address without a zone")
    if canonical != given:
        raise bad(what, given, f"write it as {canonical}")
    return given


def underlay_ip(what: str, value: object) -> str:
    """A unicast address that another machine can send to, and without a zone."""
    given = ip(what, value)
    address = ipaddress.ip_address(given)
    if address.is_multicast or address.is_unspecified:
        raise bad(what, value, "give the address of an interface of this machine")
    if isinstance(address, ipaddress.IPv6Address) and (
        address.is_link_local or address.ipv4_mapped
    ):
        raise bad(what, value, "give a global or unique local address")
    return given


ENCAPSULATIONS: Final = ("geneve", "vxlan")
"""What tunnels can be made of."""


def encapsulation(what: str, value: object) -> str:
    given = _text(what, value)
    if given not in ENCAPSULATIONS:
        raise bad(what, given, f"give one of {', '.join(ENCAPSULATIONS)}")
    return given


def pod_ip(what: str, value: object) -> str:
    """An address that an endpoint can have."""
    given = ip(what, value)
    if ":" in given:
        refused = any(ipaddress.IPv6Address(given) in network for network in _NOT_FOR_PODS_6)
    else:
        refused = int(given.partition(".")[0]) in _NOT_FOR_PODS_FIRST
    if refused:
        raise bad(what, given, "give a unicast address that a pod can have")
    return given


def cidr(what: str, value: object) -> Network:
    """A network in canonical text: no host bits set, prefix length as a number."""
    given = _text(what, value)
    try:
        network = _network(given)
    except ValueError:
        raise bad(what, given, "give a network such as 10.0.1.0/24") from None
    if "%" in given:
        raise bad(what, given, "give the network without a zone")
    if str(network) != given:
        raise bad(what, given, f"host bits set or not canonical: write it as {network}")
    return network


@lru_cache(maxsize=4096)
def _network(text: str) -> Network:
    """Raises ValueError."""
    return ipaddress.ip_network(text, strict=False)


@lru_cache(maxsize=4096)
def _for_pods(network: Network) -> bool:
    if isinstance(network, ipaddress.IPv6Network):
        return not any(network.overlaps(other) for other in _NOT_FOR_PODS_6)
    return not any(network.overlaps(other) for other in _NOT_FOR_PODS)


def pod_cidr(what: str, value: object) -> Network:
    """A network whose addresses endpoints can have, an IPv4 /30 or IPv6 /126 or larger."""
    network = cidr(what, value)
    prefix_max = network.max_prefixlen - HOST_BITS_MIN
    if network.prefixlen > prefix_max:
        raise bad(what, value, f"too small for a gateway and an endpoint: /{prefix_max} or larger")
    if not _for_pods(network):
        raise bad(what, value, "give a network of unicast addresses that pods can have")
    return network


def pod_cidrs(what: str, values: Iterable[str]) -> tuple[str, ...]:
    """At least one network, sorted, none within another."""
    networks = sorted({pod_cidr(what, value) for value in values}, key=ipaddress.get_mixed_type_key)
    if not networks:
        raise BadInput(f"{what}: none given: give at least one, such as 10.0.0.0/16")
    if len(networks) > CIDRS_MAX:
        raise bad(what, len(networks), f"give at most {CIDRS_MAX}")
    for before, after in pairwise(networks):
        if before.version == after.version and before.overlaps(after):
            raise bad(what, str(after), f"overlaps {before}: give networks that do not overlap")
    return tuple(str(network) for network in networks)


def printable(what: str, value: object, chars_max: int = TEXT_CHARS_MAX) -> str:
    """A short text without control characters (it is shown on terminals)."""
    given = _text(what, value)
    if len(given) > chars_max or not given.isprintable():
        raise bad(what, given, f"use at most {chars_max} printable characters")
    return given


def labels(what: str, values: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """Labels as sorted pairs."""
    pairs = tuple(
        sorted(
            (printable(what, key, LABEL_CHARS_MAX), printable(what, value, LABEL_CHARS_MAX))
            for key, value in (values or {}).items()
        )
    )
    if len(pairs) > LABELS_MAX:
        raise bad(what, len(pairs), f"give at most {LABELS_MAX}")
    return pairs
