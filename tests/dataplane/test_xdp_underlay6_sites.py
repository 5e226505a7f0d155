"""End to end over an underlay that has nothing but IPv6: pods of both families."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from dataplane.drops import DropEvent
from dataplane.reasons import DropReason
from tests.dataplane.conftest import RoutedSixPair, SixPair, made_pair, transfer, wait_for

RED, BLUE = "red", "blue"
SUBNETS = {
    "10.0.1.0/24": ("a",),
    "10.0.2.0/24": ("b",),
    "fd00:0:0:1::/64": ("a",),
    "fd00:0:0:2::/64": ("b",),
}
FOUR, SIX = "10.0.1.10", "fd00:0:0:1::10"
FAR_FOUR, FAR_SIX = "10.0.2.10", "fd00:0:0:2::10"


@pytest.fixture
def six_pair(xdp_machine: None) -> Iterator[SixPair]:
    with made_pair(SixPair) as pair:
        assert isinstance(pair, SixPair)
        yield pair


def tenants(pair: Any) -> Any:
    """Two VPCs with the same addresses: IPv4 pods of both at both sites, and red ones of IPv6."""
    for vpc, vni in ((RED, 100), (BLUE, 200)):
        pair.vpc(vpc, vni, SUBNETS)
        pair.pod(pair.a, f"{vpc}1", vpc, FOUR, mtu=1430)
        pair.pod(pair.b, f"{vpc}2", vpc, FAR_FOUR, mtu=1430)
    pair.pod(pair.a, "red3", RED, SIX, mtu=1430)
    pair.pod(pair.b, "red4", RED, FAR_SIX, mtu=1430)
    pair.open()
    return pair


def test_pods_of_both_families_reach_each_other(six_pair: Any) -> None:
    pods = tenants(six_pair).pods
    assert pods["red1"].ping(FAR_FOUR, count=3) == 3
    assert pods["red3"].ping(FAR_SIX, count=3) == 3
    assert pods["red4"].ping(SIX) == 1 and pods["blue1"].ping(FAR_FOUR) == 1
    payload = os.urandom(1 << 20)
    assert transfer(pods["red1"], pods["red2"], payload) == payload
    assert transfer(pods["red4"], pods["red3"], payload) == payload
    assert pods["blue1"].ping("10.0.2.99", timeout_s=0.1) == 0
    six_pair.b.until_dropped("not-local", 1)
    (event,) = (e for e in taken(six_pair.b) if e.reason is DropReason.NOT_LOCAL)
    assert (event.outer, event.src) == (six_pair.a.underlay, FOUR)
    for gateway in six_pair.gateways:
        report = gateway.run(partial(gateway.backend.audit, gateway.compiler.tables()))
        assert report.clean, report
        (row,) = gateway.run(gateway.backend.show)["gateways"]
        assert (row["resolved"], row["mtu"]) == (True, 1500)
    rows = [row["underlay"] for row in six_pair.a.run(six_pair.a.backend.show)["gateways"]]
    assert rows == [six_pair.b.underlay]


def taken(gateway: Any) -> list[DropEvent]:
    events: list[DropEvent] = gateway.run(gateway.backend.take_drops)
    return events


def test_what_an_ipv6_path_carries_is_measured_and_told_to_senders(xdp_machine: None) -> None:
    """A router in the underlay has a smaller link than either gateway knows of by itself."""
    with made_pair(RoutedSixPair) as pair:
        pods = tenants(pair).pods
        a = pair.a

        def measured() -> bool:
            assert a.backend is not None
            a.run(a.backend.refresh_adjacency)
            (row,) = a.run(a.backend.show)["gateways"]
            return bool(row["mtu"] == RoutedSixPair.MTU)

        wait_for(measured, "the gateway knows what the path carries")
        payload = os.urandom(1 << 20)
        assert transfer(pods["red1"], pods["red2"], payload) == payload
        assert transfer(pods["red3"], pods["red4"], payload) == payload
        assert 0 < a.drops("too-big") < 100, "the senders were told, and did not go on so"
