"""Run real nodes in network namespaces of this machine.

What the commands do is in lab.py; here are their options and what they print.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from mesh.cli.app import ExitNo, Group
from mesh.cli.options import prints
from mesh.cli.output import Output, heading
from mesh.core.errors import NotReady
from sim.core.clock import seconds
from sim.lab.lab import Lab
from sim.lab.signals import terminable
from sim.lab.topology import LabSpec, check_lab_name
from sim.progress import bar
from sim.reading import SEED_MAX, load

if TYPE_CHECKING:
    from sim.lab.playing import Live
    from sim.lab.script import Script

PING_COUNT_MAX: Final = 10_000  # ten seconds at the shortest interval


class _LabGroup(Group):
    """However a command is ended, it tidies up first."""

    def invoke(self, ctx: click.Context) -> Any:
        with terminable():
            return super().invoke(ctx)


def _check_name(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    return check_lab_name(value)


name_option = click.option(
    "--name",
    default="lab",
    show_default=True,
    envvar="WEFT_LAB",
    callback=_check_name,
    help="Which lab; several can be up at once.",
)


@click.group(cls=_LabGroup)
def lab() -> None:
    """Real nodes in network namespaces of this machine.

    Each gateway is a namespace with one `weft run` in it, each pod one with an interface; the sites
    a, b, c, … meet on a bridge, the wide area network. Needs root.
    """


@lab.command()
@click.option("--sites", type=int, default=3, show_default=True, help="a, b, c, … up to 26.")
@click.option("--gateways", type=int, default=1, show_default=True, help="Gateways of each site.")
@click.option("--pods", type=int, default=1, show_default=True, help="Pods per VPC and site.")
@click.option("--vpcs", type=int, default=2, show_default=True, help="VPCs v1, v2, …")
@click.option(
    "--underlay", default="ipv4", show_default=True, help="ipv4 or ipv6, between gateways."
)
@name_option
@prints
def up(
    out: Output, sites: int, gateways: int, pods: int, vpcs: int, underlay: str, name: str
) -> None:
    """Make a lab and wait until it is ready.

    Every VPC has a tenant of its own, the CIDR 10.0.0.0/16 and the same subnets: 10.0.I.0/24 homed
    at site I (home-a, home-b, …) and 10.0.200.0/24 (stretched) over all sites. Pods have the
    addresses 10.0.I.10 and up; the second pod of a site and VPC is in the stretched subnet.
    """
    spec = LabSpec(
        name=name, sites=sites, gateways=gateways, pods=pods, vpcs=vpcs, underlay=underlay
    )
    made = Lab.up(spec, lambda line: click.echo(line, err=True))
    if out.json:
        out.document(made.status())


@lab.command("run")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--seed",
    type=click.IntRange(0, SEED_MAX),
    default=0,
    show_default=True,
    help="Decides what users ask for.",
)
@click.option("--small", is_flag=True, help="With what the file's [small] says.")
@name_option
@prints
def run_scenario(out: Output, file: Path, seed: int, small: bool, name: str) -> None:
    """Play a scenario on real nodes, and show its figures beside the simulator's.

    The scenario is simulated first. Then a lab of up to 8 sites is made, with the scenario's
    latencies, loss and cuts between its gateways, and users ask the same of the same nodes at the
    same times: it takes as long as the scenario says. Where a figure is more than twice the other,
    that is said. Nothing of the lab stays. Exit 1: real nodes did not come to hold the same, or
    lost something, or an event could not be played.

    \b
    What is compared, simulated and live:
      heal_s          the longest time from when nothing was wrong until all had everything
      push_p50_s      from a write to each other node, while nothing is wrong: the median,
      push_p99_s      and what 99 of 100 take; judged where enough writes were timed
      bytes_per_site  what a site's gateways sent
    """
    from sim.lab.comparing import compare
    from sim.lab.playing import play
    from sim.lab.script import script_of

    def tell(line: str) -> None:
        click.echo(line, err=True)

    scenario = load(file, small=small)
    tell(f"{file}: in the simulator")
    script = script_of(scenario, seed)
    with bar("play", seconds(scenario.duration_ns)) as show:
        live = play(script, name, tell, show)
    rows = compare(script.simulated, live)
    _tell_run(out, script, live, rows, seed)
    if not live.converged or live.lost or live.resurrected or live.unplayed:
        raise ExitNo


def _tell_run(
    out: Output, script: Script, live: Live, rows: list[dict[str, Any]], seed: int
) -> None:
    apart = [row["figure"] for row in rows if row["differs"]]
    if out.json:
        figures = {row["figure"]: row["simulated"] for row in rows}
        document = {
            "seed": seed,
            "sites": len(script.scenario.sites),
            "gateways": script.gateways,
            "simulated": figures,
            "live": {row["figure"]: row["live"] for row in rows},
            "ratios": {row["figure"]: row["ratio"] for row in rows if row["ratio"] is not None},
            "differ": apart,
            "unjudged": {row["figure"]: row["unjudged"] for row in rows if row["unjudged"]},
            "pushes": live.pushes,
            "not_played": script.unplayed,
            "events_not_played": list(live.unplayed),
            "unsettled": list(live.unsettled),
        }
        out.document(document)
        return
    shown = [
        {
            **{key: _figure(row[key]) for key in ("simulated", "live", "ratio")},
            "figure": heading(row["figure"]),
            "note": "too far apart" if row["differs"] else row["unjudged"] or "",
        }
        for row in rows
    ]
    noted = any(row["note"] for row in shown)
    columns = ("figure", "simulated", "live", "ratio", *(("note",) if noted else ()))
    out.table(shown, columns)
    names = ", ".join(f"{theirs} was {ours}" for theirs, ours in script.gateways.items())
    click.echo(f"\nIn the lab {names}.")
    if script.unplayed:
        left = ", ".join(f"{what} ({count})" for what, count in sorted(script.unplayed.items()))
        click.echo(f"Not played, since no command does it: {left}.")
    for words in live.unplayed:
        click.echo(f"Not played: {words}")
    for words in live.unsettled:
        click.echo(f"Not at rest: {words}")
    if apart:
        click.echo(
            "Too far apart (more than 2 ×): this machine was too busy, or the simulator's model is"
            " wrong: run it again with nothing beside it."
        )


def _figure(value: object) -> object:
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


@lab.command()
@name_option
@prints
def status(out: Output, name: str) -> None:
    """Sites, gateways, pods and the partition in force."""
    document = Lab.open(name).status()
    if out.json:
        out.document(document)
        return
    sites = document["sites"]
    gateways = [
        {**g, "site": s["name"], "gateway": g["name"]} for s in sites for g in s["gateways"]
    ]
    pods = [{**p, "site": s["name"], "pod": p["name"]} for s in sites for p in s["pods"]]
    out.table(gateways, ("gateway", "site", "underlay_ip", "pid", "netns", "socket"))
    click.echo()
    out.table(pods, ("pod", "site", "vpc", "ip", "mac", "netns"))
    click.echo()
    click.echo(f"Partition: {_groups(document['partitions']) or 'none'}")


@lab.command()
@click.argument("groups", nargs=-1, required=True, metavar="SITES...")
@name_option
def partition(groups: tuple[str, ...], name: str) -> None:
    """Cut the network between groups of sites, silently and both ways.

    Each argument is a group of sites, separated by commas; sites that are not named stay together
    as one more group: `partition a` and `partition a b,c` are the same in a lab of three. Takes the
    place of the partition before.
    """
    parts = Lab.open(name).partition(*groups)
    click.echo(f"partition: {_groups(parts)}", err=True)


@lab.command()
@name_option
def heal(name: str) -> None:
    """End the partition."""
    Lab.open(name).heal()
    click.echo("healed: every site reaches every other", err=True)


@lab.command()
@click.argument("gateway")
@name_option
def kill(gateway: str, name: str) -> None:
    """kill -9 of the node of a gateway; its data plane stays in the kernel."""
    pid = Lab.open(name).kill(gateway)
    click.echo(f"{gateway}: killed, pid was {pid}", err=True)


@lab.command()
@click.argument("gateway")
@name_option
def start(gateway: str, name: str) -> None:
    """Start the node of a gateway again; done when it answers."""
    pid = Lab.open(name).start(gateway)
    click.echo(f"{gateway}: runs, pid {pid}", err=True)


@lab.command()
@click.argument("source", metavar="POD")
@click.argument("target", metavar="POD|IP")
@click.option("-c", "--count", type=click.IntRange(1, PING_COUNT_MAX), default=3, show_default=True)
@click.option(
    "-i",
    "--interval",
    type=click.FloatRange(0.001, 60),
    default=0.2,
    show_default=True,
    help="Seconds between requests.",
)
@name_option
@prints
def ping(out: Output, source: str, target: str, count: int, interval: float, name: str) -> None:
    """Send echo requests from a pod to a pod; exit 0 when at least one was answered."""
    result = Lab.open(name).ping(source, target, count=count, interval_s=interval)
    rtt_ms = None if result.rtt_ms is None else round(result.rtt_ms, 3)
    document = {
        "from": source,
        "to": target,
        "sent": result.sent,
        "received": result.received,
        "rtt_ms": rtt_ms,
    }
    if out.json:
        out.document(document)
    else:
        rtt = "" if rtt_ms is None else f", rtt {rtt_ms} ms"
        click.echo(f"{result.name}: {result.received} of {result.sent} answered{rtt}")
    if not result.received:
        raise ExitNo


@lab.command(
    "exec", context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True}
)
@name_option
@click.argument("member", metavar="NAME")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(name: str, member: str, command: tuple[str, ...]) -> None:
    """Run a command at a pod or gateway: `weft lab exec a-v1-1 -- ip addr`.

    This process becomes the command, so its exit code and terminal are the command's. At a gateway
    WEFT_SOCKET is set: `weft lab exec a1 -- weft status`.
    """
    name, words = _after_name(name, command)
    argv, environment = Lab.open(name).enter(member, words)
    try:
        os.execvpe(argv[0], argv, environment)  # noqa: S606 — no shell is what is wanted
    except OSError as error:
        raise NotReady(f"{argv[0]} cannot be run: {error.strerror}") from None


def _after_name(name: str, words: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The lab's name and the command in what follows NAME: the parser stops there, so `--name` and
    the dashes that set the command apart may still be in it."""
    if words[0].startswith("--name="):
        name, words = words[0].removeprefix("--name="), words[1:]
    elif words[0] == "--name" and len(words) > 1:
        name, words = words[1], words[2:]
    if words[:1] == ("--",):
        words = words[1:]
    if not words:
        raise click.UsageError("Missing argument 'COMMAND...'.")
    return name, words


@lab.command()
@name_option
def down(name: str) -> None:
    """Remove everything: processes, namespaces, pinned maps and files. Again: nothing to do."""
    was_there = Lab.take_down(name)
    click.echo(f"lab {name} is {'down' if was_there else 'not up'}", err=True)


def _groups(groups: Any) -> str:
    return " | ".join(",".join(group) for group in groups)
