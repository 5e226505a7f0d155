"""Members with a real key and bad intentions, on real links to nodes that are processes."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from random import Random
from typing import Any, TypeAlias

import msgpack
import trio

from crdt.chain import Chain
from crdt.delta import Delta
from crdt.header import ChainId, Epoch, Header
from mesh.core import ed25519, wire
from mesh.core.errors import PeerError
from mesh.core.ops import MESH_SHARD, NodeId
from mesh.node.p2p.events import Channel, FrameIn, PeerDown, PeerUp
from mesh.node.p2p.framing import pack
from mesh.node.p2p.link import LINK_PROTOCOL, PROTOCOLS
from mesh.node.p2p.session import Identity, Session, Stream, open_session
from mesh.node.p2p.tcp import Address, TcpNet
from mesh.node.p2p.transport import Transport
from tests.mesh.node.processes import DEADLINE_S, Process, id_of, seed_of

MIB = 1 << 20
ANSWER_S_MAX = 1.0
GROWTH_BYTES_MAX = 64 * MIB
IMPORT_MAX = 1000
BEAT_S = 0.5
SILENCE_S = 3.0
"""After which a node gives up a peer."""
TRIES = 5
"""Answers of which the fastest counts: the machine is shared."""


Said: TypeAlias = wire.Frame | bytes


class Victims:
    """Two nodes that are linked, and members who have no node: each misbehaves once, since who is
    caught is not let in again for a while."""

    def __init__(self, a: Process, b: Process, loose: Sequence[str]) -> None:
        self.a, self.b = a, b
        self._loose = iter(loose)
        self._numbers = itertools.count(100)

    def fresh(self) -> str:
        return next(self._loose)

    @property
    def mesh_id(self) -> bytes:
        return ed25519.mesh_id(ed25519.public_key(seed_of("root of " + self.a.name)))

    def fill(self, count: int) -> None:
        """Have the first node claim so many endpoints."""
        self.a.add_vpc("full", 99)
        subnet = {"name": "s", "vpc": "full", "cidr": "10.0.0.0/16"}
        assert self.a.ask("POST", "/v1/subnets", subnet)[0] == 200
        for start in range(0, count, IMPORT_MAX):
            endpoints = [
                {"vpc": "full", "ip": f"10.0.{n // 250 + 1}.{n % 250 + 2}"}
                for n in range(start, min(count, start + IMPORT_MAX))
            ]
            code, answer = self.a.ask("POST", "/v1/endpoints/import", {"endpoints": endpoints})
            assert code == 200, answer
        self.until_equal()

    def until_equal(self) -> None:
        """What both nodes hold is the same."""

        def equal() -> bool:
            a, b = self.a.status()["shards"], self.b.status()["shards"]
            return all(a[s]["digest"] == b[s]["digest"] for s in a.keys() & b.keys())

        self.a.until(equal, f"the digests of {self.b.name}")

    def answers(self) -> None:
        """The node answers `status` within a second, less what others on the machine took of it."""
        took_s = []
        for _ in range(TRIES):
            start_s = time.monotonic() - self.a.waited_s()
            assert self.a.status()["ready"]
            took_s.append(time.monotonic() - self.a.waited_s() - start_s)
            if took_s[-1] <= ANSWER_S_MAX:
                return
        raise AssertionError(f"status took {took_s} s")

    def converges(self) -> None:
        """What either node writes reaches the other."""
        for writer, reader in ((self.a, self.b), (self.b, self.a)):
            number = next(self._numbers)
            name = f"v{number}"
            writer.add_vpc(name, number)
            self._until_known(reader, name, writer)

    @staticmethod
    def _until_known(reader: Process, vpc: str, writer: Process) -> None:
        reader.until(lambda: vpc in reader.vpcs(), f"{vpc} of {writer.name}")

    @contextmanager
    def unharmed(self) -> Iterator[None]:
        """Whatever the block does: afterwards the node answers, holds little more memory, and has
        neither lost its link with the other node nor anything on the way. Where others took so
        much of the machine that one of the two may have been silent, the link may be a new one."""
        nodes = (self.a, self.b)
        waited_s = [node.waited_s() for node in nodes]
        before = {node.name: node.usage() for node in nodes}
        marks = {node.name: node.log.stat().st_size for node in nodes}
        yield
        self.answers()
        self.converges()
        lacked_s = max(n.waited_s() - s for n, s in zip(nodes, waited_s, strict=True))
        for node in nodes:
            allowed_bytes = before[node.name].resident_bytes + GROWTH_BYTES_MAX
            node.until(
                lambda node=node, most=allowed_bytes: node.usage().resident_bytes <= most,  # type: ignore[misc]
                f"memory within {GROWTH_BYTES_MAX // MIB} MiB of before",
            )
            said = node.log.read_bytes()[marks[node.name] :].decode(errors="replace")
            other = self.b if node is self.a else self.a
            if lacked_s < SILENCE_S:
                assert f"event=peer.down peer={other.name}" not in said, said[-3000:]
            assert "internal" not in said and "Traceback" not in said, said[-3000:]


class Hostile:
    """A member's end of its links: what it heard, and what it says."""

    def __init__(self, name: str, transport: Transport, victims: Victims) -> None:
        self.name = name
        self.id = id_of(name)
        self.transport = transport
        self.victims = victims
        self.heard: list[wire.Frame] = []
        self.ended = trio.Event()
        """its link to the first node has ended"""
        self.why = ""
        self._news = trio.Event()

    def sign(self, message: bytes) -> bytes:
        return ed25519.sign(seed_of(self.name), message)

    def chain(self, shard: str = MESH_SHARD, counter: int = 1) -> Chain:
        """An empty chain of its own, to be lied with."""
        return Chain(ChainId(self.id, shard), Epoch(counter, b"nonce..."))

    def flush(self, chain: Chain) -> Delta:
        """Seal what was put into `chain` since the last time; the delta of just that."""
        lo = chain.header.hi if chain.header else 0
        chain.seal(self.victims.mesh_id, self.sign, ())
        return chain.since(chain.epoch, lo)

    def forge(self, header: Header, **fields: Any) -> Header:
        """Another header, signed as well."""
        return header._replace(**fields).signed(self.victims.mesh_id, self.sign)

    def say(self, *frames: Said, channel: Channel = "sync") -> None:
        for frame in frames:
            data = frame if isinstance(frame, bytes) else wire.encode(frame)
            self.transport.send(id_of(self.victims.a.name), data, channel)

    async def say_all(self, make: Callable[[Hostile], Iterable[Said]]) -> None:
        """Say what `make` makes, in a thread: its heart has to go on beating meanwhile."""
        for data in await trio.to_thread.run_sync(lambda: list(make(self))):
            self.say(data)
            await trio.lowlevel.checkpoint()

    async def until_heard(self, *kinds: type) -> None:
        """Until frames of all these kinds have come since the last call."""
        with trio.fail_after(DEADLINE_S):
            while not set(kinds) <= {type(frame) for frame in self.heard}:
                await self._news.wait()
        self.heard.clear()

    async def until_ended(self) -> str:
        """The reason for which the node ended the link."""
        with trio.fail_after(DEADLINE_S):
            await self.ended.wait()
        return self.why

    async def until_taken(self) -> None:
        """Until everything said has been worked through, or the link has ended for it.

        A WANT of one unknown chain is answered with DONE, in its turn."""
        number = 1 << 40
        self.say(wire.Want(number, {b"--------": ()}))
        with trio.move_on_after(DEADLINE_S) as patience:
            while not self.ended.is_set():
                if wire.Done(number) in self.heard:
                    return
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._either, self._news, nursery.cancel_scope)
                    nursery.start_soon(self._either, self.ended, nursery.cancel_scope)
        assert not patience.cancelled_caught, "the node has neither answered nor ended the link"

    @staticmethod
    async def _either(event: trio.Event, scope: trio.CancelScope) -> None:
        await event.wait()
        scope.cancel()

    async def listen(self) -> None:
        async for event in self.transport.events:
            match event:
                case FrameIn():
                    with contextlib.suppress(PeerError):  # who names more than it may hears more
                        if (frame := wire.decode(event.frame)) is not None:
                            self.heard.append(frame)
                case PeerDown() if event.node == id_of(self.victims.a.name):
                    self.why = event.reason
                    self.ended.set()
                case PeerUp():
                    pass
            self._news.set()
            self._news = trio.Event()


@asynccontextmanager
async def linked(
    victims: Victims, *, ahead_ns: int = 0, speaks: wire.Versions = wire.SPOKEN
) -> AsyncIterator[Hostile]:
    """One of the loose members, linked with the first node. `ahead_ns`: of its wall clock;
    `speaks`: the wire versions that it says it does."""
    name = victims.fresh()
    keys = {ed25519.public_key(seed_of(n.name)): id_of(n.name) for n in (victims.a, victims.b)}

    def clock_ns() -> int:
        return max(0, time.time_ns() + ahead_ns)

    transport = Transport(
        id_of(name),
        seed_of(name),
        ["/ip4/127.0.0.1/tcp/0"],
        keys.get,
        rng=Random(1),
        clock_ns=clock_ns,
        speaks=speaks,
    )
    member = Hostile(name, transport, victims)
    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run)
        nursery.start_soon(member.listen)
        target: dict[NodeId, Sequence[str]] = {id_of(victims.a.name): [victims.a.addr]}
        transport.set_targets(target)
        if speaks.common(wire.SPOKEN):
            await member.until_heard(wire.Sync)
        yield member
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def session_of(victims: Victims) -> AsyncIterator[tuple[Session, dict[str, Stream]]]:
    """A loose member's link with the first node, by hand: it has a pulse, and reads nothing."""
    conduit = await TcpNet().connect(Address.parse(victims.a.addr))
    name = victims.fresh()
    identity = Identity(seed_of(name))
    async with open_session(
        conduit, identity, lambda key: True, initiator=True, setup_s=DEADLINE_S
    ) as session:
        streams = {protocol: await session.open_stream(protocol) for protocol in sorted(PROTOCOLS)}
        await streams[LINK_PROTOCOL].write(pack(msgpack.packb([1, 1])), 5)
        if id_of(name) < id_of(victims.a.name):  # the lower id says that the link counts
            await streams[LINK_PROTOCOL].write(pack(msgpack.packb([2])), 5)
        failure: PeerError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_beat, streams[LINK_PROTOCOL])
            try:
                yield session, streams
            except PeerError as error:  # the nursery would wrap it in a group
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure


async def _beat(control: Stream) -> None:
    with contextlib.suppress(PeerError):
        while True:
            await control.write(pack(msgpack.packb([3, 1, 0, 0, b"", time.time_ns()])), 5)
            await trio.sleep(BEAT_S)
