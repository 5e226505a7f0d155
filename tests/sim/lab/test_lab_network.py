"""Namespaces, links, partitions and probes of a lab on the real kernel, without nodes."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from mesh.core.errors import NotReady
from sim.lab import faults, netns, probes
from sim.lab.probes import Flow, Pinger, PingResult, receivers, transfer
from sim.lab.topology import POD_IF, POD_MTU, WAN_IF, LabSpec, Topology, plan, plan_pod

Build = Callable[..., Topology]
Pairs = set[tuple[str, str]]

DEADLINE_S = 30.0
SIOCETHTOOL = 0x8946  # <linux/sockios.h>
ETHTOOL_GTXCSUM = 0x16  # <linux/ethtool.h>
ETHTOOL_GGRO = 0x2B


def _pairs(topology: Topology) -> Pairs:
    return {(a, b) for a in topology.sites for b in topology.sites if a != b}


def _ping_all(topology: Topology) -> dict[tuple[str, str], PingResult]:
    """One round of plain IP echo requests between the gateways of every two sites."""
    gateways = {gateway.site: gateway for gateway in topology.gateways}
    pairs = sorted(_pairs(topology))
    flows = [Flow(a + b, gateways[a].netns, gateways[b].underlay_ip) for a, b in pairs]
    with Pinger(flows) as pinger:
        results = pinger.run(rounds=1, interval_s=0, timeout_s=0.3)
    return dict(zip(pairs, results, strict=True))


def _expect_reachable(topology: Topology, expected: Pairs) -> None:
    """Exactly these pairs get answers. None of the others ever does; for these there is time: a
    new bridge port takes a moment to forward, and the kernel's address resolution asks again only
    a second after it was cut."""
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        reached = {pair for pair, result in _ping_all(topology).items() if result.received}
        assert reached <= expected
        if reached == expected:
            return
        assert time.monotonic() < deadline_s, f"{sorted(expected - reached)} get no answer"


def _links(namespace: str) -> dict[str, int]:
    """Interfaces of a namespace and their MTUs."""

    def dump() -> dict[str, int]:
        with IPRoute() as netlink:
            return {link.get("ifname"): link.get("mtu") for link in netlink.get_links()}

    return netns.in_namespace(namespace, dump)


def test_a_lab_has_the_links_of_its_plan_and_leaves_nothing(built: Build) -> None:
    topology = built(sites=2, vpcs=1)
    assert set(topology.namespaces()) <= set(netns.list_namespaces())
    assert set(_links(topology.wan_netns)) == {"lo", "br0", "w-a1", "w-b1"}
    gateway, pod = topology.gateway("a1"), topology.pod("a-v1-1")
    assert set(_links(gateway.netns)) == {"lo", WAN_IF, pod.ifname}
    assert _links(pod.netns)[POD_IF] == _links(gateway.netns)[pod.ifname] == POD_MTU["ipv4"]

    netns.remove_namespaces(topology.namespaces())
    assert not set(topology.namespaces()) & set(netns.list_namespaces())
    netns.remove_namespaces(topology.namespaces())


def test_two_labs_at_once_do_not_meet(built: Build) -> None:
    one, other = built(sites=2, vpcs=0), built(sites=2, vpcs=0)
    _expect_reachable(one, _pairs(one))
    _expect_reachable(other, _pairs(other))
    netns.remove_namespaces(one.namespaces())
    _expect_reachable(other, _pairs(other))


def test_a_partition_cuts_between_groups_and_only_there(built: Build, nft: None) -> None:
    topology = built(sites=3, vpcs=0)
    faults.apply_partition(topology, [("a",), ("b", "c")])
    _expect_reachable(topology, {("b", "c"), ("c", "b")})
    # A second one takes the place of the first.
    faults.apply_partition(topology, [("a", "b"), ("c",)])
    _expect_reachable(topology, {("a", "b"), ("b", "a")})
    faults.apply_partition(topology, [("a",), ("b",), ("c",)])
    _expect_reachable(topology, set())
    faults.apply_partition(topology, [])
    _expect_reachable(topology, _pairs(topology))
    faults.apply_partition(topology, [])


def test_a_partition_cuts_what_has_been_going_on(built: Build, nft: None) -> None:
    topology = built(sites=2, vpcs=0)
    a, b = topology.gateways
    with Pinger([Flow("ab", a.netns, b.underlay_ip)]) as pinger:

        def until(holds: Callable[[PingResult], bool]) -> None:
            deadline_s = time.monotonic() + DEADLINE_S
            while not holds(pinger.results()[0]):
                assert time.monotonic() < deadline_s
                time.sleep(0.005)

        pinger.start(interval_s=0.005, timeout_s=0.2)
        until(lambda result: result.received > 0)
        faults.apply_partition(topology, [("a",), ("b",)])
        cut = pinger.results()[0]
        until(lambda result: result.sent >= cut.sent + 20)
        (result,) = pinger.stop()
    assert result.received <= cut.sent, "none that was sent after the cut"
    assert result.sent >= cut.sent + 20


def test_a_cut_is_silent(built: Build, nft: None) -> None:
    """No link goes down, and the neighbour is not refused: it just gets no answer."""
    topology = built(sites=2, vpcs=0)
    a, b = topology.gateways
    _expect_reachable(topology, _pairs(topology))  # they know each other's MACs
    faults.apply_partition(topology, [("a",), ("b",)])

    def states() -> set[str]:
        with IPRoute() as netlink:
            return {link.get("state") for link in netlink.get_links()}

    assert netns.in_namespace(a.netns, states) == {"up"}
    with pytest.raises(TimeoutError):
        netns.in_namespace(a.netns, lambda: _connect(b.underlay_ip, timeout_s=0.3))
    faults.apply_partition(topology, [])
    with pytest.raises(ConnectionRefusedError):
        netns.in_namespace(a.netns, lambda: _connect(b.underlay_ip, DEADLINE_S))


def _connect(ip: str, timeout_s: float) -> None:
    socket.create_connection((ip, 9), timeout_s).close()


def test_a_partition_that_cannot_be_made_is_an_error(root: None, lab_name: str) -> None:
    missing = plan(LabSpec(name=lab_name, sites=2))
    with pytest.raises(NotReady):
        faults.apply_partition(missing, [("a",), ("b",)])


def test_ends_of_links_can_take_part_in_xdp(built: Build) -> None:
    """NAPI where frames are redirected to, whole checksums where frames start."""
    topology = built(sites=1, vpcs=1)
    pod = topology.pod("a-v1-1")
    assert _feature(pod.netns, POD_IF, ETHTOOL_GGRO) == 1
    assert _feature(pod.netns, POD_IF, ETHTOOL_GTXCSUM) == 0
    assert _feature(topology.wan_netns, topology.gateways[0].port, ETHTOOL_GGRO) == 1


def _feature(namespace: str, ifname: str, command: int) -> int:
    """What SIOCETHTOOL says with a struct ethtool_value."""

    def ask() -> int:
        argument = ctypes.create_string_buffer(struct.pack("=II", command, 0), 8)
        request = struct.pack("16sP16x", ifname.encode(), ctypes.addressof(argument))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, SIOCETHTOOL, request)
        return int(struct.unpack("=II", argument.raw)[1])

    return netns.in_namespace(namespace, ask)


def test_a_pod_added_later_is_like_the_others(built: Build) -> None:
    topology = built(sites=1, vpcs=1, pods=1)
    pod = plan_pod(topology, name="a-v1-9", gateway="a1", vpc="v1", ip="10.0.1.99")
    try:
        netns.add_pod(topology, pod)
        assert _links(pod.netns)[POD_IF] == POD_MTU["ipv4"]
        assert pod.ifname in _links(topology.gateway("a1").netns)
    finally:
        netns.remove_namespace(pod.netns)


def test_bulk_transfer_is_measured_and_compared(built: Build) -> None:
    topology = built(sites=2, vpcs=0)
    a, b = topology.gateways
    result = transfer(a.netns, b.netns, b.underlay_ip, 3_000_001)
    assert result.intact
    assert result.sent_bytes == result.received_bytes == 3_000_001
    assert result.gbit_per_s > 0


def test_a_transfer_into_nowhere_is_an_error(built: Build, nft: None) -> None:
    topology = built(sites=1, vpcs=0)
    (a,) = topology.gateways
    with pytest.raises(OSError):
        transfer(a.netns, a.netns, "198.18.9.9", 1000)


def test_pings_are_counted_one_by_one(built: Build) -> None:
    topology = built(sites=2, vpcs=0)
    a, b = topology.gateways
    _expect_reachable(topology, _pairs(topology))
    with Pinger([Flow("ab", a.netns, b.underlay_ip), Flow("ba", b.netns, a.underlay_ip)]) as pinger:
        results = pinger.run(rounds=50, interval_s=0.001, timeout_s=DEADLINE_S)
    for result in results:
        assert result.sent == result.received == 50
        assert result.rtt_ms is not None and 0 < result.rtt_ms <= (result.rtt_max_ms or 0)


def test_pings_of_two_programs_are_told_apart(
    built: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The requests of one are damaged and get no answer; those to the other are none of its."""
    topology = built(sites=2, vpcs=0)
    a, b = topology.gateways
    flows = [Flow("ab", a.netns, b.underlay_ip)]
    _expect_reachable(topology, _pairs(topology))
    checksum = probes._internet_checksum
    with Pinger(flows) as good, Pinger(flows) as damaged:

        def damage(data: bytes) -> int:
            return checksum(data) ^ (damaged._payload in data)

        monkeypatch.setattr(probes, "_internet_checksum", damage)
        good.start(interval_s=0.001, timeout_s=DEADLINE_S)
        (lost,) = damaged.run(rounds=50, interval_s=0.001, timeout_s=0.1)
        (answered,) = good.stop()
    assert (lost.sent, lost.received) == (50, 0)
    assert answered.lost == 0


def test_datagrams_are_seen_where_they_arrive(built: Build) -> None:
    topology = built(sites=2, vpcs=0)
    a, b = topology.gateways
    _expect_reachable(topology, _pairs(topology))
    pods, arriving = {"a": a.netns, "b": b.netns}, [("a", b.underlay_ip), ("b", b.underlay_ip)]
    assert receivers(pods, arriving, timeout_s=DEADLINE_S) == [("b",), ("b",)]
    assert receivers(pods, [("b", "198.18.9.9")], timeout_s=0.3) == [()]


def test_nsenter_keeps_the_bpf_file_system(built: Build) -> None:
    """`ip netns exec` would show another /sys, and pins made there would be lost."""
    topology = built(sites=1, vpcs=0)
    command = netns.enter_command(topology.gateways[0].netns, ["stat", "-c%d", "/sys/fs/bpf"])
    seen = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(seen.stdout) == Path("/sys/fs/bpf").stat().st_dev


def test_a_namespace_that_is_not_there_cannot_be_entered(root: None, lab_name: str) -> None:
    with pytest.raises(NotReady, match=f"namespace {lab_name}"):
        netns.in_namespace(lab_name, lambda: None)
