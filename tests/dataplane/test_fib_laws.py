"""The compiler's laws: deltas add up to the whole, in any order; no two tenants share a key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.fib import endpoints as fib_endpoints
from dataplane.fib.compile import Compiler, compile_all
from dataplane.fib.facts import (
    AttachmentFact,
    EndpointFact,
    Facts,
    GatewayFact,
    SubnetFact,
    VpcFact,
)
from dataplane.fib.ids import IdSpace, assign
from dataplane.fib.rows import (
    ANY_SITE,
    VNI_MAX,
    EndpointKey,
    EndpointRow,
    FibDelta,
    Tables,
    addr_of,
    address_text,
    apply_delta,
    group_of,
    mac_bytes,
)

SELF = b"\0" * 16
SITES = ("here", "far", "further")
NODES = (SELF, b"\1" * 16, b"\2" * 16, b"\3" * 16, b"\4" * 16)
VPCS = (f"{2:032x}", f"{7:032x}")  # they ask for one private domain, where those are few
IPS = ("10.0.0.2", "10.0.1.2", "fd00::2")
CIDRS = ("10.0.0.0/24", "10.0.1.0/24", "fd00::/64")
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
IFNAMES = ("p0", "p1")
ID_MAX_TIGHT = 9  # eight numbers for up to eight group names: collisions all the time

gateways = st.builds(
    GatewayFact,
    st.sampled_from(NODES),
    st.sampled_from(SITES),
    st.sampled_from(("192.0.2.1", "192.0.2.2")),
    st.booleans(),
)
vpcs = st.builds(
    VpcFact,
    st.sampled_from(VPCS),
    st.just(7) | st.just(8),
    st.booleans(),
    st.sampled_from(((), ("far",), ("far", "further"))),
)
subnets = st.builds(
    SubnetFact,
    st.sampled_from(("s1", "s2", "s3")),
    st.sampled_from(VPCS),
    st.sampled_from(CIDRS),
    st.sampled_from((("here",), ("far",), ("far", "here"))),
    st.just("10.0.0.1"),
)
endpoints = st.builds(
    EndpointFact,
    st.sampled_from(VPCS),
    st.sampled_from(IPS),
    st.sampled_from(SITES),
    st.sampled_from((None, *NODES)),
    st.sampled_from(MACS),
)
attachments = st.builds(
    AttachmentFact,
    st.sampled_from(VPCS),
    st.sampled_from(IPS),
    st.sampled_from(MACS),
    st.sampled_from(IFNAMES),
)
# A step sets a fact, or takes out whatever is set under its key.
steps = st.lists(
    st.tuples(
        st.one_of(gateways, vpcs, subnets, endpoints, attachments),
        st.sampled_from((True, True, True, False)),
        st.integers(0, 3),
    ),
    min_size=15,
    max_size=40,
)


class World:
    """The facts as last set, kept naively, beside the compiler that was told of them."""

    def __init__(self, id_max: int) -> None:
        self.id_max = id_max
        self.compiler = Compiler(SELF, "here", id_max=id_max)
        self.facts: dict[tuple[str, ...], object] = {}

    def step(self, fact: object, present: bool) -> None:
        key, tell = self._route(fact)
        if present:
            self.facts[key] = fact
        else:
            self.facts.pop(key, None)
        tell(fact if present else None)

    def _route(self, fact: object) -> tuple[tuple[str, ...], Callable[..., None]]:
        to = self.compiler
        match fact:
            case GatewayFact():
                return ("gateway", fact.id.hex()), lambda new: to.set_gateway(fact.id, new)
            case VpcFact():
                return ("vpc", fact.id), lambda new: to.set_vpc(fact.id, new)
            case SubnetFact():
                return ("subnet", fact.id), lambda new: to.set_subnet(fact.id, new)
            case EndpointFact():
                return ("endpoint", fact.vpc, fact.ip), lambda new: to.set_endpoint(
                    fact.vpc, fact.ip, new
                )
            case AttachmentFact():
                return ("port", fact.ifname), lambda new: to.set_attachment(fact.ifname, new)
        raise AssertionError(fact)

    def tell_many(self, vpc: str, site: str, gateway: bytes | None, macs: dict[str, str]) -> None:
        for ip, mac in macs.items():
            self.facts["endpoint", vpc, ip] = EndpointFact(vpc, ip, site, gateway, mac)
        packed = {addr_of(ip): mac_bytes(mac) for ip, mac in macs.items()}
        self.compiler.set_endpoints(vpc, site, gateway, packed)

    def drop_many(self, vpc: str, ips: Sequence[str]) -> None:
        for ip in ips:
            self.facts.pop(("endpoint", vpc, ip), None)
        self.compiler.drop_endpoints(vpc, [addr_of(ip) for ip in ips])

    def whole(self) -> Tables:
        kinds = {
            kind: tuple(fact for fact in self.facts.values() if isinstance(fact, kind))
            for kind in (GatewayFact, VpcFact, SubnetFact, EndpointFact, AttachmentFact)
        }
        return compile_all(Facts(SELF, "here", *kinds.values()), id_max=self.id_max)  # type: ignore[arg-type]


def copy(tables: Tables) -> Tables:
    return apply_delta(tables, FibDelta())


@settings(max_examples=250)
@given(steps, st.sampled_from((ID_MAX_TIGHT, 1 << 32)))
def test_deltas_add_up_to_the_whole(script: list[tuple[object, bool, int]], id_max: int) -> None:
    world = World(id_max)
    seen = Tables()
    for fact, present, pause in script:
        world.step(fact, present)
        if pause == 0:
            seen = apply_delta(seen, world.compiler.take_delta())
            assert seen == world.whole()
    seen = apply_delta(seen, world.compiler.take_delta())
    assert seen == world.whole() == copy(world.compiler.tables())
    assert not world.compiler.take_delta()


many = st.tuples(
    st.sampled_from(VPCS),
    st.sampled_from(SITES),
    st.sampled_from((None, *NODES)),
    st.dictionaries(st.sampled_from((*IPS, "10.9.0.2")), st.sampled_from(MACS)),
)


@settings(max_examples=250)
@given(
    st.lists(st.one_of(steps.map(lambda script: script[:3]), many), max_size=25),
    st.sampled_from((ID_MAX_TIGHT, 1 << 32)),
    st.integers(0, 25),
)
def test_endpoints_told_many_at_once_are_as_if_told_one_by_one(
    script: list[Any], id_max: int, paused_at: int
) -> None:
    world = World(id_max)
    seen = Tables()
    kept = world.compiler.snapshot(), Tables()
    for turn, step in enumerate(script):
        if isinstance(step, list):
            for fact, present, _ in step:
                world.step(fact, present)
        else:
            world.tell_many(*step)
            if turn % 5 == 0:
                world.drop_many(step[0], IPS)
        if turn % 3 == 0:
            seen = apply_delta(seen, world.compiler.take_delta())
            assert seen == world.whole()
        if turn == paused_at:
            kept = world.compiler.snapshot(), copy(world.compiler.tables())
    rows = world.compiler.tables().endpoints
    assert world.whole().endpoints == rows == dict(rows.items())
    assert len(rows) == len(dict(rows.items())) == len(list(rows))
    assert all(rows[key] == row for key, row in rows.items())
    assert kept[0] == kept[1], "a snapshot stays as it was"


def test_a_snapshot_stays_as_it_was() -> None:
    compiler = populated(10)
    snapshot = compiler.snapshot()
    before = copy(compiler.tables())
    compiler.set_endpoint(VPCS[0], address_text(0xFFFF0A00000A), None)
    ip = address_text(0xFFFF0A00000B)
    compiler.set_endpoint(VPCS[0], ip, EndpointFact(VPCS[0], ip, "far", None, MACS[1]))
    assert snapshot == before != compiler.tables()
    assert len(snapshot.endpoints) == 10 == len(compiler.tables().endpoints) + 1


@given(steps)
def test_a_delta_is_minimal_and_ordered(script: list[tuple[object, bool, int]]) -> None:
    world = World(1 << 32)
    before = Tables()
    for fact, present, _ in script:
        world.step(fact, present)
        delta = world.compiler.take_delta()
        for name in Tables.__match_args__:
            change, old = getattr(delta, name), getattr(before, name)
            assert all(old.get(key) != row for key, row in change.put.items())
            assert all(key in old for key in change.remove)
            assert not change.put.keys() & set(change.remove)
            assert list(change.put) == sorted(change.put)
            assert list(change.remove) == sorted(change.remove)
        before = apply_delta(before, delta)


def test_what_came_back_before_it_was_taken_is_in_no_delta() -> None:
    """Told many at once, as told one by one."""
    there, other = "02:00:00:00:00:01", "02:00:00:00:00:02"
    world = World(1 << 32)
    gateway = b"g" * 16
    world.step(GatewayFact(gateway, "away", "192.0.2.1", True), True)
    world.step(VpcFact("11" * 16, 7, True), True)
    world.tell_many("11" * 16, "away", gateway, {"10.0.0.5": there, "10.0.0.6": there})
    assert len(world.compiler.take_delta().endpoints.put) == 2
    world.tell_many("11" * 16, "away", gateway, {"10.0.0.5": other})
    world.tell_many("11" * 16, "away", gateway, {"10.0.0.5": there})
    world.drop_many("11" * 16, ["10.0.0.6"])
    world.tell_many("11" * 16, "away", gateway, {"10.0.0.6": there})
    delta = world.compiler.take_delta().endpoints
    assert (dict(delta.put), delta.remove) == ({}, ())


@given(steps)
def test_a_delta_says_where_what_moved_was(script: list[tuple[object, bool, int]]) -> None:
    world = World(1 << 32)
    before = Tables()
    for fact, present, pause in script:
        world.step(fact, present)
        if pause:
            continue
        delta = world.compiler.take_delta()
        after = apply_delta(before, delta)
        places = {key: group_of(row) for key, row in before.endpoints.items()}
        assert delta.moved == {
            key: place
            for key, place in places.items()
            if place and key in after.endpoints and group_of(after.endpoints[key]) != place
        }
        before = after


def test_of_many_that_move_at_once_a_bounded_number_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fib_endpoints, "MOVED_MAX", 3)
    compiler = populated(10)
    macs = {(0x0A00000A + n).to_bytes(4, "big"): mac_bytes(MACS[0]) for n in range(10)}
    compiler.set_endpoints(VPCS[0], "further", None, macs)
    delta = compiler.take_delta()
    assert (len(delta.endpoints.put), len(delta.moved)) == (10, 3)


@settings(deadline=None)
@given(steps)
def test_tenants_never_share_a_row(script: list[tuple[object, bool, int]]) -> None:
    world = World(ID_MAX_TIGHT)
    for fact, present, _ in script:
        world.step(fact, present)
        domains = [domain for vpc in VPCS if (domain := world.compiler.domain(vpc)) is not None]
        assert len(set(domains)) == len(domains)


@given(steps)
def test_without_its_vni_a_vpc_has_nothing_between_sites(
    script: list[tuple[object, bool, int]],
) -> None:
    world = World(1 << 32)
    for fact, present, _ in script:
        world.step(fact, present)
    tables = world.compiler.tables()
    for key, endpoint in unpacked(tables).items():
        assert key.vni <= VNI_MAX or endpoint.ifname
    for subnet_key, subnet in tables.subnets.items():
        assert subnet_key.vni <= VNI_MAX or subnet.group == 0


@given(st.permutations([bytes([n]) for n in range(12)]), st.integers(0, 12))
def test_numbers_follow_from_the_set_of_names(names: list[bytes], released: int) -> None:
    space = IdSpace(5, 20)
    for name in names:
        space.acquire(name)
    for name in names[:released]:
        space.release(name)
    left = names[released:]
    assert {name: space.number(name) for name in left} == assign(left, 5, 20)


def test_more_names_than_numbers_is_said() -> None:
    with pytest.raises(ValueError, match="3 names do not fit in 2 numbers"):
        assign([b"a", b"b", b"c"], 1, 3)


# ---- cost ---------------------------------------------------------------------------------------


def populated(endpoint_count: int) -> Compiler:
    compiler = Compiler(SELF, "here")
    compiler.set_vpc(VPCS[0], VpcFact(VPCS[0], 7))
    compiler.set_gateway(NODES[1], GatewayFact(NODES[1], "far", "192.0.2.1", True))
    compiler.set_gateway(NODES[2], GatewayFact(NODES[2], "far", "192.0.2.2", True))
    for number in range(endpoint_count):
        ip = address_text(0xFFFF0A000000 + 10 + number)
        compiler.set_endpoint(VPCS[0], ip, EndpointFact(VPCS[0], ip, "far", None, MACS[0]))
    compiler.take_delta()
    return compiler


def changed(delta: FibDelta) -> set[str]:
    """The names of the tables that something changed in."""
    return {name for name in Tables.__match_args__ if getattr(delta, name).changes}


def test_a_gateway_that_fails_rewrites_its_groups_and_no_endpoint() -> None:
    compiler = populated(100)
    compiler.set_gateway(NODES[1], GatewayFact(NODES[1], "far", "192.0.2.1", False))
    delta = compiler.take_delta()
    assert [row.name for row in delta.groups.put.values()] == ["site/far"]
    assert changed(delta) == {"groups"}


def test_a_gateway_that_moves_house_rewrites_its_row_only() -> None:
    compiler = populated(100)
    compiler.set_gateway(NODES[1], GatewayFact(NODES[1], "far", "192.0.2.9", True))
    delta = compiler.take_delta()
    assert [row.underlay for row in delta.gateways.put.values()] == [0xFFFFC0000209]
    assert changed(delta) == {"gateways"}


def test_the_last_gateway_of_a_site_going_leaves_its_endpoint_rows() -> None:
    compiler = populated(100)
    compiler.set_gateway(NODES[1], None)
    compiler.set_gateway(NODES[2], None)
    delta = compiler.take_delta()
    assert len(delta.groups.remove) == 3 and len(delta.gateways.remove) == 2
    assert "endpoints" not in changed(delta)


# ---- cases --------------------------------------------------------------------------------------


def tables_of(*facts: object) -> Tables:
    world = World(1 << 32)
    for fact in facts:
        world.step(fact, True)
    assert world.whole() == copy(world.compiler.tables())
    return world.compiler.tables()


FAR_1 = GatewayFact(NODES[1], "far", "192.0.2.1", True)
FAR_2 = GatewayFact(NODES[2], "far", "192.0.2.2", True)
NEAR = GatewayFact(NODES[3], "here", "192.0.2.3", True)
ME = GatewayFact(SELF, "here", "192.0.2.4", True)
VPC = VpcFact(VPCS[0], 7)


def group_names(tables: Tables) -> dict[str, int]:
    return {row.name: len(row.gateways) for row in tables.groups.values()}


def test_a_vpc_s_sites_are_entitled_while_it_is_forwarded() -> None:
    def rows(*facts: object) -> list[tuple[int, str]]:
        tables = tables_of(FAR_1, ME, *facts)
        numbers = {row.site_group: row.site for row in tables.gateways.values()} | {ANY_SITE: ""}
        assert all(numbers.get(k.site_group, r.site) == r.site for k, r in tables.entitled.items())
        return [(key.vni, row.site) for key, row in tables.entitled.items()]

    assert rows(VpcFact(VPCS[0], 7)) == [(7, "")]
    assert sorted(rows(VpcFact(VPCS[0], 7, sites=("far", "here")))) == [(7, "far"), (7, "here")]
    assert rows(VpcFact(VPCS[0], 7, sites=("elsewhere",))) == [(7, "elsewhere")]
    assert rows(VpcFact(VPCS[0], 7, forwarded=False)) == []
    assert rows(VpcFact(VPCS[0], 7), VpcFact(VPCS[1], 7, sites=("far",))) == [(7, "")]


def test_groups_are_sites_and_gateways_and_none_is_ones_own() -> None:
    far_1, far_2 = NODES[1].hex(), NODES[2].hex()
    assert group_names(tables_of(FAR_1, FAR_2, NEAR, ME)) == {
        "site/far": 2,
        f"gateway/{far_1}": 1,
        f"gateway/{far_2}": 1,
        f"gateway/{NODES[3].hex()}": 1,
    }


@pytest.mark.parametrize("ups", list(product((True, False), repeat=2)))
def test_a_cut_off_site_keeps_its_next_hops(ups: tuple[bool, bool]) -> None:
    tables = tables_of(
        GatewayFact(NODES[1], "far", "192.0.2.1", ups[0]),
        GatewayFact(NODES[2], "far", "192.0.2.2", ups[1]),
    )
    assert group_names(tables)["site/far"] == (sum(ups) or 2)


def unpacked(tables: Tables) -> dict[EndpointKey, EndpointRow]:
    return {EndpointKey.unpack(k): EndpointRow.unpack(row) for k, row in tables.endpoints.items()}


def endpoint_target(*facts: object) -> str:
    tables = tables_of(VPC, *facts)
    (row,) = unpacked(tables).values()
    if row.ifname:
        return row.ifname
    return tables.groups[row.group].name if row.group in tables.groups else f"#{row.group}"


def test_an_endpoint_is_reached_by_its_gateway_or_by_its_site() -> None:
    def claim(gateway: bytes | None, site: str) -> EndpointFact:
        return EndpointFact(VPCS[0], IPS[0], site, gateway, MACS[0])

    port = AttachmentFact(VPCS[0], IPS[0], MACS[0], "p0")
    gateways_all = (FAR_1, FAR_2, NEAR, ME)
    assert endpoint_target(*gateways_all, claim(None, "far")) == "site/far"
    assert endpoint_target(*gateways_all, claim(NODES[2], "far")) == f"gateway/{NODES[2].hex()}"
    assert endpoint_target(*gateways_all, claim(NODES[3], "here")) == f"gateway/{NODES[3].hex()}"
    assert endpoint_target(*gateways_all, claim(SELF, "here")) == "#0"  # ours, nothing attached
    assert endpoint_target(*gateways_all, claim(None, "here")) == "#0"
    assert endpoint_target(*gateways_all, claim(SELF, "here"), port) == "p0"
    assert endpoint_target(*gateways_all, claim(NODES[1], "far"), port) == (
        f"gateway/{NODES[1].hex()}"
    )
    assert tables_of(VPC, port).endpoints == {}  # attached, and nobody claims it


def test_a_port_is_blocked_unless_its_address_is_claimed_here() -> None:
    port = AttachmentFact(VPCS[0], IPS[0], MACS[0], "p0")
    twin = AttachmentFact(VPCS[0], IPS[0], MACS[1], "p1")
    lost = EndpointFact(VPCS[0], IPS[0], "far", NODES[1], MACS[1])
    own = EndpointFact(VPCS[0], IPS[0], "here", SELF, MACS[0])

    def blocked(*facts: object) -> dict[str, bool]:
        return {name: row.blocked for name, row in tables_of(VPC, *facts).ports.items()}

    assert blocked(port) == {"p0": True}
    assert blocked(port, twin) == {"p0": True, "p1": True}
    assert blocked(port, own) == {"p0": False}
    assert blocked(port, lost) == {"p0": True}
    assert blocked(port, twin, own) == {"p0": False, "p1": True}


@pytest.mark.parametrize(
    ("sites", "leads_to"), [(("far",), "site/far"), (("here",), "-"), (("far", "here"), "-")]
)
def test_an_unclaimed_address_goes_home_and_nowhere_else(
    sites: tuple[str, ...], leads_to: str
) -> None:
    tables = tables_of(VPC, FAR_1, SubnetFact("s1", VPCS[0], CIDRS[0], sites, "10.0.0.1"))
    (row,) = tables.subnets.values()
    assert (tables.groups[row.group].name if row.group else "-") == leads_to


def test_of_two_vpcs_with_one_vni_only_the_forwarded_has_rows_under_it() -> None:
    facts = (
        VpcFact(VPCS[0], 7, forwarded=False),
        VpcFact(VPCS[1], 7),
        EndpointFact(VPCS[0], IPS[0], "far", None, MACS[0]),
        EndpointFact(VPCS[1], IPS[0], "far", None, MACS[1]),
        EndpointFact(VPCS[0], IPS[1], "here", SELF, MACS[0]),
        AttachmentFact(VPCS[0], IPS[1], MACS[0], "p0"),
    )
    tables = tables_of(FAR_1, *facts)
    rows = unpacked(tables)
    under_vni = [row for key, row in rows.items() if key.vni == 7]
    assert [row.mac for row in under_vni] == [b"\2\0\0\0\0\2"]
    assert [row.ifname for key, row in rows.items() if key.vni != 7] == ["p0"]


BAD_FACTS = [
    GatewayFact(NODES[1], "far", "::ffff:192.0.2.1", True),
    VpcFact(VPCS[0], 0),
    VpcFact(VPCS[0], VNI_MAX + 1),
    SubnetFact("s1", VPCS[0], "10.0.0.1/24", ("far",), "10.0.0.1"),
    SubnetFact("s1", VPCS[0], CIDRS[0], ("far",), "nowhere"),
    EndpointFact(VPCS[0], "10.0.0.256", "far", None, MACS[0]),
    EndpointFact(VPCS[0], IPS[0], "far", None, "02:00"),
    AttachmentFact(VPCS[0], IPS[0], "mac", "p0"),
]


@pytest.mark.parametrize("bad", BAD_FACTS, ids=lambda fact: type(fact).__name__)
def test_a_fact_that_cannot_be_installed_changes_nothing(bad: object) -> None:
    good = (VPC, FAR_1, EndpointFact(VPCS[0], IPS[0], "far", None, MACS[0]))
    world = World(1 << 32)
    for fact in good:
        world.step(fact, True)
    before = copy(world.compiler.tables())
    with pytest.raises(ValueError):
        world._route(bad)[1](bad)
    assert copy(world.compiler.tables()) == before == world.whole()


def test_a_fact_under_a_foreign_key_is_refused() -> None:
    compiler = Compiler(SELF, "here")
    with pytest.raises(ValueError, match="set as"):
        compiler.set_vpc(VPCS[1], VPC)
    with pytest.raises(ValueError, match="set as"):
        compiler.set_gateway(SELF, FAR_1)
