"""Rows to the bytes of the maps, and back. Layouts are in `layout.py`.

A row becomes bytes only with what is known of this machine: interface indexes and link addresses.
The generation is a parameter, so that an audit can compare rows of any generation.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dataplane.fib.rows import (
    EntitledKey,
    GatewayRow,
    GroupRow,
    PackedRow,
    PortRow,
    SubnetKey,
    SubnetRow,
    address_bytes,
    is_ipv4,
)
from dataplane.xdp import layout

NO_MAC = bytes(6)
VNI_BITS = 32  # the prefix tree's keys begin with the whole VNI


@dataclass(frozen=True, slots=True)
class Adjacency:
    """How this machine reaches a gateway on the underlay."""

    ifindex: int
    src_mac: bytes
    dst_mac: bytes
    mtu: int  # of the outer IP packet: what the whole path carries, as far as it is known
    link_mtu: int  # of the interface


@dataclass(frozen=True, slots=True)
class Interface:
    """A local port's interface."""

    ifindex: int
    mtu: int


def u32(number: int) -> bytes:
    return layout.U32.pack(number)


_endpoint_row = struct.Struct("=II6sH")  # the value without the generation
_endpoint_value = layout.ENDPOINT_VALUE.packer
_subnet_key = layout.SUBNET_KEY.packer
_subnet_value = layout.SUBNET_VALUE.packer
_group_value = layout.GROUP_VALUE.packer
_entitled_key = layout.ENTITLED_KEY.packer
_entitled_value = layout.ENTITLED_VALUE.packer
_moved_value = layout.MOVED_VALUE.packer
_gateway_value = layout.GATEWAY_VALUE.packer
_port_value = layout.PORT_VALUE.packer
_peer_value = layout.PEER_VALUE.packer
_config_value = layout.CONFIG_VALUE.packer


def endpoint_value(row: PackedRow, ifindex: int, generation: int) -> bytes:
    """`ifindex` of the interface here that the row names; 0 for none, and for one that is gone."""
    group, _, mac, _ = _endpoint_row.unpack_from(row)
    return _endpoint_value.pack(group, ifindex, mac, 0, generation)


def subnet_key(key: SubnetKey) -> bytes:
    vni = key.vni.to_bytes(4, "big")
    return _subnet_key.pack(VNI_BITS + key.prefix_bits, vni, address_bytes(key.network))


def subnet_value(row: SubnetRow, generation: int) -> bytes:
    return _subnet_value.pack(row.group, address_bytes(row.gateway_ip), generation)


def group_value(row: GroupRow, generation: int) -> bytes:
    ids = b"".join(map(u32, row.gateways))
    return _group_value.pack(len(row.gateways), row.site_group, generation, ids)


def entitled_key(key: EntitledKey) -> bytes:
    return _entitled_key.pack(key.vni, key.site_group)


def entitled_value(generation: int) -> bytes:
    return _entitled_value.pack(generation)


def moved_value(group: int, at_ns: int) -> bytes:
    """`at_ns` of CLOCK_MONOTONIC."""
    return _moved_value.pack(at_ns, group, 0)


def gateway_value(row: GatewayRow, source: int, way: Adjacency | None, generation: int) -> bytes:
    """`source`: our own underlay address. Without a way the row is there, and says so."""
    way = way or Adjacency(0, NO_MAC, NO_MAC, 0, 0)
    flags = layout.GATEWAY_RESOLVED if way.ifindex else 0
    if not is_ipv4(row.underlay):
        flags |= layout.GATEWAY_SIX
    if row.vxlan:
        flags |= layout.GATEWAY_VXLAN
    return _gateway_value.pack(
        address_bytes(source),
        address_bytes(row.underlay),
        way.src_mac,
        way.dst_mac,
        way.ifindex,
        min(way.mtu, 0xFFFF),
        flags,
        generation,
    )


def port_value(row: PortRow, interface: Interface, generation: int) -> bytes:
    return _port_value.pack(
        row.vni,
        address_bytes(row.ip),
        row.mac,
        layout.GATEWAY_MAC,
        min(interface.mtu, 0xFFFF),
        layout.PORT_BLOCKED if row.blocked else 0,
        generation,
    )


def peer_value(gateway: int, row: GatewayRow, generation: int) -> bytes:
    flags = layout.PEER_OWN_SITE if row.own_site else 0
    if row.vxlan:
        flags |= layout.PEER_VXLAN
    return _peer_value.pack(gateway, row.group, row.site_group, flags, generation)


def config_value(underlay: int, generation: int) -> bytes:
    return _config_value.pack(address_bytes(underlay), generation)


def config_generation(value: bytes) -> int:
    return int(_config_value.unpack(value)[1])


@dataclass(frozen=True, slots=True)
class InstalledEndpoint:
    group: int
    ifindex: int
    mac: bytes
    generation: int


@dataclass(frozen=True, slots=True)
class InstalledSubnet:
    group: int
    gateway_ip: int
    generation: int


@dataclass(frozen=True, slots=True)
class InstalledGateway:
    underlay: int
    dst_mac: bytes
    ifindex: int
    mtu: int
    resolved: bool
    vxlan: bool
    generation: int


@dataclass(frozen=True, slots=True)
class InstalledPort:
    vni: int
    ip: int
    mac: bytes
    mtu: int
    blocked: bool
    generation: int


def read_endpoint(raw: bytes) -> InstalledEndpoint:
    group, ifindex, mac, _, generation = _endpoint_value.unpack(raw)
    return InstalledEndpoint(group, ifindex, mac, generation)


def read_subnet_key(raw: bytes) -> SubnetKey:
    bits, vni, network = _subnet_key.unpack(raw)
    return SubnetKey(
        int.from_bytes(vni, "big"), int.from_bytes(network, "big"), int(bits) - VNI_BITS
    )


def read_subnet(raw: bytes) -> InstalledSubnet:
    group, gateway_ip, generation = _subnet_value.unpack(raw)
    return InstalledSubnet(group, int.from_bytes(gateway_ip, "big"), generation)


def read_entitled_key(raw: bytes) -> EntitledKey:
    return EntitledKey(*_entitled_key.unpack(raw))


def read_group(raw: bytes) -> tuple[int, ...]:
    """The gateway ids of a group."""
    count, _, _, ids = _group_value.unpack(raw)
    return tuple(layout.U32.unpack_from(ids, 4 * index)[0] for index in range(count))


def read_gateway(raw: bytes) -> InstalledGateway:
    _, dst, _, dst_mac, ifindex, mtu, flags, generation = _gateway_value.unpack(raw)
    resolved, vxlan = bool(flags & layout.GATEWAY_RESOLVED), bool(flags & layout.GATEWAY_VXLAN)
    far = int.from_bytes(dst, "big")
    return InstalledGateway(far, dst_mac, ifindex, mtu, resolved, vxlan, generation)


def read_port(raw: bytes) -> InstalledPort:
    vni, address, mac, _, mtu, flags, generation = _port_value.unpack(raw)
    blocked = bool(flags & layout.PORT_BLOCKED)
    return InstalledPort(vni, int.from_bytes(address, "big"), mac, mtu, blocked, generation)


def generation_offset(value: layout.Layout) -> int:
    return value.offsets["generation"]


def without_generation(value: layout.Layout, raw: bytes) -> bytes:
    """The bytes of a value with its generation zeroed, so rows of two syncs compare equal."""
    offset = generation_offset(value)
    return raw[:offset] + bytes(4) + raw[offset + 4 :]
