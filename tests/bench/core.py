"""What the core costs: wire -> verified -> joined -> view -> rows, memory, anti-entropy.

Rates and steps are CPU time of one process. Roots are recomputed lazily, as the replica does, where
it is not said otherwise. Rows are packed as the kernel's maps take them; writing them is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.bench import anti_entropy
from tests.bench.harness import RUNS, Metric, cpu_s, in_child, measure
from tests.bench.mesh_world import (
    BATCH,
    CHAINS,
    RECORD_BYTES,
    MeshWorld,
    Receiver,
    claims,
)

SMALL_CHAINS, SMALL = 50, 1024
LARGE = 51_200
SINGLES = 2000
CYCLES = 10_000_000

Frames = list[bytes]


def metrics() -> list[Metric]:
    world = MeshWorld()
    return [*_rates(world), *_rows(world), *_at_scale(), *_cycles(), *anti_entropy.metrics(world)]


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
            lazily = step is Receiver.take
            few = target if records != SINGLES else ">= 10000" if lazily else None
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
    """Of claims that are new, and of claims that are given up, each put and deleted once."""
    chains = [world.new_chain(number) for number in range(SMALL_CHAINS)]
    puts = [list(claims(number, SMALL)) for number in range(SMALL_CHAINS)]
    fresh = [
        f for c, items in zip(chains, puts, strict=True) for f in world.frames(c, items, BATCH)
    ]
    gone = [
        frame
        for chain, items in zip(chains, puts, strict=True)
        for frame in world.frames(chain, [(key, None) for key, _ in items], BATCH)
    ]
    count = SMALL_CHAINS * SMALL

    def rate(before: Frames, timed: Frames) -> float:
        receiver = world.receiver()
        for frame in before:
            receiver.take(frame)
        rows = receiver.rows()
        spent_s = 0.0
        for frame in timed:
            receiver.take(frame)

            def step() -> None:
                assert len(rows.take()) == BATCH

            spent_s += cpu_s(step)
        return count / spent_s

    name = f"view deltas to changed FIB rows, packed, batches of {BATCH}"
    return [
        measure(f"{name}, claimed", "endpoints/s", ">= 300000", lambda: rate([], fresh)),
        measure(f"{name}, given up", "endpoints/s", ">= 300000", lambda: rate(fresh, gone)),
    ]


# ---- at scale, in child processes ----


def _at_scale() -> list[Metric]:
    found: list[Metric] = []
    memory = f"memory a record of {RECORD_BYTES} B, view included, FIB not"
    for each, memory_target in ((100, None), (1000, "<= 280")):
        size = f"{CHAINS * each:,} endpoints in {CHAINS:,} chains"
        for kind, values in (
            ("scale", (("record_bytes", memory, "B", memory_target),)),
            (
                "steps",
                (
                    ("pause_ms", f"longest step to the rows, batches of {BATCH}", "ms", "<= 20"),
                    ("sites_ms", "longest step after a VPC's sites changed", "ms", "<= 20"),
                    ("one_us", "one changed endpoint through join, view and FIB", "us", "<= 200"),
                ),
            ),
        ):
            results = [in_child(kind, str(each)) for _ in range(RUNS)]
            for key, name, unit, target in values:
                measured = tuple(result[key] for result in results)
                found.append(Metric(f"{name}: {size}", unit, target, measured))
    return found


def _cycles() -> list[Metric]:
    results = [in_child("cycles", str(CYCLES))]
    what = f"{CYCLES:,} create/delete cycles over 1,000 keys, the end against a tenth, one run"
    return [
        Metric(f"{label}: {what}", "ratio", "<= 1.05", tuple(r[key] for r in results))
        for label, key in (("memory", "memory_ratio"), ("stored state", "state_ratio"))
    ]
