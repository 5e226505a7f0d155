"""What is measured in a process of its own, since memory is: prints one JSON object."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import msgpack

from crdt.chain import RING_MAX
from tests.bench.mesh_world import BATCH, CHAINS, Item, MeshWorld, Receiver, claim, claims

PROBES = 200
CYCLE_KEYS = 1000
PROVE_EVERY = 64
"""batches between two proofs of the root"""


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
    """Put and delete keys over and over: the process's resident bytes, and the bytes of the state,
    after the last tenth of `count` against those after the first."""
    world = MeshWorld()
    receiver = world.receiver()
    chain = world.new_chain(0)
    assert count // 10 > RING_MAX, "the ring must be full at the first mark"
    marks: list[tuple[int, int]] = []
    for start in range(0, count, BATCH):
        turn = [(start + i) % CYCLE_KEYS for i in range(BATCH)]
        puts: list[Item] = [claim(0, index, start) for index in turn]
        deletes: list[Item] = [(key, None) for key, _ in puts]
        for frame in world.frames(chain, [*puts, *deletes], BATCH):
            receiver.take(frame)
        if start // BATCH % PROVE_EVERY == 0:
            assert not receiver.replica.lattice.prove()
        if not marks and start >= count // 10:
            marks.append(_size_bytes(receiver))
    (early_bytes, early_state), (late_bytes, late_state) = *marks, _size_bytes(receiver)
    return {
        "memory_ratio": late_bytes / early_bytes,
        "state_ratio": late_state / early_state,
    }


def _size_bytes(receiver: Receiver) -> tuple[int, int]:
    """Resident memory, and the bytes of all held chains as they are sent."""
    gc.collect()
    lattice = receiver.replica.lattice
    assert not lattice.prove()
    snapshots = (chain.snapshot() for id in lattice.chains() for chain in lattice.branches(id))
    state_bytes = sum(len(msgpack.packb(snapshot.pack())) for snapshot in snapshots)
    return resident_bytes(), state_bytes


KINDS: dict[str, Callable[[int], dict[str, float]]] = {"scale": scale, "cycles": cycles}


def main(args: Sequence[str]) -> None:
    kind, size = args
    sys.stdout.write(json.dumps(KINDS[kind](int(size))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
