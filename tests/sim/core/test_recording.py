"""What is taken down of a run for its report: bounded, true, and without a trace in the run."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import wire
from sim.core import recording as rec
from sim.core.clock import MS_NS, SECOND_NS, Clock
from sim.core.episodes import Episodes, sides_text
from sim.core.recording import Recording, Series
from sim.core.scenario import Scenario, parse
from sim.core.simulation import Result, run
from sim.core.upkeep import ESTABLISH_BYTES, FRAME_BYTES
from sim.seeding import chance_of
from tests.mesh.core.test_wire import FRAMES


def recorded(scenario: Scenario, seed: int) -> tuple[Result, Recording]:
    recording = Recording()
    return run(scenario, seed, chance_of(seed), recording), recording


def at(series: Series, at_ns: int) -> tuple[int, ...]:
    """The row that holds at a time."""
    return series.rows[max(i for i, time_ns in enumerate(series.at_ns) if time_ns <= at_ns)]


def with_a_cut(**more: Any) -> Scenario:
    """Four sites; from second 10 to 25 one of them is cut off."""
    return parse(
        {
            "duration_s": 40,
            "sites": 4,
            "network": {"latency_ms": 20},
            "workload": {"vpcs": 1, "addresses": 200, "rate_per_s": 4, "mix": {"create": 1}},
            "event": [{"at_s": 10, "cut": [["a"]], "for_s": 15}],
            **more,
        }
    )


@pytest.mark.parametrize("family", ["churn", "rough", "lost_disks"])
def test_a_recorded_run_is_the_run(family: str, request: pytest.FixtureRequest) -> None:
    scenario = request.getfixturevalue(family)
    for seed in range(3):
        result, _ = recorded(scenario, seed)
        assert result == run(scenario, seed, chance_of(seed))


def test_every_update_reaches_every_node_that_holds_its_shard() -> None:
    result, recording = recorded(with_a_cut(), 1)
    assert result.ok
    travels = recording.travels
    assert travels.made == len(travels.followed) > 50
    assert travels.stride == 1
    for update in travels.followed.values():
        assert 1 + sum(update.delays) == travels.holders(update) == 4
    arrivals = sum(travels.calm) + sum(travels.rough)
    assert arrivals == 3 * travels.made
    assert sum(travels.rough) > 0


def test_an_update_counts_as_received_with_the_later_epoch_that_covers_it() -> None:
    """Node a writes while it is cut off, and is another process when the others hear of it."""
    events = [
        {"at_s": 5, "cut": [["a"]], "for_s": 20},
        {"at_s": 20, "crash": "a", "for_s": 1},
    ]
    result, recording = recorded(with_a_cut(event=events), 1)
    assert result.ok
    travels = recording.travels
    in_the_cut = [
        update
        for update in travels.followed.values()
        if recording.names[update.writer] == "a-1" and 6 < update.made_ns / SECOND_NS < 20
    ]
    assert in_the_cut
    assert all(1 + sum(update.delays) == 4 for update in in_the_cut)


def test_what_was_made_before_a_node_joined_is_no_news_to_it() -> None:
    result, recording = recorded(with_a_cut(event=[{"at_s": 20, "join": "b"}]), 1)
    assert result.ok, result.violations
    travels = recording.travels
    followed = sorted(travels.followed.values(), key=lambda update: update.made_ns)
    early = [update for update in followed if 5 < update.made_ns / SECOND_NS < 19]
    late = [update for update in followed if 21 < update.made_ns / SECOND_NS < 39]
    assert {travels.holders(update) for update in early} == {4}
    assert {travels.holders(update) for update in late} == {5}
    for update in early + late:
        assert not any(update.delays[rec.bin_of(SECOND_NS) :])
    assert travels.expected() == sum(map(travels.holders, followed))
    assert travels.expected() == travels.made + sum(travels.calm) + sum(travels.rough)
    assert recording.agreement.series.rows[-1] == (5, 5)


def test_only_members_count_among_those_that_run_and_agree() -> None:
    events = [
        {"at_s": 10, "retire": "c"},
        {"at_s": 15, "clone": "a", "from_s": 5, "for_s": 5},
        {"at_s": 25, "hostile": "d", "for_s": 5},
    ]
    _, recording = recorded(with_a_cut(event=events, quiet_s=120), 1)
    series = recording.agreement.series
    running = [at(series, second * SECOND_NS)[0] for second in (9, 12, 17, 27, 35)]
    assert running == [4, 3, 3, 2, 2]
    assert series.rows[-1] == (2, 2)
    kinds = [episode.kind for episode in recording.episodes.logged]
    assert kinds[:3] == ["retire", "clone", "hostile"]


def test_updates_reach_nodes_that_lost_their_disks(lost_disks: Scenario) -> None:
    """Also those that come with a later epoch, whose header says what it covers."""
    result, recording = recorded(lost_disks, 3)
    assert result.ok
    incomplete = [
        update
        for update in recording.travels.followed.values()
        if 1 + sum(update.delays) < recording.travels.holders(update)
    ]
    # What nobody but its writer had when the writer's disk was lost is gone for good.
    assert len(incomplete) * 10 < recording.travels.made


def test_the_times_are_those_of_the_result() -> None:
    result, recording = recorded(with_a_cut(event=[]), 1)
    passed = list(accumulate(recording.travels.calm))
    i = next(i for i, count in enumerate(passed) if 2 * count > passed[-1])
    assert result.push_p50_s is not None
    assert rec.bin_end_s(i - 1) * 0.99 <= result.push_p50_s <= rec.bin_end_s(i) * 1.01


def test_a_cut_is_seen_in_who_agrees() -> None:
    result, recording = recorded(with_a_cut(), 1)
    assert result.ok
    (cut,) = recording.episodes.logged
    assert (cut.kind, cut.what) == ("cut", "a | b, c, d")
    assert (cut.began_ns, cut.ended_ns) == (10 * SECOND_NS, 25 * SECOND_NS)
    series = recording.agreement.series
    before, late_in_the_cut = (at(series, second * SECOND_NS) for second in (9, 24))
    assert before[0] == late_in_the_cut[0] == 4
    assert late_in_the_cut[1] <= 3
    assert series.rows[-1] == (4, 4)
    assert all(a <= b for a, b in pairwise(series.at_ns))


def test_conflicts_come_up_when_the_sides_meet() -> None:
    mix = {"create": 3, "claim": 3, "delete": 3}
    workload = {"vpcs": 1, "rate_per_s": 8, "addresses": 9, "mix": mix}
    _, recording = recorded(with_a_cut(workload=workload), 2)
    rows = recording.conflicts.series.rows
    assert len({resolved for _, _, resolved in rows}) > 3
    assert all(opened - resolved == now_open for now_open, opened, resolved in rows)
    assert all(a[1] <= b[1] and a[2] <= b[2] for a, b in pairwise(rows))


def test_crashes_and_lost_disks_are_logged(lost_disks: Scenario) -> None:
    result, recording = recorded(lost_disks, 1)
    down = [episode for episode in recording.episodes.logged if episode.kind == "down"]
    assert down
    assert any("older copy" in episode.note for episode in down)
    assert all(episode.ended_ns is not None for episode in recording.episodes.logged)
    assert sum(e.kind in ("cut", "flap", "down") for e in recording.episodes.logged) == (
        result.faults
    )
    assert min(running for running, _ in recording.agreement.series.rows) < 3


def test_the_bytes_are_those_of_the_result() -> None:
    result, recording = recorded(with_a_cut(), 1)
    traffic = recording.traffic
    total = sum(map(sum, traffic.by_node))
    assert total // 4 == result.bytes_per_site
    assert total == sum(map(sum, traffic.by_slot))
    assert sum(traffic.frames) == result.frames
    groups = dict(zip(rec.GROUPS, traffic.frames, strict=True))
    assert groups["updates"] > 0
    assert groups["comparing"] > 0
    assert groups["other"] == 0
    links = traffic.by_node[rec.GROUPS.index("links")]
    assert min(links) >= 3 * ESTABLISH_BYTES  # of every node with each of the others


@pytest.mark.parametrize("name", FRAMES)
def test_every_kind_of_frame_has_its_group(name: str) -> None:
    traffic = rec.Traffic(1)
    traffic.sent(0, wire.encode(FRAMES[name]), 0)
    assert dict(zip(rec.GROUPS, traffic.frames, strict=True))["other"] == 0


def test_bytes_stand_in_the_slot_of_their_time_however_wide_slots_become() -> None:
    traffic = rec.Traffic(2)
    frame = bytes((0x93, 1, 4)) + bytes(97)
    carried = 100 + FRAME_BYTES
    traffic.sent(0, frame, 0)
    traffic.sent(1, frame, 7 * rec.SLOT_NS)
    updates = traffic.by_slot[0]
    assert [i for i, number in enumerate(updates) if number] == [0, 7]
    traffic.sent(1, frame, 3 * rec.SLOTS_MAX * rec.SLOT_NS)
    assert traffic.slot_ns == 4 * rec.SLOT_NS
    assert {i: number for i, number in enumerate(updates) if number} == {
        0: carried,
        1: carried,
        3 * rec.SLOTS_MAX // 4: carried,
    }
    assert list(traffic.by_node[0]) == [carried, 2 * carried]


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rec, "FOLLOWED_MAX", 16)
    monkeypatch.setattr(rec, "POINTS_MAX", 32)
    monkeypatch.setattr(rec, "SLOTS_MAX", 8)
    _, recording = recorded(with_a_cut(), 1)
    travels = recording.travels
    assert len(travels.followed) <= 16
    assert travels.stride >= 4
    assert all(number % travels.stride == 0 for number in travels.followed)
    assert sum(travels.calm) + sum(travels.rough) == 3 * travels.made
    assert len(recording.agreement.series.rows) <= 32
    assert recording.agreement.series.rows[-1] == (4, 4)
    assert len(recording.traffic.by_slot[0]) == 8
    assert sum(map(sum, recording.traffic.by_slot)) == sum(map(sum, recording.traffic.by_node))


@given(st.integers(1, 400 * 24 * 3600 * SECOND_NS))
def test_a_delay_is_in_its_bin(delay_ns: int) -> None:
    i = rec.bin_of(delay_ns)
    assert delay_ns / SECOND_NS <= rec.bin_end_s(i) * (1 + 1e-9)
    if delay_ns > MS_NS:
        assert delay_ns / SECOND_NS >= rec.bin_end_s(i - 1) * (1 - 1e-9)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=60))
def test_a_series_says_at_every_time_what_was_added(values: list[int]) -> None:
    series = Series()
    for at_ns, value in enumerate(values):
        series.add(at_ns, (value,))
    assert [at(series, at_ns)[0] for at_ns in range(len(values))] == values


@given(st.lists(st.integers(0, 40), min_size=1, max_size=200), st.integers(1, 50))
def test_a_full_series_keeps_its_ends(steps_ns: list[int], every_ns: int) -> None:
    series = Series(every_ns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rec, "POINTS_MAX", 8)
        at_ns = 0
        for value, step_ns in enumerate(steps_ns):
            at_ns += step_ns
            series.add(at_ns, (value,))
    assert series.at_ns[0] == steps_ns[0]
    assert series.rows[-1] == (len(steps_ns) - 1,)
    assert len(series.rows) == len(series.at_ns) < 8
    assert all(b - a >= every_ns for a, b in pairwise(series.at_ns))


@pytest.mark.parametrize("family", ["churn", "lost_disks"])
def test_agreement_is_what_a_count_of_all_digests_finds(
    family: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept up with every change of one node, against a look at all of them."""
    looks = []

    def add(self: rec.Agreement, now_ns: int) -> None:
        running = {m.identity.index for m in self._machines if m.process is not None}
        astray: set[int] = set()
        clear = True
        for held in self._held.values():
            assert held.keys() <= running
            found = Counter(held.values()).most_common(2)
            # Where two digests are equally common, which of them counts is left open.
            clear = clear and (len(found) < 2 or found[0][1] > found[1][1])
            astray |= {node for node, digest in held.items() if digest != found[0][0]}
        assert self._running == running
        if clear:
            assert self._astray.keys() == astray
        looks.append(clear)

    monkeypatch.setattr(rec.Agreement, "_add", add)
    result, recording = recorded(request.getfixturevalue(family), 1)
    assert result.ok, result.violations
    assert sum(looks) > 50
    for machine in recording.agreement._machines:
        assert machine.process is not None
        lattice = machine.process.replica.lattice
        for shard in lattice.shards():
            held = recording.agreement._held[shard][machine.identity.index]
            assert held == lattice.digest(shard)


def test_the_log_of_episodes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.core.episodes.EPISODES_MAX", 2)
    episodes = Episodes(Clock())
    for name in ("a", "b", "c"):
        episodes.happened("restart", name)
    assert ([e.what for e in episodes.logged], episodes.left_out) == (["a", "b"], 1)


@pytest.mark.parametrize(
    ("sides", "said"),
    [
        ([["a", "a", "b"], ["c"]], "a, b | c"),
        ([["a"], [f"s{i}" for i in range(200)]], "a | 200 others"),
        ([list("abcde"), list("fghijk")], "a, b, c, … (5) | 6 others"),
        ([list("fghijk"), list("abcde"), []], "6 others | a, b, c, … (5)"),
    ],
)
def test_the_sides_of_a_cut_fit_into_a_line(sides: list[list[str]], said: str) -> None:
    assert sides_text(sides) == said


def test_what_came_last_before_a_long_quiet_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Conflicts are looked at every so often, and once more before time is leapt over."""
    mix = {"create": 3, "claim": 3, "delete": 3}
    workload = {"vpcs": 1, "rate_per_s": 0.02, "addresses": 3, "mix": mix}
    seen: list[int] = []

    def settled(self: Recording) -> None:
        original(self)
        now_open = set()
        for node in self.conflicts.observers:
            process = self.conflicts._machines[node].process
            if process is not None:
                now_open |= {(c.kind, c.key) for c in process.view.conflicts()}
        assert self.conflicts.series.rows[-1][0] == len(now_open)
        seen.append(len(now_open))

    original = Recording.settled
    monkeypatch.setattr(Recording, "settled", settled)
    result, _ = recorded(with_a_cut(workload=workload, duration_s=2000), 2)
    assert result.ok, result.violations
    assert len(set(seen)) > 1
