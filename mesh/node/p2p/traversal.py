"""Reaching members that cannot be dialled, and being reached: relays and hole punching together.

Rules of this file
- A member whose addresses do not answer is tried through members that both ends may have links to:
  its detours, which start RELAY_DELAY_S after the addresses, or at once where there was no other
  way the last time. Who relays is chosen at random, the nearest of a few first.
- A node whose address others see translated says in its registration through whom it is reached:
  RELAYS_MAX members that it has dialled itself. They are asked first, and linked with for that.
- A relayed link is a link: the same handshake, checks, heartbeat and bounds, inside a circuit.
- As long as a link is relayed both ends try for a direct one, first after a second, then less and
  less often; who accepted the relayed link also asks for hole punching. A direct connection takes
  the place of a relayed link without being asked whether that one still answers.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from random import Random

import trio
from libp2p.relay.circuit_v2.pb.circuit_pb2 import Status

from mesh.core.errors import PeerError
from mesh.core.ops import NodeId
from mesh.node.log import LimitedLog
from mesh.node.p2p import circuit, punch
from mesh.node.p2p.circuit import (
    HOP_PROTOCOL,
    STOP_PROTOCOL,
    CircuitAddress,
    StreamConduit,
)
from mesh.node.p2p.dialler import Attempt, Dialler, Way
from mesh.node.p2p.link import Link, now_ns
from mesh.node.p2p.punch import PUNCH_PROTOCOL, Seen
from mesh.node.p2p.relay import Relay
from mesh.node.p2p.session import Stream
from mesh.node.p2p.tcp import Address, Conduit

DETOURS_MAX = 4
"""Relays asked for one member in one dial; each answers within a round trip that it has no link."""

ASKS_PER_S = 2.0
ASKS_BURST = 8
"""How often one relay is asked: half of what it would take (STREAMS_PER_S in session.py)."""

_DETOUR_ROUNDS_MAX = 8
DETOUR_EVERY_S = 10.0
"""How often the relays are asked for one member that had a direct link, in the end; at first 1, 2,
4 and 8 s apart, since they may be about to have a link to it themselves. When half of a mesh is
gone every member of it is dialled once a second, and each of those dials would ask every relay,
which misses the same members. A link that was relayed is looked for with every dial."""

RELAYS_MAX = 2
"""Relays that a node behind a NAT names; when one is gone the other is there."""

RELAY_KEEP_S = 30.0
"""How long a relay that is named may be without a link before another one is: it stands in the
registration, and a record for each flap of a link would be too many."""

RELAY_DELAY_S = 1.0
_DETOUR_DELAY_S = 0.3

IMPROVE_FIRST_S = 1.0
IMPROVE_MAX_S = 300.0
_IMPROVE_FACTOR = 3.0

PUNCHES_MAX = 8
"""Holes that are being punched at once, whoever asked."""


class Traversal:
    """What a transport does beyond TCP connections."""

    def __init__(
        self,
        node: NodeId,
        links: Mapping[NodeId, Link],
        identify: Callable[[bytes], NodeId | None],
        key_of: Callable[[NodeId], bytes | None],
        dialler: Dialler,
        spawn: circuit.Spawn,
        converse: Callable[[Conduit, Attempt], Awaitable[None]],
        accept: Callable[[Conduit, NodeId], None],
        rng: Random,
        log: LimitedLog,
    ) -> None:
        """`accept(conduit, node)`: go on as with an inbound connection, from `node` only."""
        self.relay = Relay(self._direct_link, spawn, log)
        self._node = node
        self._links = links
        self._identify = identify
        self._key_of = key_of
        self._dialler = dialler
        self._spawn = spawn
        self._converse = converse
        self._accept = accept
        self._rng = rng
        self._log = log
        self._punching = 0
        self._relayed_last: set[NodeId] = set()
        self._detoured: dict[NodeId, tuple[int, float]] = {}
        """how often relays were asked for a member, and when last"""
        self._named: dict[NodeId, float] = {}
        """relays in the registration -> when there was last a link"""
        self._named_addrs: dict[NodeId, str] = {}
        self._asks: dict[NodeId, tuple[float, float]] = {}
        """relay -> how often it may be asked still, and as of when"""

    def serves(self, link: Link) -> dict[str, Callable[[Stream], None]]:
        """What the peer of `link` may open streams for."""
        if link.conduit.path == "relayed":
            return {PUNCH_PROTOCOL: lambda stream: self._spawn(self._answer_punch, link, stream)}
        return {
            STOP_PROTOCOL: lambda stream: self._spawn(self._hear_stop, link, stream),
            HOP_PROTOCOL: lambda stream: self._spawn(self.relay.serve, link, stream),
        }

    def linked(self, link: Link) -> None:
        """There is a new link."""
        self._detoured.pop(link.node, None)
        if link.conduit.path == "direct":
            self._relayed_last.discard(link.node)
            return
        self._relayed_last.add(link.node)
        self._spawn(self._improve, link)

    def detours(self, node: NodeId) -> list[Way]:
        """Ways to `node` through relays."""
        key = self._key_of(node)
        if key is None:
            return []
        now_s = trio.current_time()
        at_once = node in self._relayed_last or not self._dialler.targets.get(node)
        rounds, at_s = 0, 0.0
        if not at_once:
            rounds, at_s = self._detoured.get(node, (0, 0.0))
            if rounds and now_s - at_s < min(2.0 ** (rounds - 1), DETOUR_EVERY_S):
                return []
        named = {relay for c in self._dialler.circuits.get(node, ()) if (relay := self._node_of(c))}
        for relay in sorted(named - self._links.keys()):
            self._dialler.overlay.want(relay, now_ns())  # for the next dial
        relays = [
            link
            for other, link in sorted(self._links.items())
            if other != node
            and link.conduit.path == "direct"
            and not link.session.ended
            and self._asks_left(other) >= 1
        ]
        self._rng.shuffle(relays)
        relays.sort(key=lambda link: link.node not in named)
        known = [link for link in relays if link.node in named]
        others = sorted(relays[len(known) : DETOURS_MAX], key=lambda link: link.rtt_ns or 0)
        chosen = [*known, *others][:DETOURS_MAX]
        if chosen and not at_once:
            self._detoured[node] = min(rounds + 1, _DETOUR_ROUNDS_MAX), now_s
        for link in chosen:
            self._asks[link.node] = self._asks_left(link.node) - 1, now_s
        return [
            Way(
                _remote(link),
                partial(circuit.connect, link.session, key, _remote(link), self._spawn),
                _DETOUR_DELAY_S if number else 0.0 if at_once else RELAY_DELAY_S,
            )
            for number, link in enumerate(chosen)
        ]

    def circuit_addrs(self) -> list[str]:
        """Through whom this node is reached, if its address is translated on the way to others."""
        if not any(one.local.host != one.observed.host for one in self._seen()):
            return []
        now_s = trio.current_time()
        usable = {
            link.node: link
            for link in self._links.values()
            if link.conduit.path == "direct" and not link.inbound and not link.session.ended
        }
        for node, since_s in list(self._named.items()):
            if node in usable:
                self._named[node] = now_s
            elif now_s - since_s > RELAY_KEEP_S:
                del self._named[node]
        for link in sorted(usable.values(), key=lambda link: (link.rtt_ns or 0, link.node)):
            if len(self._named) < RELAYS_MAX:
                self._named.setdefault(link.node, now_s)
        self._named_addrs = {
            node: addr
            for node in self._named
            if (addr := _address(usable.get(node)) or self._named_addrs.get(node))
        }
        return sorted(self._named_addrs.values())

    def in_use(self) -> set[NodeId]:
        """Members whose links carry others' links, at either end."""
        relayed = {link.conduit.remote for link in self._links.values()}
        ours = {link.node for link in self._links.values() if _remote(link) in relayed}
        return ours | self.relay.members()

    def _node_of(self, address: CircuitAddress) -> NodeId | None:
        node = self._identify(address.relay_key)
        return None if node == self._node else node

    def _asks_left(self, relay: NodeId) -> float:
        asks, at_s = self._asks.get(relay, (float(ASKS_BURST), 0.0))
        return min(float(ASKS_BURST), asks + (trio.current_time() - at_s) * ASKS_PER_S)

    def forget(self, targets: Mapping[NodeId, object]) -> None:
        """Only these members are left."""
        self._relayed_last &= targets.keys()
        self._detoured = {n: last for n, last in self._detoured.items() if n in targets}
        self._asks = {node: left for node, left in self._asks.items() if node in targets}

    def _direct_link(self, key: bytes) -> Link | None:
        node = self._identify(key)
        link = None if node is None else self._links.get(node)
        if link is None or link.conduit.path != "direct" or link.session.ended:
            return None
        return link

    async def _hear_stop(self, link: Link, stream: Stream) -> None:
        """A relay has somebody who wants a circuit to here."""
        try:
            messages, key = await circuit.hear_stop(stream)
            node = self._identify(key)
            if node is None or node in (self._node, link.node):
                await circuit.answer_stop(messages, Status.PERMISSION_DENIED)
                raise PeerError("a circuit from somebody who is no member")
            await circuit.answer_stop(messages, Status.OK)
        except PeerError:
            await stream.reset()
            raise
        link.session.carry_circuit(stream)
        conduit = StreamConduit(stream, _remote(link), self._spawn, messages.rest())
        self._accept(conduit, node)

    # -- towards a direct connection ------------------------------------------------------------

    def _seen(self) -> list[Seen]:
        """Our ends of the connections that we dialled."""
        return [
            Seen(Address.parse(link.conduit.local), link.observed)
            for link in self._links.values()
            if link.conduit.path == "direct"
            and not link.inbound
            and link.conduit.local
            and link.observed is not None
        ]

    async def _improve(self, link: Link) -> None:
        """Try for a direct connection for as long as `link` is the one there is."""
        wait_s = IMPROVE_FIRST_S
        while True:
            with trio.move_on_after(wait_s * self._rng.uniform(0.8, 1.2)):
                await link.gone.wait()
            if link.gone.is_set():
                return
            if await self._dialler.dial_direct(link.node):
                return
            if link.inbound and not link.gone.is_set():
                await self._ask_punch(link)
            wait_s = min(wait_s * _IMPROVE_FACTOR, IMPROVE_MAX_S)

    async def _ask_punch(self, link: Link) -> None:
        outer = punch.outer_host(self._seen())
        if outer is None or self._punching >= PUNCHES_MAX:
            return
        self._punching += 1
        conduit: Conduit | None = None
        try:
            stream = await link.session.open_stream(PUNCH_PROTOCOL)
            try:
                conduit = await punch.ask(self._dialler.net, stream, outer)
            finally:
                self._spawn(stream.reset)
        except (OSError, PeerError) as error:
            self._log.event("p2p.not_punched", level=logging.INFO, peer=link.node, error=error)
        finally:
            self._punching -= 1
        if conduit is not None:
            self._accept(conduit, link.node)

    async def _answer_punch(self, link: Link, stream: Stream) -> None:
        conduit: Conduit | None = None
        try:
            if self._punching < PUNCHES_MAX:
                self._punching += 1
                try:
                    conduit = await punch.answer(
                        self._dialler.net, stream, punch.outer_host(self._seen())
                    )
                finally:
                    self._punching -= 1
        except (OSError, PeerError) as error:
            self._log.event("p2p.not_punched", level=logging.INFO, peer=link.node, error=error)
        finally:
            self._spawn(stream.reset)
        if conduit is not None:
            try:
                await self._converse(conduit, Attempt(link.node))
            finally:
                conduit.close()


def _address(link: Link | None) -> str | None:
    """What others can dial to come through the peer of `link`."""
    if link is None:
        return None
    return str(CircuitAddress(Address.parse(link.conduit.remote), link.session.key))


def _remote(link: Link) -> str:
    """How a peer behind `link` is shown; the standard form without the two peer ids."""
    return f"{link.conduit.remote}/p2p-circuit"
