"""A crowd that comes at once: what a node begins, asks and answers at the same time is bounded."""

from __future__ import annotations

import pytest

from crdt.chain import Chain
from crdt.header import ChainId, Epoch
from crdt.lattice import Lattice
from mesh.core import wire
from mesh.core.antientropy import ANSWER_NS, EXCHANGES_MAX
from mesh.core.effects import Send
from mesh.core.fetching import ASKED_MAX, WANT_TIMEOUT_NS, Fetching, Host
from mesh.core.serving import SERVED_MAX, STALLED_NS, TURN_NS, Answers
from mesh.core.sync import WINDOW
from tests.mesh.core.test_replica import Wire, put

PEERS = tuple(b"%016d" % i for i in range(40))
SHARD = "a" * 32
SECOND_NS = 10**9


# -- telling all shards ----------------------------------------------------------------------------


def syncs(mesh: Wire, i: int) -> list[bytes]:
    """Whom node `i` tells all its shards now."""
    sent = [effect for effect in mesh.replicas[i].drain() if isinstance(effect, Send)]
    return [send.peer for send in sent if isinstance(wire.decode(send.frame), wire.Sync)]


def test_a_few_of_many_links_that_come_up_at_once_are_told_all_shards_and_then_the_others() -> None:
    mesh = Wire(3 * EXCHANGES_MAX)
    hub, told = mesh.replicas[0], []
    for peer in mesh.nodes[1:]:
        hub.peer_up(peer, mesh.now_ns)
    told += syncs(mesh, 0)
    assert len(told) == EXCHANGES_MAX
    mesh.now_ns += ANSWER_NS - 1
    hub.timer(mesh.now_ns)
    assert set(syncs(mesh, 0)) <= set(told), "who has not been answered says it again at most"
    for _ in range(6):  # nobody ever answers: the others have their turns all the same
        mesh.now_ns += ANSWER_NS
        hub.timer(mesh.now_ns)
        told += syncs(mesh, 0)
    assert set(told) == set(mesh.nodes[1:])


def test_who_asks_is_answered_while_others_wait_for_their_turns() -> None:
    mesh = Wire(EXCHANGES_MAX + 2)
    hub, last = mesh.replicas[0], len(mesh.nodes) - 1
    put(mesh.replicas[0], b"k", shard=SHARD)
    put(mesh.replicas[last], b"j", shard=SHARD)
    for peer in mesh.nodes[1:]:
        hub.peer_up(peer, mesh.now_ns)
    assert mesh.nodes[last] not in syncs(mesh, 0)
    mesh.links |= {(0, last), (last, 0)}
    mesh.replicas[last].peer_up(mesh.nodes[0], mesh.now_ns)
    mesh.run()
    assert mesh.replicas[last].lattice.digest(SHARD) == hub.lattice.digest(SHARD)


def test_a_crowd_that_comes_back_at_once_is_brought_up_to_date() -> None:
    mesh = Wire(3 * EXCHANGES_MAX)
    for i, replica in enumerate(mesh.replicas):
        put(replica, b"k%d" % i, shard=SHARD)
    for i in range(1, len(mesh.nodes)):
        mesh.link(0, i)
    mesh.tick(5)
    assert len(mesh.digests(SHARD)) == 1
    assert all(mesh.replicas[0].in_sync_ns(peer) for peer in mesh.nodes[1:])


# -- asking ----------------------------------------------------------------------------------------


class Asker:
    def __init__(self) -> None:
        self.wants: list[tuple[bytes, wire.Want]] = []
        host = Host(self._send, lambda _peer, _delta, _alone, _now_ns, _made: True)
        self.fetching = Fetching(Lattice(), Wire(1).replicas[0].roster, host)
        for i, peer in enumerate(PEERS):
            self.fetching.up(peer)
            self.fetching.enqueue(peer, b"%08d" % i)

    def _send(self, peer: bytes, frame: wire.Frame) -> None:
        assert isinstance(frame, wire.Want)
        self.wants.append((peer, frame))

    def pump(self, now_ns: int = 0) -> None:
        for peer in PEERS:
            self.fetching.pump(peer, now_ns)

    @property
    def asked(self) -> list[bytes]:
        return [peer for peer, _ in self.wants]


def test_a_few_peers_are_asked_at_once_and_the_next_when_one_is_done() -> None:
    asker = Asker()
    asker.pump()
    assert asker.asked == list(PEERS[:ASKED_MAX])
    assert all(asker.fetching.busy(peer) for peer in PEERS), "those that wait count as busy"
    peer, want = asker.wants[3]
    asker.fetching.done(peer, wire.Done(want.id), SECOND_NS)
    assert asker.asked == list(PEERS[: ASKED_MAX + 1])
    assert not asker.fetching.busy(peer)
    asker.fetching.down(PEERS[0], SECOND_NS)
    asker.fetching.down(PEERS[ASKED_MAX + 1], SECOND_NS)  # it is asked now, so the next one is
    assert asker.asked == list(PEERS[: ASKED_MAX + 3])
    asker.fetching.give_up(PEERS[ASKED_MAX + 5], SECOND_NS)
    asker.fetching.give_up(PEERS[1], SECOND_NS)
    assert asker.asked == list(PEERS[: ASKED_MAX + 4])
    assert not asker.fetching.busy(PEERS[ASKED_MAX + 5]), "it has nothing to be asked for"


def test_who_is_long_about_it_keeps_nobody_waiting() -> None:
    asker = Asker()
    asker.pump()
    for now_ns in range(0, WANT_TIMEOUT_NS, SECOND_NS):
        asker.pump(now_ns)
    assert len(asker.wants) == ASKED_MAX
    asker.pump(WANT_TIMEOUT_NS)
    assert len(asker.wants) == 2 * ASKED_MAX


# -- answering -------------------------------------------------------------------------------------


class Server:
    """A chain of several chunks, and what is answered."""

    def __init__(self) -> None:
        lattice = Lattice()
        chain = Chain(ChainId(b"n" * 16, SHARD), Epoch(1, b"e" * 8))
        for i in range(200):
            chain.put(b"%04d" % i, bytes(wire.CHUNK_BYTES // 16))
        chain.seal(b"m" * 16, lambda _text: bytes(64), ())
        lattice.reseal(chain, chain.epoch)
        self.short = chain.id.short()
        self.sent: list[tuple[bytes, wire.Frame]] = []
        self.answers = Answers(lattice, lambda peer, frame: self.sent.append((peer, frame)))

    def want(self, peer: bytes, number: int = 1, now_ns: int = 0) -> None:
        self.answers.want(peer, wire.Want(number, {self.short: ()}), None, now_ns)

    def more(self, peer: bytes, now_ns: int, number: int = 1) -> None:
        self.answers.more(peer, number, now_ns)

    def took(self, peer: bytes, kind: type[wire.Part | wire.Done] = wire.Part) -> int:
        return sum(to == peer and isinstance(frame, kind) for to, frame in self.sent)

    def served(self) -> list[bytes]:
        """In the order in which their answers began."""
        return list(dict.fromkeys(peer for peer, _ in self.sent))


def test_a_few_are_answered_at_once_and_the_next_when_one_has_all() -> None:
    server = Server()
    for peer in PEERS:
        server.want(peer)
    assert server.served() == list(PEERS[:SERVED_MAX])
    while not server.took(PEERS[2], wire.Done):
        server.more(PEERS[2], SECOND_NS)
    assert server.served() == list(PEERS[: SERVED_MAX + 1])
    server.answers.down(PEERS[0], SECOND_NS)
    server.answers.down(PEERS[SERVED_MAX + 1], SECOND_NS)
    server.answers.down(PEERS[SERVED_MAX + 4], SECOND_NS)
    server.answers.down(PEERS[3], SECOND_NS)
    last = [PEERS[SERVED_MAX + 2], PEERS[SERVED_MAX + 3]]
    assert server.served()[-2:] == last, "who has gone is passed over"
    assert all(server.took(peer) == WINDOW for peer in last)


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_turn_ends_when_others_wait_and_never_without(goes_on: bool) -> None:
    server, slow = Server(), PEERS[0]
    server.want(slow)
    server.answers.timer(10 * TURN_NS)
    assert server.answers.next_deadline_ns() is None
    assert not server.took(slow, wire.Done)
    for peer in PEERS[1 : SERVED_MAX + 1]:
        server.want(peer, now_ns=SECOND_NS)
    ends_ns = TURN_NS if goes_on else STALLED_NS
    if goes_on:
        server.answers.timer(STALLED_NS // 2)
        server.more(slow, STALLED_NS // 2)
        for peer in PEERS[:SERVED_MAX]:
            server.more(peer, STALLED_NS)
        server.want(PEERS[SERVED_MAX], now_ns=TURN_NS - SECOND_NS)  # still there, still asking
    deadline_ns = server.answers.next_deadline_ns()
    assert deadline_ns == ends_ns
    server.answers.timer(deadline_ns - 1)
    assert not server.took(slow, wire.Done)
    server.answers.timer(deadline_ns)
    assert server.took(slow, wire.Done) == 1, "it is told, and may ask again"
    assert server.took(PEERS[SERVED_MAX])


def test_who_has_given_up_waiting_is_passed_over_and_who_asks_anew_keeps_its_place() -> None:
    server = Server()
    for peer in PEERS[: SERVED_MAX + 3]:
        server.want(peer)
    patient = PEERS[SERVED_MAX + 1]
    server.want(patient, 2, STALLED_NS)
    server.want(PEERS[SERVED_MAX + 2], 2, STALLED_NS)
    server.answers.down(PEERS[0], STALLED_NS + SECOND_NS)
    assert server.served()[-1] == patient
    assert not server.took(PEERS[SERVED_MAX])


def test_a_new_question_of_a_peer_that_is_answered_takes_the_place_of_the_old() -> None:
    server = Server()
    for peer in PEERS[: SERVED_MAX + 1]:
        server.want(peer)
    server.want(PEERS[0], 2, SECOND_NS)
    server.more(PEERS[0], 2 * SECOND_NS, number=1)
    assert server.took(PEERS[0]) == 2 * WINDOW, "nothing more of the first"
    assert not server.took(PEERS[SERVED_MAX])
