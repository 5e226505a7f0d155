"""Sockets: multiaddrs, listening, dialling, and closing hard.

The rest of the package sees `Conduit`, `Listener` and `Net` only, so that it can also run over
anything else that carries bytes in order.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct
from dataclasses import dataclass
from typing import Protocol

import trio

from mesh.core.errors import BadInput, NotReady
from mesh.node.p2p.events import Path

_LISTEN_BACKLOG = 128
_LINGER_RESET = struct.pack("ii", 1, 0)
_HOST_PROTOCOLS = {"ip4", "ip6", "dns", "dns4", "dns6"}


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP multiaddr taken apart: `/ip4/192.0.2.1/tcp/4001`, `/dns4/gw.example/tcp/4001`."""

    protocol: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"/{self.protocol}/{self.host}/tcp/{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read a multiaddr. A trailing `/p2p/<peer id>` is allowed and not used: Noise decides.

        Raises BadInput for anything that is not a host and a TCP port.
        """
        parts = text.split("/")
        if len(parts) == 7 and parts[5] == "p2p":
            parts = parts[:5]
        if len(parts) != 5 or parts[0] or parts[3] != "tcp" or parts[1] not in _HOST_PROTOCOLS:
            raise BadInput(f"not a TCP multiaddr: {text!r}; write it as /ip4/192.0.2.1/tcp/4001")
        protocol, host, port = parts[1], parts[2], parts[4]
        if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
            raise BadInput(f"not a port in {text!r}: {port!r}")
        try:
            if protocol == "ip4":
                host = str(ipaddress.IPv4Address(host))
            elif protocol == "ip6":
                host = str(ipaddress.IPv6Address(host))
        except ValueError as error:
            raise BadInput(f"not an address in {text!r}: {error}") from None
        if not host or len(host) > 253:
            raise BadInput(f"no host in {text!r}")
        return cls(protocol, host, int(port))

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for every address of the machine."""
        return self.protocol in ("ip4", "ip6") and ipaddress.ip_address(self.host).is_unspecified

    @classmethod
    def of_socket(cls, name: tuple[str | int, ...]) -> Address:
        host = str(name[0]).split("%")[0]
        return cls("ip6" if ":" in host else "ip4", host, int(name[1]))


class NoFamily(NotReady):
    """This machine does not speak IPv6, or not IPv4."""


class Conduit(Protocol):
    """A connection that carries bytes in order, and can be ended at once from any task."""

    remote: str
    """The other end as a multiaddr."""
    local: str
    """This end as a multiaddr; empty where there is nothing that others could dial."""
    path: Path
    rx_bytes: int
    """Bytes received so far: while it grows, the other side lives."""

    async def send_all(self, data: bytes) -> None: ...

    async def receive_some(self, bytes_max: int) -> bytes:
        """Return up to `bytes_max` bytes; empty at the end of the stream."""

    def close(self) -> None:
        """End it after what has been sent. Tasks inside the other methods get an OSError or EOF."""

    def abort(self) -> None:
        """End it now, whatever is in flight."""


class Listener(Protocol):
    addr: str

    async def accept(self) -> Conduit: ...

    def close(self) -> None: ...


class Net(Protocol):
    async def connect(self, address: Address) -> Conduit:
        """Raise OSError when nobody answers there."""

    async def listen(self, address: Address) -> Listener:
        """Raise BadInput or NotReady when the address cannot be had."""

    def bound(self, protocol: str, port: int) -> socket.socket:
        """A TCP socket bound to that port (0: a free one) of every address of the machine.

        There can be several on one port, if nothing listens on it. Raise OSError.
        """


class TcpConduit:
    """A TCP connection. trio's SocketStream sets TCP_NODELAY and a low TCP_NOTSENT_LOWAT, which
    keeps what waits in the kernel short: a push does not queue behind megabytes of a sync."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.remote = str(Address.of_socket(stream.socket.getpeername()))
        self.local = str(Address.of_socket(stream.socket.getsockname()))
        self.path: Path = "direct"
        self.rx_bytes = 0

    async def send_all(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionError(str(error)) from error

    async def receive_some(self, bytes_max: int) -> bytes:
        try:
            data = bytes(await self._stream.receive_some(bytes_max))
        except trio.ClosedResourceError:
            return b""
        except trio.BrokenResourceError as error:
            raise ConnectionError(str(error)) from error
        self.rx_bytes += len(data)
        return data

    def close(self) -> None:
        # The socket and not the stream: aclose() waits, and there is nothing to wait for (B6).
        self._stream.socket.close()

    def abort(self) -> None:
        # A peer that is cut off never acknowledges what is still in the send buffer; with zero
        # linger the kernel forgets it now instead of retrying for minutes (B6, B8).
        with contextlib.suppress(OSError):  # closed already
            self._stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        self._stream.socket.close()


class TcpListener:
    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        self.addr = str(Address.of_socket(sock.getsockname()))

    async def accept(self) -> Conduit:
        while True:
            sock, _ = await self._sock.accept()
            try:
                return TcpConduit(trio.SocketStream(sock))
            except OSError:
                sock.close()  # gone again before we looked

    def close(self) -> None:
        self._sock.close()


class TcpNet:
    async def connect(self, address: Address) -> Conduit:
        # trio's own happy eyeballs apply between the addresses of one name only (B5).
        return TcpConduit(await trio.open_tcp_stream(address.host, address.port))

    async def listen(self, address: Address) -> Listener:
        """Bind and listen, or say in one line what is in the way.

        SO_REUSEPORT is not set, on purpose: with it a second process could take a share of our
        connections without either of the two noticing (B10).
        """
        if address.protocol not in ("ip4", "ip6"):
            raise BadInput(f"cannot listen on a name: {address}; give an ip4 or ip6 address")
        family = socket.AF_INET6 if address.protocol == "ip6" else socket.AF_INET
        try:
            sock = trio.socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:  # EAFNOSUPPORT
            raise _listen_error(address, error) from error
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            await sock.bind((address.host, address.port))
            sock.listen(_LISTEN_BACKLOG)
        except OSError as error:
            sock.close()
            raise _listen_error(address, error) from error
        except BaseException:
            sock.close()
            raise
        return TcpListener(sock)

    def bound(self, protocol: str, port: int) -> socket.socket:
        return bound(protocol, port)


def bound(protocol: str, port: int) -> socket.socket:
    """See `Net`. Raises OSError."""
    family = socket.AF_INET6 if protocol == "ip6" else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", port))
    except BaseException:
        sock.close()
        raise
    return sock


def _listen_error(address: Address, error: OSError) -> BadInput | NotReady:
    if error.errno == errno.EAFNOSUPPORT:
        family = "IPv6" if address.protocol == "ip6" else "IPv4"
        return NoFamily(f"cannot listen on {address}: this machine has no {family}")
    if error.errno == errno.EADDRINUSE:
        return NotReady(
            f"cannot listen on {address}: the port is in use by another process; "
            "stop that process or choose another listen address"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return BadInput(
            f"cannot listen on {address}: no interface of this machine has that address; "
            "choose one that is there, or /ip4/0.0.0.0"
        )
    if error.errno == errno.EACCES:
        return BadInput(
            f"cannot listen on {address}: not permitted; choose a port above 1023 or run as root"
        )
    return NotReady(f"cannot listen on {address}: {error.strerror or error}")
