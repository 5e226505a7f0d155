"""What anti-entropy between two nodes costs, in bytes and round trips.

Both ends are real replicas with 1,000 chains each; their frames are carried by hand, so that all
bytes of both directions are counted. A round trip is twice the time in which everything that was
sent arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256

from crdt.chain import RING_MAX
from mesh.core import model
from mesh.core.replica import SECOND_NS
from tests.bench.harness import Metric, measure
from tests.bench.mesh_world import (
    BATCH,
    CHAINS,
    HLC,
    RECORD_BYTES,
    Item,
    MeshWorld,
    Receiver,
    claim,
    claims,
    sent,
)

RECORDS = 50
"""a chain, before a partition"""
CHANGES = 10_000
"""during it, of which a fifth are deletes"""
ALLOWANCE_BYTES = 48_000
FLIGHT_HALVES = 4
"""Half round trips of 50 ms that an update takes longer to one side than to the other."""
WARM_UPDATES = 60
PROBE_NS = 60 * SECOND_NS
"""a time at which an exchange is due"""

Between = Callable[[int], object]


def metrics(world: MeshWorld) -> list[Metric]:
    before = _frames(world, range(CHAINS), lambda number: claims(number, RECORDS))
    where = f"{CHAINS:,} chains in {len(world.vpcs)} shards"
    found = [
        measure(
            f"anti-entropy at rest, one exchange, {where}",
            "B",
            "<= 100",
            lambda: at_rest(world, before),
        ),
        measure(
            f"anti-entropy with 20 updates/s in flight, one exchange, {where}",
            "B",
            "<= 2000",
            lambda: in_flight(world, before),
        ),
    ]
    for changed in (CHAINS, CHAINS // 10):
        name = f"d = {CHANGES:,} in {changed:,} of {where}"
        found += _healed(world, before, range(changed), CHANGES // changed, name)
    return [*found, *_below_the_floor(world)]


def at_rest(world: MeshWorld, before: Sequence[bytes]) -> float:
    a, b = linked(world, before)
    a.replica.timer(PROBE_NS)
    return float(talk(a, b))


def in_flight(world: MeshWorld, before: Sequence[bytes]) -> float:
    """Each half round trip one update of some chain comes to one side, and later to the other."""
    a, b = linked(world, before)
    numbers = [i * 7 % CHAINS for i in range(2 * WARM_UPDATES)]
    chains = {number: world.new_chain(number) for number in numbers}
    for number, chain in chains.items():
        list(world.frames(chain, claims(number, RECORDS), BATCH))
    updates = [
        next(world.frames(chains[number], [claim(number, i % RECORDS, 1 + i)], 1))
        for i, number in enumerate(numbers)
    ]

    def arrive(half: int) -> None:
        early, late = (a, b) if half % 2 else (b, a)
        early.replica.receive(early.peer, updates[half], 1)
        if half >= FLIGHT_HALVES:
            late.replica.receive(late.peer, updates[half - FLIGHT_HALVES], 1)

    for half in range(WARM_UPDATES):
        arrive(half)
    a.replica.timer(PROBE_NS)
    return float(talk(a, b, lambda half: arrive(WARM_UPDATES + half)))


def _healed(
    world: MeshWorld, before: Sequence[bytes], numbers: range, each: int, name: str
) -> list[Metric]:
    """The worse of the two directions: which end begins to tell its heads is chance."""
    changes = {number: _changes(number, each) for number in numbers}
    after = _frames(
        world, numbers, lambda number: changes[number], lambda number: claims(number, RECORDS)
    )
    own_bytes = sum(_item_bytes(items) for items in changes.values())
    results = [heal(world, before, after, side) for side in (0, 1)]
    size_bytes, trips = (max(values) for values in zip(*results, strict=True))
    ratio = (size_bytes - ALLOWANCE_BYTES) / own_bytes
    label = f"anti-entropy within the ring, {name}"
    return [
        Metric(f"{label}: (bytes - 48 kB) / changed records", "ratio", "<= 1.3", (ratio,)),
        Metric(f"{label}: round trips", "", "<= 2", (trips,)),
    ]


def _below_the_floor(world: MeshWorld) -> list[Metric]:
    """Two chains have lost more than the ring remembers: all that stands is listed."""
    deletes, numbers = RING_MAX + 904, range(2)
    held = {number: claims(number, 3 * deletes) for number in numbers}
    gone: dict[int, list[Item]] = {
        number: [(key, None) for key, _ in items[::3]] for number, items in held.items()
    }
    before = _frames(world, numbers, lambda number: held[number])
    after = _frames(world, numbers, lambda number: gone[number], lambda number: held[number])
    size_bytes, trips = heal(world, before, after, 0)
    own_bytes = sum(_item_bytes(items) for items in gone.values())
    label = f"anti-entropy below the ring, {2 * deletes:,} deletes in 2 chains of {3 * deletes:,}"
    return [
        Metric(f"{label}: bytes / deleted keys", "ratio", None, (size_bytes / own_bytes,)),
        Metric(f"{label}: round trips", "", None, (trips,)),
    ]


def heal(
    world: MeshWorld, before: Sequence[bytes], after: Sequence[bytes], side: int
) -> tuple[float, float]:
    """One end has taken `after` behind a partition: bytes until all is said, round trips until
    both have it."""
    ends = pair(world)
    for end in ends:
        for frame in before:
            end.join(frame)
    for frame in after:
        ends[side].join(frame)
    equal_after: list[int] = []

    def compare(half: int) -> None:
        a, b = (end.replica.lattice for end in ends)
        if all(a.digest(shard) == b.digest(shard) for shard in a.shards()):
            equal_after.append(half + 1)

    size_bytes = link(*ends, compare)
    return size_bytes, equal_after[0] / 2


def _changes(number: int, count: int) -> list[Item]:
    """Four overwrites, or new records, for each delete. Names and MACs are of chance: frames are
    compressed, and what repeats itself would flatter them."""
    items: list[Item] = []
    for i, (key, _) in enumerate(claims(number, count)):
        chance = sha256(b"%d %d" % (number, i)).hexdigest()
        mac = ":".join(chance[at : at + 2] for at in range(0, 12, 2))
        name = f"w-{chance[12:26]}"
        record = model.encode(model.Claim(0, HLC + i, mac, name))
        assert len(record) == RECORD_BYTES
        items.append((key, None if i % 5 == 4 and i < RECORDS else record))
    return items


def _item_bytes(items: Sequence[Item]) -> int:
    return sum(len(key) + len(record or b"") for key, record in items)


def _frames(
    world: MeshWorld,
    numbers: range,
    items: Callable[[int], Sequence[Item]],
    held: Callable[[int], Sequence[Item]] = lambda _number: (),
) -> list[bytes]:
    """Frames of `items` for each chain that has written `held` already."""
    frames = []
    for number in numbers:
        chain = world.new_chain(number)
        list(world.frames(chain, held(number), BATCH))
        frames += list(world.frames(chain, items(number), BATCH))
    return frames


# ---- two ends ----


def pair(world: MeshWorld) -> tuple[Receiver, Receiver]:
    first, second = world.writers[:2]
    return world.receiver(first, second), world.receiver(second, first)


def linked(world: MeshWorld, before: Sequence[bytes]) -> tuple[Receiver, Receiver]:
    """Two ends that hold the same and have found so."""
    a, b = pair(world)
    for end in (a, b):
        for frame in before:
            end.join(frame)
    link(a, b)
    return a, b


def link(a: Receiver, b: Receiver, between: Between = lambda _half: None) -> int:
    """Link the two and let them talk until they are silent: bytes of both directions."""
    for end in (a, b):
        end.replica.peer_down(end.peer, 1)
        end.replica.drain()
    for end in (a, b):
        end.replica.peer_up(end.peer, 1)
    return talk(a, b, between)


def talk(a: Receiver, b: Receiver, between: Between = lambda _half: None) -> int:
    """Carry frames until both are silent: bytes of both directions."""
    size_bytes, halves = 0, 0
    while True:
        flying = [(b, sent(a.replica.drain())), (a, sent(b.replica.drain()))]
        if not any(frames for _, frames in flying):
            return size_bytes
        for end, frames in flying:
            for frame in frames:
                size_bytes += len(frame)
                end.replica.receive(end.peer, frame, 1)
        between(halves)
        halves += 1
