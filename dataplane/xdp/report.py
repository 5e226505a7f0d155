"""What is in the kernel, for people and for comparison: audit, tables, counters, one address."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address

from dataplane.backend import Audit, AuditReport, Json
from dataplane.drops import DROPS_TAKEN_MAX, DropEvent
from dataplane.fib.rows import (
    ADDRESS_BITS,
    ANY_SITE,
    EndpointKey,
    GroupRow,
    SubnetKey,
    Tables,
    address_of,
    address_text,
    cidr_text,
    encapsulation,
    mac_text,
)
from dataplane.reasons import DropReason
from dataplane.xdp import kernel, layout, links, pack
from dataplane.xdp.maps import Maps
from dataplane.xdp.pins import PinDir
from dataplane.xdp.state import Resolved, Rows

_drop_event = layout.DROP_EVENT.packer
_IPV6 = bytes.fromhex("86dd")


def audit(
    tables: Tables,
    maps: Maps,
    state: Resolved,
    pins: PinDir,
    wan_ifname: str,
    programs: Mapping[str, int],
) -> AuditReport:
    """Compare every map, and the programs' attachment, with what the compiled tables ask for.

    `state` is the tables' own, resolved on this machine.
    """
    found = Audit()
    _audit_gateways(found, tables, maps, state)
    _audit_ports(found, tables, maps, state)
    found.compare("endpoints", state.endpoint_heads(tables.endpoints), maps.endpoints())
    found.compare(
        "subnets",
        {key: pack.subnet_value(row, 0) for key, row in tables.subnets.items()},
        {pack.read_subnet_key(key): value for key, value in maps.compared("subnets").items()},
    )
    _audit_links(found, tables, state, pins, wan_ifname, programs)
    return found.report()


def _audit_gateways(found: Audit, tables: Tables, maps: Maps, state: Resolved) -> None:
    _compare_u32(
        found, "gateways", state.gateway_rows(tables.gateways, 0), maps.compared("gateways")
    )
    found.compare(
        "peers",
        {address_text(int.from_bytes(key, "big")): value for key, value in state.peer_rows(0)},
        {
            address_text(int.from_bytes(key, "big")): value
            for key, value in maps.compared("peers").items()
        },
    )
    groups = [(pack.u32(id), pack.group_value(row, 0)) for id, row in tables.groups.items()]
    _compare_u32(found, "groups", groups, maps.compared("groups"))
    found.compare(
        "entitled",
        dict.fromkeys(tables.entitled, pack.entitled_value(0)),
        {pack.read_entitled_key(key): value for key, value in maps.compared("entitled").items()},
    )


def _compare_u32(found: Audit, table: str, expected: Rows, installed: dict[bytes, bytes]) -> None:
    found.compare(
        table,
        {_number(key): value for key, value in expected},
        {_number(key): value for key, value in installed.items()},
    )


def _audit_ports(found: Audit, tables: Tables, maps: Maps, state: Resolved) -> None:
    """A port whose interface is not there counts as missing: nothing is carried for it."""
    names = {interface.ifindex: ifname for ifname, interface in state.interfaces.items()}
    expected = {
        ifname: (
            pack.port_value(row, state.interfaces[ifname], 0) if ifname in state.interfaces else b""
        )
        for ifname, row in tables.ports.items()
    }
    installed = {
        names.get(_number(key), f"#{_number(key)}"): value
        for key, value in maps.compared("ports").items()
    }
    found.compare("ports", expected, installed)


def _audit_links(
    found: Audit,
    tables: Tables,
    state: Resolved,
    pins: PinDir,
    wan_ifname: str,
    programs: Mapping[str, int],
) -> None:
    pod_program, wan_program = programs
    wanted = {ifname: pod_program for ifname in tables.ports if ifname in state.interfaces}
    wanted[wan_ifname] = wan_program
    for ifname, program in sorted(wanted.items()):
        interface = links.interface(ifname)
        id = kernel.prog_id(programs[program])
        if interface is None or not links.attached(
            pins.link_path(interface.ifindex), interface.ifindex, id
        ):
            found.note("missing", f"links {ifname}")


def _number(raw: bytes) -> int:
    return int(layout.U32.unpack(raw)[0])


def counters(maps: Maps, state: Resolved) -> Json:
    return {
        "drops": {reason.text: maps.drops(reason) for reason in DropReason},
        "ports": {
            ifname: maps.traffic("port_traffic", pack.u32(interface.ifindex))
            for ifname, interface in sorted(state.interfaces.items())
        },
        "gateways": {
            str(id): maps.traffic("gateway_traffic", pack.u32(id)) for id in sorted(state.gateways)
        },
    }


def drop_events(maps: Maps) -> list[DropEvent]:
    """Drops told of since the last call, the oldest first."""
    begun_ns = time.time_ns() - time.monotonic_ns()
    events = []
    for raw in maps.take_drop_events(DROPS_TAKEN_MAX):
        at_ns, packets, reason, vni, outer, ifindex, kind, _, src, dst = _drop_event.unpack(raw)
        texts = [_address(kind, raw) for raw in (src, dst)] if any(src + dst) else ["", ""]
        events.append(
            DropEvent(
                at_ns=begun_ns + at_ns,
                reason=DropReason(reason),
                packets=packets,
                vni=vni,
                src=texts[0],
                dst=texts[1],
                outer=address_text(int.from_bytes(outer, "big")) if any(outer) else "",
                ifname=_ifname(ifindex),
            )
        )
    return events


def _address(ethertype: bytes, raw: bytes) -> str:
    """An inner address in the 16 bytes that an event has for it."""
    return str(IPv6Address(raw)) if ethertype == _IPV6 else str(IPv4Address(raw[:4]))


def show(maps: Maps, state: Resolved, groups: Mapping[int, GroupRow]) -> Json:
    """Every table as it is in the kernel; names come from the rows that were asked for."""
    return {
        "gateways": [
            _gateway(_number(key), value, maps, state)
            for key, value in sorted(maps.rows("gateways"))
        ],
        "groups": [
            {
                "id": _number(key),
                "name": groups[_number(key)].name if _number(key) in groups else "",
                "gateways": list(pack.read_group(value)),
            }
            for key, value in sorted(maps.rows("groups"))
        ],
        "entitled": _entitled(maps, state),
        "ports": [_port(_number(key), value, maps) for key, value in sorted(maps.rows("ports"))],
        "endpoints": [
            _endpoint(key, value, maps)
            for key, value in sorted(
                (EndpointKey.unpack(raw), value) for raw, value in maps.rows("endpoints")
            )
        ],
        "subnets": [
            {
                "cidr": cidr_text(network),
                **_subnet(network.vni, value, maps),
            }
            for network, value in sorted(
                (pack.read_subnet_key(key), value) for key, value in maps.rows("subnets")
            )
        ],
    }


def explain(maps: Maps, state: Resolved, vni: int, ip: str) -> Json:
    """The row that decides for an address, as the programs would find it."""
    key = EndpointKey(vni, address_of(ip))
    endpoint = maps.lookup("endpoints", key.pack())
    if endpoint is not None:
        return {"kind": "endpoint", **_endpoint(key, endpoint, maps)}
    subnet = maps.lookup("subnets", pack.subnet_key(SubnetKey(vni, key.ip, ADDRESS_BITS)))
    if subnet is not None:
        return {"kind": "subnet", "ip": ip, **_subnet(vni, subnet, maps)}
    return {"kind": "none", "vni": vni, "ip": ip}


def _gateway(id: int, raw: bytes, maps: Maps, state: Resolved) -> Json:
    row = pack.read_gateway(raw)
    known = state.gateways.get(id)
    return {
        "id": id,
        "node": known.node.hex() if known else "",
        "site": known.site if known else "",
        "underlay": address_text(row.underlay),
        "encapsulation": encapsulation(row.vxlan),
        "resolved": row.resolved,
        "ifname": _ifname(row.ifindex),
        "mac": mac_text(row.dst_mac),
        "mtu": row.mtu,
        "generation": row.generation,
        **maps.traffic("gateway_traffic", pack.u32(id)),
    }


def _entitled(maps: Maps, state: Resolved) -> list[Json]:
    """Sites are named where they have gateways; the empty name stands for all."""
    names = {row.site_group: row.site for row in state.gateways.values()} | {ANY_SITE: ""}
    keys = sorted(pack.read_entitled_key(key) for key, _ in maps.rows("entitled"))
    return [
        {"vni": vni, "site": names.get(site_group, f"#{site_group}")} for vni, site_group in keys
    ]


def _port(ifindex: int, raw: bytes, maps: Maps) -> Json:
    row = pack.read_port(raw)
    return {
        "ifname": _ifname(ifindex),
        "ifindex": ifindex,
        "vni": row.vni,
        "ip": address_text(row.ip),
        "mac": mac_text(row.mac),
        "mtu": row.mtu,
        "blocked": row.blocked,
        "generation": row.generation,
        **maps.traffic("port_traffic", pack.u32(ifindex)),
    }


def _endpoint(key: EndpointKey, raw: bytes, maps: Maps) -> Json:
    row = pack.read_endpoint(raw)
    return {
        "vni": key.vni,
        "ip": address_text(key.ip),
        "ifname": _ifname(row.ifindex),
        "mac": mac_text(row.mac),
        "generation": row.generation,
        **_group(row.group, maps),
    }


def _subnet(vni: int, raw: bytes, maps: Maps) -> Json:
    row = pack.read_subnet(raw)
    return {
        "vni": vni,
        "gateway_ip": address_text(row.gateway_ip),
        "generation": row.generation,
        **_group(row.group, maps),
    }


def _group(group: int, maps: Maps) -> Json:
    raw = maps.lookup("groups", pack.u32(group)) if group else None
    return {"group": group, "gateways": list(pack.read_group(raw)) if raw else []}


def _ifname(ifindex: int) -> str:
    """The name of an interface; empty for none, and for one that is gone."""
    if not ifindex:
        return ""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return ""
