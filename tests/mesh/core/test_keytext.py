"""Key texts in both directions, and records in words."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import keys, model
from mesh.core.errors import BadInput, NotFound, RequestError
from mesh.core.keytext import describe_record, key_text, parse_key
from mesh.core.ops import MESH_SHARD
from tests.mesh.core.core_world import World, node_id
from tests.mesh.core.view_feed import FedView

ADDR = keys.addr_of("10.0.200.5")


def busy() -> tuple[World, str, str]:
    world = World("a1", "b1")
    red = world.red()
    world.everywhere("b1", "add_vpc", "blue", 8, ["10.1.0.0/16"])
    world.everywhere("a1", "add_peering", "red", "blue")
    return world, red, world.view().vpc("blue").id


def test_every_kind_of_key_has_a_text_that_reads_back() -> None:
    world, red, blue = busy()
    view = world.view()
    a1 = node_id("a1")
    (half,) = view.catalog.live_halves(red, blue)
    subnet = view.subnet("red", "wide").id
    texts: list[tuple[str, keys.Key, str]] = [
        (red, keys.EndpointKey(ADDR), "endpoint/red/10.0.200.5"),
        (MESH_SHARD, keys.VpcKey(red), "vpc/red"),
        (MESH_SHARD, keys.SubnetKey(red, subnet), "subnet/red/wide"),
        (MESH_SHARD, keys.PeeringKey(red, blue, half), "peering/red/blue"),
        (MESH_SHARD, keys.EvictionKey(red, a1, ADDR), "evict/red/10.0.200.5/a1"),
        (MESH_SHARD, keys.GatewayKey(a1), "gateway/a1"),
        (MESH_SHARD, keys.BindingKey(a1, blue), "binding/a1/blue"),
        (MESH_SHARD, keys.InterestKey(a1, blue), "interest/a1/blue"),
        # what is not live goes by its id
        (MESH_SHARD, keys.VpcKey("11" * 16), f"vpc/{'11' * 16}"),
        (MESH_SHARD, keys.SubnetKey(red, "22" * 16), f"subnet/red/{'22' * 16}"),
        (MESH_SHARD, keys.GatewayKey(b"?" * 16), f"gateway/{'3f' * 16}"),
    ]
    for shard, key, text in texts:
        assert key_text(view, shard, keys.pack(key)) == text
        assert parse_key(view, text) == (shard, keys.pack(key))


def test_a_key_of_another_version_is_unknown_and_reads_back() -> None:
    view = FedView()
    assert key_text(view, MESH_SHARD, b"z!") == "unknown/7a21"
    assert key_text(view, MESH_SHARD, b"v") == "unknown/76"
    assert parse_key(view, "unknown/7a21") == (MESH_SHARD, b"z!")
    assert parse_key(view, "unknown/7a21", "11" * 16) == ("11" * 16, b"z!")


def test_a_peering_made_again_goes_by_its_halves() -> None:
    world, red, blue = busy()
    world.everywhere("a1", "remove_peering", "red", "blue")
    world.everywhere("a1", "add_peering", "red", "blue")
    view = world.view()
    halves = sorted(view.catalog.half_records(red, blue))
    keys_of = [keys.pack(keys.PeeringKey(red, blue, half)) for half in halves]
    texts = [key_text(view, MESH_SHARD, key) for key in keys_of]
    assert texts == [f"peering/red/blue/{half}" for half in halves]
    assert [parse_key(view, text)[1] for text in texts] == keys_of
    with pytest.raises(NotFound, match=f"several times; use one of {texts[0]}, {texts[1]}"):
        parse_key(view, "peering/red/blue")
    with pytest.raises(NotFound, match="no half of a peering blue/red"):
        parse_key(view, "peering/blue/red")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", BadInput),
        ("vpc", BadInput),
        ("vpc/red/x", BadInput),
        ("pod/red/10.0.0.1", BadInput),
        ("endpoint/red", BadInput),
        ("endpoint/red/10.0.0", BadInput),
        ("peering/red/blue/x", BadInput),
        ("unknown/xyz", BadInput),
        ("vpc/green", NotFound),
        ("endpoint/green/10.0.0.1", NotFound),
        ("subnet/red/x", NotFound),
        ("gateway/z1", NotFound),
    ],
)
def test_what_is_no_key_or_names_nothing_is_refused(text: str, error: type[Exception]) -> None:
    world, _, _ = busy()
    with pytest.raises(error):
        parse_key(world.view(), text)


@given(st.text())
def test_any_text_reads_or_is_refused(text: str) -> None:
    try:
        parse_key(FedView(), text)
    except RequestError as error:
        assert "\n" not in str(error)


def test_records_in_words_are_json() -> None:
    world, red, _ = busy()
    world.everywhere("a1", "add_endpoint", "red", "10.0.200.5", labels={"app": "x"})
    world.everywhere("a1", "register_gateway", "192.0.2.1", ["/ip4/192.0.2.1/tcp/1"], "1")
    world.tend("a1")
    world.everywhere("a1", "remove_peering", "red", "blue")
    world.sync()
    kinds = set()
    for change in world.log:
        assert change.record is not None
        described = describe_record(change.shard, change.key, change.record)
        json.dumps(described)
        kinds.add(described["kind"])
    assert kinds == {"vpc", "subnet", "peering", "endpoint", "gateway", "binding"}
    claim = next(change for change in world.log if change.shard == red)
    assert claim.record is not None
    described = describe_record(claim.shard, claim.key, claim.record)
    assert described["labels"] == {"app": "x"} and described["host"] is None
    key = keys.pack(keys.EvictionKey(red, node_id("a1"), ADDR))
    eviction = model.encode(model.Eviction(2, 3))
    assert describe_record(MESH_SHARD, key, eviction) == {"kind": "evict", "mobility": 2, "hlc": 3}


def test_newer_fields_of_a_vpc_are_shown_by_number() -> None:
    nonce = b"0" * 16
    vpc = model.vpc_id(node_id("a1"), nonce)
    record = model.VpcRecord(
        1, 1, False, node_id("a1"), nonce, "red", 7, ("10.0.0.0/16",), extra=((40, b"\x05"),)
    )
    described = describe_record(MESH_SHARD, keys.pack(keys.VpcKey(vpc)), model.encode(record))
    assert described["extra"] == {"40": "05"}
    assert described["creator"] == node_id("a1").hex() and described["cidrs"] == ["10.0.0.0/16"]


@pytest.mark.parametrize(
    ("key", "record", "kind"),
    [
        (b"z", b"\x01", "unknown"),
        (b"v" + b"1" * 16, b"\x81\x00\x02", "unknown"),
        (b"v", b"\x81\x00\x01", "invalid"),
        (b"v" + b"1" * 16, b"\xc1", "invalid"),
    ],
)
def test_what_cannot_be_read_is_shown_as_such(key: bytes, record: bytes, kind: str) -> None:
    described = describe_record(MESH_SHARD, key, record)
    assert described["kind"] == kind and described["record"] == record.hex()
