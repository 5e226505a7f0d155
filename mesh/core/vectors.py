"""Vectors of heads: what a node holds of chains, and the forms that they have in frames.

    rows     [[chain, counter, head, tag], …]  and, where not just one epoch is held, a full row
    full     [[chain, [[counter, nonce, head, root], …]], …]
    columns  [chains, tags, [counter, …], [head, …], full]

`chain` is the first 8 bytes of the chain id's hash, `root` the first 8 bytes of the root, `tag` the
root with the nonce laid over it (XOR). `chains` and `tags` are 8 bytes a chain, end to end.

WANT has full rows. HEADS have rows in wire version 1, and columns from version 2 on: most chains
have one epoch, and theirs are read in half the time and take a fifth less.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

from crdt.header import NONCE_BYTES, Epoch

VECTOR_MAX: Final = 8192
"""Chains in one HEADS or WANT frame; longer vectors are split by ranges of chain ids."""
BRANCHES_MAX: Final = 64
"""Of one chain: an honest node holds one, and a few after restores."""
SHORT_BYTES: Final = 8
ROOT_BYTES: Final = 8
_NUMBERS: Final = 1 << 63


class Held(NamedTuple):
    """One branch of a chain as heads are told: epoch, head and the start of its root.

    Where the nonce is empty the chain's only epoch of that counter is meant, and `root` is `tag_of`
    the branch, which has the nonce in it: two epochs that differ in that alone are clones'.
    """

    epoch: Epoch
    head: int
    root: bytes


class Cursor(NamedTuple):
    """How far a chain is staged: everything up to `seq` of `epoch` has come."""

    epoch: Epoch
    seq: int


Vector: TypeAlias = dict[bytes, tuple[Held, ...]]
"""chain id hash (8 bytes) -> branches held, latest epoch first"""


def tag_of(held: Held) -> bytes:
    """What tells a branch from others of the same counter and head: those of clones may well have
    the same root, as empty chains do."""
    mixed = int.from_bytes(held.root, "big") ^ int.from_bytes(held.epoch.nonce, "big")
    return mixed.to_bytes(ROOT_BYTES, "big")


def pack_columns(vector: Vector) -> list[object]:
    single = {short: branches[0] for short, branches in vector.items() if len(branches) == 1}
    rest = {short: branches for short, branches in vector.items() if len(branches) != 1}
    held = single.values()
    return [
        b"".join(single),
        b"".join(map(tag_of, held)),
        [branch.epoch.counter for branch in held],
        [branch.head for branch in held],
        pack_vector(rest),
    ]


def unpack_columns(value: object) -> Vector:
    """Raises ValueError."""
    columns = list_of(value, VECTOR_MAX)
    if len(columns) < 5:
        raise ValueError("columns")
    shorts, tags = bytes_of(columns[0]), bytes_of(columns[1])
    counters, heads = _numbers(columns[2]), _numbers(columns[3])
    count = len(counters)
    if not len(shorts) == SHORT_BYTES * count == len(tags) or len(heads) != count:
        raise ValueError("columns of different lengths")
    epochs = {counter: Epoch(counter, b"") for counter in set(counters)}
    starts = range(0, len(shorts), SHORT_BYTES)
    vector: Vector = {
        shorts[at : at + SHORT_BYTES]: (Held(epochs[counter], head, tags[at : at + SHORT_BYTES]),)
        for at, counter, head in zip(starts, counters, heads, strict=True)
    }
    vector.update(unpack_vector(columns[4]))
    if len(vector) > VECTOR_MAX:
        raise ValueError("vector")
    return vector


def _numbers(value: object) -> list[int]:
    found = list_of(value, VECTOR_MAX)
    numbers = [number for number in found if type(number) is int]
    if len(numbers) < len(found) or (numbers and not 0 <= min(numbers) <= max(numbers) < _NUMBERS):
        raise ValueError("numbers")
    return numbers


def pack_heads(vector: Vector) -> list[object]:
    """Rows."""
    packed: list[object] = []
    for short, branches in vector.items():
        if len(branches) == 1:
            held = branches[0]
            packed.append([short, held.epoch.counter, held.head, tag_of(held)])
        else:
            packed += pack_vector({short: branches})
    return packed


def unpack_heads(value: object) -> Vector:
    """Rows. Raises ValueError."""
    vector: Vector = {}
    for item in list_of(value, VECTOR_MAX):
        if not isinstance(item, list) or len(item) != 4:
            vector.update(unpack_vector([item]))
            continue
        short, counter, head, tag = item
        held = Held(Epoch(number_of(counter), b""), number_of(head), bytes_of(tag, ROOT_BYTES))
        vector[bytes_of(short, SHORT_BYTES)] = (held,)
    return vector


def pack_vector(vector: Vector) -> list[object]:
    """Full rows."""
    return [
        [short, [[*held.epoch, held.head, held.root] for held in branches]]
        for short, branches in vector.items()
    ]


def unpack_vector(value: object) -> Vector:
    """Full rows. Raises ValueError."""
    vector: Vector = {}
    for item in list_of(value, VECTOR_MAX):
        if not isinstance(item, list) or len(item) != 2:
            raise ValueError("vector")
        branches = tuple(map(_held, list_of(item[1], BRANCHES_MAX)))
        vector[bytes_of(item[0], SHORT_BYTES)] = branches
    return vector


def _held(value: object) -> Held:
    counter, nonce, head, root = list_of(value, 4)
    epoch = Epoch(number_of(counter), bytes_of(nonce, NONCE_BYTES))
    return Held(epoch, number_of(head), bytes_of(root, ROOT_BYTES))


# ---- checks of what was unpacked ----


def list_of(value: object, count_max: int) -> list[object]:
    if not isinstance(value, list) or len(value) > count_max:
        raise ValueError("not a list within bounds")
    return value


def bytes_of(value: object, size_bytes: int | None = None) -> bytes:
    if not isinstance(value, bytes) or (size_bytes is not None and len(value) != size_bytes):
        raise ValueError("not bytes of the right size")
    return value


def number_of(value: object) -> int:
    if type(value) is not int or not 0 <= value < _NUMBERS:
        raise ValueError("not a number within bounds")
    return value
