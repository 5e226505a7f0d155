"""A flush costs what it holds, however large the chain is."""

from __future__ import annotations

import time

from crdt.chain import Chain
from crdt.header import ChainId, Epoch

FLUSHES = 25


def flush_s(records: int) -> float:
    """The least CPU time of a flush of one put and one delete."""
    chain = Chain(ChainId(b"n" * 16, "a" * 32), Epoch(1, b"e" * 8))
    for i in range(records):
        chain.put(b"%08d" % i, b"x")
    chain.seal(b"m" * 16, lambda _text: bytes(64), ())
    spent_s = []
    for i in range(FLUSHES):
        chain.put(b"new%d" % i, b"x")
        chain.delete(b"%08d" % i)
        begin_s = time.thread_time()
        assert chain.unsealed_deletes == (b"%08d" % i,)
        chain.seal(b"m" * 16, lambda _text: bytes(64), ())
        spent_s.append(time.thread_time() - begin_s)
    return min(spent_s)


def test_a_flush_of_a_large_chain_costs_little_more_than_one_of_a_small() -> None:
    """A bucket of the root holds up to four times as many, and what goes through all keys is 80
    times as much."""
    assert flush_s(150_000) < 10 * flush_s(1_000)
