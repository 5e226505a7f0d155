"""`python -m tests.bench PART`: measure a part, print a table, write build/bench/PART.json."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bench import core
from tests.bench.harness import Metric, table, write

PARTS: dict[str, Callable[[], list[Metric]]] = {"core": core.metrics}
OUT = Path(__file__).parents[2] / "build" / "bench"


def main(args: Sequence[str], out: Path = OUT) -> int:
    """The exit code: 0 once all is measured, whatever the numbers; 2 for an unknown part."""
    if len(args) != 1 or args[0] not in PARTS:
        sys.stderr.write(f"bench: name one part of: {', '.join(PARTS)}\n")
        return 2
    (part,) = args
    metrics = PARTS[part]()
    path = out / f"{part}.json"
    write(path, part, metrics)
    sys.stdout.write(table(metrics))
    sys.stderr.write(f"bench: wrote {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
