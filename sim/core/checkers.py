"""What must hold, checked as the run goes and at rest.

At every step, from the effects of each node:
- one (chain, epoch, head) has one root and one set of entries, whoever holds it;
- a branch's head never goes back, and a branch is dropped only when a later one covers it;
- honest nodes raise no alarm. Only a node whose disk was restored may be taken for a clone.

At rest, when all is healed and quiet:
- digests of every shard, and the readings of all views, are equal; a view read anew in another
  order is the same; the rows are what a compiler makes of it from nothing; the data plane has them;
- the disk holds what the memory holds;
- what an owner's disk took as written or deleted last is what everybody reads (`Ledger`);
- every conflict has two live claims.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from crdt.chain import Chain
from crdt.header import ChainId, Epoch, Header
from crdt.lattice import Lattice
from mesh.core import keys
from mesh.core.effects import Alarm, Effect, Persist
from mesh.core.errors import RequestError
from mesh.core.forwarding import Forwarding
from mesh.core.keytext import parse_key
from mesh.core.ops import NodeId, Op, Put
from mesh.core.persisting import load_header
from mesh.core.view import View
from sim.core import reference
from sim.core.clock import Clock, seconds
from sim.core.disk import Disk
from sim.core.node import Machine, Process

VIOLATIONS_MAX = 50
"""A broken build breaks everywhere: the first ones say what is wrong."""
CONTENT_ENTRIES_MAX = 256
"""Longer chains are compared at rest only: hashing them at each step would cost the run."""

Place = tuple[NodeId, str, bytes]
"""(owner, shard, key)"""


@dataclass(frozen=True, slots=True)
class Violation:
    at_s: float
    check: str
    detail: str

    def json(self) -> dict[str, object]:
        return {"at_s": self.at_s, "check": self.check, "detail": self.detail}


class Violations:
    """Those found, in order."""

    def __init__(self, clock: Clock) -> None:
        self.found: list[Violation] = []
        self._clock = clock

    def add(self, check: str, detail: str) -> None:
        if not self.full:
            at_s = round(seconds(self._clock.now_ns), 3)
            self.found.append(Violation(at_s, check, detail))

    @property
    def full(self) -> bool:
        return len(self.found) >= VIOLATIONS_MAX


def chain_text(id: ChainId) -> str:
    return f"{id.node.hex()[:8]}/{id.shard[:8]}"


def epoch_text(epoch: Epoch) -> str:
    return f"{epoch.counter}.{epoch.nonce.hex()[:4]}"


class StepChecks:
    """The checks of every step."""

    def __init__(self, violations: Violations) -> None:
        self._violations = violations
        self._roots: dict[tuple[ChainId, Epoch, int], bytes] = {}
        self._contents: dict[tuple[ChainId, Epoch, int], bytes] = {}
        self._heads: dict[int, dict[tuple[ChainId, Epoch], int]] = {}
        self.restored: set[int] = set()
        """nodes whose disk was restored: these may be taken for clones of themselves"""

    def started(self, node: int, lattice: Lattice) -> None:
        """What a node begins with; a crash may have lost what its disk did not have yet."""
        self._heads[node] = {
            (id, chain.epoch): chain.head
            for id in lattice.chains()
            for chain in lattice.branches(id)
        }

    def drained(self, node: int, effects: Sequence[Effect], lattice: Lattice) -> None:
        touched: dict[ChainId, None] = {}
        for effect in effects:
            if isinstance(effect, Persist):
                touched[effect.chain] = None
                self._persist(node, effect, lattice)
            elif isinstance(effect, Alarm):
                self._alarm(node, effect)
        for id in touched:
            for chain in lattice.branches(id):
                self._content(node, chain)

    def _persist(self, node: int, effect: Persist, lattice: Lattice) -> None:
        header = load_header(effect.header)
        id, epoch = effect.chain, effect.epoch
        what = f"node {node}: {chain_text(id)} epoch {epoch_text(epoch)} head {header.hi}"
        known = self._roots.setdefault((id, epoch, header.hi), header.root)
        if known != header.root:
            self._violations.add("one head, one root", what)
        heads = self._heads.setdefault(node, {})
        if effect.relabel_from is not None:
            heads.pop((id, effect.relabel_from), None)
        before = heads.get((id, epoch), 0)
        if header.hi < before:
            self._violations.add("heads do not go back", f"{what}, was {before}")
        heads[id, epoch] = header.hi
        for dropped in effect.drop:
            head = heads.pop((id, dropped), 0)
            headers = [chain.header for chain in lattice.branches(id) if chain.header]
            if not any(h.epoch > dropped and h.covers_head(dropped, head) for h in headers):
                self._violations.add(
                    "only covered branches go", f"{what}: dropped {epoch_text(dropped)} at {head}"
                )

    def _content(self, node: int, chain: Chain) -> None:
        header = chain.header
        if header is None or header.hi != chain.head or len(chain.live) > CONTENT_ENTRIES_MAX:
            return
        content = content_hash(chain)
        known = self._contents.setdefault((chain.id, header.epoch, header.hi), content)
        if known != content:
            self._violations.add(
                "one head, one set of entries",
                f"node {node}: {chain_text(chain.id)} epoch {epoch_text(header.epoch)} head"
                f" {header.hi}",
            )

    def _alarm(self, node: int, alarm: Alarm) -> None:
        if alarm.event == "node.cloned" and node in self.restored:
            return
        fields = " ".join(
            f"{name}={value.hex()[:8] if isinstance(value, bytes) else value}"
            for name, value in alarm.fields.items()
        )
        self._violations.add("no alarm among honest nodes", f"node {node}: {alarm.event} {fields}")


def content_hash(chain: Chain) -> bytes:
    """A hash over the entries, made without the chain's own index."""
    whole = sha256()
    for key, entry in sorted(chain.live.items()):
        whole.update(b"%d %d;" % (len(key), len(entry)) + key + entry)
    return whole.digest()


@dataclass(slots=True)
class _Fact:
    """The last write of an owner to a key that its disk has taken."""

    record: bytes | None
    chain: ChainId
    epoch: Epoch
    head: int
    unmet: tuple[tuple[Epoch, int], ...] = ()
    """earlier writes to the key that the owner had lost with its disk, and not met again"""
    certain: bool = True
    """False: a disk was lost, and nobody else's had it"""


class Ledger:
    """What owners wrote, as their users know it: written means on the owner's disk."""

    def __init__(self) -> None:
        self._facts: dict[Place, _Fact] = {}
        self._taken: dict[int, list[Op]] = {}
        """in memory"""
        self._leaving: dict[int, list[Op]] = {}
        """in the batch that the store is busy with"""

    def wrote(self, node: int, ops: Sequence[Op]) -> None:
        self._taken.setdefault(node, []).extend(ops)

    def drained(self, node: int) -> None:
        self._leaving.setdefault(node, []).extend(self._taken.pop(node, ()))

    def stored(self, node: int, owner: NodeId, effects: Iterable[Effect]) -> None:
        headers: dict[str, Header] = {}
        for effect in effects:
            if isinstance(effect, Persist) and effect.chain.node == owner:
                headers[effect.chain.shard] = load_header(effect.header)
        for op in self._leaving.pop(node, ()):
            header = headers.get(op.shard)
            if header is None:
                continue  # deleted what was not there
            record = op.record if isinstance(op, Put) else None
            place = (owner, op.shard, op.key)
            former = self._facts.get(place)
            unmet = (*former.unmet, (former.epoch, former.head)) if former else ()
            self._facts[place] = _Fact(
                record,
                header.chain,
                header.epoch,
                header.hi,
                tuple(position for position in unmet if not _includes([header], *position)),
            )

    def stopped(self, node: int) -> None:
        """What the disk does not have was never acknowledged."""
        self._taken.pop(node, None)
        self._leaving.pop(node, None)

    def disk_lost(self, owner: NodeId, disk: Disk, disks: Sequence[Disk]) -> None:
        """The owner's disk was replaced by `disk`, an older copy.

        What no disk has now may be lost. So may be what belongs to another history than the copy:
        the owner had gone on from a disk without the copy's, and neither covers the other.
        """
        held, restored = _headers(disks), _headers([disk])
        for (node, _, _), fact in self._facts.items():
            with_it = [
                header
                for header in held.get(fact.chain, ())
                if _includes([header], fact.epoch, fact.head)
            ]
            if not with_it:
                fact.certain = False
            elif node == owner:
                for copy in restored.get(fact.chain, ()):
                    known = _includes([copy], fact.epoch, fact.head)
                    if not known and not any(_shares(header, copy) for header in with_it):
                        fact.certain = False

    def started(self, owner: NodeId, disk: Disk) -> None:
        """An owner starts. What it wrote over a tail that it has not met stands only as long as
        the process that wrote it: which keys it deleted is not on its disk."""
        held = _headers([disk])
        for (node, _, _), fact in self._facts.items():
            if node == owner and fact.unmet:
                found = held.get(fact.chain, ())
                if not all(_includes(found, *position) for position in fact.unmet):
                    fact.certain = False

    def cloned(self, owner: NodeId, shard: str) -> None:
        """The owner went on from an old disk without knowing of its later epochs: two histories,
        of which people have to say what counts."""
        for (node, place, _), fact in self._facts.items():
            if node == owner and place == shard:
                fact.certain = False

    def compare(self, lattices: Iterable[tuple[str, Lattice]]) -> tuple[list[str], list[str]]:
        """(lost, resurrected): each key once, in words."""
        lost: dict[Place, str] = {}
        resurrected: dict[Place, str] = {}
        for name, lattice in lattices:
            for place, fact in self._facts.items():
                if not fact.certain:
                    continue
                record = lattice.record(fact.chain, place[2])
                if record == fact.record:
                    continue
                words = f"{chain_text(fact.chain)} key {place[2].hex()}, read at {name}"
                if fact.record is None:
                    resurrected.setdefault(place, words)
                else:
                    lost.setdefault(place, words)
        return list(lost.values()), list(resurrected.values())

    def __len__(self) -> int:
        return len(self._facts)


def _headers(disks: Iterable[Disk]) -> dict[ChainId, list[Header]]:
    held: dict[ChainId, list[Header]] = {}
    for disk in disks:
        for header in disk.headers().values():
            held.setdefault(header.chain, []).append(header)
    return held


def _includes(headers: Iterable[Header], epoch: Epoch, head: int) -> bool:
    """Whether one of the signed states holds what was written up to `head` of `epoch`."""
    return any(
        (header.epoch == epoch and header.hi >= head) or header.covers_head(epoch, head)
        for header in headers
    )


def _shares(header: Header, copy: Header) -> bool:
    """Whether `copy` is an earlier state of what `header` signs."""
    return header.epoch == copy.epoch or header.covers_head(copy.epoch, copy.hi)


class RestChecks:
    """The checks at rest, of all machines, every one of which runs."""

    def __init__(self, machines: Sequence[Machine], violations: Violations) -> None:
        self._machines = machines
        self._violations = violations

    def run(self) -> None:
        processes = [machine.process for machine in self._machines]
        assert all(process is not None for process in processes)
        first = processes[0]
        assert first is not None
        for machine in self._machines:
            process = machine.process
            assert process is not None
            self._same(machine.identity.name, first, process)
            self._disk(machine, process)
            self._forwarding(machine, process)
        self._reread(first)
        self.reference(first)
        self._conflicts(first)

    def _same(self, name: str, first: Process, other: Process) -> None:
        if digests(first.replica.lattice) != digests(other.replica.lattice):
            self._violations.add("digests are equal", name)
        elif first.view.fingerprint() != other.view.fingerprint():
            self._violations.add("views are equal", name)
        for id in first.replica.lattice.chains():
            ours = [content_hash(chain) for chain in first.replica.lattice.branches(id)]
            theirs = [content_hash(chain) for chain in other.replica.lattice.branches(id)]
            if ours != theirs:
                self._violations.add("entries are equal", f"{name}: {chain_text(id)}")

    def _disk(self, machine: Machine, process: Process) -> None:
        lattice = process.replica.lattice
        stored = machine.disk.lattice()
        for id in lattice.chains():
            if list(lattice.entries(id)) != list(stored.entries(id)):
                self._violations.add(
                    "disk and memory agree", f"{machine.identity.name}: {chain_text(id)}"
                )
        if digests(lattice) != digests(stored):
            self._violations.add("disk and memory agree", machine.identity.name)

    def _forwarding(self, machine: Machine, process: Process) -> None:
        identity = machine.identity
        fresh = Forwarding(identity.node, identity.site, reread(process))
        for ifname, attachment in machine.attachments.items():
            fresh.attach(ifname, *attachment)
        for node in process.down:
            fresh.set_live(node, False)
        fresh.update()
        if fresh.tables() != process.forwarding.tables():
            self._violations.add("rows follow from the view", identity.name)
        if not machine.dataplane.audit(process.forwarding.tables()).clean:
            self._violations.add("the data plane has the rows", identity.name)

    def _reread(self, process: Process) -> None:
        if reread(process).fingerprint() != process.view.fingerprint():
            self._violations.add(
                "the view does not depend on the order of arrival", process.identity.name
            )

    def reference(self, process: Process) -> None:
        """The view of a node, at rest or not, against what the design makes of its records."""
        lattice = process.replica.lattice
        held = (
            (id.node, id.shard, key, record)
            for id in lattice.chains()
            for key, _, _, record in lattice.entries(id)
        )
        expected = reference.read(held, process.replica.roster.members())
        for words in reference.differences(expected, reference.rows_of(process.view)):
            self._violations.add("the view is the reference's", words)

    def _conflicts(self, process: Process) -> None:
        for conflict in process.view.conflicts():
            if not conflict.key.startswith("endpoint/"):
                continue
            try:
                shard, raw = parse_key(process.view, conflict.key)
                parsed = keys.unpack(shard, raw)
            except RequestError as error:
                self._violations.add("a conflict's key can be read", str(error))
                continue
            assert isinstance(parsed, keys.EndpointKey)
            claims = process.view.claims(shard, keys.ip_of(parsed.addr))
            live = {claim.site for claim in claims if claim.state in ("active", "conflict")}
            if len(live) < 2:
                self._violations.add("a conflict has two live claims", conflict.key)


def digests(lattice: Lattice) -> dict[str, bytes]:
    """By shard; a shard with nothing in it is as one that is not there."""
    empty = bytes(32)
    found = {shard: lattice.digest(shard) for shard in lattice.shards()}
    return {shard: digest for shard, digest in found.items() if digest != empty}


def reread(process: Process) -> View:
    """A view of the same records, in another order and one by one."""
    view = View(process.replica.holdings)
    for touched in reversed(list(process.replica.holdings.everything(1))):
        view.update((touched,))
    view.set_members(process.replica.roster.members())
    return view
