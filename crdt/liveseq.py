"""Live-seq lists: which entries at or below a head still stand, in one to two bytes each.

A list is the ascending seqs, each coded as its distance to the one before in LEB128 varints
(7 bits a byte, low bits first). It replaces tombstones: a receiver drops what is not listed.
"""

from __future__ import annotations

from collections.abc import Iterable

from crdt.entry import SEQ_MAX


def encode(seqs: Iterable[int]) -> bytes:
    """Code strictly ascending positive seqs. Raises ValueError when they are not."""
    out = bytearray()
    last = 0
    for seq in seqs:
        step = seq - last
        if step <= 0:
            raise ValueError(f"seqs must ascend from 1, got {seq} after {last}")
        last = seq
        while step > 0x7F:
            out.append(step & 0x7F | 0x80)
            step >>= 7
        out.append(step)
    return bytes(out)


def decode(data: bytes) -> list[int]:
    """The seqs of a list, ascending. Raises ValueError on anything `encode` does not produce."""
    seqs: list[int] = []
    seq = step = shift = 0
    for byte in data:
        step |= (byte & 0x7F) << shift
        if byte & 0x80:
            shift += 7
            if shift > 49:
                raise ValueError("varint longer than a seq")
            continue
        if step == 0 or (byte == 0 and shift):
            raise ValueError("zero step or padded varint")
        seq += step
        if seq > SEQ_MAX:
            raise ValueError("seq out of bounds")
        seqs.append(seq)
        step = shift = 0
    if shift:
        raise ValueError("truncated varint")
    return seqs
