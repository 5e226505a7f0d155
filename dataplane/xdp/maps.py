"""An instance's open maps: batches of rows in, all rows out, room and generations."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence

from dataplane.backend import Capacity, Usage
from dataplane.xdp import kernel, layout, pack
from dataplane.xdp.indexed import Indexed, Readers
from dataplane.xdp.pins import PinDir
from dataplane.xdp.ring import Ring

_VALUES = {
    "gateways": layout.GATEWAY_VALUE,
    "peers": layout.PEER_VALUE,
    "groups": layout.GROUP_VALUE,
    "entitled": layout.ENTITLED_VALUE,
    "ports": layout.PORT_VALUE,
    "endpoints": layout.ENDPOINT_VALUE,
    "subnets": layout.SUBNET_VALUE,
}
TABLES = tuple(_VALUES)
"""The maps whose rows carry a generation, in write order."""

_INDEXED = {
    "gateways": ("gateway_index", "gateway_traffic"),
    "groups": ("group_index",),
    "ports": ("port_index", "port_traffic"),
}
"""Those that programs read by way of an index, and what belongs to them: the index first."""
_COUNTED = {"gateway_traffic": "gateways", "port_traffic": "ports"}


class Maps:
    """Opens, creates or adopts the maps of a pin directory; `close` leaves them pinned."""

    def __init__(self, pins: PinDir, capacity: Capacity) -> None:
        self.specs = layout.maps(capacity)
        self._fds: dict[str, int] = {}
        try:
            for names in _together(self.specs):
                opened = pins.require_maps([self.specs[name] for name in names])
                self._fds.update(zip(names, opened, strict=True))
            self._capacity = {n: kernel.map_info(fd).max_entries for n, fd in self._fds.items()}
            self._readers = Readers()
            self._indexed = {name: self._index(name, *more) for name, more in _INDEXED.items()}
            if any(map(len, self._indexed.values())):
                self._readers.end_all()  # whoever wrote before has left some, too
            self._capacity |= {name: table.capacity for name, table in self._indexed.items()}
            self._ring = Ring(self._fds["drop_events"], self._capacity["drop_events"])
        except BaseException:
            self._close_fds()
            raise
        self._processors = kernel.processors()

    def _index(self, name: str, index: str, counters: str | None = None) -> Indexed:
        counters_fd = self._fds[counters] if counters else None
        return Indexed(self._fds[name], self._fds[index], counters_fd, self._readers)

    def adopt(self) -> None:
        """Take the tables with an index to be what the kernel holds."""
        for table in self._indexed.values():
            table.adopt()

    def close(self) -> None:
        self._ring.close()
        self._close_fds()

    def _close_fds(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds = {}

    def put(self, name: str, rows: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Write rows; returns those for which there was no room."""
        if name in self._indexed:
            return self._indexed[name].put(rows)
        refused: list[tuple[bytes, bytes]] = []
        rest = rows
        while rest:
            try:
                kernel.update_rows(self._fds[name], rest)
                break
            except kernel.BatchFull as full:
                # Later rows of the batch may be in the map already, and only change.
                refused.append(rest[full.done])
                rest = rest[full.done + 1 :]
                if len(refused) > kernel.BATCH_ROWS:
                    present = {key for key, _ in self.rows(name)}
                    refused += [row for row in rest if row[0] not in present]
                    rest = [row for row in rest if row[0] in present]
        return refused

    def delete(self, name: str, keys: Sequence[bytes]) -> None:
        if name in self._indexed:
            self._indexed[name].delete(keys)
        else:
            kernel.delete_rows(self._fds[name], keys)

    def rows(self, name: str) -> Iterator[tuple[bytes, bytes]]:
        if name in self._indexed:
            return self._indexed[name].rows()
        spec = self.specs[name]
        return kernel.dump_rows(self._fds[name], spec.key_bytes, spec.value_bytes)

    def lookup(self, name: str, key: bytes) -> bytes | None:
        if name in self._indexed:
            return self._indexed[name].lookup(key)
        return kernel.lookup(self._fds[name], key, self.specs[name].value_bytes)

    def delete_stale(self, name: str, generation: int) -> None:
        """Remove the rows that the full sync of this generation did not write."""
        offset = pack.generation_offset(_VALUES[name])
        current = pack.u32(generation)
        stale = [key for key, value in self.rows(name) if value[offset : offset + 4] != current]
        self.delete(name, stale)

    def compared(self, name: str) -> dict[bytes, bytes]:
        """All rows of a table with their generations zeroed."""
        value = _VALUES[name]
        return {key: pack.without_generation(value, raw) for key, raw in self.rows(name)}

    def endpoints(self) -> dict[bytes, bytes]:
        """All rows of that table up to their generations."""
        spec, head_bytes = self.specs["endpoints"], pack.generation_offset(layout.ENDPOINT_VALUE)
        fd = self._fds["endpoints"]
        return kernel.dump_heads(fd, spec.key_bytes, spec.value_bytes, head_bytes)

    def capacity(self, name: str) -> int:
        return self._capacity[name]

    def usage(self, name: str) -> Usage:
        if name in self._indexed:
            return Usage(len(self._indexed[name]), self._capacity[name])
        spec = self.specs[name]
        used = kernel.count_rows(self._fds[name], spec.key_bytes, spec.value_bytes)
        return Usage(used, self._capacity[name])

    def remember(self, moved: Sequence[tuple[bytes, bytes]]) -> None:
        """Write where endpoints were; of too many the oldest are forgotten."""
        kernel.update_rows(self._fds["moved"], moved)

    # ---- counters -------------------------------------------------------------------------------

    def count_drops(self, vni: int) -> None:
        """Have a VPC's drops counted, unless they are. Where the map is full they go uncounted."""
        try:
            kernel.insert(self._fds["vpc_drops"], pack.u32(vni), bytes(8 * self._processors))
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise

    def keep_counting_drops(self, vnis: Collection[int]) -> None:
        """Of these VPCs alone."""
        self.delete("vpc_drops", [pack.u32(vni) for vni in self.vpc_drops() if vni not in vnis])

    def traffic(self, name: str, key: bytes) -> dict[str, int]:
        """The traffic of a port or gateway, summed over processors; zeros where it has no row."""
        raw = self._indexed[_COUNTED[name]].counted(key)
        sums = [0] * len(layout.TRAFFIC.fields)
        for copy in layout.TRAFFIC.packer.iter_unpack(raw):
            sums = [total + part for total, part in zip(sums, copy, strict=True)]
        return dict(zip(layout.TRAFFIC.offsets, sums, strict=True))

    def count_anew(self, name: str, key: bytes) -> None:
        """A port's or gateway's traffic, from zero."""
        self._indexed[_COUNTED[name]].count_anew(key)

    def vpc_drops(self) -> dict[int, int]:
        """Packets dropped by VNI."""
        width = 8 * self._processors
        rows = kernel.dump_rows(self._fds["vpc_drops"], 4, width)
        u64s = struct.Struct(f"={self._processors}Q")
        return {layout.U32.unpack(key)[0]: sum(u64s.unpack(raw)) for key, raw in rows}

    def take_drop_events(self, count_max: int) -> list[bytes]:
        return self._ring.take(count_max)

    def drops(self, reason: int) -> int:
        count = layout.DROP_COUNT.packer
        raw = kernel.lookup(self._fds["drops"], pack.u32(reason), count.size * self._processors)
        return sum(packets for packets, *_ in count.iter_unpack(raw or b""))

    # ---- configuration --------------------------------------------------------------------------

    def generation(self) -> int:
        """The generation of the last full sync, by this process or one before it."""
        raw = self.lookup("config", pack.u32(0))
        return pack.config_generation(raw) if raw else 0

    def configure(self, underlay: int, generation: int) -> None:
        kernel.update(self._fds["config"], pack.u32(0), pack.config_value(underlay, generation))


def _together(names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """All maps, those that refer to each other with each other."""
    belonging = {other for more in _INDEXED.values() for other in more}
    for name in names:
        if name not in belonging:
            yield (name, *_INDEXED.get(name, ()))
