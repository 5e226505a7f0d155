"""What is measured in a process of its own, since memory is: prints one JSON object."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from crdt.chain import RING_MAX
from tests.bench.mesh_world import BATCH, CHAINS, Item, MeshWorld, Receiver, claim, claims

PROBES = 200
CYCLE_KEYS = 1000


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def scale(each: int) -> dict[str, float]:
    """`CHAINS` chains of `each` endpoints: memory, the longest step, one changed endpoint."""
    world = MeshWorld()
    receiver = world.receiver()
    gc.collect()
    empty_bytes = resident_bytes()
    pause_s = 0.0
    for number in range(CHAINS):
        # The writer's chain is dropped each time: only the receiver's stays.
        for frame in world.frames(world.new_chain(number), claims(number, each), BATCH):
            start = time.thread_time()
            touched = receiver.join(frame)
            joined = time.thread_time()
            receiver.view.update(touched)
            pause_s = max(pause_s, joined - start, time.thread_time() - joined)
    record_bytes = (resident_bytes() - empty_bytes) / (CHAINS * each)
    one_us = _one_changed_us(world, receiver, each)
    return {"record_bytes": record_bytes, "pause_ms": pause_s * 1e3, "one_us": one_us}


def _one_changed_us(world: MeshWorld, receiver: Receiver, each: int) -> float:
    """The median over `PROBES` changes of one claim each, in one chain."""
    number = CHAINS // 2
    chain = world.new_chain(number)
    list(world.frames(chain, claims(number, each), BATCH))
    items: list[Item] = [claim(number, i * 7919 % each, 1 + i) for i in range(PROBES)]
    frames = list(world.frames(chain, items, 1))
    forwarding = receiver.forwarding()
    forwarding.update()
    forwarding.take_delta()
    spent_us = []
    for frame in frames:
        start = time.thread_time()
        receiver.take(frame)
        forwarding.update()
        forwarding.take_delta()
        spent_us.append((time.thread_time() - start) * 1e6)
    return median(spent_us)


def cycles(count: int) -> dict[str, float]:
    """Put and delete keys over and over: allocated memory and stored bytes, late against early.

    The early mark is at a fifth, when the ring of deletes is full.
    """
    world = MeshWorld()
    receiver = world.receiver()
    chain = world.new_chain(0)
    assert count // 5 > RING_MAX, "the ring must be full at the early mark"
    tracemalloc.start()
    marks: list[tuple[int, int]] = []
    done = 0
    while done < count:
        turn = [(done + i) % CYCLE_KEYS for i in range(BATCH)]
        puts: list[Item] = [claim(0, index, done) for index in turn]
        deletes: list[Item] = [(key, None) for key, _ in puts]
        for frame in world.frames(chain, [*puts, *deletes], BATCH):
            receiver.take(frame)
        done += BATCH
        if not marks and done >= count // 5:
            marks.append(_size_bytes(receiver))
    marks.append(_size_bytes(receiver))
    (early_bytes, early_state), (late_bytes, late_state) = marks
    return {
        "memory_ratio": late_bytes / early_bytes,
        "state_ratio": late_state / early_state,
    }


def _size_bytes(receiver: Receiver) -> tuple[int, int]:
    """Allocated memory, and the bytes of all held chains as they are stored or sent."""
    gc.collect()
    lattice = receiver.replica.lattice
    snapshots = (chain.snapshot() for id in lattice.chains() for chain in lattice.branches(id))
    state_bytes = sum(len(json.dumps(s.pack(), default=bytes.hex)) for s in snapshots)
    return tracemalloc.get_traced_memory()[0], state_bytes


KINDS: dict[str, Callable[[int], dict[str, float]]] = {"scale": scale, "cycles": cycles}


def main(args: Sequence[str]) -> None:
    kind, size = args
    sys.stdout.write(json.dumps(KINDS[kind](int(size))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
