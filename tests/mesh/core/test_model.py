"""Keys and records: they pack and read in one way only, and the bytes stay what they are."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import keys, model, validate
from mesh.core.clock import HLC_MAX
from mesh.core.model import (
    Binding,
    Claim,
    Eviction,
    Interest,
    InvalidRecord,
    PeeringRecord,
    Registration,
    SubnetRecord,
    UnknownRecord,
    VpcRecord,
)
from mesh.core.ops import MESH_SHARD
from mesh.core.validate import NAME

NODE, NONCE = b"n" * 16, b"0" * 16
VPC = model.vpc_id(NODE, NONCE)
SUBNET = model.subnet_id(VPC, NODE, NONCE)
ADDR = bytes((10, 0, 1, 5))
HLC = 1 << 48

KEYS: list[tuple[keys.Key, str]] = [
    (keys.EndpointKey(ADDR), "650a000105"),
    (keys.EndpointKey(b"\xfd" + b"\0" * 15), "65fd" + "00" * 15),
    (keys.VpcKey(VPC), "76" + VPC),
    (keys.SubnetKey(VPC, SUBNET), "73" + VPC + SUBNET),
    (keys.PeeringKey(VPC, "11" * 16, "22" * 16), "70" + VPC + "11" * 16 + "22" * 16),
    (keys.EvictionKey(VPC, NODE, ADDR), "78" + VPC + NODE.hex() + "0a000105"),
    (keys.GatewayKey(NODE), "67" + NODE.hex()),
    (keys.BindingKey(NODE, VPC), "62" + NODE.hex() + VPC),
    (keys.InterestKey(NODE, VPC), "69" + NODE.hex() + VPC),
]

GOLDEN: list[tuple[keys.Key, model.Record, str]] = [
    (
        keys.EndpointKey(ADDR),
        Claim(0, HLC, "02:00:00:00:00:05"),
        "83000102cf000100000000000003c406020000000005",
    ),
    (
        keys.EndpointKey(ADDR),
        Claim(2, HLC, "02:00:00:00:00:05", "web", "192.0.2.7", (("app", "x"),)),
        "870001010202cf000100000000000003c40602000000000504a377656205c404c00002070681a3617070a178",
    ),
    (
        keys.VpcKey(VPC),
        VpcRecord(1, HLC, False, NODE, NONCE, "red", 7, ("10.0.0.0/16",), "acme", ("a", "b"), HLC),
        "8b0001010102cf000100000000000004c4106e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e05c41030"
        "30303030303030303030303030303006a372656407070891c4050a0000001009a461636d650a"
        "92a161a1620bcf0001000000000000",
    ),
    (
        keys.VpcKey(VPC),
        VpcRecord(2, HLC, True, NODE, NONCE),
        "860001010202cf000100000000000003c304c4106e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e05c4"
        "1030303030303030303030303030303030",
    ),
    (
        keys.SubnetKey(VPC, SUBNET),
        SubnetRecord(1, HLC, False, NODE, NONCE, "s", "10.0.1.0/24", ("a",), True, HLC),
        "8a0001010102cf000100000000000004c4106e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e05c41030"
        "30303030303030303030303030303006a17307c4050a000100180891a16109c30acf00010000"
        "00000000",
    ),
    (
        keys.PeeringKey(VPC, VPC, SUBNET),
        PeeringRecord(1, HLC, False),
        "830001010102cf0001000000000000",
    ),
    (
        keys.PeeringKey(VPC, VPC, SUBNET),
        PeeringRecord(2, HLC, True),
        "840001010202cf000100000000000003c3",
    ),
    (keys.EvictionKey(VPC, NODE, ADDR), Eviction(3, HLC), "830001010302cf0001000000000000"),
    (
        keys.GatewayKey(NODE),
        Registration(HLC, "192.0.2.1", ("/ip4/192.0.2.1/tcp/1",), "0.1"),
        "85000101cf000100000000000002c404c00002010391b42f6970342f3139322e302e322e312f"
        "7463702f3104a3302e31",
    ),
    (keys.GatewayKey(NODE), Registration(HLC, "", (), ""), "84000101cf0001000000000000039004a0"),
    (
        keys.GatewayKey(NODE),
        Registration(HLC, "2001:db8::1", (), "1", "vxlan"),
        "86000101cf000100000000000002c41020010db8000000000000000000000001039004a13105a576786c616e",
    ),
    (keys.BindingKey(NODE, VPC), Binding(HLC, 7), "83000101cf00010000000000000207"),
    (keys.InterestKey(NODE, VPC), Interest(HLC), "82000101cf0001000000000000"),
]


def shard_of(key: keys.Key) -> str:
    return VPC if isinstance(key, keys.EndpointKey) else MESH_SHARD


@pytest.mark.parametrize(("key", "packed"), KEYS)
def test_keys_pack_to_these_bytes_and_back(key: keys.Key, packed: str) -> None:
    assert keys.pack(key).hex() == packed
    assert keys.unpack(shard_of(key), keys.pack(key)) == key


@pytest.mark.parametrize(("key", "record", "packed"), GOLDEN)
def test_records_pack_to_these_bytes_and_back(
    key: keys.Key, record: model.Record, packed: str
) -> None:
    assert model.encode(record).hex() == packed
    assert model.decode(key, bytes.fromhex(packed)) == record


plain_claims = st.builds(
    model.Claim,
    st.sampled_from([0, 1, 127, 128, 255, 256, 65_535, 65_536, model.MOBILITY_MAX]),
    st.sampled_from([0, 255, (1 << 32) - 1, 1 << 32, HLC, HLC_MAX]),
    st.sampled_from(
        ["02:00:00:00:00:01", "00:00:00:00:00:01", "5c:0a:5d:2d:5b:00", "fe" + ":ff" * 5]
    ),
    st.sampled_from(["", "a", "0-9", "a" * 31, "a" * 32, "b" * 63])
    | st.from_regex(NAME, fullmatch=True),
    st.sampled_from([None, None, None, "192.0.2.7"]),
    st.sampled_from([(), (), (("a", "b"),)]),
)


@given(plain_claims)
def test_a_plain_claims_mac_is_found_without_decoding(claim: model.Claim) -> None:
    found = model.plain_mac(model.encode(claim))
    long_name, early = len(claim.name) > 31, claim.hlc < 1 << 32
    if claim.host or claim.labels or long_name or early:
        assert found is None
    else:
        assert found is not None and found.hex(":") == claim.mac


@given(plain_claims)
def test_a_plain_claim_packed_at_once_is_what_packing_its_fields_makes(claim: model.Claim) -> None:
    bare = model.Claim(0, claim.hlc, claim.mac, claim.name)
    assert model.encode_plain(bare.hlc, bare.mac, bare.name) == model.encode(bare)


@given(st.lists(plain_claims, max_size=4))
def test_plain_claims_are_read_together_as_one_by_one(claims: list[model.Claim]) -> None:
    packed: list[bytes | None] = [model.encode(claim) for claim in claims]
    found = [model.plain_mac(record) for record in packed if record is not None]
    assert model.plain_macs(packed) == (None if None in found else found)
    assert model.plain_macs([*packed, None]) is None


@given(
    plain_claims,
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=3),
    st.data(),
)
def test_what_is_taken_for_a_plain_claim_is_one_to_the_last_byte(
    claim: model.Claim, changed: list[tuple[int, int]], data: st.DataObject
) -> None:
    packed = bytearray(model.encode(claim))
    for at, value in changed:
        packed[at % len(packed)] = value
    cut = data.draw(st.sampled_from([0, 0, 0, 1, 2]))
    raw = bytes(packed[: len(packed) - cut]) + data.draw(st.sampled_from([b"", b"", b"a", b"\n"]))
    found = model.plain_mac(raw)
    if found is not None:
        read = model.decode_claim(raw)
        assert model.encode(read) == raw
        assert (read.mac, read.host, read.labels) == (found.hex(":"), None, ())


@given(st.sampled_from([MESH_SHARD, VPC]), st.binary(max_size=60))
def test_a_key_that_reads_packs_to_the_same_bytes(shard: str, raw: bytes) -> None:
    try:
        key = keys.unpack(shard, raw)
    except (keys.UnknownKey, keys.InvalidKey):
        return
    assert keys.pack(key) == raw


@pytest.mark.parametrize(
    ("shard", "raw", "error"),
    [
        (MESH_SHARD, b"", keys.UnknownKey),
        (MESH_SHARD, b"z" + NODE, keys.UnknownKey),
        (MESH_SHARD, b"e" + ADDR, keys.UnknownKey),
        (MESH_SHARD, b"v", keys.InvalidKey),
        (MESH_SHARD, b"s" + NODE, keys.InvalidKey),
        (MESH_SHARD, b"p" + NODE, keys.InvalidKey),
        (MESH_SHARD, b"x" + NODE * 2 + b"12345", keys.InvalidKey),
        (MESH_SHARD, b"g" + NODE * 2, keys.InvalidKey),
        (MESH_SHARD, b"b" + NODE, keys.InvalidKey),
        (VPC, b"v" + NODE, keys.UnknownKey),
        (VPC, b"e" + b"12345", keys.InvalidKey),
        (VPC.upper(), b"e" + ADDR, keys.InvalidKey),
        ("", b"e" + ADDR, keys.InvalidKey),
    ],
)
def test_keys_of_no_version_and_of_newer_ones_are_told_apart(
    shard: str, raw: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error):
        keys.unpack(shard, raw)


ENDPOINT, VPC_KEY, SUBNET_KEY = GOLDEN[0][0], GOLDEN[2][0], GOLDEN[4][0]
GATEWAY, BINDING = GOLDEN[8][0], GOLDEN[10][0]
CLAIM, VPC_FIELDS, SUBNET_FIELDS, REGISTRATION = (
    msgpack.unpackb(bytes.fromhex(GOLDEN[i][2]), strict_map_key=False) for i in (1, 2, 4, 8)
)

WRONG: list[tuple[keys.Key, dict[object, object], int, object]] = [
    (ENDPOINT, CLAIM, 0, None),
    (ENDPOINT, CLAIM, 0, 0),
    (ENDPOINT, CLAIM, 0, "1"),
    (ENDPOINT, CLAIM, 1, -1),
    (ENDPOINT, CLAIM, 1, model.MOBILITY_MAX + 1),
    (ENDPOINT, CLAIM, 1, True),
    (ENDPOINT, CLAIM, 2, -1),
    (ENDPOINT, CLAIM, 2, 1.5),
    (ENDPOINT, CLAIM, 3, b"12345"),
    (ENDPOINT, CLAIM, 3, "123456"),
    (ENDPOINT, CLAIM, 3, b"\1" + b"\0" * 5),
    (ENDPOINT, CLAIM, 3, b"\0" * 6),
    (ENDPOINT, CLAIM, 4, "Web"),
    (ENDPOINT, CLAIM, 4, b"web"),
    (ENDPOINT, CLAIM, 5, b"123"),
    (ENDPOINT, CLAIM, 5, "1234"),
    (ENDPOINT, CLAIM, 6, ["app"]),
    (ENDPOINT, CLAIM, 6, {"app": 1}),
    (ENDPOINT, CLAIM, 6, {1: "app"}),
    (ENDPOINT, CLAIM, 6, {"app": "\x1b"}),
    (ENDPOINT, CLAIM, 6, {str(i): "" for i in range(validate.LABELS_MAX + 1)}),
    (VPC_KEY, VPC_FIELDS, 1, 0),
    (VPC_KEY, VPC_FIELDS, 1, model.REVISION_MAX + 1),
    (VPC_KEY, VPC_FIELDS, 3, 1),
    (VPC_KEY, VPC_FIELDS, 4, b"m" * 16),
    (VPC_KEY, VPC_FIELDS, 4, b"m"),
    (VPC_KEY, VPC_FIELDS, 5, b"1" * 16),
    (VPC_KEY, VPC_FIELDS, 6, ""),
    (VPC_KEY, VPC_FIELDS, 7, 0),
    (VPC_KEY, VPC_FIELDS, 7, 1 << 24),
    (VPC_KEY, VPC_FIELDS, 8, [b"\x0a\0\0\1\x18"]),
    (VPC_KEY, VPC_FIELDS, 8, [b"\x0a\0\0\0\x21"]),
    (VPC_KEY, VPC_FIELDS, 8, [b"\x0a\0\0\0"]),
    (VPC_KEY, VPC_FIELDS, 8, [7]),
    (VPC_KEY, VPC_FIELDS, 8, b"\x0a\0\0\0\x10"),
    (VPC_KEY, VPC_FIELDS, 8, [b"\x0a\0\0\0\x10"] * (validate.CIDRS_MAX + 1)),
    (VPC_KEY, VPC_FIELDS, 10, ["A"]),
    (VPC_KEY, VPC_FIELDS, 10, [1]),
    (VPC_KEY, VPC_FIELDS, 12, {"deep": "x" * model.RECORD_BYTES_MAX}),
    (SUBNET_KEY, SUBNET_FIELDS, 4, b"m" * 16),
    (SUBNET_KEY, SUBNET_FIELDS, 7, b"\x0a\0\1\0\x1f"),
    (SUBNET_KEY, SUBNET_FIELDS, 7, None),
    (SUBNET_KEY, SUBNET_FIELDS, 8, []),
    (SUBNET_KEY, SUBNET_FIELDS, 9, "yes"),
    (GATEWAY, REGISTRATION, 2, b"1"),
    (GATEWAY, REGISTRATION, 3, [7]),
    (GATEWAY, REGISTRATION, 3, ["/a"] * (model.ADDRS_MAX + 1)),
    (GATEWAY, REGISTRATION, 4, None),
    (GATEWAY, REGISTRATION, 4, "x" * 257),
]


@pytest.mark.parametrize(("key", "fields", "number", "value"), WRONG)
def test_a_field_of_wrong_type_or_range_makes_the_record_invalid(
    key: keys.Key, fields: dict[object, object], number: int, value: object
) -> None:
    assert model.decode(key, msgpack.packb(fields))
    with pytest.raises(InvalidRecord):
        model.decode(key, msgpack.packb({**fields, number: value}))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x90", b"\x81", b"\x81\x90\x01", b"\x80"])
def test_what_is_no_map_with_a_version_is_invalid(data: bytes) -> None:
    with pytest.raises(InvalidRecord):
        model.decode_claim(data)


@pytest.mark.parametrize("depth", [1, 100, 1_000])
def test_newer_fields_are_kept_however_deeply_they_are_nested(depth: int) -> None:
    packed = msgpack.packb({**VPC_FIELDS, 12: None})
    assert packed[-2:] == b"\x0c\xc0"
    nested = packed[:-1] + b"\x91" * depth + b"\x90"
    assert model.encode(model.decode(VPC_KEY, nested)) == nested


def test_a_newer_version_is_unknown_not_invalid() -> None:
    with pytest.raises(UnknownRecord):
        model.decode_claim(msgpack.packb({**CLAIM, 0: 2, 3: "another form"}))


def test_newer_fields_are_left_alone_and_kept_where_values_are_written_anew() -> None:
    claim = model.decode_claim(msgpack.packb({**CLAIM, 77: ["new"], "x": 1}))
    assert claim == GOLDEN[1][1]
    packed = msgpack.packb({**VPC_FIELDS, 40: {"new": 1}, 12: 5})
    record = model.decode(VPC_KEY, packed)
    assert isinstance(record, VpcRecord)
    assert msgpack.unpackb(model.encode(record), strict_map_key=False) == {
        **VPC_FIELDS,
        12: 5,
        40: {"new": 1},
    }


def test_ids_and_macs_are_made_of_what_they_stand_for() -> None:
    assert model.vpc_id(NODE, b"1" * 16) != VPC != model.vpc_id(b"m" * 16, NONCE)
    assert model.subnet_id("11" * 16, NODE, NONCE) != SUBNET
    mac = model.derived_mac(VPC, "10.0.1.5")
    assert validate.mac("mac", mac) == mac and int(mac[:2], 16) & 3 == 2
    assert mac != model.derived_mac(VPC, "10.0.1.6")
    assert mac != model.derived_mac(SUBNET, "10.0.1.5")
    assert mac == model.derived_mac(VPC, "10.0.1.5")


def test_a_plain_claim_is_small() -> None:
    assert len(model.encode(GOLDEN[0][1])) <= 40
