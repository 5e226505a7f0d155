"""Who claims which address: an index by VPC and key, made for a million.

A key maps to the node that claims it, or to a sorted tuple of them where there are several. Key and
node ids are the objects that the records' holder has, so an entry costs its place in a dict and
nothing else, and the garbage collector sees none of it.

The keys of a VPC lie in partitions, so that no dict has more than 65,536 of them and none grows in
a step that stops the process: IPv4 by the first two bytes of the address, IPv6 by crc32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Final, NamedTuple, TypeAlias
from zlib import crc32

from mesh.core import keys
from mesh.core.ops import NodeId
from mesh.core.view.layout import Span

Owners: TypeAlias = NodeId | tuple[NodeId, ...]
Part: TypeAlias = dict[bytes, Owners]

IPV6_PARTS: Final = 32
"""Two million IPv6 addresses of one VPC at 65,536 a part."""
_IPV4_KEY_BYTES: Final = 5
_IPV4_ONLY: Final = {_IPV4_KEY_BYTES}
_HIGH: Final = itemgetter(slice(1, 3))
"""The first two bytes of the address in a key."""


def _part_of(key: bytes) -> bytes:
    """The name of the part that a key lies in: two bytes for IPv4, one for IPv6."""
    return key[1:3] if len(key) == _IPV4_KEY_BYTES else bytes((crc32(key) % IPV6_PARTS,))


def _parted(wanted: Sequence[bytes]) -> Iterable[tuple[bytes, Sequence[bytes]]]:
    """The keys by part. Most often they are all of one, and no key is looked at by itself."""
    if len(wanted) == 1:
        return ((_part_of(wanted[0]), wanted),)
    if set(map(len, wanted)) == _IPV4_ONLY:
        highs = set(map(_HIGH, wanted))
        if len(highs) == 1:
            return ((highs.pop(), wanted),)
    parted: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for key in wanted:
        parted[_part_of(key)].append(key)
    return parted.items()


class Sorted(NamedTuple):
    """Keys by how many own them."""

    single: Mapping[NodeId, list[bytes]]
    """Those with one owner, by owner."""
    several: list[bytes]
    free: list[bytes]


class OwnerIndex:
    """See the module. Keys are those of endpoint claims (`mesh.core.keys`), nodes any bytes."""

    def __init__(self) -> None:
        self._vpcs: dict[str, dict[bytes, Part]] = {}
        self._shared: dict[str, dict[bytes, None]] = {}
        """Keys with several owners, by VPC."""

    # --- writing -----------------------------------------------------------------------------

    def add(self, node: NodeId, vpc: str, claimed: Sequence[bytes]) -> None:
        """The node claims these, each named once."""
        if not claimed:
            return
        parts = self._vpcs.setdefault(vpc, {})
        for name, wanted in _parted(claimed):
            part = parts.get(name)
            if part is None:
                parts[name] = dict.fromkeys(wanted, node)
                continue
            owners = set(map(part.get, wanted))
            if owners <= {None, node}:
                if None in owners:
                    part.update(dict.fromkeys(wanted, node))
                continue
            for key in wanted:
                self._set(vpc, part, key, {*_nodes(part.get(key)), node})

    def remove(self, node: NodeId, vpc: str, gone: Sequence[bytes]) -> None:
        """The node claims these no longer, if it ever did."""
        parts = self._vpcs.get(vpc)
        if parts is None or not gone:
            return
        for name, wanted in _parted(gone):
            part = parts.get(name)
            if part is None:
                continue
            for key in wanted:
                held = part.get(key)
                if held == node:
                    del part[key]
                elif isinstance(held, tuple):
                    self._set(vpc, part, key, {*held} - {node})
            if not part:
                del parts[name]
        if not parts:
            del self._vpcs[vpc]

    def _set(self, vpc: str, part: Part, key: bytes, nodes: set[NodeId]) -> None:
        """Have the key owned by these, of which there is at least one."""
        if len(nodes) > 1:
            part[key] = tuple(sorted(nodes))
            self._shared.setdefault(vpc, {})[key] = None
            return
        (part[key],) = nodes
        shared = self._shared.get(vpc)
        if shared is not None and shared.pop(key, 1) is None and not shared:
            del self._shared[vpc]

    # --- reading -----------------------------------------------------------------------------

    def owners(self, vpc: str, key: bytes) -> tuple[NodeId, ...]:
        """The nodes that claim the key, sorted."""
        part = self._vpcs.get(vpc, _NO_PARTS).get(_part_of(key), _NO_PART)
        return _nodes(part.get(key))

    def sorted_out(self, vpc: str, wanted: Sequence[bytes]) -> Sorted:
        """The keys by how many own them."""
        parts = self._vpcs.get(vpc, _NO_PARTS)
        single: defaultdict[NodeId, list[bytes]] = defaultdict(list)
        several: list[bytes] = []
        free: list[bytes] = []
        for name, parted in _parted(wanted):
            part = parts.get(name, _NO_PART)
            owners = list(map(part.get, parted))
            first = owners[0]
            if not isinstance(first, tuple) and owners.count(first) == len(owners):
                (free if first is None else single[first]).extend(parted)
                continue
            for key, owner in zip(parted, owners, strict=True):
                if owner is None:
                    free.append(key)
                else:
                    (several if isinstance(owner, tuple) else single[owner]).append(key)
        return Sorted(single, several, free)

    def shared(self, vpc: str) -> dict[bytes, None]:
        """The VPC's keys with several owners. For reading only."""
        return self._shared.get(vpc, _NONE)

    def vpcs(self) -> list[str]:
        """The VPCs of which anything is claimed, sorted."""
        return sorted(self._vpcs)

    def parts(self, vpc: str) -> Iterable[Part]:
        """All that is claimed in the VPC, in no order. For reading only."""
        return self._vpcs.get(vpc, _NO_PARTS).values()

    def keys(self, vpc: str) -> list[bytes]:
        """The VPC's keys, IPv4 first, in order."""
        found = [key for part in self.parts(vpc) for key in part]
        return sorted(found, key=lambda key: (len(key), key))

    def within(self, vpc: str, spans: Iterable[Span]) -> Iterator[Iterable[bytes]]:
        """The VPC's keys within any of the spans, in no order; a key may come more than once."""
        parts = self._vpcs.get(vpc, _NO_PARTS)
        for first, last in spans:
            size = len(first) + 1
            low, high = keys.ENDPOINT + first, keys.ENDPOINT + last
            for name, part in parts.items():
                if (len(name) == 2) != (size == _IPV4_KEY_BYTES):
                    continue
                if len(name) == 2 and first <= name + b"\0\0" and name + b"\xff\xff" <= last:
                    yield part
                elif len(name) != 2 or first[:2] <= name <= last[:2]:
                    yield [key for key in part if low <= key <= high]


def _nodes(owners: Owners | None) -> tuple[NodeId, ...]:
    if owners is None:
        return ()
    return owners if isinstance(owners, tuple) else (owners,)


_NO_PART: Final[Part] = {}
_NO_PARTS: Final[dict[bytes, Part]] = {}
_NONE: Final[dict[bytes, None]] = {}
