"""Frames: every kind round-trips, its bytes are pinned, and no bytes break the decoder."""

from __future__ import annotations

from contextlib import suppress
from hashlib import sha256

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.chain import Chain
from crdt.header import ChainId, Cover, Epoch
from mesh.core import wire
from mesh.core.errors import PeerError
from mesh.core.persisting import load_header, stored_header
from mesh.core.wire import Held


def sample_chain() -> Chain:
    chain = Chain(ChainId(b"n" * 16, "mesh"), Epoch(2, b"e" * 8))
    chain.put(b"k1", b"v1")
    chain.put(b"k2", b"v2")
    chain.delete(b"k1")
    covers = (Cover(Epoch(1, b"d" * 8), 0, 0),)
    chain.seal(b"m" * 16, lambda message: sha256(message).digest() * 2, covers)
    return chain


CHAIN = sample_chain()
VECTOR = {b"c" * 8: (Held(Epoch(2, b"e" * 8), 3, b"r" * 8),), b"d" * 8: ()}
FRAMES: dict[str, wire.Frame] = {
    "sync": wire.Sync(b"m" * 16, b"r" * 32, {"mesh": b"d" * 32, "f" * 32: bytes(32)}),
    "same": wire.Same(("mesh",)),
    "heads": wire.Heads("mesh", wire.FIRST, wire.LAST, VECTOR),
    "deltas": wire.Deltas((CHAIN.since(CHAIN.epoch, 0),)),
    "want": wire.Want(7, VECTOR),
    "part": wire.Part(7, CHAIN.snapshot(), True, 3),
    "more": wire.More(7),
    "done": wire.Done(7),
    "have": wire.Have((b"h" * 32,)),
    "ask": wire.Ask((b"h" * 32,)),
    "statements": wire.Statements((b"blob",)),
}

GOLDEN = {
    "sync": "7650e7654aac424c1c6c97cf409ad233",
    "same": "4afc4b15db94c69c7d2e46d97d98d312",
    "heads": "0ca3d45b60d93c89fc74aba591796ac5",
    "deltas": "21a542a3d435ff340417eb4fdebfec04",
    "want": "c4df2cbdd1877e02c4e6c171558ff131",
    "part": "cae18502f3821eaf669f14d1c2bbf070",
    "more": "71014944abb3b78e7661dbef44f43e7f",
    "done": "c889d8020115d9d0368d215aeefb5017",
    "have": "db4befcd9268e4d2d8db8831d4d8d877",
    "ask": "23794a782e2a68594959eb70a4a5cd5d",
    "statements": "7a0d9c29eb5c15c83adecd96af2e1b9b",
}
"""First 16 bytes of SHA-256 over the frame's bytes, wire version 1: a change breaks older nodes."""


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_round_trips(name: str) -> None:
    assert wire.decode(wire.encode(FRAMES[name])) == FRAMES[name]


@pytest.mark.parametrize("name", FRAMES)
def test_the_bytes_of_a_frame_are_pinned(name: str) -> None:
    assert sha256(wire.encode(FRAMES[name])).hexdigest()[:32] == GOLDEN[name]


def test_the_stored_header_is_pinned() -> None:
    assert CHAIN.header is not None
    blob = stored_header(CHAIN.header)
    assert load_header(blob) == CHAIN.header
    assert sha256(blob).hexdigest()[:32] == "375c70a508b57b86b313a820cb04f90c"


@pytest.mark.parametrize("name", FRAMES)
def test_fields_and_kinds_of_a_newer_version_are_ignored(name: str) -> None:
    raw = msgpack.unpackb(wire.encode(FRAMES[name]))
    assert wire.decode(msgpack.packb([*raw, {"new": 1}])) == FRAMES[name]
    assert wire.decode(msgpack.packb([raw[0], 99, *raw[2:]])) is None
    assert wire.decode(msgpack.packb([raw[0] + 1, *raw[1:]])) is None


def decode_or_refuse(data: bytes) -> None:
    with suppress(PeerError):
        wire.decode(data)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_decoder(data: bytes) -> None:
    decode_or_refuse(data)


@given(st.sampled_from(sorted(FRAMES)), st.data())
def test_no_mutated_frame_breaks_the_decoder(name: str, data: st.DataObject) -> None:
    frame = bytearray(wire.encode(FRAMES[name]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(frame) - 1))
        frame[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        if not frame:
            return
    decode_or_refuse(bytes(frame))


@pytest.mark.parametrize(
    "hostile",
    [
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        msgpack.packb(
            [1, wire.HEADS, "mesh", b"", b"", [[b"c" * 8, [[1, b"e" * 8, -1, b"r" * 8]]]]]
        ),
        msgpack.packb([1, wire.SYNC, b"m" * 16, b"r" * 32, [["x" * 65, b"d" * 32]]]),
        msgpack.packb([1, wire.WANT, 1 << 63, []]),
        bytes(wire.FRAME_BYTES_MAX + 1),
    ],
    ids=["deep", "long list", "long bytes", "negative head", "long shard", "big id", "long frame"],
)
def test_absurd_frames_are_refused(hostile: bytes) -> None:
    with pytest.raises(PeerError):
        wire.decode(hostile)
