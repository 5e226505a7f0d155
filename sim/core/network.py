"""A modelled network: links with latency, loss and cuts, and the transport's view of them.

`stream` is what the node's transport gives: a session per pair of nodes with two lanes (pushes, and
the rest beside them), frames in order per lane. Loss delays a frame and those behind it by a
retransmission; a cut is silent, holds what is under way, and ends the session only when a heartbeat
has been missed; after the heal a session that still stands goes on, another is dialled anew. What
was under way when a session ended is lost.

`datagram` gives less than any transport does: frames are lost, doubled and overtake one another,
also from one session into the next. The replica must bear that too.

A direction of a link can be cut alone: both ends then miss heartbeats, since each waits for an
echo. A node can stop to read: what is sent to it stays in the buffers between, until they are full.

Links are as `mesh.node.p2p.overlay` makes them: in a small mesh all with all, in a large one a few
to members at random, and whoever was a neighbour once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal, Protocol, TypeAlias

from sim.core.chance import Chance, pick
from sim.core.clock import MS_NS, SECOND_NS, Clock
from sim.core.upkeep import FRAME_BYTES, Upkeep

Pair: TypeAlias = tuple[int, int]
"""(from, to), as indexes of nodes"""

RETRANSMIT_NS: Final = 200 * MS_NS
"""TCP's shortest retransmission timeout in Linux."""
RETRANSMITS_MAX: Final = 6
ESTABLISH_ROUND_TRIPS: Final = 11
"""Until both ends have a link: TCP, Noise and Yamux, each agreed on in round trips of its own, our
streams, and what is said first on them. Measured on real nodes 200 ms apart: 11.0 to 12.2."""
REDIAL_NS: Final = SECOND_NS
"""How often a peer is dialled that was lost less than `EAGER_NS` ago."""
EAGER_NS: Final = 60 * SECOND_NS
SLOW_DIALS_PER_S: Final = 2
"""Of one node after that, to all that it has lost together."""
REFUSED_NS: Final = 5 * SECOND_NS
"""A handshake that is refused is tried again so soon."""
FULL_MESH_NODES: Final = 9
LINKS_MIN: Final = 4
STALLED_BYTES_MAX: Final = 8 << 20
"""What a writer gets rid of before a reader that does not read blocks it: measured."""


class Port(Protocol):
    """A node as the network sees it. A call for a life that is over is not made."""

    def admits(self, peer: int) -> bool:
        """Whether it lets the peer through its handshake."""

    def refuses(self, peer: int) -> bool:
        """Whether it does not, and will not just because time passes."""

    def link_up(self, peer: int) -> None: ...

    def link_down(self, peer: int) -> None: ...

    def link_lagging(self, peer: int) -> None: ...

    def frame_in(self, peer: int, frame: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Weather:
    """How links behave; probabilities are per frame."""

    mode: Literal["stream", "datagram"] = "stream"
    jitter_ns: int = 2 * MS_NS
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    reset: float = 0.0
    """A frame on which the session breaks (stream)."""
    bits_per_s: int = 0
    """0: as fast as one likes."""
    queue_bytes_max: int = 4 << 20
    detect_ns: int = 3 * SECOND_NS
    redial_ns: int = SECOND_NS // 10


class _Lane:
    """One ordered stream of frames in one direction."""

    __slots__ = ("arrives_ns", "held")

    def __init__(self) -> None:
        self.arrives_ns = 0
        """when the last frame sent arrives: none overtakes it"""
        self.held: list[tuple[int, bytes]] = []
        """(session, frame) that a cut stopped"""


class _Direction:
    __slots__ = ("lanes", "latency_ns", "sent_ns")

    def __init__(self, latency_ns: int) -> None:
        self.latency_ns = latency_ns
        self.sent_ns = 0
        """when the last byte handed over has left"""
        self.lanes = (_Lane(), _Lane())


@dataclass(slots=True)
class Carried:
    """Figures of a run."""

    frames: int = 0
    frames_lost: int = 0
    bytes_by_node: dict[int, int] = field(default_factory=dict)
    """bytes sent by each node, in frames with what is around them, and for its links"""


class Observer(Protocol):
    """Is told of every frame that is handed to the network, and of what links cost besides."""

    def frame_sent(self, sender: int, receiver: int, frame: bytes) -> None: ...

    def link_kept(self, node: int, size_bytes: int, since_ns: int) -> None:
        """The node has sent that since then to make links and to keep them."""


class Network:
    """All links of a run. Nodes are numbered from 0."""

    def __init__(
        self,
        clock: Clock,
        chance: Chance,
        weather: Weather,
        latency_ns: Callable[[int, int], int],
        observer: Observer,
    ) -> None:
        """`latency_ns(a, b)` is from a to b, one way."""
        self.carried = Carried()
        self._clock = clock
        self._chance = chance
        self._weather = weather
        self._latency_ns = latency_ns
        self._observer = observer
        self._ports: dict[int, Port] = {}
        self._links: dict[int, set[int]] = {}
        """of all that were ever started: the peers in `_ends`"""
        self._directions: dict[Pair, _Direction] = {}
        self._cuts: dict[Pair, int] = {}
        """direction -> how many causes cut it"""
        self._slow: dict[Pair, float] = {}
        self._ends: dict[Pair, int] = {}
        """(node, peer) -> the session that the node has with the peer"""
        self._links_now: tuple[Pair, ...] | None = None
        """`links`, until `_ends` changes"""
        self._sessions = 0
        self._dialling: dict[Pair, int] = {}
        self._dials = 0
        self._refused: set[Pair] = set()
        """pairs whose dial one of the two refuses, and that is tried again"""
        self._waiting: dict[Pair, int] = {}
        """pairs whose dial a cut holds up, and since when"""
        self._silent_since: dict[Pair, int] = {}
        self._upkeep = Upkeep(clock, self._links, self._link_kept)
        self._stalled: dict[int, list[tuple[int, int, bytes]]] = {}
        """node that does not read -> (sender, session, frame) in the buffers"""

    # ---- nodes ----

    def start(self, node: int, port: Port) -> None:
        """The node runs: it and its peers dial each other."""
        self._ports[node] = port
        self._links.setdefault(node, set())
        for pair in [pair for pair in self._waiting if node in pair]:
            self._upkeep.found(pair)
            del self._waiting[pair]
        if len(self._links) <= FULL_MESH_NODES:
            for peer in self._links:
                if peer != node and peer in self._ports:
                    self._dial(node, peer, 0)
        else:
            self._want_links(node)

    def stop(self, node: int) -> None:
        """The node's process is gone. Its kernel resets the sessions, if that reaches the peers."""
        del self._ports[node]
        self._stalled.pop(node, None)
        for peer in sorted(self._links[node]):
            self._tell_end(node, peer, self._close(node, peer))

    def linked(self, node: int, peer: int) -> bool:
        """Whether both nodes have the same session and nothing cuts it."""
        session = self._ends.get((node, peer))
        return (
            session is not None
            and session == self._ends.get((peer, node))
            and not self._cut(node, peer)
        )

    def peers(self, node: int) -> list[int]:
        """With whom the node has a session, as far as it knows."""
        return sorted(self._links.get(node, ()))

    def links(self) -> tuple[Pair, ...]:
        """(a, b), a < b, of every session that both ends have."""
        if self._links_now is None:
            ends = self._ends
            self._links_now = tuple(
                (a, b) for (a, b), session in ends.items() if a < b and ends.get((b, a)) == session
            )
        return self._links_now

    def passes(self, sender: int, receiver: int) -> bool:
        """Whether a packet gets through, whatever the nodes' processes do."""
        return (sender, receiver) not in self._cuts

    def _close(self, node: int, peer: int) -> int:
        self._links[node].discard(peer)
        self._links_now = None
        self._upkeep.ended(node, peer)
        return self._ends.pop((node, peer))

    def _direction(self, sender: int, receiver: int) -> _Direction:
        direction = self._directions.get((sender, receiver))
        if direction is None:
            direction = _Direction(self._latency_ns(sender, receiver))
            self._directions[sender, receiver] = direction
        return direction

    def _want_links(self, node: int) -> None:
        """In a large mesh: dial members at random until there are LINKS_MIN links."""
        tried = sum(node in pair for pair in self._dialling)
        missing = LINKS_MIN - len(self._links[node]) - tried
        if missing <= 0:
            return
        others = [n for n in self._ports if n != node and n not in self._links[node]]
        others = [n for n in others if _pair(node, n) not in self._dialling]
        for _ in range(min(missing, len(others))):
            peer = pick(self._chance, others)
            others.remove(peer)
            self._dial(node, peer, 0)

    # ---- faults ----

    def cut(self, pairs: Iterable[Pair]) -> None:
        """Cut these directions, silently. Cuts add up: each is undone by its own heal."""
        for a, b in pairs:
            was_cut = self._cut(a, b)
            self._cuts[a, b] = self._cuts.get((a, b), 0) + 1
            if was_cut:
                continue
            for node, peer in ((a, b), (b, a)):
                self._expect_silence(node, peer)

    def heal(self, pairs: Iterable[Pair]) -> None:
        """Undo one cut of each of these directions."""
        for pair in pairs:
            self._cuts[pair] -= 1
            if self._cuts[pair] == 0:
                del self._cuts[pair]
                self._release_held(*pair)
                if _pair(*pair) in self._waiting and not self._cut(*pair):
                    self._dial_after_heal(*pair)

    def slow(self, pairs: Iterable[Pair], factor: float) -> None:
        """Multiply the latency of these directions."""
        for pair in pairs:
            factors = self._slow[pair] = self._slow.get(pair, 1.0) * factor
            if abs(factors - 1.0) < 1e-9:
                del self._slow[pair]

    def stall(self, node: int) -> None:
        """The node's process stops to read what its kernel has for it; its heartbeats go on."""
        if node in self._ports:
            self._stalled.setdefault(node, [])

    def resume(self, node: int) -> None:
        """It reads again: what is in the buffers first."""
        for sender, session, frame in self._stalled.pop(node, ()):
            if self._ends.get((node, sender)) == session and node in self._ports:
                self._ports[node].frame_in(sender, frame)

    @property
    def refusals_lapse(self) -> bool:
        """Whether somebody who is refused now will be let in just because time passes."""
        for a, b in self._refused:
            one, other = self._ports.get(a), self._ports.get(b)
            if one is not None and other is not None and not (one.refuses(b) or other.refuses(a)):
                return True
        return False

    @property
    def whole(self) -> bool:
        """Whether nothing is cut, and everybody reads."""
        return not self._cuts and not self._stalled

    # ---- frames ----

    def send(self, sender: int, receiver: int, frame: bytes, push: bool) -> None:
        """Give a frame to the transport; nothing happens without a session."""
        pair = (sender, receiver)
        session = self._ends.get(pair)
        if session is None:
            return
        direction = self._directions.get(pair) or self._direction(sender, receiver)
        weather, clock = self._weather, self._clock
        departs_ns = clock.now_ns
        if weather.bits_per_s:
            leaves_ns = self._departure(direction, len(frame))
            if leaves_ns is None:
                self.carried.frames_lost += 1
                self._ports[sender].link_lagging(receiver)
                return
            departs_ns = leaves_ns
        self.carried.frames += 1
        sent = self.carried.bytes_by_node
        sent[sender] = sent.get(sender, 0) + len(frame) + FRAME_BYTES
        self._observer.frame_sent(sender, receiver, frame)
        latency_ns = direction.latency_ns
        if self._slow:
            latency_ns = self._travel_ns(sender, receiver, direction)
        arrives_ns = departs_ns + latency_ns + int(self._chance.random() * weather.jitter_ns)
        if weather.mode == "datagram":
            self._send_datagram(sender, receiver, frame, arrives_ns)
            return
        if weather.reset and self._hits(weather.reset):
            clock.at(departs_ns, partial(self._break, sender, receiver, session))
            return
        if weather.loss and self._chance.random() < weather.loss:
            arrives_ns += self._retransmission_ns()
        lane = direction.lanes[push]
        if arrives_ns > lane.arrives_ns:
            lane.arrives_ns = arrives_ns
        arrive = partial(self._arrive, sender, receiver, lane, session, frame)
        clock.at(lane.arrives_ns, arrive)

    def count(self) -> None:
        """Bring `carried` up to now."""
        self._upkeep.count()

    def _link_kept(self, node: int, size_bytes: int, since_ns: int) -> None:
        sent = self.carried.bytes_by_node
        sent[node] = sent.get(node, 0) + size_bytes
        self._observer.link_kept(node, size_bytes, since_ns)

    def idled(self, ns: int, period_ns: int, frame_bytes: int) -> dict[int, int]:
        """Nothing was carried for `ns` but what each end of every link sends once a period: that,
        in bytes by node."""
        idle: dict[int, int] = {}
        sent = self.carried.bytes_by_node
        each_bytes = frame_bytes * ns // period_ns
        for node, peers in self._links.items():
            if peers:
                idle[node] = each_bytes * len(peers)
                sent[node] = sent.get(node, 0) + idle[node]
        return idle

    def _travel_ns(self, sender: int, receiver: int, direction: _Direction) -> int:
        if not self._slow:
            return direction.latency_ns
        return round(direction.latency_ns * self._slow.get((sender, receiver), 1.0))

    def _departure(self, direction: _Direction, size_bytes: int) -> int | None:
        """When the frame's last byte has left; None when the queue is full."""
        now_ns = self._clock.now_ns
        rate = self._weather.bits_per_s
        waiting_ns = max(direction.sent_ns - now_ns, 0)
        if waiting_ns * rate // (8 * SECOND_NS) + size_bytes > self._weather.queue_bytes_max:
            return None
        direction.sent_ns = now_ns + waiting_ns + size_bytes * 8 * SECOND_NS // rate
        return direction.sent_ns

    def _send_datagram(self, sender: int, receiver: int, frame: bytes, arrives_ns: int) -> None:
        copies = 2 if self._hits(self._weather.duplicate) else 1
        for _ in range(copies):
            if self._hits(self._weather.loss):
                self.carried.frames_lost += 1
                continue
            late_ns = 0
            if self._hits(self._weather.reorder):
                late_ns = int(self._chance.random() * 2 * SECOND_NS)
            self._clock.at(
                arrives_ns + late_ns, partial(self._arrive_datagram, sender, receiver, frame)
            )

    def _arrive_datagram(self, sender: int, receiver: int, frame: bytes) -> None:
        port = self._ports.get(receiver)
        if port is None or (sender, receiver) in self._cuts:
            self.carried.frames_lost += 1
        else:
            port.frame_in(sender, frame)

    def _arrive(self, sender: int, receiver: int, lane: _Lane, session: int, frame: bytes) -> None:
        # Nothing overtakes what a cut holds, nor what is sent again after one.
        if lane.held or (self._cuts and (sender, receiver) in self._cuts):
            lane.held.append((session, frame))
        else:
            self._deliver(sender, receiver, session, frame)

    def _deliver(self, sender: int, receiver: int, session: int, frame: bytes) -> None:
        port = self._ports.get(receiver)
        if port is None or self._ends.get((receiver, sender)) != session:
            self.carried.frames_lost += 1
        elif self._stalled and receiver in self._stalled:
            self._buffer(sender, receiver, session, frame)
        else:
            port.frame_in(sender, frame)

    def _buffer(self, sender: int, receiver: int, session: int, frame: bytes) -> None:
        waiting = self._stalled[receiver]
        if sum(len(held) for at, _, held in waiting if at == sender) < STALLED_BYTES_MAX:
            waiting.append((sender, session, frame))
            return
        self.carried.frames_lost += 1
        if sender in self._ports and self._ends.get((sender, receiver)) == session:
            self._ports[sender].link_lagging(receiver)

    def _release_held(self, sender: int, receiver: int) -> None:
        """What a cut held is sent again, in order, once TCP tries again."""
        direction = self._directions.get((sender, receiver))
        for lane in direction.lanes if direction else ():
            if lane.held:
                again_ns = RETRANSMIT_NS + int(self._chance.random() * SECOND_NS)
                lane.arrives_ns = max(lane.arrives_ns, self._clock.now_ns + again_ns)
                again = partial(self._deliver_held, sender, receiver, lane)
                self._clock.at(lane.arrives_ns, again)

    def _deliver_held(self, sender: int, receiver: int, lane: _Lane) -> None:
        """Unless there is another cut by now, after which it is sent again."""
        if (sender, receiver) not in self._cuts:
            held, lane.held = lane.held, []
            for session, frame in held:
                self._deliver(sender, receiver, session, frame)

    def _retransmission_ns(self) -> int:
        """Of a frame that was lost, once or more often."""
        delay_ns = RETRANSMIT_NS
        for attempt in range(1, RETRANSMITS_MAX):
            if not self._hits(self._weather.loss):
                break
            delay_ns += RETRANSMIT_NS << attempt
        return delay_ns

    def _hits(self, probability: float) -> bool:
        return probability > 0 and self._chance.random() < probability

    def _jitter_ns(self) -> int:
        return int(self._chance.random() * self._weather.jitter_ns)

    # ---- sessions ----

    def _cut(self, a: int, b: int) -> bool:
        return bool(self._cuts) and ((a, b) in self._cuts or (b, a) in self._cuts)

    def _dial(self, node: int, peer: int, delay_ns: int, *, both: bool = False) -> None:
        """Try to make a session after `delay_ns`, and again until there is one. `both`: the peer
        dials as well, and one of the two connections is found to be too many when it stands."""
        pair = _pair(node, peer)
        self._dials += 1
        self._dialling[pair] = dial = self._dials
        if self._waiting.pop(pair, None) is not None:
            self._upkeep.found(pair)
        direction = self._direction(node, peer)
        round_trips_ns = ESTABLISH_ROUND_TRIPS * 2 * self._travel_ns(node, peer, direction)
        delay_ns += round_trips_ns + self._jitter_ns()
        establish = partial(self._establish, node, peer, dial, both)
        self._clock.at(self._clock.now_ns + delay_ns, establish)

    def _dial_after_heal(self, node: int, peer: int) -> None:
        """Both have been dialling all the time; when the next dial comes depends on for how long,
        and to how many others."""
        since_ns = self._waiting[_pair(node, peer)]
        between_ns = REDIAL_NS
        if self._clock.now_ns - since_ns > EAGER_NS:
            lost = min(sum(end in pair for pair in self._waiting) for end in (node, peer))
            between_ns = max(between_ns, lost * SECOND_NS // SLOW_DIALS_PER_S)
        # Each of the two dials once in that time: the sooner one counts.
        delay_ns = int(between_ns * min(self._chance.random(), self._chance.random()))
        self._dial(node, peer, delay_ns, both=True)

    def _establish(self, node: int, peer: int, dial: int, both: bool) -> None:
        pair = _pair(node, peer)
        if self._dialling.get(pair) != dial:
            return  # a later attempt is under way
        if node not in self._ports or peer not in self._ports:
            del self._dialling[pair]
            return  # who starts dials
        if self._cut(node, peer):
            del self._dialling[pair]
            self._waiting[pair] = self._clock.now_ns
            self._upkeep.lost(pair)
            if len(self._links) > FULL_MESH_NODES:
                self._want_links(node)
            return
        self._refused.discard(pair)
        if not (self._ports[node].admits(peer) and self._ports[peer].admits(node)):
            self._refused.add(pair)
            self._dials += 1
            self._dialling[pair] = self._dials
            again_ns = self._clock.now_ns + REFUSED_NS
            self._clock.tick_at(again_ns, partial(self._establish, node, peer, self._dials, False))
            return
        del self._dialling[pair]
        self._sessions += 1
        for a, b in ((peer, node), (node, peer)):
            had = (a, b) in self._ends
            self._ends[a, b] = self._sessions
            self._upkeep.made(a, b, 2 if both else 1)
            self._begin_lanes(a, b)
            self._links_now = None
            self._links[a].add(b)
            if had:
                self._ports[a].link_down(b)
        for end in ((peer, node), (node, peer)):
            if self._ends.get(end) == self._sessions and end[0] in self._ports:
                self._ports[end[0]].link_up(end[1])

    def _begin_lanes(self, sender: int, receiver: int) -> None:
        """A session is a connection of its own: it waits for nothing of the one before, and what a
        cut held of that is lost."""
        for lane in self._direction(sender, receiver).lanes:
            self.carried.frames_lost += len(lane.held)
            lane.held.clear()
            lane.arrives_ns = 0

    def _end(self, node: int, peer: int, session: int) -> None:
        """One end gives the session up, and dials again."""
        if self._ends.get((node, peer)) != session or node not in self._ports:
            return
        self._close(node, peer)
        self._ports[node].link_down(peer)
        if peer in self._ports:
            self._dial(node, peer, self._weather.redial_ns, both=True)
        elif len(self._links) > FULL_MESH_NODES:
            self._want_links(node)

    def _tell_end(self, node: int, peer: int, session: int) -> None:
        """`node` has ended the session: the peer learns by a reset, or by silence."""
        if (node, peer) in self._cuts:
            delay_ns = self._weather.detect_ns
        else:
            delay_ns = self._direction(node, peer).latency_ns
        self._clock.at(self._clock.now_ns + delay_ns, partial(self._end, peer, node, session))

    def _break(self, node: int, peer: int, session: int) -> None:
        if self._ends.get((node, peer)) == session:
            self._end(node, peer, session)
            self._tell_end(node, peer, session)

    def drop(self, node: int, peer: int) -> None:
        """The node closes its link to a peer that broke the protocol."""
        session = self._ends.get((node, peer))
        if session is not None:
            self._break(node, peer, session)

    def _expect_silence(self, node: int, peer: int) -> None:
        """A direction between the two was cut: after the missed heartbeats the node notices."""
        session = self._ends.get((node, peer))
        if session is None:
            return
        silent_ns = self._silent_since[node, peer] = self._clock.now_ns
        late_ns = int(self._chance.random() * SECOND_NS)  # heartbeats are a second apart
        self._clock.at(
            silent_ns + self._weather.detect_ns + late_ns,
            partial(self._notice_silence, node, peer, session, silent_ns),
        )

    def _notice_silence(self, node: int, peer: int, session: int, silent_ns: int) -> None:
        if self._cut(node, peer) and self._silent_since.get((node, peer)) == silent_ns:
            self._end(node, peer, session)


def _pair(a: int, b: int) -> Pair:
    return (a, b) if a < b else (b, a)
