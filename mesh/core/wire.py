"""The frames of `/weft/push/1` and `/weft/sync/1`: bounded, versioned msgpack.

A frame is `[version, kind, …]`. A version may be added to: kinds and trailing fields that are not
known are ignored, as is a frame of another version. What an older node would misread makes a new
version: a link begins with what both ends speak (`Versions`), and all frames on it are of the
highest version that both do. So a mesh is upgraded node by node, a version at a time.

A frame that is malformed raises PeerError and costs its sender. Sizes are checked before decoding.

    SYNC       mesh, roster digest, [[shard, digest], …], every, must, number
                                                             "this is what I keep for you"
    PROBE      digest                                        of all that both hold: "you, too?"
    RECENT     roster digest, rest, named, reply             "apart from these chains, this"
    SAME       number                                        equal, nothing to do
    TOLD       number                                        the heads of all that differs came
    HEADS      shard, first, last, vector
    DELTAS     [delta, …]                                    pushes, and what is given unasked
    WANT       id, vector, [[chain, counter, nonce, seq], …] "send me these, I hold and staged that"
    ANSWER     id, [delta, …]                                some of the answer to WANT id
    PART       id, delta, more, index                        a piece of a large delta of it
    MORE       id                                            credit for one more piece
    DONE       id                                            the answer to WANT id is complete
    HAVE       [statement hash, …]                           the roster's
    ASK        [statement hash, …]
    STATEMENTS [statement, …]
    REST       agreed                                        "push no more to each other here?"
    WAKE                                                     "push again"
    ZIPPED     bytes                                         another frame, compressed (RFC 1950)

Vectors are in `vectors`. Version 2 differs from version 1 in two kinds: its HEADS have columns, and
version 1 has DELTAS in place of ANSWER, for which a push can be taken. `named` is, chain by chain,
its 8 bytes and 16 of its weight. Digests and weights are the low 16 bytes of the lattice's sums.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from crdt.delta import Delta
from crdt.header import NONCE_BYTES, Epoch
from crdt.packed import pack, unpack
from mesh.core.errors import PeerError
from mesh.core.vectors import (
    SHORT_BYTES,
    VECTOR_MAX,
    Cursor,
    Vector,
    bytes_of,
    list_of,
    number_of,
    pack_columns,
    pack_heads,
    pack_vector,
    unpack_columns,
    unpack_heads,
    unpack_vector,
)

T = TypeVar("T")


class Versions(NamedTuple):
    """The wire versions that a node speaks: all from `lowest` to `highest`."""

    lowest: int
    highest: int

    def common(self, other: Versions) -> int | None:
        """The highest that both speak; None: there is none."""
        highest = min(self.highest, other.highest)
        return highest if highest >= max(self.lowest, other.lowest) else None

    def __str__(self) -> str:
        single = self.lowest == self.highest
        return str(self.lowest) if single else f"{self.lowest} to {self.highest}"


WIRE_VERSION: Final = 2
SPOKEN: Final = Versions(WIRE_VERSION - 1, WIRE_VERSION)
"""By this node. A release that adds a version speaks it beside the one before, and pins that one:
see `tests/releases`."""
FRAME_BYTES_MAX: Final = 4 << 20
"""The transport refuses longer frames before it reads them."""
CHUNK_BYTES = 256 << 10
"""What a frame of deltas is filled to: small enough that a link stays responsive."""
HEADER_BYTES, PAIR_BYTES = 330, 4
"""About what a delta takes beside its records, and a record beside its key and its entry."""
PUT_BYTES_MIN: Final = 16
"""Of a record with its key and its entry: less than any that says anything."""
DELTAS_MAX: Final = CHUNK_BYTES // HEADER_BYTES
STATEMENTS_MAX = 1000
"""In one frame: each is a signature to verify, 0.1 ms, and nothing else is done meanwhile."""
SHARDS_MAX = 20_000
DIGEST_BYTES: Final = 16
"""Enough between members, who could lie about a digest anyway: what is held is proved by roots."""
ZIP_BYTES_MIN: Final = 512
"""Shorter frames are mostly hashes, which do not shrink."""
ZIP_SHORT_BYTES: Final = 8192
_ZIP_SHORT_MEMORY: Final = 5
"""zlib's `memLevel` for frames up to that: half the time, most of which goes into clearing memory,
and they come out as short."""
NAMED_MAX: Final = 64
"""Chains that one RECENT names: those that the sender knows, and those that it was told of."""
FIRST, LAST = b"", b"\xff" * (SHORT_BYTES + 1)
"""The range of all chain ids."""

SYNC, SAME, HEADS, DELTAS, WANT, PART, MORE, DONE, HAVE, ASK, STATEMENTS = range(1, 12)
PROBE, RECENT, TOLD, ZIPPED, REST, WAKE, ANSWER = range(12, 19)
CONTAINERS_MAX: Final = 20 * VECTOR_MAX
"""Lists in a frame: the largest is a vector of chains with sixteen branches each."""
_ARRAY: Final = 0x90
"""msgpack: an array of up to 15; version and kind are one byte each after it."""
_BIN_HEADS: Final = {0xC4: 2, 0xC5: 3, 0xC6: 5}
"""msgpack: the type byte of a bytes object -> how many bytes stand before what is in it."""
_GLANCE_BYTES: Final = 512
"""More than the tables at the start of a compressed stream take."""


@dataclass(frozen=True, slots=True)
class Sync:
    mesh: bytes
    roster: bytes
    shards: dict[str, bytes]
    every: bool
    """whether the sender keeps every shard, those that are empty too"""
    must: bool
    """whether it is to be answered even if it crosses a SYNC of the receiver"""
    number: int
    """above 0; the answer names it"""


class Probe(NamedTuple):
    digest: bytes


@dataclass(frozen=True, slots=True)
class Recent:
    """The digest of all that both hold but the `named` chains (and those named to the sender).

    `named` has the weights of the chains that changed last, by their short ids. A `reply` leaves
    out those that weigh here what the receiver said that they weigh there.
    """

    roster: bytes
    rest: bytes
    named: dict[bytes, int]
    reply: bool


class Same(NamedTuple):
    number: int = 0
    """of the SYNC that this answers; 0: it answers a PROBE"""


class Told(NamedTuple):
    number: int
    """of the SYNC that this answers"""


@dataclass(frozen=True, slots=True)
class Heads:
    """What the sender holds of `shard` among chain ids in (first, last].

    With the shard empty the vector is of some chains of any shard, and tells of no others.
    """

    shard: str
    first: bytes
    last: bytes
    vector: Vector


class Deltas(NamedTuple):
    deltas: tuple[Delta, ...]


@dataclass(frozen=True, slots=True)
class Want:
    """A question for chains: what is held of each, and how far some are staged."""

    id: int
    vector: Vector
    staged: dict[bytes, Cursor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    id: int
    deltas: tuple[Delta, ...]


@dataclass(frozen=True, slots=True)
class Part:
    id: int
    delta: Delta
    more: bool
    index: int
    """how many pieces of this answer came before: a full queue loses frames, honestly"""


@dataclass(frozen=True, slots=True)
class More:
    id: int


@dataclass(frozen=True, slots=True)
class Done:
    id: int


@dataclass(frozen=True, slots=True)
class Have:
    hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Statements:
    blobs: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Rest:
    """May nothing be pushed on this link? `agreed`: the answer, and so it is."""

    agreed: bool


@dataclass(frozen=True, slots=True)
class Wake:
    """Push on this link again."""


Frame: TypeAlias = (
    Sync
    | Probe
    | Recent
    | Same
    | Told
    | Heads
    | Deltas
    | Want
    | Answer
    | Part
    | More
    | Done
    | Have
    | Ask
    | Statements
    | Rest
    | Wake
)


def encode(frame: Frame, version: int = WIRE_VERSION) -> bytes:
    """The bytes of a frame, of a version that is spoken here."""
    return pack([version, *_fields(frame, version)])


def zipped(data: bytes, version: int = WIRE_VERSION) -> bytes:
    """A frame of that version for where bytes count more than time: compressed, if that makes it
    shorter.

    Names, ids and keys of a frame repeat each other: half of it goes, at 100 MB/s.
    """
    if len(data) < ZIP_BYTES_MIN:
        return data
    packed = pack([version, ZIPPED, _compressed(data)])
    return packed if len(packed) < len(data) else data


def _compressed(data: bytes) -> bytes:
    memory = _ZIP_SHORT_MEMORY if len(data) <= ZIP_SHORT_BYTES else zlib.DEF_MEM_LEVEL
    squeezer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, memory)
    return squeezer.compress(data) + squeezer.flush()


def unzipped(data: bytes) -> bytes:
    """What was compressed, if it was at most a frame long. Raises ValueError."""
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(data, FRAME_BYTES_MAX)
    except zlib.error as error:
        raise ValueError(f"zipped: {error}") from None
    if not inflater.eof:
        raise ValueError("zipped: cut off or too long")
    return plain


def _fields(frame: Frame, version: int) -> list[object]:
    match frame:
        case Deltas():  # most of all
            return [DELTAS, [delta.pack() for delta in frame.deltas]]
        case Sync():
            shards = [[_pack_shard(shard), digest] for shard, digest in frame.shards.items()]
            return [SYNC, frame.mesh, frame.roster, shards, frame.every, frame.must, frame.number]
        case Probe():
            return [PROBE, frame.digest]
        case Recent():
            return [RECENT, frame.roster, frame.rest, _pack_named(frame.named), frame.reply]
        case Same():
            return [SAME, frame.number]
        case Told():
            return [TOLD, frame.number]
        case Heads():
            packed = (pack_heads if version == 1 else pack_columns)(frame.vector)
            return [HEADS, _pack_shard(frame.shard), frame.first, frame.last, packed]
        case Want():
            staged = [[short, *at.epoch, at.seq] for short, at in frame.staged.items()]
            return [WANT, frame.id, pack_vector(frame.vector), staged]
        case Answer():
            deltas = [delta.pack() for delta in frame.deltas]
            return [DELTAS, deltas] if version == 1 else [ANSWER, frame.id, deltas]
        case Part():
            return [PART, frame.id, frame.delta.pack(), frame.more, frame.index]
        case More():
            return [MORE, frame.id]
        case Done():
            return [DONE, frame.id]
        case Have():
            return [HAVE, list(frame.hashes)]
        case Ask():
            return [ASK, list(frame.hashes)]
        case Statements():
            return [STATEMENTS, list(frame.blobs)]
        case Rest():
            return [REST, frame.agreed]
        case Wake():
            return [WAKE]


def _pack_shard(shard: str) -> str | bytes:
    """A VPC's id in 16 bytes, everything else as it is."""
    try:
        packed = bytes.fromhex(shard)
    except ValueError:
        return shard
    return packed if len(packed) == 16 and packed.hex() == shard else shard


def _pack_named(named: dict[bytes, int]) -> bytes:
    return b"".join(short + weight.to_bytes(DIGEST_BYTES, "big") for short, weight in named.items())


def decode(data: bytes, unpack_delta: Callable[[object], Delta] = Delta.unpack) -> Frame | None:
    """The frame in `data`; None for a kind or version this node does not know.

    `unpack_delta`: what unpacks those of DELTAS and ANSWER. Raises PeerError.
    """
    if len(data) > FRAME_BYTES_MAX:
        raise PeerError(f"frame of {len(data)} bytes")
    try:
        raw = _unpacked(data)
        if raw[1] == ZIPPED and _is_spoken(raw):
            raw = _unpacked(unzipped(bytes_of(raw[2])))
        if not _is_spoken(raw):
            return None
        if raw[1] == DELTAS:
            return Deltas(tuple(map(unpack_delta, list_of(raw[2], DELTAS_MAX))))
        if raw[1] == ANSWER:
            return Answer(number_of(raw[2]), tuple(map(unpack_delta, list_of(raw[3], DELTAS_MAX))))
        if raw[0] == 1 and raw[1] == HEADS:
            return _heads_in_rows(raw[2:])
        decoder = _DECODERS.get(raw[1])
        return None if decoder is None else decoder(raw[2:])
    except (ValueError, TypeError, IndexError, RecursionError) as error:
        raise PeerError(f"frame: {error}") from None


@dataclass(frozen=True, slots=True)
class Codec:
    """How a node's frames become bytes of a version that it speaks, and back."""

    speaks: Versions
    encode: Callable[[Frame, int], bytes]
    decode: Callable[[bytes], Frame | None]
    """as `decode`; what is in a frame is never changed: nodes of one process may share it"""


CODEC: Final = Codec(SPOKEN, encode, decode)


def kind_of(data: bytes) -> int | None:
    """The kind of a frame at a glance, of a zipped one that of the frame in it.

    For figures about traffic: it checks nothing, and answers None where it sees no kind.
    """
    if len(data) > 3 and data[2] == ZIPPED and data[3] in _BIN_HEADS:
        start = 3 + _BIN_HEADS[data[3]]
        try:
            data = zlib.decompressobj().decompress(data[start : start + _GLANCE_BYTES], 3)
        except zlib.error:
            return None
    return data[2] if len(data) > 2 and data[0] & 0xF0 == _ARRAY else None


def _unpacked(data: bytes) -> list[Any]:
    raw = unpack(data, CONTAINERS_MAX)
    if not isinstance(raw, list) or len(raw) < 2 or type(raw[0]) is not int:
        raise PeerError("frame: not a list with version and kind")
    return raw


def _is_spoken(raw: list[Any]) -> bool:
    return bool(SPOKEN.lowest <= raw[0] <= SPOKEN.highest)


def _sync(raw: Sequence[object]) -> Sync:
    shards = list_of(raw[2], SHARDS_MAX)
    pairs = [list_of(pair, 2) for pair in shards]
    return Sync(
        bytes_of(raw[0], 16),
        bytes_of(raw[1], DIGEST_BYTES),
        {_shard(shard): bytes_of(digest, DIGEST_BYTES) for shard, digest in pairs},
        bool(raw[3]),
        bool(raw[4]),
        number_of(raw[5]),
    )


def _recent(raw: Sequence[object]) -> Recent:
    named = bytes_of(raw[2])
    step = SHORT_BYTES + DIGEST_BYTES
    if len(named) % step or len(named) > NAMED_MAX * step:
        raise ValueError("named chains")
    weights = {
        named[at : at + SHORT_BYTES]: int.from_bytes(named[at + SHORT_BYTES : at + step], "big")
        for at in range(0, len(named), step)
    }
    return Recent(
        bytes_of(raw[0], DIGEST_BYTES), bytes_of(raw[1], DIGEST_BYTES), weights, bool(raw[3])
    )


def _heads(raw: Sequence[object]) -> Heads:
    return _heads_of(raw, unpack_columns(raw[3]))


def _heads_in_rows(raw: Sequence[object]) -> Heads:
    return _heads_of(raw, unpack_heads(raw[3]))


def _heads_of(raw: Sequence[object], vector: Vector) -> Heads:
    first, last = raw[1], raw[2]
    if not isinstance(first, bytes) or not isinstance(last, bytes):
        raise ValueError("range of chain ids")
    shard = "" if raw[0] == "" else _shard(raw[0])
    return Heads(shard, first, last, vector)


def _want(raw: Sequence[object]) -> Want:
    staged: dict[bytes, Cursor] = {}
    for item in list_of(raw[2], VECTOR_MAX):
        short, counter, nonce, seq = list_of(item, 4)
        epoch = Epoch(number_of(counter), bytes_of(nonce, NONCE_BYTES))
        staged[bytes_of(short, SHORT_BYTES)] = Cursor(epoch, number_of(seq))
    return Want(number_of(raw[0]), unpack_vector(raw[1]), staged)


def _part(raw: Sequence[object]) -> Part:
    # A piece holds some of the puts: it is checked when the whole is together.
    return Part(
        number_of(raw[0]), Delta.unpack(raw[1], piece=True), bool(raw[2]), number_of(raw[3])
    )


def _statements(raw: Sequence[object]) -> Statements:
    blobs = list_of(raw[0], STATEMENTS_MAX)
    return Statements(tuple(bytes_of(blob) for blob in blobs))


_DECODERS: Final[dict[object, Callable[[Sequence[object]], Frame]]] = {
    SYNC: _sync,
    PROBE: lambda raw: Probe(bytes_of(raw[0], DIGEST_BYTES)),
    RECENT: _recent,
    SAME: lambda raw: Same(number_of(raw[0])),
    TOLD: lambda raw: Told(number_of(raw[0])),
    HEADS: _heads,
    WANT: _want,
    PART: _part,
    MORE: lambda raw: More(number_of(raw[0])),
    DONE: lambda raw: Done(number_of(raw[0])),
    HAVE: lambda raw: Have(_hashes(raw[0])),
    ASK: lambda raw: Ask(_hashes(raw[0])),
    STATEMENTS: _statements,
    REST: lambda raw: Rest(bool(raw[0])),
    WAKE: lambda raw: Wake(),
}


def _shard(value: object) -> str:
    if isinstance(value, bytes) and len(value) == 16:
        return value.hex()
    if not isinstance(value, str) or not 0 < len(value) <= 64:
        raise ValueError("shard")
    return value


def _hashes(value: object) -> tuple[bytes, ...]:
    return tuple(bytes_of(item, 32) for item in list_of(value, FRAME_BYTES_MAX))


def statement_groups(blobs: Iterable[bytes]) -> Iterable[list[bytes]]:
    """Statements in groups that a frame may hold."""
    return chunks((blob, max(len(blob), CHUNK_BYTES // STATEMENTS_MAX)) for blob in blobs)


def chunks(items: Iterable[tuple[T, int]]) -> Iterable[list[T]]:
    """Group (deltas, bytes) so that each group is about CHUNK_BYTES at most."""
    group: list[T] = []
    size_bytes = 0
    for item, item_bytes in items:
        if group and size_bytes + item_bytes > CHUNK_BYTES:
            yield group
            group, size_bytes = [], 0
        group.append(item)
        size_bytes += item_bytes
    if group:
        yield group


def _bytes_of(delta: Delta) -> int:
    if delta.payload:
        return len(delta.payload)
    if len(delta.puts) > CHUNK_BYTES // PUT_BYTES_MIN:
        return len(delta.puts) * PUT_BYTES_MIN  # too large for a frame, however long they are
    parts = (*delta.puts, *delta.puts.values(), *delta.deletes, *delta.deletes.values())
    return sum(map(len, parts)) + PAIR_BYTES * len(parts) // 2


def size_of(delta: Delta) -> int:
    """About the bytes of `delta` on the wire."""
    covers = 40 * len(delta.header.covers)
    return HEADER_BYTES + covers + len(delta.keep or b"") + _bytes_of(delta)
