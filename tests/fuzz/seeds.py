"""A few right inputs of every decoder, made by the encoders themselves."""

from __future__ import annotations

from functools import partial

import msgpack
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Status, StopMessage
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from multiaddr import Multiaddr

from crdt import liveseq
from crdt.chain import Chain
from crdt.header import ChainId, Cover, Epoch
from mesh.core import ed25519, keys, model, wire
from mesh.core.bounds import Quotas
from mesh.core.rotations import heads_fields
from mesh.core.statements import (
    admission,
    demotions,
    found_mesh,
    make_fork,
    make_rotation,
    make_statement,
)
from mesh.core.token import Token, join_answer, join_request
from mesh.core.vectors import Cursor, Held
from mesh.node.config import render_config
from mesh.node.discovery import text_of
from mesh.node.p2p.circuit import CircuitAddress, peer_of
from mesh.node.p2p.framing import pack
from mesh.node.p2p.tcp import Address
from mesh.node.p2p.twins import INSTANCE_BYTES
from mesh.node.setup import NewNode
from tests.fuzz.decoders import NODE, NONCE, PATH, RECORD_KEYS, VPC, token_packed
from tests.fuzz.streams import encode_message

SEED = b"k" * 32
MESH = b"m" * 16
STAMP = 1_790_000_000_000 << 16


def seeds() -> dict[str, list[bytes]]:
    """decoder -> inputs that it takes."""
    sign = partial(ed25519.sign, SEED)
    chain = Chain(ChainId(NODE, "mesh"), Epoch(1, b"nonce..."))
    chain.put(b"k", b"one")
    first = chain.seal(MESH, sign, ())
    flush = chain.since(chain.epoch, 0)
    chain.put(b"l", b"two")
    chain.delete(b"k")
    chain.seal(MESH, sign, ())
    other = Chain(chain_id := ChainId(NODE, "mesh"), Epoch(1, b"nonce..."))
    other.put(b"k", b"another")
    forked = other.seal(MESH, sign, ())
    later = Chain(ChainId(NODE, "mesh"), Epoch(2, b"nonce..."))
    later.put(b"k", b"v")
    later.seal(MESH, sign, (Cover(chain.epoch, 2, 1),))
    deltas = (later.snapshot(), flush, chain.since(chain.epoch, first.hi), chain.snapshot())
    held = (Held(chain.epoch, 3, b"r" * 8),)
    short = chain_id.short()
    vector = {short: held, b"12345678": (), b"abcdefgh": held * 2}
    frames: list[wire.Frame] = [
        wire.Sync(MESH, MESH, {"mesh": MESH, VPC: MESH}, True, True, 1),
        wire.Same(1), wire.Told(1), wire.Probe(MESH), wire.More(1), wire.Done(1),
        wire.Recent(MESH, MESH, {short: 5}, True), wire.Deltas(deltas),
        wire.Heads("mesh", wire.FIRST, wire.LAST, vector), wire.Have((b"h" * 32,)),
        wire.Want(1, vector, {short: Cursor(chain.epoch, 2)}), wire.Ask((b"h" * 32,)),
        wire.Answer(1, deltas), wire.Part(1, flush, True, 0), wire.Statements((b"s",)),
        wire.Rest(True), wire.Wake(),
    ]  # fmt: skip
    founding = found_mesh("edge", b"r" * 32, SEED, "a1", "a")
    key = ed25519.public_key(SEED)
    admitted = admission(key, "b1", "b", b"t" * 32, Quotas(5, 6))
    counted = heads_fields(NODE, [(chain.id, chain.epoch, 3)], [b"h" * 32])
    said = [
        make_statement(SEED, NODE, MESH, "admit", admitted),
        make_statement(SEED, NODE, MESH, "retire", {"node": NODE, "compromised": True}),
        make_statement(SEED, NODE, MESH, "newer", {"field": [1]}),
        make_statement(SEED, NODE, MESH, "forget", {"node": NODE}),
        *make_rotation(SEED, b"l" * 32, MESH, NODE, counted, 1),
        *demotions(SEED, MESH, NODE, [b"h" * 32]),
    ]
    token = Token(MESH, "edge", key, ("/ip4/127.0.0.1/tcp/7400",), b"t" * 16, 1_800_000_000, "a")
    config = NewNode(PATH.parent, "a", "a1", "127.0.0.1", "/ip4/127.0.0.1/tcp/7400").config(
        PATH.parent, "edge", MESH
    )
    made = {
        "frame": [
            *(wire.encode(frame, version) for version in (1, 2) for frame in frames),
            wire.zipped(wire.encode(wire.Have((b"h" * 32,) * 99))),
        ],
        "header": [bytes(msgpack.packb(d.header.pack())) for d in deltas],
        "delta": [bytes(msgpack.packb(d.pack())) for d in deltas],
        "liveseq": [liveseq.encode(seqs) for seqs in ((), (1,), (1, 200, 40_000, 1 << 47))],
        "stored": [bytes(msgpack.packb([1, first.pack()]))],
        "statement": [*founding, *said, make_fork(MESH, first, forked)],
        "token": [token.encode().encode()],
        "token_fields": [token_packed(token)],
        "join_request": [join_request(token, key, "b1", "b")],
        "join_answer": [join_answer(list(founding), ["/ip4/127.0.0.1/tcp/7400"])],
        "config": [render_config(config).encode()],
        "address": [b"/ip4/127.0.0.1/tcp/7400", b"/ip6/::1/tcp/1", b"/dns4/a.example/tcp/65535"],
        "key_mesh": [keys.pack(k) for n, k in RECORD_KEYS.items() if n != "claim"],
        "key_vpc": [keys.pack(RECORD_KEYS["claim"])],
        "rotations_shown": [_framed([]), _framed([b"one", b"two"])],
    }
    made |= _streams(key) | _places(key, list(founding))
    records = _records()
    pairs = [(keys.pack(RECORD_KEYS[name]), record) for name in records for record in records[name]]
    made["shown"] = [bytes(msgpack.packb(pair)) for pair in pairs]
    return made | {f"record_{name}": packed for name, packed in records.items()}


def _framed(value: object) -> bytes:
    return pack(msgpack.packb(value))


def _streams(key: bytes) -> dict[str, list[bytes]]:
    """What is said over streams beside the frames of replication."""
    where = [Multiaddr(f"/{ip}/tcp/7400").to_bytes() for ip in ("ip6/2001:db8::1", "ip4/192.0.2.1")]
    hops = [
        HopMessage(type=HopMessage.CONNECT, peer=peer_of(key)),
        HopMessage(type=HopMessage.RESERVE),
        HopMessage(type=HopMessage.STATUS, status=Status.OK),
    ]
    stops = [
        StopMessage(type=StopMessage.CONNECT, peer=peer_of(key)),
        StopMessage(type=StopMessage.STATUS, status=Status.CONNECTION_FAILED),
    ]
    hello = [1, 1, "/ip4/192.0.2.1/tcp/7400", 1, 2, b"i" * INSTANCE_BYTES]
    beats = [[3, 1, 0, 0, b"soft", STAMP], [3, 2, 1, 1, None, STAMP], [4], [2], [99, "newer"]]
    vouching = [[6, b"i" * INSTANCE_BYTES], [7, b"s" * 64]]
    said = [hello, *beats, *vouching, [5, "bye", b"s" * 64]]
    return {
        "frames": [pack(b"one") + pack(b"another"), pack(b"x" * 300)],
        "hop": [encode_message(message) for message in hops],
        "stop": [encode_message(message) for message in stops],
        "punch": [encode_message(HolePunch(type=HolePunch.CONNECT, ObsAddrs=where))],
        "link": [b"".join(map(_framed, said)), _framed([1, 1]), _framed(hello) + _framed([5])],
    }


def _places(key: bytes, statements: list[bytes]) -> dict[str, list[bytes]]:
    """Where members are."""
    addrs = ["/ip4/127.0.0.1/tcp/7400", "/ip6/2001:db8::1/tcp/7400"]
    circuits = [str(CircuitAddress(Address.parse(addr), key)) for addr in addrs]
    contacts = [[NODE, addr, 1] for addr in addrs]
    return {
        "circuit_address": [text.encode() for text in circuits],
        "mdns": [text_of(key, addrs)],
        "contacts": [bytes(msgpack.packb([1, statements, contacts]))],
    }


def _records() -> dict[str, list[bytes]]:
    vpc = model.VpcRecord(
        1, STAMP, False, NODE, NONCE, "red", 7, ("10.0.0.0/16",), "t", ("a", "b"), STAMP
    )
    subnet = model.SubnetRecord(1, STAMP, False, NODE, NONCE, "s", "10.0.1.0/24", ("a",), True)
    claim = model.Claim(3, STAMP, "02:00:00:00:00:01", "web", "192.0.2.1", (("app", "x"),))
    made: dict[str, list[model.Record]] = {
        "claim": [claim, model.Claim(0, STAMP, "02:00:00:00:00:01")],
        "vpc": [vpc, model.VpcRecord(2, STAMP, True, NODE, NONCE)],
        "subnet": [subnet, model.SubnetRecord(2, STAMP, True, NODE, NONCE)],
        "peering": [model.PeeringRecord(1, STAMP, False), model.PeeringRecord(2, STAMP, True)],
        "eviction": [model.Eviction(3, STAMP)],
        "gateway": [model.Registration(STAMP, "192.0.2.1", ("/ip4/192.0.2.1/tcp/1",), "0.1")],
        "binding": [model.Binding(STAMP, 7)],
        "interest": [model.Interest(STAMP)],
    }
    packed = {name: [*map(model.encode, records)] for name, records in made.items()}
    newer = msgpack.unpackb(packed["vpc"][0], strict_map_key=False) | {77: {"newer": [1]}}
    packed["vpc"].append(bytes(msgpack.packb(newer)))
    return packed
