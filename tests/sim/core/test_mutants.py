"""The checks bite: each deliberate bug is found within a few seeds.

A bug is put into the nodes' code, never into the simulator's. Where the code has a second line of
defence (a root that is checked), there is a bug with it and one that takes it away, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

import crdt.chain
from crdt.chain import Chain, Planned, RootMismatch
from crdt.delta import Delta
from crdt.entry import record_of, seq_bytes
from crdt.header import ChainId, Epoch
from crdt.lattice import Applied, Lattice, Rejected
from mesh.core import own
from mesh.core.antientropy import AntiEntropy
from mesh.core.effects import Effect, Persist
from mesh.core.housekeeping import Housekeeper
from mesh.core.replica import Replica
from mesh.core.view import Peering, catalog, claims
from mesh.core.view.catalog import Catalog
from mesh.core.view.owners import OwnerIndex
from mesh.core.view.registers import Decided
from sim.core.scenario import Scenario
from sim.core.simulation import run
from sim.seeding import chance_of

SEEDS_MAX = 40
Patch = pytest.MonkeyPatch


def roots_not_checked(patch: Patch) -> None:
    """What a delta makes of a chain is taken for what its author signed."""
    plan = Chain.plan

    def trusting(self: Chain, delta: Delta) -> Planned:
        try:
            return plan(self, delta)
        except RootMismatch:
            mark = seq_bytes(self.head + 1)
            puts = {key: entry for key, entry in delta.puts.items() if entry >= mark}
            keep = vars(crdt.chain)["kept"](delta)
            if keep is None:
                gone = [key for key, seq in delta.deletes.items() if seq >= mark]
            else:
                gone = [key for key, entry in self.live.items() if entry[:6] not in keep]
            drops = tuple(key for key in gone if key in self.live and key not in puts)
            made = self.index.plan(self.live, puts, drops, delta.header.bits)
            made.root = delta.header.root
            return Planned(delta, puts, drops, made)

    patch.setattr(Chain, "plan", trusting)


def gap_applied(patch: Patch) -> None:
    """A delta that begins beyond the head is laid on the chain."""
    target = Lattice._target

    def eager(self: Lattice, delta: Delta, held: dict[Epoch, Chain]) -> Chain | Rejected:
        found = target(self, delta, held)
        if isinstance(found, Rejected) and found.reason == "gap" and held:
            return max(held.values(), key=lambda chain: chain.head)
        return found

    patch.setattr(Lattice, "_target", eager)


def gap_applied_unchecked(patch: Patch) -> None:
    gap_applied(patch)
    roots_not_checked(patch)


def live_list_ignored(patch: Patch) -> None:
    """Deletes below the sender's floor are lost."""
    patch.setattr(crdt.chain, "kept", lambda delta: None)


def live_list_ignored_unchecked(patch: Patch) -> None:
    live_list_ignored(patch)
    roots_not_checked(patch)


def no_anti_entropy(patch: Patch) -> None:
    """Pushes are all there is: what a cut has stopped never comes."""

    def start(self: AntiEntropy, peer: bytes, state: Any, now_ns: int) -> None:
        state.sync_at_ns = now_ns + 10**18

    patch.setattr(AntiEntropy, "_start", start)


def no_sync_on_reconnect_and_no_relay(patch: Patch) -> None:
    """Only own writes are pushed, and nothing is asked for."""
    no_anti_entropy(patch)
    applied = Replica._applied

    def silent(self: Replica, *args: Any) -> None:
        applied(self, *args)
        self._outbox = [(delta, to) for delta, to in self._outbox if to is None]

    patch.setattr(Replica, "_applied", silent)


def epoch_reused(patch: Patch) -> None:
    """A start goes on in the stored epoch: after a restore, seqs are given twice."""

    def opened(self: own.OwnChains, shard: str) -> own._Open:
        if (known := self._open.get(shard)) is not None:
            return known
        id = ChainId(self.node, shard)
        chain = self._lattice.latest(id) or Chain(id, Epoch(1, bytes(8)))
        before = chain.epoch if chain.header else None
        known = self._open[shard] = own._Open(chain, before, chain.covers, {}, {})
        return known

    patch.setattr(own.OwnChains, "_opened", opened)
    patch.setattr(Replica, "_is_clone", lambda self, delta: False)


def older_snapshot_accepted(patch: Patch) -> None:
    """A delta from the beginning replaces what is held, whatever its head."""
    apply = Lattice.apply

    def credulous(self: Lattice, delta: Delta) -> Applied | Rejected:
        held = self._branches.get(delta.header.chain, {})
        if delta.lo or delta.header.epoch not in held:
            return apply(self, delta)
        target = Chain(delta.header.chain, delta.header.epoch)
        return self._install(target, target.plan(delta), held, held[delta.header.epoch])

    patch.setattr(Lattice, "apply", credulous)
    patch.setattr(Replica, "_admissible", lambda self, *args: True)


def deletes_not_stored(patch: Patch) -> None:
    """The disk keeps what was deleted."""
    drain = Replica.drain

    def forgetful(self: Replica) -> list[Effect]:
        effects = drain(self)
        return [replace(e, deletes=()) if isinstance(e, Persist) else e for e in effects]

    patch.setattr(Replica, "drain", forgetful)


def tail_not_taken_up(patch: Patch) -> None:
    """A restored owner covers its tail without taking over what is in it."""
    take_up = own.OwnChains._take_up

    def lazy(self: own.OwnChains, opened: own._Open, branch: Chain) -> None:
        empty = Chain(branch.id, branch.epoch)
        empty.head, empty.header = branch.head, branch.header
        kept_live = dict(opened.chain.live)
        take_up(self, opened, empty)
        for key, entry in kept_live.items():
            if key not in opened.chain.live:
                opened.chain.put(key, record_of(entry))

    patch.setattr(own.OwnChains, "_take_up", lazy)


def older_epoch_dropped(patch: Patch) -> None:
    """A later epoch drops the older ones, covered or not."""

    def prune(held: dict[Epoch, Chain], changed: dict[bytes, None]) -> tuple[Epoch, ...]:
        dropped = tuple(sorted(held)[:-1])
        for epoch in dropped:
            changed.update(dict.fromkeys(held.pop(epoch).live))
        return dropped

    patch.setattr(Lattice, "_prune", staticmethod(prune))


def superseded_entries_read(patch: Patch) -> None:
    """What a later epoch has deleted is read from an older one beside it."""
    patch.setattr("crdt.lattice._superseded", lambda branches, chain, key, seq: False)


def view_not_told_of_deletes(patch: Patch) -> None:
    install = Lattice._install

    def quiet(self: Lattice, *args: Any) -> Applied:
        applied = install(self, *args)
        return replace(applied, changed=tuple(applied.puts))

    patch.setattr(Lattice, "_install", quiet)


def rank_by_arrival(patch: Patch) -> None:
    """Of equal claims the one that came first wins."""
    arrived: dict[int, dict[tuple[bytes, bytes], int]] = {}
    add = OwnerIndex.add
    ranked = claims.ClaimTable.ranked

    def noting(self: OwnerIndex, node: bytes, vpc: str, claimed: Sequence[bytes]) -> None:
        known = arrived.setdefault(id(self), {})
        for key in claimed:
            known.setdefault((node, key), len(known))
        add(self, node, vpc, claimed)

    def by_arrival(self: claims.ClaimTable, vpc: str, key: bytes) -> list[claims.Ranked]:
        known = arrived.get(id(self.owners), {})
        order = ranked(self, vpc, key)
        return sorted(order, key=lambda claim: known.get((claim.node, key), 0))

    patch.setattr(OwnerIndex, "add", noting)
    patch.setattr(claims.ClaimTable, "ranked", by_arrival)


def sent_before_stored(patch: Patch) -> None:
    """Effects are carried out as if the disk had them."""
    drain = Replica.drain
    patch.setattr(
        Replica,
        "drain",
        lambda self: [e for e in drain(self) if not (isinstance(e, Persist) and e.epoch[0] > 1)],
    )


def housekeeping_never_ends(patch: Patch) -> None:
    """It writes at every look, though nothing has changed."""
    patch.setattr(Housekeeper, "next_deadline_ns", lambda self: 0)


def trespass_read(patch: Patch) -> None:
    """Whoever writes a VPC's registers and evictions is read."""
    patch.setattr(Catalog, "may_write", lambda self, vpc, node: self.reads(node))


def mobility_not_ranked(patch: Patch) -> None:
    """The earliest claim wins, whether or not the endpoint has moved since."""
    ranked = claims.ClaimTable.ranked

    def by_age(self: claims.ClaimTable, vpc: str, addr: bytes) -> list[claims.Ranked]:
        return sorted(ranked(self, vpc, addr), key=lambda claim: claim[2:])

    patch.setattr(claims.ClaimTable, "ranked", by_age)


def evictions_not_read(patch: Patch) -> None:
    patch.setattr(Catalog, "hidden_up_to", lambda self, vpc, addr, node: -1)


def deletion_outranked(patch: Patch) -> None:
    """A later edit revives what was deleted."""
    patch.setattr(catalog, "decide", _decide_by_revision)


def _decide_by_revision(records: Any, may_write: Any, forked: Any) -> Any:
    ranked = sorted(
        (record.revision, record.hlc, node) for node, record in records.items() if may_write(node)
    )
    return Decided(records[ranked[-1][2]], ranked[-1][2]) if ranked else None


def newcomer_takes_vni(patch: Patch) -> None:
    """Of two VPCs with one VNI the earlier stamp has it, whoever uses it already."""
    patch.setattr(Catalog, "votes", lambda self, vpc: 0)


def peered_by_half(patch: Patch) -> None:
    """One side is enough."""
    peerings = Catalog.peerings

    def one_sided(self: Catalog) -> list[Peering]:
        return [replace(peering, state="active") for peering in peerings(self)]

    patch.setattr(Catalog, "peerings", one_sided)


BUGS: dict[Callable[[Patch], None], set[str]] = {
    gap_applied: {"no alarm among honest nodes"},
    gap_applied_unchecked: {"one head, one set of entries"},
    live_list_ignored: {"no alarm among honest nodes"},
    live_list_ignored_unchecked: {"one head, one set of entries"},
    no_anti_entropy: {"comes to rest in time"},
    no_sync_on_reconnect_and_no_relay: {"comes to rest in time"},
    epoch_reused: {"one head, one root", "one head, one set of entries"},
    older_snapshot_accepted: {"heads do not go back"},
    deletes_not_stored: {"no node fails", "disk and memory agree"},
    tail_not_taken_up: {"nothing written is lost", "rows follow from the view"},
    older_epoch_dropped: {"only covered branches go", "nothing written is lost"},
    superseded_entries_read: {"nothing deleted comes back", "the view is the reference's"},
    view_not_told_of_deletes: {"views are equal", "rows follow from the view"},
    rank_by_arrival: {"views are equal", "the view is the reference's"},
    sent_before_stored: {"disk and memory agree", "no node fails"},
    trespass_read: {"the view is the reference's"},
    mobility_not_ranked: {"the view is the reference's"},
    evictions_not_read: {"the view is the reference's"},
    deletion_outranked: {"the view is the reference's"},
    newcomer_takes_vni: {"the view is the reference's"},
    peered_by_half: {"the view is the reference's"},
    housekeeping_never_ends: {"comes to rest in time"},
}


@pytest.mark.parametrize("bug", list(BUGS), ids=lambda bug: bug.__name__)
def test_a_bug_is_found(
    bug: Callable[[Patch], None],
    churn: Scenario,
    rough: Scenario,
    lost_disks: Scenario,
    requests: Scenario,
    tight_bounds: None,
    monkeypatch: Patch,
) -> None:
    others: dict[object, Scenario] = {
        older_snapshot_accepted: rough,
        superseded_entries_read: lost_disks,
        tail_not_taken_up: lost_disks,
        rank_by_arrival: requests,
        trespass_read: requests,
        mobility_not_ranked: requests,
        evictions_not_read: requests,
        deletion_outranked: requests,
        newcomer_takes_vni: requests,
        peered_by_half: requests,
    }
    scenario = others.get(bug, churn)
    bug(monkeypatch)
    for seed in range(SEEDS_MAX):
        result = run(scenario, seed, chance_of(seed))
        if not result.ok:
            assert {violation.check for violation in result.violations} & BUGS[bug]
            print(f"found with seed {seed}")
            return
    raise AssertionError(f"not found in {SEEDS_MAX} seeds")
