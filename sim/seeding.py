"""Streams of chance from a seed: `random.Random` by name. The core takes them as an argument."""

from __future__ import annotations

import random

from sim.core.chance import Chance, ChanceOf


def chance_of(seed: int) -> ChanceOf:
    """The streams of `seed`. Strings are seeded through SHA-512, equally on every machine."""

    def stream(name: str) -> Chance:
        return random.Random(f"{seed}/{name}")  # noqa: S311  # chance that replays, no secrets

    return stream
