"""Laws of the view, over arbitrary records of arbitrary writers, well-formed and hostile."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core import keys, model
from mesh.core.members import Member
from mesh.core.ops import MESH_SHARD, NodeId
from mesh.core.view import View
from tests.mesh.core.view_feed import Change, FedView
from tests.mesh.core.view_records import (
    ADDRS,
    FULL,
    HLC,
    NODES,
    VPC_IDS,
    VPCS,
    batches,
    changes,
    facts,
    final,
    founding,
    play,
    rosters,
    small,
    steps,
)


@settings(max_examples=80)
@given(steps, rosters(), st.randoms(use_true_random=False), st.integers(1, 7))
def test_the_view_is_a_function_of_the_records_and_the_roster(
    played: list[Any], roster: dict[NodeId, Member], rng: Any, batch: int
) -> None:
    # whatever came before and in whatever order and batches, only what is held counts
    incremental = play(FedView(), [*played, roster])
    records = final(played)
    rng.shuffle(records)
    rebuilt = FedView()
    cut = rng.randrange(len(records) + 1)
    for start in range(0, cut, batch):
        rebuilt.apply(records[start : min(cut, start + batch)])
    rebuilt.set_members(roster)
    rebuilt.apply(records[cut:])
    assert incremental.canonical() == rebuilt.canonical()
    assert incremental.fingerprint() == rebuilt.fingerprint()
    assert (incremental.unknown, incremental.invalid) == (rebuilt.unknown, rebuilt.invalid)


@settings(max_examples=80)
@given(steps)
def test_what_a_delta_does_not_name_has_not_changed(played: list[Any]) -> None:
    view = FedView()
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
        endpoints |= {place: view.claims(*place) for place in delta.places()}
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


@settings(max_examples=30)
@given(steps)
def test_who_has_read_claims_before_sees_what_one_who_has_not_sees(played: list[Any]) -> None:
    view = FedView()
    view.set_members(FULL)
    for step in played:
        play(view, [step])
        anew = View(view.held)
        for node in sorted({node for node, _ in view.held.chains}):
            anew.update(view.held.held(node))
        anew.set_members(view.members)
        assert list(view.endpoints()) == list(anew.endpoints())


@settings(max_examples=80)
@given(steps)
def test_a_reader_that_comes_late_starts_with_everything(played: list[Any]) -> None:
    view = play(FedView(), [FULL, *played])
    delta = view.reader().take()
    assert delta.vpcs >= set(view.vpcs)
    assert delta.subnets >= {subnet.id for subnet in view.subnets()}
    assert set(delta.places()) >= {(endpoint.vpc, endpoint.ip) for endpoint in view.endpoints()}
    assert delta.gateways >= set(view.gateways)
    assert delta.peerings and delta.conflicts
    own = view.take_delta()
    assert (own.vpcs, own.subnets, own.gateways) == (delta.vpcs, delta.subnets, delta.gateways)
    assert (own.endpoints, own.interests) == (delta.endpoints, delta.interests)
    assert own.peerings and own.conflicts


@settings(max_examples=80)
@given(steps)
def test_claims_are_totally_ordered_and_conflicts_need_two_sites(played: list[Any]) -> None:
    view = play(FedView(), [*played, FULL])
    contested = {c.key for c in view.conflicts() if c.kind == "endpoint"}
    seen = set()
    for vpc in view.table.owners.vpcs():
        for key in view.table.owners.keys(vpc):
            addr = key[1:]
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


@settings(max_examples=80)
@given(steps, rosters())
def test_plain_claims_are_those_that_ranking_finds_alone(
    played: list[Any], roster: dict[NodeId, Member]
) -> None:
    view = play(FedView(), [*played, roster])
    for vpc in VPC_IDS:
        wanted = [keys.ENDPOINT + addr for addr in ADDRS if len(addr) == 4]
        plain, rest, free = view.table.plain(vpc, wanted)
        found = {addr: (node, mac) for node, macs in plain.items() for addr, mac in macs.items()}
        named = [*rest, *free, *(keys.ENDPOINT + addr for addr in found)]
        assert sorted(named) == sorted(wanted)
        assert all(not view.table.owners.owners(vpc, key) for key in free)
        for addr, (node, mac) in found.items():
            (claim,) = view.claims(vpc, keys.ip_of(addr))
            assert (claim.node, claim.mac, claim.host) == (node, mac.hex(":"), None)


@settings(max_examples=80)
@given(st.lists(batches, max_size=6), rosters(), st.integers(2, 40))
def test_records_read_in_bulk_are_as_if_read_one_by_one(
    played: list[Any], roster: dict[NodeId, Member], size: int
) -> None:
    """Chains of many plain claims, overwritten and deleted in batches, hostile ones among them."""
    many = plain_chains(size)
    steps = [roster, founding(), *many, *played]
    bulk = play(FedView(), steps)
    single = FedView()
    for step in steps:
        play(single, [step] if isinstance(step, dict) else [[change] for change in step])
    assert bulk.canonical() == single.canonical()
    assert (bulk.unknown, bulk.invalid) == (single.unknown, single.invalid)
    for vpc in VPC_IDS:
        assert bulk.table.owners.keys(vpc) == single.table.owners.keys(vpc)
        for key in bulk.table.owners.keys(vpc):
            assert bulk.table.owners.owners(vpc, key) == single.table.owners.owners(vpc, key)
    gone = [change._replace(record=None) for step in steps[1:] for change in step]
    assert play(bulk, [gone]).fingerprint() == play(FedView(), [roster]).fingerprint()
    assert bulk.table.owners.vpcs() == [] and (bulk.unknown, bulk.invalid) == (0, 0)


def plain_chains(size: int) -> list[list[Change]]:
    """Batches by which nodes of two sites claim `size` addresses, some of which both do, write
    them again, and give some up; v6 and v4 of two partitions."""
    addrs = [bytes((10, 0, 1, i + 2)) for i in range(size)]
    addrs += [bytes((10, 1, 0, i)) for i in range(size // 2)]
    addrs += [bytes((0xFD, *bytes(14), i)) for i in range(size // 2)]
    vpc = VPC_IDS[0]

    def batch(node: NodeId, hlc: int, chosen: list[bytes], gone: int = 0) -> list[Change]:
        record = model.encode(model.Claim(1, HLC + hlc, "02:00:00:00:00:01"))
        return [
            Change(node, vpc, keys.ENDPOINT + addr, None if gone and i % gone == 0 else record)
            for i, addr in enumerate(chosen)
        ]

    a, b = NODES[0], NODES[2]
    return [
        batch(a, 1, addrs),
        batch(a, 2, addrs),
        batch(b, 3, addrs[: size // 2]),
        batch(a, 4, addrs[::3], gone=2),
        batch(b, 5, addrs[::2], gone=3),
        batch(b, 5, addrs[1::2]),
    ]


@settings(max_examples=80)
@given(steps)
def test_one_vpc_at_most_is_active_under_a_vni_and_installed_subnets_are_disjoint(
    played: list[Any],
) -> None:
    view = play(FedView(), [*played, FULL])
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
    return ip_address(addr) in ip_network(cidr)


@settings(max_examples=80)
@given(steps, st.sampled_from(VPCS), st.sampled_from(NODES), small)
def test_deleted_wins_for_good(
    played: list[Any], vpc: tuple[NodeId, bytes], writer: NodeId, hlc: int
) -> None:
    view = play(FedView(), [FULL])
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


def _reads(change: Change) -> bool:
    try:
        model.decode(keys.unpack(change.shard, change.key), change.record or b"")
    except (keys.UnknownKey, keys.InvalidKey, model.UnknownRecord, model.InvalidRecord):
        return False
    return True


def _unpacks(blob: bytes) -> bool:
    try:
        msgpack.unpackb(blob, strict_map_key=False)
    except Exception:
        return False
    return True


@settings(max_examples=80)
@given(st.lists(changes(), max_size=20), st.lists(hostile(), max_size=12))
def test_hostile_records_raise_nothing_and_unreadable_ones_change_nothing(
    honest: list[Change], bad: list[Change]
) -> None:
    honest = [*founding(), *honest]
    view = play(FedView(), [FULL, honest])
    for change in bad:
        before = view.canonical(), view.unknown + view.invalid
        held = {(c.node, c.shard, c.key) for c in final([honest])}
        view.apply([change])
        after = view.canonical(), view.unknown + view.invalid
        known = (change.node, change.shard, change.key) in held
        if not known and (after[1] > before[1] or not _reads(change)):
            assert after[0] == before[0]
        honest = [*honest, change]
    view.fingerprint()
    view.apply([change._replace(record=None) for change in [*honest, *bad]])
    assert (view.unknown, view.invalid) == (0, 0)
    assert view.fingerprint() == play(FedView(), [FULL]).fingerprint()
