"""What this machine adds to the logical rows: indexes, ways to gateways, peers' owners."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dataplane.fib.rows import (
    ROW_BYTES,
    GatewayRow,
    PackedKey,
    PackedRow,
    PortRow,
    Tables,
    address_bytes,
    ifname_of,
    is_ipv4,
)
from dataplane.xdp import links, pack
from dataplane.xdp.pack import Adjacency, Interface

Rows = list[tuple[bytes, bytes]]


class Resolved:
    """The rows that need resolving, and what they resolved to. Endpoints elsewhere are not kept."""

    def __init__(self, underlay: int) -> None:
        self.underlay = underlay
        self.gateways: dict[int, GatewayRow] = {}
        self.ports: dict[str, PortRow] = {}
        self.local: dict[PackedKey, PackedRow] = {}
        self.ways: dict[int, Adjacency] = {}  # by underlay address
        self.interfaces: dict[str, Interface] = {}
        self.peers: dict[int, int] = {}  # as installed: underlay address to gateway id

    @classmethod
    def of(cls, underlay: int, tables: Tables, ways: Mapping[int, Adjacency]) -> Resolved:
        """The state for whole tables, with interfaces looked up and the ways known before."""
        state = cls(underlay)
        state.ways.update(ways)
        state.gateways.update(tables.gateways)
        state.ports.update(tables.ports)
        state.attach_endpoints(tables.endpoints)
        state.look_up_interfaces()
        return state

    def attach_endpoints(self, rows: Mapping[PackedKey, PackedRow]) -> None:
        self.detach_endpoints(rows)
        self.local.update((key, row) for key, row in rows.items() if len(row) > ROW_BYTES)

    def detach_endpoints(self, keys: Iterable[PackedKey]) -> None:
        for key in self.local.keys() & keys:
            del self.local[key]

    def look_up_interfaces(self, ifnames: Iterable[str] | None = None) -> None:
        """Find the indexes of these ports, or of all."""
        wanted = list(self.ports if ifnames is None else ifnames)
        if not wanted:
            return
        present = links.interfaces()
        for ifname in wanted:
            if ifname in present:
                self.interfaces[ifname] = present[ifname]
            else:
                self.interfaces.pop(ifname, None)

    def in_reach(self, row: GatewayRow) -> bool:
        """Whether the gateway's address is of the family that this machine's is: another has no
        way."""
        return is_ipv4(row.underlay) == is_ipv4(self.underlay)

    def unresolved(self) -> int:
        """Rows that carry nothing for want of an interface or a link address."""
        ports = sum(ifname not in self.interfaces for ifname in self.ports)
        gateways = sum(
            row.underlay not in self.ways and self.in_reach(row) for row in self.gateways.values()
        )
        return ports + gateways

    def peer_owners(self) -> dict[int, int]:
        """The gateway that each outer source counts for; of two claimants the lower id."""
        owners: dict[int, int] = {}
        for id, row in sorted(self.gateways.items()):
            owners.setdefault(row.underlay, id)
        return owners

    # ---- bytes ----------------------------------------------------------------------------------

    def gateway_rows(self, rows: Mapping[int, GatewayRow], generation: int) -> Rows:
        return [
            (
                pack.u32(id),
                pack.gateway_value(row, self.underlay, self.ways.get(row.underlay), generation),
            )
            for id, row in rows.items()
        ]

    def peer_rows(self, generation: int) -> Rows:
        return [
            (address_bytes(address), pack.peer_value(id, self.gateways[id], generation))
            for address, id in self.peer_owners().items()
        ]

    def port_rows(self, rows: Mapping[str, PortRow], generation: int) -> Rows:
        """Rows of the ports whose interface is there."""
        return [
            (pack.u32(interface.ifindex), pack.port_value(row, interface, generation))
            for ifname, row in rows.items()
            if (interface := self.interfaces.get(ifname)) is not None
        ]

    def endpoint_rows(self, rows: Mapping[PackedKey, PackedRow], generation: int) -> Rows:
        """A local endpoint whose interface is missing has a row that leads nowhere.

        Rows that lead to none here are the values but for the generation: they may be a million.
        """
        tail = pack.u32(generation)
        return [
            (key, row + tail if len(row) == ROW_BYTES else self._local_value(row, generation))
            for key, row in rows.items()
        ]

    def endpoint_heads(self, rows: Mapping[PackedKey, PackedRow]) -> dict[bytes, bytes]:
        """The same up to their generations, for the tables that this state is of."""
        heads = dict(rows)
        heads.update(
            (key, self._local_value(row, 0)[:ROW_BYTES]) for key, row in self.local.items()
        )
        return heads

    def _local_value(self, row: PackedRow, generation: int) -> bytes:
        interface = self.interfaces.get(ifname_of(row))
        return pack.endpoint_value(row, interface.ifindex if interface else 0, generation)
