"""What `weft diagnose` checks, judged from plain facts: each check is one function.

A check is right, wrong, or cannot be told (`ok` is None), and says what was found; a wrong one also
says what to do. Their names are part of the contract: scripts look for them.

Those of a machine (`machine_checks`) need no running node. What only a running one knows is
gathered by `mesh.node.service.upkeep`.
"""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from dataplane.backend import NEARLY_FULL, Usage
from mesh.core.errors import BadInput
from mesh.node.config import Config, ConfigError, read_config
from mesh.node.config_fields import CAPACITY_FIELDS
from mesh.node.keys import read_seed

Json: TypeAlias = dict[str, Any]

NAMES: Final = (
    "config", "keys", "privileges", "kernel", "bpffs", "mtu", "clock", "ports", "peers", "digests",
    "maps", "disk",
)  # fmt: skip

LINKS_MIN: Final = 4  # links a node keeps, where there are as many members
CLOCK_AHEAD_MAX_S: Final = 5.0
"""Half of the 10 s beyond which a peer's time is not followed: two such nodes still agree."""
SYNC_AGE_MAX_S: Final = 30.0  # three rounds of anti-entropy: one may meet another neighbour
LINK_YOUNG_S: Final = 10.0  # until its first comparison is due
MTU_MIN_BYTES: Final = 1280  # what any IPv6 path carries (RFC 8200, section 5)
FREE_BYTES_MIN: Final = 64 * 1024 * 1024  # a WAL at its usual largest, twice, and some logs
FSYNC_MAX_S: Final = 0.1  # an acknowledged write costs one: ten a second is no disk for this
_FSYNC_TRIES: Final = 5
_FSYNC_BYTES: Final = 4096  # a page of the WAL
NAMED_MAX: Final = 5


@dataclass(frozen=True, slots=True)
class Check:
    """`fix` is empty unless `ok` is False."""

    name: str
    ok: bool | None
    what: str
    fix: str = ""

    def to_json(self) -> Json:
        return {"name": self.name, "ok": self.ok, "what": self.what, "fix": self.fix}


@dataclass(frozen=True, slots=True)
class Peer:
    """One linked peer. Ages in seconds; None: never."""

    name: str
    clock_ahead_s: float | None
    sync_age_s: float | None
    link_age_s: float
    inbound: bool


def document(checks: Sequence[Check], *, running: bool) -> Json:
    """The answer of `weft diagnose -o json`."""
    return {
        "ok": all(check.ok is not False for check in checks),
        "running": running,
        "checks": [check.to_json() for check in checks],
    }


# ---- the machine ----


def without_node(path: Path | None) -> Json:
    """All that can be said while no node runs; `path` is its weft.toml, if it is known."""
    config: Config | None = None
    if path is None:
        checks = [Check("config", None, "no file was named: see --config")]
    else:
        first, config = check_config(path)
        checks = [first]
    checks += machine_checks(config)
    if config is not None:
        checks.append(check_ports_free(config))
    said = {check.name: check for check in checks}
    files = ("keys", "ports", "disk")
    silent = [
        Check(name, None, "needs --config" if name in files else "only a running node knows")
        for name in NAMES
        if name not in said
    ]
    ordered = sorted((*checks, *silent), key=lambda check: NAMES.index(check.name))
    return document(ordered, running=False)


def machine_checks(config: Config | None) -> list[Check]:
    """keys and disk of a known configuration; privileges, kernel, bpffs."""
    if config is None:
        return _xdp_checks(memory=False)
    memory = config.dataplane_mode == "memory" or config.underlay is None
    return [check_keys(config), check_disk(config), *_xdp_checks(memory)]


def check_config(path: Path) -> tuple[Check, Config | None]:
    """Whether the file is right, and what it says then."""
    try:
        config = read_config(path)
    except ConfigError as error:
        return Check("config", False, "; ".join(error.lines), "correct these lines"), None
    return Check("config", True, f"{config.path} has no mistake"), config


def check_keys(config: Config) -> Check:
    """The node's key is there, and nobody else's to read."""
    try:
        read_seed(config.node_key_path, "node")
    except BadInput as error:
        return Check("keys", False, str(error), "keep the key 0600 in a directory 0700")
    return Check("keys", True, "the node's key is there and private")


def _xdp_checks(memory: bool) -> list[Check]:
    """What XDP needs. None of it counts when nothing is to be forwarded."""
    from dataplane.xdp import machine

    found = []
    for name, problem, right in (
        ("privileges", machine.lacking_privileges, "CAP_BPF and CAP_NET_ADMIN"),
        ("kernel", machine.lacking_in_kernel, "the kernel takes XDP programs (BTF is not needed)"),
        ("bpffs", machine.lacking_bpffs, "bpffs is mounted"),
    ):
        lacks = problem()
        if lacks is None:
            found.append(Check(name, True, right))
        elif memory:
            found.append(Check(name, True, f"not needed, nothing is to be forwarded ({lacks[0]})"))
        else:
            found.append(Check(name, False, *lacks))
    return found


def check_ports_free(config: Config) -> Check:
    """Whether a node could listen where it is told to."""
    taken = []
    for addr in config.listen:
        _, family, host, _, port = addr.split("/")
        kind = socket.AF_INET if family == "ip4" else socket.AF_INET6
        with closing(socket.socket(kind, socket.SOCK_STREAM)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, int(port)))
            except OSError as error:
                taken.append(f"{addr} ({error.strerror})")
    if taken:
        fix = "stop who has it, or change [node] listen in weft.toml"
        return Check("ports", False, f"cannot be listened on: {', '.join(taken)}", fix)
    return Check("ports", True, f"free: {', '.join(config.listen)}")


def check_disk(config: Config) -> Check:
    """Room, the store's size, and how long it takes until a write is durable."""
    directory = config.directory
    try:
        status = os.statvfs(directory)
        fsync_s = _fsync_s(directory)
    except OSError as error:
        what = f"{directory}: cannot be written ({error.strerror})"
        return Check("disk", False, what, "give the node a directory that it can write")
    parts = (config.store_path, Path(f"{config.store_path}-wal"))
    store_bytes = sum(part.stat().st_size for part in parts if part.exists())
    return judge_disk(str(directory), status.f_bavail * status.f_frsize, store_bytes, fsync_s)


def _fsync_s(directory: Path) -> float:
    """The median time until a page is on disk, in a file that has no name."""
    spent_s = []
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(_FSYNC_TRIES):
            file.write(bytes(_FSYNC_BYTES))
            file.flush()
            start_s = time.perf_counter()
            os.fsync(file.fileno())
            spent_s.append(time.perf_counter() - start_s)
    return statistics.median(spent_s)


# ---- judged from facts ----


def judge_disk(directory: str, free_bytes: int, store_bytes: int, fsync_s: float) -> Check:
    """A store needs room for itself once more: VACUUM, a snapshot, a WAL that cannot be emptied."""
    what = (
        f"{directory}: {_mb(free_bytes)} free, store of {_mb(store_bytes)},"
        f" {fsync_s * 1e3:.1f} ms until a write is durable"
    )
    if free_bytes < FREE_BYTES_MIN + store_bytes:
        need = _mb(FREE_BYTES_MIN + store_bytes)
        return Check("disk", False, what, f"make room: {need} should be free")
    if fsync_s > FSYNC_MAX_S:
        fix = f"put the directory on a faster disk: {FSYNC_MAX_S * 1e3:.0f} ms is the limit"
        return Check("disk", False, what, fix)
    return Check("disk", True, what)


def judge_clock(peers: Sequence[Peer]) -> Check:
    known = {p.name: p.clock_ahead_s for p in peers if p.clock_ahead_s is not None}
    if not known:
        return Check("clock", None, "no linked peer has told its time")
    far = {name: ahead for name, ahead in known.items() if abs(ahead) > CLOCK_AHEAD_MAX_S}
    if far:
        shown = some([f"{name} is {ahead:+.1f} s ahead" for name, ahead in sorted(far.items())])
        fix = "set the clocks by NTP (timedatectl set-ntp true), here or there"
        return Check("clock", False, shown, fix)
    widest_s = max(map(abs, known.values()))
    return Check("clock", True, f"within {widest_s:.3f} s of {len(known)} linked peers")


def judge_ports(listening: Sequence[str], inbound_from: Sequence[str]) -> Check:
    """`inbound_from`: linked peers that connected to us."""
    if not listening:
        return Check("ports", False, "nothing is listened on", "see the node's log")
    where = ", ".join(listening)
    if inbound_from:
        return Check("ports", True, f"{where}: reached by {some(sorted(inbound_from))}")
    return Check("ports", True, f"{where}: no linked peer has had to connect to it yet")


def judge_peers(linked: Sequence[str], known: Sequence[str]) -> Check:
    """`known`: the names of all other active members."""
    away = sorted(set(known) - set(linked))
    what = f"{len(linked)} of {len(known)} linked"
    if len(linked) < min(LINKS_MIN, len(known)):
        fix = (
            "look whether those nodes run, and whether TCP to their listen addresses is let through"
        )
        return Check("peers", False, f"{what}; not: {some(away)}", fix)
    return Check("peers", True, what)


def judge_digests(peers: Sequence[Peer]) -> Check:
    """Whether each linked peer was seen with our state lately."""
    if not peers:
        return Check("digests", None, "no linked peer")
    old = [
        f"{p.name} ({'never' if p.sync_age_s is None else f'{p.sync_age_s:.0f} s ago'})"
        for p in peers
        if (p.sync_age_s is None or p.sync_age_s > SYNC_AGE_MAX_S) and p.link_age_s > LINK_YOUNG_S
    ]
    if old:
        what = f"not equal for {SYNC_AGE_MAX_S:.0f} s: {some(old)}"
        return Check("digests", False, what, "weft state diff PEER shows which chains differ")
    ages_s = [p.sync_age_s for p in peers if p.sync_age_s is not None]
    worst = f"the last {max(ages_s):.0f} s ago" if ages_s else "none yet: the links are young"
    return Check("digests", True, f"equal with {len(ages_s)} of {len(peers)} peers, {worst}")


def judge_maps(usages: Mapping[str, Usage], problem: str | None) -> Check:
    """`problem`: what keeps rows from being installed."""
    if problem is not None:
        return Check("maps", False, problem, "mend that, then run weft dataplane audit --repair")
    full = {name: u for name, u in sorted(usages.items()) if u.used > NEARLY_FULL * u.max}
    if full:
        return Check("maps", False, *nearly_full(full))
    used = usages["endpoints"]
    return Check("maps", True, f"{used.used} of {used.max} endpoints, the others have room, too")


def nearly_full(usages: Mapping[str, Usage]) -> tuple[str, str]:
    """What is wrong with these tables, and the fix."""
    what = ", ".join(f"{name} ({u.used} of {u.max})" for name, u in usages.items())
    fields = ", ".join(dict.fromkeys(CAPACITY_FIELDS[name] for name in usages))
    fix = f"set a larger [dataplane] {fields} in weft.toml and restart, or remove some"
    return f"nearly full: {what}", fix


def judge_mtu(rooms: Mapping[str, int | None]) -> Check:
    """`rooms`: gateway's name -> largest packet that fits into a tunnel to it, None without a
    way."""
    lost = sorted(name for name, left in rooms.items() if left is None)
    if lost:
        fix = "add a route to their underlay addresses, or start those machines"
        return Check("mtu", False, f"no way to {some(lost)}", fix)
    room = {name: left for name, left in rooms.items() if left is not None}
    small = {name: left for name, left in room.items() if left < MTU_MIN_BYTES}
    if small:
        what = some([f"{left} B to {name}" for name, left in sorted(small.items())])
        fix = f"raise the underlay's MTU by {MTU_MIN_BYTES - min(small.values())} or more"
        return Check("mtu", False, f"packets of at most {what}", fix)
    if not room:
        return Check("mtu", True, "no other gateway to send to")
    return Check("mtu", True, f"packets of {min(room.values())} B and more to {len(room)} gateways")


def judge_forwarding(native: bool | None, fallen: str | None) -> Check:
    """How packets are forwarded by this node. `fallen`: why it took memory although xdp was
    wanted."""
    if fallen is not None:
        fix = 'mend that and restart, or set [dataplane] mode = "memory" in weft.toml'
        return Check("kernel", False, f"nothing is forwarded: {fallen}", fix)
    if native is None:
        return Check("kernel", True, "nothing is to be forwarded: data plane in memory")
    how = "natively" if native else "in generic mode, which is slow: the driver has no XDP"
    return Check("kernel", True, f"XDP runs {how} (BTF is not needed)")


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.0f} MB"


def some(names: Sequence[str]) -> str:
    """The first few of many names."""
    more = len(names) - NAMED_MAX
    return ", ".join(names[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
