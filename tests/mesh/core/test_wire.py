"""Frames: every kind round-trips, its bytes are pinned, and no bytes break the decoder."""

from __future__ import annotations

import zlib
from contextlib import suppress
from hashlib import sha256
from random import Random

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.chain import Chain
from crdt.header import ChainId, Cover, Epoch
from mesh.core import wire
from mesh.core.errors import PeerError
from mesh.core.persisting import load_header, stored_header
from mesh.core.vectors import Cursor, Held


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
HEADS = {
    b"a" * 8: (Held(Epoch(2, b""), 3, b"r" * 8),),
    b"b" * 8: (Held(Epoch(2, b"e" * 8), 3, b"r" * 8), Held(Epoch(1, b"d" * 8), 9, b"s" * 8)),
    b"c" * 8: (),
}
FRAMES: dict[str, wire.Frame] = {
    "sync": wire.Sync(
        b"m" * 16,
        b"r" * 16,
        {"mesh": b"d" * 16, "f" * 32: bytes(16)},
        every=False,
        must=True,
        number=7,
    ),
    "probe": wire.Probe(b"d" * 16),
    "recent": wire.Recent(b"r" * 16, b"d" * 16, {b"c" * 8: 1, b"d" * 8: 1 << 127}, reply=True),
    "same": wire.Same(),
    "told": wire.Told(7),
    "heads": wire.Heads("mesh", wire.FIRST, wire.LAST, HEADS),
    "named heads": wire.Heads("", wire.FIRST, wire.FIRST, HEADS),
    "deltas": wire.Deltas((CHAIN.since(CHAIN.epoch, 0),)),
    "want": wire.Want(7, VECTOR, {b"c" * 8: Cursor(Epoch(2, b"e" * 8), 9)}),
    "answer": wire.Answer(7, (CHAIN.since(CHAIN.epoch, 0), CHAIN.snapshot())),
    "part": wire.Part(7, CHAIN.snapshot(), True, 3),
    "more": wire.More(7),
    "done": wire.Done(7),
    "have": wire.Have((b"h" * 32,)),
    "ask": wire.Ask((b"h" * 32,)),
    "statements": wire.Statements((b"blob",)),
}


def meant(name: str, version: int) -> wire.Frame:
    """What is read of a frame: one of version 1 does not say that it is an answer."""
    frame = FRAMES[name]
    if version == 1 and isinstance(frame, wire.Answer):
        return wire.Deltas(frame.deltas)
    return frame


GOLDEN = {
    "sync": "dba91a9cb82ff812f37343e671cf7222",
    "probe": "32fd64120057853a57d1799aa1671a68",
    "recent": "d356965e8fd313f2a336a34802c2bf52",
    "same": "7bb5b81d7aac596c09f36203255dc0be",
    "told": "5be4fa5361df93bd1ea560d1e8c99127",
    "heads": "6987666af7b776d709b8945f69e98ddb",
    "named heads": "1be8287817bff1a15e9704eedea60fc0",
    "deltas": "21a542a3d435ff340417eb4fdebfec04",
    "answer": "8ccb8149b4400e65b26eb795fcd341be",
    "want": "73f754e97bc21d071cb6e1ded9ae6962",
    "part": "cae18502f3821eaf669f14d1c2bbf070",
    "more": "71014944abb3b78e7661dbef44f43e7f",
    "done": "c889d8020115d9d0368d215aeefb5017",
    "have": "db4befcd9268e4d2d8db8831d4d8d877",
    "ask": "23794a782e2a68594959eb70a4a5cd5d",
    "statements": "7a0d9c29eb5c15c83adecd96af2e1b9b",
}
"""First 16 bytes of SHA-256 over the frame's bytes, wire version 1: a change breaks older nodes."""
SECOND = {
    "answer": "3076c1f61f5c9414a9dd871ef4763348",
    "heads": "19ae49bcf0b6b49fb59770dd77a0bdef",
    "named heads": "a4b29ee1ee46f5daf449998769633ec3",
}
"""The same of version 2, where it has another form. Of all other frames only the number differs."""


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_round_trips(name: str) -> None:
    for version in range(wire.SPOKEN.lowest, wire.SPOKEN.highest + 1):
        assert wire.decode(wire.encode(FRAMES[name], version)) == meant(name, version)


@pytest.mark.parametrize("name", FRAMES)
def test_the_bytes_of_a_frame_are_pinned(name: str) -> None:
    first, second = wire.encode(FRAMES[name], 1), wire.encode(FRAMES[name], 2)
    assert sha256(first).hexdigest()[:32] == GOLDEN[name]
    if name in SECOND:
        assert sha256(second).hexdigest()[:32] == SECOND[name]
    else:
        assert second == first[:1] + b"\x02" + first[2:]


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


spans = st.tuples(st.integers(1, 9), st.integers(0, 4)).map(
    lambda span: wire.Versions(span[0], span[0] + span[1])
)


@given(spans, spans)
def test_two_nodes_speak_the_highest_version_that_both_do(
    a: wire.Versions, b: wire.Versions
) -> None:
    both = set(range(a.lowest, a.highest + 1)) & set(range(b.lowest, b.highest + 1))
    assert a.common(b) == b.common(a) == max(both, default=None)


@given(st.sampled_from(sorted(FRAMES)), st.integers(0, 300))
def test_a_zipped_frame_is_the_frame(name: str, count: int) -> None:
    frame = FRAMES[name]
    if isinstance(frame, wire.Statements):
        frame = wire.Statements(tuple(b"statement %d" % i for i in range(count)))
    data = wire.encode(frame)
    assert wire.decode(wire.zipped(data)) == frame
    assert len(wire.zipped(data)) <= len(data)


@given(st.sampled_from(sorted(FRAMES)), st.integers(0, 3000), st.randoms(use_true_random=False))
def test_the_kind_of_a_frame_is_seen_at_a_glance(name: str, count: int, chance: Random) -> None:
    frame = FRAMES[name]
    if isinstance(frame, wire.Statements):
        statement = b"statement" * chance.randrange(5) + chance.randbytes(chance.randrange(40))
        frame = wire.Statements((statement,) * count)
    data = wire.encode(frame)
    _, kind, *_ = msgpack.unpackb(data)
    assert wire.kind_of(data) == wire.kind_of(wire.zipped(data)) == kind


@given(st.binary(max_size=40))
def test_a_glance_at_anything_is_safe(data: bytes) -> None:
    wire.kind_of(data)
    wire.kind_of(msgpack.packb([wire.WIRE_VERSION, wire.ZIPPED, data]))
    wire.kind_of(msgpack.packb([wire.WIRE_VERSION, wire.ZIPPED, zlib.compress(data)]))


def test_what_is_zipped_is_bounded_and_zipped_once() -> None:
    def frame(inner: bytes) -> bytes:
        return bytes(msgpack.packb([wire.WIRE_VERSION, wire.ZIPPED, inner]))

    whole = zlib.compress(wire.encode(wire.Done(1)))
    assert wire.decode(frame(whole)) == wire.Done(1)
    assert wire.decode(frame(zlib.compress(frame(whole)))) is None
    for hostile in (
        zlib.compress(bytes(wire.FRAME_BYTES_MAX + 1), 9),
        zlib.compress(wire.encode(wire.Ask((b"h" * 32,) * (wire.FRAME_BYTES_MAX // 32)))),
        whole[:-1],
        b"",
        b"no zlib",
        zlib.compress(b""),
    ):
        with pytest.raises(PeerError):
            wire.decode(frame(hostile))


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
