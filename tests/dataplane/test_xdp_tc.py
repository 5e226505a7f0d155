"""The programs at tc: packets with the offloads of their senders, and changes of the hook."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest
from pyroute2 import IPRoute

from dataplane.backend import DataplaneError
from dataplane.xdp import kernel, links
from tests.dataplane.conftest import SixPair, made_pair, transfer, wait_for

VPC, VNI = "v", 79
SUBNETS = {
    "10.0.1.0/24": ("a",),
    "10.0.2.0/24": ("b",),
    "fd00:1::/64": ("a",),
    "fd00:2::/64": ("b",),
}
ONE, TWO, NEAR = "10.0.1.10", "10.0.2.10", "10.0.1.11"
LINK_MTU = 1500
PAYLOAD = bytes(range(256)) * 16384
"""4 MB."""


@pytest.fixture
def pair(site_pair: Any) -> Any:
    """Pods whose interfaces are as the kernel makes them."""
    site_pair.vpc(VPC, VNI, SUBNETS)
    for gateway, name, ip in (
        (site_pair.a, "one", ONE),
        (site_pair.b, "two", TWO),
        (site_pair.a, "near", NEAR),
        (site_pair.a, "six", "fd00:1::10"),
        (site_pair.b, "far", "fd00:2::10"),
    ):
        site_pair.pod(gateway, name, VPC, ip, offloads=True)
    site_pair.open(hook="tc")
    return site_pair


def counted(gateway: Any, ifname: str) -> dict[str, int]:
    return dict(gateway.run(gateway.backend.counters)["ports"][ifname])


def dropped(gateway: Any) -> dict[str, int]:
    drops = gateway.run(gateway.backend.counters)["drops"]
    return {reason: count for reason, count in drops.items() if count}


@pytest.mark.parametrize(
    ("sender", "receiver"), [("one", "two"), ("two", "one"), ("one", "near"), ("six", "far")]
)
def test_bulk_is_carried_in_packets_of_many_segments(pair: Any, sender: str, receiver: str) -> None:
    source, sink = pair.pods[sender], pair.pods[receiver]
    assert transfer(source, sink, PAYLOAD) == PAYLOAD
    sent = counted(source.gateway, source.ifname)
    assert sent["tx_bytes"] > len(PAYLOAD)
    assert sent["tx_bytes"] > 4 * LINK_MTU * sent["tx_packets"]
    assert "too-big" not in dropped(source.gateway)


def test_segments_that_are_too_long_are_told_of(pair: Any) -> None:
    """As in a pod whose interface has the MTU of the underlay."""
    source = pair.pod(pair.a, "large", VPC, "10.0.1.12", LINK_MTU, offloads=True)
    sink = pair.pod(pair.b, "huge", VPC, "10.0.2.12", LINK_MTU, offloads=True)
    pair.sync()
    assert transfer(source, sink, PAYLOAD) == PAYLOAD
    assert dropped(pair.a)["too-big"] > 0


def test_a_hook_is_changed_without_a_lost_packet_and_leaves_nothing_behind(pair: Any) -> None:
    gateway, one = pair.a, pair.pods["one"]
    for netns, ifname in (*((p.netns, "eth0") for p in pair.pods.values()), (pair.b.netns, "wan0")):
        links.in_netns(netns, functools.partial(links.enable_gro, ifname))  # XDP redirects to it

    def disciplines() -> list[Any]:
        with IPRoute() as netlink:
            rows = [(row["index"], row.get_attr("TCA_KIND")) for row in netlink.get_qdiscs()]
        return sorted(rows)

    def kinds() -> set[int]:
        found = set()
        for _, pin in gateway.backend._directory.links():
            fd = kernel.get_pinned(str(pin))
            found.add(kernel.link_info(fd).type)
        return found

    before = gateway.run(disciplines)
    answered: list[int] = []
    stop = threading.Event()

    def keep_pinging() -> None:
        while not stop.is_set():
            answered.append(one.ping(TWO))

    thread = threading.Thread(target=keep_pinging)
    thread.start()
    try:
        for hook, kind in (("xdp", kernel.LINK_TYPE_XDP), ("tc", kernel.LINK_TYPE_TCX)):
            gateway.run(gateway.backend.close)
            gateway.open(hook=hook)
            gateway.sync()
            assert kinds() == {kind}
            assert gateway.run(lambda: gateway.backend.audit(gateway.compiler.tables())).clean
            answered.clear()
            wait_for(lambda: len(answered) > 5 or not all(answered), "pings go on")
            assert all(answered)
    finally:
        stop.set()
        thread.join()
    gateway.run(gateway.backend.detach)
    gateway.backend = None
    assert one.ping(TWO, timeout_s=0.1) == 0
    assert gateway.run(disciplines) == before


def test_tunnels_over_ipv6_are_not_for_this_hook() -> None:
    with made_pair(SixPair) as pair, pytest.raises(DataplaneError, match="hook = 'xdp'"):
        pair.a.open(hook="tc")
