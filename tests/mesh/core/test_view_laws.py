"""Laws of the view, over arbitrary records of arbitrary writers, well-formed and hostile."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core import keys, model
from mesh.core.members import Member, MemberState
from mesh.core.ops import MESH_SHARD, Change, NodeId
from mesh.core.view import View

sys.path.insert(0, str(Path(__file__).parent))
from tests.mesh.core.core_world import member, node_id

NAMES = ("a1", "a2", "b1", "c1")
NODES = [node_id(name) for name in NAMES]
FULL = {node_id(name): member(name) for name in NAMES}
NONCES = [b"1" * 16, b"2" * 16]
VPCS = [(NODES[0], NONCES[0]), (NODES[0], NONCES[1]), (NODES[2], NONCES[0])]
VPC_IDS = [model.vpc_id(*vpc) for vpc in VPCS]
SUBNETS = [(vpc, nonce) for vpc in VPCS for nonce in NONCES]
ADDRS = [keys.addr_of(f"10.0.{end}") for end in ("1.1", "1.5", "1.6", "1.255", "2.5")]
ADDRS.append(keys.addr_of("fd00::5"))
CIDRS = ["10.0.1.0/24", "10.0.2.0/24", "10.0.0.0/22", "10.9.0.0/24", "fd00::/64"]

small = st.integers(0, 3)
revisions = st.integers(1, 3)
names = st.sampled_from(["red", "blue"])
sites = st.sets(st.sampled_from("abc"), max_size=2).map(lambda found: tuple(sorted(found)))


def claims() -> st.SearchStrategy[model.Claim]:
    macs = st.sampled_from(["02:00:00:00:00:01", "02:00:00:00:00:02"])
    hosts = st.sampled_from([None, "192.0.2.7"])
    return st.builds(model.Claim, small, small, macs, st.just("web"), hosts)


def vpc_records(creator: NodeId, nonce: bytes) -> st.SearchStrategy[model.VpcRecord]:
    gone = st.builds(
        model.VpcRecord, revisions, small, st.just(True), st.just(creator), st.just(nonce)
    )
    live = st.builds(
        model.VpcRecord,
        revisions,
        small,
        st.just(False),
        st.just(creator),
        st.just(nonce),
        name=names,
        vni=st.integers(1, 3),
        cidrs=st.sampled_from([("10.0.0.0/16",), ("10.0.1.0/24", "fd00::/48")]),
        tenant=st.sampled_from(["", "acme"]),
        sites=sites,
        since=small,
        extra=st.sampled_from([(), ((40, b"\x01"),)]),
    )
    return st.one_of(*[live] * 8, gone)


def subnet_records(creator: NodeId, nonce: bytes) -> st.SearchStrategy[model.SubnetRecord]:
    gone = st.builds(
        model.SubnetRecord, revisions, small, st.just(True), st.just(creator), st.just(nonce)
    )
    live = st.builds(
        model.SubnetRecord,
        revisions,
        small,
        st.just(False),
        st.just(creator),
        st.just(nonce),
        name=names,
        cidr=st.sampled_from(CIDRS),
        sites=sites.filter(bool),
        restrict=st.booleans(),
        since=small,
    )
    return st.one_of(*[live] * 8, gone)


def founding() -> list[Change]:
    """Every VPC, a subnet in each and claims in it, so that there is something to play with."""
    found = []
    for vni, (creator, nonce) in enumerate(VPCS, 1):
        vpc = model.vpc_id(creator, nonce)
        record = model.VpcRecord(
            1, 1, False, creator, nonce, "red", vni, ("10.0.0.0/16", "fd00::/48"), since=1
        )
        subnet = model.SubnetRecord(
            1, 1, False, creator, nonce, "all", "10.0.1.0/24", ("a", "b"), since=1
        )
        subnet_key = keys.SubnetKey(vpc, model.subnet_id(vpc, creator, nonce))
        for key, value in ((keys.VpcKey(vpc), record), (subnet_key, subnet)):
            found.append(Change(creator, MESH_SHARD, keys.pack(key), model.encode(value)))
        claim = model.encode(model.Claim(1, 1, "02:00:00:00:00:01"))
        for node, addr in zip(NODES, (1, 1, 1, 2), strict=True):
            found.append(Change(node, vpc, keys.pack(keys.EndpointKey(ADDRS[addr])), claim))
    return found


@st.composite
def facts(draw: st.DrawFn) -> tuple[NodeId, str, keys.Key, model.Record]:
    """A well-formed record of any kind, its writer (as a rule one that may), shard and key."""
    creator, nonce = draw(st.sampled_from(VPCS))
    vpc = model.vpc_id(creator, nonce)
    node, addr = draw(st.sampled_from(NODES)), draw(st.sampled_from(ADDRS))
    owners = [other for other in NODES if FULL[other].site == FULL[creator].site]
    writer = draw(st.sampled_from([*owners * 3, *NODES]))
    match draw(st.sampled_from("eeeeeeevvssxpgb")):
        case "e":
            return node, vpc, keys.EndpointKey(addr), draw(claims())
        case "v":
            return writer, MESH_SHARD, keys.VpcKey(vpc), draw(vpc_records(creator, nonce))
        case "s":
            subnet_nonce = draw(st.sampled_from(NONCES))
            key = keys.SubnetKey(vpc, model.subnet_id(vpc, creator, subnet_nonce))
            return writer, MESH_SHARD, key, draw(subnet_records(creator, subnet_nonce))
        case "x":
            eviction = draw(st.builds(model.Eviction, small, small))
            return writer, MESH_SHARD, keys.EvictionKey(vpc, node, addr), eviction
        case "p":
            half = draw(st.sampled_from(["11" * 16, "22" * 16]))
            peering = draw(st.builds(model.PeeringRecord, revisions, small, st.booleans()))
            peered = keys.PeeringKey(vpc, draw(st.sampled_from(VPC_IDS)), half)
            return writer, MESH_SHARD, peered, peering
        case "g":
            underlay = draw(st.sampled_from(["", "192.0.2.1", "192.0.2.2"]))
            registration = model.Registration(draw(small), underlay, ("/ip4/192.0.2.1",), "1")
            about = draw(st.sampled_from([node, node, writer]))
            return node, MESH_SHARD, keys.GatewayKey(about), registration
        case _:
            binding = draw(st.builds(model.Binding, small, st.integers(1, 3)))
            about = draw(st.sampled_from([node, node, writer]))
            return node, MESH_SHARD, keys.BindingKey(about, vpc), binding


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """A node puts or deletes something, now and then something that cannot be read."""
    writer, shard, key, record = draw(facts())
    packed = draw(
        st.sampled_from([model.encode(record)] * 8 + [None, None, b"\x81\x00\x09", b"\xc1"])
    )
    return Change(writer, shard, keys.pack(key), packed)


STATES: list[MemberState | None] = ["active", "active", "active", "retired", "forgotten", None]


@st.composite
def rosters(draw: st.DrawFn) -> dict[NodeId, Member]:
    found = {}
    for name in NAMES:
        state = draw(st.sampled_from(STATES))
        if state is not None:
            found[node_id(name)] = member(name, admin=draw(st.booleans()), state=state)
    return found


batches = st.lists(changes(), min_size=1, max_size=8)
steps = st.lists(st.one_of(batches, batches, batches, rosters()), max_size=12).map(
    lambda played: [founding(), *played]
)


def play(view: View, steps: Iterable[list[Change] | dict[NodeId, Member]]) -> View:
    for step in steps:
        if isinstance(step, dict):
            view.set_members(step)
        else:
            view.apply(step)
    return view


def final(all_steps: Iterable[list[Change] | dict[NodeId, Member]]) -> list[Change]:
    """The records that are held after the steps."""
    held: dict[tuple[NodeId, str, bytes], Change] = {}
    for step in all_steps:
        if isinstance(step, list):
            for change in step:
                held[change.node, change.shard, change.key] = change
    return [change for change in held.values() if change.record is not None]


@settings(max_examples=80, deadline=None)
@given(steps, rosters(), st.randoms(use_true_random=False), st.integers(1, 7))
def test_the_view_is_a_function_of_the_records_and_the_roster(
    played: list[Any], roster: dict[NodeId, Member], rng: Any, batch: int
) -> None:
    # whatever came before and in whatever order and batches, only what is held counts
    incremental = play(View(), [*played, roster])
    records = final(played)
    rng.shuffle(records)
    rebuilt = View()
    cut = rng.randrange(len(records) + 1)
    for start in range(0, cut, batch):
        rebuilt.apply(records[start : min(cut, start + batch)])
    rebuilt.set_members(roster)
    rebuilt.apply(records[cut:])
    assert incremental.canonical() == rebuilt.canonical()
    assert incremental.fingerprint() == rebuilt.fingerprint()
    assert (incremental.unknown, incremental.invalid) == (rebuilt.unknown, rebuilt.invalid)


@settings(max_examples=80, deadline=None)
@given(steps)
def test_what_a_delta_does_not_name_has_not_changed(played: list[Any]) -> None:
    view = View()
    view.set_members(FULL)
    reader = view.reader()
    vpcs: dict[str, Any] = {}
    subnets: dict[str, Any] = {}
    endpoints: dict[tuple[str, str], Any] = {}
    gateways: dict[NodeId, Any] = {}
    peerings: list[Any] = []
    conflicts: list[Any] = []
    for step in played:
        play(view, [step])
        delta = reader.take()
        assert not reader
        vpcs |= {vpc: view.vpcs.get(vpc) for vpc in delta.vpcs}
        subnets |= {subnet: view.subnet_by_id(subnet) for subnet in delta.subnets}
        endpoints |= {place: view.claims(*place) for place in delta.endpoints}
        gateways |= {node: view.gateways.get(node) for node in delta.gateways}
        peerings = view.peerings() if delta.peerings else peerings
        conflicts = view.conflicts() if delta.conflicts else conflicts
        assert {k: v for k, v in vpcs.items() if v} == dict(view.vpcs)
        assert {k: v for k, v in subnets.items() if v} == {s.id: s for s in view.subnets()}
        flat = sorted((c for claims in endpoints.values() for c in claims), key=repr)
        assert flat == sorted(view.endpoints(), key=repr)
        assert {k: v for k, v in gateways.items() if v} == dict(view.gateways)
        assert peerings == view.peerings()
        assert conflicts == view.conflicts()


@settings(max_examples=80, deadline=None)
@given(steps)
def test_a_reader_that_comes_late_starts_with_everything(played: list[Any]) -> None:
    view = play(View(), [FULL, *played])
    delta = view.reader().take()
    assert delta.vpcs >= set(view.vpcs)
    assert delta.subnets >= {subnet.id for subnet in view.subnets()}
    assert delta.endpoints >= {(endpoint.vpc, endpoint.ip) for endpoint in view.endpoints()}
    assert delta.gateways >= set(view.gateways)
    assert delta.peerings and delta.conflicts
    assert view.take_delta() == delta


@settings(max_examples=80, deadline=None)
@given(steps)
def test_claims_are_totally_ordered_and_conflicts_need_two_sites(played: list[Any]) -> None:
    view = play(View(), [*played, FULL])
    contested = {c.key for c in view.conflicts() if c.kind == "endpoint"}
    seen = set()
    for vpc in view.table.vpcs():
        for addr in view.table.addrs(vpc):
            claims = view.claims(vpc, keys.ip_of(addr))
            ranks = [(-claim.mobility, claim.hlc) for claim in claims]
            assert ranks == sorted(ranks)
            assert len({claim.node for claim in claims}) == len(claims)
            top = [claim for claim in claims if claim.mobility == claims[0].mobility]
            losers = {claim.site for claim in top} - {claim.site for claim in top[:1]}
            if losers:
                seen.add(view.names.endpoint_key(vpc, addr))
            for claim in claims:
                wins = claim in top and claim.site == claims[0].site
                expected = "active" if wins else "conflict" if claim in top else "shadowed"
                assert claim.state == expected
    assert contested == seen


@settings(max_examples=80, deadline=None)
@given(steps)
def test_one_vpc_at_most_is_active_under_a_vni_and_installed_subnets_are_disjoint(
    played: list[Any],
) -> None:
    view = play(View(), [*played, FULL])
    active = [vpc.vni for vpc in view.vpcs.values() if vpc.state == "active"]
    assert sorted(active) == sorted({vpc.vni for vpc in view.vpcs.values()})
    for vpc in view.vpcs:
        for addr in ADDRS:
            covering = [
                subnet
                for subnet in view.subnets(vpc)
                if subnet.state == "active" and _covers(subnet.cidr, addr)
            ]
            assert len(covering) <= 1
            found = view.subnet_of(vpc, keys.ip_of(addr))
            assert covering == ([] if found is None else [found])


def _covers(cidr: str, addr: bytes) -> bool:
    from ipaddress import ip_address, ip_network

    return ip_address(addr) in ip_network(cidr)


@settings(max_examples=80, deadline=None)
@given(steps, st.sampled_from(VPCS), st.sampled_from(NODES), small)
def test_deleted_wins_for_good(
    played: list[Any], vpc: tuple[NodeId, bytes], writer: NodeId, hlc: int
) -> None:
    view = play(View(), [FULL])
    owner = FULL[vpc[0]].site
    vpc_id = model.vpc_id(*vpc)
    key = keys.pack(keys.VpcKey(vpc_id))
    removal = model.encode(model.VpcRecord(1, hlc, True, *vpc))
    view.apply([Change(writer, MESH_SHARD, key, removal)])
    kept = [
        [change for change in step if (change.node, change.key) != (writer, key)]
        for step in played
        if isinstance(step, list)
    ]
    play(view, kept)
    entitled = FULL[writer].site == owner
    if entitled:
        assert vpc_id not in view.vpcs
        assert not list(view.endpoints(vpc_id)) and not view.subnets(vpc_id)
        assert vpc_id in view.catalog.removed


blobs = st.one_of(
    st.binary(max_size=40),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers(0, 12), inner),
        max_leaves=12,
    ).map(msgpack.packb),
)


@st.composite
def hostile(draw: st.DrawFn) -> Change:
    """Random keys and records; and records that are well-formed but for one field."""
    writer, shard, key, record = draw(facts())
    packed = model.encode(record)
    how = draw(st.integers(0, 3))
    if how == 0:
        shard = draw(st.sampled_from([shard, "", "x" * 32, MESH_SHARD]))
        return Change(writer, shard, draw(st.binary(max_size=60)), packed)
    if how == 1:
        packed = draw(blobs)
    else:
        fields = msgpack.unpackb(packed, strict_map_key=False)
        fields[draw(st.integers(0, 12))] = msgpack.unpackb(
            draw(blobs.filter(_unpacks)), strict_map_key=False
        )
        packed = msgpack.packb(fields)
    return Change(writer, shard, keys.pack(key), packed)


def _unpacks(blob: bytes) -> bool:
    try:
        msgpack.unpackb(blob, strict_map_key=False)
    except Exception:
        return False
    return True


@settings(max_examples=80, deadline=None)
@given(st.lists(changes(), max_size=20), st.lists(hostile(), max_size=12))
def test_hostile_records_raise_nothing_and_unreadable_ones_change_nothing(
    honest: list[Change], bad: list[Change]
) -> None:
    honest = [*founding(), *honest]
    view = play(View(), [FULL, honest])
    for change in bad:
        before = view.canonical(), view.unknown + view.invalid
        held = {(c.node, c.shard, c.key) for c in final([honest])}
        view.apply([change])
        after = view.canonical(), view.unknown + view.invalid
        if (change.node, change.shard, change.key) not in held and after[1] > before[1]:
            assert after[0] == before[0]
        honest = [*honest, change]
    view.fingerprint()
    view.apply([change._replace(record=None) for change in [*honest, *bad]])
    assert (view.unknown, view.invalid) == (0, 0)
    assert view.fingerprint() == play(View(), [FULL]).fingerprint()
