"""Scenarios and runs that the tests share."""

from __future__ import annotations

from typing import Any

import pytest

import crdt.chain
from mesh.core import antientropy, fetching, sync, wire
from sim.core.scenario import Scenario, parse


@pytest.fixture
def tight_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rings, chunks and vectors so small that a run of seconds goes beyond all of them."""
    monkeypatch.setattr(crdt.chain, "RING_MAX", 3)
    monkeypatch.setattr(wire, "CHUNK_BYTES", 1200)
    monkeypatch.setattr(wire, "VECTOR_MAX", 3)
    monkeypatch.setattr(crdt.lattice, "LOG_MAX", 4)
    monkeypatch.setattr(antientropy, "RECENT_MAX", 2)
    monkeypatch.setattr(fetching, "WANT_CHAINS_MAX", 2)
    monkeypatch.setattr(sync, "WINDOW", 2)
    monkeypatch.setattr(sync, "OFFER_BYTES_MAX", 2400)


@pytest.fixture
def churn() -> Scenario:
    """Three sites in half a minute of claims and removals, cuts, crashes and lost disks."""
    return parse(churn_table())


@pytest.fixture
def rough() -> Scenario:
    """Frames are lost, doubled and late, beyond what the transport would do."""
    network = {"mode": "datagram", "loss": 0.1, "duplicate": 0.1, "reorder": 0.2}
    faults = {"cuts": 2, "oneway_cuts": 1, "crashes": 2}
    return parse({**churn_table(), "network": network, "faults": faults})


@pytest.fixture
def bulk() -> Scenario:
    """Chains of which a newcomer is given many pieces, some of which are lost on the way."""
    network = {"mode": "datagram", "loss": 0.1, "reorder": 0.05}
    workload = {"vpcs": 1, "endpoints": 50, "addresses": 150, "rate_per_s": 1}
    table = {**churn_table(), "duration_s": 10, "network": network, "workload": workload}
    return parse({**table, "faults": {"joins": 3}})


@pytest.fixture
def lost_disks() -> Scenario:
    """Disks are replaced by older copies again and again, and few write."""
    workload = {"vpcs": 1, "rate_per_s": 1.5, "mix": {"create": 3, "delete": 3}}
    faults = {"cuts": 4, "cut_s": 15, "crashes": 6, "restores": 5, "down_s": 3}
    return parse({**churn_table(), "workload": workload, "faults": faults})


@pytest.fixture
def requests() -> Scenario:
    """All kinds of requests at four sites, with cuts between them."""
    workload = {"vpcs": 2, "endpoints": 1, "addresses": 3, "rate_per_s": 8}
    table = {**churn_table(), "sites": 4, "workload": workload, "faults": {"cuts": 4}}
    return parse(table)


@pytest.fixture
def hosted() -> Scenario:
    """Nodes keep what their sites have to do with; peerings bring VPCs to sites, and take them."""
    mix = {"create": 2, "delete": 1, "peering": 4}
    workload: dict[str, Any] = {"vpcs": 3, "sites_per_vpc": 1, "endpoints": 2, "addresses": 4}
    workload |= {"rate_per_s": 4, "mix": mix}
    table = {**churn_table(), "sites": 4, "workload": workload, "interest": "hosted"}
    return parse({**table, "faults": {"cuts": 2, "crashes": 2, "down_s": 3}})


@pytest.fixture
def prying() -> Scenario:
    """The same, and one of the nodes wants to have what is not for its site."""
    mix = {"create": 2, "delete": 1, "admit": 2, "peering": 1}
    workload: dict[str, Any] = {"vpcs": 3, "sites_per_vpc": 1, "endpoints": 2, "addresses": 4}
    workload |= {"rate_per_s": 3, "mix": mix}
    table = {**churn_table(), "sites": 4, "workload": workload, "interest": "hosted"}
    event = [{"at_s": 4, "hostile": "d", "for_s": 60}]
    return parse({**table, "duration_s": 60, "faults": {"cuts": 1}, "event": event})


@pytest.fixture
def joining() -> Scenario:
    """Nodes join behind cuts, and meet VPCs of which they have not heard and that may shut them
    out."""
    mix = {"create": 2, "delete": 1, "admit": 3}
    workload: dict[str, Any] = {"vpcs": 3, "sites_per_vpc": 2, "endpoints": 2, "addresses": 4}
    workload |= {"rate_per_s": 4, "mix": mix}
    table = {**churn_table(), "sites": 4, "workload": workload, "interest": "hosted"}
    return parse({**table, "faults": {"cuts": 4, "joins": 4}})


@pytest.fixture
def full_disks() -> Scenario:
    """Disks that take nothing for a while."""
    faults = {"cuts": 2, "full_disks": 4, "down_s": 20}
    return parse({**churn_table(), "faults": faults})


@pytest.fixture
def contended() -> Scenario:
    """VPCs, subnets and peerings that several writers edit and delete at the same time."""
    mix = {"vpc": 3, "contend": 3, "subnet": 1, "peering": 1}
    workload = {"vpcs": 1, "endpoints": 0, "rate_per_s": 4, "mix": mix}
    table = {**churn_table(), "sites": 4, "workload": workload}
    return parse({**table, "faults": {"cuts": 2, "crashes": 5, "down_s": 3}})


@pytest.fixture
def parting() -> Scenario:
    """Nodes leave, are retired, stolen and forgotten, and others join, between cuts."""
    faults = {"cuts": 3, "retires": 3, "joins": 1, "crashes": 2}
    workload = {"vpcs": 1, "rate_per_s": 6, "endpoints": 1, "addresses": 3}
    return parse({**churn_table(), "sites": 5, "workload": workload, "faults": faults})


@pytest.fixture
def hostile() -> Scenario:
    """A stolen key among four nodes, whose admissions let them write 60 records."""
    event = [{"at_s": 4, "hostile": "c", "for_s": 90}]
    table = {**churn_table(), "duration_s": 100, "sites": 4, "quota": 60, "event": event}
    return parse({**table, "workload": {"vpcs": 1, "rate_per_s": 1}, "faults": {"cuts": 1}})


@pytest.fixture
def forked() -> Scenario:
    """A forked node that owns VPCs, which others edit too."""
    event = [{"at_s": 20, "hostile": "c", "for_s": 40}]
    mix = {"vpc": 3, "contend": 3}
    workload = {"vpcs": 3, "endpoints": 0, "rate_per_s": 6, "mix": mix}
    table = {**churn_table(), "duration_s": 50, "sites": 4, "workload": workload}
    return parse({**table, "event": event, "faults": {"cuts": 1}})


@pytest.fixture
def copied() -> Scenario:
    """A copy of a node runs beside it, now and then cut off from it."""
    faults = {"cuts": 4, "clones": 1, "down_s": 20}
    workload = {"vpcs": 1, "rate_per_s": 4, "endpoints": 1}
    return parse({**churn_table(), "sites": 4, "workload": workload, "faults": faults})


@pytest.fixture
def rotated() -> Scenario:
    """Nodes replace their keys, some again after they came back from before that; copies of nodes
    run on under a key that was replaced."""
    faults = {"cuts": 3, "rotations": 4, "clones": 2, "crashes": 2, "down_s": 20}
    event = [
        {"at_s": 5, "rotate": "c"},
        {"at_s": 8, "cut": [["c"]], "for_s": 15},
        {"at_s": 10, "restore": "c", "from_s": 4},
        {"at_s": 14, "rotate": "c", "force": True},
    ]
    workload = {"vpcs": 1, "rate_per_s": 4, "endpoints": 1}
    table = {**churn_table(), "sites": 4, "workload": workload, "faults": faults}
    return parse({**table, "event": event})


@pytest.fixture
def clocks() -> Scenario:
    """One site's clock is a year ahead; others are set now and then."""
    workload = {"vpcs": 1, "endpoints": 1, "addresses": 3, "rate_per_s": 6}
    site = [{"name": "a"}, {"name": "b", "clock_skew_s": 31_536_000.0}, {"name": "c"}]
    table: dict[str, Any] = {**churn_table(), "site": site, "workload": workload}
    del table["sites"]
    return parse({**table, "faults": {"cuts": 2, "clock_steps": 3}})


@pytest.fixture
def upgraded() -> Scenario:
    """Nodes of three releases, the last of which is to come; some are upgraded on the way."""
    workload = {"vpcs": 1, "rate_per_s": 4, "endpoints": 1}
    site = [{"name": name, "release": 1} for name in "acd"]
    site.append({"name": "b", "release": 2})
    event = [{"at_s": 12, "upgrade": "b", "to": 3}, {"at_s": 14, "upgrade": "c"}]
    table: dict[str, Any] = {**churn_table(), "site": site, "workload": workload, "event": event}
    del table["sites"]
    return parse({**table, "faults": {"cuts": 2, "crashes": 2}})


def churn_table() -> dict[str, Any]:
    """As a file would have it."""
    return {
        "duration_s": 30,
        "quiet_s": 120,
        "sites": 3,
        "network": {"latency_ms": 30},
        "workload": {
            "vpcs": 1,
            "rate_per_s": 4,
            "mix": {"create": 3, "delete": 3, "recreate": 2},
        },
        "faults": {"cuts": 3, "crashes": 4, "restores": 3, "down_s": 5},
    }
