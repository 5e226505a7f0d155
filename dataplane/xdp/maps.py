"""An instance's open maps: batches of rows in, all rows out, room and generations."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator, Sequence

from dataplane.backend import Capacity, Usage
from dataplane.xdp import kernel, layout, pack
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


class Maps:
    """Opens, creates or adopts the maps of a pin directory; `close` leaves them pinned."""

    def __init__(self, pins: PinDir, capacity: Capacity) -> None:
        self.specs = layout.maps(capacity)
        self._fds: dict[str, int] = {}
        try:
            for name, spec in self.specs.items():
                self._fds[name] = pins.require_map(spec)
            self._capacity = {n: kernel.map_info(fd).max_entries for n, fd in self._fds.items()}
            self._ring = Ring(self._fds["drop_events"], self._capacity["drop_events"])
        except BaseException:
            self._close_fds()
            raise
        self._processors = kernel.processors()

    def close(self) -> None:
        self._ring.close()
        self._close_fds()

    def _close_fds(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds = {}

    def put(self, name: str, rows: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Write rows; returns those for which there was no room."""
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
        kernel.delete_rows(self._fds[name], keys)

    def rows(self, name: str) -> Iterator[tuple[bytes, bytes]]:
        spec = self.specs[name]
        return kernel.dump_rows(self._fds[name], spec.key_bytes, spec.value_bytes)

    def lookup(self, name: str, key: bytes) -> bytes | None:
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
        spec = self.specs[name]
        used = kernel.count_rows(self._fds[name], spec.key_bytes, spec.value_bytes)
        return Usage(used, self._capacity[name])

    def remember(self, moved: Sequence[tuple[bytes, bytes]]) -> None:
        """Write where endpoints were; of too many the oldest are forgotten."""
        kernel.update_rows(self._fds["moved"], moved)

    # ---- counters -------------------------------------------------------------------------------

    def start_counting(self, name: str, key: bytes) -> None:
        """Make a row of zeros in a map of counters, unless it has one. Where the map is full, what
        the row is for goes uncounted."""
        width = self.specs[name].value_bytes
        try:
            kernel.insert(self._fds[name], key, bytes(width * self._processors))
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise

    def stop_counting(self, name: str, keep: Sequence[bytes]) -> None:
        """Remove all rows of a map of counters but these."""
        kept = set(keep)
        width = self.specs[name].value_bytes * self._processors
        rows = kernel.dump_rows(self._fds[name], self.specs[name].key_bytes, width)
        kernel.delete_rows(self._fds[name], [key for key, _ in rows if key not in kept])

    def traffic(self, name: str, key: bytes) -> dict[str, int]:
        """A traffic row, summed over processors; zeros where there is none."""
        raw = kernel.lookup(self._fds[name], key, layout.TRAFFIC.packer.size * self._processors)
        sums = [0] * len(layout.TRAFFIC.fields)
        for copy in layout.TRAFFIC.packer.iter_unpack(raw or b""):
            sums = [total + part for total, part in zip(sums, copy, strict=True)]
        return dict(zip(layout.TRAFFIC.offsets, sums, strict=True))

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
