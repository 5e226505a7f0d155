"""init, invite, join, run, reload, rotate, retire, forget, leave: a node from nothing, and back."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from mesh.cli.app import ExitNo
from mesh.cli.client import LONG_TIMEOUT_S, Client, segments
from mesh.cli.options import NAME, asks, prints
from mesh.cli.output import Output
from mesh.core.bounds import MESH_RECORDS, QUOTA_MAX, VPC_RECORDS
from mesh.core.errors import BadInput, RequestError

if TYPE_CHECKING:
    from mesh.node.config import Config
    from mesh.node.setup import MadeNode, NewNode

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

Command = TypeVar("Command", bound=Callable[..., Any])


def _describes_node(command: Command) -> Command:
    """The options that say what a new node is."""
    for option in reversed(
        [
            click.option(
                "--dir", "directory", required=True, type=click.Path(path_type=Path),
                help="Directory for keys, store and weft.toml.",
            ),
            click.option("--site", required=True, type=NAME, help="The node's site."),
            click.option("--node", required=True, type=NAME, help="The node's name."),
            click.option("--underlay", metavar="IP", help="Outer address of the tunnels."),
            click.option("--listen", metavar="MULTIADDR", help="Where other nodes connect to."),
            click.option("--socket", metavar="PATH", help="Socket of the local API."),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def _new_node(
    directory: Path,
    site: str,
    node: str,
    underlay: str | None,
    listen: str | None,
    socket: str | None,
) -> NewNode:
    from mesh.node.setup import NewNode

    return NewNode(directory, site, node, underlay, listen, socket)


@click.command("init")
@_describes_node
@click.option("--mesh", required=True, type=NAME, help="Name of the new mesh.")
@prints
def init(out: Output, mesh: str, **node: Any) -> None:
    """Found a mesh: its root key, and its first node.

    The root key (root.key) makes admins; it may be taken offline.
    """
    from mesh.node.setup import found

    _show_made(out, found(_new_node(**node), mesh))


@click.command("join")
@click.argument("token")
@_describes_node
@prints
def join(out: Output, token: str, **node: Any) -> None:
    """Make this machine a node of the mesh that TOKEN is for.

    The node that made the token must be running and reachable.
    """
    import trio

    from mesh.node.setup import join as join_mesh

    _show_made(out, trio.run(join_mesh, _new_node(**node), token))


def _show_made(out: Output, made: MadeNode) -> None:
    out.record(
        {
            "mesh": made.mesh_name,
            "mesh_id": made.mesh_id.hex(),
            "node_id": made.node_id.hex(),
            "config": str(made.config),
        }
    )


@click.command("invite")
@click.option("--site", type=NAME, help="The only site that the token is good for.")
@click.option("--ttl", default="15m", show_default=True, help="Lifetime, such as 90s, 15m, 2h, 1d.")
@click.option(
    "--quota-mesh", type=click.IntRange(1, QUOTA_MAX), metavar="N",
    help=f"Records the node may hold in the mesh shard: VPCs, subnets. [default: {MESH_RECORDS}]",
)  # fmt: skip
@click.option(
    "--quota-vpc", type=click.IntRange(1, QUOTA_MAX), metavar="N",
    help=f"Records the node may hold in each VPC: its endpoints. [default: {VPC_RECORDS}]",
)  # fmt: skip
@asks
def invite(
    api: Client,
    out: Output,
    site: str | None,
    ttl: str,
    quota_mesh: int | None,
    quota_vpc: int | None,
) -> None:
    """Make a one-use token with which a node can join this mesh.

    A node's quotas hold for good: all others refuse what it writes beyond them.
    """
    body: dict[str, Any] = {"site": site, "ttl_s": _duration_s("--ttl", ttl)}
    body["quota_mesh"], body["quota_vpc"] = quota_mesh, quota_vpc
    out.text(api.post("/v1/invitations", body, timeout_s=LONG_TIMEOUT_S), "token")


@click.command("rotate")
@click.option("--force", is_flag=True, help="Though not all members were heard since its start.")
@asks
def rotate(api: Client, out: Output, force: bool) -> None:
    """Give this node a new key. It stays the same node, and everything that it wrote stays.

    What others sign with the old key from now on counts for nothing. Whoever has the old key can
    still contest the new one: `weft status` says so then, on every node. Tokens that this node has
    given out and snapshots that were made of it before are no good any more.

    Only what the node holds goes on counting. A node that was restored may have lost its last
    writes, and some member may have them: it is refused until all that are active have been heard
    since the node started, unless you add --force.
    """
    out.record(api.post("/v1/rotate", {"force": force}))


@click.command("retire")
@click.argument("node", type=NAME)
@click.option("--compromised", is_flag=True, help="Its key is stolen: forget it at once.")
@asks
def retire(api: Client, out: Output, node: str, compromised: bool) -> None:
    """Take NODE out of the mesh for good. What it wrote stays, unless it is compromised.

    If it is an admin, what its key signs as one counts until `weft admin rm` says otherwise.
    """
    body = {"compromised": compromised}
    out.record(api.post(segments("members", node, "retire"), body))


@click.command("forget")
@click.argument("node", type=NAME)
@asks
def forget(api: Client, out: Output, node: str) -> None:
    """Drop everything that the retired NODE wrote, everywhere, for good.

    Refused while anything of it is still seen.
    """
    out.record(api.post(segments("members", node, "forget"), {}))


@click.command("leave")
@asks
def leave(api: Client, out: Output) -> None:
    """Take this node out of the mesh for good. What it wrote stays."""
    out.record(api.post("/v1/leave", {}))


def _duration_s(what: str, text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if match is None:
        raise BadInput(f"{what}: {text!r}: write a number and s, m, h or d, such as 15m")
    return int(match[1]) * _UNITS_S[match[2]]


@click.command("run")
@click.option(
    "--config", required=True, type=click.Path(path_type=Path), help="The node's weft.toml."
)
def run(config: Path) -> None:
    """Run the node, in the foreground. SIGTERM stops it; the data plane goes on forwarding."""
    from mesh.node.config import check_underlay, read_config

    checked = read_config(config)
    check_underlay(checked)
    _log_to_stderr(checked.log_level)
    _give_away_privileges(checked)

    import trio

    from mesh.node.memory import give_back
    from mesh.node.node import run as run_node

    give_back()
    try:
        trio.run(run_node, checked)
    except BaseExceptionGroup as group:
        raise _first(group) from group


def _give_away_privileges(config: Config) -> None:
    """Keep what the data plane needs while it runs, and of root nothing else. While this is the
    only thread: others would keep theirs."""
    from dataplane.backend import Unavailable
    from dataplane.xdp import loading, pins, privilege

    if config.dataplane_mode == "memory" or config.underlay is None:
        privilege.give_away_all_but(())
        return
    if not privilege.missing():
        with contextlib.suppress(Unavailable):  # said by whoever opens the data plane
            pins.require_bpffs()
        loading.prepare()
    privilege.give_away_all_but()


@click.command("reload")
@asks
def reload(api: Client, out: Output) -> None:
    """Make the node take up what was changed in its weft.toml, as SIGHUP does.

    Exit 1 when it has changes that need a restart: the other ones are taken up all the same. A file
    with a mistake changes nothing.
    """
    answer: dict[str, Any] = api.post("/v1/reload", {})
    if out.json:
        out.document(answer)
    else:
        out.table(answer["fields"], ("field", "result", "why"))
    if not answer["applied"]:
        if not out.json:
            click.echo("restart the node for what needs a restart", err=True)
        raise ExitNo


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What people are told of several tasks that failed: what one of them could not do."""
    said, others = group.split(RequestError)
    error: BaseException = said or others or group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _log_to_stderr(level: str) -> None:
    import logging
    import sys
    import time

    from mesh.node.reloading import set_log_level

    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("ts=%(asctime)s.%(msecs)03dZ level=%(levelname)s %(message)s")
    formatter.datefmt, formatter.converter = "%Y-%m-%dT%H:%M:%S", time.gmtime
    handler.setFormatter(formatter)
    weft = logging.getLogger("weft")
    weft.addHandler(handler)
    set_log_level(level)
    weft.propagate = False
