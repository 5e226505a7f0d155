"""Releases of Weft that take part in a run: the one before this, this one, and the one after it.

Release N speaks wire version N and, but for the first, the one before; those up to this one speak
as they do. What the next one says on a link of this release's version is what this release says,
with a field at the end of every frame and now and then a kind of frame that this release does not
know; its own version has the changes of which older nodes would make nothing: deltas under another
kind, other frames with their fields turned round. So nobody gets along with it who has not agreed
on a version.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import msgpack

from crdt.delta import Delta
from crdt.packed import unpack_list
from mesh.core import wire
from mesh.core.errors import PeerError
from mesh.core.wire import Codec, Frame, Versions

PRESENT: Final = wire.WIRE_VERSION
"""This release."""
RELEASES_MAX: Final = PRESENT + 1
FRAMES_SHARED: Final = 1 << 14
"""What a thousand nodes send each other in a third of a second: half of it is on its way."""
DELTAS_SHARED: Final = 1 << 12
NOTE_KIND: Final = 90
"""A kind of frame that the next release adds to this one's version."""
BUNDLE_KIND: Final = 91
"""Deltas, in the next version."""
ADDED_FIELD: Final = {"load": 1}


@lru_cache(maxsize=FRAMES_SHARED)
def decode_shared(data: bytes) -> Frame | None:
    """A frame goes to several nodes, and what is in it on to others in other frames: each is
    decoded once, and held once."""
    return wire.decode(data, _delta)


def _delta(raw: object) -> Delta:
    match raw:
        case [[packed, signature, *_], counter, nonce, lo, payload, keep, *_]:
            return _delta_of(packed, signature, counter, nonce, lo, payload, keep)
    return Delta.unpack(raw)


@lru_cache(maxsize=DELTAS_SHARED, typed=True)
def _delta_of(
    packed: object,
    signature: object,
    counter: object,
    nonce: object,
    lo: object,
    payload: object,
    keep: object,
) -> Delta:
    return Delta.unpack([[packed, signature], counter, nonce, lo, payload, keep])


def forget_shared() -> None:
    """What a run that is over has said: no other one will say it."""
    decode_shared.cache_clear()
    _delta_of.cache_clear()
    codec_of.cache_clear()


def note(version: int) -> bytes:
    """What a later release says beside what this one says."""
    return bytes(msgpack.packb([version, NOTE_KIND, "it goes well"]))


@lru_cache(maxsize=RELEASES_MAX)
def codec_of(release: int) -> Codec:
    """How a node of the release speaks."""
    speaks = Versions(max(1, release - 1), release)
    if release == PRESENT:
        return Codec(speaks, wire.encode, decode_shared)

    def decode(data: bytes) -> Frame | None:
        return _decode(data, speaks)

    return Codec(speaks, _encode, lru_cache(maxsize=FRAMES_SHARED)(decode))


def _encode(frame: Frame, version: int) -> bytes:
    """As the next release, or one before this."""
    if version < PRESENT:
        return wire.encode(frame, version)
    _, kind, *fields = msgpack.unpackb(wire.encode(frame), strict_map_key=False)
    if version == PRESENT:
        return bytes(msgpack.packb([version, kind, *fields, ADDED_FIELD]))
    if kind == wire.DELTAS:
        return bytes(msgpack.packb([version, BUNDLE_KIND, *fields]))
    return bytes(msgpack.packb([version, kind, *fields[::-1]]))


def _decode(data: bytes, speaks: Versions) -> Frame | None:
    """Raises PeerError, also for a version that the node does not speak."""
    try:
        version, kind, *fields = unpack_list(data, wire.CONTAINERS_MAX)
        if kind == wire.ZIPPED:
            version, kind, *fields = unpack_list(wire.unzipped(fields[0]), wire.CONTAINERS_MAX)
    except (ValueError, TypeError, IndexError) as error:
        raise PeerError(f"frame: {error}") from None
    if type(version) is not int or not speaks.lowest <= version <= speaks.highest:
        raise PeerError(f"frame of version {version}, and this node speaks {speaks}")
    if version <= PRESENT:
        return wire.decode(data)
    if kind == NOTE_KIND:
        return None
    plain = (
        [PRESENT, wire.DELTAS, *fields] if kind == BUNDLE_KIND else [PRESENT, kind, *fields[::-1]]
    )
    return wire.decode(bytes(msgpack.packb(plain)))
