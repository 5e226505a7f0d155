"""The checks bite: each deliberate bug is found within a few seeds.

A bug is put into the nodes' code, never into the simulator's. Where the code has a second line of
defence (a root that is checked), there is a bug with it and one that takes it away, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import msgpack
import pytest

import crdt.chain
from crdt.chain import Chain, Planned, RootMismatch
from crdt.delta import Delta
from crdt.entry import record_of, seq_bytes
from crdt.header import ChainId, Epoch
from crdt.lattice import Applied, Lattice, Rejected
from mesh.core import housekeeping, own, rotations, wire
from mesh.core.antientropy import AntiEntropy
from mesh.core.clock import HybridClock
from mesh.core.effects import Effect, Persist
from mesh.core.errors import PeerError
from mesh.core.fetching import Fetching
from mesh.core.housekeeping import Housekeeper
from mesh.core.interest import Interests
from mesh.core.replica import Replica
from mesh.core.roster import Roster
from mesh.core.spool import Spool
from mesh.core.view import Peering, catalog, claims, registers
from mesh.core.view.catalog import Catalog
from mesh.core.view.owners import OwnerIndex
from mesh.core.view.registers import Decided
from sim.core import releases
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


def truncated_applied(patch: Patch) -> None:
    """The first half of a delta is taken, and the head goes to its end."""
    plan = Chain.plan

    def hasty(self: Chain, delta: Delta) -> Planned:
        half = islice(delta.puts.items(), (len(delta.puts) + 1) // 2)
        return plan(self, replace(delta, puts=dict(half)))

    patch.setattr(Chain, "plan", hasty)
    patch.setattr(Chain, "extend", lambda self, delta: None)


def truncated_applied_unchecked(patch: Patch) -> None:
    roots_not_checked(patch)
    truncated_applied(patch)


def flushes_never_proved(patch: Patch) -> None:
    """What was taken on its author's word is never looked at again."""
    patch.setattr(Lattice, "prove", lambda self, keys_max=0: [])
    patch.setattr(Lattice, "unproved", False)


def prev_root_not_checked(patch: Patch) -> None:
    """A flush is laid on whatever state has the head that it starts from."""

    def continues(self: Chain, delta: Delta) -> bool:
        header = self.header
        same = header is None or header.epoch == delta.header.epoch
        return delta.verbatim and delta.lo == self.head and same

    patch.setattr(Chain, "continues", continues)
    flushes_never_proved(patch)


def piece_lost(patch: Patch) -> None:
    """Of an answer in pieces one may be missing: nobody counts."""
    part = Fetching.part

    def careless(self: Fetching, peer: bytes, piece: wire.Part, now_ns: int) -> bool:
        return part(self, peer, replace(piece, index=self._fetches[peer].parts), now_ns)

    patch.setattr(Fetching, "part", careless)


def first_piece_taken_for_all(patch: Patch) -> None:
    """A large answer is applied before its last piece is there."""
    part = Fetching.part

    def hasty(self: Fetching, peer: bytes, piece: wire.Part, now_ns: int) -> bool:
        return part(self, peer, replace(piece, more=False), now_ns)

    patch.setattr(Fetching, "part", hasty)


def recent_trusted(patch: Patch) -> None:
    """Beside the chains that changed last nothing can differ."""

    def trusting(self: AntiEntropy, peer: bytes, state: Any, frame: wire.Recent) -> None:
        mine = {short: self._weight_of(state, short) for short in frame.named}
        self._tell_differing(peer, state, mine, frame.named)

    patch.setattr(AntiEntropy, "_take_recent", trusting)


def probe_always_same(patch: Patch) -> None:
    """A probe is answered as if both held the same."""

    def same(self: AntiEntropy, peer: bytes, *args: Any) -> None:
        self._send(peer, wire.Same())

    patch.setattr(AntiEntropy, "_answer_probe", same)


def compressed_not_read(patch: Patch) -> None:
    decode = wire.decode
    sim_codec = wire.Codec(
        wire.SPOKEN,
        lambda frame, version: wire.encode(frame),
        lambda data: None if msgpack.unpackb(data)[1] == wire.ZIPPED else decode(data),
    )
    patch.setattr("sim.core.node.codec_of", lambda release: sim_codec)


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
        self._outbox = {key: news for key, news in self._outbox.items() if not news[1]}

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


def tie_not_broken(patch: Patch) -> None:
    """Claims that nothing else tells apart are ranked by node id."""
    patch.setattr(claims, "_tie", lambda node, addr: b"")


def forgotten_relearned(patch: Patch) -> None:
    """What others still hold of a forgotten node is taken in again."""
    admissible = Replica._admissible

    def eager(self: Replica, peer: bytes, delta: Delta, now_ns: int) -> bool:
        member = self.roster.members().get(delta.header.chain.node)
        gone = member is not None and member.state == "forgotten"
        return gone or admissible(self, peer, delta, now_ns)

    patch.setattr(Replica, "_admissible", eager)


def forgotten_kept(patch: Patch) -> None:
    patch.setattr(Replica, "_drop_forgotten", lambda self: None)


def stranger_told_of(patch: Patch) -> None:
    """A retired node's claims lose their rank."""
    patch.setattr(Catalog, "reads", _only_active)


def _only_active(self: Catalog, node: bytes) -> bool:
    member = self.members.get(node)
    return member is not None and member.state == "active"


def withdrawn_at_once(patch: Patch) -> None:
    """A claim is given up as soon as a move outranks it."""
    patch.setattr(housekeeping, "WITHDRAW_AFTER_NS", 0)


def outranked_collected(patch: Patch) -> None:
    """A register's record is deleted as soon as another writer's counts."""
    patch.setattr(Housekeeper, "_is_spent", _is_outranked)


def _is_outranked(self: Housekeeper, vpc: str, records: Any, now_ns: int) -> bool:
    decided = self._view.catalog.decide(vpc, records)
    return decided is not None and decided.node != self._author.node


def quota_ignored(patch: Patch) -> None:
    patch.setattr(Roster, "quota", lambda self, node, shard: 1 << 30)


def signature_not_checked(patch: Patch) -> None:
    init = Replica.__init__

    def trusting(self: Replica, *args: Any, **fields: Any) -> None:
        init(self, *args, **{**fields, "verify": lambda *_: True})

    patch.setattr(Replica, "__init__", trusting)


def clone_goes_on(patch: Patch) -> None:
    """A process that has met another one of its node says so, and writes on."""
    alarm_clone = Replica._alarm_clone

    def alarm(self: Replica, shard: str) -> None:
        alarm_clone(self, shard)
        self._own.cloned = False

    patch.setattr(Replica, "_alarm_clone", alarm)


def fork_not_ranked(patch: Patch) -> None:
    """In registers a forked node's records count as anybody's."""

    def forgiving(self: Catalog, vpc: str, records: Any) -> Any:
        return registers.decide(records, lambda n: self.may_write(vpc, n), lambda n: False)

    patch.setattr(Catalog, "decide", forgiving)


def failed_store_forgotten(patch: Patch) -> None:
    """What a full disk refused is not written once it takes something again."""
    patch.setattr(Spool, "_fall_behind", lambda self, effects: None)


def dropped_shards_kept(patch: Patch) -> None:
    """A node whose site has nothing to do with a VPC any more holds on to it."""
    patch.setattr(Replica, "_drop", lambda self, id: None)


def interest_not_ended(patch: Patch) -> None:
    """What a node once kept, it keeps."""
    decide = Interests._decide

    def clinging(self: Interests, vpc: str) -> None:
        kept = vpc in self.vpcs
        decide(self, vpc)
        if kept:
            self.vpcs.add(vpc)

    patch.setattr(Interests, "_decide", clinging)


def interest_ignored(patch: Patch) -> None:
    """Every node takes whatever it is given, and keeps it."""

    def decide(self: Interests, vpc: str) -> None:
        if vpc not in self.vpcs:
            self.vpcs.add(vpc)
            self.version += 1

    patch.setattr(Interests, "_decide", decide)


def newcomer_takes_all(patch: Patch) -> None:
    """A node that has read nothing of the mesh yet keeps every shard."""
    update = Interests.update

    def later(self: Interests) -> bool:
        return update(self) and bool(self._standings)

    patch.setattr(Interests, "update", later)


def entitlement_not_asked(patch: Patch) -> None:
    """A VPC's shard is given to whoever says that it keeps it."""

    def wanted(self: AntiEntropy, peer: bytes) -> Any:
        return self._interest

    patch.setattr(AntiEntropy, "_for", wanted)


def homes_not_entitled(patch: Patch) -> None:
    """Only the VPC's own list of sites says whom its shard is for."""
    derive = Interests._derive

    def listed(self: Interests, vpc: str) -> bool:
        news = derive(self, vpc)
        live = self._catalog.vpcs.get(vpc)
        if live is not None and live.sites:
            self._standings[vpc].admitted = {*live.sites}
        return news

    patch.setattr(Interests, "_derive", listed)


def nobody_wins(patch: Patch) -> None:
    """Of claims of equal mobility none counts."""
    endpoints = claims.ClaimTable.endpoints

    def undecided(self: claims.ClaimTable, vpc: str, key: bytes) -> Any:
        shown = endpoints(self, vpc, key)
        return () if any(claim.state == "conflict" for claim in shown) else shown

    patch.setattr(claims.ClaimTable, "endpoints", undecided)


def clock_follows_anybody(patch: Patch) -> None:
    """One bad clock drags all others along."""

    def follow(self: HybridClock, hlc: int, now_ns: int) -> bool:
        self.last = max(self.last, hlc)
        return True

    patch.setattr(HybridClock, "observe", follow)


def retired_writes_on(patch: Patch) -> None:
    patch.setattr(Replica, "retired", False)


def rotation_forged(patch: Patch) -> None:
    """Whoever says that a node has a new key is believed."""
    patch.setattr(Roster, "_signs", lambda self, line, statement: True)


def first_rotation_stays(patch: Patch) -> None:
    """Of two rotations of one key the one counts that came first."""
    line_of = rotations.line_of

    def by_arrival(first: bytes, turns: Any, heads: Any) -> rotations.Line:
        earliest: dict[bytes, Any] = {}
        for rotation in turns:
            earliest.setdefault(rotation.replaced_key(), rotation)
        return line_of(first, earliest.values(), heads)

    patch.setattr(rotations, "line_of", by_arrival)
    patch.setattr(Roster, "_let_go", lambda self, fresh: None)


def old_key_counts_on(patch: Patch) -> None:
    """What a key signs after it was replaced is taken like what it signed before."""

    def of_header(self: rotations.Line, header: Any) -> Any:
        return [self.in_use, *(key for key, _ in self.replaced)]

    patch.setattr(rotations.Line, "of_header", of_header)


def new_key_drops_all(patch: Patch) -> None:
    """What was signed before the rotation counts no more."""
    patch.setattr(rotations.Line, "of_header", lambda self, header: [self.in_use])


def wire_version_ignored(patch: Patch) -> None:
    """Every node speaks the highest version that it can, whomever it speaks to."""
    patch.setattr(wire.Versions, "common", lambda self, other: self.highest)


def strangers_spoken_to(patch: Patch) -> None:
    """Two nodes with no version in common go by the lower of the two."""
    patch.setattr(wire.Versions, "common", lambda self, other: min(self.highest, other.highest))


def newer_kinds_refused(patch: Patch) -> None:
    """A frame of a kind that is not known costs its sender the link."""
    decode = wire.decode

    def strict(data: bytes) -> wire.Frame:
        frame = decode(data)
        if frame is None:
            raise PeerError("unknown frame")
        return frame

    present = wire.Codec(wire.SPOKEN, lambda frame, version: wire.encode(frame), strict)
    codec_of = releases.codec_of
    patch.setattr(
        "sim.core.node.codec_of", lambda release: present if release == 1 else codec_of(release)
    )


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
    prev_root_not_checked: Found({SIGNED, "entries are equal"}, "forked"),
    piece_lost: Found({ALARM}, "bulk"),
    first_piece_taken_for_all: Found({ALARM}, "bulk"),
    recent_trusted: Found({REST}, "rough"),
    probe_always_same: Found({REST}, "rough"),
    compressed_not_read: Found({REST}, "requests"),
    nobody_wins: Found({REFERENCE}, "requests"),
    clock_follows_anybody: Found({"no stamp runs ahead of its writer's clock"}, "clocks"),
    retired_writes_on: Found({"who counts no more does not write"}, "parting"),
    rotation_forged: Found({"a node's key is known to all", REST}, "hostile"),
    first_rotation_stays: Found({"a node's key is known to all", REST}, "rotated"),
    old_key_counts_on: Found({"a replaced key counts no further than was said"}, "rotated"),
    new_key_drops_all: Found({"nothing written is lost", REST}, "rotated"),
}


@pytest.mark.parametrize("bug", list(BUGS), ids=lambda bug: bug.__name__)
def test_a_bug_is_found(
    bug: Callable[[Patch], None],
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
