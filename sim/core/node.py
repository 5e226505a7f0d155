"""One simulated node: the real replica, view, writer and forwarding over a modelled disk.

`Process` does what `mesh/node/node.py` does with a real loop, in the same order: what happens goes
to the replica, its changes to the view at once; effects are carried out one batch at a time, the
store's part in one transaction before any send. Only the rows wait a moment, unless they are looked
at. A crash loses the batch under way, or only what it would have sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import Final, Literal, TypeAlias

from dataplane.fib.rows import Tables
from dataplane.memory import MemoryBackend
from mesh.core import keys
from mesh.core.clock import HybridClock
from mesh.core.effects import (
    DropPeer,
    Effect,
    MembersChanged,
    PersistStatements,
    Send,
    Stored,
)
from mesh.core.errors import NotReady, RequestError
from mesh.core.forwarding import Forwarding
from mesh.core.interest import Interests
from mesh.core.keeping import follow
from mesh.core.ops import MESH_SHARD, NodeId, Op
from mesh.core.pacing import Pace
from mesh.core.replica import Replica
from mesh.core.roster import Roster
from mesh.core.spool import RETRY_NS, Spool
from mesh.core.view import View
from mesh.core.writer import Writer
from sim.core.clock import MS_NS, SECOND_NS
from sim.core.disk import Disk, TornError
from sim.core.releases import PRESENT, codec_of, note
from sim.core.signing import public_key
from sim.core.world import WALL_START_NS, Identity, Shown, World

STORE_NS: Final = MS_NS
"""One transaction: 0.3 ms measured on an SSD, more on what edge sites have."""
ROWS_NS: Final = SECOND_NS
"""Rows follow the view so late at most, all changes in it at once. A real node's do at every turn;
in a run only packets hang on them."""
HOUSEKEEPING_NS: Final = SECOND_NS
MISBEHAVED_BACKOFF_NS: Final = 30 * SECOND_NS
"""A peer that broke the protocol is not dialled or accepted for so long."""
ROSTERS_SHARED: Final = 64


@lru_cache(maxsize=ROSTERS_SHARED)
def roster_of(statements: tuple[bytes, ...]) -> Roster:
    """To be copied: nodes that start with the same statements need not verify them each."""
    return Roster.founded_by(statements)


MachineState: TypeAlias = Literal["member", "waiting", "copy", "clone", "hostile", "gone"]
"""Only a member is promised anything. Waiting: it may join. Copy: a machine that may come to run as
a clone of another. Gone: it was retired, or its time is over."""


class Machine:
    """A node's disk, and its process while it runs."""

    def __init__(self, identity: Identity, disk: Disk, world: World, *, skew_ns: int = 0) -> None:
        self.identity = identity
        self.disk = disk
        self.skew_ns = skew_ns
        """its wall clock ahead of the true time"""
        self._dataplane = MemoryBackend(now_ns=lambda: world.clock.now_ns)
        self.attachments: dict[str, tuple[str, str, str]] = {}
        """ifname -> (VPC id, IP, MAC), as the store keeps them"""
        self.process: Process | None = None
        self.state: MachineState = "member"
        self.release = identity.release
        """of the software that is installed"""
        self.starts = 0
        self._copies = 0
        """that its earlier processes were sent"""
        self._world = world

    def start(self) -> bool:
        """Run from what is on the disk. False: it says that the node was retired, or that its key
        was replaced by another, as a node that comes back from before that learns of its peers."""
        assert self.process is None
        roster = roster_of(self.disk.statements).copy()
        member = roster.active(self.identity.node)
        if member is None or member.key != public_key(self.disk.seed):
            return False
        self.starts += 1
        self._world.nodes[self.identity.index] = self.identity.node
        self.process = Process(self, self._world, roster, self._dataplane)
        self._world.probe.started(self.identity.index, self.process.replica.lattice)
        self._world.network.start(self.identity.index, self.process)
        self.process.begin()
        return True

    @property
    def dataplane(self) -> MemoryBackend:
        """Outlives the process, as pinned maps do."""
        if self.process is not None:
            self.process.lay_rows()
        return self._dataplane

    @property
    def copies(self) -> int:
        """Deltas that it was sent, news or not."""
        return self._copies + (self.process.replica.copies if self.process else 0)

    def step_clock(self, ns: int) -> None:
        """Its wall clock is set forward, or back."""
        self.skew_ns += ns
        if self.process is not None:
            self.process.clock_stepped()

    def crash(self) -> None:
        """End the process as kill -9 does; the disk stays, and so does what forwards packets."""
        assert self.process is not None
        self.process.kill()
        self._copies = self.copies
        store_failed, self.process = self.process.store_fails, None
        self._world.network.stop(self.identity.index)
        self._world.probe.stopped(self.identity.index, store_failed)


class Process:
    """One life of a node. It is the network's port of the node."""

    def __init__(
        self, machine: Machine, world: World, roster: Roster, dataplane: MemoryBackend
    ) -> None:
        identity = machine.identity
        self.identity = identity
        self._machine = machine
        self._dataplane = dataplane
        self._world = world
        chance = world.chance_of(f"node/{identity.index}/{machine.starts}")
        self._chance = chance
        self.release = machine.release
        self.codec = codec_of(self.release)
        self.sign = world.signatures.signer(machine.disk.seed)
        self.verify = world.signatures.verify
        self.clock = HybridClock()
        lattice, hears_first, lacks = machine.disk.boot(identity.node, roster, self.verify)
        self.replica = Replica(
            identity.node,
            roster,
            lattice,
            sign=self._signed,
            nonce=chance.randbytes,
            jitter=chance.random,
            now_ns=world.clock.active_ns,
            verify=self.verify,
            codec=self.codec,
            hears_first=hears_first,
            lacks=lacks,
        )
        self.view = View(self.replica.holdings)
        self.writer = Writer(identity.node, identity.site, self.view, self.clock, chance.randbytes)
        self.forwarding = Forwarding(identity.node, identity.site, self.view)
        self.down: set[NodeId] = set()
        """peers that were linked and are not"""
        self._instances: dict[NodeId, int] = {}
        """linked node -> which machine it is: two may run as one node"""
        self._linked_keys: dict[NodeId, bytes] = {}
        """linked node -> the key that it showed"""
        self._blocked_until_ns: dict[int, int] = {}
        self._digests: dict[str, bytes] | None = None
        self._alive = True
        self.keeping_house = False
        """whether what it writes is of its own accord"""
        self._busy = False
        """whether a batch of effects is under way"""
        self._pace = Pace()
        self._goes_at_ns = 0
        """when what is gathered is passed on"""
        self._hurries = False
        """whether a user waits for what it holds to be stored"""
        self._rows_due = False
        """whether rows are about to be brought up to the view"""
        self._turn_due = False
        """whether what users have asked for at this instant is about to be carried out"""
        self._spool = Spool(identity.node, lattice, roster)
        self.store_fails = False
        """Its last transaction was refused: users' writes are, until it takes one again."""
        self._unsent: Sequence[Stored] | None = None
        """what the store is busy with"""
        self._timer_ns: int | None = None
        self._house_ns: int | None = None
        self.interests: Interests | None = None
        """None: it keeps every shard"""
        self.sees = identity.index < world.views
        """whether it keeps a view and rows; without, it writes what it is told to and registers"""
        if self.sees:
            self._load_view()

    def begin(self) -> None:
        """Go: everything around the process is set up."""
        self._show_key()
        self.absorb()
        self._have_house_kept()

    def _load_view(self) -> None:
        self.view.set_members(self.replica.roster.members())
        self.view.update(self.replica.holdings.everything())
        if self._world.hosted:
            node, site = self.identity.node, self.identity.site
            self.interests = Interests(node, site, self.view, self.replica.writes)
        for ifname, (vpc, ip, mac) in self._machine.attachments.items():
            self.forwarding.attach(ifname, vpc, ip, mac)
            if self.interests is not None:
                self.interests.attach(vpc)
        self._follow()
        self.forwarding.update()
        self.forwarding.forget_delta()
        self._dataplane.replace(self.forwarding.tables())

    # ---- what users ask ----

    @property
    def now_ns(self) -> int:
        return self._world.clock.now_ns

    @property
    def wall_ns(self) -> int:
        return WALL_START_NS + self._world.clock.now_ns + self._machine.skew_ns

    def submit(self, make_ops: Callable[[int], Sequence[Op]]) -> bool:
        """Write what `make_ops(wall_ns)` answers; whether that was anything.

        Raises what it raises, and NotReady or Refused: nothing was written then.
        """
        if self.store_fails:
            raise NotReady("the store fails; nothing was written")
        ops = make_ops(self.wall_ns)
        if self.keeping_house:
            self._world.probe.tidying(self.identity.index, ops)
        if not ops or not self.replica.local(ops, self._world.clock.active_ns):
            return False
        self._world.probe.wrote(self.identity.index, ops)
        self._hurries = True
        self._read()
        if not self._turn_due:
            self._turn_due = True
            self._world.clock.after(0, self._take_turn)
        return True

    def at_rest(self, far_ns: int) -> bool:
        """Whether it takes writes, has stored all, and housekeeping has nothing soon to do."""
        if not self.settled or not self.replica.writable:
            return False
        if not self.sees:
            return self.registered
        due_ns = self.writer.next_deadline_ns()
        return due_ns is None or due_ns > self.wall_ns + far_ns

    def attach(self, ifname: str, vpc: str, ip: str, mac: str) -> None:
        """A pod's interface is there."""
        self._machine.attachments[ifname] = (vpc, ip, mac)
        self.forwarding.attach(ifname, vpc, ip, mac)
        self._have_rows_laid()
        if self.interests is not None:
            self.interests.attach(vpc)
        self.absorb()

    def detach(self, ifname: str) -> None:
        vpc, _, _ = self._machine.attachments.pop(ifname)
        if self.interests is not None:
            self.interests.detach(vpc)
        self.forwarding.detach(ifname)
        self._have_rows_laid()
        self.absorb()

    def say(self, statement: bytes) -> None:
        """Add a roster statement made here."""
        self.replica.add_statements([statement], self._world.clock.active_ns)
        self.absorb()

    def rotate(self, *, dies: bool, force: bool) -> bool:
        """Replace the key, in the steps of `mesh/node/rotating.py`; False: not now.

        `dies`: the process is to be ended at once, when the new key is in use and nobody knows.
        """
        disk = self._machine.disk
        if self._busy or self.store_fails or disk.full or not self.replica.writable:
            return False
        if not force and self.replica.unheard():
            return False
        seed = self._chance.randbytes(32)
        self._world.signatures.know(seed)
        blobs = self.replica.rotation(disk.seed, seed)
        disk.apply([PersistStatements(tuple(blobs))])
        disk.seed = seed
        if not dies:
            self.sign = self._world.signatures.signer(seed)
            self.replica.rotated(blobs, public_key(seed), self._world.clock.active_ns)
            self._show_key()
            self.absorb()
        return True

    def _signed(self, message: bytes) -> bytes:
        return self.sign(message)

    def _show_key(self) -> None:
        key = public_key(self._machine.disk.seed)
        rotations = self.replica.roster.rotations(self.identity.node)
        self._world.shown[self.identity.index] = Shown(key, rotations, self.codec.speaks)

    @property
    def attachments(self) -> Iterable[tuple[str, str, str]]:
        """(VPC id, IP, MAC) of the interfaces that lead to pods."""
        return self._machine.attachments.values()

    def _follow(self) -> None:
        """Keep the shards that the view as it is calls for, and no others."""
        while self.interests is not None and follow(self.interests, self.replica, self.writer):
            self.view.update(self.replica.take_touched())

    def hears(self, writer: NodeId, shard: str) -> bool:
        """Whether what that node writes in the shard is kept here, and sent: one whose site the VPC
        shuts out keeps what it has written there to itself."""
        admitted = self.interests is None or self.interests.entitled(writer, shard)
        return self.replica.keeps(shard) and admitted

    def differ_from(self, other: Process) -> list[str]:
        """Of what both keep, the shards (or the roster) that are not the same."""
        mine, theirs = self.digests(), other.digests()
        if mine == theirs:
            return []
        return [
            what
            for what in sorted(mine.keys() | theirs.keys())
            if mine.get(what) != theirs.get(what)
            and (what == "roster" or (self.replica.keeps(what) and other.replica.keeps(what)))
        ]

    def digests(self) -> dict[str, bytes]:
        """Of the roster and of every shard with something in it."""
        if self._digests is None:
            lattice = self.replica.lattice
            found = {shard: lattice.digest(shard) for shard in lattice.shards()}
            self._digests = {shard: digest for shard, digest in found.items() if any(digest)}
            self._digests["roster"] = self.replica.roster.digest()
        return self._digests

    @property
    def settled(self) -> bool:
        """Whether it waits for nothing but time: no batch is under way, its start is over."""
        replica = self.replica
        if self._busy or self._turn_due or self.store_fails or replica.has_news or replica.cloned:
            return False  # who has met its clone goes on after a while
        return not replica.opening or replica.retired or replica.ousted

    # ---- what the network brings ----

    def admits(self, peer: int) -> bool:
        if self._blocked_until_ns.get(peer, 0) > self._world.clock.now_ns:
            return False
        shown = self._world.shown[peer]
        if shown.rotations and self.replica.roster.node_of_key(shown.key) is None:
            self.replica.add_statements(shown.rotations, self._world.clock.active_ns)
            self.absorb()
        return not self.refuses(peer)

    def refuses(self, peer: int) -> bool:
        node, replica = self._node_of(peer), self.replica
        if node == self.identity.node or replica.retired:
            return True
        if self._instances.get(node, peer) != peer:
            return True  # that node is linked, and alive
        member = replica.roster.active(node)
        return member is None or member.key != self._world.shown[peer].key

    def link_up(self, peer: int) -> None:
        node = self._node_of(peer)
        self._instances[node] = peer
        shown = self._world.shown[peer]
        self._linked_keys[node] = shown.key
        self.replica.peer_up(node, self._world.clock.active_ns, shown.speaks)
        version = self.codec.speaks.common(shown.speaks)
        if self.release > PRESENT and version is not None:
            self._world.network.send(self.identity.index, peer, note(version), False)
        self.down.discard(node)
        self.forwarding.set_live(node, True)
        self._have_rows_laid()
        self.absorb()

    def link_down(self, peer: int) -> None:
        node = self._node_of(peer)
        del self._instances[node], self._linked_keys[node]
        self.replica.peer_down(node, self._world.clock.active_ns)
        self.down.add(node)
        self.forwarding.set_live(node, False)
        self._have_rows_laid()
        self.absorb()

    def link_lagging(self, peer: int) -> None:
        self.replica.peer_lagging(self._node_of(peer), self._world.clock.active_ns)
        self._arm()

    def frame_in(self, peer: int, frame: bytes) -> None:
        world = self._world
        self.replica.receive(world.nodes[peer], frame, world.clock.active_ns)
        if self.replica.has_news:
            self.absorb()
        else:
            self._arm()

    def _node_of(self, index: int) -> NodeId:
        return self._world.nodes[index]

    # ---- effects ----

    def absorb(self) -> None:
        """Bring the view up to the replica, carry out what it wants, set the timers."""
        self._read()
        if not self._busy and not self._gathers():
            self._carry_out()
        self._arm()

    def _take_turn(self) -> None:
        """All that came at one instant goes together, as in a turn of the node's loop."""
        self._turn_due = False
        if self._alive:
            self.absorb()

    def _gathers(self) -> bool:
        """In a busy mesh, let more come to be passed on together, as the node's loop does. Whoever
        waits for a write to be stored, or a peer for an answer, does not wait for this."""
        if self.replica.pressing or self._hurries or not self.replica.has_news:
            return False
        now_ns = self._world.clock.now_ns
        if self._goes_at_ns > now_ns:
            return True
        wait_ns = self._pace.wait_ns(now_ns)
        if wait_ns:
            self._goes_at_ns = now_ns + wait_ns
            self._world.clock.after(wait_ns, self._go)
        return wait_ns > 0

    def _go(self) -> None:
        """What was gathered goes."""
        if self._alive and not self._busy:
            self._carry_out()
            self._arm()

    def _read(self) -> None:
        touched = self.replica.take_touched()
        if not self.sees:
            return
        if touched:
            self.view.update(touched)
            self._have_house_kept()
            self._have_rows_laid()
        self._follow()

    def _have_rows_laid(self) -> None:
        """In a while, with whatever else changes by then."""
        if not self._rows_due:
            self._rows_due = True
            self._world.clock.after(ROWS_NS, self._rows_waited)

    def _rows_waited(self) -> None:
        if self._alive and self._rows_due:
            self.lay_rows()

    def lay_rows(self) -> None:
        """Bring rows and data plane up to the view: whoever looks at them does not wait for it."""
        self._rows_due = False
        if self.sees and self.forwarding.update():
            self._dataplane.apply(self.forwarding.take_delta())

    def tables(self) -> Tables:
        """All rows, of the view as it is."""
        self.lay_rows()
        return self.forwarding.tables()

    def _carry_out(self) -> None:
        """One batch of effects; the next one once the store has this one, or has failed."""
        self._busy = True
        self._hurries = False
        while effects := self.replica.drain():
            self._pace.spend(self._world.clock.now_ns)
            self._world.probe.drained(self.identity.index, effects, self.replica.lattice)
            self._digests = None
            if self._give(effects):
                break
        else:
            self._busy = False

    def _give(self, effects: Sequence[Effect]) -> bool:
        """Give the store its part of a batch, or carry the batch out if it has none; whether the
        store is busy with it."""
        batch = self._spool.take(effects, self._world.clock.now_ns)
        if batch:
            self._unsent = batch
            self._world.clock.after(STORE_NS, self._stored)
            return True
        self._perform(self._spool.allowed())
        return False

    def _stored(self) -> None:
        if not self._alive:
            return
        batch, self._unsent = self._unsent, None
        assert batch is not None
        if self._store(batch):
            self._note_stored()
        else:
            self.store_fails = True
            self._spool.failed(self._world.clock.now_ns)
            self._world.clock.after(RETRY_NS, self._store_again)
        self._perform(self._spool.allowed())
        self._busy = False
        if not self._gathers():
            self._carry_out()
        self._arm()

    def _store_again(self) -> None:
        """The store was left alone for a while after it had failed."""
        retry_ns = self._spool.retry_ns
        if not self._alive or self._busy or retry_ns is None:
            return
        if retry_ns <= self._world.clock.now_ns:
            self._busy = True
            if not self._give(()):
                self._busy = False

    def _note_stored(self) -> None:
        withheld = self._spool.stored()
        if self.store_fails and withheld:
            for peer in self.replica.peers():
                self.replica.peer_lagging(peer, self._world.clock.active_ns)
        self.store_fails = False

    def _store(self, batch: Sequence[Stored]) -> bool:
        """Whether the disk took it."""
        if self._machine.disk.full:
            return False
        try:
            self._machine.disk.apply(batch)
        except TornError:
            return False
        self._world.probe.stored(self.identity.index, batch)
        return True

    def _perform(self, effects: Sequence[Effect]) -> None:
        me, network = self.identity.index, self._world.network
        for effect in effects:
            match effect:
                case Send():
                    peer = self._instances.get(effect.peer)
                    if peer is not None:
                        network.send(me, peer, effect.frame, effect.push)
                case MembersChanged():
                    self._members_changed()
                case DropPeer():
                    peer = self._instances.get(effect.peer)
                    if peer is not None:
                        until_ns = self._world.clock.now_ns + MISBEHAVED_BACKOFF_NS
                        self._blocked_until_ns[peer] = until_ns
                        network.drop(me, peer)
                case _:
                    pass  # the store's part is done, alarms were told to the probe

    def _members_changed(self) -> None:
        members = self.replica.roster.members()
        if self.sees:
            self.view.set_members(members)
            if self.interests is not None:
                self.interests.members_changed()
            self._have_house_kept()
            self._read()
        for node, key in sorted(self._linked_keys.items()):
            member = members.get(node)
            if member is not None and member.key != key and node in self._instances:
                self._world.network.drop(self.identity.index, self._instances[node])

    def kill(self) -> None:
        """The process ends now. Of the batch under way, all or nothing reaches the disk."""
        self.lay_rows()
        self._alive = False
        chance = self._world.chance_of(f"kill/{self.identity.index}/{self._machine.starts}")
        stores = chance.random() < 0.5
        if self._unsent is not None and stores:
            self._store(self._unsent)

    # ---- time ----

    def _arm(self) -> None:
        """Have the replica's timer called when it is due."""
        deadline_ns = self.replica.next_deadline_ns()
        if deadline_ns is None or not self._alive:
            return
        if self._timer_ns is None or deadline_ns < self._timer_ns:
            self._timer_ns = deadline_ns
            clock = self._world.clock
            clock.tick_at(deadline_ns + clock.leapt_ns, partial(self._timer, deadline_ns))

    def _timer(self, at_ns: int) -> None:
        if not self._alive or self._timer_ns != at_ns:
            return
        self._timer_ns = None
        self.replica.timer(self._world.clock.active_ns)
        self.absorb()

    def clock_stepped(self) -> None:
        self._have_house_kept()

    def _have_house_kept(self, at_ns: int = 0) -> None:
        """At the next turn, or at `at_ns` if that is later. A real node looks at every turn; most
        of them find nothing, and days of a run would be made of them."""
        when_ns = max(at_ns, self._world.clock.now_ns + HOUSEKEEPING_NS)
        if self._house_ns is None or when_ns < self._house_ns:
            self._house_ns = when_ns
            self._world.clock.at(when_ns, partial(self._keep_house, when_ns))

    def _keep_house(self, at_ns: int) -> None:
        """Own registration, withdrawals, and whatever else time brings."""
        if not self._alive or self._house_ns != at_ns:
            return
        self._house_ns = None
        if self.replica.writable:
            disk = self._machine.disk
            if disk.lacks and not (self._busy or self.store_fails or self.replica.lacks):
                disk.hears_first = disk.lacks = False  # what peers have told is stored
            with suppress(RequestError):  # tried again a second later; a real node logs it
                self.keeping_house = True
                self.submit(self._house_ops)
            self.keeping_house = False
            due_ns = self.writer.next_deadline_ns() if self.sees else None
            if due_ns is not None:
                self._have_house_kept(due_ns - self.wall_ns + self._world.clock.now_ns)
        else:
            self._have_house_kept()

    @property
    def registered(self) -> bool:
        """Whether its gateway's registration is among its records."""
        key = keys.pack(keys.GatewayKey(self.identity.node))
        return self.replica.record(MESH_SHARD, key) is not None

    def _house_ops(self, wall_ns: int) -> list[Op]:
        if not self.sees and self.registered:
            return []
        identity = self.identity
        version = f"sim-{self.release}"
        registration = self.writer.register_gateway(
            identity.underlay, identity.addrs, version, now_ns=wall_ns
        )
        if not self.sees:
            return registration
        return [*registration, *self.writer.housekeeping(wall_ns)]
