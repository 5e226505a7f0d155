"""Which gateway may send what by its tunnel: packet in, verdict, packet out."""

from __future__ import annotations

from typing import Any

import pytest
from pyroute2 import IPRoute

from dataplane.fib.facts import EndpointFact, GatewayFact, VpcFact
from dataplane.fib.rows import MOVED_GRACE_NS, EndpointKey, address_of
from dataplane.reasons import DropReason
from dataplane.xdp import kernel, layout, links
from tests.dataplane.workbench import (
    CLOSED,
    CLOSED_VNI,
    IDLE,
    MOVED,
    MOVED_MAC,
    NOWHERE,
    REDIRECT,
    ROUTER,
    VNI,
    VPC,
    Bench,
    check_drop,
    ip_fields,
    make_bench,
)


@pytest.fixture(scope="module")
def bench(module_pair: Any, packets: Any) -> Bench:
    return make_bench(module_pair, packets)


def test_an_error_may_come_from_the_address_of_a_subnet_s_gateway(bench: Bench) -> None:
    for kind in (b"\3\4", b"\x0b\0"):
        error = bench.packets.ipv4("10.0.2.1", bench.pod.ip, kind + bytes(34), protocol=1)
        frame = bench.packets.ethernet(bench.pod.mac, ROUTER, error)
        done = bench.from_wan(bench.tunnelled(frame))
        assert done.verdict == REDIRECT and done.packet[34:] == error[20:]


def test_a_site_that_a_vpc_names_may_send_for_it(bench: Bench) -> None:
    to = bench.gateway.compiler
    frame = bench.tunnelled(bench.inner(IDLE, src=NOWHERE), vni=CLOSED_VNI)
    for sites, reason in ((("c", "b"), DropReason.FOREIGN_SOURCE), (("c",), None)):
        to.set_vpc(CLOSED, VpcFact(CLOSED, CLOSED_VNI, sites=sites))
        bench.gateway.push()
        check_drop(bench, str(sites), bench.from_wan, frame, reason or DropReason.NOT_ENTITLED)
        assert bench.gateway.run(lambda: bench.gateway.backend.audit(to.tables())).clean
        shown = bench.gateway.run(bench.gateway.backend.show)["entitled"]
        assert [
            row["site"] for row in shown if row["vni"] == CLOSED_VNI and row["site"] == "b"
        ] == (["b"] if "b" in sites else [])


def test_a_third_gateway_gets_what_arrives_for_an_endpoint_that_moved_there(
    module_pair: Any, bench: Bench
) -> None:
    """It adds a gateway that never answers, and so do those below."""
    third = b"\3" * 16
    bench.gateway.compiler.set_gateway(third, GatewayFact(third, "c", "192.0.2.3", True))
    moved = EndpointFact(VPC, MOVED, "c", third, MOVED_MAC)
    bench.gateway.compiler.set_endpoint(VPC, MOVED, moved)
    bench.gateway.push()
    frame = bench.tunnelled(bench.inner(MOVED))
    check_drop(bench, "unresolved", bench.from_wan, frame, DropReason.UNRESOLVED)

    def know_neighbour() -> None:
        with IPRoute() as netlink:
            interface = links.interface("wan0")
            assert interface is not None
            netlink.neigh(
                "replace",
                dst="192.0.2.3",
                lladdr="02:00:00:00:00:03",
                ifindex=interface.ifindex,
                state=0x80,
            )

    bench.gateway.run(know_neighbour)
    assert bench.gateway.run(bench.gateway.backend.refresh_adjacency) == 0
    done = bench.from_wan(frame)
    assert done.verdict == REDIRECT
    assert done.packet[:6] == bytes.fromhex("020000000003")
    assert ip_fields(done.packet)["dst"] == "192.0.2.3"
    assert bench.packets.checksum(done.packet[14:34]) == 0
    assert done.packet[46:49] == VNI.to_bytes(3, "big")
    assert ip_fields(done.packet, 64)["ttl"] == 63


def test_the_site_where_a_source_was_goes_on_for_a_while(bench: Bench) -> None:
    """After the one before: what was the peer's site's is the third gateway's site's now."""
    to, moved = bench.gateway.compiler, "10.0.2.50"
    here, there = (EndpointFact(VPC, moved, site, None, MOVED_MAC) for site in ("b", "c"))
    frame = bench.tunnelled(bench.inner(bench.pod.ip, src=moved))
    for fact in (here, there):
        to.set_endpoint(VPC, moved, fact)
        bench.gateway.push()
        assert bench.from_wan(frame).verdict == REDIRECT
    age(bench, moved, MOVED_GRACE_NS)
    check_drop(bench, "moved long ago", bench.from_wan, frame, DropReason.FOREIGN_SOURCE)
    to.set_endpoint(VPC, moved, here)
    bench.gateway.push()
    assert bench.from_wan(frame).verdict == REDIRECT
    # Its claim, and the way to it, are another gateway's of the same site: that is no matter.
    fourth = b"\4" * 16
    to.set_gateway(fourth, GatewayFact(fourth, "b", "192.0.2.4", True))
    to.set_endpoint(VPC, moved, EndpointFact(VPC, moved, "b", fourth, MOVED_MAC))
    bench.gateway.push()
    age(bench, moved, MOVED_GRACE_NS)
    assert bench.from_wan(frame).verdict == REDIRECT


def test_a_site_where_a_source_was_not_has_no_grace(bench: Bench) -> None:
    moved = "10.0.2.52"
    for site in ("c", "d"):
        fact = EndpointFact(VPC, moved, site, None, MOVED_MAC)
        bench.gateway.compiler.set_endpoint(VPC, moved, fact)
        bench.gateway.push()
    frame = bench.tunnelled(bench.inner(bench.pod.ip, src=moved))
    check_drop(bench, "never there", bench.from_wan, frame, DropReason.FOREIGN_SOURCE)


def age(bench: Bench, ip: str, by_ns: int) -> None:
    """Have an endpoint moved so long ago."""
    value = layout.MOVED_VALUE.packer
    key = EndpointKey(VNI, address_of(ip)).pack()
    maps = bench.gateway.backend._maps
    at_ns, group, pad = value.unpack(kernel.lookup(maps._fds["moved"], key, value.size) or b"")
    kernel.update(maps._fds["moved"], key, value.pack((at_ns - by_ns) % (1 << 64), group, pad))


def test_where_an_endpoint_was_its_packets_are_sent_on_from(bench: Bench) -> None:
    """Whoever sent them, and however long ago it was: that gateway has checked them."""
    to, moved = bench.gateway.compiler, "10.0.2.51"
    frame = bench.tunnelled(bench.inner(moved, src=NOWHERE))
    to.set_endpoint(VPC, moved, EndpointFact(VPC, moved, "b", None, MOVED_MAC))
    bench.gateway.push()
    check_drop(bench, "before", bench.from_wan, frame, DropReason.FOREIGN_SOURCE)
    to.set_endpoint(VPC, moved, EndpointFact(VPC, moved, "a", bench.gateway.id, MOVED_MAC))
    bench.gateway.push()
    age(bench, moved, 24 * 3600 * 1_000_000_000)
    check_drop(bench, "here now", bench.from_wan, frame, DropReason.NOT_ATTACHED)


def test_a_gateway_of_our_own_site_sends_on_what_it_has_checked(bench: Bench) -> None:
    near = b"\5" * 16
    fact = GatewayFact(near, "a", "192.0.2.5", True)
    bench.gateway.compiler.set_gateway(near, fact)
    bench.gateway.push()
    frame = bench.inner(bench.pod.ip, src=NOWHERE)
    done = bench.from_wan(bench.tunnelled(frame, src="192.0.2.5"))
    assert done.verdict == REDIRECT and done.packet[:6] == bytes.fromhex(
        bench.pod.mac.replace(":", "")
    )
    foreign = bench.tunnelled(frame, src="192.0.2.5", vni=VNI + 1)
    check_drop(bench, "nobody's", bench.from_wan, foreign, DropReason.NOT_ENTITLED)
