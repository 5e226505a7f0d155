"""What must hold when all is healed and quiet, of the machines that still count:

- digests of every shard, and the readings of all views, are equal; a view read anew in another
  order is the same, and so is the reference's; the data plane has the rows, and these
  are what a compiler makes of the view from nothing (at COMPILED_MAX nodes);
- the disk holds what the memory holds, and that is what its writers signed;
- everybody knows the key that each node has;
- every conflict has two live claims.

What views and rows must be holds at any time, and is also looked at midway.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence, Set

from crdt.chain import Chain, RootMismatch
from crdt.delta import BadDelta
from mesh.core import keys
from mesh.core.errors import RequestError
from mesh.core.forwarding import Forwarding
from mesh.core.keytext import parse_key
from mesh.core.ops import MESH_SHARD
from mesh.core.view import View
from sim.core import reference
from sim.core.chance import Chance, below
from sim.core.checkers import Violations, chain_text, load_header
from sim.core.node import Machine, Process
from sim.core.signing import public_key

CLAIMS_READ_MAX = 100_000
"""Claims of all views together that are read as people read them. Views beyond that are compared by
what their readings follow from."""
COMPILED_MAX = 2
"""Nodes, at random, whose rows are compiled anew: a compiler that is wrong is wrong at many, and
each costs as much as all else that is done for a node at rest."""


class RestChecks:
    """Of one run."""

    def __init__(self, violations: Violations, chance: Chance) -> None:
        self._violations = violations
        self._chance = chance

    def run(self, machines: Sequence[Machine]) -> None:
        """All of them run, and hold the same."""
        first = machines[0].process
        assert first is not None
        view = reread(first)
        mine = kept(first)
        seen, basis = list(first.view.endpoints()), basis_of(first.view, mine)
        if list(view.endpoints()) != seen or basis_of(view, mine) != basis:
            self._violations.add(
                "the view does not depend on the order of arrival", first.identity.name
            )
        to_read = CLAIMS_READ_MAX
        self.reference(first)
        self._conflicts(first)
        self._signed(first)
        keys = {machine.identity.node: public_key(machine.disk.seed) for machine in machines}
        seeing = [machine for machine in machines if machine.process and machine.process.sees]
        first_compiled = below(self._chance, len(seeing)) if seeing else 0
        compiled = (seeing[first_compiled:] + seeing)[:COMPILED_MAX]
        for machine in machines:
            process = machine.process
            assert process is not None
            members = process.replica.roster.members()
            if any(members[node].key != key for node, key in keys.items() if node in members):
                self._violations.add("a node's key is known to all", machine.identity.name)
            if not process.sees:
                if process.differ_from(first):
                    self._violations.add("digests are equal", machine.identity.name)
                continue
            self._entries(first, process)
            if process.view.members != process.replica.roster.members():
                self._violations.add("the view knows the roster", machine.identity.name)
            same = kept(process) == mine
            if same and process is not first:
                differ = basis_of(process.view, mine) != basis
                if not differ and to_read > 0:
                    to_read -= len(seen)
                    differ = list(process.view.endpoints()) != seen
                if differ:
                    self._violations.add("views are equal", machine.identity.name)
            if not same:
                self.reference(process)
                self._conflicts(process)
            self._interest(process)
            self._disk(machine, process)
            self._rows(machine, process)
            if machine in compiled:
                self._forwarding(machine, process, view if same else reread(process))

    def _signed(self, process: Process) -> None:
        """Every branch is what its writer signed, by a key that counts for it; whoever holds the
        same entries under the same header need not be asked, too."""
        replica = process.replica
        for id in replica.lattice.chains():
            for branch in replica.lattice.branches(id):
                try:
                    assert branch.header is not None
                    Chain.restore(branch.header, branch.live)
                    signed = replica.roster.signed(branch.header, process.verify)
                except (BadDelta, RootMismatch):
                    signed = False
                if not signed:
                    self._violations.add("entries are what their writer signed", chain_text(id))

    def _entries(self, first: Process, other: Process) -> None:
        name = other.identity.name
        if first.differ_from(other):
            self._violations.add("digests are equal", name)
        if other is first:
            return
        for id in first.replica.lattice.chains():
            if not (first.replica.keeps(id.shard) and other.replica.keeps(id.shard)):
                continue
            ours = first.replica.lattice.branches(id)
            theirs = other.replica.lattice.branches(id)
            if len(ours) == len(theirs) and all(map(operator.is_, ours, theirs)):
                continue  # the two share them
            if [chain.live for chain in ours] != [chain.live for chain in theirs]:
                self._violations.add("entries are equal", f"{name}: {chain_text(id)}")

    def _interest(self, process: Process) -> None:
        """It keeps what the records call for, and nothing of others in other VPCs."""
        interests, replica = process.interests, process.replica
        if interests is None:
            return
        name, live = process.identity.name, process.view.vpcs.keys()
        uses = {vpc for vpc, _, _ in process.attachments} | set(filter(replica.writes, live))
        held = reference.held_by(replica)
        wanted = reference.kept(held, process.view.members, process.identity.site, uses)
        if interests.vpcs & live != wanted:
            self._violations.add("a node keeps what its site has to do with", name)
        for id in replica.lattice.chains():
            foreign = id.shard != MESH_SHARD and id.node != process.identity.node
            if foreign and not (
                replica.keeps(id.shard) and interests.entitled(process.identity.node, id.shard)
            ):
                self._violations.add("nothing of a VPC that is not kept", f"{name}: {id.shard[:8]}")

    def _disk(self, machine: Machine, process: Process) -> None:
        lattice, stored = process.replica.lattice, machine.disk.readable()
        if not set(process.replica.roster.statements()) <= set(machine.disk.statements):
            self._violations.add("disk and memory agree", f"{machine.identity.name}: the roster")
        held = {
            (id, chain.epoch): chain for id in lattice.chains() for chain in lattice.branches(id)
        }
        for place in sorted(held.keys() | stored.keys()):
            chain, branch = held.get(place), stored.get(place)
            if (
                chain is None
                or branch is None
                or chain.header != load_header(branch.header)
                or chain.live != branch.records
            ):
                words = f"{machine.identity.name}: {chain_text(place[0])}"
                self._violations.add("disk and memory agree", words)

    def _forwarding(self, machine: Machine, process: Process, view: View) -> None:
        """`view`: the same records, read from nothing."""
        identity = machine.identity
        fresh = Forwarding(identity.node, identity.site, view)
        for ifname, attachment in machine.attachments.items():
            fresh.attach(ifname, *attachment)
        for node in process.down:
            fresh.set_live(node, False)
        fresh.update()
        if fresh.tables() != process.tables():
            self._violations.add("rows follow from the view", identity.name)

    def _rows(self, machine: Machine, process: Process) -> None:
        if not machine.dataplane.audit(process.tables()).clean:
            self._violations.add("the data plane has the rows", machine.identity.name)

    def reference(self, process: Process) -> None:
        """The view of a node, at rest or not, against what the design makes of its records."""
        held = list(reference.held_by(process.replica))
        # The roster as the view was told of it: a store that is busy keeps news from it.
        expected = reference.read(held, process.view.members)
        for words in reference.differences(expected, reference.rows_of(process.view)):
            self._violations.add("the view is the reference's", words)
        if process.interests is None:
            return
        sites = sorted({member.site for member in process.view.members.values()})
        for vpc, admitted in reference.admitted(held, process.view.members).items():
            for site in sites:
                if process.interests.admits(vpc, site) != (admitted is None or site in admitted):
                    words = f"{process.identity.name}: {vpc[:8]}, {site}"
                    self._violations.add("whom a VPC's shard is for is the reference's", words)

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


def kept(process: Process) -> frozenset[str]:
    """Of the VPCs that are there, those whose shard the node keeps."""
    return frozenset(vpc for vpc in process.view.vpcs if process.replica.keeps(vpc))


def basis_of(view: View, vpcs: Set[str]) -> tuple[object, ...]:
    """All that can be read in a view but its endpoints, and what these follow from beside the
    records of claims; of claims those in `vpcs`, which the node keeps. Of others a node may have
    chains that nodes like it have not: its own, which count nowhere once its site is not admitted,
    and some of removed VPCs."""
    catalog, owners = view.catalog, view.table.owners
    evicted = {
        (vpc, addr, node): catalog.hidden_up_to(vpc, addr, node)
        for vpc in vpcs
        for addr in catalog.evicted(vpc)
        for node in owners.owners(vpc, keys.ENDPOINT + addr)
    }
    return (
        dict(view.vpcs),
        view.subnets(),
        dict(view.gateways),
        view.peerings(),
        view.conflicts(),
        dict(catalog.removed),
        {vpc: _merged(owners.parts(vpc)) for vpc in owners.vpcs() if vpc in vpcs},
        evicted,
    )


def _merged(parts: Iterable[Mapping[bytes, object]]) -> dict[bytes, object]:
    whole: dict[bytes, object] = {}
    for part in parts:
        whole.update(part)
    return whole


def reread(process: Process) -> View:
    """A view of the same records, in another order and one by one."""
    view = View(process.replica.holdings)
    for touched in reversed(list(process.replica.holdings.everything(1))):
        view.update((touched,))
    view.set_members(process.replica.roster.members())
    return view
