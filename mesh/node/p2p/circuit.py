"""Connections inside other members' connections: libp2p's circuit relay v2, over our own sessions.

    hop   /libp2p/circuit/relay/0.2.0/hop    who wants a circuit -> relay: RESERVE, CONNECT
    stop  /libp2p/circuit/relay/0.2.0/stop   relay -> who is wanted: CONNECT

The messages are the standard's (libp2p specs, relay/circuit-v2.md), so any implementation can use
a node as a relay and be reached through one. What is different here: who may use a relay is decided
by membership, and a link to the relay is all the reservation there needs to be; RESERVE is answered
and costs nothing. Once the two streams are joined they are a conduit like a TCP connection: the
multistream, Noise and Yamux of the two ends run inside it, so that a relay never sees plaintext and
cannot be taken for the far end.

Rules of this file
- Nothing that goes on inside a circuit may cut a write on the connection that carries it short,
  which would end that one (B3). So a circuit is ended and its tasks end by themselves.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import trio
from libp2p.crypto.ed25519 import Ed25519PublicKey
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, PeerId, Status, StopMessage

from mesh.core.errors import BadInput, PeerError
from mesh.node.p2p.events import Path
from mesh.node.p2p.framing import READ_BYTES
from mesh.node.p2p.session import Session, Stream, key_of
from mesh.node.p2p.tcp import Address

HOP_PROTOCOL = "/libp2p/circuit/relay/0.2.0/hop"
STOP_PROTOCOL = "/libp2p/circuit/relay/0.2.0/stop"

MESSAGE_BYTES_MAX = 4096
"""The standard's bound; what is sent here takes some 50."""

_STATUS_TEXTS: dict[int, str] = {
    Status.RESERVATION_REFUSED: "reservation refused",
    Status.RESOURCE_LIMIT_EXCEEDED: "its limits are reached",
    Status.PERMISSION_DENIED: "permission denied",
    Status.CONNECTION_FAILED: "the peer does not answer it",
    Status.NO_RESERVATION: "it has no link to the peer",
    Status.MALFORMED_MESSAGE: "malformed message",
    Status.UNEXPECTED_MESSAGE: "unexpected message",
}

ANSWER_S = 5.0
"""Time for each message of setting up a circuit."""

CIRCUIT_STALL_S = 15.0
"""How long the far end of a circuit may leave it unread; as for a channel of a link."""

_LINGER_S = 1.0
_SUFFIX = "/p2p-circuit"

Spawn = Callable[..., None]
"""`spawn(task, *args)`: run a task that no peer's doing cancels; what it raises ends there."""


class Messages:
    """Protobuf messages on a stream, each behind its length as a varint, and what follows them."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def read(self, kind: Callable[[], Any]) -> Any:
        """The next message. Raises PeerError."""
        size, shift = 0, 0
        while True:
            (byte,) = await self._take(1)
            size |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
            if shift > 14:
                raise PeerError("message length too long")
        if size > MESSAGE_BYTES_MAX:
            raise PeerError(f"message of {size} bytes, allowed are {MESSAGE_BYTES_MAX}")
        message = kind()
        try:
            message.ParseFromString(await self._take(size))
        except PeerError:
            raise
        except Exception as error:  # protobuf's DecodeError is not all that comes out of it
            raise PeerError("malformed message") from error
        return message

    async def write(self, message: Any) -> None:
        """Raises PeerError."""
        data = message.SerializeToString()
        size, prefix = len(data), bytearray()
        while size >= 0x80:
            prefix.append(size & 0x7F | 0x80)
            size >>= 7
        prefix.append(size)
        await self._stream.write(bytes(prefix) + data, ANSWER_S, whole=True)

    def rest(self) -> bytes:
        """What came after the last message."""
        rest, self._buffer = bytes(self._buffer), bytearray()
        return rest

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            piece = await self._stream.read(READ_BYTES)
            if not piece:
                raise PeerError("closed by the peer")
            self._buffer += piece
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data


class StreamConduit:
    """A stream as a conduit."""

    def __init__(self, stream: Stream, remote: str, spawn: Spawn, rest: bytes = b"") -> None:
        """`rest`: bytes that have been read from the stream already."""
        self.remote = remote
        self.local = ""
        self.path: Path = "relayed"
        self.rx_bytes = 0
        self._stream = stream
        self._spawn = spawn
        self._rest = rest
        self._over = False
        self._waiting: trio.CancelScope | None = None

    async def send_all(self, data: bytes) -> None:
        if self._over:
            raise ConnectionError("circuit closed")
        try:
            await self._stream.write(data, CIRCUIT_STALL_S, whole=True)
        except PeerError as error:
            raise ConnectionError(str(error)) from error

    async def receive_some(self, bytes_max: int) -> bytes:
        if self._rest:
            data, self._rest = self._rest[:bytes_max], self._rest[bytes_max:]
        else:
            data = await self._receive(bytes_max)
        self.rx_bytes += len(data)
        return data

    async def _receive(self, bytes_max: int) -> bytes:
        if self._over:
            return b""
        try:
            with trio.CancelScope() as self._waiting:
                await self._stream.readable()
            self._waiting = None
            if self._over:
                return b""
            with trio.CancelScope(shield=True):  # it may write, to open the window again
                return await self._stream.read(bytes_max)
        except PeerError as error:
            raise ConnectionError(str(error)) from error

    def close(self) -> None:
        self._end(at_once=False)

    def abort(self) -> None:
        self._end(at_once=True)

    def _end(self, *, at_once: bool) -> None:
        if self._over:
            return
        self._over = True
        if self._waiting is not None:
            self._waiting.cancel()
        self._spawn(self._finish, at_once)

    async def _finish(self, at_once: bool) -> None:
        if not at_once:
            await self._stream.finish()
            await trio.sleep(_LINGER_S)  # a reset overtakes what has not been read yet
        await self._stream.reset()


async def connect(session: Session, key: bytes, remote: str, spawn: Spawn) -> StreamConduit:
    """A circuit through the peer of `session` to the member with public key `key`.

    Raises PeerError. A caller that does not wait until the end is no trouble: what comes is closed.
    """
    return await _detached(spawn, lambda: _connect(session, key, remote, spawn))


async def _connect(session: Session, key: bytes, remote: str, spawn: Spawn) -> StreamConduit:
    stream = await session.open_stream(HOP_PROTOCOL)
    messages = Messages(stream)
    try:
        with trio.fail_after(2 * ANSWER_S):
            await messages.write(HopMessage(type=HopMessage.CONNECT, peer=peer_of(key)))
            answer = await messages.read(HopMessage)
        if answer.type != HopMessage.STATUS or answer.status != Status.OK:
            told = _STATUS_TEXTS.get(answer.status, f"status {answer.status}")
            raise PeerError(f"the relay refuses: {told}")
    except BaseException as error:
        spawn(stream.reset)
        if isinstance(error, trio.TooSlowError):
            raise PeerError("the relay does not answer") from None
        raise
    session.carry_circuit(stream)
    return StreamConduit(stream, remote, spawn, messages.rest())


async def ask_stop(session: Session, source_key: bytes) -> tuple[Stream, bytes]:
    """A relay's question to the member at the far end; the stream, and what came after the yes.

    Raises PeerError when it is refused or not answered.
    """
    stream = await session.open_stream(STOP_PROTOCOL)
    messages = Messages(stream)
    try:
        with trio.fail_after(ANSWER_S):
            await messages.write(StopMessage(type=StopMessage.CONNECT, peer=peer_of(source_key)))
            answer = await messages.read(StopMessage)
    except trio.TooSlowError:
        await stream.reset()
        raise PeerError("no answer") from None
    if answer.type != StopMessage.STATUS or answer.status != Status.OK:
        await stream.reset()
        raise PeerError(f"refused with {answer.status}")
    return stream, messages.rest()


async def hear_stop(stream: Stream) -> tuple[Messages, bytes]:
    """What a relay asks: the messages to go on with and the key of who wants a circuit to here.

    Raises PeerError.
    """
    messages = Messages(stream)
    with trio.move_on_after(ANSWER_S):
        asked = await messages.read(StopMessage)
        if asked.type != StopMessage.CONNECT:
            raise PeerError("not a circuit")
        return messages, key_of(asked.peer.id)
    raise PeerError("no question")


async def answer_stop(messages: Messages, status: Status.ValueType) -> None:
    """Raises PeerError."""
    await messages.write(StopMessage(type=StopMessage.STATUS, status=status))


@dataclass(frozen=True, slots=True)
class CircuitAddress:
    """How to reach a member through another one: `/ip4/…/tcp/…/p2p/<relay's id>/p2p-circuit`."""

    relay: Address
    """where whoever wrote it reaches the relay"""
    relay_key: bytes

    def __str__(self) -> str:
        peer = ID.from_pubkey(Ed25519PublicKey.from_bytes(self.relay_key)).to_base58()
        return f"{self.relay}/p2p/{peer}{_SUFFIX}"

    @classmethod
    def parse(cls, text: str) -> CircuitAddress | None:
        """None for an address of any other form. Raises BadInput for one of this that is none."""
        if not text.endswith(_SUFFIX):
            return None
        relay, _, peer = text.removesuffix(_SUFFIX).rpartition("/p2p/")
        try:
            return cls(Address.parse(relay), key_of(ID.from_base58(peer).to_bytes()))
        except BadInput:
            raise
        except Exception as error:  # what base58 and key_of make of what is none
            raise BadInput(f"no peer id in {text!r}") from error


def peer_of(key: bytes) -> Any:
    """A peer in a message."""
    return PeerId(id=ID.from_pubkey(Ed25519PublicKey.from_bytes(key)).to_bytes())


async def _detached(spawn: Spawn, connect: Callable[[], Awaitable[StreamConduit]]) -> StreamConduit:
    """Run `connect` in a task of its own: a caller that is cancelled cuts no write short."""
    done = trio.Event()
    result: list[StreamConduit | PeerError] = []
    wanted = True

    async def run() -> None:
        try:
            conduit = await connect()
            if wanted:
                result.append(conduit)
            else:
                conduit.abort()
        except PeerError as error:
            result.append(error)
        finally:
            done.set()

    spawn(run)
    try:
        await done.wait()
    except BaseException:
        wanted = False
        for made in result:
            if isinstance(made, StreamConduit):
                made.abort()
        raise
    if not result:
        raise PeerError("no circuit")
    if isinstance(result[0], PeerError):
        raise result[0]
    return result[0]
