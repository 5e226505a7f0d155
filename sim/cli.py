"""Simulate a whole mesh through partitions, crashes and lost disks, from one seed."""

from __future__ import annotations

import io
import os
import shlex
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import click

from mesh.cli.app import ExitNo, Group
from mesh.cli.options import prints
from mesh.cli.output import Output
from mesh.core.errors import BadInput
from sim.core.recording import Recording
from sim.core.scenario import Scenario
from sim.core.simulation import Result, run
from sim.reading import load
from sim.seeding import chance_of

SEED_MAX: Final = (1 << 63) - 1
SEEDS_MAX: Final = 100_000_000
JOBS_MAX: Final = 256
CHUNK_SEEDS: Final = 4
"""Seeds that a process takes at a time: a few, so that a failure is seen early."""

_scenario_argument = click.argument("file", type=click.Path(path_type=Path))
_small_option = click.option(
    "--small", is_flag=True, help="With what the file's [small] says: a first look."
)


@click.group(cls=Group)
def sim() -> None:
    """Simulate a whole mesh: the nodes' own code on a virtual clock, network and disks.

    A run is a function of its scenario and its seed, to the last byte. A scenario is a TOML file;
    see sim/scenarios.
    """


@sim.command("run")
@_scenario_argument
@click.option(
    "--seed",
    type=click.IntRange(0, SEED_MAX),
    default=0,
    show_default=True,
    help="Decides all that is left to chance.",
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="OUT.html",
    help="Write a page about the run: timeline, convergence, bytes, conflicts, violations.",
)
@_small_option
@prints
def run_command(out: Output, file: Path, seed: int, report: Path | None, small: bool) -> None:
    """Run a scenario once; exit 1 if something that must hold did not."""
    scenario = load(file, small=small)
    if report is None:
        _tell(out, file, _run(scenario, seed), small=small)
    else:
        result = _run_reported(scenario, file, seed, report, small=small)
        _tell(out, file, result, small=small)


@sim.command()
@_scenario_argument
@click.option("--seeds", required=True, metavar="A-B", help="Every seed from A to B.")
@click.option(
    "--jobs",
    type=click.IntRange(1, JOBS_MAX),
    default=os.cpu_count() or 1,
    show_default="one a core",
    help="Processes.",
)
@_small_option
@prints
def soak(out: Output, file: Path, seeds: str, jobs: int, small: bool) -> None:
    """Run many seeds; stop at the first violation and say how to replay it."""
    scenario, wanted = load(file, small=small), _seeds(seeds)
    began_s = time.monotonic()
    done = writes = frames = faults = 0
    failed: Result | None = None
    interrupted = False
    try:
        shown = sys.stderr if sys.stderr.isatty() else io.StringIO()
        with click.progressbar(length=len(wanted), label="seeds", file=shown, show_pos=True) as bar:
            for result in _results(scenario, wanted, jobs):
                done += 1
                writes += result.writes
                frames += result.frames
                faults += result.faults
                bar.label = f"{done / (time.monotonic() - began_s):.1f} seeds/s"
                bar.update(1)
                if not result.ok:
                    failed = result
                    break
    except KeyboardInterrupt:
        interrupted = True
    seconds = time.monotonic() - began_s
    summary: dict[str, object] = {
        "seeds": len(wanted),
        "done": done,
        "seconds": round(seconds, 1),
        "seeds_per_s": round(done / seconds, 1),
        "writes": writes,
        "frames": frames,
        "faults": faults,
        "failed_seed": failed.seed if failed else None,
    }
    if failed is not None:
        if not out.json:
            out.record(summary)
        _tell(out, file, failed, summary if out.json else None, small=small)
    elif out.json:
        out.document({**summary, "violations": []})
    else:
        out.record(summary)
    if interrupted:
        raise KeyboardInterrupt


def _seeds(text: str) -> range:
    first, dash, last = text.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise BadInput(f"--seeds: {text!r}: write A-B, such as 1-1000")
    low, high = int(first), int(last or first)
    if not low <= high <= SEED_MAX or high - low >= SEEDS_MAX:
        raise BadInput(f"--seeds: {text!r}: give 1 to {SEEDS_MAX} seeds, the lower one first")
    return range(low, high + 1)


def _run(scenario: Scenario, seed: int) -> Result:
    return run(scenario, seed, chance_of(seed))


def _run_reported(
    scenario: Scenario, file: Path, seed: int, report: Path, *, small: bool
) -> Result:
    """Run, and write the page. Whatever stops that is found before the run."""
    try:
        from sim.report import page
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        words = "--report draws with matplotlib, which is not here: pip install 'weft[report]'"
        raise BadInput(words) from None
    try:
        if report.exists() and report.samefile(file):
            raise BadInput(f"--report: {report} is the scenario: name another file")
        with report.open("a"):
            pass
    except OSError as error:
        raise BadInput(f"--report: {report}: {error.strerror}") from None
    recording = Recording()
    result = run(scenario, seed, chance_of(seed), recording)
    source = file.read_text(encoding="utf-8")
    replay = _replay(file, seed, small=small)
    text = page.render(page.Run(str(file), source, replay, scenario, result, recording))
    report.write_text(text, encoding="utf-8")
    click.echo(f"report: {report}", err=True)
    return result


def _replay(file: Path, seed: int, *, small: bool) -> str:
    """The command that does it again."""
    more = ["--small"] if small else []
    return shlex.join(["weft", "sim", "run", str(file), "--seed", str(seed), *more])


def _results(scenario: Scenario, seeds: range, jobs: int) -> Iterator[Result]:
    """In the order of the seeds, so that the first violation is the same however many jobs."""
    if jobs == 1 or len(seeds) == 1:
        for seed in seeds:
            yield _run(scenario, seed)
        return
    pool = ProcessPoolExecutor(jobs)
    try:
        # In batches: what is submitted is run, also after a violation.
        for start in range(0, len(seeds), CHUNK_SEEDS * jobs * 8):
            batch = seeds[start : start + CHUNK_SEEDS * jobs * 8]
            yield from pool.map(partial(_run, scenario), batch, chunksize=CHUNK_SEEDS)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _tell(
    out: Output,
    file: Path,
    result: Result,
    more: dict[str, object] | None = None,
    *,
    small: bool = False,
) -> None:
    """Print a result. Raises ExitNo after a violation, and says how to see it again."""
    if out.json:
        out.document({**(more or {}), **result.json()})
    else:
        record = result.json()
        del record["violations"]
        out.record(record)
        for violation in result.violations:
            click.echo(f"{violation.at_s:>10.3f} s  {violation.check}: {violation.detail}")
    if not result.ok:
        click.echo(f"replay: {_replay(file, result.seed, small=small)}", err=True)
        raise ExitNo
