"""A modelled network: links with latency, loss and cuts, and the transport's view of them.

`stream` is what the node's transport gives: a session per pair of nodes with two lanes (pushes, and
the rest beside them), frames in order per lane. Loss delays a frame and those behind it by a
retransmission; a cut is silent, holds what is under way, and ends the session only when a heartbeat
has been missed; after the heal a session that still stands goes on, another is dialled anew. What
was under way when a session ended is lost.

`datagram` gives less than any transport does: frames are lost, doubled and overtake one another,
also from one session into the next. The replica must bear that too.

A direction of a link can be cut alone: both ends then miss heartbeats, since each waits for an
echo.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol, TypeAlias

from sim.core.chance import Chance
from sim.core.clock import MS_NS, SECOND_NS, Clock

Pair: TypeAlias = tuple[int, int]
"""(from, to), as indexes of nodes"""

RETRANSMIT_NS = 200 * MS_NS
"""TCP's shortest retransmission timeout in Linux."""
RETRANSMITS_MAX = 6
ESTABLISH_ROUND_TRIPS = 3
"""TCP, Noise and the opening of our streams."""
TRY_AGAIN_NS = SECOND_NS // 2


class Port(Protocol):
    """A node as the network sees it. A call for a life that is over is not made."""

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
    redial_ns: int = 2 * SECOND_NS


@dataclass(slots=True)
class _Lane:
    """One ordered stream of frames in one direction."""

    arrives_ns: int = 0
    """when the last frame sent arrives: none overtakes it"""
    held: list[tuple[int, bytes]] = field(default_factory=list)
    """(session, frame) that a cut stopped"""


@dataclass(slots=True)
class _Direction:
    latency_ns: int
    cuts: int = 0
    """how many causes cut it"""
    sent_ns: int = 0
    """when the last byte handed over has left"""
    lanes: tuple[_Lane, _Lane] = field(default_factory=lambda: (_Lane(), _Lane()))


@dataclass(slots=True)
class Carried:
    """Figures of a run."""

    frames: int = 0
    frames_lost: int = 0
    bytes_by_node: dict[int, int] = field(default_factory=dict)
    """bytes sent by each node"""


class Observer(Protocol):
    """Is told of every frame that is handed to the network."""

    def frame_sent(self, sender: int, receiver: int, frame: bytes) -> None: ...


class Network:
    """All links of a run. Nodes are numbered from 0."""

    def __init__(
        self,
        clock: Clock,
        chance: Chance,
        weather: Weather,
        latency_ns: dict[Pair, int],
        observer: Observer,
    ) -> None:
        """`latency_ns` has every pair that can be linked, one way, in both directions."""
        self.carried = Carried()
        self._clock = clock
        self._chance = chance
        self._weather = weather
        self._observer = observer
        self._ports: dict[int, Port] = {}
        self._directions = {pair: _Direction(ns) for pair, ns in sorted(latency_ns.items())}
        self._peers: dict[int, list[int]] = {}
        for a, b in self._directions:
            self._peers.setdefault(a, []).append(b)
        self._ends: dict[Pair, int] = {}
        """(node, peer) -> the session that the node has with the peer"""
        self._sessions = 0
        self._dialling: dict[Pair, int] = {}
        self._dials = 0
        self._silent_since: dict[Pair, int] = {}

    # ---- nodes ----

    def start(self, node: int, port: Port) -> None:
        """The node runs: it and its peers dial each other."""
        self._ports[node] = port
        for peer in self._peers.get(node, ()):
            if peer in self._ports:
                self._dial(node, peer, 0)

    def stop(self, node: int) -> None:
        """The node's process is gone. Its kernel resets the sessions, if that reaches the peers."""
        del self._ports[node]
        for peer in self._peers.get(node, ()):
            session = self._ends.pop((node, peer), None)
            if session is not None:
                self._tell_end(node, peer, session)

    def linked(self, node: int, peer: int) -> bool:
        """Whether both nodes have the same session and nothing cuts it."""
        session = self._ends.get((node, peer))
        return (
            session is not None
            and session == self._ends.get((peer, node))
            and not self._cut(node, peer)
        )

    def passes(self, sender: int, receiver: int) -> bool:
        """Whether a packet gets through, whatever the nodes' processes do."""
        return sender == receiver or not self._directions[sender, receiver].cuts

    # ---- faults ----

    def cut(self, pairs: Iterable[Pair]) -> None:
        """Cut these directions, silently. Cuts add up: each is undone by its own heal."""
        for a, b in pairs:
            was_cut = self._cut(a, b)
            self._directions[a, b].cuts += 1
            if was_cut:
                continue
            for node, peer in ((a, b), (b, a)):
                self._expect_silence(node, peer)

    def heal(self, pairs: Iterable[Pair]) -> None:
        """Undo one cut of each of these directions."""
        for pair in pairs:
            direction = self._directions[pair]
            direction.cuts -= 1
            if direction.cuts == 0:
                self._release_held(*pair)

    def slow(self, pair: Pair, factor: float) -> None:
        """Multiply the latency of a direction."""
        direction = self._directions[pair]
        direction.latency_ns = round(direction.latency_ns * factor)

    @property
    def whole(self) -> bool:
        """Whether nothing is cut."""
        return not any(direction.cuts for direction in self._directions.values())

    # ---- frames ----

    def send(self, sender: int, receiver: int, frame: bytes, push: bool) -> None:
        """Give a frame to the transport; nothing happens without a session."""
        session = self._ends.get((sender, receiver))
        if session is None:
            return
        direction = self._directions[sender, receiver]
        departs_ns = self._departure(direction, len(frame))
        if departs_ns is None:
            self.carried.frames_lost += 1
            self._ports[sender].link_lagging(receiver)
            return
        self.carried.frames += 1
        sent = self.carried.bytes_by_node
        sent[sender] = sent.get(sender, 0) + len(frame)
        self._observer.frame_sent(sender, receiver, frame)
        travel_ns = direction.latency_ns + self._jitter_ns()
        if self._weather.mode == "datagram":
            self._send_datagram(sender, receiver, frame, departs_ns + travel_ns)
            return
        if self._hits(self._weather.reset):
            self._clock.at(departs_ns, partial(self._break, sender, receiver, session))
            return
        lane = direction.lanes[push]
        arrives_ns = departs_ns + travel_ns + self._retransmission_ns()
        lane.arrives_ns = max(lane.arrives_ns, arrives_ns)
        self._clock.at(
            lane.arrives_ns, partial(self._arrive, sender, receiver, lane, session, frame)
        )

    def _departure(self, direction: _Direction, size_bytes: int) -> int | None:
        """When the frame's last byte has left; None when the queue is full."""
        now_ns = self._clock.now_ns
        rate = self._weather.bits_per_s
        if not rate:
            return now_ns
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
        if port is None or self._directions[sender, receiver].cuts:
            self.carried.frames_lost += 1
        else:
            port.frame_in(sender, frame)

    def _arrive(self, sender: int, receiver: int, lane: _Lane, session: int, frame: bytes) -> None:
        if self._directions[sender, receiver].cuts:
            lane.held.append((session, frame))
        elif self._ends.get((receiver, sender)) != session or receiver not in self._ports:
            self.carried.frames_lost += 1
        else:
            self._ports[receiver].frame_in(sender, frame)

    def _release_held(self, sender: int, receiver: int) -> None:
        """What a cut held is sent again, in order, once TCP tries again."""
        for lane in self._directions[sender, receiver].lanes:
            held, lane.held = lane.held, []
            if held:
                again_ns = RETRANSMIT_NS + int(self._chance.random() * SECOND_NS)
                lane.arrives_ns = max(lane.arrives_ns, self._clock.now_ns + again_ns)
            for session, frame in held:
                self._clock.at(
                    lane.arrives_ns, partial(self._arrive, sender, receiver, lane, session, frame)
                )

    def _retransmission_ns(self) -> int:
        delay_ns = 0
        for attempt in range(RETRANSMITS_MAX):
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
        return bool(self._directions[a, b].cuts or self._directions[b, a].cuts)

    def _dial(self, node: int, peer: int, delay_ns: int) -> None:
        """Try to make a session after `delay_ns`, and again until there is one."""
        pair = (min(node, peer), max(node, peer))
        self._dials += 1
        self._dialling[pair] = dial = self._dials
        round_trip_ns = self._directions[node, peer].latency_ns * 2
        self._clock.after(
            delay_ns + ESTABLISH_ROUND_TRIPS * round_trip_ns + self._jitter_ns(),
            partial(self._establish, node, peer, dial),
        )

    def _establish(self, node: int, peer: int, dial: int) -> None:
        pair = (min(node, peer), max(node, peer))
        if self._dialling.get(pair) != dial:
            return  # a later attempt is under way
        if node not in self._ports or peer not in self._ports:
            return  # who starts dials
        if self._cut(node, peer):
            self._dial(node, peer, TRY_AGAIN_NS)
            return
        del self._dialling[pair]
        self._sessions += 1
        for end in ((peer, node), (node, peer)):
            had = self._ends.get(end)
            self._ends[end] = self._sessions
            if had is not None:
                self._ports[end[0]].link_down(end[1])
        for end in ((peer, node), (node, peer)):
            if self._ends.get(end) == self._sessions and end[0] in self._ports:
                self._ports[end[0]].link_up(end[1])

    def _end(self, node: int, peer: int, session: int) -> None:
        """One end gives the session up, and dials again."""
        if self._ends.get((node, peer)) != session or node not in self._ports:
            return
        del self._ends[node, peer]
        self._ports[node].link_down(peer)
        if peer in self._ports:
            self._dial(node, peer, self._weather.redial_ns)

    def _tell_end(self, node: int, peer: int, session: int) -> None:
        """`node` has ended the session: the peer learns by a reset, or by silence."""
        if self._directions[node, peer].cuts:
            delay_ns = self._weather.detect_ns
        else:
            delay_ns = self._directions[node, peer].latency_ns
        self._clock.after(delay_ns, partial(self._end, peer, node, session))

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
        self._clock.after(
            self._weather.detect_ns + late_ns,
            partial(self._notice_silence, node, peer, session, silent_ns),
        )

    def _notice_silence(self, node: int, peer: int, session: int, silent_ns: int) -> None:
        if self._cut(node, peer) and self._silent_since.get((node, peer)) == silent_ns:
            self._end(node, peer, session)
