"""The frames of `/weft/push/1` and `/weft/sync/1`: bounded, versioned msgpack.

A frame is `[version, kind, …]`. Kinds and trailing fields that a newer version adds are ignored;
a frame that is malformed raises PeerError and costs its sender. Sizes are checked before decoding.

    SYNC       mesh, roster digest, [[shard, digest], …]     "this is what I hold"
    SAME       [shard, …]                                    equal, nothing to do
    HEADS      shard, first, last, [[chain, [[epoch…, head, root], …]], …]
    DELTAS     [delta, …]                                    pushes, and small answers
    WANT       id, [[chain, [[epoch…, head, root], …]], …]   "send me these, I hold that"
    PART       id, delta, more, index                        a piece of a large answer
    MORE       id                                            credit for one more piece
    DONE       id                                            the answer to WANT id is complete
    HAVE       [statement hash, …]                           the roster's
    ASK        [statement hash, …]
    STATEMENTS [statement, …]

`chain` is the first 8 bytes of the chain id's hash, `root` the first 8 bytes of the root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, TypeVar

import msgpack

from crdt.delta import Delta
from crdt.header import NONCE_BYTES, Epoch
from mesh.core.errors import PeerError

T = TypeVar("T")

WIRE_VERSION = 1
FRAME_BYTES_MAX = 4 << 20
"""The transport refuses longer frames before it reads them."""
CHUNK_BYTES = 256 << 10
"""What a frame of deltas is filled to: small enough that a link stays responsive."""
VECTOR_MAX = 8192
"""Chains in one HEADS or WANT frame; longer vectors are split by ranges of chain ids."""
HEADER_BYTES, PAIR_BYTES = 330, 4
"""About what a delta takes beside its records, and a record beside its key and its entry."""
SHARDS_MAX = 20_000
SHORT_BYTES = 8
ROOT_BYTES = 8
FIRST, LAST = b"", b"\xff" * (SHORT_BYTES + 1)
"""The range of all chain ids."""

SYNC, SAME, HEADS, DELTAS, WANT, PART, MORE, DONE, HAVE, ASK, STATEMENTS = range(1, 12)


class Held(NamedTuple):
    """One branch of a chain as heads are told: epoch, head and the start of its root."""

    epoch: Epoch
    head: int
    root: bytes


Vector: TypeAlias = dict[bytes, tuple[Held, ...]]
"""chain id hash (8 bytes) -> branches held, latest epoch first"""


@dataclass(frozen=True, slots=True)
class Sync:
    mesh: bytes
    roster: bytes
    shards: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Same:
    shards: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Heads:
    """What the sender holds of `shard` among chain ids in (first, last]."""

    shard: str
    first: bytes
    last: bytes
    vector: Vector


@dataclass(frozen=True, slots=True)
class Deltas:
    deltas: tuple[Delta, ...]


@dataclass(frozen=True, slots=True)
class Want:
    id: int
    vector: Vector


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


Frame: TypeAlias = (
    Sync | Same | Heads | Deltas | Want | Part | More | Done | Have | Ask | Statements
)


def encode(frame: Frame) -> bytes:
    """The bytes of a frame."""
    return bytes(msgpack.packb([WIRE_VERSION, *_fields(frame)]))


def _fields(frame: Frame) -> list[object]:
    match frame:
        case Sync():
            return [SYNC, frame.mesh, frame.roster, sorted(map(list, frame.shards.items()))]
        case Same():
            return [SAME, list(frame.shards)]
        case Heads():
            return [HEADS, frame.shard, frame.first, frame.last, _pack_vector(frame.vector)]
        case Deltas():
            return [DELTAS, [delta.pack() for delta in frame.deltas]]
        case Want():
            return [WANT, frame.id, _pack_vector(frame.vector)]
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


def _pack_vector(vector: Vector) -> list[object]:
    return [
        [short, [[*held.epoch, held.head, held.root] for held in branches]]
        for short, branches in vector.items()
    ]


def decode(data: bytes) -> Frame | None:
    """The frame in `data`; None for a kind or version this node does not know.

    Raises PeerError.
    """
    if len(data) > FRAME_BYTES_MAX:
        raise PeerError(f"frame of {len(data)} bytes")
    try:
        raw = msgpack.unpackb(data, strict_map_key=False)
        if not isinstance(raw, list) or len(raw) < 2 or type(raw[0]) is not int:
            raise PeerError("frame: not a list with version and kind")
        if raw[0] != WIRE_VERSION or raw[1] not in _DECODERS:
            return None
        return _DECODERS[raw[1]](raw[2:])
    except (ValueError, TypeError, IndexError, RecursionError) as error:
        raise PeerError(f"frame: {error}") from None
    except msgpack.exceptions.UnpackException as error:
        raise PeerError(f"frame: {type(error).__name__}") from None


def _sync(raw: Sequence[object]) -> Sync:
    shards = _list(raw[2], SHARDS_MAX)
    pairs = [_list(pair, 2) for pair in shards]
    return Sync(
        _bytes(raw[0], 16),
        _bytes(raw[1], 32),
        {_shard(shard): _bytes(digest, 32) for shard, digest in pairs},
    )


def _same(raw: Sequence[object]) -> Same:
    return Same(tuple(_shard(shard) for shard in _list(raw[0], SHARDS_MAX)))


def _heads(raw: Sequence[object]) -> Heads:
    first, last = raw[1], raw[2]
    if not isinstance(first, bytes) or not isinstance(last, bytes):
        raise ValueError("range of chain ids")
    return Heads(_shard(raw[0]), first, last, _vector(raw[3]))


def _deltas(raw: Sequence[object]) -> Deltas:
    return Deltas(tuple(map(Delta.unpack, _list(raw[0], FRAME_BYTES_MAX))))


def _want(raw: Sequence[object]) -> Want:
    return Want(_id(raw[0]), _vector(raw[1]))


def _part(raw: Sequence[object]) -> Part:
    # A piece holds some of the puts: it is checked when the whole is together.
    return Part(_id(raw[0]), Delta.unpack(raw[1], piece=True), bool(raw[2]), _id(raw[3]))


def _have(raw: Sequence[object]) -> Have:
    return Have(_hashes(raw[0]))


def _ask(raw: Sequence[object]) -> Ask:
    return Ask(_hashes(raw[0]))


def _statements(raw: Sequence[object]) -> Statements:
    blobs = _list(raw[0], FRAME_BYTES_MAX)
    return Statements(tuple(_bytes(blob) for blob in blobs))


_DECODERS: dict[object, Callable[[Sequence[object]], Frame]] = {
    SYNC: _sync,
    SAME: _same,
    HEADS: _heads,
    DELTAS: _deltas,
    WANT: _want,
    PART: _part,
    MORE: lambda raw: More(_id(raw[0])),
    DONE: lambda raw: Done(_id(raw[0])),
    HAVE: _have,
    ASK: _ask,
    STATEMENTS: _statements,
}


def _list(value: object, count_max: int) -> list[object]:
    if not isinstance(value, list) or len(value) > count_max:
        raise ValueError("not a list within bounds")
    return value


def _bytes(value: object, size_bytes: int | None = None) -> bytes:
    if not isinstance(value, bytes) or (size_bytes is not None and len(value) != size_bytes):
        raise ValueError("not bytes of the right size")
    return value


def _shard(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 64:
        raise ValueError("shard")
    return value


def _id(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("id")
    return value


def _hashes(value: object) -> tuple[bytes, ...]:
    return tuple(_bytes(item, 32) for item in _list(value, FRAME_BYTES_MAX))


def _vector(value: object) -> Vector:
    vector: Vector = {}
    for item in _list(value, VECTOR_MAX):
        short, branches = _list(item, 2)
        vector[_bytes(short, SHORT_BYTES)] = tuple(map(_held, _list(branches, 64)))
    return vector


def _held(value: object) -> Held:
    counter, nonce, head, root = _list(value, 4)
    return Held(
        Epoch(_id(counter), _bytes(nonce, NONCE_BYTES)), _id(head), _bytes(root, ROOT_BYTES)
    )


def chunks(items: Iterable[tuple[T, int]]) -> Iterable[list[T]]:
    """Group (deltas or statements, bytes) so that each group is about CHUNK_BYTES at most."""
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
    parts = (*delta.puts, *delta.puts.values(), *delta.deletes, *delta.deletes.values())
    return sum(map(len, parts)) + PAIR_BYTES * len(parts) // 2


def size_of(delta: Delta) -> int:
    """About the bytes of `delta` on the wire."""
    covers = 40 * len(delta.header.covers)
    return HEADER_BYTES + covers + len(delta.keep or b"") + _bytes_of(delta)
