"""The data plane in memory: the same port, the same decisions, followed from pod to pod."""

from __future__ import annotations

from typing import Any

import pytest

from dataplane import memory
from dataplane.backend import AUDIT_NAMES_MAX, Backend, Capacity, TableFull, open_backend
from dataplane.fib.compile import Compiler
from dataplane.fib.facts import (
    AttachmentFact,
    EndpointFact,
    GatewayFact,
    SubnetFact,
    VpcFact,
)
from dataplane.fib.rows import EndpointKey, EndpointRow, FibDelta, Tables, address_of
from dataplane.memory import MemoryBackend, Verdict
from dataplane.reasons import REASONS_MAX, DropReason

MAC = "02:00:00:00:00:01"
RED, BLUE = "red", "blue"
VNIS = {RED: 100, BLUE: 200}


class Site:
    """A gateway with one pod of each tenant; `site` numbers from 1, as do its addresses."""

    def __init__(self, number: int, **options: Any) -> None:
        self.site = f"s{number}"
        self.id = bytes([number]) * 16
        self.underlay = f"192.0.2.{number}"
        self.compiler = Compiler(self.id, self.site)
        self.backend = MemoryBackend(**options)
        for vpc in (RED, BLUE):
            ip = f"10.0.{number}.10"
            self.compiler.set_attachment(vpc, AttachmentFact(vpc, ip, MAC, vpc))

    def push(self) -> None:
        self.backend.apply(self.compiler.take_delta())


@pytest.fixture
def sites() -> list[Site]:
    """Three sites that know each other; 10.0.I.0/24 is homed at site I, 10.0.200.0/24 nowhere."""
    three = [Site(number) for number in (1, 2, 3)]
    for site in three:
        to = site.compiler
        for peer in three:
            to.set_gateway(peer.id, GatewayFact(peer.id, peer.site, peer.underlay, True))
        for vpc, vni in VNIS.items():
            to.set_vpc(vpc, VpcFact(vpc, vni))
            for number, homes in ((1, ("s1",)), (2, ("s2",)), (3, ("s3",)), (200, ("s1", "s2"))):
                id = f"{vpc}{number}"
                first = f"10.0.{number}.1"
                to.set_subnet(id, SubnetFact(id, vpc, f"10.0.{number}.0/24", homes, first))
        for peer in three:
            for vpc in VNIS:
                ip = f"10.0.{peer.id[0]}.10"
                to.set_endpoint(vpc, ip, EndpointFact(vpc, ip, peer.site, peer.id, MAC))
        site.push()
    return three


def travel(sites: list[Site], start: int, vpc: str, dst: str) -> tuple[list[str], Verdict]:
    """Follow a packet from a site's pod: the sites it visits, and its end."""
    src = f"10.0.{start}.10"
    here = sites[start - 1]
    path = [here.site]
    verdict = here.backend.forward(vpc, src, dst)
    while verdict.action == "send":
        came_from = here.underlay
        here = next(site for site in sites if site.underlay == verdict.underlay)
        path.append(here.site)
        verdict = here.backend.receive(came_from, verdict.vni, src, dst)
    return path, verdict


def test_every_pod_reaches_every_pod_of_its_tenant(sites: list[Site]) -> None:
    for vpc in VNIS:
        for start in (1, 2, 3):
            for target in (1, 2, 3):
                path, verdict = travel(sites, start, vpc, f"10.0.{target}.10")
                assert path == ([f"s{start}"] + [f"s{target}"] * (start != target))
                assert (verdict.action, verdict.ifname) == ("deliver", vpc)


def test_a_moved_endpoint_is_sent_on_from_where_it_was(sites: list[Site]) -> None:
    _, b, c = sites  # the first has not heard of the move
    moved = EndpointFact(RED, "10.0.2.10", "s3", c.id, MAC)
    c.compiler.set_attachment("new", AttachmentFact(RED, "10.0.2.10", MAC, "new"))
    for site in (b, c):
        site.compiler.set_endpoint(RED, "10.0.2.10", moved)
        site.push()
    path, verdict = travel(sites, 1, RED, "10.0.2.10")
    assert (path, verdict.ifname) == (["s1", "s2", "s3"], "new")
    # Its old port is blocked, and a packet is never sent back to where it came from.
    assert b.backend.forward(RED, "10.0.2.10", "10.0.1.10").reason is DropReason.PORT_BLOCKED
    back = b.backend.receive(c.underlay, 100, "10.0.3.10", "10.0.2.10")
    assert back.reason is DropReason.LOOP


def test_a_site_sends_for_what_is_claimed_there_and_where_it_is_entitled() -> None:
    clock = [0]
    site = Site(1, now_ns=lambda: clock[0])
    to = site.compiler
    near, b, b2, c = (bytes([number]) * 16 for number in (4, 2, 5, 3))
    homes = ((near, "s1", 4), (b, "s2", 2), (b2, "s2", 5), (c, "s3", 3))
    for id, name, number in homes:
        to.set_gateway(id, GatewayFact(id, name, f"192.0.2.{number}", True))
    to.set_vpc(RED, VpcFact(RED, 100, sites=("s1", "s2")))
    to.set_vpc(BLUE, VpcFact(BLUE, 200))

    def claim(number: int, at: str, gateway: bytes | None) -> None:
        for vpc in (RED, BLUE):
            ip = f"10.0.2.{number}"
            to.set_endpoint(vpc, ip, EndpointFact(vpc, ip, at, gateway, MAC))

    to.set_endpoint(RED, "10.0.1.10", EndpointFact(RED, "10.0.1.10", "s1", site.id, MAC))
    to.set_endpoint(BLUE, "10.0.1.10", EndpointFact(BLUE, "10.0.1.10", "s1", site.id, MAC))
    claim(10, "s2", b)
    claim(11, "s2", None)
    site.push()

    def reason(outer: int, src: str, vni: int = 100, dst: str = "10.0.1.10") -> str:
        verdict = site.backend.receive(f"192.0.2.{outer}", vni, src, dst)
        return "" if verdict.reason is None else verdict.reason.text

    for source in ("10.0.2.10", "10.0.2.11"):
        for gateway in (2, 5):  # whichever of its site's gateways the pod's packets take
            assert reason(gateway, source) == reason(gateway, source, 200) == ""
        assert (reason(3, source), reason(3, source, 200)) == ("not-entitled", "foreign-source")
    assert reason(2, "10.0.1.10") == reason(2, "10.0.2.99") == "foreign-source"
    assert reason(2, "10.0.2.10", 300) == "not-entitled"
    assert reason(4, "10.0.2.10") == "", "our own site's gateways send on what they checked"
    assert reason(4, "10.0.2.10", 300) == "not-entitled"
    # What moves may come from where it was for ten seconds, and from where it is at once.
    claim(10, "s3", c)
    site.push()
    assert (reason(2, "10.0.2.10"), reason(3, "10.0.2.10", 200)) == ("", "")
    clock[0] = 10_000_000_000
    assert reason(2, "10.0.2.10") == ""
    clock[0] += 1
    assert reason(2, "10.0.2.10") == "foreign-source"
    # Where an endpoint was that is here now, its packets are sent on from, whoever sent them.
    to.set_endpoint(RED, "10.0.2.11", EndpointFact(RED, "10.0.2.11", "s1", site.id, MAC))
    site.push()
    assert reason(2, "10.0.3.10", dst="10.0.2.11") == "not-attached"
    assert reason(2, "10.0.3.10", dst="10.0.1.10") == "foreign-source"


def test_ipv6_is_forwarded_as_ipv4_is(sites: list[Site]) -> None:
    for site in sites[:2]:
        to = site.compiler
        for number in (1, 2):
            id, cidr = f"six{number}", f"fd00:0:0:{number}::/64"
            to.set_subnet(id, SubnetFact(id, RED, cidr, (f"s{number}",), f"fd00:0:0:{number}::1"))
            ip = f"fd00:0:0:{number}::10"
            to.set_endpoint(RED, ip, EndpointFact(RED, ip, f"s{number}", bytes([number]) * 16, MAC))
        own = f"fd00:0:0:{site.id[0]}::10"
        to.set_attachment("six", AttachmentFact(RED, own, MAC, "six"))
        site.push()
    a, b = (site.backend for site in sites[:2])
    one, two = "fd00:0:0:1::10", "fd00:0:0:2::10"
    sent = a.forward("six", one, two)
    assert (sent.action, sent.underlay, sent.vni) == ("send", "192.0.2.2", 100)
    arrived = b.receive("192.0.2.1", 100, one, two)
    assert (arrived.action, arrived.ifname) == ("deliver", "six")
    assert b.receive("192.0.2.1", 100, two, two).reason is DropReason.FOREIGN_SOURCE
    assert a.forward("six", one, "fd00:0:0:1::1").action == "deliver", "the gateway answers"
    for src, dst, reason in (
        ("fd00:0:0:1::9", two, DropReason.SPOOFED_IP),
        (one, "fd01::1", DropReason.NO_SUBNET),
        (one, "ff02::1", DropReason.MULTICAST),
        (one, "fd00:0:0:1::9", DropReason.UNCLAIMED),
    ):
        assert a.forward("six", src, dst).reason is reason
    for dst in ("224.0.0.251", "255.255.255.255"):
        assert a.forward(RED, "10.0.1.10", dst).reason is DropReason.MULTICAST
    assert {row["ip"] for row in a.show()["ports"]} == {"10.0.1.10", one}


def test_what_is_remembered_of_moves_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MOVED_MAX", 2)
    backend = MemoryBackend()
    for number in range(5):
        backend.apply(FibDelta(moved={EndpointKey(1, number).pack(): 7}))
    assert [key.ip for key in map(EndpointKey.unpack, backend._moved)] == [3, 4]


@pytest.mark.parametrize(
    ("src", "dst", "reason"),
    [
        ("10.0.1.99", "10.0.2.10", DropReason.SPOOFED_IP),
        ("10.0.1.10", "10.0.1.99", DropReason.UNCLAIMED),
        ("10.0.1.10", "10.0.200.9", DropReason.UNCLAIMED),
        ("10.0.1.10", "10.9.0.1", DropReason.NO_SUBNET),
    ],
)
def test_what_is_dropped_and_why(sites: list[Site], src: str, dst: str, reason: DropReason) -> None:
    backend = sites[0].backend
    verdict = backend.forward(RED, src, dst)
    assert (verdict.action, verdict.reason) == ("drop", reason)
    assert verdict.words.startswith(f"{reason.text}: ")
    drops = backend.counters()["drops"]
    assert drops[reason.text] == 1 and sum(drops.values()) == 1


def test_an_attached_port_without_a_claim_stays_and_is_blocked(sites: list[Site]) -> None:
    a = sites[0]
    a.compiler.set_endpoint(RED, "10.0.1.10", None)
    a.push()
    assert a.backend.forward(RED, "10.0.1.10", "10.0.2.10").reason is DropReason.PORT_BLOCKED
    unclaimed = a.backend.receive("192.0.2.2", 100, "10.0.2.10", "10.0.1.10")
    assert unclaimed.reason is DropReason.NOT_LOCAL
    a.compiler.set_endpoint(RED, "10.0.1.10", EndpointFact(RED, "10.0.1.10", "s1", a.id, MAC))
    a.push()
    assert a.backend.forward(RED, "10.0.1.10", "10.0.2.10").action == "send"


def test_drops_of_what_is_not_known(sites: list[Site]) -> None:
    a = sites[0]
    assert a.backend.forward("nic", "10.0.1.10", "10.0.2.10").reason is DropReason.NO_PORT
    stranger = a.backend.receive("198.51.100.1", 100, "10.0.2.10", "10.0.1.10")
    assert stranger.reason is DropReason.UNKNOWN_PEER
    unclaimed = a.backend.receive("192.0.2.2", 100, "10.0.2.10", "10.0.1.99")
    assert unclaimed.reason is DropReason.NOT_LOCAL
    a.compiler.set_attachment(RED, None)
    a.compiler.set_endpoint(BLUE, "10.0.9.9", EndpointFact(BLUE, "10.0.9.9", "nowhere", None, MAC))
    a.push()
    unattached = a.backend.forward(RED, "10.0.1.10", "10.0.2.10")
    assert unattached.reason is DropReason.NO_PORT
    detached = a.backend.receive("192.0.2.2", 100, "10.0.2.10", "10.0.1.10")
    assert detached.reason is DropReason.NOT_ATTACHED
    lost = a.backend.forward(BLUE, "10.0.1.10", "10.0.9.9")
    assert lost.reason is DropReason.NO_GROUP


def test_an_unclaimed_address_goes_home_and_the_gateway_answers(sites: list[Site]) -> None:
    path, verdict = travel(sites, 1, RED, "10.0.2.99")
    assert (path, verdict.reason) == (["s1", "s2"], DropReason.NOT_LOCAL)
    assert sites[0].backend.forward(RED, "10.0.1.10", "10.0.1.1").action == "deliver"


def test_replace_audit_and_repair(sites: list[Site]) -> None:
    a = sites[0]
    tables = a.compiler.tables()
    assert a.backend.audit(tables).clean
    key = EndpointKey(100, address_of("10.0.1.99"))
    damaged = MemoryBackend()
    damaged.replace(
        Tables(
            gateways=tables.gateways,
            groups=dict(sorted(tables.groups.items())[1:]),
            endpoints={**tables.endpoints, key.pack(): EndpointRow(0, "", bytes(6)).pack()},
            ports={name: row._replace(blocked=True) for name, row in tables.ports.items()},
            subnets=tables.subnets,
        )
    )
    report = damaged.audit(tables)
    assert report.missing == (
        f"groups {min(tables.groups)}",
        "entitled 100/0",
        "entitled 200/0",
    )
    assert report.stale == ("endpoints 100/10.0.1.99",)
    assert report.wrong == ("ports blue", "ports red")
    assert damaged.repair(tables) == report
    assert damaged.audit(tables).clean
    assert damaged.show() == a.backend.show()


def test_an_audit_names_a_bounded_number_of_rows() -> None:
    row = EndpointRow(0, "", bytes(6)).pack()
    rows = {EndpointKey(1, ip).pack(): row for ip in range(AUDIT_NAMES_MAX + 5)}
    report = MemoryBackend().audit(Tables(endpoints=rows))
    assert len(report.missing) == AUDIT_NAMES_MAX
    assert report.missing_count == AUDIT_NAMES_MAX + 5


def test_a_full_table_refuses_newcomers_only() -> None:
    site = Site(1, capacity=Capacity(endpoints=3))
    site.compiler.set_vpc(RED, VpcFact(RED, 100))
    for number in range(20, 25):
        ip = f"10.0.2.{number}"
        site.compiler.set_endpoint(RED, ip, EndpointFact(RED, ip, "s2", None, MAC))
    with pytest.raises(TableFull, match=r"endpoints is full \(3 of 3\): 2 rows"):
        site.push()
    assert site.backend.usage() == (3, 3)
    assert site.backend.audit(site.compiler.tables()).missing_count == 2
    with pytest.raises(TableFull, match="2 rows"):
        site.push()  # each call says that rows are out
    for number in (20, 21):
        site.compiler.set_endpoint(RED, f"10.0.2.{number}", None)
    site.push()
    assert site.backend.audit(site.compiler.tables()).clean


def test_explain_names_the_row_that_decides(sites: list[Site]) -> None:
    backend = sites[0].backend
    assert backend.explain(100, "10.0.1.10")["ifname"] == RED
    remote = backend.explain(100, "10.0.2.10")
    assert remote["kind"] == "endpoint" and len(remote["gateways"]) == 1
    assert backend.explain(100, "10.0.2.99")["cidr"] == "10.0.2.0/24"
    assert backend.explain(300, "10.0.2.99") == {"kind": "none", "vni": 300, "ip": "10.0.2.99"}
    backend.detach()
    assert backend.explain(100, "10.0.1.10")["kind"] == "none"
    assert backend.usages() == {"endpoints": (0, backend.usage().max)}
    assert backend.refresh_adjacency() == 0


def test_memory_can_be_chosen() -> None:
    backend: Backend
    backend, reason = open_backend("memory", instance="x", underlay="192.0.2.1")
    assert (backend.mode, reason) == ("memory", "memory: chosen")
    backend.close()


def test_the_longest_prefix_decides() -> None:
    site = Site(1)
    site.compiler.set_vpc(RED, VpcFact(RED, 100))
    for cidr in (
        "10.0.0.0/16",
        "10.0.7.0/24",
        "10.0.7.128/25",
        "fd00::/48",
        "fd00:0:0:1::/80",
    ):
        site.compiler.set_subnet(cidr, SubnetFact(cidr, RED, cidr, ("s2",), "10.0.0.1"))
    site.push()
    for ip, cidr in (
        ("10.0.7.128", "10.0.7.128/25"),
        ("10.0.7.127", "10.0.7.0/24"),
        ("10.0.6.0", "10.0.0.0/16"),
        ("fd00:0:0:1::5", "fd00:0:0:1::/80"),
        ("fd00:0:0:2::5", "fd00::/48"),
    ):
        assert site.backend.explain(100, ip)["cidr"] == cidr


def test_reasons_fit_the_kernel_s_counters() -> None:
    assert sorted(DropReason) == list(range(len(DropReason)))
    assert len(DropReason) <= REASONS_MAX
    assert DropReason.SPOOFED_IP.text == "spoofed-ip"
