"""What is measured in a process of its own, since memory is: prints one JSON object."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import TypeVar

import msgpack

from crdt.chain import RING_MAX
from mesh.core.forwarding import ENDPOINTS_AT_ONCE
from tests.bench.dataplane import added_memory
from tests.bench.harness import resident_bytes
from tests.bench.mesh_world import (
    BATCH,
    CHAINS,
    NODES,
    SITES,
    Item,
    MeshWorld,
    Receiver,
    Rows,
    claim,
    claims,
)

T = TypeVar("T")

PROBES = 200
CYCLE_KEYS = 1000
PROVE_EVERY = 64
"""batches between two proofs of the root"""


def scale(each: int) -> dict[str, float]:
    """`CHAINS` chains of `each` endpoints: memory."""
    world = MeshWorld()
    receiver = world.receiver()
    gc.collect()
    empty_bytes = resident_bytes()
    for number in range(CHAINS):
        # The writer's chain is dropped each time: only the receiver's stays.
        for frame in world.frames(world.new_chain(number), claims(number, each), BATCH):
            receiver.take(frame)
    return {"record_bytes": (resident_bytes() - empty_bytes) / (CHAINS * each)}


def steps(each: int) -> dict[str, float]:
    """As `scale`, up to the rows: the longest step on the way, garbage collection included; the
    longest after a VPC's sites changed; and one changed endpoint."""
    world = MeshWorld()
    receiver = world.receiver()
    rows = receiver.rows()
    pause, sites = Pause(), Pause()
    for number in range(CHAINS):
        for frame in world.frames(world.new_chain(number), claims(number, each), BATCH):
            touched = pause.time(partial(receiver.join, frame))
            pause.time(partial(receiver.view.update, touched))
            assert pause.time(rows.take)
    change = receiver.change_sites(world.vpcs[0])
    sites.time(partial(receiver.view.update, change))
    few = partial(rows.take, ENDPOINTS_AT_ONCE)
    count = len(sites.time(few))
    while rows.forwarding.behind:
        count += len(sites.time(few))
    assert count == each * NODES // SITES, "a tenth of the VPC's endpoints is not admitted any more"
    one_us = _one_changed_us(world, receiver, rows, each)
    return {"pause_ms": pause.longest_ms, "sites_ms": sites.longest_ms, "one_us": one_us}


class Pause:
    """The longest of many steps, in CPU time of this thread."""

    def __init__(self) -> None:
        self.longest_ms = 0.0

    def time(self, step: Callable[[], T]) -> T:
        start = time.thread_time()
        result = step()
        self.longest_ms = max(self.longest_ms, (time.thread_time() - start) * 1e3)
        return result


def _one_changed_us(world: MeshWorld, receiver: Receiver, rows: Rows, each: int) -> float:
    """The median over `PROBES` endpoints that come, one by one, in one chain."""
    number = CHAINS // 2
    chain = world.new_chain(number)
    list(world.frames(chain, claims(number, each), BATCH))
    items: list[Item] = [claim(number, each + i) for i in range(PROBES)]
    frames = list(world.frames(chain, items, 1))
    spent_us = []
    for frame in frames:
        start = time.thread_time()
        receiver.take(frame)
        changed = rows.take()
        spent_us.append((time.thread_time() - start) * 1e6)
        assert len(changed) == 1
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


KINDS: dict[str, Callable[[int], dict[str, float]]] = {
    "scale": scale,
    "steps": steps,
    "cycles": cycles,
    "dataplane": added_memory,
}


def main(args: Sequence[str]) -> None:
    kind, size = args
    sys.stdout.write(json.dumps(KINDS[kind](int(size))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
