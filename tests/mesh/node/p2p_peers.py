"""Transports to test with: members with keys, their events in a log, and wires that can be cut."""

from __future__ import annotations

import gc
import hashlib
import itertools
import math
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path as FilePath
from random import Random
from typing import TYPE_CHECKING, TypeVar

import trio

from mesh.core.ops import NodeId
from mesh.core.wire import SPOKEN, Versions
from mesh.node.p2p.events import Event, FrameIn, Overflow, Path, PeerDown, PeerUp
from mesh.node.p2p.join import JoinHandler
from mesh.node.p2p.session import Identity
from mesh.node.p2p.tcp import Address, Conduit, Listener, Net, TcpConduit, TcpNet
from mesh.node.p2p.transport import Transport

if TYPE_CHECKING:
    from trio_typing import TaskStatus

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
DEADLINE_S = 20.0
"""For what should happen at once, on a machine that is busy with something else."""

E = TypeVar("E", bound=Event)


def seed_of(number: int) -> bytes:
    return hashlib.sha256(b"seed %d" % number).digest()


def key_of(number: int) -> bytes:
    return Identity(seed_of(number)).key


EPOCH_NS = 1_700_000_000 * 10**9


def id_of(number: int) -> NodeId:
    """Ids have the order of the numbers, so that a test can say who decides."""
    return number.to_bytes(2, "big") + hashlib.sha256(key_of(number)).digest()[:14]


class Members:
    """Who is let in."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.by_key = {key_of(n): id_of(n) for n in numbers}

    def identify(self, key: bytes) -> NodeId | None:
        return self.by_key.get(key)

    def key_of(self, node: NodeId) -> bytes | None:
        return next((key for key, known in self.by_key.items() if known == node), None)


class Peer:
    """One transport, and everything it has said."""

    def __init__(
        self,
        number: int,
        members: Members,
        *,
        listen: Sequence[str] = (LOOPBACK,),
        join_handler: JoinHandler | None = None,
        net: Net | None = None,
        ahead_ns: int = 0,
        speaks: Versions = SPOKEN,
    ) -> None:
        """`ahead_ns`: how far its wall clock is; all wall clocks go with trio's."""
        self.number = number
        self.ahead_ns = ahead_ns
        self.id = members.identify(key_of(number)) or id_of(number)
        self.transport = Transport(
            self.id,
            seed_of(number),
            listen,
            members.identify,
            join_handler,
            rng=Random(number),
            key_of=members.key_of,
            net=net,
            clock_ns=lambda: EPOCH_NS + self.ahead_ns + int(trio.current_time() * 1e9),
            speaks=speaks,
            cloned=lambda peer: self.cloned_by.append(peer),
        )
        self.cloned_by: list[NodeId] = []
        self.log: list[Event] = []
        self.said_s: list[float] = []
        self._news = trio.Event()
        self._reading = trio.Event()
        self._reading.set()
        self.scope = trio.CancelScope()
        self.stopped = trio.Event()

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(self.transport.run)
                    nursery.start_soon(self._read)
                    task_status.started()
        finally:
            self.stopped.set()

    async def _read(self) -> None:
        while True:
            await self._reading.wait()
            event = await self.transport.events.receive()
            self.log.append(event)
            self.said_s.append(trio.current_time())
            self._news.set()
            self._news = trio.Event()

    def pause_reading(self) -> None:
        """Take one more event and then none, as a node that is busy."""
        self._reading = trio.Event()

    def resume_reading(self) -> None:
        self._reading.set()

    async def stop(self) -> None:
        self.scope.cancel()
        await self.stopped.wait()

    def target(self, *others: Peer, via: str | None = None) -> None:
        self.transport.set_targets(
            {other.id: [via] if via else other.transport.listen_addrs() for other in others}
        )

    def said(self, kind: type[E]) -> list[E]:
        return [event for event in self.log if isinstance(event, kind)]

    def frames(self, node: Peer, channel: str = "push") -> list[bytes]:
        return [f.frame for f in self.said(FrameIn) if f.node == node.id and f.channel == channel]

    def ups(self, node: Peer) -> int:
        return sum(1 for event in self.said(PeerUp) if event.node == node.id)

    def downs(self, node: Peer) -> list[str]:
        return [event.reason for event in self.said(PeerDown) if event.node == node.id]

    def overflows(self, node: Peer) -> int:
        return sum(1 for event in self.said(Overflow) if event.node == node.id)

    def linked(self, node: Peer) -> bool:
        return any(info.node == node.id for info in self.transport.peers())

    def path_to(self, node: Peer) -> str | None:
        """`direct` or `relayed`; None without a link."""
        return next((i.path for i in self.transport.peers() if i.node == node.id), None)

    def idle(self) -> bool:
        """No connection but those of the links."""
        transport = self.transport
        if transport._dialler.attempts or transport._strangers.count or transport._pending:
            return False
        return len(transport._pulse.watches) == len(transport._links)

    async def until(self, condition: Callable[[], bool], within_s: float = DEADLINE_S) -> float:
        """Wait for events until the condition holds; returns when it did, by trio's clock."""
        with trio.fail_after(within_s):
            while not condition():
                await self._news.wait()
        return trio.current_time()

    async def until_linked(self, other: Peer, within_s: float = DEADLINE_S) -> float:
        return await self.until(lambda: self.linked(other), within_s)

    async def until_ups(self, other: Peer, count: int) -> float:
        return await self.until(lambda: self.ups(other) == count)

    async def until_downs(self, other: Peer, count: int = 1) -> float:
        return await self.until(lambda: len(self.downs(other)) == count)

    async def until_frames(self, other: Peer, count: int, channel: str = "push") -> float:
        return await self.until(lambda: len(self.frames(other, channel)) == count)


async def eventually(condition: Callable[[], bool], within_s: float = DEADLINE_S) -> None:
    """Wait for what no event announces."""
    with trio.fail_after(within_s):
        while not condition():
            await trio.sleep(0.01)


@asynccontextmanager
async def running(*peers: Peer) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        for peer in peers:
            await nursery.start(peer.run)
        yield nursery
        nursery.cancel_scope.cancel()


async def link_up(a: Peer, b: Peer) -> None:
    """`a` dials `b`; both know of it when this returns."""
    a.target(b)
    await a.until_linked(b)
    await b.until_linked(a)


async def meet(*peers: Peer) -> None:
    """All dial each other; the dials that crossed have been settled when this returns."""
    for peer in peers:
        peer.target(*peers)
    for peer, other in itertools.permutations(peers, 2):
        await peer.until_linked(other)
    for peer in peers:
        await eventually(peer.idle)


def open_files() -> int:
    return sum(1 for _ in FilePath("/proc/self/fd").iterdir())


def living_tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


@asynccontextmanager
async def nothing_leaks() -> AsyncIterator[None]:
    """No socket and no task is left a moment later that was not there before."""
    await trio.lowlevel.checkpoint()
    gc.collect()  # what tests before have left
    files, tasks = open_files(), living_tasks()
    yield
    with trio.move_on_after(DEADLINE_S):
        await eventually(lambda: open_files() <= files and living_tasks() <= tasks)
    assert open_files() <= files and living_tasks() <= tasks


class Proxy:
    """A TCP proxy on loopback that can go silent, or reset what goes through it."""

    def __init__(self, target: str) -> None:
        self._target = Address.parse(target)
        self._flowing = trio.Event()
        self._flowing.set()
        self._conduits: list[Conduit] = []
        self.addr = ""
        self.accepted = 0

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listener = await TcpNet().listen(Address.parse(LOOPBACK))
        self.addr = listener.addr
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    near = await listener.accept()
                    self.accepted += 1
                    nursery.start_soon(self._serve, near)
        finally:
            listener.close()

    async def _serve(self, near: Conduit) -> None:
        self._conduits.append(near)
        try:
            await self._flowing.wait()  # while it is cut the kernel connects, and nothing comes
            far = await TcpNet().connect(self._target)
            self._conduits.append(far)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, near, far)
                nursery.start_soon(self._pump, far, near)
        finally:
            near.close()

    async def _pump(self, source: Conduit, sink: Conduit) -> None:
        try:
            while data := await source.receive_some(1 << 16):
                await self._flowing.wait()
                await sink.send_all(data)
        except OSError:
            pass
        await self._flowing.wait()  # while it is cut an end is not seen either
        sink.close()

    def cut(self) -> None:
        self._flowing = trio.Event()

    def heal(self) -> None:
        self._flowing.set()

    def reset(self) -> None:
        for conduit in self._conduits:
            conduit.abort()
        self._conduits.clear()


class MemoryNet:
    """A network inside the process: with trio's autojump clock minutes pass in milliseconds."""

    def __init__(self, latency_s: float = 0.01) -> None:
        self.latency_s = latency_s
        self._listeners: dict[int, _MemoryListener] = {}
        self.cut: set[frozenset[int]] = set()
        self._ports = 0
        self.conduits: list[MemoryConduit] = []

    def view(self, number: int) -> Net:
        """The network as node `number` sees it: it can be cut off from others."""
        return _MemoryView(self, number)

    def partition(self, *sides: Sequence[int]) -> None:
        self.cut = {
            frozenset((a, b))
            for i, side in enumerate(sides)
            for other in sides[i + 1 :]
            for a in side
            for b in other
        }

    def heal(self) -> None:
        self.cut = set()

    def tear(self) -> None:
        """Let what is connected go silent for ever; new connections are as good as any."""
        for conduit in self.conduits:
            conduit.torn = True
        self.conduits.clear()


class _MemoryView:
    def __init__(self, net: MemoryNet, number: int) -> None:
        self._net, self._number = net, number

    async def listen(self, address: Address) -> Listener:
        self._net._ports += 1
        port = self._net._ports
        listener = _MemoryListener(self._net, self._number, f"/ip4/127.0.0.1/tcp/{port}")
        self._net._listeners[port] = listener
        return listener

    def bound(self, protocol: str, port: int) -> socket.socket:
        raise OSError("there are no ports in memory")

    async def connect(self, address: Address) -> Conduit:
        await trio.sleep(self._net.latency_s)
        listener = self._net._listeners.get(address.port)
        if listener is None:
            raise ConnectionRefusedError("nobody there")
        link = frozenset((self._number, listener.number))
        if link in self._net.cut:
            await trio.sleep_forever()
        there, back = (trio.open_memory_channel[tuple[float, bytes]](math.inf) for _ in range(2))
        ours = MemoryConduit(there[0], back[1], self._net, link, listener.addr)
        theirs = MemoryConduit(back[0], there[1], self._net, link, "/ip4/127.0.0.1/tcp/9")
        self._net.conduits += [ours, theirs]
        await listener.incoming.send(theirs)
        return ours


class _MemoryListener:
    def __init__(self, net: MemoryNet, number: int, addr: str) -> None:
        self._net, self.number, self.addr = net, number, addr
        self.incoming: trio.MemorySendChannel[Conduit]
        self.incoming, self._queue = trio.open_memory_channel[Conduit](64)

    async def accept(self) -> Conduit:
        return await self._queue.receive()

    def close(self) -> None:
        self._net._listeners.pop(Address.parse(self.addr).port, None)


class MemoryConduit:
    """One end of a connection in memory. What is sent over a cut is lost, and nobody is told."""

    def __init__(
        self,
        outgoing: trio.MemorySendChannel[tuple[float, bytes]],
        incoming: trio.MemoryReceiveChannel[tuple[float, bytes]],
        net: MemoryNet,
        link: frozenset[int],
        remote: str,
    ) -> None:
        self._outgoing, self._incoming = outgoing, incoming
        self._net = net
        self._link = link
        self.torn = False
        self._arriving: tuple[float, bytes] | None = None
        self.remote = remote
        self.local = ""
        self.path: Path = "direct"
        self.rx_bytes = 0

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        # A byte that is lost is never made good here, so the stream is over: TCP would stall too.
        self.torn = self.torn or self._link in self._net.cut
        if not self.torn:
            try:
                self._outgoing.send_nowait((trio.current_time() + self._net.latency_s, data))
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ConnectionError(str(error)) from error

    async def receive_some(self, bytes_max: int) -> bytes:
        if self._arriving is None:
            try:
                self._arriving = await self._incoming.receive()
            except (trio.EndOfChannel, trio.ClosedResourceError):
                return b""
        at_s, data = self._arriving
        await trio.sleep_until(at_s)
        self._arriving = (at_s, data[bytes_max:]) if len(data) > bytes_max else None
        self.rx_bytes += len(data[:bytes_max])
        return data[:bytes_max]

    def close(self) -> None:
        if not self.torn and self._link not in self._net.cut:
            self._outgoing.close()
        self._incoming.close()

    abort = close


def raw_conduits(peer: Peer) -> list[TcpConduit]:
    """The sockets under a peer's links, to break them from outside."""
    links = peer.transport._links.values()
    return [link.conduit for link in links if isinstance(link.conduit, TcpConduit)]
