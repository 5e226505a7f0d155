"""Asking to become a member: the one thing a stranger can do."""

from __future__ import annotations

import contextlib
import struct
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mesh.core.errors import BadInput, NotFound, NotReady, PeerError, Refused
from mesh.node.p2p.join import (
    ANSWER_BYTES_MAX,
    JOIN_PROTOCOL,
    REQUEST_BYTES_MAX,
    request_join,
)
from mesh.node.p2p.link import CHANNEL_PROTOCOLS, LINK_PROTOCOL
from mesh.node.p2p.session import Identity, Session, open_session
from mesh.node.p2p.strangers import JOIN_BURST, JOINS_PER_S, STRANGERS_MAX
from mesh.node.p2p.tcp import Address, TcpNet

sys.path.insert(0, str(Path(__file__).parent))
from tests.mesh.node.p2p_peers import (
    LOOPBACK,
    Members,
    MemoryNet,
    Peer,
    eventually,
    key_of,
    nothing_leaks,
    running,
    seed_of,
)
from tests.own_time import OWN_TIME

pytestmark = OWN_TIME

TIMEOUT_S = 10.0


class Desk:
    """A join handler that says what it is told to say."""

    def __init__(self, answer: bytes | Exception = b"welcome") -> None:
        self.answer = answer
        self.asked: list[tuple[bytes, bytes]] = []
        self.open = trio.Event()
        self.open.set()

    async def __call__(self, key: bytes, request: bytes) -> bytes:
        self.asked.append((key, request))
        await self.open.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def ask(inviter: Peer, request: bytes = b"let me in", number: int = 9) -> bytes:
    addrs = inviter.transport.listen_addrs()
    return await request_join(seed_of(number), addrs, key_of(1), request, TIMEOUT_S)


async def test_a_request_is_answered_and_leaves_nothing_behind() -> None:
    desk = Desk(b"r" * ANSWER_BYTES_MAX)
    a = Peer(1, Members([1]), join_handler=desk)
    async with running(a):
        a.transport.open_joining(True)
        request = b"q" * REQUEST_BYTES_MAX
        async with nothing_leaks():
            assert await ask(a, request) == b"r" * ANSWER_BYTES_MAX
            await eventually(a.idle)
        assert desk.asked == [(key_of(9), request)]
        assert not a.log
        assert a.transport._strangers.count == 0


@pytest.mark.parametrize(
    ("error", "raised", "says"),
    [
        (Refused("the token has been used"), Refused, "the token has been used"),
        (NotFound("no such token"), Refused, "no such token"),
        (BadInput("not a join request"), Refused, "not a join request"),
        (NotReady("still starting"), NotReady, "still starting"),
        (ZeroDivisionError("secret"), NotReady, "failed to handle the request"),
        (Refused("bell\x07 and\nnew line"), Refused, "bell andnew line"),
        (Refused(""), Refused, "no reason given"),
    ],
)
async def test_a_refusal_reaches_the_client_with_its_reason(
    error: Exception, raised: type[Exception], says: str
) -> None:
    a = Peer(1, Members([1]), join_handler=Desk(error))
    async with running(a):
        a.transport.open_joining(True)
        with pytest.raises(raised, match=says):
            await ask(a)
        await eventually(a.idle)


async def test_an_answer_that_is_too_large_is_our_mistake_and_not_the_clients() -> None:
    a = Peer(1, Members([1]), join_handler=Desk(b"r" * (ANSWER_BYTES_MAX + 1)))
    async with running(a):
        a.transport.open_joining(True)
        with pytest.raises(NotReady):
            await ask(a)


async def test_nobody_joins_while_joining_is_closed() -> None:
    desk = Desk()
    a = Peer(1, Members([1]), join_handler=desk)
    async with running(a):
        with pytest.raises(Refused, match="takes no joins now"):
            await ask(a)
        a.transport.open_joining(True)
        assert await ask(a) == b"welcome"
        a.transport.open_joining(False)
        with pytest.raises(Refused, match="takes no joins now"):
            await ask(a)
        assert len(desk.asked) == 1


async def test_a_node_without_a_handler_takes_no_joins() -> None:
    a = Peer(1, Members([1]))
    async with running(a):
        a.transport.open_joining(True)
        with pytest.raises(Refused):
            await ask(a)


async def test_a_member_may_ask_again() -> None:
    """Its first answer may have been lost on the way."""
    desk = Desk()
    a = Peer(1, Members([1, 2]), join_handler=desk)
    async with running(a):
        a.transport.open_joining(True)
        assert await ask(a, number=2) == b"welcome"


async def test_an_inviter_that_is_not_there_is_not_ready() -> None:
    async with nothing_leaks():
        with pytest.raises(NotReady, match=r"/ip4/127.0.0.1/tcp/1: .*reachable"):
            await request_join(seed_of(9), ["/ip4/127.0.0.1/tcp/1"], key_of(1), b"x", TIMEOUT_S)


async def test_somebody_else_at_the_address_learns_nothing() -> None:
    desk = Desk()
    other = Peer(2, Members([2]), join_handler=desk)
    async with running(other):
        other.transport.open_joining(True)
        with pytest.raises(NotReady):
            await ask(other)
        # Not even who we are: our key would have been shown after theirs.
        assert not desk.asked and other.transport._strangers.tokens == JOIN_BURST
        await eventually(other.idle)


async def test_the_address_that_answers_is_found_among_those_that_do_not() -> None:
    a, other = Peer(1, Members([1]), join_handler=Desk()), Peer(2, Members([2]))
    async with running(a, other):
        a.transport.open_joining(True)
        addrs = [
            "/ip4/127.0.0.1/tcp/1",
            other.transport.listen_addrs()[0],
            a.transport.listen_addrs()[0],
        ]
        assert await request_join(seed_of(9), addrs, key_of(1), b"x", TIMEOUT_S) == b"welcome"


async def test_an_inviter_that_takes_too_long_is_not_ready() -> None:
    desk = Desk()
    desk.open = trio.Event()
    a = Peer(1, Members([1]), join_handler=desk)
    async with running(a):
        a.transport.open_joining(True)
        async with nothing_leaks():
            with pytest.raises(NotReady, match="timed out"):
                await request_join(
                    seed_of(9), a.transport.listen_addrs(), key_of(1), b"x", timeout_s=0.3
                )
            await eventually(a.idle)
        assert len(desk.asked) == 1


async def test_a_port_that_says_nothing_is_not_ready() -> None:
    listener = await TcpNet().listen(Address.parse(LOOPBACK))
    try:
        with pytest.raises(NotReady):
            await request_join(seed_of(9), [listener.addr], key_of(1), b"x", timeout_s=0.3)
    finally:
        listener.close()


@pytest.mark.parametrize("request_bytes", [b"", b"x" * (REQUEST_BYTES_MAX + 1)])
async def test_a_request_out_of_bounds_is_bad_input(request_bytes: bytes) -> None:
    with pytest.raises(BadInput):
        await request_join(seed_of(9), [LOOPBACK], key_of(1), request_bytes, TIMEOUT_S)


@pytest.mark.parametrize("addrs", [[], ["gateway:4001"]])
async def test_addresses_that_are_none_are_bad_input(addrs: list[str]) -> None:
    with pytest.raises(BadInput):
        await request_join(seed_of(9), addrs, key_of(1), b"x", TIMEOUT_S)


async def test_a_stranger_reaches_nothing_but_join() -> None:
    a = Peer(1, Members([1]), join_handler=Desk())
    async with running(a):
        a.transport.open_joining(True)
        address = Address.parse(a.transport.listen_addrs()[0])
        tried = 0
        for protocol in (LINK_PROTOCOL, *CHANNEL_PROTOCOLS.values(), "/ipfs/id/1.0.0"):
            conduit = await TcpNet().connect(address)
            async with open_session(
                conduit, Identity(seed_of(9)), lambda key: True, initiator=True, setup_s=5
            ) as session:
                with pytest.raises(PeerError, match="not supported"):
                    await session.open_stream(protocol)
                tried += 1
        assert tried == 4 and not a.log


async def test_strangers_get_few_places() -> None:
    desk = Desk()
    desk.open = trio.Event()
    a = Peer(1, Members([1]), join_handler=desk)
    answers: list[str] = []

    async def one(number: int) -> None:
        try:
            answers.append((await ask(a, number=number)).decode())
        except Refused:
            answers.append("refused")

    async with running(a):
        a.transport.open_joining(True)
        async with trio.open_nursery() as nursery:
            for number in range(20, 20 + 2 * STRANGERS_MAX):
                nursery.start_soon(one, number)
            await eventually(lambda: len(answers) == STRANGERS_MAX)
            desk.open.set()
        assert sorted(answers) == ["refused"] * STRANGERS_MAX + ["welcome"] * STRANGERS_MAX


async def test_strangers_get_a_place_not_too_often(autojump_clock: MockClock) -> None:
    net = MemoryNet(latency_s=0.001)
    a = Peer(1, Members([1]), join_handler=Desk(), net=net.view(1))
    async with running(a):
        a.transport.open_joining(True)
        began_s, welcome = trio.current_time(), 0
        for number in range(3 * JOIN_BURST):
            with contextlib.suppress(Refused):
                await request_join(
                    seed_of(20 + number),
                    a.transport.listen_addrs(),
                    key_of(1),
                    b"x",
                    TIMEOUT_S,
                    net.view(9),
                )
                welcome += 1
            await eventually(lambda: a.transport._strangers.count == 0)
        earned = JOINS_PER_S * (trio.current_time() - began_s)
        assert earned < JOIN_BURST
        assert JOIN_BURST <= welcome <= JOIN_BURST + earned + 1


async def say_nothing(session: Session) -> None:
    await (await session.open_stream(JOIN_PROTOCOL)).read(100)


async def trickle(session: Session) -> None:
    stream = await session.open_stream(JOIN_PROTOCOL)
    await stream.write(struct.pack("!I", 100), 5)
    while True:
        await stream.write(b"x", 5)
        await trio.sleep(1)


async def ping(session: Session) -> None:
    while True:
        await session._muxer._write_frame(struct.pack("!BBHII", 0, 2, 1, 0, 7))
        await trio.sleep(1)


@pytest.mark.parametrize("pastime", [say_nothing, trickle, ping])
async def test_a_stranger_that_does_not_come_to_the_point_is_sent_away(
    pastime: Callable[[Session], Awaitable[None]], autojump_clock: MockClock
) -> None:
    net = MemoryNet()
    desk = Desk()
    a = Peer(1, Members([1]), join_handler=desk, net=net.view(1))
    async with running(a):
        a.transport.open_joining(True)
        conduit = await net.view(9).connect(Address.parse(a.transport.listen_addrs()[0]))
        began_s = trio.current_time()
        with contextlib.suppress(PeerError):
            async with open_session(
                conduit, Identity(seed_of(9)), lambda key: True, initiator=True, setup_s=5
            ) as session:
                await pastime(session)
        assert trio.current_time() - began_s <= 11.5
        await eventually(a.idle)
        assert not desk.asked
