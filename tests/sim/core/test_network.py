"""The modelled network against what TCP and the node's transport do."""

from __future__ import annotations

import pytest

from sim.core.clock import MS_NS, SECOND_NS, Clock
from sim.core.network import STALLED_BYTES_MAX, Network, Weather
from sim.core.upkeep import BEAT_BYTES, ESTABLISH_BYTES, FRAME_BYTES
from sim.seeding import chance_of

Log = list[tuple[float, str, object]]


class Port:
    def __init__(self, clock: Clock) -> None:
        self.log: Log = []
        self.admitting = True
        self._clock = clock

    def _note(self, what: str, value: object) -> None:
        self.log.append((self._clock.now_ns / SECOND_NS, what, value))

    def admits(self, peer: int) -> bool:
        return self.admitting

    def refuses(self, peer: int) -> bool:
        return not self.admitting

    def link_up(self, peer: int) -> None:
        self._note("up", peer)

    def link_down(self, peer: int) -> None:
        self._note("down", peer)

    def link_lagging(self, peer: int) -> None:
        self._note("lagging", peer)

    def frame_in(self, peer: int, frame: bytes) -> None:
        self._note("frame", frame)

    def frames(self) -> list[bytes]:
        return [value for _, what, value in self.log if what == "frame" and type(value) is bytes]

    def changes(self) -> list[str]:
        return [what for _, what, _ in self.log if what in ("up", "down")]


class Two:
    """Two nodes and the link between them."""

    def __init__(self, weather: Weather | None = None, seed: int = 1) -> None:
        self.clock = Clock()
        self.kept_bytes = [0, 0]
        chance = chance_of(seed)("network")
        self.network = Network(
            self.clock, chance, weather or Weather(), lambda a, b: 10 * MS_NS, self
        )
        self.ports = [Port(self.clock), Port(self.clock)]
        for node, port in enumerate(self.ports):
            self.network.start(node, port)
        self.run(1.0)

    def frame_sent(self, sender: int, receiver: int, frame: bytes) -> None:
        pass

    def link_kept(self, node: int, size_bytes: int, since_ns: int) -> None:
        self.kept_bytes[node] += size_bytes

    def run(self, seconds: float) -> None:
        self.clock.run(self.clock.now_ns + int(seconds * SECOND_NS))

    def cut(self) -> None:
        self.network.cut([(0, 1), (1, 0)])

    def heal(self) -> None:
        self.network.heal([(0, 1), (1, 0)])

    def send(self, count: int, push: bool = True, words: bytes = b"") -> list[bytes]:
        frames = [b"%s%d" % (words, i) for i in range(count)]
        for frame in frames:
            self.network.send(0, 1, frame, push)
        return frames


def test_frames_arrive_in_order_after_the_latency() -> None:
    two = Two()
    began_s = two.clock.now_ns / SECOND_NS
    sent = two.send(100)
    two.run(1.0)
    assert two.ports[1].frames() == sent
    arrived = [at_s for at_s, what, _ in two.ports[1].log if what == "frame"]
    assert 0.010 <= min(arrived) - began_s <= max(arrived) - began_s <= 0.012


def test_loss_delays_a_stream_and_loses_nothing() -> None:
    two = Two(Weather(loss=0.2))
    sent = two.send(200)
    two.run(60.0)
    assert two.ports[1].frames() == sent
    assert two.ports[1].log[-1][0] > 1.2


def test_a_short_cut_holds_frames_and_keeps_the_session() -> None:
    two = Two()
    two.cut()
    sent = two.send(5)
    two.run(2.0)
    assert two.ports[1].frames() == []
    two.heal()
    two.run(5.0)
    assert two.ports[1].frames() == sent
    assert two.ports[0].changes() == two.ports[1].changes() == ["up"]


def test_nothing_overtakes_what_a_cut_held() -> None:
    """Not what is under way when the cut ends, nor what is sent after; another cut holds it all."""
    for again in (False, True):
        two = Two()
        two.cut()
        sent = two.send(2)
        two.run(0.5)
        sent += two.send(2, words=b"under way ")
        two.heal()
        two.run(0.1)
        sent += two.send(2, words=b"after ")
        if again:
            two.cut()
            two.run(2.0)
            assert two.ports[1].frames() == []
            two.heal()
            two.run(0.1)
            sent += two.send(2, words=b"after both ")
        two.run(5.0)
        assert two.ports[1].frames() == sent
        assert two.ports[1].changes() == ["up"]


def test_a_long_cut_is_noticed_after_the_heartbeat_and_loses_what_was_under_way() -> None:
    two = Two()
    two.cut()
    two.send(5)
    two.run(10.0)
    for port in two.ports:
        (down_s,) = [at_s for at_s, what, _ in port.log if what == "down"]
        assert 4.0 <= down_s <= 5.0
    two.heal()
    two.run(5.0)
    assert two.ports[1].frames() == []
    assert [port.changes() for port in two.ports] == [["up", "down", "up"]] * 2
    two.send(1)
    two.run(1.0)
    assert two.ports[1].frames() == [b"0"]


def test_a_new_session_waits_for_nothing_of_the_one_before() -> None:
    """It is a connection of its own; what a cut held of the old one is lost with that."""
    for seed in range(10):
        two = Two(seed=seed)
        two.cut()
        lost = two.send(3)
        two.run(10.0)
        two.heal()
        while len(two.ports[0].changes()) < 3:
            two.run(0.01)
        began_s = two.clock.now_ns / SECOND_NS
        sent = two.send(1, words=b"new ")
        two.run(5.0)
        assert two.ports[1].frames() == sent
        assert two.ports[1].log[-1][0] - began_s <= 0.03
        assert two.network.carried.frames_lost == len(lost)


def test_bytes_are_counted_with_what_is_around_frames_and_what_links_cost() -> None:
    two = Two()
    two.network.count()
    assert two.kept_bytes[0] >= ESTABLISH_BYTES
    two.send(1, words=bytes(99))
    two.run(60.0)
    two.network.count()
    beats = two.kept_bytes[0] - ESTABLISH_BYTES
    assert beats // BEAT_BYTES in (75, 76)  # in 61 s
    sent = two.network.carried.bytes_by_node
    assert (sent[0], sent[1]) == (two.kept_bytes[0] + 100 + FRAME_BYTES, two.kept_bytes[1])


def test_a_cut_of_one_direction_ends_the_session_at_both_ends() -> None:
    two = Two()
    two.network.cut([(0, 1)])
    two.run(10.0)
    assert [port.changes() for port in two.ports] == [["up", "down"]] * 2


def test_cuts_add_up() -> None:
    two = Two()
    two.cut()
    two.cut()
    two.heal()
    assert not two.network.whole
    assert not two.network.passes(0, 1)
    two.heal()
    assert two.network.whole
    assert two.network.passes(0, 1)


def test_a_crash_resets_the_session_and_a_start_makes_a_new_one() -> None:
    two = Two()
    two.network.stop(1)
    two.run(0.5)
    assert two.ports[0].changes() == ["up", "down"]
    two.network.start(1, two.ports[1])
    two.run(1.0)
    assert two.ports[0].changes() == ["up", "down", "up"]
    assert two.network.linked(0, 1)


def test_datagrams_are_lost_doubled_and_overtake() -> None:
    two = Two(Weather(mode="datagram", loss=0.2, duplicate=0.2, reorder=0.2))
    sent = two.send(300)
    two.run(10.0)
    got = two.ports[1].frames()
    assert set(got) < set(sent)
    assert len(got) > len(set(got))
    assert got != sorted(got, key=lambda frame: int(frame))


def test_a_queue_that_is_full_drops_and_says_so() -> None:
    two = Two(Weather(bits_per_s=8_000, queue_bytes_max=1000))
    for _ in range(30):
        two.network.send(0, 1, bytes(100), True)
    two.run(60.0)
    assert len(two.ports[1].frames()) == 10
    assert [what for _, what, _ in two.ports[0].log].count("lagging") == 20
    assert two.ports[1].log[-1][0] == pytest.approx(2.0, abs=0.05)  # 1000 bytes at 1 kB/s


def test_a_reset_loses_the_frame_and_the_link_comes_back() -> None:
    two = Two(Weather(reset=0.5))
    two.send(10)
    two.run(10.0)
    for port in two.ports:
        assert port.changes() == ["up", "down", "up"]


def test_a_slow_link_takes_so_many_times_as_long_and_no_longer_afterwards() -> None:
    two = Two()
    pairs = [(0, 1), (1, 0)]
    two.network.slow(pairs, 10.0)
    began_s = two.clock.now_ns / SECOND_NS
    two.send(1)
    two.run(1.0)
    assert two.ports[1].log[-1][0] - began_s == pytest.approx(0.1, abs=0.003)
    two.network.slow(pairs, 1 / 10.0)
    began_s = two.clock.now_ns / SECOND_NS
    two.send(1)
    two.run(1.0)
    assert two.ports[1].log[-1][0] - began_s == pytest.approx(0.01, abs=0.003)


def test_who_does_not_read_gets_all_in_order_once_it_does() -> None:
    two = Two()
    two.network.stall(1)
    sent = two.send(5)
    two.run(10.0)
    assert two.ports[1].frames() == []
    assert two.ports[1].changes() == ["up"]
    two.network.resume(1)
    assert two.ports[1].frames() == sent


def test_beyond_what_buffers_hold_a_stalled_reader_s_writer_is_told() -> None:
    two = Two()
    two.network.stall(1)
    big = bytes(STALLED_BYTES_MAX // 4)
    for _ in range(6):
        two.network.send(0, 1, big, True)
    two.run(10.0)
    assert [what for _, what, _ in two.ports[0].log].count("lagging") == 2
    two.network.resume(1)
    assert len(two.ports[1].frames()) == 4


def test_a_refused_handshake_is_tried_again() -> None:
    two = Two()
    two.network.stop(1)
    two.ports[1].admitting = False
    two.network.start(1, two.ports[1])
    two.run(12.0)
    assert not two.network.linked(0, 1)
    assert not two.network.refusals_lapse
    two.ports[1].admitting = True
    assert two.network.refusals_lapse
    two.run(6.0)
    assert two.network.linked(0, 1)
