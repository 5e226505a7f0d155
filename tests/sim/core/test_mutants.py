"""The checks bite: each deliberate bug is found within a few seeds.

A bug is put into the nodes' code, never into the simulator's. Where the code has a second line of
defence (a root that is checked), there is a bug with it and one that takes it away, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from sim.core.scenario import Scenario
from sim.core.simulation import run
from sim.seeding import chance_of
from tests.sim.core.bugs_in_chains import (
    clone_goes_on,
    compressed_not_read,
    deletes_not_stored,
    epoch_reused,
    failed_store_forgotten,
    first_piece_taken_for_all,
    first_rotation_stays,
    flushes_never_proved,
    forgotten_kept,
    forgotten_relearned,
    gap_applied,
    gap_applied_unchecked,
    live_list_ignored,
    live_list_ignored_unchecked,
    new_key_drops_all,
    newer_kinds_refused,
    no_anti_entropy,
    no_sync_on_reconnect_and_no_relay,
    old_key_counts_on,
    older_epoch_dropped,
    older_snapshot_accepted,
    piece_lost,
    prev_root_not_checked,
    probe_always_same,
    quota_ignored,
    recent_trusted,
    retired_writes_on,
    rotation_forged,
    sent_before_stored,
    signature_not_checked,
    strangers_spoken_to,
    superseded_entries_read,
    tail_not_taken_up,
    truncated_applied,
    truncated_applied_unchecked,
    wire_version_ignored,
)
from tests.sim.core.bugs_in_views import (
    clock_follows_anybody,
    conflict_of_one,
    deletion_outranked,
    dropped_shards_kept,
    entitlement_not_asked,
    evictions_not_read,
    fork_not_ranked,
    homes_not_entitled,
    housekeeping_never_ends,
    interest_ignored,
    interest_not_ended,
    mobility_not_ranked,
    newcomer_takes_all,
    newcomer_takes_vni,
    nobody_wins,
    outranked_collected,
    peered_by_half,
    rank_by_arrival,
    row_not_withdrawn,
    stranger_told_of,
    tie_not_broken,
    trespass_read,
    view_not_told_of_deletes,
    withdrawn_at_once,
)

SEEDS_MAX = 40
Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Found:
    """By which of the checks a bug may be found, and in which family of runs."""

    checks: set[str]
    family: str = "churn"


REFERENCE = "the view is the reference's"
GONE = "nothing is held of strangers and forgotten nodes"
REST = "comes to rest in time"
ALARM = "no alarm among honest nodes"
ONE_ROOT = "one head, one root"
SAME_ENTRIES = "one head, one set of entries"
SIGNED = "entries are what their writer signed"
VIEWS = "views are equal"
TIDY = "a node deletes only what is spent"
BUGS: dict[Callable[[Patch], None], Found] = {
    dropped_shards_kept: Found({"nothing of a VPC that is not kept"}, "hosted"),
    interest_not_ended: Found({"a node keeps what its site has to do with"}, "hosted"),
    gap_applied: Found({ALARM}),
    gap_applied_unchecked: Found({SAME_ENTRIES}),
    live_list_ignored: Found({ALARM}),
    live_list_ignored_unchecked: Found({SAME_ENTRIES}),
    no_anti_entropy: Found({REST}),
    no_sync_on_reconnect_and_no_relay: Found({REST}),
    epoch_reused: Found({ONE_ROOT, SAME_ENTRIES}),
    older_snapshot_accepted: Found({"heads do not go back"}, "rough"),
    deletes_not_stored: Found({"no node fails", "disk and memory agree"}),
    tail_not_taken_up: Found(
        {"nothing written is lost", "rows follow from the view"}, "lost_disks"
    ),
    older_epoch_dropped: Found({"only covered branches go", "nothing written is lost"}),
    superseded_entries_read: Found({"nothing deleted comes back", REFERENCE}, "lost_disks"),
    view_not_told_of_deletes: Found({"views are equal", "rows follow from the view"}),
    rank_by_arrival: Found({"views are equal", REFERENCE}, "requests"),
    sent_before_stored: Found({"disk and memory agree", "no node fails"}),
    trespass_read: Found({REFERENCE}, "requests"),
    mobility_not_ranked: Found({REFERENCE}, "requests"),
    evictions_not_read: Found({REFERENCE}, "requests"),
    deletion_outranked: Found({REFERENCE}, "requests"),
    newcomer_takes_vni: Found({REFERENCE}, "requests"),
    peered_by_half: Found({REFERENCE}, "requests"),
    tie_not_broken: Found({REFERENCE}, "requests"),
    forgotten_relearned: Found({GONE}, "parting"),
    forgotten_kept: Found({GONE}, "parting"),
    stranger_told_of: Found({REFERENCE}, "parting"),
    withdrawn_at_once: Found({TIDY}, "requests"),
    outranked_collected: Found({TIDY}, "contended"),
    quota_ignored: Found({"no chain beyond its quota"}, "hostile"),
    signature_not_checked: Found({ALARM, ONE_ROOT, SAME_ENTRIES}, "hostile"),
    clone_goes_on: Found({"who has met its clone writes no more"}, "copied"),
    fork_not_ranked: Found({REFERENCE}, "forked"),
    failed_store_forgotten: Found({"disk and memory agree", REST}, "full_disks"),
    housekeeping_never_ends: Found({REST}),
    interest_ignored: Found({"a node keeps what its site has to do with"}, "hosted"),
    newcomer_takes_all: Found({"nothing of a VPC that is not for the site"}, "joining"),
    entitlement_not_asked: Found({"a VPC's shard is given only to whom it is for"}, "prying"),
    homes_not_entitled: Found({"whom a VPC's shard is for is the reference's"}, "prying"),
    wire_version_ignored: Found({ALARM, REST}, "upgraded"),
    strangers_spoken_to: Found({ALARM, REST}, "upgraded"),
    newer_kinds_refused: Found({ALARM}, "upgraded"),
    truncated_applied: Found({ALARM}),
    truncated_applied_unchecked: Found({SAME_ENTRIES}),
    flushes_never_proved: Found({SIGNED}, "hostile"),
    prev_root_not_checked: Found({"a flush is laid on the state that it starts from"}, "forked"),
    piece_lost: Found({ALARM}, "bulk"),
    first_piece_taken_for_all: Found({ALARM}, "bulk"),
    recent_trusted: Found({REST}, "rough"),
    probe_always_same: Found({REST}, "rough"),
    compressed_not_read: Found({REST}, "requests"),
    conflict_of_one: Found({REFERENCE, "a conflict has two live claims"}, "requests"),
    row_not_withdrawn: Found({"rows follow from the view"}),
    nobody_wins: Found({REFERENCE}, "requests"),
    clock_follows_anybody: Found({"no stamp runs ahead of its writer's clock"}, "clocks"),
    retired_writes_on: Found({"who counts no more does not write"}, "parting"),
    rotation_forged: Found({"a node's key is known to all", REST}, "hostile"),
    first_rotation_stays: Found({"a node's key is known to all", REST, VIEWS}, "rotated"),
    old_key_counts_on: Found({"a replaced key counts no further than was said"}, "rotated"),
    new_key_drops_all: Found({"nothing written is lost", REST}, "rotated"),
}


@pytest.fixture
def nothing_kept() -> Iterator[None]:
    """What is kept of other runs was made without the bug, and what is made with it goes."""
    _forget_all()
    yield
    _forget_all()


def _forget_all() -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith(("crdt.", "mesh.core.", "sim.core.")):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


@pytest.mark.parametrize("bug", list(BUGS), ids=lambda bug: bug.__name__)
def test_a_bug_is_found(
    bug: Callable[[Patch], None],
    nothing_kept: None,
    tight_bounds: None,
    monkeypatch: Patch,
    request: pytest.FixtureRequest,
) -> None:
    scenario: Scenario = request.getfixturevalue(BUGS[bug].family)
    bug(monkeypatch)
    for seed in range(SEEDS_MAX):
        result = run(scenario, seed, chance_of(seed))
        if not result.ok:
            checks = {violation.check for violation in result.violations}
            assert checks & BUGS[bug].checks, result.violations
            print(f"{bug.__name__}: found in {seed + 1} of {SEEDS_MAX} seeds")
            return
    raise AssertionError(f"not found in {SEEDS_MAX} seeds")


def test_views_that_are_not_read_whole_are_compared_by_what_is_read(
    tight_bounds: None, monkeypatch: Patch, churn: Scenario
) -> None:
    """As in runs with so many endpoints that reading them at each node would take most of it."""
    monkeypatch.setattr("sim.core.resting.CLAIMS_READ_MAX", 0)
    assert run(churn, 0, chance_of(0)).ok
    view_not_told_of_deletes(monkeypatch)
    for seed in range(SEEDS_MAX):
        checks = {violation.check for violation in run(churn, seed, chance_of(seed)).violations}
        if "views are equal" in checks:
            return
    raise AssertionError(f"not found in {SEEDS_MAX} seeds")
