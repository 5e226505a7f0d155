"""msgpack: packed with a buffer that is kept, and, from others, unpacked within bounds."""

from __future__ import annotations

from typing import Any, Final

import msgpack

LIST_CONTAINERS_MAX: Final = 64
"""Of small things: a list of fields, of which a few are lists."""

KEPT_BYTES_MAX: Final = 1 << 16
"""A packer keeps a buffer for the longest that it has packed: beyond this it goes."""

_packer = msgpack.Packer()


def pack(value: object) -> bytes:
    """The bytes of lists, maps, bytes, texts and whole numbers.

    As `msgpack.packb`, which takes 256 KiB from the C library and gives them back each time: in a
    node, where they go back to the system at once, that is 9 us. No Python runs within, so threads
    do not get in each other's way.
    """
    global _packer
    packed: bytes = _packer.pack(value)
    if len(packed) > KEPT_BYTES_MAX:
        _packer = msgpack.Packer()
    return packed


def unpack(data: bytes, containers_max: int) -> Any:
    """The one value in `data`, of at most `containers_max` lists and maps.

    Four megabytes can hold four million empty lists: 300 MB, and seconds in the garbage collector.
    What is not in a list of its own costs little more than its bytes. Raises ValueError.
    """
    left = containers_max

    def counted(container: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"more than {containers_max} lists and maps")
        return container

    try:
        return msgpack.unpackb(data, strict_map_key=False, list_hook=counted, object_hook=counted)
    except (TypeError, msgpack.exceptions.UnpackException) as error:
        raise ValueError(f"no msgpack: {type(error).__name__} {error}") from None


def unpack_list(data: bytes, containers_max: int = LIST_CONTAINERS_MAX) -> list[Any]:
    """As `unpack`, where nothing but a list will do. Raises ValueError."""
    found = unpack(data, containers_max)
    if not isinstance(found, list):
        raise ValueError(f"no list: {type(found).__name__}")
    return found
