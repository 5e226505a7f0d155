"""The endpoint rows, which may be a million: packed, partitioned, and derived where they are read.

Rules of this file:
- What is kept per address is the row that its claim asks for, and the few rows of what is attached
  here. Whether a VPC's rows are shown, and under which domain, is one word per VPC.
- Addresses lie in partitions, IPv4 by their first two bytes, IPv6 by crc32, so that no dict has
  more than 65,536 keys and none grows in a step that stops the process.
- Each row that changes is remembered with what it was at the last delta. One that came back is not
  in the delta.
- A snapshot shares the partitions; one that is written to afterwards is copied first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import ItemsView, Iterable, Iterator, Mapping
from itertools import islice
from operator import itemgetter
from typing import Final, NamedTuple
from zlib import crc32

from dataplane.fib.rows import (
    DOMAIN_BYTES,
    HEAD_BYTES,
    IPV4_BYTES,
    MAPPED,
    MOVED_MAX,
    NO_GROUP,
    PAD,
    Addr,
    PackedKey,
    PackedRow,
    TableDelta,
    group_of,
    packed_domain,
    packed_head,
)

Part = dict[Addr, PackedRow]
"""Address → row."""

BULK_MIN: Final = 32
"""Addresses that come together, from which on it pays to ask first whether they are all new."""
_IPV4_ONLY: Final = {IPV4_BYTES}
_HIGH: Final = itemgetter(slice(0, 2))
"""The name of an IPv4 address' part."""
IPV6_PARTS: Final = 32
"""Two million IPv6 addresses of one VPC at 65,536 a part."""


def _part_of(addr: Addr) -> bytes:
    """The name of the part that an address lies in: two bytes for IPv4, one for IPv6."""
    return addr[:2] if len(addr) == IPV4_BYTES else bytes((crc32(addr) % IPV6_PARTS,))


class _Shown(NamedTuple):
    """How a VPC's rows appear."""

    domain: bytes
    forwarded: bool
    """Rows of claims are shown; else only those of what is attached here."""

    def key(self, addr: Addr) -> PackedKey:
        if len(addr) == IPV4_BYTES:
            return self.domain + MAPPED + addr
        return self.domain + addr


class EndpointRows(Mapping[PackedKey, PackedRow]):
    """Endpoint rows by packed key. Read-only; made by `EndpointTable`."""

    def __init__(self) -> None:
        self._claims: dict[str, dict[bytes, Part]] = {}
        """VPC → part's name → address → row of a VPC that is forwarded."""
        self._local: dict[str, Part] = {}
        """VPC → address → row of what is attached here and claimed for here."""
        self._shown: dict[str, _Shown] = {}
        self._vpcs: dict[bytes, str] = {}
        """Domain → VPC."""

    def __getitem__(self, key: PackedKey) -> PackedRow:
        addr = key[DOMAIN_BYTES:]
        if addr.startswith(MAPPED):
            addr = addr[len(MAPPED) :]
        row = self._row(self._vpcs[key[:DOMAIN_BYTES]], addr)
        if row is None:
            raise KeyError(key)
        return row

    def __eq__(self, other: object) -> bool:
        """As of any mapping. Two of the same claims, shown alike, are not read row by row."""
        if isinstance(other, EndpointRows) and (
            self._claims == other._claims
            and self._local == other._local
            and self._shown == other._shown
        ):
            return True
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        count = 0
        for vpc, shown in self._shown.items():
            count += len(self._local.get(vpc, ()))
            if shown.forwarded:
                count += sum(map(len, self._claims.get(vpc, _NO_PARTS).values()))
                count -= sum(self.claimed(vpc, addr) is not None for addr in self._local_of(vpc))
        return count

    def __iter__(self) -> Iterator[PackedKey]:
        return (key for key, _ in self.items())

    def items(self) -> ItemsView[PackedKey, PackedRow]:
        return _Items(self)

    def of(self, vpc: str) -> Iterator[tuple[PackedKey, PackedRow]]:
        """The rows shown of one VPC, with their keys."""
        shown = self._shown[vpc]
        local = self._local_of(vpc)
        for addr, row in local.items():
            yield shown.key(addr), row
        if shown.forwarded:
            for part in self._claims.get(vpc, _NO_PARTS).values():
                for addr, row in part.items():
                    if addr not in local:
                        yield shown.key(addr), row

    def vpcs(self) -> list[str]:
        """The VPCs that have rows, if anything is claimed in them."""
        return list(self._shown)

    def claimed(self, vpc: str, addr: bytes) -> PackedRow | None:
        """The row that the address' claim asks for, shown or not."""
        return self._claims.get(vpc, _NO_PARTS).get(_part_of(addr), _NO_PART).get(addr)

    def _local_of(self, vpc: str) -> Part:
        return self._local.get(vpc, _NO_PART)

    def _row(self, vpc: str, addr: bytes) -> PackedRow | None:
        """The row shown for the address."""
        local = self._local_of(vpc).get(addr)
        if local is not None:
            return local
        return self.claimed(vpc, addr) if self._shown[vpc].forwarded else None


class _Items(ItemsView[PackedKey, PackedRow]):
    def __init__(self, rows: EndpointRows) -> None:
        super().__init__(rows)
        self._rows = rows

    def __iter__(self) -> Iterator[tuple[PackedKey, PackedRow]]:
        return (pair for vpc in self._rows.vpcs() for pair in self._rows.of(vpc))


class EndpointTable(EndpointRows):
    """The rows as they change. See the module."""

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[PackedKey, PackedRow | None] = {}
        self._after: dict[PackedKey, PackedRow | None] = {}
        self._renumbered = False
        self._frozen: set[tuple[str, bytes]] = set()
        """Partitions that a snapshot shares."""

    def set_claims(self, vpc: str, group: int, macs: Mapping[bytes, bytes]) -> Counter[int]:
        """Have these addresses, given with their MACs, behind a group. Returns by how much the
        rows of each group became more or fewer."""
        if not macs:
            return Counter()
        parts = self._claims.setdefault(vpc, {})
        shown = self._shown.get(vpc)
        local = self._local_of(vpc)
        before, after = self._before, self._after
        head = packed_head(group)
        counts: Counter[int] = Counter()
        if self._add_all(vpc, head, macs):
            counts[group] += len(macs)
            return counts
        high, part = b"", _NO_PART
        gained = 0
        for addr, mac in macs.items():
            name = _part_of(addr)
            if name != high:
                high = name
                part = self._writable(vpc, parts, high)
            row = head + mac + PAD
            old = part.get(addr)
            if old == row:
                continue
            part[addr] = row
            gained += 1
            if old is not None:
                counts[group_of(old)] -= 1
            if shown is not None and shown.forwarded and addr not in local:
                key = shown.key(addr)
                before.setdefault(key, old)
                after[key] = row
        counts[group] += gained
        return counts

    def _add_all(self, vpc: str, head: bytes, macs: Mapping[bytes, bytes]) -> bool:
        """Add rows of which there is none yet, all IPv4 and of one partition; False, and nothing
        has changed, where that is not so. Most of a million come like this: no loop here is
        Python's but the two that make keys and rows."""
        if len(macs) < BULK_MIN or set(map(len, macs)) != _IPV4_ONLY:
            return False
        highs = set(map(_HIGH, macs))
        local = self._local_of(vpc)
        if len(highs) > 1 or (local and not local.keys().isdisjoint(macs)):
            return False
        (high,) = highs
        parts = self._claims[vpc]
        if not parts.get(high, _NO_PART).keys().isdisjoint(macs):
            return False
        rows = {addr: head + mac + PAD for addr, mac in macs.items()}
        shown = self._shown.get(vpc)
        if shown is not None and shown.forwarded:
            prefix = shown.domain + MAPPED
            changed = dict(zip([prefix + addr for addr in macs], rows.values(), strict=True))
            if self._before.keys().isdisjoint(changed):
                self._before.update(dict.fromkeys(changed))
            else:
                for key in changed:
                    self._before.setdefault(key, None)
            self._after.update(changed)
        self._writable(vpc, parts, high).update(rows)
        return True

    def drop_claims(self, vpc: str, addrs: Iterable[bytes]) -> Counter[int]:
        """Nobody claims these addresses any more. Returns as `set_claims`."""
        counts: Counter[int] = Counter()
        parts = self._claims.get(vpc)
        if parts is None:
            return counts
        shown, local = self._shown.get(vpc), self._local_of(vpc)
        for addr in addrs:
            high = _part_of(addr)
            if addr not in parts.get(high, _NO_PART):
                continue
            part = self._writable(vpc, parts, high)
            old = part.pop(addr)
            counts[group_of(old)] -= 1
            if not part:
                del parts[high]
            if shown is not None and shown.forwarded and addr not in local:
                self._note(shown.key(addr), old, None)
        if not parts:
            del self._claims[vpc]
        return counts

    def set_local(self, vpc: str, addr: bytes, row: PackedRow | None) -> None:
        """What is attached here under the address; None: nothing that is claimed for here."""
        shown = self._shown.get(vpc)
        old = None if shown is None else self._row(vpc, addr)
        if row is not None:
            self._local.setdefault(vpc, {})[addr] = row
        elif addr in self._local_of(vpc):
            del self._local[vpc][addr]
            if not self._local[vpc]:
                del self._local[vpc]
        if shown is not None:
            self._note(shown.key(addr), old, self._row(vpc, addr))

    def show(self, places: Mapping[str, tuple[int | None, bool]]) -> None:
        """Show each VPC's rows under (domain, whether it is forwarded); None: not at all. Costs all
        rows of those for which that is another than before."""
        wanted = {
            vpc: None if domain is None else _Shown(packed_domain(domain), forwarded)
            for vpc, (domain, forwarded) in places.items()
        }
        changed = [vpc for vpc, shown in wanted.items() if self._shown.get(vpc) != shown]
        for vpc in changed:  # all of them first: one may take the domain of another
            if vpc in self._shown:
                for key, row in self.of(vpc):
                    self._note(key, row, None)
                del self._vpcs[self._shown.pop(vpc).domain]
        for vpc in changed:
            shown = wanted[vpc]
            if shown is not None:
                self._shown[vpc], self._vpcs[shown.domain] = shown, vpc
                for key, row in self.of(vpc):
                    self._note(key, None, row)

    def renumber(self, numbers: Mapping[int, int]) -> None:
        """Groups have other numbers now: old → new."""
        self._renumbered = True
        heads = {packed_head(old): packed_head(new) for old, new in numbers.items()}
        for vpc, parts in self._claims.items():
            shown, local = self._shown.get(vpc), self._local_of(vpc)
            for high in list(parts):
                part = self._writable(vpc, parts, high)
                for addr, old in part.items():
                    head = heads.get(old[:HEAD_BYTES])
                    if head is None:
                        continue
                    part[addr] = row = head + old[HEAD_BYTES:]
                    if shown is not None and shown.forwarded and addr not in local:
                        self._note(shown.key(addr), old, row)

    def take(
        self, rows_max: int | None = None
    ) -> tuple[TableDelta[PackedKey, PackedRow], dict[PackedKey, int]]:
        """What changed since the last call; and of what is elsewhere now than it was, and was not
        here, the group that it was behind.

        With `rows_max` no more than so many are taken, the first that changed first; but all of
        them after groups were given other numbers, since rows go by these.
        """
        before, after = self._before, self._after
        if rows_max is not None and len(after) > rows_max and not self._renumbered:
            after = {key: self._after.pop(key) for key in list(islice(after, rows_max))}
            before = {key: self._before.pop(key) for key in after}
        else:
            self._before, self._after = {}, {}
        put: dict[PackedKey, PackedRow] = {}
        remove: list[PackedKey] = []
        moved: dict[PackedKey, int] = {}
        for key in sorted(after):
            row, old = after[key], before[key]
            if row == old:
                continue
            if row is None:
                remove.append(key)
                continue
            put[key] = row
            if old is not None and old[:HEAD_BYTES] != row[:HEAD_BYTES] and len(moved) < MOVED_MAX:
                was = group_of(old)
                if was != NO_GROUP:
                    moved[key] = was
        if rows_max is not None and self._after and not (put or remove):
            return self.take(rows_max)  # these have come back to what they were
        if self._renumbered:  # the numbers are others, whether the places are or not
            self._renumbered, moved = False, {}
        return TableDelta(put, tuple(remove)), moved

    def forget(self) -> None:
        """Nothing has changed until now."""
        self._before, self._after = {}, {}

    def snapshot(self) -> EndpointRows:
        """The rows as they are, for a reader that takes its time; it costs one dict a VPC."""
        rows = EndpointRows()
        rows._claims = {vpc: dict(parts) for vpc, parts in self._claims.items()}
        rows._local = {vpc: dict(part) for vpc, part in self._local.items()}
        rows._shown, rows._vpcs = dict(self._shown), dict(self._vpcs)
        self._frozen = {(vpc, high) for vpc, parts in self._claims.items() for high in parts}
        return rows

    # ---- inner ----

    def _writable(self, vpc: str, parts: dict[bytes, Part], high: bytes) -> Part:
        part = parts.get(high)
        if part is None:
            part = parts[high] = {}
        elif (vpc, high) in self._frozen:
            part = parts[high] = dict(part)
        self._frozen.discard((vpc, high))
        return part

    def _note(self, key: PackedKey, old: PackedRow | None, row: PackedRow | None) -> None:
        self._before.setdefault(key, old)
        self._after[key] = row


_NO_PART: Final[Part] = {}
_NO_PARTS: Final[dict[bytes, Part]] = {}
