"""How batches are paced, on a clock of their own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.core.pacing import BURST, TICK_NS, Pace


def test_in_a_quiet_mesh_everything_leaves_at_once() -> None:
    pace = Pace()
    for now_ns in range(0, 100 * TICK_NS, TICK_NS):
        assert pace.wait_ns(now_ns) == 0
        pace.spend(now_ns)


def test_a_burst_leaves_at_once_and_then_one_a_tick() -> None:
    pace, now_ns = Pace(), 0
    left_ns = []
    for _ in range(3 * BURST):
        now_ns += pace.wait_ns(now_ns)
        pace.spend(now_ns)
        left_ns.append(now_ns)
    assert left_ns[:BURST] == [0] * BURST
    gaps = [b - a for a, b in zip(left_ns[BURST - 1 :], left_ns[BURST:], strict=False)]
    assert set(gaps) == {TICK_NS}


def test_quiet_saves_up_no_more_than_a_burst() -> None:
    pace = Pace()
    now_ns = 10**15
    assert pace.wait_ns(now_ns) == 0
    for _ in range(BURST):
        assert pace.wait_ns(now_ns) == 0
        pace.spend(now_ns)
    assert pace.wait_ns(now_ns) == TICK_NS


@given(st.lists(st.tuples(st.integers(0, 3 * TICK_NS), st.booleans()), max_size=60))
def test_no_batch_waits_longer_than_a_tick(steps: list[tuple[int, bool]]) -> None:
    """Whoever does not wait, a local write for one, makes others wait no longer for it."""
    pace, now_ns = Pace(), 0
    for later_ns, waits in steps:
        now_ns += later_ns
        wait_ns = pace.wait_ns(now_ns)
        assert 0 <= wait_ns <= TICK_NS
        now_ns += wait_ns if waits else 0
        assert pace.wait_ns(now_ns) in ((0,) if waits else range(wait_ns + 1))
        pace.spend(now_ns)
