"""Where a run that starts converged starts: as if the mesh had been set up before, and been quiet.

Registrations, VPCs, subnets and first endpoints were written and signed by their nodes' own code,
and every node's disk holds all of it. What is left out is how it came to all: a run that starts
with empty disks plays that.
"""

from __future__ import annotations

from collections.abc import Sequence

from crdt.lattice import Lattice
from mesh.core import keys, model
from mesh.core.clock import HybridClock
from mesh.core.holdings import Holdings
from mesh.core.ops import MESH_SHARD, NodeId, Op, Put, Touched
from mesh.core.own import OwnChains
from mesh.core.roster import Roster
from mesh.core.view import View
from mesh.core.writer import Writer
from sim.core.chance import Chance
from sim.core.disk import Disk
from sim.core.layout import VNI_FIRST, Layout
from sim.core.scenario import STRETCHED
from sim.core.shared import SharedDisk, Steps
from sim.core.signing import Signatures
from sim.core.world import WALL_START_NS, Identity


class Beginning:
    """The state that all nodes of one run start from."""

    def __init__(
        self,
        identities: Sequence[Identity],
        statements: tuple[bytes, ...],
        signatures: Signatures,
        chance: Chance,
    ) -> None:
        self._identities = identities
        self._lattice = Lattice()
        self._disk = Disk(statements, b"")
        self._steps = Steps()
        roster = Roster.founded_by(statements)
        self._own = {
            identity.node: OwnChains(
                identity.node,
                roster.mesh_id,
                self._lattice,
                signatures.signer(identity.seed),
                chance.randbytes,
            )
            for identity in identities
        }
        # All is signed before it is read, and so in the lattice, whoever wrote it.
        self._holdings = Holdings(self._lattice, self._own[identities[0].node])
        self._members = roster.members()
        self._nonce = chance.randbytes
        self._view = self._new_view()
        self._writers: dict[NodeId, Writer] = {}
        """of those who lay out the VPCs"""

    def _new_view(self) -> View:
        view = View(self._holdings)
        view.set_members(self._members)
        return view

    def _writer(self, identity: Identity, view: View) -> Writer:
        return Writer(identity.node, identity.site, view, HybridClock(), self._nonce)

    def disk(self, identity: Identity) -> Disk:
        """The node's disk, with everything on it."""
        return SharedDisk(identity.node, identity.seed, self._disk, self._lattice, self._steps)

    def register(self) -> None:
        """Every gateway says where it is."""
        unread = self._new_view()  # each writer follows its view: a thousand are not to be told
        for identity in self._identities:
            writer = self._writer(identity, unread)
            ops = writer.register_gateway(
                identity.underlay, identity.addrs, f"sim-{identity.release}", now_ns=WALL_START_NS
            )
            self._write(identity.node, ops)

    def lay_out(self, layout: Layout, owners: Sequence[Identity]) -> None:
        """The VPCs and their subnets, made by the first gateways of the owners' sites in turn."""
        self._writers = {owner.node: self._writer(owner, self._view) for owner in owners}
        for i, name in enumerate(layout.vpcs):
            node = owners[i % len(owners)].node
            writer = self._writers[node]
            cidrs = [layout.cidr]
            self._write(node, writer.add_vpc(name, VNI_FIRST + i, cidrs, now_ns=WALL_START_NS))
            homes = list(layout.homes[name])
            for number, home in enumerate(homes[: STRETCHED - 1], 1):
                self._add_subnet(node, name, f"home-{home}", layout.subnet(number), [home])
            stretched = layout.subnet(STRETCHED)
            self._add_subnet(node, name, "stretched", stretched, homes[:100])

    def _add_subnet(self, node: NodeId, vpc: str, name: str, cidr: str, sites: list[str]) -> None:
        writer = self._writers[node]
        self._write(node, writer.add_subnet(name, vpc, cidr, sites, now_ns=WALL_START_NS))

    def populate(self, layout: Layout) -> None:
        """Every gateway claims its first endpoints, which nobody else does."""
        by_site: dict[str, list[Identity]] = {}
        for identity in self._identities:
            by_site.setdefault(identity.site, []).append(identity)
        for name in layout.vpcs:
            vpc = self._view.vpc(name).id
            for site in layout.homes[name][: STRETCHED - 1]:
                gateways = by_site.get(site, [])
                for number, identity in enumerate(gateways):
                    clock = HybridClock()
                    ips = layout.home_ips(site, name, number, len(gateways))
                    claims = [first_claim(vpc, ip, clock, WALL_START_NS) for ip in ips]
                    self._write(identity.node, claims)

    def _write(self, node: NodeId, ops: Sequence[Op]) -> None:
        own = self._own[node]
        for op in ops:
            own.write(op)
        self._disk.apply([sealed.persist for sealed in own.seal()])
        # Endpoints need not be seen: nothing that is written here hangs on them.
        self._view.update([Touched(node, o.shard, (o.key,)) for o in ops if o.shard == MESH_SHARD])


def first_claim(vpc: str, ip: str, clock: HybridClock, wall_ns: int) -> Put:
    """The claim of an endpoint that nobody else has, made without a look at the view."""
    key = keys.pack(keys.EndpointKey(keys.addr_of(ip)))
    claim = model.Claim(0, clock.now(wall_ns), model.derived_mac(vpc, ip))
    return Put(vpc, key, model.encode(claim))
