"""The data plane of a simulated gateway goes by the run's time, not by this machine's."""

from __future__ import annotations

from dataplane.fib.rows import MOVED_GRACE_NS
from dataplane.reasons import DropReason
from mesh.core.importing import EndpointSpec
from mesh.core.model import derived_mac
from sim.core.clock import SECOND_NS
from sim.core.node import Process
from sim.core.scenario import parse
from sim.core.simulation import Simulation
from sim.seeding import chance_of

SCENARIO = {"duration_s": 60, "sites": 3, "workload": {"rate_per_s": 0}}
VNI, MOVING_IP, TARGET_IP = 100, "10.0.0.10", "10.0.0.30"


def _process(simulation: Simulation, index: int) -> Process:
    process = simulation.machines[index].process
    assert process is not None
    return process


def test_where_an_endpoint_was_may_send_for_so_long_after_a_move() -> None:
    simulation = Simulation(parse(SCENARIO), chance_of(1))
    machines, clock = simulation.machines, simulation.clock
    for machine in machines:
        machine.start()
    clock.run(5 * SECOND_NS)
    a, b, c = (_process(simulation, index) for index in range(3))
    a.submit(lambda ns: a.writer.add_vpc("v", VNI, ["10.0.0.0/16"], now_ns=ns))
    sites = ["a", "b", "c"]
    a.submit(lambda ns: a.writer.add_subnet("s", "v", "10.0.0.0/24", sites, now_ns=ns))
    a.submit(lambda ns: a.writer.add_endpoint(EndpointSpec("v", MOVING_IP), now_ns=ns))
    clock.run(6 * SECOND_NS)
    c.submit(lambda ns: c.writer.add_endpoint(EndpointSpec("v", TARGET_IP), now_ns=ns))
    vpc = c.view.vpc("v").id
    c.attach("veth-1", vpc, TARGET_IP, derived_mac(vpc, TARGET_IP))
    clock.run(7 * SECOND_NS)

    def reason() -> DropReason | None:
        """Why c drops what a sends as the endpoint that moved."""
        outer = machines[0].identity.underlay
        return machines[2].dataplane.receive(outer, VNI, MOVING_IP, TARGET_IP).reason

    assert reason() is None
    b.submit(lambda ns: b.writer.move_endpoint(EndpointSpec("v", MOVING_IP), now_ns=ns))
    moved_ns = clock.now_ns
    clock.run(moved_ns + MOVED_GRACE_NS - SECOND_NS)
    assert reason() is None
    clock.run(moved_ns + MOVED_GRACE_NS + SECOND_NS)
    assert reason() is DropReason.FOREIGN_SOURCE
