"""admin: who may admit and retire nodes, said with the mesh root key.

The root key stays in this process: it signs here, and the node is given the statements. They are
checked here before, against the node's roster, so that what is shown is what will be.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from mesh.cli.app import Group
from mesh.cli.client import LONG_TIMEOUT_S, Client
from mesh.cli.options import NAME, asks
from mesh.cli.output import Output
from mesh.core.errors import BadInput, NotFound, NotReady, PeerError
from mesh.core.validate import ID

if TYPE_CHECKING:
    from mesh.core.members import Member
    from mesh.core.roster import Roster
    from mesh.core.statements import Statement

LOG_COLUMNS: Final = ("hash", "kind", "about", "counts")
_HASH_SHOWN: Final = 16
"""Hex digits of a hash in tables: no two of 100,000 statements share them."""

root_key_option: Final = click.option(
    "--root-key", required=True, type=click.Path(path_type=Path), metavar="FILE",
    help="The mesh root key (root.key of the founding node), mode 0600. It is used here and not"
    " given to the node.",
)  # fmt: skip
check_option: Final = click.option(
    "--check", is_flag=True, help="Only show what would become of it."
)


@click.group("admin", cls=Group)
def admin() -> None:
    """Say who may admit and retire nodes, with the mesh root key."""


@admin.command("add")
@click.argument("node", type=NAME)
@root_key_option
@check_option
@asks
def add(api: Client, out: Output, node: str, root_key: Path, check: bool) -> None:
    """Let NODE admit, retire and forget other nodes.

    What it does as an admin counts until the root key says otherwise: `weft admin rm`. Retiring an
    admin does not take that right from its key.
    """
    seed, roster = _root_seed(root_key), _roster(api)
    id = _find(roster, node)
    _say(api, roster, [roster.appoint(seed, id)], check=check)
    out.record(_shown(roster, id))


@admin.command("rm")
@click.argument("node", type=NAME)
@root_key_option
@click.option(
    "--drop",
    multiple=True,
    metavar="HASH",
    help="Keep all that it has signed but this (as `weft admin log` shows it); may be repeated.",
)
@click.option(
    "--keep",
    multiple=True,
    metavar="HASH",
    help="Keep nothing that it has signed but this; may be repeated.",
)
@check_option
@asks
def rm(
    api: Client,
    out: Output,
    node: str,
    root_key: Path,
    drop: Sequence[str],
    keep: Sequence[str],
    check: bool,
) -> None:  # fmt: skip
    """Let NODE be no admin any more, for good. It stays a member.

    What it has signed as one until now, as far as the asked node knows, goes on counting: whom it
    admitted stays admitted. What reaches the mesh later does not count, even if it was signed
    before: run it where all of it has arrived, or say --keep HASH afterwards, which adds up.

    If its key was in wrong hands, look at `weft admin log NODE`, --drop what it should not have
    signed, and retire the node itself with `weft retire NODE --compromised`. A node that nobody
    else admitted is a member no more once its admission is dropped: what it wrote is gone.
    """
    if drop and keep:
        raise BadInput("--drop and --keep: give one of them")
    seed, roster = _root_seed(root_key), _roster(api)
    id = _find(roster, node)
    said = roster.said_by(id)
    before = roster.members()
    if keep:
        kept = _picked(said, keep, "--keep")
    else:
        dropped = _picked(said, drop, "--drop")
        kept = {statement.hash for statement in said} - dropped
    if keep or not roster.demoted(id):
        _say(api, roster, roster.demote(seed, id, kept), check=check)
    elif drop:
        raise BadInput("--drop: it is no admin any more: what is not kept already counts no more")
    changed = _changed(before, roster.members())
    out.record({**_shown(roster, id), "kept": len(kept), "changed": changed})


@admin.command("log")
@click.argument("node", type=NAME)
@asks
def log(api: Client, out: Output, node: str) -> None:
    """Show what NODE has signed about others, and whether it counts."""
    roster = _roster(api)
    id = _find(roster, node)
    names = {member.node: member.name for member in roster.members().values()}
    rows = []
    for statement in roster.said_by(id):
        hash = statement.hash.hex()
        rows.append(
            {
                "hash": hash if out.json else hash[:_HASH_SHOWN],
                "kind": statement.kind,
                "about": _about(statement, names),
                "counts": roster.counts(statement),
            }
        )
    out.rows(rows, LOG_COLUMNS)


def _about(statement: Statement, names: dict[bytes, str]) -> str | None:
    """The name of the node that it is about, the id of one that is no member."""
    try:
        node = statement.node()
    except PeerError:
        return None  # of a newer version
    if statement.kind == "admit":
        return f"{statement.text('name')} at {statement.text('site')}"
    return names.get(node, node.hex())


def _root_seed(path: Path) -> bytes:
    from mesh.node.keys import read_seed

    return read_seed(path, "root")


def _roster(api: Client) -> Roster:
    """The node's roster, every signature verified here."""
    from mesh.core.roster import Roster

    answer = api.get("/v1/roster", timeout_s=LONG_TIMEOUT_S)
    try:
        roster = Roster.founded_by(map(base64.b64decode, answer["statements"]))
    except PeerError as error:
        raise NotReady(f"the node's roster does not verify: {error}: ask another node") from None
    if roster.digest().hex() != answer["digest"]:
        raise NotReady("the node's roster is not whole: ask another node")
    return roster


def _find(roster: Roster, name: str) -> bytes:
    """The id of a member by name or id, or of an admin that is none any more by id."""
    members = roster.members()
    ids = [id for id in members if id.hex() == name] or [m.node for m in roster.by_name(name)]
    if not ids and ID.fullmatch(name) and roster.was_admin(bytes.fromhex(name)):
        return bytes.fromhex(name)
    if len(ids) > 1:
        known = ", ".join(id.hex() for id in ids)
        raise NotFound(f"node {name!r}: several have that name: give an id of {known}")
    if not ids:
        raise NotFound(f"node {name!r}: no member has that name: see weft members")
    return ids[0]


def _picked(said: Iterable[Statement], hashes: Sequence[str], option: str) -> set[bytes]:
    """Of what was said, what the starts of hashes name."""
    picked = set()
    for text in hashes:
        found = [s.hash for s in said if s.hash.hex().startswith(text.lower())]
        if len(found) != 1 or not text:
            what = "it has signed no such statement" if not found else "several begin like this"
            raise BadInput(f"{option}: {text!r}: {what}: see weft admin log")
        picked.add(found[0])
    return picked


def _say(api: Client, roster: Roster, blobs: Iterable[bytes], *, check: bool) -> None:
    """Take statements into this process's roster and, unless it is a check, into the node's."""
    fresh = roster.add(blobs)
    if fresh and not check:
        texts = [base64.b64encode(blob).decode() for blob in fresh]
        api.post("/v1/roster", {"statements": texts}, timeout_s=LONG_TIMEOUT_S)


def _changed(before: Mapping[bytes, Member], after: Mapping[bytes, Member]) -> list[str]:
    """The names of the nodes that are active, retired or members at all and were not, or not so."""
    states = [{id: member.state for id, member in of.items()} for of in (before, after)]
    differing = {id for id in {**before, **after} if states[0].get(id) != states[1].get(id)}
    return sorted({**before, **after}[id].name for id in differing)


def _shown(roster: Roster, node: bytes) -> dict[str, Any]:
    member = roster.members().get(node)
    return {
        "node": member.name if member else None,
        "id": node.hex(),
        "state": member.state if member else None,
        "admin": member.admin if member else False,
    }
