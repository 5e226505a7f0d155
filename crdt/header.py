"""What names a chain, and the signed header that ends each of its flushes.

A header signs the whole state of a chain at `hi`: whoever holds the entries can check them against
`root` without having met the author, so that any peer can serve any chain (Kleppmann 2022, with one
signature a flush in place of one an operation).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from typing import Final, NamedTuple, TypeAlias

import msgpack

from crdt.entry import SEQ_MAX
from crdt.packed import pack

HASH_BYTES: Final = 32
NONCE_BYTES: Final = 8
SIGNATURE_BYTES: Final = 64
COVERS_MAX: Final = 64
"""Earlier epochs that a header names; older counters count as covered whole."""

HEADER_BYTES_MAX: Final = 8192
"""Twice what the longest header takes, for the fields of newer versions."""

_DOMAIN: Final = b"weft-flush-1"
_WHOLE_MAX: Final = (1 << 63) - 1
_TYPES: Final = (bytes, str, int, bytes, int, int, int, int, bytes, bytes, bytes, list)
_SIZES_BYTES: Final = (16, NONCE_BYTES, HASH_BYTES, HASH_BYTES, HASH_BYTES)
NO_ROOT: Final = bytes(HASH_BYTES)
"""`prev_root` of an epoch's first flush: nothing precedes it."""

Sign: TypeAlias = Callable[[bytes], bytes]
"""message -> 64-byte Ed25519 signature of the chain's node."""


class ChainId(NamedTuple):
    """What one node has written in one shard."""

    node: bytes
    shard: str

    def short(self) -> bytes:
        """8 bytes that stand for the chain in vectors of heads."""
        return _short(self)


class Epoch(NamedTuple):
    """One life of a chain's writer; later counters come after, the nonce tells clones apart."""

    counter: int
    nonce: bytes


class Cover(NamedTuple):
    """An earlier epoch of the chain: its writes up to `head` are included in this one.

    Up to `shared` the two are the same history, so that a holder at a head <= `shared` can be sent
    an ordinary delta. Beyond it the author took a tail up anew (a restored backup met a peer).
    """

    epoch: Epoch
    head: int
    shared: int


class Header(NamedTuple):
    """The signed end of a flush `(lo, hi]`: `entries` of them in 2^`bits` buckets under `root`.

    `prev_root` is the root at `lo`; `payload_hash` the SHA-256 of the flush as first sent. `packed`
    is what was signed, fields that a newer version added included; an author leaves it to `signed`.
    A tuple and not a dataclass: one is made for each flush that comes.
    """

    chain: ChainId
    epoch: Epoch
    lo: int
    hi: int
    entries: int
    bits: int
    prev_root: bytes
    payload_hash: bytes
    root: bytes
    covers: tuple[Cover, ...] = ()
    packed: bytes = b""
    signature: bytes = b""

    def message(self, mesh: bytes) -> bytes:
        """The bytes that are signed, for the mesh of that id."""
        return _DOMAIN + mesh + self.packed

    def signed(self, mesh: bytes, sign: Sign) -> Header:
        """The header with `packed` and `signature` made from its fields."""
        fields = [
            *self.chain,
            *self.epoch,
            *self[2:9],
            [[*cover.epoch, cover.head, cover.shared] for cover in self.covers],
        ]
        packed = pack(fields)
        return Header(*self[:10], packed, sign(_DOMAIN + mesh + packed))

    def is_same(self, other: Header) -> bool:
        """Whether both are one signed header, to the byte."""
        return self.signature == other.signature and self.packed == other.packed

    def covers_head(self, epoch: Epoch, head: int) -> bool:
        """Whether everything up to `head` of the earlier `epoch` is included here."""
        for cover in self.covers:
            if cover.epoch == epoch:
                return cover.head >= head
        return len(self.covers) == COVERS_MAX and epoch.counter < min(
            cover.epoch.counter for cover in self.covers
        )

    def shared_head(self, epoch: Epoch) -> int:
        """The head up to which `epoch` is a prefix of this chain; 0 when it is none."""
        if epoch == self.epoch:
            return self.hi
        return next((cover.shared for cover in self.covers if cover.epoch == epoch), 0)

    def pack(self) -> list[object]:
        """The signed header as plain msgpack values (wire and store form)."""
        return [self.packed, self.signature]

    @classmethod
    def unpack(cls, raw: object) -> Header:
        """The reverse of `pack`. Raises ValueError on anything malformed."""
        if not isinstance(raw, list) or len(raw) < 2:
            raise ValueError("header: not a list of 2")
        packed, signature = raw[0], _blob(raw[1], SIGNATURE_BYTES)
        if not isinstance(packed, bytes) or len(packed) > HEADER_BYTES_MAX:
            raise ValueError("header: not bytes within bounds")
        try:
            fields = msgpack.unpackb(packed)
        except (TypeError, msgpack.exceptions.UnpackException) as error:
            raise ValueError(f"header: {type(error).__name__}") from None
        if not isinstance(fields, list) or len(fields) < 12:
            raise ValueError("header: not a list of 12")
        # All types and all sizes at once: this is done to every flush that comes.
        if tuple(map(type, fields[:12])) != _TYPES:
            raise ValueError("header: types")
        node, shard, counter, nonce, lo, hi, entries, bits, *rest = fields[:12]
        prev, payload, root, covers = rest
        if (
            tuple(map(len, (node, nonce, prev, payload, root))) != _SIZES_BYTES
            or not 0 < len(shard) <= 64
        ):
            raise ValueError("header: sizes")
        if not 0 <= lo < hi <= SEQ_MAX or min(counter, entries, bits) < 0:
            raise ValueError("header: empty interval, or numbers below 0")
        if max(counter, entries, bits) > _WHOLE_MAX or len(covers) > COVERS_MAX:
            raise ValueError("header: numbers or covers out of bounds")
        return cls(
            ChainId(node, shard),
            Epoch(counter, nonce),
            lo,
            hi,
            entries,
            bits,
            prev,
            payload,
            root,
            tuple(map(_cover, covers)),
            packed,
            signature,
        )


@lru_cache(maxsize=1 << 14)
def _short(id: ChainId) -> bytes:
    return sha256(id.node + id.shard.encode()).digest()[:8]


def common_head(a: Header, b: Header) -> int:
    """The head up to which two branches of a chain are the same history; 0 when there is none."""
    direct = max(a.shared_head(b.epoch), b.shared_head(a.epoch))
    if direct:
        return direct
    theirs = {cover.epoch: cover.shared for cover in b.covers}
    both = (min(theirs[c.epoch], c.shared) for c in a.covers if c.epoch in theirs)
    return max(both, default=0)


def _cover(raw: object) -> Cover:
    if not isinstance(raw, list) or len(raw) != 4:
        raise ValueError("cover: not a list of 4")
    counter, nonce, head, shared = raw
    return Cover(Epoch(_whole(counter), _blob(nonce, NONCE_BYTES)), _whole(head), _whole(shared))


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _WHOLE_MAX:
        raise ValueError("not a 63-bit number")
    return value


def _blob(value: object, size_bytes: int) -> bytes:
    if not isinstance(value, bytes) or len(value) != size_bytes:
        raise ValueError(f"not {size_bytes} bytes")
    return value
