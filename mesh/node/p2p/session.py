"""The boundary to py-libp2p: one authenticated and multiplexed connection.

`open_session` takes a fresh conduit through multistream-select, Noise XX and Yamux and yields a
`Session`: the peer's Ed25519 key and the streams. When the connection ends for whatever reason the
body of the `async with` is cancelled and the block is left without an exception; `Session.ended`
says why. Everything of py-libp2p that is untyped stays in this file.

Rules of this file
- A peer is heard for at most HANDSHAKE_BYTES_MAX bytes before it has shown who it is.
- Between Noise and Yamux who has dialled may select `/weft/keys/1` first: both ends then send one
  frame, the rotations that led to their key. It does so when its own key is not its first, or when
  it does not know the other's: so a key can be new to either end. Whom the peer has sent away
  shows the next time the statement that admitted it, too: a restored admin may not know it.
- A write is whole or the connection is over (B3).
- What the peer may have in flight to us is bounded and enforced (B9).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import msgpack
import trio
from libp2p.crypto.ed25519 import Ed25519PublicKey
from libp2p.crypto.ed25519 import create_new_key_pair as ed25519_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as x25519_key_pair
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.patterns import PatternXX
from libp2p.stream_muxer.exceptions import MuxedStreamEOF
from libp2p.stream_muxer.yamux import yamux
from libp2p.stream_muxer.yamux.yamux import HEADER_SIZE

from mesh.core.errors import PeerError
from mesh.node.p2p.framing import READ_BYTES, pack
from mesh.node.p2p.tcp import Conduit

SHOWN_BYTES_MAX = 28 << 10
"""Rotations that a peer may show: as many as there can be (`ROTATIONS_MAX`), of 400 bytes."""

UNHEARD_MAX = 4096
"""Peers of which it is remembered that they did not let us in: more than are members, mostly."""

HANDSHAKE_BYTES_MAX = 32 << 10
"""Bytes accepted before the peer's key is known and admitted; a handshake takes about 600, and what
is shown in it."""

NEGOTIATION_BYTES_MAX = 1 << 10
"""Bytes accepted while the protocol of a stream is negotiated; it takes about 50. Without it
py-libp2p reads on for as long as a length prefix says, up to 2^64."""

WINDOW_BYTES_MAX = 1 << 20
"""Yamux receive window of a stream: 10 MB/s at 100 ms. Three streams of 240 peers that we do not
get round to reading hold 720 MiB at the very worst."""

RECEIVE_BYTES_MAX = 4 << 20
"""Unread bytes of a connection: three windows, what one read adds to each, and some. Nobody who
keeps to the windows gets there."""

RELEASE_BYTES = 32 << 10
"""Bytes read before the peer is told of it: an eighth of the smallest window."""

CIRCUIT_BYTES_MAX = 256 << 10
"""Receive window of a stream that carries a circuit, which does not grow; unread bytes of a
connection may be so many more for each, and READ_BYTES."""

CIRCUITS_PER_SESSION_MAX = 16
"""Circuits for which there is room at once, whatever a session has carried in its time."""

STREAMS_MAX = 16
"""Streams that a peer may open in vain; a link has three."""

STREAMS_PER_S = 4.0
STREAMS_BURST = 32
"""Streams that a peer may open besides those of the link: circuits and hole punching."""

NEGOTIATE_S = 5
"""Time for choosing a protocol, on a connection or a stream."""

_YAMUX_BYTES_MAX = 64 << 10
_PREFIX_BYTES = 4
_STALL_POLL_S = (0.005, 0.05)
_NOISE = "/noise"
_YAMUX = "/yamux/1.0.0"
KEYS_PROTOCOL = "/weft/keys/1"
_ED25519_PEER_ID = bytes.fromhex("002408011220")  # identity multihash, 36 bytes, type 1, 32 bytes

# py-libp2p lets the receive window grow to 16 MiB a stream, which nothing then enforces (B9).
yamux.MAX_WINDOW_SIZE = WINDOW_BYTES_MAX

# It also logs at warning and above for what any peer can do at will. What matters of that is
# logged by us, rate-limited; LIBP2P_DEBUG still opens its own log.
if not os.environ.get("LIBP2P_DEBUG"):
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    logging.getLogger("libp2p").addHandler(logging.NullHandler())


class NotAdmittedError(PeerError):
    """The peer has proved a key that is not let in."""

    def __init__(self, key: bytes) -> None:
        super().__init__(f"key {key.hex()} is not admitted")
        self.key = key


class Identity:
    """A node's key pair, ready for handshakes."""

    def __init__(
        self, seed: bytes, shown: Sequence[bytes] = (), admission: bytes | None = None
    ) -> None:
        """`seed`: the 32-byte Ed25519 private key. `shown`: the rotations that led to it.
        `admission`: the statement that made the node a member, shown to who does not know it."""
        if len(seed) != 32:
            raise ValueError("an Ed25519 seed has 32 bytes")
        self._pair: Any = ed25519_key_pair(seed)
        self._noise: Any = x25519_key_pair()
        self.key = bytes(self._pair.public_key.to_bytes())
        self.shown = tuple(shown)
        self.admission = admission

    def sign(self, message: bytes) -> bytes:
        """An Ed25519 signature, 64 bytes."""
        return bytes(self._pair.private_key.sign(message))

    def noise_xx(self) -> Any:
        """A fresh Noise XX handshake."""
        return PatternXX(
            ID.from_pubkey(self._pair.public_key), self._pair.private_key, self._noise.private_key
        )


class Keys(NamedTuple):
    """What is known of other nodes' keys."""

    known: Callable[[bytes], bool]
    """whether a key is a member's"""
    take: Callable[[Sequence[bytes]], None]
    """takes in the statements that a peer shows; PeerError: they do not hold"""
    unheard: set[bytes]
    """peers that were dialled and have said nothing yet: if the session ends before they do, they
    may not know of us; who uses it takes out those that do"""


class Stream:
    """One bidirectional stream. Any failure of it is a PeerError; the stream is over then."""

    def __init__(self, muxed: Any, protocol: str) -> None:
        _release_rarely(muxed)
        self._muxed = muxed
        self.protocol = protocol

    async def read(self, bytes_max: int) -> bytes:
        """Up to `bytes_max` bytes as soon as there are any; empty at the end of the stream."""
        try:
            return bytes(await self._muxed.read(bytes_max))
        except MuxedStreamEOF:
            return b""
        except Exception as error:
            raise PeerError(f"stream {self.protocol}: {error!r}") from error

    def keep_window(self) -> None:
        """Do not let the receive window grow beyond what it is at the start."""
        self._muxed._apply_autotune_epoch = lambda buffered: 0

    async def readable(self) -> None:
        """Wait until `read` returns at once. For one reader at a time; never writes."""
        muxed, conn = self._muxed, self._muxed.conn
        while True:
            event = conn.stream_events.get(muxed.stream_id)
            if (
                event is None
                or conn.stream_buffers.get(muxed.stream_id)
                or muxed.recv_closed
                or muxed.reset_received
                or muxed.closed
                or conn.event_shutting_down.is_set()
            ):
                return
            if event.is_set():  # for what has been read since
                event = conn.stream_events[muxed.stream_id] = trio.Event()
            await event.wait()

    async def write(self, data: bytes, stall_s: float, *, whole: bool = False) -> None:
        """Write all of `data`, waiting at most `stall_s` whenever the peer's window is closed.

        `whole`: a caller that is cancelled waits for the piece that is being written, so that the
        connection survives (B3). Only for a caller whom the end of the session does not wait for.

        Raises PeerError when the peer did not read for that long. py-libp2p would give up after
        5 s (B9); never more is handed to it than the window takes, so that the wait is ours.
        """
        view = memoryview(data)
        try:
            while view:
                size = min(await self._window(stall_s), _YAMUX_BYTES_MAX - HEADER_SIZE, len(view))
                with trio.CancelScope(shield=whole):
                    await self._muxed.write(bytes(view[:size]))
                view = view[size:]
        except PeerError:
            raise
        except Exception as error:
            raise PeerError(f"stream {self.protocol}: {error!r}") from error

    async def _window(self, stall_s: float) -> int:
        poll_s, poll_max_s = _STALL_POLL_S
        deadline_s = trio.current_time() + stall_s
        while self._muxed.send_window <= 0:
            if self._muxed.send_closed or self._muxed.closed:
                raise PeerError(f"stream {self.protocol} was closed")
            if trio.current_time() >= deadline_s:
                raise PeerError(f"stream {self.protocol} was not read for {stall_s:g} s")
            await trio.sleep(poll_s)
            poll_s = min(2 * poll_s, poll_max_s)
        return int(self._muxed.send_window)

    async def reset(self) -> None:
        """End both directions at once. Raises PeerError."""
        try:
            await self._muxed.reset()
        except Exception as error:
            raise PeerError(f"stream {self.protocol}: {error!r}") from error

    async def finish(self) -> None:
        """Say that nothing more will be written; reading goes on."""
        try:
            await self._muxed.close()
        except Exception as error:
            raise PeerError(f"stream {self.protocol}: {error!r}") from error


def _release_rarely(muxed: Any) -> None:
    """Have the peer's window opened again for every RELEASE_BYTES that were read, and not with each
    read: for a heartbeat that would be half as many bytes again, and one more write."""
    release, unreleased_bytes = muxed._auto_tune_and_send_window_update, 0

    async def batched(*, bytes_read: int = 0) -> None:
        nonlocal unreleased_bytes
        unreleased_bytes += bytes_read
        if unreleased_bytes >= RELEASE_BYTES:
            size, unreleased_bytes = unreleased_bytes, 0
            await release(bytes_read=size)

    muxed._auto_tune_and_send_window_update = batched


class Session:
    """An authenticated connection. Made by `open_session`."""

    def __init__(self, raw: _RawConnection, muxer: Any, key: bytes) -> None:
        self._raw = raw
        self._muxer = muxer
        self.key = key
        """The peer's Ed25519 public key, 32 bytes."""
        self.ended = ""
        """Why the connection is over; empty while it is not."""

    @property
    def rx_bytes(self) -> int:
        """Bytes received so far: while it grows, the peer lives."""
        return self._raw.conduit.rx_bytes

    def kill(self, reason: str) -> None:
        """End the connection at once, from any task; the first reason given counts."""
        self.ended = self.ended or reason
        self._raw.conduit.abort()

    def carry_circuit(self, stream: Stream) -> None:
        """Let the peer have a circuit's window unread besides, for as long as the session lasts."""
        stream.keep_window()
        self._raw.circuits += 1

    async def open_stream(self, protocol: str) -> Stream:
        """Open a stream of `protocol`. Raises PeerError if the peer does not take it."""
        try:
            muxed = await self._muxer.open_stream()
            await _select(_Bounded(muxed), protocol, initiator=True)
        except PeerError:
            raise
        except Exception as error:
            raise PeerError(f"stream {protocol}: {error!r}") from error
        return Stream(muxed, protocol)

    async def accept_stream(self, protocols: frozenset[str]) -> Stream:
        """Wait for the next stream that the peer opens for one of `protocols`.

        Streams for which it asks in vain are reset, up to STREAMS_MAX; raises PeerError after.
        """
        for _ in range(STREAMS_MAX):
            try:
                muxed = await self._muxer.accept_stream()
            except Exception as error:
                raise PeerError(f"connection closed: {error!r}") from error
            try:
                return Stream(muxed, await _select(_Bounded(muxed), protocols))
            except Exception:
                # Whatever a peer writes into a negotiation, text that is not UTF-8 included, ends
                # in some exception; it costs the stream (B1).
                await self._reset(muxed)
        raise PeerError("too many streams for protocols that are not spoken here")

    async def serve_streams(self, serve: Mapping[str, Callable[[Stream], None]]) -> None:
        """Give each further stream that the peer opens to who serves its protocol; reset the rest.

        Raises PeerError when the peer opens too many in vain, or too many at all. Must run as long
        as the session is used without `accept_stream`: py-libp2p stops reading from the connection
        when ten streams wait.
        """
        refused, undecided = 0, 0
        tokens, at_s = float(STREAMS_BURST), trio.current_time()
        failures: list[PeerError] = []  # raised behind the nursery, which would wrap them

        async def negotiate(muxed: Any) -> None:
            nonlocal refused, undecided
            undecided += 1
            try:
                protocol = await _select(_Bounded(muxed), frozenset(serve))
            except Exception:
                refused += 1
                with contextlib.suppress(PeerError):
                    await self._reset(muxed)
            else:
                serve[protocol](Stream(muxed, protocol))
            finally:
                undecided -= 1

        async with trio.open_nursery() as nursery:
            while not failures:
                try:
                    muxed = await self._muxer.accept_stream()
                except Exception as error:
                    failures.append(PeerError(f"connection closed: {error!r}"))
                    break
                now_s = trio.current_time()
                tokens = min(float(STREAMS_BURST), tokens + (now_s - at_s) * STREAMS_PER_S) - 1
                at_s = now_s
                if refused + undecided >= STREAMS_MAX or tokens < 0:
                    failures.append(PeerError("too many streams"))
                else:
                    nursery.start_soon(negotiate, muxed)
            nursery.cancel_scope.cancel()
        raise failures[0]

    async def _reset(self, muxed: Any) -> None:
        try:
            await muxed.reset()
        except Exception as error:
            raise PeerError(f"connection closed: {error!r}") from error


@asynccontextmanager
async def open_session(
    conduit: Conduit,
    identity: Identity,
    admit: Callable[[bytes], bool],
    *,
    initiator: bool,
    setup_s: float,
    expected_key: bytes | None = None,
    keys: Keys | None = None,
) -> AsyncIterator[Session]:
    """Secure and multiplex `conduit`; it is closed when the block is left, however it is left.

    Args:
        admit: says whether the owner of a public key may go on. Asked right after Noise, and after
            what it has shown was taken in.
        setup_s: time for the whole of it, or PeerError.
        expected_key: of the only peer that will do; checked before we show our own key.
        keys: None: no rotations are shown or looked at.

    Raises NotAdmittedError, or PeerError for anything else that goes wrong with the peer.
    """
    raw = _RawConnection(conduit, initiator)
    try:
        with trio.move_on_after(setup_s) as timeout:
            try:
                muxer, key = await _upgrade(raw, identity, admit, expected_key, keys)
            except PeerError:
                raise
            except Exception as error:
                raise PeerError(f"handshake: {error!r}") from error
        if timeout.cancelled_caught:
            raise PeerError(f"handshake not done within {setup_s:g} s")
        session = Session(raw, muxer, key)
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                try:
                    await muxer.start()
                except Exception as error:
                    session.ended = session.ended or f"multiplexer: {error!r}"
                session.ended = session.ended or raw.ended or "closed by the peer"
                nursery.cancel_scope.cancel()

            nursery.start_soon(serve)
            try:
                await muxer.event_started.wait()
                yield session
            except Exception as error:  # carried past the nursery, which would wrap it in a group
                failure = error
            finally:
                # Not Yamux.close(), which waits for a peer that may be cut off (B6).
                conduit.close()
                session.ended = session.ended or raw.ended or "closed here"
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
    finally:
        conduit.close()


async def _upgrade(
    raw: _RawConnection,
    identity: Identity,
    admit: Callable[[bytes], bool],
    expected_key: bytes | None,
    keys: Keys | None,
) -> tuple[Any, bytes]:
    # Noise and nothing else is on offer, so nobody can talk us into plaintext (B7).
    await _select(raw, _NOISE, initiator=raw.is_initiator)
    pattern = identity.noise_xx()
    if raw.is_initiator:
        expected = (
            ID.from_pubkey(Ed25519PublicKey.from_bytes(expected_key)) if expected_key else None
        )
        secured = await pattern.handshake_outbound(raw, expected)
    else:
        secured = await pattern.handshake_inbound(raw)
    key = key_of(secured.get_remote_peer().to_bytes())
    if raw.is_initiator:
        shown = identity.shown
        if keys is not None and key in keys.unheard and identity.admission is not None:
            shown = (identity.admission, *shown)
        if keys is not None and (shown or not keys.known(key)):
            await _select(secured, KEYS_PROTOCOL, initiator=True)
            await _show(secured, shown)
            keys.take(await _shown(secured))
        if not admit(key):
            raise NotAdmittedError(key)
        await _select(secured, _YAMUX, initiator=True)
        if keys is not None and len(keys.unheard) < UNHEARD_MAX:
            keys.unheard.add(key)
    else:
        if keys is None:
            chosen = await _select(secured, _YAMUX)
        else:
            chosen = await _select(secured, frozenset((_YAMUX, KEYS_PROTOCOL)))
        if keys is not None and chosen == KEYS_PROTOCOL:
            keys.take(await _shown(secured))
            await _show(secured, identity.shown)
        if not admit(key):
            raise NotAdmittedError(key)
        if chosen == KEYS_PROTOCOL:
            await _select(secured, _YAMUX)
    raw.budget_bytes = None
    return _BoundedYamux(secured, secured.get_remote_peer(), raw), key


async def _show(secured: Any, shown: Sequence[bytes]) -> None:
    await secured.write(pack(msgpack.packb(list(shown))))


async def _shown(secured: Any) -> list[bytes]:
    """What the peer shows. Raises PeerError."""
    size = int.from_bytes(await secured.read(_PREFIX_BYTES), "big")
    if not 0 < size <= SHOWN_BYTES_MAX:
        raise PeerError(f"{size} bytes of rotations, allowed are 1 to {SHOWN_BYTES_MAX}")
    try:
        shown = msgpack.unpackb(await secured.read(size))
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise PeerError(f"rotations: {type(error).__name__}") from None
    if not isinstance(shown, list) or any(type(blob) is not bytes for blob in shown):
        raise PeerError("rotations: no list of statements")
    return shown


async def _select(conn: Any, protocols: str | frozenset[str], *, initiator: bool = False) -> str:
    """Agree on a protocol by multistream-select."""
    communicator = MultiselectCommunicator(conn)
    if initiator:
        assert isinstance(protocols, str)
        return str(await MultiselectClient().select_one_of([protocols], communicator, NEGOTIATE_S))
    offered = [protocols] if isinstance(protocols, str) else sorted(protocols)
    chosen, _ = await Multiselect(dict.fromkeys(offered)).negotiate(communicator, NEGOTIATE_S)
    if chosen is None:
        raise PeerError("no protocol chosen")
    return str(chosen)


def key_of(peer_id: bytes) -> bytes:
    """The Ed25519 key inside a peer id (libp2p specs, peer-ids: identity multihash of the key)."""
    if len(peer_id) != len(_ED25519_PEER_ID) + 32 or not peer_id.startswith(_ED25519_PEER_ID):
        raise PeerError("the peer's identity is not an Ed25519 key")
    return peer_id[len(_ED25519_PEER_ID) :]


class _RawConnection:
    """What py-libp2p reads and writes: its IRawConnection over a conduit.

    `read(n)` returns exactly n bytes, or fewer at the end. (py-libp2p's own gives up when a message
    arrives in more than a hundred pieces, and asks the kernel twice for each message.)
    """

    def __init__(self, conduit: Conduit, is_initiator: bool) -> None:
        self.conduit = conduit
        self.is_initiator = is_initiator
        self.budget_bytes: int | None = HANDSHAKE_BYTES_MAX
        self.circuits = 0
        self.ended = ""
        self._buffer = bytearray()

    async def read(self, n: int | None = None) -> bytes:
        wanted = 1 if n is None else n
        while len(self._buffer) < wanted:
            try:
                piece = await self.conduit.receive_some(READ_BYTES)
            except OSError as error:
                self.ended = self.ended or f"connection lost: {error}"
                raise ConnectionClosedError(str(error)) from error
            if not piece:
                break
            self._buffer += piece
            if self.budget_bytes is not None and self.conduit.rx_bytes > self.budget_bytes:
                raise PeerError(f"more than {self.budget_bytes} bytes of handshake")
        size = len(self._buffer) if n is None else n
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return data

    async def write(self, data: bytes) -> None:
        try:
            await self.conduit.send_all(data)
        except OSError as error:
            self.ended = self.ended or f"connection lost: {error}"
            raise ConnectionClosedError(str(error)) from error

    async def close(self) -> None:
        self.conduit.close()

    def get_remote_address(self) -> None:
        return None


class _Bounded:
    """A stream that may be read for NEGOTIATION_BYTES_MAX bytes in all."""

    def __init__(self, muxed: Any) -> None:
        self._muxed = muxed
        self._left_bytes = NEGOTIATION_BYTES_MAX

    async def read(self, n: int) -> bytes:
        if n > self._left_bytes:
            raise PeerError("negotiation too long")
        data = bytes(await self._muxed.read(n))
        self._left_bytes -= len(data)
        return data

    async def write(self, data: bytes) -> None:
        await self._muxed.write(data)


class _BoundedYamux(yamux.Yamux):  # type: ignore[misc]  # the base class is untyped
    """Yamux that enforces the receive window and does not survive a torn write."""

    def __init__(self, secured: Any, peer_id: Any, raw: _RawConnection) -> None:
        super().__init__(secured, peer_id, is_initiator=raw.is_initiator)
        self._raw = raw

    async def _write_frame(self, data: bytes) -> None:
        async with self._write_lock:
            try:
                await self.secured_conn.write(data)
            except BaseException:
                # Cancelled or failed in the middle: the peer's Noise now waits for the rest of
                # this message and would take any other for it (B3).
                self._raw.ended = self._raw.ended or "write cut short"
                self._raw.conduit.abort()
                raise

    async def _read_data_body(self, length: int) -> bytes:
        unread_bytes = sum(map(len, self.stream_buffers.values()))
        circuits = min(self._raw.circuits, CIRCUITS_PER_SESSION_MAX)
        circuit_bytes = circuits * (CIRCUIT_BYTES_MAX + READ_BYTES)
        if unread_bytes + length > RECEIVE_BYTES_MAX + circuit_bytes:
            self._raw.ended = self._raw.ended or "receive window exceeded"
            self.event_shutting_down.set()  # makes the caller stop, whatever it does with errors
            self._raw.conduit.abort()
            raise ConnectionError("receive window exceeded")
        return bytes(await super()._read_data_body(length))
