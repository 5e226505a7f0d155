"""`python -m tests.bench PART [SECTION…]`: measure, print a table, write build/bench/PART.json.

With sections only these are measured, and the file is PART-SECTION.json.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bench import core, dataplane, node, recovery, sim
from tests.bench.harness import Metric, table, write

PARTS: dict[str, Callable[[], list[Metric]]] = {
    "core": core.metrics,
    "dataplane": dataplane.metrics,
    "node": node.metrics,
    "recovery": recovery.metrics,
    "sim": sim.metrics,
}
SECTIONS = {
    "dataplane": dataplane.SECTIONS,
    "node": node.SECTIONS,
    "recovery": recovery.SECTIONS,
    "sim": sim.SECTIONS,
}
OUT = Path(__file__).parents[2] / "build" / "bench"


def main(args: Sequence[str], out: Path = OUT) -> int:
    """The exit code: 0 once all is measured, whatever the numbers; 2 for an unknown part."""
    if not args or args[0] not in PARTS:
        sys.stderr.write(f"bench: name one part of: {', '.join(PARTS)}\n")
        return 2
    part, *chosen = args
    sections = SECTIONS.get(part, {})
    if unknown := [name for name in chosen if name not in sections]:
        known = ", ".join(sections) or "none"
        sys.stderr.write(f"bench: {part}: {', '.join(unknown)}: no section: there are {known}\n")
        return 2
    metrics = [m for name in chosen for m in sections[name]()] if chosen else PARTS[part]()
    path = out / f"{'-'.join(args)}.json"
    write(path, part, metrics)
    sys.stdout.write(table(metrics))
    sys.stderr.write(f"bench: wrote {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
