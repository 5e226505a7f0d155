"""Making a direct connection out of a relayed one: libp2p's DCUtR on TCP.

    /libp2p/dcutr   both -> CONNECT with the addresses to dial; then SYNC from who asked

Both ends of a relayed link open a TCP connection to each other at the same moment (libp2p specs,
relay/DCUtR.md): each end's NAT sees a connection go out and takes the other's for the answer, and
the two SYNs become one connection (RFC 9293 §3.5, simultaneous open). The end that accepted the
relayed link asks, waits half a round trip after SYNC and dials; the other dials when SYNC is there
and is the initiator of what follows.

Rules of this file
- It takes a NAT that keeps the port: each end binds a port that nothing listens on, and names it
  together with the address that others see it come from. Whether its NAT keeps ports an end knows
  from its other links. Where it does not, it names none, nothing is tried and the link stays
  relayed: guessing among 64,000 ports is a port scan of somebody's router.
- What the other end names is an address that it could have come from (no loopback, no multicast),
  a few of them, and dialled for PUNCH_S: a member cannot make this node knock on many doors.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import trio
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from multiaddr import Multiaddr

from mesh.core.errors import PeerError
from mesh.node.p2p.circuit import Messages
from mesh.node.p2p.session import Stream
from mesh.node.p2p.tcp import Address, Conduit, Net, TcpConduit

PUNCH_PROTOCOL = "/libp2p/dcutr"

ANSWER_S = 5.0
PUNCH_S = 5.0
"""Long enough for the kernel's second and third SYN, 1 s and 3 s after the first."""

ADDRESSES_MAX = 4
_REFUSED_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Seen:
    """One of our connections as both ends see it."""

    local: Address
    observed: Address


def outer_host(seen: Iterable[Seen]) -> tuple[str, str] | None:
    """Protocol and host under which a port of ours is reached as it is; None: it is translated.

    Of IPv4 and IPv6 the one that more peers agree on.
    """
    votes: dict[tuple[str, str], int] = {}
    for one in seen:
        if one.local.port == one.observed.port and one.local.protocol == one.observed.protocol:
            key = (one.observed.protocol, one.observed.host)
            votes[key] = votes.get(key, 0) + 1
        else:
            # A NAT that keeps one port and not another cannot be relied upon.
            key = (one.observed.protocol, one.observed.host)
            votes[key] = votes.get(key, 0) - 1
    best = max(sorted(votes), key=lambda key: votes[key], default=None)
    return best if best is not None and votes[best] > 0 else None


class Door:
    """A local port kept for punching, nothing listens on it."""

    def __init__(self, net: Net, protocol: str) -> None:
        """Raises OSError."""
        self._net, self._protocol = net, protocol
        self._holder = net.bound(protocol, 0)
        self.port: int = self._holder.getsockname()[1]

    async def knock(self, address: Address) -> Conduit:
        """Connect to `address` again and again until it answers; the caller sets the deadline."""
        while True:
            sock = trio.socket.from_stdlib_socket(self._net.bound(self._protocol, self.port))
            try:
                await sock.connect((address.host, address.port))
                return TcpConduit(trio.SocketStream(sock))
            except OSError:  # refused: the other end's NAT has not seen its SYN yet
                sock.close()
            except BaseException:
                sock.close()
                raise
            await trio.sleep(_REFUSED_PAUSE_S)

    def close(self) -> None:
        self._holder.close()


async def ask(net: Net, stream: Stream, outer: tuple[str, str]) -> Conduit:
    """Punch as the end that asks. Raises PeerError, or OSError when there is no port to be had."""
    protocol, host = outer
    messages = Messages(stream)
    address: Address | None = None
    with contextlib.closing(Door(net, protocol)) as door:
        with trio.move_on_after(ANSWER_S):
            asked_s = trio.current_time()
            await messages.write(_connect([Address(protocol, host, door.port)]))
            address = _address(await messages.read(HolePunch), protocol)
            rtt_s = trio.current_time() - asked_s
            await messages.write(HolePunch(type=HolePunch.SYNC))
            await trio.sleep(rtt_s / 2)
        if address is None:
            raise PeerError("no answer about hole punching")
        return await _knock(door, address)


async def answer(net: Net, stream: Stream, outer: tuple[str, str] | None) -> Conduit:
    """Punch as the end that is asked. `outer`: None when our ports are translated.

    Raises PeerError, or OSError when there is no port to be had.
    """
    messages = Messages(stream)
    sync = None
    with contextlib.ExitStack() as stack:
        with trio.move_on_after(ANSWER_S):
            asked = await messages.read(HolePunch)
            if outer is None:
                await messages.write(_connect([]))
                raise PeerError("the ports of this end are translated")
            protocol, host = outer
            address = _address(asked, protocol)
            door = stack.enter_context(contextlib.closing(Door(net, protocol)))
            await messages.write(_connect([Address(protocol, host, door.port)]))
            sync = await messages.read(HolePunch)
        if sync is None or sync.type != HolePunch.SYNC:
            raise PeerError("hole punching was begun and not gone on with")
        return await _knock(door, address)


async def _knock(door: Door, address: Address) -> Conduit:
    with trio.CancelScope(deadline=trio.current_time() + PUNCH_S):
        return await door.knock(address)
    raise PeerError(f"no way through to {address}")


def _connect(addresses: Sequence[Address]) -> HolePunch:
    raw = [Multiaddr(str(address)).to_bytes() for address in addresses]
    return HolePunch(type=HolePunch.CONNECT, ObsAddrs=raw)


def _address(message: HolePunch, protocol: str) -> Address:
    """The address in a CONNECT that can be dialled from here. Raises PeerError."""
    if message.type != HolePunch.CONNECT:
        raise PeerError("not a message about where to connect")
    for raw in message.ObsAddrs[:ADDRESSES_MAX]:
        address = _parse(raw)
        if (
            address is not None
            and address.protocol == protocol
            and address.port
            and _public_enough(address.host)
        ):
            return address
    raise PeerError("the ports of the other end are translated")


def _parse(raw: bytes) -> Address | None:
    try:
        return Address.parse(str(Multiaddr(raw)))
    except Exception:  # BadInput, and whatever multiaddr makes of bytes that are none
        return None


def _public_enough(host: str) -> bool:
    ip = ipaddress.ip_address(host)
    return not (ip.is_loopback or ip.is_multicast or ip.is_unspecified or ip.is_link_local)
