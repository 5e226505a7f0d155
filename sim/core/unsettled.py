"""Why a mesh has not come to rest: what had not settled when the time was over, each in a line of
words for people.

What only waits for its time (a claim that a move outranks stays for 30 s) settles by itself: then
the last line says which `quiet_s` is long enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from sim.core.clock import SECOND_NS, seconds
from sim.core.network import Network
from sim.core.node import HOUSEKEEPING_NS, Machine, Process

SETTLE_NS = 5 * SECOND_NS
"""After the last thing that was due: until it is everywhere, and that is looked at."""
LINES_MAX = 12
NAMES_MAX = 8
"""In a line, and groups of them: a thousand nodes may wait for one thing."""


def unsettled(
    members: Sequence[Machine], network: Network, quiet_ns: int, far_ns: int
) -> Iterator[str]:
    """`members`: of the mesh, at the end; `far_ns`: what is due later is not waited for."""
    left_ns = 0
    timed = True
    lines: list[str] = []
    for machine in members:
        if (why := _restless(machine)) is not None:
            timed = False
            lines.append(f"{machine.identity.name} {why}")
    differing = list(_differing(members))
    for machine in members:
        if machine.process is not None:
            for due_ns, words in _due(machine.process, far_ns):
                left_ns = max(left_ns, due_ns)
                lines.append(f"{machine.identity.name} {words}")
    unlinked = _unlinked(members, network) if differing else []
    lines = [*differing, *unlinked, *lines]
    yield from lines[:LINES_MAX]
    if len(lines) > LINES_MAX:
        yield f"and {len(lines) - LINES_MAX} more of that kind"
    quiet_s = f"quiet_s is {seconds(quiet_ns):g}"
    if timed and not differing and lines:
        enough_s = math.ceil(seconds(quiet_ns + left_ns + SETTLE_NS))
        yield f"{quiet_s}: use at least {enough_s}"
    else:
        yield f"{quiet_s}: use more; what has not settled after minutes is a bug of Weft"


def _restless(machine: Machine) -> str | None:
    """What keeps a node from being at rest, other than that something is due."""
    process = machine.process
    if process is None:
        return "does not run"
    replica = process.replica
    if replica.cloned:
        return "takes no writes: it has met a copy of itself"
    if replica.retired or replica.ousted:
        return "takes no writes: it was retired"
    if not replica.writable:
        return "takes no writes yet: it has just started, and asks its peers for its own writes"
    if process.store_fails:
        return "could not store what it holds: its disk takes nothing"
    if not process.settled:
        return "has not yet stored, and passed on, the last that it heard"
    if not process.sees and not process.registered:
        return "has not yet registered"
    return None


def _due(process: Process, far_ns: int) -> Iterator[tuple[int, str]]:
    """(in how many ns, what) a node is about to do by itself."""
    next_ns = process.writer.next_deadline_ns() if process.sees else None
    if next_ns is None or next_ns > process.wall_ns + far_ns:
        return
    if not next_ns:
        yield HOUSEKEEPING_NS, "has not yet looked at what changed last: it does so once a second"
        return
    withdrawals = process.writer.withdrawals()
    if withdrawals:
        (vpc_id, ip), due_ns = max(withdrawals.items(), key=lambda row: row[1])
        vpc = process.view.vpcs.get(vpc_id)
        what = f"its claim of {ip} in VPC {vpc_id[:8] if vpc is None else vpc.name}"
        if len(withdrawals) > 1:
            what = f"{len(withdrawals)} claims, {what} the last"
        left_ns = max(due_ns - process.wall_ns, 0)
        yield left_ns, f"withdraws {what}, {_after(left_ns)}: a claim stays for 30 s after a move"
    if next_ns not in withdrawals.values():
        left_ns = max(next_ns - process.wall_ns, 0)
        yield left_ns, f"sweeps what nobody needs, {_after(left_ns)}"


def _after(left_ns: int) -> str:
    return f"due {seconds(left_ns):.1f} s after the end"


def _differing(members: Sequence[Machine]) -> Iterator[str]:
    """Of each shard that is not the same at all who keep it, who holds the same."""
    running = [machine for machine in members if machine.process is not None]
    by_shard: dict[str, dict[bytes, list[str]]] = {}
    shards = sorted({s for m in running if m.process for s in m.process.digests()})
    for machine in running:
        process = machine.process
        assert process is not None
        digests = process.digests()
        for shard in shards:
            if shard == "roster" or process.replica.keeps(shard):
                groups = by_shard.setdefault(shard, {})
                groups.setdefault(digests.get(shard, b""), []).append(machine.identity.name)
    for shard, groups in by_shard.items():
        if len(groups) > 1:
            held = [names_text(names) for names in groups.values()]
            more = f" | and {len(held) - NAMES_MAX} more" if len(held) > NAMES_MAX else ""
            text = " | ".join(held[:NAMES_MAX]) + more
            yield f"{_shard_text(shard, running)} differs: {text}"


def _shard_text(shard: str, running: Sequence[Machine]) -> str:
    if shard in ("roster", "mesh"):
        return f"the {shard}" if shard == "roster" else "shard mesh"
    for machine in running:
        if machine.process is not None and shard in machine.process.view.vpcs:
            return f"the shard of VPC {machine.process.view.vpcs[shard].name}"
    return f"shard {shard[:8]}"


def _unlinked(members: Sequence[Machine], network: Network) -> list[str]:
    """Who has no link at all."""
    alone = [
        machine.identity.name
        for machine in members
        if machine.process is not None and not network.peers(machine.identity.index)
    ]
    return [f"linked with nobody: {names_text(alone)}"] if alone and len(members) > 1 else []


def names_text(names: Sequence[str]) -> str:
    """Some of them, and how many more there are."""
    more = f" and {len(names) - NAMES_MAX} more" if len(names) > NAMES_MAX else ""
    return ", ".join(names[:NAMES_MAX]) + more
