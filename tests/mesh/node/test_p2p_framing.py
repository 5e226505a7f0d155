"""Frames and the send queue."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from mesh.core.errors import BadInput, PeerError
from mesh.node.p2p.framing import (
    FRAME_BYTES_MAX,
    READ_BYTES,
    FrameReader,
    Receiving,
    SendQueue,
    Tally,
    pack,
)
from mesh.node.p2p.tcp import Address


class Pieces:
    """A byte stream cut at the places given, that remembers what was asked of it."""

    def __init__(self, data: bytes, cuts: list[int]) -> None:
        edges = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
        self._pieces = [data[a:b] for a, b in pairwise(edges) if b > a]
        self.asked = 0

    async def read(self, bytes_max: int) -> bytes:
        assert bytes_max <= READ_BYTES
        self.asked += 1
        if not self._pieces:
            return b""
        piece = self._pieces.pop(0)
        if len(piece) > bytes_max:
            self._pieces.insert(0, piece[bytes_max:])
        return piece[:bytes_max]


@given(st.lists(st.binary(min_size=1, max_size=300)), st.lists(st.integers(0, 10**6)))
def test_frames_survive_any_cut(frames: list[bytes], cuts: list[int]) -> None:
    async def main() -> None:
        reader = FrameReader(Pieces(b"".join(map(pack, frames)), cuts).read, 300)
        assert [await reader.frame() for _ in frames] == frames
        with pytest.raises(EOFError):
            await reader.frame()

    trio.run(main)


@pytest.mark.parametrize("size", [0, 301, 2**32 - 1])
def test_a_size_out_of_bounds_is_refused_before_the_frame_is_waited_for(size: int) -> None:
    async def main() -> None:
        pieces = Pieces(struct.pack("!I", size), [])
        with pytest.raises(PeerError, match=str(size)):
            await FrameReader(pieces.read, 300).frame()
        assert pieces.asked == 1

    trio.run(main)


def test_the_end_inside_a_frame_is_an_end() -> None:
    async def main() -> None:
        with pytest.raises(EOFError):
            await FrameReader(Pieces(pack(b"abc")[:-1], []).read, 300).frame()

    trio.run(main)


def test_the_queue_is_bounded_in_frames_and_bytes() -> None:
    queue = SendQueue(Tally(), frames_max=3, bytes_max=10)
    assert queue.put(b"12345") and queue.put(b"12345")
    assert not queue.put(b"1")
    queue.clear()
    assert all(queue.put(b"1") for _ in range(3))
    assert not queue.put(b"1")


def test_the_queue_takes_several_frames_of_the_largest_size() -> None:
    queue = SendQueue(Tally())
    assert all(queue.put(bytes(FRAME_BYTES_MAX)) for _ in range(8))


def test_queues_tell_what_waits_in_all_of_them() -> None:
    async def main() -> None:
        tally = Tally()
        one, other = SendQueue(tally), SendQueue(tally)
        assert one.put(b"12345") and other.put(b"123") and other.put(b"4")
        assert tally.bytes == 9
        await other.take()
        assert (tally.bytes, other.bytes) == (5, 0)
        one.close()
        assert one.put(b"late") and tally.bytes == 0

    trio.run(main)


def test_who_holds_half_a_frame_makes_room_when_all_hold_too_much() -> None:
    """Of readers above an even share the one that began first; who holds little is let alone."""
    shut: list[int] = []
    size = 4 * READ_BYTES
    receiving = Receiving(3 * size)

    def reader(number: int, held: int) -> FrameReader:
        data = pack(bytes(size))[: held + 4]
        return FrameReader(Pieces(data, []).read, size, receiving, lambda: shut.append(number))

    async def main() -> None:
        readers = [reader(0, 2 * READ_BYTES), *(reader(n, size - 1) for n in range(1, 3))]
        for each in readers:
            with pytest.raises(EOFError):
                await each.frame()
        assert not shut and receiving.bytes == 2 * READ_BYTES + 2 * (size - 1) + 3 * 4
        honest = reader(3, size)
        assert await honest.frame() == bytes(size)
        assert shut == [1]
        with pytest.raises(EOFError):  # it goes on with the next frame
            await honest.frame()
        for each in readers:
            each.close()
        assert receiving.bytes == 0

    trio.run(main)


def test_small_frames_are_taken_together_and_large_ones_alone() -> None:
    async def main() -> None:
        queue = SendQueue(Tally())
        small, large = b"s" * 100, b"l" * (2 * READ_BYTES)
        for frame in (small, small, large, small):
            assert queue.put(frame)
        assert await queue.take() == pack(small) * 2
        assert await queue.take() == pack(large)
        assert await queue.take() == pack(small)

    trio.run(main)


def test_taking_waits_for_something_to_take() -> None:
    async def main() -> None:
        queue = SendQueue(Tally())
        async with trio.open_nursery() as nursery:
            taken: list[bytes] = []

            async def take() -> None:
                taken.append(await queue.take())

            nursery.start_soon(take)
            await wait_all_tasks_blocked()
            assert not taken
            queue.put(b"x")
        assert taken == [pack(b"x")]

    trio.run(main)


@pytest.mark.parametrize(
    "text",
    ["/ip4/192.0.2.1/tcp/4001", "/ip6/2001:db8::1/tcp/1", "/dns4/gw.example/tcp/65535"],
)
def test_a_multiaddr_reads_back_as_it_was(text: str) -> None:
    assert str(Address.parse(text)) == text
    assert str(Address.parse(text + "/p2p/12D3KooW")) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "192.0.2.1:4001",
        "/ip4/192.0.2.1",
        "/ip4/192.0.2.300/tcp/1",
        "/ip4/::1/tcp/1",
        "/ip6/192.0.2.1/tcp/1",
        "/ip4/192.0.2.1/udp/1",
        "/ip4/192.0.2.1/tcp/65536",
        "/ip4/192.0.2.1/tcp/-1",
        "/ip4/192.0.2.1/tcp/١",
        "/ip4/192.0.2.1/tcp/1/ws",
        "/dns4//tcp/1",
        "/unix/x/tcp/1",
    ],
)
def test_what_is_no_tcp_multiaddr_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        Address.parse(text)
