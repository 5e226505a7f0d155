"""The hybrid clock: it rises, and no peer drags it far ahead."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.core.clock import AHEAD_MAX_MS, HLC_MAX, HybridClock, hlc_of_ns, ns_of_hlc

MS_NS = 1_000_000
NOW_NS = 1_700_000_000_000 * MS_NS
times = st.integers(0, 1 << 62)


@given(st.lists(st.one_of(times, st.tuples(st.integers(0, HLC_MAX), times))))
def test_stamps_strictly_rise_whatever_the_machine_clock_and_peers_do(events: list[object]) -> None:
    clock = HybridClock()
    last = -1
    for event in events:
        if isinstance(event, tuple):
            clock.observe(*event)
        else:
            assert isinstance(event, int)
            stamp = clock.now(event)
            assert stamp > last and stamp >= hlc_of_ns(event)
            last = stamp


@given(times, st.integers(0, HLC_MAX))
def test_a_stamp_taken_over_is_at_most_ten_seconds_ahead(now_ns: int, hlc: int) -> None:
    clock = HybridClock()
    taken = clock.observe(hlc, now_ns)
    assert taken == (hlc >> 16 <= now_ns // MS_NS + AHEAD_MAX_MS)
    assert clock.last == (hlc if taken else 0)
    assert not taken or clock.now(now_ns) > hlc


def test_the_bound_is_ten_seconds_to_the_millisecond() -> None:
    edge = hlc_of_ns(NOW_NS + 10_000 * MS_NS)
    clock = HybridClock()
    assert clock.observe(edge + 0xFFFF, NOW_NS)
    assert not clock.observe(edge + 0x10000, NOW_NS)
    assert clock.now(NOW_NS) == edge + 0x10000


def test_it_goes_on_from_where_it_was() -> None:
    last = hlc_of_ns(NOW_NS)
    assert HybridClock(last).now(0) == last + 1
    assert ns_of_hlc(HybridClock(last).now(NOW_NS)) == NOW_NS
