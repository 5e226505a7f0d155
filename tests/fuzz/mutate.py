"""Inputs that are nearly right: seeds with bytes turned, cut, repeated and spliced, and as msgpack,
frames on a stream or lines of TOML with values put in the place of others. A seed of the generator
makes the same ones again."""

from __future__ import annotations

import random
from typing import Any

import msgpack

DEEP: Any = 1
for _ in range(500):
    DEEP = [DEEP]

VALUES: tuple[Any, ...] = (
    None, True, 0, 1, -1, 63, 255, 1 << 31, 1 << 48, (1 << 63) - 1, (1 << 64) - 1, -(1 << 63), 0.5,
    b"", b"\x00", b"n" * 8, b"i" * 16, b"h" * 32, b"s" * 64, b"\xff" * 300, "", "a", "mesh",
    "ab" * 16, "10.0.0.0/8", "10.0.1.5", "010.0.0.1", "10.0.0.1%a", "2001:db8::1",
    "\udc80", "é" * 70, DEEP, [], [[]], [b""] * 3, [0] * 70,
    {}, {0: 1}, {"a": []},
    msgpack.Timestamp(1, 2), msgpack.ExtType(5, b"x"),
)  # fmt: skip
BYTES_MAX = 1 << 16
TOML_VALUES = (
    b"1", b"-1", b"99999999999", b"1.5", b"true", b'""', b'"text"', b"[]", b"[1]", b'["a", "a"]',
    b'["/ip4/127.0.0.1/tcp/0"]', b'["/dns4/a/tcp/70000"]', b"{}", b"[{}, {}]", b'"/\\u0000"',
    b'"\\"\\\\\\u0007"', b'"/' + b"s" * 200 + b'"', b'"xdp"',
)  # fmt: skip
_PREFIX_BYTES = 4


def mutated(chance: random.Random, seeds: list[bytes]) -> bytes:
    """One input."""
    data = chance.choice(seeds)
    if chance.random() < 0.6:
        data = _changed_within(chance, data)
    for _ in range(chance.choice((0, 0, 1, 1, 2, 4))):
        data = _turned(chance, data, seeds)
    return data[:BYTES_MAX]


def _turned(chance: random.Random, data: bytes, seeds: list[bytes]) -> bytes:
    at = chance.randint(0, len(data))
    upto = min(len(data), at + chance.choice((1, 2, 4, 16)))
    match chance.randrange(6):
        case 0:
            return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
        case 1:
            return data[:at] + data[upto:]
        case 2:
            return data[:at] + chance.randbytes(chance.randint(1, 8)) + data[at:]
        case 3:
            return data[:at]
        case 4:
            return data[:at] + data[at:upto] * chance.choice((2, 3, 100)) + data[upto:]
        case _:
            other = chance.choice(seeds)
            return data[:at] + other[chance.randint(0, len(other)) :]


def _changed_within(chance: random.Random, data: bytes) -> bytes:
    """As the form that it has: frames, lines of TOML, or msgpack."""
    if int.from_bytes(data[:_PREFIX_BYTES], "big") + _PREFIX_BYTES <= len(data) > _PREFIX_BYTES:
        frames = _frames(data)
        at = chance.randrange(len(frames))
        frames[at] = _restructured(chance, frames[at])
        return b"".join(len(frame).to_bytes(_PREFIX_BYTES, "big") + frame for frame in frames)
    lines = data.split(b"\n")
    settings = [at for at, line in enumerate(lines) if b" = " in line]
    if settings:
        at = chance.choice(settings)
        lines[at] = lines[at].partition(b" = ")[0] + b" = " + chance.choice(TOML_VALUES)
        return b"\n".join(lines)
    return _restructured(chance, data)


def _frames(data: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(data):
        end = at + _PREFIX_BYTES + int.from_bytes(data[at : at + _PREFIX_BYTES], "big")
        found.append(data[at + _PREFIX_BYTES : end])
        at = end
    return found


def _restructured(chance: random.Random, data: bytes) -> bytes:
    try:
        tree = msgpack.unpackb(data, strict_map_key=False)
        return bytes(msgpack.packb(_changed(chance, tree, 3), unicode_errors="surrogateescape"))
    except (ValueError, TypeError, OverflowError, msgpack.exceptions.UnpackException):
        return data


def _changed(chance: random.Random, value: Any, depth: int) -> Any:
    if depth and isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        part = _changed(chance, value[at], depth - 1)
        rest = value[at + 1 :]
        return [*value[:at], *chance.choice(([part], [part], [part], [], [part, part])), *rest]
    if depth and isinstance(value, dict) and value and chance.random() < 0.8:
        key = chance.choice(sorted(value, key=repr))
        return {**value, key: _changed(chance, value[key], depth - 1)}
    if depth and isinstance(value, bytes) and len(value) > 8 and chance.random() < 0.7:
        return _restructured(chance, value)  # msgpack in msgpack: headers, payloads, statements
    if type(value) is int and chance.random() < 0.3:
        return value + chance.choice((-1, 1))
    return chance.choice(VALUES)
