"""What nodes of one process decode once for all of them is what each would have decoded."""

from __future__ import annotations

import msgpack
import pytest

from crdt.chain import Chain
from crdt.header import ChainId, Epoch
from mesh.core import wire
from mesh.core.errors import PeerError
from sim.core.releases import decode_shared


def frame_of(*more: object) -> list[object]:
    """A frame with one flush; `more` follows the delta's fields, as a later release may have it."""
    chain = Chain(ChainId(b"n" * 16, "mesh"), Epoch(1, b"e" * 8))
    chain.put(b"k", b"record")
    chain.seal(b"m" * 16, lambda message: bytes(64), ())
    delta = chain.since(Epoch(1, b"e" * 8), 0)
    return [wire.WIRE_VERSION, wire.DELTAS, [[*delta.pack(), *more]]]


def test_a_delta_that_comes_in_several_frames_is_one_object() -> None:
    frames = [msgpack.packb([*frame_of(), *added]) for added in ([], ["new"])]
    one, other = (decode_shared(frame) for frame in frames)
    assert isinstance(one, wire.Deltas) and isinstance(other, wire.Deltas)
    assert one == wire.decode(frames[0])
    assert one.deltas[0] is other.deltas[0]
    longer = decode_shared(msgpack.packb(frame_of({"load": 1})))
    assert longer == one


@pytest.mark.parametrize(("place", "value"), [(1, True), (3, False), (4, "text"), (5, []), (0, 7)])
def test_what_is_malformed_is_refused_though_its_like_is_known(place: int, value: object) -> None:
    """True is 1, and no number of an epoch."""
    decode_shared(msgpack.packb(frame_of()))
    raw = frame_of()
    raw[2][0][place] = value  # type: ignore[index]
    data = msgpack.packb(raw)
    for decode in (wire.decode, decode_shared):
        with pytest.raises(PeerError):
            decode(data)
