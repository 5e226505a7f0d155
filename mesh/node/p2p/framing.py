"""Frames on a byte stream: a 4-byte big-endian length, then that many bytes."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Awaitable, Callable

import trio

from mesh.core.errors import PeerError

FRAME_BYTES_MAX = 4 << 20
"""The largest frame: what one peer can make us hold before the frame is checked."""

READ_BYTES = 64 << 10
"""How much is asked for at once: one-byte reads cost more than everything else together."""

QUEUE_FRAMES_MAX = 4096
QUEUE_BYTES_MAX = 32 << 20
"""What may wait for one peer and channel. A peer that is further behind is better served from the
state (the replica resynchronises) than from a queue; eight frames of the largest size fit."""

SENDING_BYTES_MAX = 128 << 20
"""What may wait for all peers together. Who has most waiting overflows when it would be more."""

RECEIVING_BYTES_MAX = 16 << 20
"""What may have come of frames that are not whole yet, or not taken yet, of all peers together:
sixty of the size that honest nodes fill frames to, and four of the largest."""

_PREFIX = struct.Struct("!I")


def pack(frame: bytes) -> bytes:
    return _PREFIX.pack(len(frame)) + frame


class Receiving:
    """What has come of large frames, of all readers of a node together.

    When it is too much, whoever began first among those with more than an even share is shut out:
    an honest peer's frame is whole in a moment, and one that nobody means to finish is not.
    """

    def __init__(self, bytes_max: int = RECEIVING_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self.bytes = 0
        self._held: dict[FrameReader, int] = {}
        """in the order in which the frames began"""

    def note(self, reader: FrameReader, held_bytes: int) -> None:
        """Say how much a reader holds: up to one read it does not count."""
        self.bytes -= self._held.get(reader, 0)
        if held_bytes <= READ_BYTES:
            self._held.pop(reader, None)
            return
        self._held[reader] = held_bytes
        self.bytes += held_bytes
        while self.bytes > self._bytes_max:
            share_bytes = self._bytes_max / len(self._held)
            oldest = next(r for r, size_bytes in self._held.items() if size_bytes > share_bytes)
            self.bytes -= self._held.pop(oldest)
            oldest.shut_out()


class FrameReader:
    """Cuts what `read(bytes_max)` returns into frames. Unusable after it has raised.

    With `receiving` what it holds counts there until `close`, and `shut_out` is called when that is
    too much.
    """

    def __init__(
        self,
        read: Callable[[int], Awaitable[bytes]],
        bytes_max: int,
        receiving: Receiving | None = None,
        shut_out: Callable[[], None] = lambda: None,
    ) -> None:
        self._read = read
        self._bytes_max = bytes_max
        self._receiving = receiving
        self.shut_out = shut_out
        self._buffer = bytearray()
        self._start = 0

    async def frame(self) -> bytes:
        """Return the next frame.

        Raises PeerError for an empty or oversize frame, before any of its bytes is waited for, and
        EOFError at the end of the stream, inside a frame or between two.
        """
        await self._fill(_PREFIX.size)
        (size,) = _PREFIX.unpack_from(self._buffer, self._start)
        if not 0 < size <= self._bytes_max:
            raise PeerError(f"frame of {size} bytes, allowed are 1 to {self._bytes_max}")
        await self._fill(_PREFIX.size + size)
        begin = self._start + _PREFIX.size
        self._start = begin + size
        return bytes(memoryview(self._buffer)[begin : self._start])

    async def _fill(self, size: int) -> None:
        """Have `size` bytes from `_start` on."""
        if len(self._buffer) - self._start >= size:
            return
        # Once a read and not once a frame: a read may hold thousands of frames.
        del self._buffer[: self._start]
        self._start = 0
        self._note()
        while len(self._buffer) < size:
            piece = await self._read(READ_BYTES)
            if not piece:
                raise EOFError
            self._buffer += piece
            self._note()

    def _note(self) -> None:
        if self._receiving is not None:
            self._receiving.note(self, len(self._buffer))

    def close(self) -> None:
        """Hold nothing any more."""
        self._buffer.clear()
        self._note()


class Tally:
    """How many bytes wait in all queues of a node."""

    def __init__(self) -> None:
        self.bytes = 0


class SendQueue:
    """Frames waiting for one stream, bounded in number and in bytes."""

    def __init__(
        self,
        tally: Tally,
        frames_max: int = QUEUE_FRAMES_MAX,
        bytes_max: int = QUEUE_BYTES_MAX,
    ) -> None:
        self._tally = tally
        self._frames: deque[bytes] = deque()
        self._closed = False
        self.bytes = 0
        self._frames_max = frames_max
        self._bytes_max = bytes_max
        self._filled = trio.Event()

    def put(self, frame: bytes) -> bool:
        """Queue a frame, or forget it once closed; False if it does not fit any more."""
        if self._closed:
            return True
        if len(self._frames) >= self._frames_max or self.bytes + len(frame) > self._bytes_max:
            return False
        self._frames.append(frame)
        self._count(len(frame))
        self._filled.set()
        return True

    def clear(self) -> None:
        """Forget what waits. A frame that is being written is not affected: frames stay whole."""
        self._frames.clear()
        self._count(-self.bytes)

    def close(self) -> None:
        """Take no more frames: nobody is there to send them."""
        self._closed = True
        self.clear()

    def _count(self, size_bytes: int) -> None:
        self.bytes += size_bytes
        self._tally.bytes += size_bytes

    async def take(self) -> bytes:
        """Wait for frames and return them packed: one, or as many small ones as fill one read."""
        while not self._frames:
            self._filled = trio.Event()
            await self._filled.wait()
        packed = bytearray()
        while self._frames and (not packed or len(packed) + len(self._frames[0]) < READ_BYTES):
            frame = self._frames.popleft()
            self._count(-len(frame))
            packed += _PREFIX.pack(len(frame))
            packed += frame
        return bytes(packed)
