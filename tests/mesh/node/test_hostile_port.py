"""What reaches a node's port, on a node that is a process: it answers within a second meanwhile,
holds little more memory afterwards, and keeps its other links."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Awaitable, Callable

import pytest
import trio

from mesh.core import wire
from mesh.core.errors import PeerError
from mesh.node.p2p.framing import FRAME_BYTES_MAX, RECEIVING_BYTES_MAX, pack
from mesh.node.p2p.link import CHANNEL_PROTOCOLS
from mesh.node.p2p.session import Stream
from mesh.node.p2p.transport import PENDING_MAX
from tests.mesh.node.hostile_members import MIB, Victims, linked, session_of
from tests.mesh.node.processes import DEADLINE_S

pytestmark = pytest.mark.trio

PUSH, SYNC = CHANNEL_PROTOCOLS["push"], CHANNEL_PROTOCOLS["sync"]
HALF_OPEN = 500
SLOW = 64


async def until_shut(stream: trio.SocketStream) -> None:
    """The node has closed the connection."""
    with trio.fail_after(DEADLINE_S), contextlib.suppress(trio.BrokenResourceError):
        while await stream.receive_some(65536):
            pass


async def connected(victims: Victims) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", victims.a.port)


async def test_garbage_on_the_port(victims: Victims) -> None:
    pieces = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),  # a TLS client's hello
        b"SSH-2.0-OpenSSH_9.2\r\n",
        bytes(range(256)) * 1000,
        b"\x13/multistream/1.0.0\n" + b"\xff" * 100_000,
        b"\x13/multistream/1.0.0\n\x07/noise\n" + b"\xff\xff" + b"n" * 65535,
        struct.pack("!I", 1 << 30) + b"g" * MIB,
    ]

    async def throw(piece: bytes) -> None:
        stream = await connected(victims)
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(piece)
                await stream.send_eof()
            await until_shut(stream)

    with victims.unharmed():
        async with trio.open_nursery() as nursery:
            for piece in pieces * 5:
                nursery.start_soon(throw, piece)


async def test_a_flood_of_half_open_connections(victims: Victims) -> None:
    """Beyond a few dozen they wait in the kernel, and each makes room for the next in its turn."""
    before = victims.a.usage().files
    with victims.unharmed():
        streams: list[trio.SocketStream] = []

        async def connect() -> None:
            with contextlib.suppress(OSError):  # the kernel's queue may be full, as it should be
                streams.append(await connected(victims))

        async with trio.open_nursery() as nursery:
            for _ in range(HALF_OPEN):
                nursery.start_soon(connect)
            await trio.to_thread.run_sync(victims.answers)
            async with linked(victims) as member:  # who is a member still gets in
                await member.until_taken()
                assert not member.ended.is_set()
            nursery.cancel_scope.deadline = trio.current_time() + 5
        most = victims.a.usage().files - before
        assert most < 2 * PENDING_MAX
        for stream in streams:
            await stream.aclose()
        victims.a.until(lambda: victims.a.usage().files <= before + 1, "their sockets are closed")


async def test_slow_loris_handshakes(victims: Victims) -> None:
    """A byte now and then, enough not to be silent: it ends, and is in nobody's way meanwhile."""
    hello = b"\x13/multistream/1.0.0\n\x07/noise\n" + struct.pack("!H", 32) + b"e" * 32

    async def drip() -> None:
        stream = await connected(victims)
        async with stream:
            with trio.fail_after(DEADLINE_S), contextlib.suppress(trio.BrokenResourceError):
                for number in range(10_000):
                    await stream.send_all(hello[number : number + 1] or b"\x00")
                    with trio.move_on_after(0.3):
                        while await stream.receive_some(65536):
                            pass
                        return
                raise AssertionError("it never ends")

    with victims.unharmed():
        async with trio.open_nursery() as nursery:
            for _ in range(SLOW):
                nursery.start_soon(drip)
            await trio.to_thread.run_sync(victims.answers)
            async with linked(victims) as member:
                await member.until_taken()
                assert not member.ended.is_set()


async def announce_a_gibibyte(victims: Victims) -> None:
    async with session_of(victims) as (session, streams):
        await streams[PUSH].write(struct.pack("!I", 1 << 30), 5)
        await trio.sleep_forever()
    assert session.ended


async def half_a_frame(victims: Victims) -> None:
    """All but the last byte of the largest frame there is, on both channels, and then beats."""
    async with session_of(victims) as (session, streams):
        for channel in (PUSH, SYNC):
            await streams[channel].write(struct.pack("!I", FRAME_BYTES_MAX), 5)
            await streams[channel].write(bytes(FRAME_BYTES_MAX - 1), 5)
        await trio.sleep_forever()
    assert session.ended


async def ignore_the_window(victims: Victims) -> None:
    """Deep in the middle of a frame that the node never gets round to finish."""
    async with session_of(victims) as (session, streams):
        with contextlib.suppress(PeerError):
            while True:
                streams[PUSH]._muxed.send_window = 1 << 30
                await streams[PUSH].write(pack(wire.encode(wire.Same())) * 10_000, 5)
    assert session.ended


async def drop_everything(victims: Victims) -> None:
    """Links that end as soon as they are there."""
    for _ in range(3):
        async with session_of(victims) as (session, _streams):
            session.kill("enough")


@pytest.mark.parametrize(
    "deed", [announce_a_gibibyte, half_a_frame, ignore_the_window, drop_everything],
    ids=lambda deed: deed.__name__,
)  # fmt: skip
async def test_streams_that_break_the_rules(
    victims: Victims, deed: Callable[[Victims], Awaitable[None]]
) -> None:
    with victims.unharmed(), trio.move_on_after(10):
        await deed(victims)


async def test_many_members_each_with_half_a_frame(victims: Victims) -> None:
    """What each may have on the way is bounded, and what all have together is, too."""
    crowd = 40
    let_in = settled = 0

    async def send_most(streams: dict[str, Stream]) -> None:
        nonlocal let_in
        let_in += 1
        for channel in (PUSH, SYNC):
            await streams[channel].write(struct.pack("!I", FRAME_BYTES_MAX), 5)
            await streams[channel].write(bytes(FRAME_BYTES_MAX - 1), 5)

    async def hold() -> None:
        nonlocal settled
        over = False
        with contextlib.suppress(PeerError):
            async with session_of(victims) as (_session, streams):
                with contextlib.suppress(PeerError):
                    await send_most(streams)
                settled, over = settled + 1, True
                await trio.sleep_forever()
        settled += not over

    before = victims.a.usage().resident_bytes
    with victims.unharmed():
        async with trio.open_nursery() as nursery:
            for _ in range(crowd):
                nursery.start_soon(hold)
            with trio.fail_after(DEADLINE_S):
                while settled < crowd:
                    await trio.sleep(0.05)
            assert let_in > crowd / 2
            await trio.to_thread.run_sync(victims.answers)
            grown = victims.a.usage().resident_bytes - before
            # Beside what is counted: buffers that grow are there twice, and Yamux reads ahead.
            assert grown < 6 * RECEIVING_BYTES_MAX, f"{grown // MIB} MiB of unfinished frames"
            nursery.cancel_scope.cancel()


async def test_a_member_that_asks_and_never_reads(victims: Victims) -> None:
    """Its answers wait for it within bounds, and cost nobody else anything."""
    with victims.unharmed(), trio.move_on_after(20):
        async with session_of(victims) as (session, streams):
            everything = wire.encode(wire.Sync(victims.mesh_id, bytes(16), {}, True, True, 1))
            with contextlib.suppress(PeerError):
                while not session.ended:
                    await streams[SYNC].write(pack(everything), 30)
        assert session.ended
