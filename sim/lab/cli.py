"""`weft lab`: the commands. What they do is in lab.py; here are options, output and exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

import click

from mesh.core.errors import BadInput, NotReady, RequestError
from sim.lab.lab import Lab
from sim.lab.topology import LabSpec, check_lab_name

EXIT_NO = 1
EXIT_BAD_INPUT = 2
EXIT_FAILED = 3
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell says it
PING_COUNT_MAX = 10_000  # a minute at the shortest interval


class LabGroup(click.Group):
    """Errors in one line on stderr, with the exit code that their kind has."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _terminable():
                return super().invoke(ctx)
        except RequestError as error:
            _fail(error)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(EXIT_INTERRUPTED)


def _fail(error: RequestError) -> NoReturn:
    click.echo(f"Error: {error}", err=True)
    if isinstance(error, BadInput):
        sys.exit(EXIT_BAD_INPUT)
    sys.exit(EXIT_FAILED if isinstance(error, NotReady) else EXIT_NO)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM and a closed terminal end a command as Ctrl-C does: after it has tidied up."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # Who started this under nohup wants it to go on.
    wanted = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    former = {number: signal.signal(number, interrupt) for number in wanted}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


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
output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="For people, or one JSON document.",
)


@click.group(cls=LabGroup)
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
@name_option
@output_option
def up(sites: int, gateways: int, pods: int, vpcs: int, name: str, output: str) -> None:
    """Make a lab and wait until it is ready.

    Every VPC has a tenant of its own, the CIDR 10.0.0.0/16 and the same subnets: 10.0.I.0/24 homed
    at site I (home-a, home-b, …) and 10.0.200.0/24 (stretched) over all sites. Pods have the
    addresses 10.0.I.10 and up; the second pod of a site and VPC is in the stretched subnet.
    """
    spec = LabSpec(name=name, sites=sites, gateways=gateways, pods=pods, vpcs=vpcs)
    made = Lab.up(spec, lambda line: click.echo(line, err=True))
    if output == "json":
        click.echo(json.dumps(made.status()))


@lab.command()
@name_option
@output_option
def status(name: str, output: str) -> None:
    """Sites, gateways, pods and the partition in force."""
    document = Lab.open(name).status()
    if output == "json":
        click.echo(json.dumps(document))
        return
    gateways = [
        (g["name"], site["name"], g["underlay_ip"], g["pid"] or "down", g["netns"], g["socket"])
        for site in document["sites"]
        for g in site["gateways"]
    ]
    pods = [
        (p["name"], site["name"], p["vpc"], p["ip"], p["mac"], p["netns"])
        for site in document["sites"]
        for p in site["pods"]
    ]
    _table(("GATEWAY", "SITE", "UNDERLAY", "PID", "NETNS", "SOCKET"), gateways)
    click.echo()
    _table(("POD", "SITE", "VPC", "IP", "MAC", "NETNS"), pods)
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
@output_option
def ping(source: str, target: str, count: int, interval: float, name: str, output: str) -> None:
    """Echo requests from a pod to a pod; exit 0 when at least one was answered."""
    result = Lab.open(name).ping(source, target, count=count, interval_s=interval)
    rtt_ms = None if result.rtt_ms is None else round(result.rtt_ms, 3)
    if output == "json":
        document = {
            "from": source,
            "to": target,
            "sent": result.sent,
            "received": result.received,
            "rtt_ms": rtt_ms,
        }
        click.echo(json.dumps(document))
    else:
        rtt = "" if rtt_ms is None else f", rtt {rtt_ms} ms"
        click.echo(f"{result.name}: {result.received} of {result.sent} answered{rtt}")
    sys.exit(0 if result.received else EXIT_NO)


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
    # The parser stops at NAME, so the dashes that set CMD apart are still there.
    words = command[1:] if command[0] == "--" else command
    if not words:
        raise click.UsageError("Missing argument 'COMMAND...'.")
    argv, environment = Lab.open(name).enter(member, words)
    try:
        os.execvpe(argv[0], argv, environment)  # noqa: S606 — no shell is what is wanted
    except OSError as error:
        raise NotReady(f"{argv[0]} cannot be run: {error.strerror}") from None


@lab.command()
@name_option
def down(name: str) -> None:
    """Remove everything: processes, namespaces, pinned maps and files. Again: nothing to do."""
    was_there = Lab.take_down(name)
    click.echo(f"lab {name} is {'down' if was_there else 'not up'}", err=True)


def _groups(groups: Any) -> str:
    return " | ".join(",".join(group) for group in groups)


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    lines = [header, *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
