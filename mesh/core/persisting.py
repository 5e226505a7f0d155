"""The stored form of a chain's header: versioned msgpack, as `Persist.header` carries it."""

from __future__ import annotations

from crdt.header import Header
from crdt.packed import pack, unpack_list

STORED_VERSION = 1


def stored_header(header: Header) -> bytes:
    return pack([STORED_VERSION, header.pack()])


def load_header(blob: bytes) -> Header:
    """The reverse of `stored_header`. Raises ValueError."""
    version, raw = unpack_list(blob)[:2]
    if version != STORED_VERSION:
        raise ValueError(f"stored header of version {version}, this weft reads {STORED_VERSION}")
    return Header.unpack(raw)
