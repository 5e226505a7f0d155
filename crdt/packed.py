"""msgpack from others, unpacked within bounds."""

from __future__ import annotations

from typing import Any

import msgpack


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
