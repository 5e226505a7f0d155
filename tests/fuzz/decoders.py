"""Every decoder of bytes that come from elsewhere, and the law that each one keeps:

it returns a value that encodes to something it takes again, to the same encoding, or it raises its
own documented error and nothing else; in time and memory that its input's length bounds."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgpack

from crdt import liveseq
from crdt.delta import BadDelta, Delta
from crdt.header import Header
from crdt.packed import unpack
from mesh.core import keys, model, wire
from mesh.core.errors import BadInput, PeerError, Refused
from mesh.core.keytext import describe_record
from mesh.core.ops import MESH_SHARD
from mesh.core.persisting import load_header, stored_header
from mesh.core.rotations import counted_by
from mesh.core.statements import Statement
from mesh.core.token import (
    Token,
    parse_join_answer,
    parse_join_request,
)
from mesh.node.config import ConfigError, parse_config, render_config
from mesh.node.discovery import announced
from mesh.node.p2p.circuit import CircuitAddress
from mesh.node.p2p.tcp import Address
from mesh.node.store import parse_contacts
from tests.fuzz import streams

SHARD = "ab" * 16
_CHECK_BYTES = 4
"""The sum at the end of a token."""
PATH = Path("/weft.toml")


@dataclass(frozen=True)
class Decoder:
    """`decode` takes bytes, and raises one of `errors`; `encode` takes what it returned."""

    name: str
    decode: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    encode: Callable[[Any], bytes] | None = None

    def check(self, data: bytes) -> bool:
        """Whether it was taken. Anything but the law raises."""
        try:
            value = self.decode(data)
        except self.errors:
            return False
        if self.encode is not None and value is not None:
            again = self.encode(value)
            whole = self.decode(again)
            assert whole is not None and self.encode(whole) == again, f"{self.name}: {data.hex()}"
        return True


def _msgpack(decode: Callable[[object], object]) -> Callable[[bytes], object]:
    """A decoder of plain msgpack values, behind the same bounds as on the wire."""

    def whole(data: bytes) -> object:
        return decode(unpack(data, 1000))

    return whole


def _key(shard: str) -> Callable[[bytes], object]:
    return lambda data: keys.unpack(shard, data)


def _record(key: keys.Key) -> Callable[[bytes], object]:
    return lambda data: model.decode(key, data)


def _text(decode: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: decode(data.decode("utf-8", "replace"))


def _statement(data: bytes) -> Statement:
    statement = Statement.parse(data)
    statement.check()
    if statement.kind == "heads":
        counted_by(statement)
    if statement.kind == "rotate":
        statement.proves_new_key()
    return statement


def _shown(data: bytes) -> object:
    """A record as people are shown it, whoever wrote it; this never raises."""
    match unpack(data, 1000):
        case [bytes(key), bytes(record)]:
            return [describe_record(shard, key, record) for shard in (MESH_SHARD, SHARD)]
    raise ValueError("no pair")


def _token_fields(data: bytes) -> Token:
    """A token of which the checksum is right, whatever is in it."""
    whole = data + sha256(data).digest()[:_CHECK_BYTES]
    return Token.decode(base64.urlsafe_b64encode(whole).decode().rstrip("="))


def token_packed(token: Token) -> bytes:
    text = token.encode()
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))[:-_CHECK_BYTES]


def circuit_address(text: str) -> CircuitAddress:
    found = CircuitAddress.parse(text)
    if found is None:
        raise BadInput("an address of another form")
    return found


NODE, NONCE = b"n" * 16, b"c" * model.NONCE_BYTES
VPC = model.vpc_id(NODE, NONCE)
RECORD_KEYS: dict[str, keys.Key] = {
    "claim": keys.EndpointKey(b"\x0a\x00\x00\x01"),
    "vpc": keys.VpcKey(VPC),
    "subnet": keys.SubnetKey(VPC, model.subnet_id(VPC, NODE, NONCE)),
    "peering": keys.PeeringKey(VPC, "cd" * 16, "ef" * 16),
    "eviction": keys.EvictionKey(VPC, NODE, b"\x0a\x00\x00\x01"),
    "gateway": keys.GatewayKey(NODE),
    "binding": keys.BindingKey(NODE, VPC),
    "interest": keys.InterestKey(NODE, VPC),
}
_RECORD_ERRORS = (model.InvalidRecord, model.UnknownRecord)

DECODERS = (
    Decoder("frame", wire.decode, (PeerError,), wire.encode),
    Decoder(
        "header",
        _msgpack(Header.unpack),
        (ValueError,),
        lambda v: bytes(msgpack.packb(v.pack())),
    ),
    Decoder(
        "delta",
        _msgpack(Delta.unpack),
        (ValueError, BadDelta),
        lambda v: bytes(msgpack.packb(v.pack())),
    ),
    Decoder("liveseq", liveseq.decode, (ValueError,), liveseq.encode),
    Decoder("stored", load_header, (ValueError,), stored_header),
    Decoder("statement", _statement, (PeerError,), lambda v: v.blob),
    Decoder("key_mesh", _key(MESH_SHARD), (keys.InvalidKey, keys.UnknownKey), keys.pack),
    Decoder("key_vpc", _key(SHARD), (keys.InvalidKey, keys.UnknownKey), keys.pack),
    *(
        Decoder(f"record_{name}", _record(key), _RECORD_ERRORS, model.encode)
        for name, key in RECORD_KEYS.items()
    ),
    Decoder("token", _text(Token.decode), (Refused,), lambda v: v.encode().encode()),
    Decoder("token_fields", _token_fields, (Refused,), token_packed),
    Decoder("join_request", parse_join_request, (PeerError,)),
    Decoder("join_answer", parse_join_answer, (BadInput,)),
    Decoder(
        "config",
        _text(lambda text: parse_config(PATH, text)),
        (ConfigError,),
        lambda v: render_config(v).encode(),
    ),
    Decoder("address", _text(Address.parse), (BadInput,), lambda v: str(v).encode()),
    Decoder("circuit_address", _text(circuit_address), (BadInput,), lambda v: str(v).encode()),
    Decoder("shown", _shown, (ValueError,)),
    Decoder(
        "contacts",
        parse_contacts,
        (ValueError,),
        lambda v: bytes(msgpack.packb([1, v[0], [list(contact) for contact in v[1]]])),
    ),
    Decoder("mdns", announced, ()),
    Decoder("frames", streams.frames, (PeerError, EOFError)),
    Decoder("hop", streams.hop, (PeerError,), streams.encode_message),
    Decoder("stop", streams.stop, (PeerError,), streams.encode_message),
    Decoder("punch", streams.punch, (PeerError,)),
    Decoder("rotations_shown", streams.shown, (PeerError,)),
    Decoder("link", streams.link, (PeerError,)),
)
