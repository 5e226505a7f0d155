"""What the programs are to do with a frame, written down once more, plainly and from bytes.

It reads the same logical tables, and nothing of the C source. Two things are left open: which of a
group's gateways a flow takes, and by which outer port; the same flow always takes the same.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dataplane.fib.rows import (
    ANY_SITE,
    MAPPED,
    EndpointKey,
    EndpointRow,
    EntitledKey,
    GatewayRow,
    PortRow,
    SubnetKey,
    SubnetRow,
    Tables,
    address_bytes,
    in_prefix,
    is_ipv4,
)
from dataplane.reasons import DropReason
from dataplane.xdp import layout
from dataplane.xdp.pack import Adjacency, Interface
from tests.dataplane.conftest import internet_checksum

DROP, PASS, REDIRECT = 1, 2, 4
ROUTER = layout.GATEWAY_MAC
ETHERNET, OUTER4, OUTER6, TUNNEL = 14, 50, 70, 16
IPV4, ARP, IPV6 = b"\x08\x00", b"\x08\x06", b"\x86\xdd"
TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58


def bare(frame: bytes) -> tuple[bytes, bytes]:
    """An encapsulated frame without what depends on the flow's hash, and that: outer source port
    and, in IPv6, the flow label and the checksum."""
    if frame[12:14] == IPV4:
        return frame[:34] + bytes(2) + frame[36:], frame[34:36]
    label = bytes([frame[15] & 0xF0]) + bytes(2)
    rest = frame[:15] + label + frame[18:54] + bytes(2) + frame[56:60] + bytes(2) + frame[62:]
    return rest, frame[15:18] + frame[54:56]


@dataclass(frozen=True, slots=True)
class Outer:
    """What the outer headers of a frame say."""

    src: int
    dst: int
    at: int  # of UDP
    size: int  # of the outer packet, with its Ethernet header
    six: bool


@dataclass(frozen=True, slots=True)
class Expected:
    """`frames`: what may leave, `bare` where `flow` says whose it is."""

    verdict: int
    reason: DropReason | None = None
    frames: tuple[bytes, ...] = ()
    flow: tuple[object, ...] | None = None
    otherwise: DropReason | None = None
    """Dropped for this reason instead, if the flow takes another of the group's gateways."""


class Dropped(Exception):
    """`mtu`: of a packet that is too big, what would fit. `otherwise` as in `Expected`."""

    def __init__(
        self, reason: DropReason, mtu: int = 0, otherwise: DropReason | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.mtu = mtu
        self.otherwise = otherwise


@dataclass(slots=True)
class Packet:
    """An inner frame, and what its headers say."""

    frame: bytes
    six: bool = False
    src: int = 0
    dst: int = 0
    hops: int = 0
    size: int = 0  # of the frame, without padding

    @property
    def ip(self) -> bytes:
        return self.frame[ETHERNET:]

    def message(self) -> tuple[int, bytes]:
        """The protocol, and what follows a header without options."""
        return (self.ip[6], self.ip[40:]) if self.six else (self.ip[9], self.ip[20:])

    @property
    def plain(self) -> bool:
        """Without options, in IPv4."""
        return self.six or self.ip[0] & 15 == 5

    @property
    def later_fragment(self) -> bool:
        return not self.six and bool(_u16(self.ip, 6) & 0x1FFF)

    def spent(self) -> bytes:
        """The IP packet with a hop less."""
        ip = bytearray(self.ip)
        if self.six:
            ip[7] -= 1
            return bytes(ip)
        ip[8] -= 1
        ip[10:12] = _added(_u16(ip, 10), 0x0100)
        return bytes(ip)

    @property
    def flow(self) -> tuple[object, ...]:
        if self.six:
            protocol, rest, whole = self.ip[6], self.ip[40:], True
        else:
            protocol, rest = self.ip[9], self.ip[20:]
            whole = self.plain and not _u16(self.ip, 6) & 0x3FFF
        ports = rest[:4] if whole and protocol in (TCP, UDP) and len(rest) >= 4 else b""
        return (self.six, self.src, self.dst, 0 if self.six and not ports else protocol, ports)


def _u16(data: bytes | bytearray, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")


def _added(checksum: int, number: int) -> bytes:
    """RFC 1141: a checksum over data that has become less by `number`."""
    total = checksum + number
    return ((total + (total >= 0xFFFF)) & 0xFFFF).to_bytes(2, "big")


@dataclass
class Reference:
    """A machine's tables, and what it knows of itself."""

    tables: Tables
    interfaces: Mapping[str, Interface]
    ways: Mapping[int, Adjacency]
    underlay: int
    ifindexes: Mapping[str, int]
    quoted: tuple[int, int] = (28, 56)
    """Bytes of an IPv4 and an IPv6 packet in an error."""
    inner_least: int = ETHERNET
    """Bytes of a frame that can come out of a tunnel."""
    peers: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = sorted(self.tables.gateways.items(), reverse=True)
        self.peers = {row.underlay: id for id, row in rows}
        self._endpoints = {
            EndpointKey.unpack(key): EndpointRow.unpack(row)
            for key, row in self.tables.endpoints.items()
        }

    # ---- look-ups -------------------------------------------------------------------------------

    def subnet(self, vni: int, ip: int) -> SubnetRow | None:
        found: list[SubnetKey] = [
            key for key in self.tables.subnets if key.vni == vni and in_prefix(ip, key)
        ]
        return self.tables.subnets[max(found, key=lambda key: key.prefix_bits)] if found else None

    def leads_to_site(self, peer: GatewayRow, group: int) -> bool:
        row = self.tables.groups.get(group)
        site = row.site_group if row else None
        return group in (peer.group, peer.site_group) or site == peer.site_group

    # ---- from a pod -----------------------------------------------------------------------------

    def from_port(self, ifname: str, frame: bytes) -> Expected:
        port = self.tables.ports.get(ifname)
        packet = Packet(frame)
        try:
            if port is None:
                raise Dropped(DropReason.NO_PORT)
            return self._from_port(port, packet)
        except Dropped as dropped:
            answer = self._answer(packet, dropped)
            if answer is None or port is None:
                return Expected(DROP, dropped.reason)
            near = self.subnet(port.vni, packet.src)
            made = self._error(packet, dropped, near, ROUTER)
            return Expected(REDIRECT, dropped.reason, (made,))

    def _from_port(self, port: PortRow, packet: Packet) -> Expected:
        frame = packet.frame
        if port.blocked:
            raise Dropped(DropReason.PORT_BLOCKED)
        if frame[6:12] != port.mac:
            raise Dropped(DropReason.SPOOFED_MAC)
        if frame[12:14] == ARP:
            return Expected(REDIRECT, None, (self._arp(port, frame),))
        self._read(packet)
        if packet.six and _icmp6_type(packet) == 135:
            return Expected(REDIRECT, None, (self._advertisement(port, packet),))
        first = address_bytes(packet.dst)
        if first[0] == 0xFF if packet.six else first[12] >> 4 == 0xE or first[12:] == b"\xff" * 4:
            raise Dropped(DropReason.MULTICAST)
        if packet.src != port.ip:
            raise Dropped(DropReason.SPOOFED_IP)
        return self._forward(port, packet)

    def _forward(self, port: PortRow, packet: Packet) -> Expected:
        endpoint = self._endpoints.get(EndpointKey(port.vni, packet.dst))
        if endpoint is not None:
            group, mac = endpoint.group, endpoint.mac
            if not group and not endpoint.ifname:
                raise Dropped(DropReason.NOT_ATTACHED)
        else:
            subnet = self.subnet(port.vni, packet.dst)
            if subnet is None:
                raise Dropped(DropReason.NO_SUBNET)
            if subnet.gateway_ip == packet.dst:
                return Expected(REDIRECT, None, (self._echo(port, packet),))
            group, mac = subnet.group, ROUTER
            if not group:
                raise Dropped(DropReason.UNCLAIMED)
        if packet.hops <= 1:
            raise Dropped(DropReason.TTL_EXPIRED)
        if endpoint is not None and endpoint.ifname:
            return self._deliver(endpoint, packet)
        return self._through(port.vni, group, mac + ROUTER, packet, None)

    def _deliver(self, endpoint: EndpointRow, packet: Packet) -> Expected:
        interface = self.interfaces.get(endpoint.ifname)
        if interface is None or endpoint.ifname not in self.tables.ports:
            raise Dropped(DropReason.NO_PORT)
        if packet.size > interface.mtu + ETHERNET:
            raise Dropped(DropReason.TOO_BIG, interface.mtu)
        kind = packet.frame[12:14]
        return Expected(REDIRECT, None, (endpoint.mac + ROUTER + kind + packet.spent(),))

    def _through(
        self, vni: int, group: int, macs: bytes, packet: Packet, sender: int | None
    ) -> Expected:
        row = self.tables.groups.get(group)
        if row is None or not row.gateways:
            raise Dropped(DropReason.NO_GROUP)
        ways = []
        loop = DropReason.LOOP if sender in row.gateways else None
        for id in row.gateways:
            gateway = self.tables.gateways.get(id)
            way = self.ways.get(gateway.underlay) if gateway else None
            assert gateway is not None and way is not None, "the world has all of them resolved"
            if id == sender:
                continue
            around = self._around(gateway) + ETHERNET
            if packet.size + around - ETHERNET > way.mtu:
                raise Dropped(DropReason.TOO_BIG, max(0, way.mtu - around), loop)
            ways.append((gateway, way))
        if not ways:
            raise Dropped(DropReason.LOOP)
        inner = macs + packet.frame[12:14] + packet.spent()
        frames = tuple(self._outer(vni, way, row, packet.size) + inner for row, way in ways)
        return Expected(REDIRECT, None, frames, packet.flow, loop)

    @staticmethod
    def _around(gateway: GatewayRow) -> int:
        return 36 if is_ipv4(gateway.underlay) else 56

    def _outer(self, vni: int, way: Adjacency, gateway: GatewayRow, size: int) -> bytes:
        own, far = address_bytes(self.underlay), address_bytes(gateway.underlay)
        length = size + TUNNEL
        if is_ipv4(gateway.underlay):
            ends = own[12:] + far[12:]
            head = struct.pack("!BBHHHBBH", 0x45, 0, length + 20, 0, 0x4000, 64, UDP, 0) + ends
            head = IPV4 + head[:10] + internet_checksum(head).to_bytes(2, "big") + ends
        else:
            head = IPV6 + struct.pack("!IHBB", 6 << 28, length, UDP, 64) + own + far
        udp = struct.pack("!HHHH", 0, 4789 if gateway.vxlan else 6081, length, 0)
        kind = (8, 0, 0) if gateway.vxlan else (0, 0, 0x6558)
        return way.dst_mac + way.src_mac + head + udp + struct.pack("!BBHI", *kind, vni << 8)

    # ---- from the underlay ----------------------------------------------------------------------

    def from_underlay(self, frame: bytes) -> Expected:
        outer = _read_outer(frame)
        if outer is None or outer.dst != self.underlay:
            return Expected(PASS, None, (frame,))
        id, port = self.peers.get(outer.src), _u16(frame, outer.at + 2)
        vxlan = id is not None and self.tables.gateways[id].vxlan
        if port != 6081 and (port != 4789 or not vxlan):
            return Expected(PASS, None, (frame,))
        if id is None:
            return Expected(DROP, DropReason.UNKNOWN_PEER)
        if vxlan and port != 4789:
            return Expected(DROP, DropReason.TUNNEL_ENCAPSULATION)
        packet, vni = Packet(b""), int.from_bytes(frame[outer.at + 12 : outer.at + 15], "big")
        try:
            _check_udp(frame, outer, vxlan)
            carried = self._unwrap(frame, outer, packet, vxlan)
            self._read(packet)
            if packet.size > carried:
                raise Dropped(DropReason.MALFORMED)
            self._check_source(self.tables.gateways[id], vni, packet)
            return self._arrived(id, vni, packet)
        except Dropped as dropped:
            if self._answer(packet, dropped) is None:
                return Expected(DROP, dropped.reason, otherwise=dropped.otherwise)
            near = self.subnet(vni, packet.dst)
            made = self._error(packet, dropped, near, packet.frame[:6])
            row = self.tables.gateways[id]
            frames = (self._outer(vni, self.ways[row.underlay], row, len(made)) + made,)
            return Expected(REDIRECT, dropped.reason, frames, packet.flow, dropped.otherwise)

    def _unwrap(self, frame: bytes, outer: Outer, packet: Packet, vxlan: bool) -> int:
        """Puts the inner frame into the packet; bytes that the outer one has for it."""
        first, flags = frame[outer.at + 8 : outer.at + 10]
        if vxlan:
            if not first & 8:
                raise Dropped(DropReason.TUNNEL_PROTOCOL)
            packet.frame = frame[outer.at + TUNNEL :]
            if outer.size < outer.at + TUNNEL or len(packet.frame) < self.inner_least:
                raise Dropped(DropReason.MALFORMED)
            return outer.size - outer.at - TUNNEL
        if first >> 6:
            raise Dropped(DropReason.TUNNEL_VERSION)
        if flags & 0x80:
            raise Dropped(DropReason.TUNNEL_CONTROL)
        if flags & 0x40:
            raise Dropped(DropReason.TUNNEL_CRITICAL)
        if frame[outer.at + 10 : outer.at + 12] != b"\x65\x58":
            raise Dropped(DropReason.TUNNEL_PROTOCOL)
        headers = outer.at + TUNNEL + 4 * (first & 0x3F)
        carried = outer.size - headers
        if carried < 0 or len(frame) < headers + self.inner_least:
            raise Dropped(DropReason.MALFORMED)
        packet.frame = frame[headers:]
        return carried

    def _check_source(self, peer: GatewayRow, vni: int, packet: Packet) -> None:
        source = self._endpoints.get(EndpointKey(vni, packet.src))
        if source is not None and self.leads_to_site(peer, source.group):
            return
        sites = (ANY_SITE, peer.site_group)
        if not any(EntitledKey(vni, site) in self.tables.entitled for site in sites):
            raise Dropped(DropReason.NOT_ENTITLED)
        subnet = self.subnet(vni, packet.src)
        spoken_by_gateway = subnet is not None and subnet.gateway_ip == packet.src
        if not peer.own_site and not (spoken_by_gateway and _is_error(packet)):
            raise Dropped(DropReason.FOREIGN_SOURCE)

    def _arrived(self, sender: int, vni: int, packet: Packet) -> Expected:
        endpoint = self._endpoints.get(EndpointKey(vni, packet.dst))
        if endpoint is None:
            raise Dropped(DropReason.NOT_LOCAL)
        if packet.hops <= 1:
            raise Dropped(DropReason.TTL_EXPIRED)
        if endpoint.ifname:
            return self._deliver(endpoint, packet)
        if not endpoint.group:
            raise Dropped(DropReason.NOT_ATTACHED)
        macs = endpoint.mac + packet.frame[6:12]
        return self._through(vni, endpoint.group, macs, packet, sender)

    # ---- headers --------------------------------------------------------------------------------

    @staticmethod
    def _read(packet: Packet) -> None:
        frame, ip = packet.frame, packet.ip
        if frame[12:14] not in (IPV4, IPV6):
            raise Dropped(DropReason.NOT_IP)
        packet.six = frame[12:14] == IPV6
        if len(ip) < (40 if packet.six else 20) or ip[0] >> 4 != (6 if packet.six else 4):
            raise Dropped(DropReason.MALFORMED)
        if packet.six:
            total, packet.hops, ends = 40 + _u16(ip, 4), ip[7], (ip[8:24], ip[24:40])
            if any(end.startswith(MAPPED) for end in ends):
                raise Dropped(DropReason.MALFORMED)
        else:
            total, packet.hops = _u16(ip, 2), ip[8]
            ends = MAPPED + ip[12:16], MAPPED + ip[16:20]
            header = 4 * (ip[0] & 15)
            if header < 20 or total < header:
                raise Dropped(DropReason.MALFORMED)
        if total > len(ip):
            raise Dropped(DropReason.MALFORMED)
        packet.size = total + ETHERNET
        packet.src, packet.dst = (int.from_bytes(end, "big") for end in ends)

    # ---- answers --------------------------------------------------------------------------------

    def _answer(self, packet: Packet, dropped: Dropped) -> bool | None:
        """True if the sender is told; else None."""
        if dropped.reason not in (DropReason.TOO_BIG, DropReason.TTL_EXPIRED):
            return None
        protocol, message = packet.message()
        if len(message) < 8 or not packet.plain or packet.later_fragment:
            return None
        expired = dropped.reason is DropReason.TTL_EXPIRED
        if packet.six:
            error = protocol == ICMP6 and message[0] < 128
            wanted = expired or bool(dropped.mtu)
            return (wanted and not error and packet.size >= ETHERNET + self.quoted[1]) or None
        error = protocol == ICMP and message[0] not in (0, 8)
        wanted = expired or bool(_u16(packet.ip, 6) & 0x4000 and dropped.mtu)
        return (wanted and not error and packet.size >= ETHERNET + self.quoted[0]) or None

    def _error(self, packet: Packet, dropped: Dropped, near: SubnetRow | None, mac: bytes) -> bytes:
        """The ICMP error that is made of a packet."""
        expired = dropped.reason is DropReason.TTL_EXPIRED
        mtu = 0 if expired else dropped.mtu
        source = near.gateway_ip if near else packet.dst
        ends = address_bytes(source), address_bytes(packet.src)
        macs = packet.frame[6:12] + mac + packet.frame[12:14]
        if packet.six:
            body = (
                struct.pack("!BBHI", 3 if expired else 2, 0, 0, mtu) + packet.ip[: self.quoted[1]]
            )
            head = struct.pack("!IHBB", 6 << 28, len(body), ICMP6, 64) + b"".join(ends)
            return macs + head + _summed6(head, body)
        kind = (11, 0) if expired else (3, 4)
        body = struct.pack("!BBHHH", *kind, 0, 0, mtu) + packet.ip[: self.quoted[0]]
        body = body[:2] + internet_checksum(body).to_bytes(2, "big") + body[4:]
        head = struct.pack("!BBHHHBBH", 0x45, 0xC0, 20 + len(body), 0, 0x4000, 64, ICMP, 0)
        head += ends[0][12:] + ends[1][12:]
        head = head[:10] + internet_checksum(head).to_bytes(2, "big") + head[12:]
        return macs + head + body

    @staticmethod
    def _echo(port: PortRow, packet: Packet) -> bytes:
        """The reply to an echo request."""
        protocol, message = packet.message()
        request = (ICMP6, 128) if packet.six else (ICMP, 8)
        if len(message) < 8 or (protocol, message[0]) != request:
            raise Dropped(DropReason.UNCLAIMED)
        if not packet.plain or packet.later_fragment:
            raise Dropped(DropReason.UNCLAIMED)
        ip, checksum = packet.ip, _u16(message, 2)
        if packet.six:
            total = checksum + 0xFEFF  # the complement of 0x0100, which the type has become more by
            total = (total & 0xFFFF) + (total >> 16)
            reply = b"\x81" + message[1:2] + total.to_bytes(2, "big") + message[4:]
            ip = ip[:8] + ip[24:40] + ip[8:24] + reply
        else:
            reply = b"\0" + message[1:2] + _added(checksum, 0x0800) + message[4:]
            ip = ip[:12] + ip[16:20] + ip[12:16] + reply
        return port.mac + ROUTER + packet.frame[12:14] + ip

    def _arp(self, port: PortRow, frame: bytes) -> bytes:
        arp = frame[ETHERNET : ETHERNET + 28]
        if len(arp) < 28 or arp[:6] != b"\0\1\x08\0\6\4":
            raise Dropped(DropReason.MALFORMED)
        operation, asker, sender, target = arp[6:8], arp[8:14], arp[14:18], arp[24:28]
        own = address_bytes(port.ip)
        if asker != port.mac or (sender != bytes(4) and MAPPED + sender != own):
            raise Dropped(DropReason.SPOOFED_NEIGHBOUR)
        if operation != b"\0\1" or MAPPED + target == own:
            raise Dropped(DropReason.NEIGHBOUR_IGNORED)
        if self.subnet(port.vni, int.from_bytes(MAPPED + target, "big")) is None:
            raise Dropped(DropReason.NEIGHBOUR_OUTSIDE)
        reply = arp[:6] + b"\0\2" + ROUTER + target + port.mac + sender
        return port.mac + ROUTER + ARP + reply + frame[ETHERNET + 28 :]

    def _advertisement(self, port: PortRow, packet: Packet) -> bytes:
        ip, src = packet.ip, address_bytes(packet.src)
        message = ip[40:]
        if len(message) < 24 or packet.size < ETHERNET + 64 or packet.hops != 255 or message[1]:
            raise Dropped(DropReason.MALFORMED)
        target, probe = message[8:24], not packet.src
        link_local = src[0] == 0xFE and src[1] >> 6 == 2
        if not probe and not link_local and packet.src != port.ip:
            raise Dropped(DropReason.SPOOFED_NEIGHBOUR)
        if target == address_bytes(port.ip):
            raise Dropped(DropReason.NEIGHBOUR_IGNORED)
        subnet = self.subnet(port.vni, int.from_bytes(target, "big"))
        if target.startswith(MAPPED) or subnet is None:
            raise Dropped(DropReason.NEIGHBOUR_OUTSIDE)
        to = b"\xff\x02" + bytes(13) + b"\1" if probe else src
        flags = 0xA0000000 | (0 if probe else 0x40000000)
        body = struct.pack("!BBHI", 136, 0, 0, flags) + target + b"\2\1" + ROUTER
        head = ip[:4] + struct.pack("!HBB", len(body), ICMP6, 255) + target + to
        return port.mac + ROUTER + IPV6 + head + _summed6(head, body)


def _read_outer(frame: bytes) -> Outer | None:
    """Of UDP that is whole and has nothing between its header and that of IP."""
    if len(frame) >= OUTER4 and frame[12:15] == IPV4 + b"\x45":
        if frame[23] != UDP or _u16(frame, 20) & 0x3FFF:
            return None
        src, dst = (int.from_bytes(MAPPED + frame[at : at + 4], "big") for at in (26, 30))
        return Outer(src, dst, 34, _u16(frame, 16) + ETHERNET, False)
    if len(frame) >= OUTER6 and frame[12:14] == IPV6 and frame[14] >> 4 == 6 and frame[20] == UDP:
        src, dst = (int.from_bytes(frame[at : at + 16], "big") for at in (22, 38))
        return Outer(src, dst, 54, _u16(frame, 18) + 54, True)
    return None


def _check_udp(frame: bytes, outer: Outer, vxlan: bool) -> None:
    length = _u16(frame, outer.at + 4)
    if not _u16(frame, outer.at + 6):
        if outer.six:
            raise Dropped(DropReason.TUNNEL_CHECKSUM)
        return
    if vxlan:
        return
    if length + outer.at != outer.size:
        raise Dropped(DropReason.TUNNEL_CHECKSUM)
    if outer.size > len(frame):
        raise Dropped(DropReason.MALFORMED)
    ends = frame[22:54] if outer.six else frame[26:34]
    pseudo = ends + struct.pack("!II", length, UDP)
    if internet_checksum(pseudo + frame[outer.at : outer.size]):
        raise Dropped(DropReason.TUNNEL_CHECKSUM)


def _icmp6_type(packet: Packet) -> int | None:
    protocol, message = packet.message()
    return message[0] if protocol == ICMP6 and len(message) >= 8 else None


def _is_error(packet: Packet) -> bool:
    protocol, message = packet.message()
    if len(message) < 8:
        return False
    if packet.six:
        return protocol == ICMP6 and message[0] in (2, 3)
    return packet.plain and protocol == ICMP and message[0] in (3, 11)


def _summed6(head: bytes, body: bytes) -> bytes:
    """The message with its checksum (RFC 8200, section 8.1)."""
    pseudo = head[8:40] + struct.pack("!II", len(body), ICMP6)
    return body[:2] + internet_checksum(pseudo + body).to_bytes(2, "big") + body[4:]


def reference_of(gateway: Any) -> Reference:
    """What a gateway of the tests is to do with frames now."""
    state = gateway.backend._state
    ifindexes = {name: interface.ifindex for name, interface in state.interfaces.items()}
    ifindexes["wan0"] = gateway.run(lambda: socket.if_nametoindex("wan0"))
    tables = gateway.compiler.tables()
    # The kernel takes nothing off an skb that leaves less than an IPv4 header.
    tc = gateway.backend._hook == "tc"
    quoted, least = ((40, 60), ETHERNET + 20) if tc else ((28, 56), ETHERNET)
    ways = dict(state.ways)
    return Reference(tables, dict(state.interfaces), ways, state.underlay, ifindexes, quoted, least)
