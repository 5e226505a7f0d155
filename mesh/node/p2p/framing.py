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

_PREFIX = struct.Struct("!I")


def pack(frame: bytes) -> bytes:
    return _PREFIX.pack(len(frame)) + frame


class FrameReader:
    """Cuts what `read(bytes_max)` returns into frames. Unusable after it has raised."""

    def __init__(self, read: Callable[[int], Awaitable[bytes]], bytes_max: int) -> None:
        self._read = read
        self._bytes_max = bytes_max
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
        while len(self._buffer) < size:
            piece = await self._read(READ_BYTES)
            if not piece:
                raise EOFError
            self._buffer += piece


class SendQueue:
    """Frames waiting for one stream, bounded in number and in bytes."""

    def __init__(
        self, frames_max: int = QUEUE_FRAMES_MAX, bytes_max: int = QUEUE_BYTES_MAX
    ) -> None:
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._frames_max = frames_max
        self._bytes_max = bytes_max
        self._filled = trio.Event()

    def put(self, frame: bytes) -> bool:
        """Queue a frame; False, and nothing is queued, if it does not fit any more."""
        if len(self._frames) >= self._frames_max or self._bytes + len(frame) > self._bytes_max:
            return False
        self._frames.append(frame)
        self._bytes += len(frame)
        self._filled.set()
        return True

    def clear(self) -> None:
        """Forget what waits. A frame that is being written is not affected: frames stay whole."""
        self._frames.clear()
        self._bytes = 0

    async def take(self) -> bytes:
        """Wait for frames and return them packed: one, or as many small ones as fill one read."""
        while not self._frames:
            self._filled = trio.Event()
            await self._filled.wait()
        packed = bytearray()
        while self._frames and (not packed or len(packed) + len(self._frames[0]) < READ_BYTES):
            frame = self._frames.popleft()
            self._bytes -= len(frame)
            packed += _PREFIX.pack(len(frame))
            packed += frame
        return bytes(packed)
