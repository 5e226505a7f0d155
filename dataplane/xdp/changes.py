"""What the kernel says of interfaces, addresses, routes and neighbours, as it happens.

Only that something has changed is taken from it: whoever hears it looks again. So nothing is lost
where messages are (the kernel says ENOBUFS): that is a change like any other. Neighbours are told
of at every step of their states' machine; what counts is a link address that is new.
"""

from __future__ import annotations

import errno
import socket
import struct

_NETLINK_ROUTE = 0
_GROUPS = 0x1 | 0x4 | 0x10 | 0x40  # linux/rtnetlink.h: RTMGRP_LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE
_RTM_NEWNEIGH = 28
_NDA_DST = 1
_NDA_LLADDR = 2
_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80  # as links.Underlay takes them
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_NEIGHBOUR = struct.Struct("=B3xiHBB")  # struct ndmsg: family, interface, state, flags, type
_ATTRIBUTE = struct.Struct("=HH")
_MESSAGE_BYTES_MAX = 1 << 16
_TAKEN_MAX = 256
"""Messages read at once: whoever looks again after these has seen what the others are about."""
KNOWN_MAX = 1 << 14
"""Neighbours whose link addresses are remembered. With more all are forgotten, and count as new."""


def _aligned(size: int) -> int:
    return size + 3 & ~3


class Changes:
    """Follows the network namespace of the calling thread from now on."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE
        )
        self._socket.setblocking(False)
        self._socket.bind((0, _GROUPS))
        self._known: dict[tuple[int, bytes], bytes] = {}
        """Link addresses by interface and address."""

    def fileno(self) -> int:
        """Readable when `take` has something to say."""
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def take(self) -> bool:
        """Whether anything has changed since the last call, as far as was read."""
        changed = False
        for _ in range(_TAKEN_MAX):
            try:
                data = self._socket.recv(_MESSAGE_BYTES_MAX)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                changed = True
                continue
            changed |= self._tells(data)
        return changed

    def _tells(self, data: bytes) -> bool:
        """Whether one datagram, of one message or several, is of a change."""
        changed, at = False, 0
        while at + _HEADER.size <= len(data):
            size, kind, *_ = _HEADER.unpack_from(data, at)
            if size < _HEADER.size:
                return True  # not a message as we know them
            body = data[at + _HEADER.size : at + size]
            changed |= self._new_neighbour(body) if kind == _RTM_NEWNEIGH else True
            at += _aligned(size)
        return changed

    def _new_neighbour(self, body: bytes) -> bool:
        if len(body) < _NEIGHBOUR.size:
            return True
        family, ifindex, state, *_ = _NEIGHBOUR.unpack_from(body)
        if family != socket.AF_INET or not state & _USABLE:
            return False
        attributes = _attributes(body[_NEIGHBOUR.size :])
        key, address = (ifindex, attributes.get(_NDA_DST, b"")), attributes.get(_NDA_LLADDR, b"")
        if self._known.get(key) == address:
            return False
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        self._known[key] = address
        return True


def _attributes(data: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < _ATTRIBUTE.size:
            break
        found[kind] = data[at + _ATTRIBUTE.size : at + size]
        at += _aligned(size)
    return found
