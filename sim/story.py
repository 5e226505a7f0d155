"""The story of Weft in the simulator, for machines on which it cannot be told on the real kernel.

The nodes' own replicas, views and compilers, on a virtual clock and network; packets are decided on
by the data plane in memory. What needs a kernel, bulk TCP above all, is not told.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from mesh.core.errors import RequestError
from mesh.core.importing import EndpointSpec
from mesh.core.model import derived_mac
from mesh.core.ops import Op
from sim.core.clock import SECOND_NS, seconds
from sim.core.node import Machine, Process
from sim.core.packets import Pod, trace
from sim.core.scenario import parse
from sim.core.simulation import Simulation
from sim.lab.demo import Teller, UnlikeError, expect
from sim.seeding import chance_of

SEED: Final = 1
CONVERGE_MAX_S: Final = 5.0  # what the design promises after a heal
SETTLE_S: Final = 0.5  # a write is everywhere long before: the links take 20 ms
CUT_S: Final = 30.0
AWAY_S: Final = 10.0
STEP_NS: Final = SECOND_NS // 100
CIDR: Final = "10.0.0.0/16"
SHARED_IP: Final = "10.0.200.50"
SITES: Final = ("a", "b", "c")
VPCS: Final = {"v1": (100, "tenant-1"), "v2": (200, "tenant-2")}
SCENARIO: Final = {
    "duration_s": 600,
    "sites": len(SITES),
    "network": {"latency_ms": 20, "jitter_ms": 1},
    "workload": {"rate_per_s": 0},
}


class Story:
    """The steps, in order. Each returns what was measured or raises UnlikeError."""

    def __init__(self, teller: Teller) -> None:
        self._teller = teller
        self._sim = Simulation(parse(SCENARIO), chance_of(SEED))
        self._machines = self._sim.machines
        self._pods: dict[str, Pod] = {}
        self._across = [(0, 1), (1, 0), (0, 2), (2, 0)]

    def tell(self) -> None:
        self._teller.chapter("Two tenants with the same addresses on three sites")
        self._step("three nodes start and link", self._start)
        self._step("two VPCs with one CIDR, homed and stretched subnets, pods", self._lay_out)
        self._step("every pod reaches every pod of its VPC", self._all_pairs)
        self._step("none reaches a pod of the other VPC, equal addresses or not", self._isolated)

        self._teller.chapter("Cut off: {a} | {b, c}")
        self._step("the cut stops packets across it, inside a side they go on", self._cut)
        self._step("each side takes a new endpoint and reaches it", self._new_endpoints)
        self._step(f"both sides claim {SHARED_IP}", self._claim_both)

        self._teller.chapter("Healed")
        self._step("all digests are equal again", self._heal)
        self._step("the conflict is listed, same winner at all three sites", self._conflict)
        self._step(f"{SHARED_IP} is the winner's pod for everybody", self._winner_receives)
        self._step("the new endpoints are reached across", self._new_endpoints_across)

        self._teller.chapter("A node crashes while its gateway forwards")
        self._step("no packet is lost while the node of b is away", self._crash)
        self._step("it starts again, and every data plane's audit is clean", self._restart)

        self._teller.chapter("An endpoint goes")
        self._step("its removal stops its traffic everywhere", self._remove)

        self._teller.chapter("The end")
        self._step("all the simulator's checks held", self._checks)

    def _step(self, line: str, run: Callable[[], str]) -> None:
        try:
            self._teller.told(line, run())
        except (UnlikeError, RequestError) as error:
            self._teller.failed(line, str(error))

    # ---- the steps ----

    def _start(self) -> str:
        for machine in self._machines:
            machine.start()

        def linked() -> bool:
            return all(
                len(self._process(site).replica.peers()) == len(SITES) - 1
                and self._process(site).replica.writable
                and len(self._process(site).view.gateways) == len(SITES)
                for site in SITES
            )

        return f"all linked, all gateways known after {self._wait(linked, 'not linked'):.2f} s"

    def _lay_out(self) -> str:
        writer = self._process("a").writer
        for name, (vni, tenant) in VPCS.items():
            self._submit("a", partial(writer.add_vpc, name, vni, [CIDR], tenant))
            for number, site in enumerate(SITES, 1):
                self._add_subnet(name, f"home-{site}", f"10.0.{number}.0/24", [site])
            self._add_subnet(name, "stretched", "10.0.200.0/24", list(SITES))
        self._run(SETTLE_S)
        for name in VPCS:
            for number, site in enumerate(SITES, 1):
                self._add_pod(f"{site}-{name}-1", site, name, f"10.0.{number}.10")
                self._add_pod(f"{site}-{name}-2", site, name, f"10.0.200.{10 + number}")
        self._run(SETTLE_S)
        counts = {sum(1 for _ in self._process(site).view.endpoints()) for site in SITES}
        expect(counts == {len(self._pods)}, f"endpoints seen: {counts} of {len(self._pods)}")
        return f"{CIDR} twice, {len(self._pods)} endpoints known at every site"

    def _add_subnet(self, vpc: str, name: str, cidr: str, sites: list[str]) -> None:
        writer = self._process("a").writer
        self._submit("a", partial(writer.add_subnet, name, vpc, cidr, sites))

    def _submit(self, site: str, ask: Callable[..., Sequence[Op]]) -> None:
        self._process(site).submit(lambda wall_ns: ask(now_ns=wall_ns))

    def _add_pod(self, name: str, site: str, vpc: str, ip: str) -> None:
        machine = self._machine(site)
        process = self._process(site)
        self._submit(site, partial(process.writer.add_endpoint, EndpointSpec(vpc, ip, name=name)))
        id = process.view.vpc(vpc).id
        ifname = f"veth-{name}"
        process.attach(ifname, id, ip, derived_mac(id, ip))
        self._pods[name] = Pod(name, machine.identity.index, ifname, vpc, ip)

    def _all_pairs(self) -> str:
        pairs = self._pairs(self._pods.values())
        self._expect_reached(pairs, True)
        return f"{len(pairs)} pairs, there and back"

    def _isolated(self) -> str:
        """Addresses are equal in both VPCs: what counts is where a packet arrives."""
        sent = 0
        for pod in self._pods.values():
            for ip in sorted({other.ip for other in self._pods.values()} - {pod.ip}):
                found = self._arrives(pod, ip)
                right = self._pod_at(pod.vpc, ip)
                expect(found is right, f"{pod.name} to {ip} arrives at {found and found.name}")
                sent += 1
        return f"{sent} packets, 0 in the wrong VPC"

    def _cut(self) -> str:
        self._sim.network.cut(self._across)
        inside = [("b-v1-1", "c-v1-1"), ("c-v2-2", "b-v2-2")]
        across = [("a-v1-1", "b-v1-1"), ("c-v2-1", "a-v2-1")]
        self._expect_reached(inside, True)
        self._expect_reached(across, False)
        return "b and c reach each other, nothing between them and a"

    def _new_endpoints(self) -> str:
        self._run(CUT_S / 2)
        self._add_pod("a-v1-8", "a", "v1", "10.0.1.80")
        self._add_pod("b-v1-8", "b", "v1", "10.0.2.80")
        self._run(SETTLE_S)
        self._expect_reached([("a-v1-1", "a-v1-8"), ("c-v1-1", "b-v1-8")], True)
        self._expect_reached([("c-v1-1", "a-v1-8"), ("a-v1-1", "b-v1-8")], False)
        return "10.0.1.80 at a, 10.0.2.80 at b and from c"

    def _claim_both(self) -> str:
        self._add_pod("a-v1-9", "a", "v1", SHARED_IP)
        self._add_pod("b-v1-9", "b", "v1", SHARED_IP)
        self._run(CUT_S / 2)
        got = [self._arrival("a-v1-1", SHARED_IP), self._arrival("c-v1-1", SHARED_IP)]
        expect(got == ["a-v1-9", "b-v1-9"], f"it arrives at {got}")
        return "a has its own, b and c have b's"

    def _heal(self) -> str:
        self._sim.network.heal(self._across)
        took_s = self._wait(self._equal, "digests differ", 2 * CONVERGE_MAX_S)
        expect(took_s <= CONVERGE_MAX_S, f"only after {took_s:.2f} s")
        shards = len(self._process("a").replica.lattice.shards())
        return f"{shards} shards at {len(SITES)} nodes, {took_s:.2f} s after"

    def _equal(self) -> bool:
        digests = []
        for site in SITES:
            lattice = self._process(site).replica.lattice
            digests.append({shard: lattice.digest(shard) for shard in lattice.shards()})
        return all(digest == digests[0] for digest in digests)

    def _conflict(self) -> str:
        listed = [self._process(site).view.conflicts() for site in SITES]
        expect(all(found == listed[0] for found in listed), f"sites differ: {listed}")
        expect(len(listed[0]) == 1, f"{len(listed[0])} conflicts: {listed[0]}")
        conflict = listed[0][0]
        expect(conflict.key.endswith(f"/{SHARED_IP}"), f"about {conflict.key}")
        return f"{SHARED_IP} belongs to {conflict.winner} ({conflict.rule})"

    def _winner_receives(self) -> str:
        conflicts = self._process("a").view.conflicts()
        expect(len(conflicts) == 1, f"{len(conflicts)} conflicts")
        winner = f"{conflicts[0].winner[0]}-v1-9"
        for sender in ("a-v1-1", "b-v1-1", "c-v1-1"):
            got = self._arrival(sender, SHARED_IP)
            expect(got == winner, f"from {sender} it arrives at {got}")
        return f"packets from a, b and c all arrive at {winner}"

    def _new_endpoints_across(self) -> str:
        pairs = [("b-v1-1", "a-v1-8"), ("c-v1-1", "a-v1-8"), ("a-v1-1", "b-v1-8")]
        self._expect_reached(pairs, True)
        got = self._arrival("b-v2-1", "10.0.1.80")
        expect(got is None, f"from v2 it arrives at {got}")
        return "from all sites of v1, and not from v2"

    def _crash(self) -> str:
        self._machine("b").crash()
        pairs = self._pairs(pod for pod in self._pods.values() if pod.ip != SHARED_IP)
        sent = 0
        for _ in range(int(AWAY_S)):
            self._run(1.0)
            self._expect_reached(pairs, True)
            sent += 2 * len(pairs)
        return f"0 of {sent} packets in {AWAY_S:.0f} s lost"

    def _restart(self) -> str:
        self._machine("b").start()

        def ready() -> bool:
            process = self._process("b")
            return process.replica.writable and self._equal()

        took_s = self._wait(ready, "b is not ready again")
        rows = 0
        for machine in self._machines:
            assert machine.process is not None
            tables = machine.process.tables()
            report = machine.dataplane.audit(tables)
            expect(report.clean, f"{machine.identity.name}: {report}")
            rows += len(tables.endpoints) + len(tables.subnets) + len(tables.gateways)
        return f"ready after {took_s:.2f} s; {rows} rows at {len(SITES)} gateways, all as compiled"

    def _remove(self) -> str:
        pairs = [("a-v1-1", "a-v1-8"), ("b-v1-1", "a-v1-8"), ("c-v1-1", "a-v1-8")]
        self._expect_reached(pairs, True)
        self._submit("a", partial(self._process("a").writer.remove_endpoint, "v1", "10.0.1.80"))

        def gone() -> bool:
            vni, _ = VPCS["v1"]
            rows = [m.dataplane.explain(vni, "10.0.1.80")["kind"] for m in self._machines]
            return "endpoint" not in rows

        took_s = self._wait(gone, "it still has a row")
        self._expect_reached(pairs, False)
        for sender, receiver in pairs:
            got = self._arrival(receiver, self._pods[sender].ip)
            expect(got is None, f"what it sends arrives at {got}")
        return f"no row at a, b and c {took_s * 1000:.0f} ms after; nothing to it, nothing from it"

    def _checks(self) -> str:
        found = self._sim.violations.found
        expect(not found, "; ".join(f"{v.check}: {v.detail}" for v in found))
        carried = self._sim.network.carried
        return f"{carried.frames} frames in {seconds(self._sim.clock.now_ns):.0f} virtual seconds"

    # ---- parts of steps ----

    def _machine(self, site: str) -> Machine:
        return self._machines[SITES.index(site)]

    def _process(self, site: str) -> Process:
        process = self._machine(site).process
        if process is None:
            raise UnlikeError(f"the node of {site} does not run")
        return process

    def _run(self, virtual_s: float) -> None:
        self._sim.clock.run(self._sim.clock.now_ns + int(virtual_s * SECOND_NS))

    def _wait(
        self, check: Callable[[], bool], otherwise: str, max_s: float = CONVERGE_MAX_S
    ) -> float:
        """Virtual seconds until `check` holds. Raises UnlikeError after `max_s`."""
        clock = self._sim.clock
        began_ns = clock.now_ns
        while not check():
            expect(seconds(clock.now_ns - began_ns) < max_s, f"{otherwise} after {max_s:.0f} s")
            clock.run(clock.now_ns + STEP_NS)
        return seconds(clock.now_ns - began_ns)

    def _pairs(self, pods: Iterable[Pod]) -> list[tuple[str, str]]:
        chosen = list(pods)
        return [(p.name, q.name) for p in chosen for q in chosen if p.vpc == q.vpc and p != q]

    def _pod_at(self, vpc: str, ip: str) -> Pod | None:
        return next((p for p in self._pods.values() if (p.vpc, p.ip) == (vpc, ip)), None)

    def _arrives(self, pod: Pod, ip: str) -> Pod | None:
        arrived = trace(self._machines, self._sim.network, pod, ip).arrived
        pods = self._pods.values()
        return next((other for other in pods if (other.machine, other.ifname) == arrived), None)

    def _arrival(self, sender: str, ip: str) -> str | None:
        found = self._arrives(self._pods[sender], ip)
        return found.name if found else None

    def _reached(self, sender: str, receiver: str) -> bool:
        """Whether a packet gets there, and another one back."""
        there, back = self._pods[sender], self._pods[receiver]
        return self._arrives(there, back.ip) is back and self._arrives(back, there.ip) is there

    def _expect_reached(self, pairs: list[tuple[str, str]], wanted: bool) -> None:
        for sender, receiver in pairs:
            said = f"{receiver} is {'not ' if wanted else ''}reached from {sender}"
            expect(self._reached(sender, receiver) == wanted, said)


def main(reason: str) -> None:
    """Tell the story; `reason`: why not on the real kernel. Exit 1 if a step was not as told."""
    teller = Teller()
    teller.chapter("In the simulator: the nodes' own code, a virtual clock, packets in memory")
    print(f"    not on the real kernel: {reason}", flush=True)
    Story(teller).tell()
    teller.summary()
    sys.exit(teller.exit_code)


if __name__ == "__main__":
    main("asked for by python -m sim.story")
