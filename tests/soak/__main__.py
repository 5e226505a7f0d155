"""`python -m tests.soak PART …`: runs for as long as it is left to, and exit code 1 when something
grows, is lost or does not hold. `node` prints a table and writes build/soak/node.json."""

from __future__ import annotations

import dataclasses
import json
import random
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from mesh.cli.app import run as weft
from sim.cli import SEEDS_MAX

if TYPE_CHECKING:  # what a part does not need takes seconds to import
    from tests.soak.node import Report

SCHEDULES = "sim/scenarios/schedules.toml"
OUT = Path(__file__).parents[2] / "build" / "soak"


def table(report: Report) -> str:
    lines = [f"{'NODE':6}{'WHAT':10}{'FIRST':>10}{'LAST':>10}{'PER HOUR':>12}  UNIT"]
    for name, what, first, last, slope, unit, grows in report.rows:
        mark = "  GROWS" if grows else ""
        lines.append(f"{name:6}{what:10}{first:10.1f}{last:10.1f}{slope:12.2f}  {unit}{mark}")
    lines.append(f"{report.rounds} rounds, {report.writes} writes, {report.kills} kills")
    return "\n".join(lines) + "\n"


def kills(arguments: list[str]) -> int:
    """0 when nothing acknowledged was lost; AssertionError says what was."""
    from tests.soak.kills import kill_nodes

    count = int(arguments[0]) if arguments else 50
    seed = int(arguments[1]) if len(arguments) > 1 else random.SystemRandom().randrange(1 << 32)
    with tempfile.TemporaryDirectory(prefix="weft-kills-") as home:
        sys.stderr.write(f"kills: again with: ./just soak kills {count} {seed}\n")
        back_s = kill_nodes(Path(home), count, seed)
    sys.stdout.write(f"{count} kills, nothing lost; back in {median(back_s):.1f} s (median)\n")
    return 0


def stores(arguments: list[str]) -> int:
    """0 when every killed writer left whole batches; AssertionError says the seed of one that did
    not."""
    from tests.mesh.node.test_store import kill_a_writer

    count = int(arguments[0]) if arguments else 2000
    first = int(arguments[1]) if len(arguments) > 1 else 0
    for seed in range(first, first + count):
        with tempfile.TemporaryDirectory(prefix="weft-kills-") as home:
            Path(home).chmod(0o700)
            kill_a_writer(Path(home) / "store.db", seed)
    sys.stdout.write(f"{count} writers killed, every acknowledged batch there\n")
    return 0


def schedules(arguments: list[str]) -> int:
    """Schedules of faults from a seed that nobody has run, over all cores: until stopped, or so
    many. What fails is told with the command that replays it; Ctrl-C tells what was found so far.
    """
    count = int(arguments[0]) if arguments else SEEDS_MAX
    seed = int(arguments[1]) if len(arguments) > 1 else random.SystemRandom().randrange(1 << 48)
    return weft(["sim", "soak", SCHEDULES, "--seeds", f"{seed}-{seed + count - 1}"])


def main(arguments: list[str]) -> int:
    """0: nothing grows; 1: something does; 2: wrong usage."""
    if arguments[:1] == ["stores"]:
        return stores(arguments[1:])
    if arguments[:1] == ["sim"]:
        return schedules(arguments[1:])
    if arguments[:1] == ["kills"]:
        return kills(arguments[1:])
    if not 1 <= len(arguments) <= 3 or arguments[0] != "node":
        sys.stderr.write("soak: node [SECONDS [SEED]], or sim|kills|stores [COUNT [SEED]]\n")
        return 2
    return node(arguments[1:])


def node(arguments: list[str]) -> int:
    """0: nothing grows; 1: something does."""
    from tests.soak.node import Report, soak

    seconds = float(arguments[0]) if arguments else 1800.0
    seed = int(arguments[1]) if len(arguments) > 1 else random.SystemRandom().randrange(1 << 32)
    report = Report()
    with tempfile.TemporaryDirectory(prefix="weft-soak-") as home:
        sys.stderr.write(f"soak: again with: ./just soak node {seconds:g} {seed}\n")
        for report in soak(Path(home), seconds, seed):
            if sys.stderr.isatty():
                sys.stderr.write(f"\rsoak: {report.rounds} rounds, {report.kills} kills")
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / "node.json"
    path.write_text(json.dumps({"seed": seed, "ok": report.ok, **dataclasses.asdict(report)}))
    sys.stdout.write(table(report))
    sys.stderr.write(f"soak: wrote {path}\n")
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
