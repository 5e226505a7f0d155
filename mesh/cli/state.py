"""state: the replicated state itself, for those who do not take its word for it."""

from __future__ import annotations

import json
from typing import Any, Final

import click

from mesh.cli.app import ExitNo, Group
from mesh.cli.client import LONG_TIMEOUT_S, Client, segments
from mesh.cli.options import NAME, asks
from mesh.cli.output import Output, progress

CHAIN_COLUMNS: Final = ("node", "shard", "epoch", "head", "root", "records", "signature")
DIFF_COLUMNS: Final = ("node", "shard", "chain", "difference", "here", "there")
HISTORY_COLUMNS: Final = ("at", "node", "what", "dot", "value")
VERIFY_COLUMNS: Final = ("node", "shard", "epoch", "what")
RECORD_COLUMNS: Final = ("node", "seq", "key", "value")


@click.group("state", cls=Group)
def state() -> None:
    """Look at the replicated state itself."""


@state.command("digest")
@click.option("--shard", type=NAME, help="mesh, or a VPC. [default: mesh]")
@asks
def digest(api: Client, out: Output, shard: str | None) -> None:
    """Print a shard's digest: equal on two nodes exactly when their state is."""
    out.text(api.get("/v1/state/digest", {"shard": shard}), "digest")


@state.command("dump")
@click.option("--shard", type=NAME, help="Only this shard: mesh, or a VPC.")
@click.option("--chain", type=NAME, metavar="NODE", help="Only what this node has written.")
@click.option("--records", is_flag=True, help="Also every record, decoded.")
@asks
def dump(api: Client, out: Output, shard: str | None, chain: str | None, records: bool) -> None:
    """Show every chain: epoch, head, root, and whether its signature holds."""
    query = {"shard": shard, "chain": chain, "records": "true" if records else None}
    chains: list[dict[str, Any]] = api.get("/v1/state/dump", query, timeout_s=LONG_TIMEOUT_S)
    out.rows(chains, CHAIN_COLUMNS)
    if records and not out.json:
        click.echo()
        rows = [
            {"node": c["node"], **entry, "value": json.dumps(entry["value"])}
            for c in chains
            for entry in c["entries"]
        ]
        out.table(rows, RECORD_COLUMNS)


@state.command("history")
@click.argument("key")
@asks
def history(api: Client, out: Output, key: str) -> None:
    """Show what is known of KEY, in order: claims, revisions, evictions, deletions.

    KEY is written as `weft state dump --records` shows it: endpoint/VPC/IP, vpc/NAME,
    subnet/VPC/NAME, … A node has one record for a key, its last. That it dropped one is known for
    as long as it is among the last few thousand deletes of its chain, and has no time.
    """
    rows = api.get("/v1/state/history", {"key": key})
    if not out.json:
        rows = [{**row, "value": json.dumps(row["value"])} for row in rows]
    out.rows(rows, HISTORY_COLUMNS)


@state.command("diff")
@click.argument("peer", type=NAME)
@asks
def diff(api: Client, out: Output, peer: str) -> None:
    """Compare with what PEER holds, chain by chain (epoch/head); exit 1 if anything differs."""
    rows = api.get(segments("state", "diff", peer), timeout_s=LONG_TIMEOUT_S)
    out.rows(rows, DIFF_COLUMNS)
    if rows:
        raise ExitNo


@state.command("verify")
@asks
def verify(api: Client, out: Output) -> None:
    """Recompute every root and signature and compare the store with memory; exit 1 if any differ.

    The node goes on with its work meanwhile.
    """
    found: list[dict[str, Any]] = []
    chains = records = 0
    query: dict[str, str | None] = {}
    answer = api.get("/v1/state/verify", query, timeout_s=LONG_TIMEOUT_S)
    with progress("verifying chains", answer["total"]) as advance:
        while True:
            chains, records = chains + answer["chains"], records + answer["records"]
            found += answer["differences"]
            advance(answer["chains"])
            if answer["next"] is None:
                break
            query = {"start": answer["next"]}
            answer = api.get("/v1/state/verify", query, timeout_s=LONG_TIMEOUT_S)
    if out.json:
        verified = {"ok": not found, "chains": chains, "records": records}
        out.document({**verified, "differences": found})
    else:
        out.table(found, VERIFY_COLUMNS)
        click.echo(f"{chains} chains of {records} records verified", err=True)
    if found:
        raise ExitNo
