"""The wide area network of a lab that plays a scenario: latency, loss and cuts between gateways.

A process in the network's namespace, between the gateways' ports: every frame that one of them
sends is read from its port, waits as long as the link takes, and is written to the port of its
receiver. This is done here, in user space, since it works on every kernel: what would do it inside
(netem, fq) is often not built in, and XDP passes qdiscs by.

It is told how links are by lines of JSON on its standard input, and counts what each port sent. It
ends with its input, so it does not outlive whoever started it.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import random
import select
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

SOL_PACKET: Final = 263
PACKET_VNET_HDR: Final = 15
PACKET_IGNORE_OUTGOING: Final = 23
ETH_P_ALL: Final = 3
VNET_HEADER_BYTES: Final = 10
"""struct virtio_net_hdr: what the sender left for hardware to do (checksum, cutting into segments)
goes along with the frame."""
FRAME_BYTES_MAX: Final = VNET_HEADER_BYTES + 14 + 65_535
FRAMES_AT_ONCE: Final = 64
"""Read from one port before others have their turn."""
HELD_MAX: Final = 20_000
"""Frames on their way; what comes beyond is dropped, as by any full queue."""
BROADCAST: Final = b"\xff" * 6
ETH_IPV4: Final = b"\x08\x00"
TCP: Final = 6


@dataclass(slots=True)
class Link:
    """From one port to another."""

    delay_ns: int = 0
    jitter_ns: int = 0
    loss: float = 0.0
    bits_per_s: int = 0
    """0: as fast as one likes"""
    cut: bool = False
    arrives_ns: int = 0
    """when the last frame arrives: none overtakes it"""
    free_ns: int = 0
    """when the last frame's last bit has left"""


class Wan:
    """Ports by name, and the links between them."""

    def __init__(self, macs: Mapping[str, bytes]) -> None:
        self._ports = {port: _open(port) for port in macs}
        self._names = {sock.fileno(): port for port, sock in self._ports.items()}
        self._port_of = {mac: port for port, mac in macs.items()}
        self._links: dict[tuple[str, str], Link] = {}
        self._held: list[tuple[int, int, str, bytes]] = []
        self._number = 0
        self._chance = random.Random()  # noqa: S311  # loss, no secrets
        self.sent_bytes = dict.fromkeys(macs, 0)
        """by port: payload of TCP"""

    def set(self, links: Sequence[Mapping[str, Any]]) -> None:
        for said in links:
            link = self._links.setdefault((said["from"], said["to"]), Link())
            link.delay_ns = int(said["delay_ms"] * 1e6)
            link.jitter_ns = int(said["jitter_ms"] * 1e6)
            link.loss, link.cut = said["loss"], said["cut"]
            link.bits_per_s = said["bits_per_s"]

    def run(self) -> None:
        """Until the input ends."""
        stdin = sys.stdin.fileno()
        fcntl.fcntl(stdin, fcntl.F_SETFL, fcntl.fcntl(stdin, fcntl.F_GETFL) | os.O_NONBLOCK)
        unread = b""
        while True:
            # `select` waits to the microsecond; epoll, to the millisecond.
            ready, _, _ = select.select([stdin, *self._names], [], [], self._wait_s())
            for fd in ready:
                if fd != stdin:
                    self._read(self._names[fd])
            self._release()
            if stdin in ready:
                data = os.read(stdin, 1 << 16)
                if not data:
                    return
                *lines, unread = (unread + data).split(b"\n")
                for line in lines:
                    self._obey(json.loads(line))

    def _obey(self, said: Mapping[str, Any]) -> None:
        if "links" in said:
            self.set(said["links"])
        print(json.dumps(self.sent_bytes), flush=True)

    def _wait_s(self) -> float | None:
        if not self._held:
            return None
        return max(0.0, (self._held[0][0] - time.monotonic_ns()) / 1e9)

    def _read(self, port: str) -> None:
        sock = self._ports[port]
        for _ in range(FRAMES_AT_ONCE):
            try:
                frame = sock.recv(FRAME_BYTES_MAX)
            except BlockingIOError:
                return
            except OSError:
                return  # the port is being taken down
            self.sent_bytes[port] += payload_bytes(frame)
            to = frame[VNET_HEADER_BYTES : VNET_HEADER_BYTES + 6]
            if to[0] & 1:
                for other in self._ports:
                    if other != port:
                        self._send(port, other, frame)
            elif to in self._port_of:
                self._send(port, self._port_of[to], frame)

    def _send(self, port: str, other: str, frame: bytes) -> None:
        link = self._links.get((port, other))
        if link is None:
            link = self._links[port, other] = Link()
        if link.cut or (link.loss and self._chance.random() < link.loss):
            return
        if len(self._held) >= HELD_MAX:
            return
        leaves_ns = time.monotonic_ns()
        if link.bits_per_s:
            leaves_ns = max(leaves_ns, link.free_ns) + len(frame) * 8 * 10**9 // link.bits_per_s
            link.free_ns = leaves_ns
        jitter_ns = int(self._chance.random() * link.jitter_ns)
        link.arrives_ns = max(link.arrives_ns, leaves_ns + link.delay_ns + jitter_ns)
        self._number += 1
        heapq.heappush(self._held, (link.arrives_ns, self._number, other, frame))

    def _release(self) -> None:
        now_ns = time.monotonic_ns()
        while self._held and self._held[0][0] <= now_ns:
            _, _, port, frame = heapq.heappop(self._held)
            try:
                self._ports[port].send(frame)
            except OSError:
                continue  # full, or its interface is down: as if it were lost


def payload_bytes(frame: bytes) -> int:
    """What a frame, with its virtio header, carries of TCP; 0 for anything else."""
    packet = frame[VNET_HEADER_BYTES + 14 :]
    if frame[VNET_HEADER_BYTES + 12 : VNET_HEADER_BYTES + 14] != ETH_IPV4 or len(packet) < 40:
        return 0
    header_bytes = (packet[0] & 15) * 4
    if packet[9] != TCP or len(packet) < header_bytes + 20:
        return 0
    (total_bytes,) = struct.unpack_from("!H", packet, 2)
    return max(0, int(total_bytes) - header_bytes - (packet[header_bytes + 12] >> 4) * 4)


def _open(port: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    sock.setblocking(False)
    sock.bind((port, ETH_P_ALL))
    return sock


def main(arguments: Sequence[str]) -> None:
    """Each argument: PORT=MAC of the gateway behind it."""
    macs = {}
    for argument in arguments:
        port, _, mac = argument.partition("=")
        macs[port] = bytes.fromhex(mac.replace(":", ""))
    wan = Wan(macs)
    print("{}", flush=True)  # ports are open
    wan.run()


if __name__ == "__main__":
    main(sys.argv[1:])
