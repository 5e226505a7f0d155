"""Records and their packed form (msgpack maps with small integer keys).

Field 0 is the version. It is raised only for what an older reader must not read at all; anything
else that is new is a new field, which an older reader leaves alone. Fields at their default are
not written. Every decoder checks type and range of each field: a record comes from another
machine, and a bad one is `InvalidRecord`, never another exception.

Endpoint claims are many: their decoder is written for speed, and the view keeps them packed.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any, Final, TypeAlias, cast

import msgpack

from crdt.packed import pack
from mesh.core import keys, validate
from mesh.core.clock import HLC_MAX
from mesh.core.ops import NodeId

RECORD_VERSION: Final = 1
RECORD_BYTES_MAX: Final = 16_384
"""A VPC with all its sites and CIDRs, or a gateway with all its addresses, and room to grow."""

COMMON_BYTES_MAX: Final = 128
"""Decoded claims of up to this are kept for a while: with a name, a host and a label or two."""

MOBILITY_MAX: Final = (1 << 31) - 1
REVISION_MAX: Final = (1 << 62) - 1
NONCE_BYTES: Final = 16
SUBNET_BITS_MIN: Final = 2
"""Host bits of a subnet: network, gateway, one endpoint and broadcast."""
ADDRS_MAX: Final = 16
"""Multiaddrs in a registration."""

Extra: TypeAlias = tuple[tuple[int, bytes], ...]
"""Fields of a newer version: (number, packed value), kept when a value is written anew."""


class InvalidRecord(Exception):
    """Bytes that no version writes under this key. Read as absent."""


class UnknownRecord(Exception):
    """A version that must not be read by this one. Kept, passed on, left alone."""


@dataclass(frozen=True, slots=True)
class Claim:
    """An endpoint claim. `mac` is text; `host` None when attached to the gateway itself."""

    mobility: int
    hlc: int
    mac: str
    name: str = ""
    host: str | None = None
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class VpcRecord:
    """A VPC's register. `creator` and `nonce` prove the id; a deletion holds nothing else."""

    revision: int
    hlc: int
    deleted: bool
    creator: NodeId
    nonce: bytes
    name: str = ""
    vni: int = 0
    cidrs: tuple[str, ...] = ()
    tenant: str = ""
    sites: tuple[str, ...] = ()
    since: int = 0
    """Stamp of the revision that took the VNI."""
    extra: Extra = ()


@dataclass(frozen=True, slots=True)
class SubnetRecord:
    """A subnet's register. `creator` and `nonce` prove the id; a deletion holds nothing else."""

    revision: int
    hlc: int
    deleted: bool
    creator: NodeId
    nonce: bytes
    name: str = ""
    cidr: str = ""
    sites: tuple[str, ...] = ()
    restrict: bool = False
    since: int = 0
    """Stamp of the first revision."""
    extra: Extra = ()


@dataclass(frozen=True, slots=True)
class PeeringRecord:
    """A half of a peering: there, or deleted for good."""

    revision: int
    hlc: int
    deleted: bool


@dataclass(frozen=True, slots=True)
class Eviction:
    """Hides a node's claims for an address up to `mobility`."""

    mobility: int
    hlc: int


@dataclass(frozen=True, slots=True)
class Registration:
    """A gateway about itself. `underlay` is empty when it carries no traffic."""

    hlc: int
    underlay: str
    addrs: tuple[str, ...]
    version: str
    encapsulation: str = "geneve"
    """What its tunnels are made of, both ways: of ENCAPSULATIONS, or a later version's."""


@dataclass(frozen=True, slots=True)
class Binding:
    """The VNI that a node has bound to a VPC."""

    hlc: int
    vni: int


@dataclass(frozen=True, slots=True)
class Interest:
    """That a node keeps the shard of a VPC, from `hlc` on."""

    hlc: int


Register: TypeAlias = VpcRecord | SubnetRecord | PeeringRecord
Record: TypeAlias = Claim | Register | Eviction | Registration | Binding | Interest


FIELD_MAX: Final[Mapping[type, int]] = {
    Claim: 6,
    VpcRecord: 11,
    SubnetRecord: 10,
    PeeringRecord: 3,
    Eviction: 2,
    Registration: 5,
    Binding: 2,
    Interest: 1,
}
"""The highest field of each kind that this version knows: what is above is a newer version's."""


def vpc_id(creator: NodeId, nonce: bytes) -> str:
    """A VPC's id: never made from its name, and nobody else can make it."""
    return hashlib.sha256(b"weft vpc\0" + creator + nonce).hexdigest()[:32]


def subnet_id(vpc: str, creator: NodeId, nonce: bytes) -> str:
    """A subnet's id, unique in the mesh since it holds the VPC's."""
    text = b"weft subnet\0" + bytes.fromhex(vpc) + creator + nonce
    return hashlib.sha256(text).hexdigest()[:32]


def derived_mac(vpc: str, ip: str) -> str:
    """The MAC of an endpoint that was given none: locally administered, unicast."""
    return DerivedMacs(vpc).of(keys.addr_of(ip))


class DerivedMacs:
    """As `derived_mac` for many addresses of a VPC."""

    def __init__(self, vpc: str) -> None:
        self._begun = hashlib.sha256(b"weft mac\0" + bytes.fromhex(vpc))

    def of(self, addr: bytes) -> str:
        whole = self._begun.copy()
        whole.update(addr)
        digest = whole.digest()
        return bytes((digest[0] & 0xFC | 0x02, *digest[1:6])).hex(":")


def same_value(a: Register, b: Register) -> bool:
    """Whether two revisions say the same, whoever wrote them and when."""
    return a == replace(b, revision=a.revision, hlc=a.hlc)


# --- packing ---------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _pack_cidr(cidr: str) -> bytes:
    network = ipaddress.ip_network(cidr)
    return network.network_address.packed + bytes((network.prefixlen,))


def encode(record: Record) -> bytes:
    """The bytes of a record. Equal records give equal bytes."""
    fields: dict[int, Any] = {0: RECORD_VERSION}
    match record:
        case Claim():
            _put_claim(fields, record)
        case VpcRecord() | SubnetRecord():
            _put_register(fields, record)
        case PeeringRecord():
            gone = {3: True} if record.deleted else {}
            fields |= {1: record.revision, 2: record.hlc, **gone}
        case Eviction():
            fields |= {1: record.mobility, 2: record.hlc}
        case Registration():
            fields[1] = record.hlc
            if record.underlay:
                fields[2] = keys.addr_of(record.underlay)
            fields |= {3: record.addrs, 4: record.version}
            if record.encapsulation != "geneve":
                fields[5] = record.encapsulation
        case Binding():
            fields |= {1: record.hlc, 2: record.vni}
        case _:  # an interest
            fields[1] = record.hlc
    return pack(fields)


def encode_plain(hlc: int, mac: str, name: str = "") -> bytes:
    """As `encode` of a claim that never moved and says nothing of a host or labels."""
    if hlc < _UINT64_FROM or len(name) > _FIXSTR_BYTES_MAX:
        return encode(Claim(0, hlc, mac, name))
    text = name.encode()
    named = b"\x04" + bytes((0xA0 | len(text),)) + text if text else b""
    return b"".join(
        (
            b"\x84\0\1\2\xcf" if text else b"\x83\0\1\2\xcf",
            hlc.to_bytes(8, "big"),
            b"\3\xc4\6",
            bytes.fromhex(mac.replace(":", "")),
            named,
        )
    )


def encode_over(record: Record, held: bytes | None) -> bytes:
    """As `encode`, in place of `held`, what the same writer has under the key until now.

    Fields of a newer version stay, which an earlier life of the writer may have been. (VPCs and
    subnets bring theirs along from the revision that counts, whoever wrote it.)

    Raises UnknownRecord when `held` is of a version that this one must not read.
    """
    packed = encode(record)
    if held is None or held == packed:
        return packed
    try:
        before = fields_of(held)
    except InvalidRecord:
        return packed
    newer = _extra(before, FIELD_MAX[type(record)])
    if not newer or isinstance(record, VpcRecord | SubnetRecord | PeeringRecord):
        return packed
    fields = {**_unpack(packed), **{number: _unpack(value) for number, value in newer}}
    return pack(fields)


def _put_claim(fields: dict[int, Any], claim: Claim) -> None:
    if claim.mobility:
        fields[1] = claim.mobility
    fields[2] = claim.hlc
    fields[3] = bytes.fromhex(claim.mac.replace(":", ""))
    if claim.name:
        fields[4] = claim.name
    if claim.host is not None:
        fields[5] = keys.addr_of(claim.host)
    if claim.labels:
        fields[6] = dict(claim.labels)


def _put_register(fields: dict[int, Any], record: VpcRecord | SubnetRecord) -> None:
    fields |= {1: record.revision, 2: record.hlc}
    if record.deleted:
        fields[3] = True
    fields |= {4: record.creator, 5: record.nonce}
    if record.deleted:
        return
    fields[6] = record.name
    if isinstance(record, VpcRecord):
        fields |= {7: record.vni, 8: [_pack_cidr(cidr) for cidr in record.cidrs]}
        if record.tenant:
            fields[9] = record.tenant
        if record.sites:
            fields[10] = record.sites
        fields[11] = record.since
    else:
        fields |= {7: _pack_cidr(record.cidr), 8: record.sites}
        if record.restrict:
            fields[9] = True
        fields[10] = record.since
    for number, packed in record.extra:
        fields[number] = _unpack(packed)


# --- unpacking -------------------------------------------------------------------------------


def decode(key: keys.Key, data: bytes) -> Record:
    """The record that `data` is under `key`.

    Raises:
        UnknownRecord: of a version that this one must not read.
        InvalidRecord: anything else.
    """
    return _decode(key, data) if len(data) > COMMON_BYTES_MAX else _common(key, data)


def _decode(key: keys.Key, data: bytes) -> Record:
    fields = fields_of(data)
    match key:
        case keys.EndpointKey():
            return _claim(fields)
        case keys.VpcKey(vpc):
            return _vpc(fields, vpc)
        case keys.SubnetKey(vpc, subnet):
            return _subnet(fields, vpc, subnet)
        case keys.PeeringKey():
            return PeeringRecord(_revision(fields), _hlc(fields), _flag(fields, 3))
        case keys.EvictionKey():
            return Eviction(_int(fields, 1, 0, MOBILITY_MAX), _hlc(fields))
        case keys.GatewayKey():
            return _registration(fields)
        case keys.InterestKey():
            return Interest(_hlc(fields, 1))
        case _:  # a binding
            return Binding(_hlc(fields, 1), _int(fields, 2, 1, validate.VNI_MAX))


_common = lru_cache(maxsize=4096, typed=True)(_decode)
"""What is looked at is looked at again. By the key's type, too: as tuples, keys of two kinds may be
equal."""


def decode_claim(data: bytes) -> Claim:
    """As `decode` under an endpoint key, without the way to it: for the many."""
    return _claim(fields_of(data)) if len(data) > COMMON_BYTES_MAX else _common_claim(data)


@lru_cache(maxsize=4096)
def _common_claim(data: bytes) -> Claim:
    """What is looked at is looked at again: claims that meet are ranked at each change of one."""
    return _claim(fields_of(data))


def plain_mac(data: bytes) -> bytes | None:
    """The MAC, 6 bytes, of a claim of which `encode` would write these very bytes and that says
    nothing of a host or labels; else None. A quarter of the time that decoding takes."""
    match = _plain_claim(min(len(data), _PLAIN_BYTES_MAX + 1)).fullmatch(data)
    return None if match is None else match[match.lastindex or 0]


def plain_macs(records: Sequence[bytes | None]) -> list[bytes] | None:
    """As `plain_mac` of each; None where any is not plain, or is not there."""
    if None in records:
        return None
    held = cast("Sequence[bytes]", records)
    sizes = set(map(len, held))
    if max(sizes, default=0) > _PLAIN_BYTES_MAX:
        return None
    if len(sizes) == 1:
        found = list(map(_plain_claim(sizes.pop()).fullmatch, held))
    else:
        found = [_plain_claim(len(record)).fullmatch(record) for record in held]
    if None in found:
        return None
    return [match[match.lastindex or 0] for match in cast("list[re.Match[bytes]]", found)]


def is_unmoved(data: bytes, *, plain: bool = False) -> bool:
    """Whether these are the bytes of a plain claim (as they are if it says so) with mobility 0;
    False says nothing."""
    return data[3:4] == b"\2" and (plain or plain_mac(data) is not None)


_UINT64_FROM: Final = 1 << 32
"""What msgpack packs as eight bytes."""
_FIXSTR_BYTES_MAX: Final = 31
_PLAIN_BYTES_MAX: Final = 61
"""The longest plain claim: with a name of 31 characters and the largest mobility."""


@cache
def _plain_claim(size: int) -> re.Pattern[bytes]:
    """Plain claims of so many bytes. One pattern for all sizes would try the names of every length
    in turn, which takes twice the time."""
    unicast = b"[" + b"".join(re.escape(bytes((first,))) for first in range(0, 256, 2)) + b"]"
    any_byte = rb"[\0-\xff]"
    hlc = rb"\x02\xcf(?!\0{4})%b{8}" % any_byte
    mac = rb"\x03\xc4\x06(?!\0{6})(%b%b{5})" % (unicast, any_byte)
    mobilities = {
        0: b"",
        2: rb"\x01[\x01-\x7f]",
        3: rb"\x01\xcc[\x80-\xff]",
        4: rb"\x01\xcd[\x01-\xff]%b" % any_byte,
        6: rb"\x01\xce(?!\0\0)[\0-\x7f]%b{3}" % any_byte,
    }
    forms = []
    for mobility_size, mobility in mobilities.items():
        left = size - 22 - mobility_size  # for the name: its field and length, and itself
        if left == 0 or 3 <= left <= 33:
            # A map of 3 to 5 fields; the first says the version.
            head = re.escape(bytes((0x83 + bool(mobility) + bool(left), 0, 1)))
            forms.append(head + mobility + hlc + mac + (_plain_name(left - 2) if left else b""))
    return re.compile(b"|".join(forms) or rb"(?!)", re.DOTALL)


def _plain_name(size: int) -> bytes:
    inner = b"" if size == 1 else b"[a-z0-9-]{%d}[a-z0-9]" % (size - 2)
    return rb"\x04" + re.escape(bytes((0xA0 | size,))) + b"[a-z0-9]" + inner


def _unpack(data: bytes) -> Any:
    try:
        return msgpack.unpackb(data, strict_map_key=False)
    except Exception as error:
        # Hostile bytes raise many types here (ValueError, TypeError, OverflowError, msgpack's).
        raise InvalidRecord(type(error).__name__) from None


def fields_of(data: bytes) -> dict[Any, Any]:
    """The fields of a record of a version that can be read. Raises as `decode`."""
    if len(data) > RECORD_BYTES_MAX:
        raise InvalidRecord("too long")
    fields = _unpack(data)
    if type(fields) is not dict:
        raise InvalidRecord("not a map")
    version = fields.get(0)
    if type(version) is not int or version < 1:
        raise InvalidRecord("version")
    if version > RECORD_VERSION:
        raise UnknownRecord(f"version {version}")
    return fields


def _int(fields: dict[Any, Any], number: int, low: int, high: int) -> int:
    value = fields.get(number)
    if type(value) is not int or not low <= value <= high:
        raise InvalidRecord(f"field {number}")
    return value


def _hlc(fields: dict[Any, Any], number: int = 2) -> int:
    return _int(fields, number, 0, HLC_MAX)


def _revision(fields: dict[Any, Any]) -> int:
    return _int(fields, 1, 1, REVISION_MAX)


def _flag(fields: dict[Any, Any], number: int) -> bool:
    value = fields.get(number, False)
    if type(value) is not bool:
        raise InvalidRecord(f"field {number}")
    return value


def _bytes(fields: dict[Any, Any], number: int, size: int) -> bytes:
    value = fields.get(number)
    if type(value) is not bytes or len(value) != size:
        raise InvalidRecord(f"field {number}")
    return value


def _addr(value: object, number: int) -> str:
    if type(value) is not bytes or len(value) not in keys.ADDR_BYTES:
        raise InvalidRecord(f"field {number}")
    return keys.ip_of(value)


def _name(fields: dict[Any, Any], number: int, default: str | None = None) -> str:
    value = fields.get(number, default)
    if type(value) is not str or (value != default and not validate.NAME.fullmatch(value)):
        raise InvalidRecord(f"field {number}")
    return value


def _is_text(value: object, chars_max: int) -> bool:
    return isinstance(value, str) and len(value) <= chars_max and value.isprintable()


def _list(fields: dict[Any, Any], number: int, count_max: int) -> list[Any]:
    value = fields.get(number, [])
    if type(value) is not list or len(value) > count_max:
        raise InvalidRecord(f"field {number}")
    return value


def _sites(fields: dict[Any, Any], number: int) -> tuple[str, ...]:
    sites = _list(fields, number, validate.SITES_MAX)
    if not all(type(site) is str and validate.NAME.fullmatch(site) for site in sites):
        raise InvalidRecord(f"field {number}")
    return tuple(sorted(set(sites)))


def _cidr(value: object, number: int, spare_bits: int = 0) -> str:
    if type(value) is not bytes or len(value) - 1 not in keys.ADDR_BYTES:
        raise InvalidRecord(f"field {number}")
    if value[-1] + spare_bits > (len(value) - 1) * 8:
        raise InvalidRecord(f"field {number}")
    try:
        return _cidr_text(value)
    except ValueError:
        raise InvalidRecord(f"field {number}") from None


@lru_cache(maxsize=4096)
def _cidr_text(packed: bytes) -> str:
    return str(ipaddress.ip_network((packed[:-1], packed[-1])))


def _extra(fields: dict[Any, Any], known_max: int) -> Extra:
    newer = sorted(n for n in fields if type(n) is int and n > known_max)
    return tuple((number, pack(fields[number])) for number in newer)


def _claim(fields: dict[Any, Any]) -> Claim:
    mobility = fields.get(1, 0)
    if type(mobility) is not int or not 0 <= mobility <= MOBILITY_MAX:
        raise InvalidRecord("field 1")
    mac = _bytes(fields, 3, 6)
    if mac[0] & 1 or not any(mac):
        raise InvalidRecord("field 3")
    host = _addr(fields[5], 5) if 5 in fields else None
    labels = _labels(fields[6]) if 6 in fields else ()
    return Claim(mobility, _hlc(fields), mac.hex(":"), _name(fields, 4, ""), host, labels)


def _labels(value: object) -> tuple[tuple[str, str], ...]:
    if type(value) is not dict or len(value) > validate.LABELS_MAX:
        raise InvalidRecord("field 6")
    for pair in value.items():
        if not all(_is_text(text, validate.LABEL_CHARS_MAX) for text in pair):
            raise InvalidRecord("field 6")
    return tuple(sorted(value.items()))


def _vpc(fields: dict[Any, Any], vpc: str) -> VpcRecord:
    creator, nonce = _bytes(fields, 4, keys.ID_BYTES), _bytes(fields, 5, NONCE_BYTES)
    if vpc_id(creator, nonce) != vpc:
        raise InvalidRecord("not the creator's id")
    revision, hlc = _revision(fields), _hlc(fields)
    if _flag(fields, 3):
        return VpcRecord(revision, hlc, True, creator, nonce)
    cidrs = tuple(_cidr(value, 8) for value in _list(fields, 8, validate.CIDRS_MAX))
    return VpcRecord(
        revision,
        hlc,
        False,
        creator,
        nonce,
        name=_name(fields, 6),
        vni=_int(fields, 7, 1, validate.VNI_MAX),
        cidrs=cidrs,
        tenant=_name(fields, 9, ""),
        sites=_sites(fields, 10),
        since=_hlc(fields, 11),
        extra=_extra(fields, FIELD_MAX[VpcRecord]),
    )


def _subnet(fields: dict[Any, Any], vpc: str, subnet: str) -> SubnetRecord:
    creator, nonce = _bytes(fields, 4, keys.ID_BYTES), _bytes(fields, 5, NONCE_BYTES)
    if subnet_id(vpc, creator, nonce) != subnet:
        raise InvalidRecord("not the creator's id")
    revision, hlc = _revision(fields), _hlc(fields)
    if _flag(fields, 3):
        return SubnetRecord(revision, hlc, True, creator, nonce)
    sites = _sites(fields, 8)
    if not sites:
        raise InvalidRecord("field 8")
    return SubnetRecord(
        revision,
        hlc,
        False,
        creator,
        nonce,
        name=_name(fields, 6),
        cidr=_cidr(fields.get(7), 7, spare_bits=SUBNET_BITS_MIN),
        sites=sites,
        restrict=_flag(fields, 9),
        since=_hlc(fields, 10),
        extra=_extra(fields, FIELD_MAX[SubnetRecord]),
    )


def _registration(fields: dict[Any, Any]) -> Registration:
    addrs, version = _list(fields, 3, ADDRS_MAX), fields.get(4)
    encapsulation = fields.get(5, "geneve")
    texts = (*addrs, version, encapsulation)
    if not all(_is_text(text, validate.TEXT_CHARS_MAX) for text in texts):
        raise InvalidRecord("text")
    underlay = _addr(fields[2], 2) if 2 in fields else ""
    hlc = _hlc(fields, 1)
    return Registration(hlc, underlay, tuple(addrs), str(version), str(encapsulation))
