"""Deliberate bugs in how records get about: chains, epochs, exchanges, roster, keys, wire."""

from __future__ import annotations

from dataclasses import replace
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
from crdt.root import Plan
from mesh.core import own, rotations, wire
from mesh.core.antientropy import AntiEntropy
from mesh.core.bounds import Quotas
from mesh.core.clones import Clones
from mesh.core.effects import Effect, Persist
from mesh.core.errors import PeerError
from mesh.core.fetching import Fetching
from mesh.core.replica import Replica
from mesh.core.roster import Roster
from mesh.core.spool import Spool
from sim.core import releases

Patch = pytest.MonkeyPatch


def roots_not_checked(patch: Patch) -> None:
    """What a delta makes of a chain is taken for what its author signed."""
    plan = Chain.plan

    def trusting(self: Chain, delta: Delta, made: Plan | None = None) -> Planned:
        try:
            return plan(self, delta, made)
        except RootMismatch:
            mark = seq_bytes(self.head + 1)
            puts = {key: entry for key, entry in delta.puts.items() if entry >= mark}
            keep = vars(crdt.chain)["kept"](delta)
            if keep is None:
                gone = [key for key, seq in delta.deletes.items() if seq >= mark]
            else:
                gone = [key for key, entry in self.live.items() if entry[:6] not in keep]
            drops = tuple(key for key in gone if key in self.live and key not in puts)
            wrong = self.index.plan(self.live, puts, drops, delta.header.bits)
            wrong.root = delta.header.root
            return Planned(delta, puts, drops, wrong)

    patch.setattr(Chain, "plan", trusting)


def truncated_applied(patch: Patch) -> None:
    """The first half of a delta is taken, and the head goes to its end."""
    plan = Chain.plan

    def hasty(self: Chain, delta: Delta, made: Plan | None = None) -> Planned:
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
        mine = self._weights_of(state, frame.named)
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
        wire.encode,
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

    def silent(self: Replica, *args: Any, **more: Any) -> None:
        applied(self, *args, **more)
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
    patch.setattr(Clones, "refuses", lambda self, delta: False)


def older_snapshot_accepted(patch: Patch) -> None:
    """A delta from the beginning replaces what is held, whatever its head."""
    apply = Lattice.apply

    def credulous(self: Lattice, delta: Delta, *args: Any) -> Applied | Rejected:
        held = self._branches.get(delta.header.chain, {})
        if delta.lo or delta.header.epoch not in held:
            return apply(self, delta, *args)
        target = Chain(delta.header.chain, delta.header.epoch)
        return self._install(target, target.plan(delta), held, held[delta.header.epoch])

    patch.setattr(Lattice, "apply", credulous)
    patch.setattr(Replica, "_admissible", lambda self, *args: True)


def deletes_not_stored(patch: Patch) -> None:
    """The disk keeps what was deleted."""
    drain = Replica.drain

    def forgetful(self: Replica) -> list[Effect]:
        effects = drain(self)
        return [e._replace(deletes=()) if isinstance(e, Persist) else e for e in effects]

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


def sent_before_stored(patch: Patch) -> None:
    """Effects are carried out as if the disk had them."""
    drain = Replica.drain
    patch.setattr(
        Replica,
        "drain",
        lambda self: [e for e in drain(self) if not (isinstance(e, Persist) and e.epoch[0] > 1)],
    )


def forgotten_relearned(patch: Patch) -> None:
    """What others still hold of a forgotten node is taken in again."""
    admissible = Replica._admissible

    def eager(self: Replica, peer: bytes, delta: Delta, *args: Any) -> bool:
        member = self.roster.members().get(delta.header.chain.node)
        gone = member is not None and member.state == "forgotten"
        return gone or admissible(self, peer, delta, *args)

    patch.setattr(Replica, "_admissible", eager)


def forgotten_kept(patch: Patch) -> None:
    patch.setattr(Replica, "_drop_forgotten", lambda self: None)


def quota_ignored(patch: Patch) -> None:
    """By whoever is given records; the checks go on minding it."""
    admissible = Replica._admissible

    def unbounded(self: Replica, *args: Any) -> bool:
        with pytest.MonkeyPatch.context() as lifted:
            lifted.setattr(Quotas, "of", lambda self, shard: 1 << 30)
            return admissible(self, *args)

    patch.setattr(Replica, "_admissible", unbounded)
    patch.setattr(Roster, "quota", lambda self, node, shard: 1 << 30)


def signature_not_checked(patch: Patch) -> None:
    init = Replica.__init__

    def trusting(self: Replica, *args: Any, **fields: Any) -> None:
        init(self, *args, **{**fields, "verify": lambda *_: True})

    patch.setattr(Replica, "__init__", trusting)


def clone_goes_on(patch: Patch) -> None:
    """A process that has met another one of its node says so, and writes on."""
    alarm = Clones._alarm

    def alarm_only(self: Clones, shard: str) -> None:
        alarm(self, shard)
        self._own.cloned = False

    patch.setattr(Clones, "_alarm", alarm_only)


def failed_store_forgotten(patch: Patch) -> None:
    """What a full disk refused is not written once it takes something again."""
    patch.setattr(Spool, "_fall_behind", lambda self, effects: None)


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

    present = wire.Codec(wire.SPOKEN, wire.encode, strict)
    codec_of = releases.codec_of
    patch.setattr(
        "sim.core.node.codec_of",
        lambda release: present if release == releases.PRESENT else codec_of(release),
    )
