"""Arbitrary records of arbitrary writers, as steps that a view can be taken through."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from hypothesis import strategies as st

from mesh.core import keys, model
from mesh.core.members import Member, MemberState
from mesh.core.ops import MESH_SHARD, NodeId
from tests.mesh.core.core_world import member, node_id
from tests.mesh.core.view_feed import Change, FedView

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

HLC = 1_700_000_000_000 << 16
"""As a clock gives it: the lower ones are written by nobody."""

small = st.integers(0, 3)
revisions = st.integers(1, 3)
names = st.sampled_from(["red", "blue"])
sites = st.sets(st.sampled_from("abc"), max_size=2).map(lambda found: tuple(sorted(found)))


def claims() -> st.SearchStrategy[model.Claim]:
    macs = st.sampled_from(["02:00:00:00:00:01", "02:00:00:00:00:02"])
    hosts = st.sampled_from([None, None, "192.0.2.7"])
    stamps = st.sampled_from([1, 2, HLC, HLC, HLC + 1, HLC + 2])
    return st.builds(model.Claim, small, stamps, macs, st.sampled_from(["web", ""]), hosts)


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
        claim = model.encode(model.Claim(1, HLC, "02:00:00:00:00:01"))
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
            underlay = draw(st.sampled_from(["", "192.0.2.1", "192.0.2.2", "2001:db8::1"]))
            made_of = draw(st.sampled_from(["geneve", "geneve", "vxlan", "later"]))
            said = ("/ip4/192.0.2.1",), "1", made_of
            registration = model.Registration(draw(small), underlay, *said)
            about = draw(st.sampled_from([node, node, writer]))
            return node, MESH_SHARD, keys.GatewayKey(about), registration
        case _:
            binding = draw(st.builds(model.Binding, small, st.integers(1, 3)))
            about = draw(st.sampled_from([node, node, writer]))
            return node, MESH_SHARD, keys.BindingKey(about, vpc), binding


UNREADABLE = [
    b"\x81\x00\x09",
    b"\xc1",
    b"\x83\x00\x01\x02\xcf",
    b"\x84\x00\x01\x02\x07\x03\xc0\x00\x02",
]
"""A newer version; no form at all; and two that begin as a claim does and are none."""


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """A node puts or deletes something, now and then something that cannot be read."""
    writer, shard, key, record = draw(facts())
    packed = draw(st.sampled_from([model.encode(record)] * 8 + [None, None, *UNREADABLE]))
    return Change(writer, shard, keys.pack(key), packed)


STATES: list[MemberState | None] = ["active", "active", "active", "retired", "forgotten", None]


@st.composite
def rosters(draw: st.DrawFn) -> dict[NodeId, Member]:
    found = {}
    for name in NAMES:
        state = draw(st.sampled_from(STATES))
        if state is not None:
            one = member(name, admin=draw(st.booleans()), state=state)
            found[node_id(name)] = replace(one, forked=draw(st.sampled_from([False] * 3 + [True])))
    return found


batches = st.lists(changes(), min_size=1, max_size=8)
steps = st.lists(st.one_of(batches, batches, batches, rosters()), max_size=12).map(
    lambda played: [founding(), *played]
)


def play(view: FedView, steps: Iterable[list[Change] | dict[NodeId, Member]]) -> FedView:
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
