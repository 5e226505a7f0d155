"""Simulate a whole mesh through partitions, crashes and lost disks, from one seed."""

from __future__ import annotations

import os
import resource
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from mesh.cli.app import ExitNo, Group
from mesh.cli.client import Client
from mesh.cli.options import prints, socket_option
from mesh.cli.output import Output
from mesh.core.errors import BadInput, NotReady
from sim.collecting import few_collections
from sim.core.clock import seconds
from sim.core.recording import Recording
from sim.core.scenario import Scenario
from sim.core.simulation import Result, Simulation
from sim.progress import bar, watched
from sim.reading import SEED_MAX, checked, load, text_of
from sim.seeding import chance_of
from sim.soaking import Sweep, pool_for, sweep

SEEDS_MAX: Final = 100_000_000
JOBS_MAX: Final = 256
EXAMPLE: Final = Path(__file__).parent / "scenarios" / "example.toml"

_scenario_argument = click.argument("file", type=click.Path(path_type=Path))
_small_option = click.option(
    "--small", is_flag=True, help="With what the file's [small] says: a first look."
)
_force_option = click.option("--force", is_flag=True, help="Write over a file that is there.")


@click.group(cls=Group)
def sim() -> None:
    """Simulate a whole mesh: the nodes' own code on a virtual clock, network and disks.

    A run is a function of its scenario and its seed, to the last byte. A scenario is a TOML file:
    `weft sim init` writes one that explains itself, `weft sim from-live` one of the mesh you have.

    \b
    Try:  weft sim init my.toml             then change what you like in it
          weft sim run my.toml              once; exit 1: something did not hold
          weft sim soak my.toml --seeds 1-1000
          weft lab run my.toml              the same on real nodes, on this machine
    """


@sim.command()
@click.argument("file", type=click.Path(path_type=Path))
@_force_option
def init(file: Path, force: bool) -> None:
    """Write an example of a scenario.

    It has a comment on everything in it, and it runs.
    """
    write_new(file, EXAMPLE.read_text(encoding="utf-8"), force=force)
    click.echo(f"{file}: written; try: {shlex.join(['weft', 'sim', 'run', str(file)])}", err=True)


@sim.command("from-live")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@_force_option
@socket_option
def from_live(file: Path | None, force: bool, socket: Path) -> None:
    """Write a scenario of a running mesh.

    It is the mesh as one node sees it, written to FILE or to standard output: members, the round
    trips that the node has measured, and how many endpoints each VPC has at each site. What the
    node cannot know is guessed, and said in a comment.
    """
    from sim import live

    text = live.scenario_text(live.ask(Client(socket)))
    checked(text, "the scenario made")
    if file is None:
        click.echo(text, nl=False)
        return
    write_new(file, text, force=force)
    click.echo(f"{file}: written; try: {shlex.join(['weft', 'sim', 'run', str(file)])}", err=True)


def write_new(file: Path, text: str, *, force: bool) -> None:
    """Write a scenario where none is yet. Raises BadInput."""
    try:
        with file.open("w" if force else "x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        raise BadInput(f"{file}: is there already: name another file, or add --force") from None
    except OSError as error:
        raise BadInput(f"{file}: cannot be written: {error.strerror}") from None


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
    """Run a scenario once.

    Exit 1 if something that must hold did not, with the command that shows it again. Ctrl-C ends it
    with what is known by then, the report too.

    \b
    What it prints:
      converged        whether all held the same, and were at rest, within quiet_s
      heal_s           the longest time from when nothing was wrong until all had everything
      bytes_per_site   what a site's gateways sent, on average, heartbeats and all
      push_p50_s       from a write to each other node, while nothing is wrong: the median,
      push_p99_s       and what 99 of 100 take at most
      lost             writes that were taken and are nowhere (lost disks aside)
      resurrected      deletions that came undone
      updates          batches of writes that nodes have signed and sent
      reached          which share of them is wherever it belongs, at the end
      copies           how often each was sent to a node, on average

    \b
    Try:  weft sim init my.toml
          weft sim run my.toml --report my.html
    """
    scenario = load(file, small=small)
    if report is None:
        ran = _run(scenario, seed)
    else:
        ran = _run_reported(scenario, file, seed, report, small=small)
    if ran.interrupted is None:
        _tell(out, file, ran.result, small=small)
    else:
        _print(out, ran.result, {"interrupted_at_s": ran.at_s})
        raise ran.interrupted


@sim.command()
@_scenario_argument
@click.option("--seeds", required=True, metavar="A-B", help="Every seed from A to B.")
@click.option(
    "--jobs",
    type=click.IntRange(1, JOBS_MAX),
    show_default="one a core",
    help="Processes on this machine.",
)
@click.option(
    "--dask",
    metavar="ADDRESS",
    help="Run them on a Dask cluster instead: its scheduler, tcp://HOST:8786.",
)
@_small_option
@prints
def soak(
    out: Output, file: Path, seeds: str, jobs: int | None, dask: str | None, small: bool
) -> None:
    """Run many seeds of a scenario.

    Stops at the first violation and says how to replay it. What is found is the same however many
    run at a time, and wherever. Ctrl-C ends it with what was found so far.

    \b
    Try:  weft sim soak my.toml --seeds 1-1000
          weft sim soak my.toml --seeds 1-1000000 --dask tcp://HOST:8786
    A Dask cluster is `dask scheduler` on one machine and `dask worker tcp://HOST:8786` on each,
    with the same weft[dask] installed; each worker thread runs some seeds at a time, so start
    workers with --nthreads 1 and as many of them as there are cores.
    """
    scenario, wanted = load(file, small=small), _seeds(seeds)
    if jobs is not None and dask is not None:
        raise BadInput("--jobs is for this machine, --dask for a cluster: give one of the two")
    found, began_s = Sweep(wanted), time.monotonic()
    ended: BaseException | None = None
    pool = pool_for(scenario, wanted, jobs or os.cpu_count() or 1, dask)
    try:
        with bar("seeds", len(wanted)) as show:
            for _ in sweep(pool, found):
                rate = found.seen / (time.monotonic() - began_s)
                show(found.seen, f"{found.seen} of {len(wanted)}, {rate:.1f} seeds/s")
    except (KeyboardInterrupt, NotReady) as error:
        ended = error
        found.interrupted()
    finally:
        pool.close()
    _tell_sweep(out, file, found, time.monotonic() - began_s, ended, small=small)
    if ended is not None:
        raise ended


def _tell_sweep(
    out: Output,
    file: Path,
    found: Sweep,
    took_s: float,
    ended: BaseException | None,
    *,
    small: bool,
) -> None:
    """Print what was found. Raises ExitNo after a violation."""
    summary: dict[str, object] = {
        "seeds": len(found.seeds),
        "done": found.done,
        "seconds": round(took_s, 1),
        "seeds_per_s": round(found.done / took_s, 1),
        "writes": found.writes,
        "frames": found.frames,
        "faults": found.faults,
        "fingerprint": found.fingerprint,
        "failed_seed": found.failed.seed if found.failed else None,
    }
    if isinstance(ended, KeyboardInterrupt):
        said = "a violation" if found.failed else "no violation"
        click.echo(f"interrupted: {found.done} of {len(found.seeds)} seeds, {said}", err=True)
    if found.failed is not None:
        if not out.json:
            out.record(summary)
        _tell(out, file, found.failed, summary if out.json else None, small=small)
    elif out.json:
        out.document({**summary, "violations": []})
    else:
        out.record(summary)


def _seeds(text: str) -> range:
    first, dash, last = text.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise BadInput(f"--seeds: {text!r}: write A-B, such as 1-1000")
    low, high = int(first), int(last or first)
    if not low <= high <= SEED_MAX or high - low >= SEEDS_MAX:
        raise BadInput(f"--seeds: {text!r}: give 1 to {SEEDS_MAX} seeds, the lower one first")
    return range(low, high + 1)


@dataclass(frozen=True, slots=True)
class _Ran:
    """A run, to its end or not."""

    result: Result
    at_s: float
    """virtual time at which it ended"""
    interrupted: KeyboardInterrupt | None = None


def _run(scenario: Scenario, seed: int, recording: Recording | None = None) -> _Ran:
    """Run once, and show how far it is. Ctrl-C ends it: what is known then is the result."""
    simulation = Simulation(scenario, chance_of(seed), recording)
    clock, end_s = simulation.clock, seconds(scenario.duration_ns)

    def look() -> tuple[float, str]:
        now_s = seconds(clock.now_ns)
        words = f"{now_s:.1f} of {end_s:g} virtual s" if now_s < end_s else "coming to rest"
        return now_s, words

    began_s, began_cpu_s = time.monotonic(), time.process_time()
    try:
        with watched("run", end_s, look), few_collections():
            result = simulation.run(seed)
        _tell_cost(time.monotonic() - began_s, time.process_time() - began_cpu_s)
        return _Ran(result, seconds(clock.now_ns))
    except KeyboardInterrupt as interrupt:
        at_s = round(seconds(clock.now_ns), 3)
        found = len(simulation.violations.found)
        click.echo(
            f"interrupted: at {at_s:.1f} of {end_s:g} virtual s, {found or 'no'} violations until"
            " then; the figures are until then, too",
            err=True,
        )
        return _Ran(simulation.result(seed), at_s, interrupt)


def _tell_cost(wall_s: float, cpu_s: float) -> None:
    """Beside the result, which is the same on every machine."""
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    words = f"{wall_s:.1f} s ({cpu_s:.1f} s of CPU), at most {peak_mib} MiB of memory"
    click.echo(f"simulated in {words}", err=True)


def _run_reported(scenario: Scenario, file: Path, seed: int, report: Path, *, small: bool) -> _Ran:
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
    source = text_of(file)
    ran = _run(scenario, seed, recording)
    replay, ended = _replay(file, seed, small=small), ran.interrupted is not None
    run = page.Run(str(file), source, replay, scenario, ran.result, recording, ended)
    report.write_text(page.render(run), encoding="utf-8")
    click.echo(f"report: {report}", err=True)
    return ran


def _replay(file: Path, seed: int, *, small: bool) -> str:
    """The command that does it again."""
    more = ["--small"] if small else []
    return shlex.join(["weft", "sim", "run", str(file), "--seed", str(seed), *more])


def _tell(
    out: Output,
    file: Path,
    result: Result,
    more: dict[str, object] | None = None,
    *,
    small: bool = False,
) -> None:
    """Print a result. Raises ExitNo after a violation, and says how to see it again."""
    _print(out, result, more)
    if not result.ok:
        click.echo(f"replay: {_replay(file, result.seed, small=small)}", err=True)
        raise ExitNo


def _print(out: Output, result: Result, more: dict[str, object] | None = None) -> None:
    if out.json:
        out.document({**(more or {}), **result.json()})
        return
    record = result.json()
    del record["violations"]
    # Milliseconds matter here.
    out.record({k: f"{v:.3f}" if isinstance(v, float) else v for k, v in record.items()})
    for violation in result.violations:
        click.echo(f"{violation.at_s:>10.3f} s  {violation.check}: {violation.detail}")
