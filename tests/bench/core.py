"""What the core costs: wire -> verified -> joined -> view -> rows, memory, anti-entropy.

Rates and steps are CPU time of one process. Roots are recomputed lazily, as the replica does, where
it is not said otherwise. Rows are those of the compiler; packing them for the kernel is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.bench.harness import RUNS, Metric, cpu_s, in_child, measure
from tests.bench.mesh_world import (
    BATCH,
    CHAINS,
    RECORD_BYTES,
    Item,
    MeshWorld,
    Receiver,
    claims,
    sent,
)

SMALL_CHAINS, SMALL = 50, 1024
LARGE = 51_200
SINGLES = 2000
SYNC_RECORDS, SYNC_CHANGES = 50, 10
"""a chain: records before a partition, and changes during it, of which a fifth are deletes"""
ALLOWANCE_BYTES = 48_000
CYCLES = 10_000_000

Frames = list[bytes]


def metrics() -> list[Metric]:
    world = MeshWorld()
    return [*_rates(world), *_rows(world), *_at_scale(), *_cycles(), *_anti_entropy(world)]


# ---- rates ----


def _rates(world: MeshWorld) -> list[Metric]:
    small = f"{SMALL_CHAINS} chains of {SMALL}"
    fresh = _small(world, [0])
    again = _small(world, [0, 1])[len(fresh) :]
    large = list(world.frames(world.new_chain(0), claims(0, LARGE), BATCH))
    singles = list(world.frames(world.new_chain(0), claims(0, SINGLES), 1))
    count = SMALL_CHAINS * SMALL
    rows: tuple[tuple[str, Frames, Frames, int], ...] = (
        (f"{BATCH}-record batches, fresh keys, {small}", [], fresh, count),
        (f"{BATCH}-record batches, overwriting, {small}", fresh, again, count),
        (f"{BATCH}-record batches, fresh keys, one chain of {LARGE}", [], large, LARGE),
        (f"one-record batches, fresh keys, one chain of {SINGLES}", [], singles, SINGLES),
    )
    found = []
    for label, target, step in (
        ("joined", None, Receiver.join),
        ("joined and viewed", ">= 600000", Receiver.take),
        ("joined and viewed, roots at once", ">= 350000", Receiver.take_and_prove),
    ):
        for name, before, timed, records in rows:
            few = ">= 10000" if target and records == SINGLES else target
            run = _rate(world, before, timed, records, step)
            found.append(measure(f"{label}: {name}", "records/s", few, run))
    return found


def _rate(
    world: MeshWorld,
    before: Frames,
    timed: Frames,
    records: int,
    step: Callable[[Receiver, bytes], object],
) -> Callable[[], float]:
    def run() -> float:
        receiver = world.receiver()
        for frame in before:
            receiver.take(frame)
        return records / cpu_s(lambda: [step(receiver, frame) for frame in timed])

    return run


def _small(world: MeshWorld, rounds: Sequence[int]) -> Frames:
    """Frames that fill each chain, once for every round, later rounds over the same keys."""
    chains = [world.new_chain(number) for number in range(SMALL_CHAINS)]
    return [
        frame
        for turn in rounds
        for number, chain in enumerate(chains)
        for frame in world.frames(chain, claims(number, SMALL, turn), BATCH)
    ]


# ---- rows ----


def _rows(world: MeshWorld) -> list[Metric]:
    frames = _small(world, [0])
    count = SMALL_CHAINS * SMALL

    def run() -> float:
        receiver = world.receiver()
        forwarding = receiver.forwarding()
        forwarding.update()
        forwarding.take_delta()
        spent_s = 0.0
        for frame in frames:
            receiver.take(frame)

            def step() -> None:
                forwarding.update()
                assert forwarding.take_delta().endpoints

            spent_s += cpu_s(step)
        return count / spent_s

    name = f"view deltas to changed FIB rows (not packed), batches of {BATCH}"
    return [measure(name, "endpoints/s", ">= 300000", run)]


# ---- at scale, in child processes ----


def _at_scale() -> list[Metric]:
    found: list[Metric] = []
    for each, runs in ((100, RUNS), (1000, 1)):
        results = [in_child("scale", str(each)) for _ in range(runs)]
        size = f"{CHAINS * each:,} endpoints in {CHAINS:,} chains"
        once = "" if runs == RUNS else ", one run"
        for key, name, unit, target in (
            ("record_bytes", f"memory a record of {RECORD_BYTES} B, view included", "B", "<= 280"),
            ("pause_ms", f"longest step, batches of {BATCH}, cyclic GC included", "ms", "<= 20"),
            ("one_us", "one changed endpoint through join, view and FIB", "us", "<= 200"),
        ):
            values = tuple(result[key] for result in results)
            found.append(Metric(f"{name}: {size}{once}", unit, target, values))
    return found


def _cycles() -> list[Metric]:
    results = [in_child("cycles", str(CYCLES))]
    what = f"{CYCLES:,} create/delete cycles over 1,000 keys, the end against a tenth, one run"
    return [
        Metric(f"{label}: {what}", "ratio", "<= 1.05", tuple(r[key] for r in results))
        for label, key in (("memory", "memory_ratio"), ("stored state", "state_ratio"))
    ]


# ---- anti-entropy ----


def _anti_entropy(world: MeshWorld) -> list[Metric]:
    chains = [world.new_chain(number) for number in range(CHAINS)]
    before = [
        frame
        for number, chain in enumerate(chains)
        for frame in world.frames(chain, claims(number, SYNC_RECORDS), BATCH)
    ]
    changes = [_changes(number) for number in range(CHAINS)]
    after = [
        frame
        for number, chain in enumerate(chains)
        for frame in world.frames(chain, changes[number], BATCH)
    ]
    own_bytes = sum(len(key) + len(record or b"") for items in changes for key, record in items)

    def both() -> tuple[Receiver, Receiver]:
        return world.receiver(), world.receiver()

    def at_rest() -> float:
        a, b = both()
        for frame in before:
            a.join(frame)
            b.join(frame)
        return float(exchange(world, a, b)[0])

    def healed() -> float:
        a, b = both()
        for frame in before:
            a.join(frame)
            b.join(frame)
        for frame in after:
            a.join(frame)
        size_bytes, trips = exchange(world, a, b)
        assert all(
            a.replica.lattice.digest(s) == b.replica.lattice.digest(s) for s in world.vpcs
        ), f"not equal after {trips} round trips"
        round_trips.append(trips)
        return (size_bytes - ALLOWANCE_BYTES) / own_bytes

    round_trips: list[float] = []
    where = f"{CHAINS:,} chains in {len(world.vpcs)} shards"
    d, n = CHAINS * SYNC_CHANGES, CHAINS * SYNC_RECORDS
    name = f"anti-entropy within the ring, d = {d:,} of n = {n:,}, {where}"
    rest = measure(f"anti-entropy at rest, one exchange, {where}", "B", "<= 100", at_rest)
    heal = measure(f"{name}: (bytes - 48 kB) / changed records", "ratio", "<= 1.3", healed)
    return [rest, heal, Metric(f"{name}: round trips", "", "<= 2", tuple(round_trips))]


def _changes(number: int) -> list[Item]:
    """Four overwrites for each delete."""
    written = claims(number, SYNC_CHANGES, 1)
    return [(key, None if i % 5 == 4 else record) for i, (key, record) in enumerate(written)]


def exchange(world: MeshWorld, a: Receiver, b: Receiver) -> tuple[int, float]:
    """Link the replicas and let them talk until they are silent: bytes sent, round trips.

    Only `a` begins, so that one exchange is counted.
    """
    left, right = world.writers[0].node, world.writers[1].node
    a.replica.peer_down(left, 1)
    b.replica.peer_down(left, 1)
    a.replica.peer_up(right, 1)
    b.replica.peer_up(left, 1)
    b.replica.drain()
    ways = [(a.replica, b.replica, left), (b.replica, a.replica, right)]
    size_bytes, halves = 0, 0
    while frames := sent(ways[halves % 2][0].drain()):
        _, receiver, sender = ways[halves % 2]
        for frame in frames:
            size_bytes += len(frame)
            receiver.receive(sender, frame, 1)
        halves += 1
    return size_bytes, halves / 2
