"""Decoders that read a stream, given one that ends where the input does."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, cast

import trio
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, StopMessage
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch

from mesh.core.errors import PeerError
from mesh.core.wire import SPOKEN
from mesh.node.p2p import session
from mesh.node.p2p.circuit import Messages
from mesh.node.p2p.framing import FRAME_BYTES_MAX, FrameReader
from mesh.node.p2p.link import LINK_PROTOCOL, Crowd, Link
from mesh.node.p2p.punch import _address
from mesh.node.p2p.session import Identity, key_of
from mesh.node.p2p.twins import Instance

PIECE_BYTES = 7
"""What a read gives at most: messages come in pieces."""
WALL_NS = 1_790_000_000 * 10**9
NODE = b"n" * 16
IDENTITY = Identity(b"k" * 32)


class Fed:
    """A stream of these bytes; what is written to it is kept. It is a connection as well."""

    remote = "/ip4/127.0.0.1/tcp/7400"
    ended = ""
    key = IDENTITY.key

    def __init__(self, data: bytes, piece_bytes: int = PIECE_BYTES) -> None:
        self._data = data
        self._piece_bytes = piece_bytes
        self.written = bytearray()

    async def read(self, bytes_max: int) -> bytes:
        size = min(bytes_max, self._piece_bytes)
        piece, self._data = self._data[:size], self._data[size:]
        return piece

    async def write(self, data: bytes, *_: object, **__: object) -> None:
        self.written += data


def at_once(task: Awaitable[Any]) -> Any:
    """What a coroutine returns that has nothing to wait for."""
    steps = task.__await__()
    try:
        next(steps)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")


def frames(data: bytes) -> list[bytes]:
    reader = FrameReader(Fed(data).read, FRAME_BYTES_MAX)
    found = []
    with contextlib.suppress(EOFError):
        while True:
            found.append(at_once(reader.frame()))
    if not found:
        raise EOFError
    return found


def _message(data: bytes, kind: Callable[[], Any]) -> Any:
    return at_once(Messages(cast(Any, Fed(data))).read(kind))


def hop(data: bytes) -> Any:
    message = _message(data, HopMessage)
    if message.type == HopMessage.CONNECT:
        key_of(message.peer.id)
    return message


def stop(data: bytes) -> Any:
    message = _message(data, StopMessage)
    if message.type == StopMessage.CONNECT:
        key_of(message.peer.id)
    return message


def punch(data: bytes) -> object:
    return _address(_message(data, HolePunch), "ip4")


def encode_message(message: Any) -> bytes:
    stream = Fed(b"")
    at_once(Messages(cast(Any, stream)).write(message))
    return bytes(stream.written)


def shown(data: bytes) -> list[bytes]:
    return list(at_once(session._shown(Fed(data, len(data) or 1))))


def link(data: bytes) -> Link:
    """All that the other end of a link says of the link itself, up to the end of the stream."""
    stream = cast(Any, Fed(data))
    instance = Instance(lambda: IDENTITY, lambda peer: None)
    made = Link(NODE, stream, stream, Crowd({}), SPOKEN, instance, inbound=True)
    made._streams[LINK_PROTOCOL] = stream

    async def hear() -> None:
        await made.hello()
        with contextlib.suppress(PeerError):  # at the latest at the end
            await made._read_control(lambda: WALL_NS)

    trio.run(hear)
    return made
