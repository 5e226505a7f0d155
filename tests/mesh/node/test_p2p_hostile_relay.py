"""What relays can do to those they carry, and members to a relay: nothing that lasts."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, PeerId, Status

from mesh.core.errors import PeerError
from mesh.node.p2p import circuit, punch, relay, session
from mesh.node.p2p.circuit import HOP_PROTOCOL, STOP_PROTOCOL, Messages, StreamConduit, peer_of
from mesh.node.p2p.punch import PUNCH_PROTOCOL
from mesh.node.p2p.relay import CIRCUITS_PER_MEMBER_MAX, RATE_BYTES_PER_S, Bucket
from mesh.node.p2p.session import Identity, Session, Stream, open_session
from mesh.node.p2p.traversal import PUNCHES_MAX
from tests.mesh.node.p2p_peers import (
    Members,
    MemoryNet,
    Peer,
    eventually,
    key_of,
    link_up,
    running,
    seed_of,
)
from tests.mesh.node.test_p2p_hostile import misbehave, open_link, session_with
from tests.own_time import OWN_TIME

pytestmark = OWN_TIME


def spawn_in(nursery: trio.Nursery) -> circuit.Spawn:
    async def guarded(task: Callable[..., Awaitable[object]], *args: object) -> None:
        with contextlib.suppress(PeerError):
            await task(*args)

    return lambda task, *args: nursery.start_soon(guarded, task, *args)


async def hop(session: Session, key: bytes) -> tuple[Stream, HopMessage]:
    """Ask for a circuit by hand."""
    stream = await session.open_stream(HOP_PROTOCOL)
    messages = Messages(stream)
    await messages.write(HopMessage(type=HopMessage.CONNECT, peer=peer_of(key)))
    with trio.fail_after(10):
        return stream, await messages.read(HopMessage)


@asynccontextmanager
async def linked_session(peer: Peer, other: Peer) -> AsyncIterator[Session]:
    """A link to `peer` with the key of `other`, of which the session is ours to misuse."""
    async with session_with(peer, other.number) as session:
        await open_link(session)
        await peer.until_linked(other)
        yield session


# -- members against a relay -----------------------------------------------------------------------


async def test_reservations_cost_a_relay_nothing_and_too_many_cost_the_link() -> None:
    r, b = (Peer(n, Members([1, 2, 3])) for n in (1, 2))
    answers: list[int] = []

    async def reserve(session: Session, streams: dict[str, Stream]) -> None:
        with contextlib.suppress(PeerError):
            for _ in range(1000):
                messages = Messages(await session.open_stream(HOP_PROTOCOL))
                await messages.write(HopMessage(type=HopMessage.RESERVE))
                answers.append((await messages.read(HopMessage)).status)

    async with running(r):
        await misbehave(r, b, reserve)
        assert r.downs(b) == ["too many streams"]
        assert set(answers) == {Status.OK} and len(answers) <= session.STREAMS_BURST + 4
        assert r.transport.traversal.relay.circuits == 0
        assert not r.transport.traversal.relay._buckets


async def test_a_member_has_so_many_circuits_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "STREAMS_BURST", 1000)
    r, a, b = (Peer(n, Members([1, 2, 3])) for n in (1, 2, 3))
    async with running(r, b):
        await link_up(b, r)
        async with linked_session(r, a) as own:
            statuses = []
            for _ in range(CIRCUITS_PER_MEMBER_MAX + 5):
                _, answer = await hop(own, key_of(3))
                statuses.append(answer.status)
            assert statuses.count(Status.OK) <= CIRCUITS_PER_MEMBER_MAX
            assert statuses[-1] == Status.RESOURCE_LIMIT_EXCEEDED
            assert r.transport.traversal.relay.circuits <= CIRCUITS_PER_MEMBER_MAX
            # Nobody spoke in them, and nothing else suffered.
            b.transport.send(r.id, b"well")
            await r.until_frames(b, 1)
        await eventually(lambda: r.transport.traversal.relay.circuits == 0)
        await eventually(b.idle)
        assert not b.downs(r) and [type(e).__name__ for e in b.log].count("PeerUp") == 1


async def test_a_relay_connects_members_it_has_links_to_and_nobody_else() -> None:
    r, a, b = (Peer(n, Members([1, 2, 3])) for n in (1, 2, 3))
    async with running(r, b):
        await link_up(b, r)
        async with linked_session(r, a) as own:
            for key, status in (
                (key_of(9), Status.NO_RESERVATION),  # no member
                (key_of(2), Status.NO_RESERVATION),  # oneself
                (key_of(1), Status.NO_RESERVATION),  # the relay
            ):
                assert (await hop(own, key))[1].status == status
            stream = await own.open_stream(HOP_PROTOCOL)
            messages = Messages(stream)
            nobody = HopMessage(type=HopMessage.CONNECT, peer=PeerId(id=b"\xff" * 99))
            await messages.write(nobody)
            assert (await messages.read(HopMessage)).status == Status.MALFORMED_MESSAGE
        assert not b.downs(r)


async def raw_garbage(stream: Stream) -> None:
    await stream.write(b"\x05\xff\xff\xff\xff\xff", 5)


async def endless_length(stream: Stream) -> None:
    await stream.write(b"\xff" * 64, 5)


async def too_long(stream: Stream) -> None:
    await stream.write(b"\xff\x7f" + b"x" * 5000, 5)


async def wrong_kind(stream: Stream) -> None:
    await Messages(stream).write(HopMessage(type=HopMessage.STATUS, status=Status.OK))


async def nothing(stream: Stream) -> None:
    await stream.finish()


@pytest.mark.parametrize("deed", [raw_garbage, endless_length, too_long, wrong_kind, nothing])
@pytest.mark.parametrize("protocol", [HOP_PROTOCOL, STOP_PROTOCOL])
async def test_garbage_costs_the_stream(
    deed: Callable[[Stream], Awaitable[None]], protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    r, a = (Peer(n, Members([1, 2])) for n in (1, 2))
    async with running(r):
        async with linked_session(r, a) as own:
            stream = await own.open_stream(protocol)
            await deed(stream)
            with trio.fail_after(10), contextlib.suppress(PeerError):
                while await stream.read(65536):
                    pass
            assert r.linked(a)
        assert "internal_error" not in caplog.text


async def test_half_asked_questions_end_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuit, "ANSWER_S", 0.3)
    monkeypatch.setattr(relay, "ANSWER_S", 0.3)
    r, a = (Peer(n, Members([1, 2])) for n in (1, 2))
    async with running(r), linked_session(r, a) as own:
        for protocol in (HOP_PROTOCOL, STOP_PROTOCOL):
            stream = await own.open_stream(protocol)
            await stream.write(b"\x20", 5)
            with trio.fail_after(10), contextlib.suppress(PeerError):
                while await stream.read(65536):
                    pass


async def test_a_bucket_lets_through_what_its_rate_allows(autojump_clock: object) -> None:
    bucket = Bucket()
    began_s = trio.current_time()
    for _ in range(100):
        await bucket.take(RATE_BYTES_PER_S // 4)
    took_s = trio.current_time() - began_s
    assert 100 / 4 - relay.BURST_BYTES / RATE_BYTES_PER_S - 1 <= took_s <= 100 / 4


# -- relays against those they carry ---------------------------------------------------------------


async def serve_hops(
    own: Session, handle: Callable[[Messages, Stream, HopMessage], Awaitable[None]]
) -> None:
    """Answer hop streams that the peer opens."""
    async with trio.open_nursery() as nursery:

        async def one(stream: Stream) -> None:
            with contextlib.suppress(PeerError):
                messages = Messages(stream)
                await handle(messages, stream, await messages.read(HopMessage))

        with contextlib.suppress(PeerError):
            await own.serve_streams({HOP_PROTOCOL: lambda s: nursery.start_soon(one, s)})


def two_apart() -> tuple[Peer, Peer, Peer]:
    """1 and 2 reach 3 only."""
    members = Members([1, 2, 3])
    return Peer(1, members), Peer(2, members), Peer(3, members)


async def dial_through_false_relay(
    handle: Callable[[Messages, Stream, HopMessage], Awaitable[None]],
) -> Peer:
    """Node 1 looks for node 2, which cannot be dialled, through member 3, who does `handle`."""
    a, b, r = two_apart()
    tried = trio.Event()

    async def noted(messages: Messages, stream: Stream, asked: HopMessage) -> None:
        tried.set()
        await handle(messages, stream, asked)

    async with running(a), linked_session(a, r) as own, trio.open_nursery() as nursery:
        nursery.start_soon(serve_hops, own, noted)
        a.transport.set_targets({b.id: ["/ip4/127.0.0.1/tcp/1"]})
        with trio.fail_after(20):
            await tried.wait()
        await eventually(lambda: a.transport._dialler.dialled[b.id] >= 2)
        assert not a.linked(b) and a.linked(r) and not a.downs(r)
        nursery.cancel_scope.cancel()
    return a


async def say_ok(messages: Messages) -> None:
    await messages.write(HopMessage(type=HopMessage.STATUS, status=Status.OK))


async def test_a_relay_cannot_be_taken_for_the_far_end() -> None:
    """It has the circuit end at itself, and shakes hands with its own key."""
    refused = trio.Event()

    async def impersonate(messages: Messages, stream: Stream, asked: HopMessage) -> None:
        await say_ok(messages)
        async with trio.open_nursery() as nursery:
            conduit = StreamConduit(stream, "relay", spawn_in(nursery), messages.rest())
            try:
                async with open_session(
                    conduit, Identity(seed_of(3)), lambda _: True, initiator=False, setup_s=5
                ) as inner:
                    await inner.accept_stream(frozenset({"/weft/link/1"}))
            except PeerError:
                pass
            refused.set()

    await dial_through_false_relay(impersonate)
    assert refused.is_set()


@pytest.mark.parametrize("answer", ["garbage", "silence", "echo", "no", "cut"])
async def test_a_relay_that_answers_nonsense_gains_nothing(answer: str) -> None:
    async def misuse(messages: Messages, stream: Stream, asked: HopMessage) -> None:
        if answer == "silence":
            await trio.sleep_forever()
        if answer == "no":
            await messages.write(
                HopMessage(type=HopMessage.STATUS, status=Status.PERMISSION_DENIED)
            )
            return
        await say_ok(messages)
        if answer == "cut":
            await stream.reset()
        elif answer == "garbage":
            await stream.write(b"\x13/multistream/1.0.0\n\x07/noise\n" + b"\xff" * 500, 5)
        else:
            while data := await stream.read(4096):
                await stream.write(data, 5)

    await dial_through_false_relay(misuse)


Tamper = Callable[[int, bytes], list[bytes]]
"""(number of the piece, piece) -> what is passed on instead"""


def tamper_with(monkeypatch: pytest.MonkeyPatch, tamper: Tamper, armed: Callable[[], bool]) -> None:
    """Have relays be honest but for `tamper`, which is asked as long as `armed`."""
    real = StreamConduit.send_all
    counts: dict[StreamConduit, int] = {}

    async def send_all(self: StreamConduit, data: bytes) -> None:
        number = counts[self] = counts.get(self, -1) + 1
        for piece in tamper(number, data) if armed() else [data]:
            await real(self, piece)

    class Tampering(StreamConduit):
        pass

    monkeypatch.setattr(Tampering, "send_all", send_all)
    monkeypatch.setattr(relay, "StreamConduit", Tampering)


async def lose(tamper: Tamper, monkeypatch: pytest.MonkeyPatch) -> tuple[Peer, Peer]:
    """Let 1 and 2 meet through a relay that then begins to `tamper`; returns when it is over."""
    a, b, r = two_apart()
    armed = False
    tamper_with(monkeypatch, tamper, lambda: armed)
    async with running(a, b, r):
        await link_up(a, r)
        await link_up(b, r)
        a.transport.set_targets({b.id: ["/ip4/127.0.0.1/tcp/1"]})
        await a.until_linked(b)
        await b.until_linked(a)
        armed = True
        for peer, other in ((a, b), (b, a)):
            await peer.until(lambda p=peer, o=other: bool(p.downs(o)))  # type: ignore[misc]
        assert a.linked(r) and b.linked(r) and not a.downs(r) and not b.downs(r)
    return a, b


def flipped(data: bytes) -> list[bytes]:
    return [data[:-1] + bytes([data[-1] ^ 1])]


@pytest.mark.parametrize("position", range(6))
async def test_a_relay_that_changes_the_handshake_gets_nobody_linked(
    position: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, r = two_apart()
    tamper_with(
        monkeypatch, lambda n, data: flipped(data) if n == position else [data], lambda: True
    )
    async with running(a, b, r):
        await link_up(a, r)
        await link_up(b, r)
        a.transport.set_targets({b.id: ["/ip4/127.0.0.1/tcp/1"]})
        await eventually(lambda: a.transport._dialler.dialled.get(b.id, 0) >= 2)
        assert not a.linked(b) and not b.linked(a)
        assert a.linked(r) and b.linked(r) and not a.downs(r) and not b.downs(r)


async def test_a_relay_that_changes_a_byte_ends_the_link_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = await lose(lambda _, data: flipped(data), monkeypatch)
    assert all("internal" not in reason for reason in a.downs(b) + b.downs(a))
    assert "internal_error" not in caplog.text


async def test_a_relay_that_turns_the_order_round_ends_the_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: list[bytes] = []

    def reorder(_: int, data: bytes) -> list[bytes]:
        held.append(data)
        return [] if len(held) % 2 else [held.pop(), held.pop()]

    await lose(reorder, monkeypatch)


async def test_a_relay_that_stalls_is_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    began_s = trio.current_time()
    a, b = await lose(lambda _number, _data: [], monkeypatch)
    assert "silent" in a.downs(b) + b.downs(a)
    assert trio.current_time() - began_s < 10


async def test_who_comes_through_a_relay_has_to_be_who_the_relay_says() -> None:
    """The relay names member 1, and it is itself that shakes hands."""
    members = Members([1, 2, 3])
    b, r = Peer(2, members), Peer(3, members)
    async with running(b), linked_session(b, r) as own, trio.open_nursery() as nursery:
        nursery.start_soon(own.serve_streams, {})
        stream, rest = await circuit.ask_stop(own, key_of(1))
        conduit = StreamConduit(stream, "", spawn_in(nursery), rest)
        with pytest.raises(PeerError):
            async with open_session(
                conduit, Identity(seed_of(3)), lambda _: True, initiator=True, setup_s=5
            ) as inner:
                await inner.open_stream("/weft/link/1")
                raise AssertionError("let in")
            raise PeerError(inner.ended)
        await eventually(lambda: not b.transport._pending)
        nursery.cancel_scope.cancel()


async def test_a_relay_may_not_name_strangers_or_itself() -> None:
    b, r = (Peer(n, Members([2, 3])) for n in (2, 3))
    async with running(b), linked_session(b, r) as own:
        for key in (key_of(9), key_of(3), key_of(2)):
            with pytest.raises(PeerError):
                await circuit.ask_stop(own, key)
        assert b.linked(r)


# -- hole punching ---------------------------------------------------------------------------------


async def test_punches_that_are_begun_and_left_hold_nothing(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """A relayed link whose other end opens punching streams and says no more."""
    net = MemoryNet()
    net.cut = {frozenset((1, 2))}
    members = Members([1, 2, 3])
    a, b, _ = peers = [Peer(n, members, net=net.view(n)) for n in (1, 2, 3)]
    async with running(*peers):
        for peer in peers:
            peer.target(*peers)
        await a.until_linked(b)
        await b.until_linked(a)
        link = a.transport._links[b.id]
        for number in range(12):
            with contextlib.suppress(PeerError):  # those beyond the bound are reset
                stream = await link.session.open_stream(PUNCH_PROTOCOL)
                if number % 2:
                    await stream.write(b"\x04\x08\x64", 5)
        assert b.transport.traversal._punching <= PUNCHES_MAX < 12
        await trio.sleep(2 * punch.ANSWER_S + 1)
        assert b.transport.traversal._punching == 0
        assert a.linked(b) and not a.downs(b)
