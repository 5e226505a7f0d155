"""What a newer version writes: kept, passed on, shown as unknown, and not lost by this version."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.lattice import Lattice
from mesh.core import keys, model
from mesh.core.errors import Refused
from mesh.core.keytext import describe_record, key_text
from mesh.core.ops import MESH_SHARD, Put
from mesh.core.view import View
from tests.mesh.core.core_world import World, node_id
from tests.mesh.core.test_replica import Wire, put

VPC = "ab" * 16
NEWER = {99: {"colour": [1, None]}, 100: b"\x00"}
"""Fields that this version does not know."""

UNKNOWN = [
    (MESH_SHARD, b"Q" + bytes(5), b"whatever"),
    (MESH_SHARD, b"\xff", b""),
    (MESH_SHARD, b"v" + bytes(16), msgpack.packb({0: 2, 1: "newer"})),
    (VPC, b"Q" + bytes(5), b"\xc1"),
    (VPC, b"e" + bytes(4), msgpack.packb({0: 2, 7: 7})),
]
"""Kinds, and versions of kinds, that this version does not know: (shard, key, record)."""


def newer(record: model.Record) -> bytes:
    """The record as a newer version would have written it."""
    return bytes(
        msgpack.packb({**msgpack.unpackb(model.encode(record), strict_map_key=False), **NEWER})
    )


def extras(packed: bytes) -> dict[Any, Any]:
    fields = msgpack.unpackb(packed, strict_map_key=False)
    return {number: fields[number] for number in NEWER if number in fields}


def test_unknown_records_reach_everybody_stay_and_are_shown_as_such() -> None:
    mesh = Wire(3)
    mesh.link(0, 1)
    mesh.link(1, 2)
    mesh.run()
    for shard, key, record in UNKNOWN:
        put(mesh.replicas[0], key, record, shard)
    mesh.run()
    for shard in (MESH_SHARD, VPC):
        assert len(mesh.digests(shard)) == 1
    kept = Lattice()
    assert not mesh.replicas[2].lattice.prove()
    kept.join(mesh.replicas[2].lattice)
    mesh.replicas.append(mesh.make(2, kept))  # node 2, started again
    for replica in mesh.replicas:
        view = View(replica.holdings)
        view.set_members(replica.roster.members())
        view.update(replica.holdings.held(mesh.nodes[0]))
        assert (view.unknown, view.invalid) == (len(UNKNOWN), 0)
        assert (view.unknown_in(MESH_SHARD), view.unknown_in(VPC)) == (3, 2)
        for shard, key, record in UNKNOWN:
            assert view.record(mesh.nodes[0], shard, key) == record
            shown = describe_record(shard, key, record)
            assert shown == {
                "kind": "unknown", "size_bytes": len(record), "record": record.hex(),
            }  # fmt: skip
        assert key_text(view, MESH_SHARD, UNKNOWN[0][1]) == f"unknown/{UNKNOWN[0][1].hex()}"
    # Its writer may take them back, as everything.
    put(mesh.replicas[0], UNKNOWN[0][1], model.encode(model.Binding(1, 1)))
    mesh.run()
    assert len(mesh.digests()) == 2, "the one that was started apart"


def world() -> tuple[World, str]:
    """a1 with a VPC and subnets, a registration, an endpoint and its VNI bound."""
    made = World("a1", "b1")
    vpc = made.red()
    made.everywhere("a1", "register_gateway", "192.0.2.1", ["/ip4/192.0.2.1/tcp/1"], "2.0")
    made.everywhere("a1", "add_endpoint", "red", "10.0.200.5")
    made.tend("a1")
    made.sync()
    return made, vpc


def upgraded(made: World, *wanted: type) -> dict[type, bytes]:
    """Have what a1 holds of these kinds written by a newer version; the keys."""
    found: dict[type, bytes] = {}
    for shard, key, record in own(made, "a1"):
        parsed = keys.unpack(shard, key)
        if type(parsed) in wanted:
            found[type(parsed)] = key
            made.carry_out("a1", [Put(shard, key, newer(model.decode(parsed, record)))])
    assert len(found) == len(wanted)
    made.sync()
    return found


def own(made: World, name: str) -> list[tuple[str, bytes, bytes]]:
    held = made.views[name].held.chains
    return [(shard, key, record) for (node, shard), chain in held.items()
            for key, record in chain.items() if node == node_id(name)]  # fmt: skip


def held_by(made: World, name: str, wanted: bytes) -> bytes:
    (record,) = [record for _, key, record in own(made, name) if key == wanted]
    return record


def test_newer_fields_change_nothing_that_is_seen() -> None:
    made, _ = world()
    before = made.view().canonical()
    upgraded(made, keys.VpcKey, keys.GatewayKey, keys.BindingKey, keys.EndpointKey)
    assert made.view().canonical() == before
    assert made.view().unknown == 0
    assert made.tend("a1") == [], "nothing is written anew because of them"
    again = made.do("a1", "register_gateway", "192.0.2.1", ["/ip4/192.0.2.1/tcp/1"], "2.0")
    assert again == []
    assert made.do("a1", "add_endpoint", "red", "10.0.200.5") == []


def test_what_a_node_writes_anew_keeps_the_newer_fields_of_its_own_record() -> None:
    made, _ = world()
    at = upgraded(made, keys.VpcKey, keys.GatewayKey, keys.BindingKey, keys.EndpointKey)
    for kind in at:
        assert extras(held_by(made, "a1", at[kind])) == NEWER
    made.everywhere("a1", "register_gateway", "192.0.2.9", [], "1.0")
    made.everywhere("b1", "move_endpoint", "red", "10.0.200.5")
    made.everywhere("a1", "move_endpoint", "red", "10.0.200.5")
    made.everywhere("a1", "set_vpc", "red", vni=8)
    made.tend("a1")
    made.sync()
    for kind in at:
        assert extras(held_by(made, "a1", at[kind])) == NEWER, kind
    assert made.view().gateways[node_id("a1")].underlay == "192.0.2.9"
    assert made.view().vpc("red").vni == 8
    # Another writer's claim has none: they were not its to say. A register's go with its value.
    assert extras(held_by(made, "b1", at[keys.EndpointKey])) == {}
    made.change_member("b1", admin=True)
    made.everywhere("b1", "set_vpc", "red", tenant="t")
    assert extras(held_by(made, "b1", at[keys.VpcKey])) == NEWER


def test_an_eviction_that_is_raised_keeps_its_newer_fields() -> None:
    made, _ = world()
    made.everywhere("b1", "move_endpoint", "red", "10.0.200.5")
    made.everywhere("a1", "remove_endpoint", "red", "10.0.200.5")
    (key,) = upgraded(made, keys.EvictionKey).values()
    made.tend("b1")
    made.sync()
    made.everywhere("b1", "add_endpoint", "red", "10.0.200.5")
    before = held_by(made, "a1", key)
    made.everywhere("a1", "remove_endpoint", "red", "10.0.200.5")
    assert held_by(made, "a1", key) != before
    assert extras(held_by(made, "a1", key)) == NEWER


def test_a_record_of_a_newer_version_is_not_written_over_but_about_the_node_itself() -> None:
    made, _ = world()
    made.change_member("b1", admin=True)
    made.everywhere("b1", "set_vpc", "red", tenant="t")
    second = msgpack.packb({0: 2, 1: "newer"})
    for shard, key, _ in own(made, "a1"):
        made.carry_out("a1", [Put(shard, key, second)])
    made.sync()
    before = own(made, "a1")
    with pytest.raises(Refused, match="newer weft"):
        made.do("a1", "set_vpc", "red", tenant="u")
    with pytest.raises(Refused, match="newer weft"):
        made.do("a1", "remove_vpc", "red")
    assert own(made, "a1") == before
    (op,) = made.do("a1", "register_gateway", "192.0.2.9", [], "1.0")
    assert keys.unpack(MESH_SHARD, op.key) == keys.GatewayKey(node_id("a1"))
    made.everywhere("b1", "set_vpc", "red", tenant="u")
    assert made.view().vpc("red").tenant == "u", "others have records of their own"


values = st.one_of(
    st.none(), st.integers(0, 9), st.binary(max_size=5), st.lists(st.text(max_size=3))
)


@given(st.dictionaries(st.integers(7, 200), values, max_size=20), st.binary(max_size=30))
def test_newer_fields_survive_any_number_of_rewrites(newer: dict[int, Any], junk: bytes) -> None:
    claim = model.Claim(3, 5, "02:00:00:00:00:01", "x")
    fields = {**msgpack.unpackb(model.encode(claim), strict_map_key=False), **newer}
    held = msgpack.packb(fields)
    for mobility in range(4, 7):
        wanted = replace(claim, mobility=mobility)
        held = model.encode_over(wanted, held)
        assert model.decode_claim(held) == wanted
        found = msgpack.unpackb(held, strict_map_key=False)
        assert {number: found[number] for number in newer} == newer
        assert model.encode_over(wanted, held) == held
    try:
        assert model.encode_over(claim, junk) == model.encode(claim)
    except model.UnknownRecord:
        assert msgpack.unpackb(junk, strict_map_key=False)[0] > model.RECORD_VERSION
