"""Reaching members: who is dialled is decided in overlay.py, how is carried out here.

Rules of this file
- The addresses of one member are tried in the order of the last that worked, each STAGGER_S after
  the one before or as soon as that one has failed (RFC 8305, "Happy Eyeballs"): one that swallows
  packets, as IPv6 often does where it is half set up, costs a quarter of a second.
- Of those that connect one at a time is shaken hands with, until one is the member that was meant.
  That goes for all dials to a member together: after a cut several connect at one moment.
- A bootstrap address is dialled like a member until it is known which member is there, and whenever
  there is no link at all, or that one is no member any more.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

import trio

from mesh.core.errors import BadInput, PeerError
from mesh.core.ops import NodeId
from mesh.node.log import LimitedLog
from mesh.node.p2p.circuit import CircuitAddress
from mesh.node.p2p.link import DuplicateError, now_ns
from mesh.node.p2p.overlay import Overlay
from mesh.node.p2p.pulse import Watch
from mesh.node.p2p.redial import Redial
from mesh.node.p2p.tcp import Address, Conduit, Net

CONNECT_S = 3.0
STAGGER_S = 0.25

ATTEMPTS_PER_PEER_MAX = 4
"""Dials under way to one peer. More than one, so that a SYN goes out every second although a dial
may take longer: after a cut the link is back without waiting for the kernel's retransmission."""

ATTEMPTS_MAX = 64
ADDRESSES_PER_PEER_MAX = 16
BOOTSTRAP_MAX = 8

Connect = Callable[[], Awaitable[Conduit]]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to connect to a member."""

    name: str
    connect: Connect
    delay_s: float = STAGGER_S
    """How long after the way before it is tried, unless that one fails sooner."""


@dataclass(eq=False, slots=True)
class Attempt:
    """One dial under way, to `node`, or to whoever is there (None)."""

    node: NodeId | None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    others: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Of the addresses that are still being tried."""
    watch: Watch | None = None
    linked: bool = False
    superseded: bool = False
    """Whether it was given up for another dial to the same member, which is answered."""

    @property
    def moving(self) -> bool:
        """Whether the other end is answering: then another dial would only be in its way."""
        return self.watch is not None and self.watch.moving


Converse = Callable[[Conduit, Attempt], Awaitable[None]]
"""Make a link of a conduit and carry it; raises PeerError when it does not become one."""


@asynccontextmanager
async def race(
    ways: Sequence[Way], failures: list[str], scope: trio.CancelScope
) -> AsyncIterator[trio.MemoryReceiveChannel[Conduit]]:
    """Connect in several ways; yields a channel with what connects, which ends after the last.

    What is not taken from the channel is closed; why the others failed is added to `failures`.
    Cancelling `scope` ends what is still being tried.
    """
    give, take = trio.open_memory_channel[Conduit](0)
    over = [trio.Event() for _ in ways]

    async def one(number: int) -> None:
        way = ways[number]
        for before in range(number):
            with trio.move_on_after(ways[before + 1].delay_s):
                await over[before].wait()
        conduit: Conduit | None = None
        try:
            with trio.move_on_after(CONNECT_S):
                conduit = await way.connect()
            if conduit is None:
                failures.append(f"{way.name}: no answer within {CONNECT_S:g} s")
        except (OSError, PeerError) as error:
            failures.append(f"{way.name}: {error}")
        over[number].set()
        if conduit is not None:
            try:
                await give.send(conduit)
            except BaseException:
                conduit.close()
                raise

    async def all_of_them() -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                for number in range(len(ways)):
                    nursery.start_soon(one, number)
        give.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(all_of_them)
        try:
            yield take
        finally:
            scope.cancel()
            take.close()


class Dialler:
    """All dialling of a node. `run` it, once."""

    def __init__(
        self,
        node: NodeId,
        net: Net,
        rng: Random,
        log: LimitedLog,
        converse: Converse,
        guard: Callable[..., Awaitable[None]],
    ) -> None:
        self.overlay = Overlay(rng)
        self.attempts: dict[NodeId | Address, list[Attempt]] = {}
        self.dialled: dict[NodeId | Address, int] = {}
        """How often each was dialled."""
        self.targets: dict[NodeId, tuple[Address, ...]] = {}
        self.circuits: dict[NodeId, tuple[CircuitAddress, ...]] = {}
        """Through whom members say that they are reached."""
        self._node = node
        self.net = net
        self._log = log
        self._converse = converse
        self._guard = guard
        self._bootstrap: dict[str, Address] = {}
        self._redial: Redial[str] = Redial(rng)
        self._found: dict[str, NodeId] = {}
        self.detours: Callable[[NodeId], list[Way]] = lambda _: []
        """Ways to a member through others."""
        self._linked: Callable[[NodeId], bool] = lambda _: False
        self._last_good: dict[NodeId, str] = {}
        self._wake = trio.Event()

    def wake(self) -> None:
        self._wake.set()

    def set_targets(self, targets: Mapping[NodeId, Sequence[str]]) -> None:
        self.targets, self.circuits = {}, {}
        for node, addrs in targets.items():
            if node != self._node:
                self._parse(node, addrs)
        # Only who can be dialled is a choice: a joiner knows one address, of many members.
        reachable = (n for n, a in self.targets.items() if a or self.circuits[n])
        self.overlay.set_targets(reachable, now_ns())
        for known in (self.dialled, self._last_good):
            for key in [k for k in known if isinstance(k, bytes) and k not in self.targets]:
                del known[key]
        self.wake()

    def set_bootstrap(self, addrs: Sequence[str], linked: Callable[[NodeId], bool]) -> None:
        """Addresses to dial whoever is there. Raises BadInput."""
        parsed = [Address.parse(text) for text in addrs[:BOOTSTRAP_MAX]]
        self._bootstrap = {str(address): address for address in parsed}
        self._linked = linked
        for key in [*self._redial.wanted()]:
            self._redial.forget(key)
        self._found = {key: node for key, node in self._found.items() if key in self._bootstrap}
        self.wake()

    def cancel(self, node: NodeId) -> None:
        """End every dial to `node`."""
        for attempt in self.attempts.get(node, ()):
            attempt.scope.cancel()

    def done(self, attempt: Attempt) -> None:
        """The attempt has become a link, or nothing."""
        attempt.others.cancel()
        for key, attempts in list(self.attempts.items()):
            if attempt in attempts:
                attempts.remove(attempt)
                if not attempts:
                    del self.attempts[key]

    def found(self, attempt: Attempt, node: NodeId) -> None:
        """It is `node` that answers at the bootstrap address that `attempt` is for."""
        for key, attempts in self.attempts.items():
            if attempt in attempts and isinstance(key, Address):
                self._found[str(key)] = node
                self.wake()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                at_ns = now_ns()
                for node in self.overlay.due(at_ns):
                    self._start(nursery, node, node, self.targets.get(node, ()))
                self._want_bootstrap(at_ns)
                for text in self._redial.due(at_ns, lambda _: False):
                    address = self._bootstrap[text]
                    self._start(nursery, address, None, (address,))
                deadlines_ns = (
                    self.overlay.next_deadline_ns(at_ns),
                    self._redial.next_deadline_ns(at_ns, lambda _: 0),
                )
                wait_s = min(
                    ((at - at_ns) / 1e9 for at in deadlines_ns if at is not None), default=math.inf
                )
                with trio.move_on_after(wait_s):
                    await self._wake.wait()

    def _want_bootstrap(self, at_ns: int) -> None:
        for text in self._bootstrap:
            node = self._found.get(text)
            if node is not None and (
                node == self._node or self._linked(node) or self._settled(node)
            ):
                self._redial.forget(text)
            elif text not in self._redial:
                self._redial.want(text, at_ns)

    def _settled(self, node: NodeId) -> bool:
        """Whether a member is dialled like any other, and the mesh is reached anyway."""
        return bool(self.targets.get(node)) and self.overlay.links > 0

    def _start(
        self,
        nursery: trio.Nursery,
        key: NodeId | Address,
        node: NodeId | None,
        addresses: tuple[Address, ...],
    ) -> None:
        under_way = self.attempts.get(key, [])
        if (
            len(under_way) >= ATTEMPTS_PER_PEER_MAX
            or sum(map(len, self.attempts.values())) >= ATTEMPTS_MAX
            or any(attempt.moving for attempt in under_way)
        ):
            return
        self.dialled[key] = self.dialled.get(key, -1) + 1
        attempt = Attempt(node)
        self.attempts.setdefault(key, []).append(attempt)
        if node is not None:
            good = self._last_good.get(node)
            addresses = tuple(sorted(addresses, key=lambda address: str(address) != good))
        ways = [self._way(address) for address in addresses]
        if node is not None:
            ways += self.detours(node)
        nursery.start_soon(self._guard, self._dial, attempt, ways)

    async def _dial(self, attempt: Attempt, ways: Sequence[Way]) -> None:
        failures: list[str] = []
        try:
            with attempt.scope:
                async with race(ways, failures, attempt.others) as conduits:
                    async for conduit in conduits:
                        if await self._try(attempt, conduit, failures):
                            break
                if failures and not attempt.linked:
                    self._log.event(
                        "p2p.dial_failed",
                        level=logging.INFO,
                        peer=attempt.node,
                        error="; ".join(failures),
                    )
        finally:
            self.done(attempt)
            if attempt.node is not None and not (attempt.linked or attempt.superseded):
                self.overlay.failed(attempt.node, now_ns())
                self.wake()

    def _way(self, address: Address) -> Way:
        return Way(str(address), lambda: self.net.connect(address))

    async def dial_direct(self, node: NodeId) -> bool:
        """Try the addresses of a member that is reached through a relay until it is done.

        Returns whether there was a link.
        """
        attempt = Attempt(node)
        ways = [self._way(address) for address in self.targets.get(node, ())]
        await self._dial(attempt, ways)
        return attempt.linked

    async def _try(self, attempt: Attempt, conduit: Conduit, failures: list[str]) -> bool:
        """Whether it was who we wanted, so that other addresses need not be tried."""
        under_way = [] if attempt.node is None else self.attempts.get(attempt.node, [])
        others = [other for other in under_way if other is not attempt]
        if any(other.moving for other in others):
            attempt.superseded = True
            conduit.close()
            return True
        for other in others:
            if other.watch is None:
                other.superseded = True
                other.scope.cancel()
        try:
            await self._converse(conduit, attempt)
        except DuplicateError:
            pass
        except PeerError as error:
            failures.append(f"{conduit.remote}: {error}")
            return False
        finally:
            attempt.watch = None
            conduit.close()
        return True

    def good(self, node: NodeId, addr: str) -> None:
        """A dial to `addr` has become a link to `node`."""
        self._last_good[node] = addr

    def _parse(self, node: NodeId, addrs: Sequence[str]) -> None:
        """Take what can be dialled of what a member says of itself."""
        direct: list[Address] = []
        circuits: list[CircuitAddress] = []
        for text in addrs[:ADDRESSES_PER_PEER_MAX]:
            try:
                if (circuit := CircuitAddress.parse(text)) is not None:
                    circuits.append(circuit)
                else:
                    direct.append(Address.parse(text))
            except BadInput as error:
                self._log.event("p2p.bad_address", peer=node, error=error)
        self.targets[node], self.circuits[node] = tuple(direct), tuple(circuits)
