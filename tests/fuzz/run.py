"""`python -m tests.fuzz.run [SECONDS]`: random inputs for every decoder, with a table of what was
taken and how much of each decoder's module was reached. A breach prints how to see it again."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from tests.fuzz.decoders import DECODERS, Decoder
from tests.fuzz.mutate import mutated
from tests.fuzz.seeds import seeds

CORPUS = Path(__file__).parent / "corpus"
INPUT_S_MAX = 1.0
"""For one input of at most 64 KiB, in CPU time."""


def corpus(name: str) -> list[bytes]:
    """Inputs that once broke a decoder, or are worth keeping."""
    return [file.read_bytes() for file in sorted((CORPUS / name).glob("*"))]


def check(decoder: Decoder, data: bytes, hint: str) -> bool:
    """Raises AssertionError with the input, in hex, where the law does not hold."""
    start_s = time.thread_time()
    try:
        taken = decoder.check(data)
    except Exception as error:
        raise AssertionError(f"{decoder.name} {hint}: {error!r} for {data.hex()}") from error
    spent_s = time.thread_time() - start_s
    assert spent_s < INPUT_S_MAX, f"{decoder.name} {hint}: {spent_s:.1f} s for {data.hex()[:2000]}"
    return taken


def fuzz(decoder: Decoder, start: list[bytes], seed: int, count: int) -> int:
    """Check `count` inputs; how many were taken. What is taken is varied further."""
    chance = random.Random(seed)
    pool = [*start]
    taken = 0
    for number in range(count):
        data = mutated(chance, pool)
        if check(decoder, data, f"seed {seed}, input {number}"):
            taken += 1
            if len(data) < 4096:
                pool[len(start) :] = [*pool[len(start) :], data][-200:]
    return taken


def main(arguments: list[str]) -> int:
    seconds = float(arguments[0]) if arguments else 60.0
    started = seeds()
    for place, decoder in enumerate(DECODERS):
        end_s = time.monotonic() + seconds / len(DECODERS)
        inputs = taken = 0
        seed = random.SystemRandom().randrange(1 << 32)
        while time.monotonic() < end_s:
            taken += fuzz(decoder, started[decoder.name] + corpus(decoder.name), seed, 500)
            inputs, seed = inputs + 500, seed + 1
        line = f"{decoder.name:18} {inputs:9,} inputs {taken:9,} taken"
        sys.stdout.write(f"{line}  ({place + 1}/{len(DECODERS)})\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
