"""What users do: requests at random nodes, made of what the node they ask shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import msgpack

from mesh.core import keys, model
from mesh.core.errors import NotReady, RequestError
from mesh.core.importing import EndpointSpec
from mesh.core.ops import MESH_SHARD, Delete, NodeId, Op, Put
from sim.core.beginning import first_claim
from sim.core.chance import Chance, below, pick, pick_weighted
from sim.core.clock import SECOND_NS, Clock
from sim.core.layout import EXTRA_FIRST, VNI_FIRST, Layout
from sim.core.node import Machine, Process
from sim.core.releases import PRESENT
from sim.core.scenario import STRETCHED, OpKind, Workload

EXTRAS_MAX: Final = 4
"""VPCs that come and go, and subnets."""
EXTRA_VNI_FIRST: Final = 10_000
NEWER_KIND: Final = b"~"
NEWER_FIELD: Final = 99
FOREIGN_VNI: Final = 666
FOREIGN_MOBILITY: Final = 9
TURNS_PER_WRITE_MAX: Final = 10
"""Users who are to make so many writes, and are refused again and again, give up at last."""
REFUSALS_MAX: Final = 4
"""in a row, after which a user leaves off for now"""
IDLE_TRIES_MAX: Final = 4
"""Most kinds of requests need something that is there; who is to write tries so many a write."""
AGAIN_NS: Final = 2 * SECOND_NS
MORE_NS: Final = SECOND_NS // 4
"""On average between what is written after the run's time, or for the sake of frames."""
SETUP_RETRY_NS: Final = SECOND_NS // 4
LOOKS_MAX: Final = 4
"""Records that are looked at for one that serves: most do."""


def _unheard(process: Process, ask: Callable[..., Sequence[Op]]) -> None:
    """Nobody listens."""


class Users:
    """All users of a run. Refusals are part of life, and counted."""

    def __init__(
        self,
        workload: Workload,
        machines: Sequence[Machine],
        clock: Clock,
        chance: Chance,
        views: int,
        carried: Callable[[], int],
    ) -> None:
        """`views`: so many of the machines, the first, keep views. `carried`: how many frames the
        network was given until now."""
        self.asked = 0
        self.refused = 0
        self.heard: Callable[[Process, Callable[..., Sequence[Op]]], None] = _unheard
        """Told of every request, before it is made."""
        self._workload = workload
        self._machines = machines
        first = [machine for machine in machines if machine.state == "member"]
        self._first = first
        """those that are there from the start"""
        self._sites = list(dict.fromkeys(machine.identity.site for machine in first))
        self._asking = machines[:views] if views < len(machines) else machines
        """the nodes that users talk to: those that can show them something"""
        self.layout = Layout(workload, self._sites)
        self._clock = clock
        self._chance = chance
        self._carried = carried
        self._until_ns = 0
        self._turns_left = 0
        self._ready = 0
        self._kinds: dict[OpKind, Callable[[Process], None]] = {
            "create": self._create,
            "delete": self._delete,
            "recreate": self._recreate,
            "move": self._move,
            "claim": self._claim,
            "resolve": self._resolve,
            "evict": self._evict,
            "inherit": self._inherit,
            "vpc": self._vpc,
            "contend": self._contend,
            "admit": self._admit,
            "subnet": self._subnet,
            "peering": self._peering,
            "trespass": self._trespass,
        }

    # ---- the beginning ----

    def set_up(self) -> None:
        """Make VPCs and subnets, each at the first gateway of its owner's site."""
        for i in range(len(self.layout.vpcs)):
            self._set_up_vpc(i)
        for machine in self._first:
            self._first_endpoints(machine)

    def _set_up_vpc(self, i: int) -> None:
        # Its owner must be one that keeps a view: the first sites do.
        site = self._sites[i % min(len(self._sites), len(self._asking))]
        owner = next(m for m in self._first if m.identity.site == site)
        process = owner.process
        if process is None or not process.replica.writable:
            self._clock.after(SETUP_RETRY_NS, partial(self._set_up_vpc, i))
            return
        name, cidrs = self.layout.vpcs[i], [self.layout.cidr]
        self._ask(process, partial(process.writer.add_vpc, name, VNI_FIRST + i, cidrs))
        homes = self.layout.homes[name]
        for number, home in enumerate(homes, 1):
            if number < STRETCHED:
                self._add_subnet(process, name, f"home-{home}", number, [home])
        self._add_subnet(process, name, "stretched", STRETCHED, list(homes[:100]))

    def _add_subnet(
        self, process: Process, vpc: str, name: str, number: int, sites: list[str]
    ) -> None:
        cidr = self.layout.subnet(number)
        # A site without a member yet is refused; the whole roster is known from the start here.
        self._ask(process, partial(process.writer.add_subnet, name, vpc, cidr, sites))

    def _first_endpoints(self, machine: Machine) -> None:
        process = machine.process
        if process is not None and not process.sees:
            self._first_records(machine)
            return
        names = self.layout.vpcs_at(machine.identity.site)
        if process is None or not all(self._complete(process, name) for name in names):
            self._clock.after(SETUP_RETRY_NS, partial(self._first_endpoints, machine))
            return
        for name in names:
            for ip in self._first_ips(machine, name):
                self._claim_at(process, name, ip)

    def _first_records(self, machine: Machine) -> None:
        """The same at a node without a view, from what the first node sees."""
        process, seeing = machine.process, self._asking[0].process
        names = self.layout.vpcs_at(machine.identity.site)
        ready = seeing is not None and all(self._complete(seeing, name) for name in names)
        if process is None or seeing is None or not ready or not process.replica.writable:
            self._clock.after(SETUP_RETRY_NS, partial(self._first_records, machine))
            return
        puts: dict[bytes, Put] = {}
        for name in names:
            vpc = seeing.view.vpc(name).id
            for ip in self._first_ips(machine, name):
                put = first_claim(vpc, ip, process.clock, process.wall_ns)
                puts[vpc.encode() + put.key] = put
        self._ask(process, lambda now_ns: list(puts.values()))

    def _first_ips(self, machine: Machine, vpc: str) -> Iterator[str]:
        here = [m for m in self._first if m.identity.site == machine.identity.site]
        site, number = machine.identity.site, here.index(machine)
        return self.layout.first_ips(self._chance, site, vpc, number, len(here))

    def _complete(self, process: Process, vpc: str) -> bool:
        """Whether the node has seen a VPC's subnets."""
        try:
            found = process.view.vpc(vpc)
        except RequestError:
            return False
        return process.replica.writable and any(
            subnet.name == "stretched" for subnet in process.view.subnets(found.id)
        )

    # ---- going on ----

    def run(self, until_ns: int) -> None:
        """Ask for things at random times until then."""
        self._until_ns = until_ns
        self._turns_left = TURNS_PER_WRITE_MAX * self._workload.writes
        if self._workload.writes or self._workload.rate_per_s > 0:
            self._schedule()

    @property
    def writes(self) -> int:
        """Requests that were taken."""
        return self.asked - self.refused

    @property
    def at_work(self) -> bool:
        """Whether users who are to make so many writes, and see so many frames sent, go on."""
        workload = self._workload
        short = self.writes < workload.writes or self._carried() < workload.frames
        return short and self._turns_left > 0

    def _schedule(self) -> None:
        if self._workload.writes:
            self._turns_left -= 1
            if not self.at_work:
                return
            turns = -(-(self._workload.writes - self.writes) // self._workload.burst)
            left_ns = self._until_ns - self._clock.now_ns
            mean_ns = left_ns / (turns + 1) if turns > 0 and left_ns > 0 else MORE_NS
        else:
            mean_ns = SECOND_NS / self._workload.rate_per_s
        self._clock.after(int(mean_ns * 2 * self._chance.random()), self._next)

    def _next(self) -> None:
        if self._clock.now_ns >= self._until_ns and not self._workload.writes:
            return
        machine = pick(self._chance, self._asking)
        if self._workload.writes:
            self._write_at(machine)
        else:
            for _ in range(self._workload.burst):
                self._request(machine)
        self._schedule()

    def _request(self, machine: Machine) -> None:
        kind = pick_weighted(self._chance, self._workload.mix)
        if machine.process is not None:
            self._kinds[kind](machine.process)
            if machine.process.release > PRESENT:
                self._novel(machine.process)

    def _write_at(self, machine: Machine) -> None:
        """Requests until a burst of them was taken. Who only is refused comes back later."""
        before, refused = self.writes, self.refused
        burst = self._workload.burst if before < self._workload.writes else 1
        for _ in range(IDLE_TRIES_MAX * burst if machine.process is not None else 0):
            taken = self.writes
            self._request(machine)
            if self.writes > taken:
                refused = self.refused
            if self.writes - before >= burst or self.refused - refused >= REFUSALS_MAX:
                return

    def _ask(self, process: Process, ask: Callable[..., Sequence[Op]]) -> bool:
        self.asked += 1
        self.heard(process, ask)
        try:
            return process.submit(lambda wall_ns: ask(now_ns=wall_ns))
        except NotReady:
            self.refused += 1
        except RequestError:
            self.refused += 1
        return False

    # ---- endpoints ----

    def _claim_at(self, process: Process, vpc: str, ip: str) -> bool:
        name = f"pod-{below(self._chance, 1000)}"
        return self._ask(
            process, partial(process.writer.add_endpoint, EndpointSpec(vpc, ip, name=name))
        )

    def _create(self, process: Process) -> None:
        site = process.identity.site
        vpc = pick(self._chance, self.layout.vpcs_at(site) or [self.layout.any_vpc(self._chance)])
        self._claim_at(process, vpc, self.layout.any_ip(self._chance, site, vpc))

    def _some(self, process: Process, counts: Callable[[NodeId], bool]) -> tuple[str, str] | None:
        """(VPC id, IP) of a claim, at random, that the node shows and whose writer `counts`.

        By looks at records at random: reading a large view whole would cost the run.
        """
        lattice = process.replica.lattice
        chains = [id for id in lattice.chains() if id.shard != MESH_SHARD and counts(id.node)]
        for _ in range(LOOKS_MAX if chains else 0):
            id = pick(self._chance, chains)
            claimed = [key for key in lattice.keys(id) if key[:1] == keys.ENDPOINT]
            if claimed:
                ip = keys.ip_of(pick(self._chance, claimed)[1:])
                if any(claim.node == id.node for claim in process.view.claims(id.shard, ip)):
                    return id.shard, ip
        return None

    def _own(self, process: Process) -> tuple[str, str] | None:
        return self._some(process, lambda node: node == process.identity.node)

    def _delete(self, process: Process) -> None:
        if (own := self._own(process)) is not None:
            self._ask(process, partial(process.writer.remove_endpoint, *own))

    def _recreate(self, process: Process) -> None:
        """Remove and claim again, at once or a little later; the address is the same."""
        own = self._own(process)
        if own is None or not self._ask(process, partial(process.writer.remove_endpoint, *own)):
            return
        if self._chance.random() < 0.5:
            self._claim_at(process, *own)
        else:
            machine = self._machines[process.identity.index]
            delay_ns = int(self._chance.random() * AGAIN_NS)
            self._clock.after(delay_ns, partial(self._again, machine, *own))

    def _again(self, machine: Machine, vpc: str, ip: str) -> None:
        if machine.process is not None and self._clock.now_ns < self._until_ns:
            self._claim_at(machine.process, vpc, ip)

    def _move(self, process: Process) -> None:
        site, members = process.identity.site, process.replica.roster.members()
        other = self._some(process, lambda n: n in members and members[n].site != site)
        if other is not None:
            self._ask(process, partial(process.writer.move_endpoint, EndpointSpec(*other)))

    def _claim(self, process: Process) -> None:
        """Two sites claim one address of the stretched subnet at the same time."""
        vpc = self.layout.any_vpc(self._chance)
        ip = self.layout.stretched_ip(self._chance)
        self._claim_at(process, vpc, ip)
        site = process.identity.site
        others = [m.process for m in self._asking if m.process and m.identity.site != site]
        if others:
            self._claim_at(pick(self._chance, others), vpc, ip)

    def _resolve(self, process: Process) -> None:
        conflicts = [c for c in process.view.conflicts() if c.key.startswith("endpoint/")]
        if conflicts:
            conflict = pick(self._chance, conflicts)
            keep = pick(self._chance, conflict.claimants)
            resolve = process.writer.resolve_conflict
            self._ask(process, partial(resolve, conflict.key, keep))

    def _evict(self, process: Process) -> None:
        other = self._some(process, lambda node: node != process.identity.node)
        if other is not None:
            self._ask(process, partial(process.writer.remove_endpoint, *other))

    def _inherit(self, process: Process) -> None:
        """Take over an endpoint of a retired gateway of the same site, or get rid of it."""
        members = process.replica.roster.members()
        left = self._some(process, lambda n: n in members and members[n].state == "retired")
        if left is None:
            return
        if self._chance.random() < 0.7:
            self._ask(process, partial(process.writer.add_endpoint, EndpointSpec(*left)))
        else:
            self._ask(process, partial(process.writer.remove_endpoint, *left))

    # ---- VPCs, subnets, peerings ----

    def _vpc(self, process: Process) -> None:
        """Make, change or remove one of a few VPCs that come and go, with few VNIs among them."""
        number = below(self._chance, EXTRAS_MAX)
        name, vni = f"extra-{number}", EXTRA_VNI_FIRST + below(self._chance, 3)
        writer = process.writer
        match below(self._chance, 4):
            case 0 | 1:
                self._ask(process, partial(writer.add_vpc, name, vni, [self.layout.cidr]))
            case 2:
                tenant = f"tenant-{below(self._chance, 3)}"
                self._ask(process, partial(writer.set_vpc, name, tenant=tenant))
            case _:
                self._ask(process, partial(writer.remove_vpc, name, force=True))

    def _contend(self, process: Process) -> None:
        """All who may write a VPC, or a half of a peering, change or remove it at the same time."""
        if self._chance.random() < 0.3:
            self._contend_peering(process)
            return
        names = sorted(vpc.id for vpc in process.view.vpcs.values() if vpc.name.startswith("extra"))
        if not names:
            return
        vpc = pick(self._chance, names)
        for machine in self._asking:
            other = machine.process
            if other is None or not other.view.catalog.may_write(vpc, other.identity.node):
                continue
            if self._chance.random() < 0.3:
                self._ask(other, partial(other.writer.remove_vpc, vpc, force=True))
            else:
                tenant = f"tenant-{below(self._chance, 3)}"
                self._ask(other, partial(other.writer.set_vpc, vpc, tenant=tenant))

    def _contend_peering(self, process: Process) -> None:
        vpcs = sorted(process.view.vpcs)
        if len(vpcs) < 2:
            return
        pair = pick(self._chance, vpcs), pick(self._chance, vpcs)
        for machine in self._asking:
            if machine.process is not None:
                writer = machine.process.writer
                added = self._chance.random() < 0.5
                edit = writer.add_peering if added else writer.remove_peering
                self._ask(machine.process, partial(edit, *pair))

    def _admit(self, process: Process) -> None:
        """Shut one site out of a VPC, or let all in again."""
        sites = list(self._sites)
        if self._chance.random() < 0.5:
            sites.remove(pick(self._chance, sites))
        admitted = sites if len(sites) < len(self._sites) else []
        self._ask(
            process,
            partial(process.writer.set_vpc, self.layout.any_vpc(self._chance), sites=admitted),
        )

    def _subnet(self, process: Process) -> None:
        number = EXTRA_FIRST + below(self._chance, EXTRAS_MAX)
        vpc, name = self.layout.any_vpc(self._chance), f"extra-{number}"
        if self._chance.random() < 0.6:
            self._add_subnet(process, vpc, name, number, [pick(self._chance, self._sites)])
        else:
            self._ask(process, partial(process.writer.remove_subnet, name, vpc))

    def _peering(self, process: Process) -> None:
        a, b = self.layout.any_vpc(self._chance), self.layout.any_vpc(self._chance)
        writer = process.writer
        edit = writer.add_peering if self._chance.random() < 0.6 else writer.remove_peering
        self._ask(process, partial(edit, a, b))

    # ---- what a later version does ----

    def _novel(self, process: Process) -> None:
        """Write what this version does not know: a kind of key, a version, a field."""
        chance = self._chance
        number = below(chance, self._workload.addresses)
        stamp = process.clock.now(process.wall_ns)
        shard, key = MESH_SHARD, NEWER_KIND + bytes([number])
        fields: dict[int, object] = {0: model.RECORD_VERSION + 1, 1: stamp}
        if (own := self._own(process)) is not None and chance.random() < 0.5:
            shard, key = own[0], keys.pack(keys.EndpointKey(keys.addr_of(own[1])))
            record = process.replica.record(shard, key)
            assert record is not None
            fields = {**model.fields_of(record), NEWER_FIELD: stamp}
        elif chance.random() < 0.3:
            self._ask(process, lambda now_ns: [Delete(shard, key)])
            return
        put = Put(shard, key, bytes(msgpack.packb(fields)))
        self._ask(process, lambda now_ns: [put])

    # ---- what nobody may ----

    def _trespass(self, process: Process) -> None:
        """Write past the writer's checks what others must not read: into a VPC's registers, its
        evictions, another gateway's registration. Where the node has authority after all, the
        record counts like any other."""
        chance, author = self._chance, process.identity.node
        vpcs = sorted(process.view.vpcs)
        if not vpcs:
            return
        vpc = process.view.vpcs[pick(chance, vpcs)]
        other = pick(chance, self._machines).identity.node
        endpoints = sorted((e.ip, e.node) for e in process.view.endpoints(vpc.id))
        record = process.view.catalog.vpc_record(vpc.id)
        stamp = process.clock.now(process.wall_ns)
        key: keys.Key
        value: model.Record
        match below(chance, 5):
            case 0 if process.replica.writable:
                # Not forbidden: who has not seen the VPC yet may well take its VNI.
                nonce = chance.randbytes(model.NONCE_BYTES)
                key = keys.VpcKey(model.vpc_id(author, nonce))
                value = model.VpcRecord(
                    1, 1, False, author, nonce, "extra-squat", vpc.vni, vpc.cidrs, since=1
                )
                other = b""
            case 1 if record is not None:
                key = keys.VpcKey(vpc.id)
                value = replace(record, revision=record.revision + 5, hlc=stamp, vni=FOREIGN_VNI)
            case 2 if endpoints:
                ip, node = pick(chance, endpoints)
                key = keys.EvictionKey(vpc.id, node, keys.addr_of(ip))
                value = model.Eviction(FOREIGN_MOBILITY, stamp)
            case 3:
                key = keys.GatewayKey(other)
                value = model.Registration(stamp, "192.0.2.1", (), "foreign")
            case _:
                key = keys.BindingKey(other, vpc.id)
                value = model.Binding(stamp, vpc.vni)
        if author != other:
            put = Put(MESH_SHARD, keys.pack(key), model.encode(value))
            self._ask(process, lambda now_ns: [put])
