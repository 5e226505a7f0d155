"""`python -m tests.fuzz.run [SECONDS [keep]]`: inputs for every decoder, made of those that reached
something new, with a table of what was taken and how much of each decoder was reached. A breach
prints how to see it again. `keep` writes what reaches more than the corpus into it."""

from __future__ import annotations

import contextlib
import hashlib
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.decoders import DECODERS, Decoder
from tests.fuzz.mutate import mutated
from tests.fuzz.reached import Reached, Step
from tests.fuzz.seeds import seeds

CORPUS = Path(__file__).parent / "corpus"
INPUT_S_MAX = 1.0
"""For one input of at most 64 KiB, in CPU time."""
KEPT_BYTES_MAX = 4096
POOL_MAX = 400


def corpus(name: str) -> list[bytes]:
    """Inputs that once broke a decoder, or reach what the seeds do not."""
    return [file.read_bytes() for file in sorted((CORPUS / name).glob("*"))]


def check(decoder: Decoder, data: bytes, hint: str, reached: Reached | None = None) -> bool:
    """Raises AssertionError with the input, in hex, where the law does not hold. What it reaches is
    added to `reached`."""
    start_s = time.thread_time()
    try:
        with contextlib.nullcontext() if reached is None else reached.watching():
            taken = decoder.check(data)
    except Exception as error:
        raise AssertionError(f"{decoder.name} {hint}: {error!r} for {data.hex()}") from error
    spent_s = time.thread_time() - start_s
    if spent_s >= INPUT_S_MAX and reached is not None:
        return check(decoder, data, hint)  # being watched takes its time, too
    assert spent_s < INPUT_S_MAX, f"{decoder.name} {hint}: {spent_s:.1f} s for {data.hex()[:2000]}"
    return taken


@dataclass
class Found:
    """What a run has found. `new`: inputs that reached something for the first time, in order."""

    inputs: int
    taken: int
    reached: Reached
    new: list[bytes]


def begin(decoder: Decoder, start: list[bytes]) -> Found:
    """What the seeds and the corpus reach."""
    found = Found(0, 0, Reached(), [])
    for data in start:
        check(decoder, data, "at the start", found.reached)
    return found


def fuzz(decoder: Decoder, start: list[bytes], found: Found, seed: int, count: int) -> None:
    """Check `count` more inputs. What reaches something new is varied further, and so is what is
    taken."""
    chance = random.Random(seed)
    pool = [*start, *found.new]
    fixed = len(pool)
    for number in range(count):
        data = mutated(chance, pool)
        before = len(found.reached.steps)
        taken = check(decoder, data, f"seed {seed}, input {number}", found.reached)
        found.inputs += 1
        found.taken += taken
        if len(data) > KEPT_BYTES_MAX:
            continue
        if len(found.reached.steps) > before:
            found.new.append(data)
            pool.insert(0, data)
            fixed += 1
        elif taken:
            pool[fixed:] = [*pool[fixed:], data][-POOL_MAX:]


def keep(decoder: Decoder, start: list[bytes], new: list[bytes]) -> int:
    """Write those of `new` that still reach something new, the shortest first; how many."""
    reached = begin(decoder, start).reached
    steps: dict[bytes, set[Step]] = {}
    for data in new:
        one = Reached()
        check(decoder, data, "that was new", one)
        steps[data] = one.steps
    kept = 0
    for data in sorted(new, key=len):
        if steps[data] - reached.steps:
            reached.steps |= steps[data]
            home = CORPUS / decoder.name
            home.mkdir(parents=True, exist_ok=True)
            (home / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
            kept += 1
    return kept


def main(arguments: list[str]) -> int:
    seconds = float(arguments[0]) if arguments else 60.0
    keeps = arguments[1:] == ["keep"]
    started = seeds()
    for place, decoder in enumerate(DECODERS):
        end_s = time.monotonic() + seconds / len(DECODERS)
        start = started[decoder.name] + corpus(decoder.name)
        found = begin(decoder, start)
        seed = random.SystemRandom().randrange(1 << 32)
        while time.monotonic() < end_s:
            fuzz(decoder, start, found, seed, 200)
            seed += 1
        lines, every = found.reached.lines()
        line = f"{decoder.name:18} {found.inputs:9,} inputs {found.taken:9,} taken"
        line += f" {len(lines):5} of {len(every):5} lines {len(found.new):5} ways new"
        if keeps:
            line += f" {keep(decoder, start, found.new):5} kept"
        sys.stdout.write(f"{line}  ({place + 1}/{len(DECODERS)})\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
