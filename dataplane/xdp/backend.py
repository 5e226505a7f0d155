"""The data plane in the kernel, seen from the node: logical rows in, pinned maps and links out.

Rules of this file:
- Opening prepares maps and programs and changes no packet's way. The first sync fills the maps and
  only then puts the programs in place, so none ever runs on tables that are not there yet.
- Rows are written gateways, groups, entitled, ports, endpoints, subnets, and removed in reverse: no
  row points to one that is missing.
- What only this machine knows (interface indexes, link addresses) is kept here for the few rows
  that need it, and looked up again by `refresh_adjacency`. A way that was known once is kept while
  it cannot be looked up: a cut underlay heals without anybody's help.
- Rows for which there is no room are kept, refused after everything else was done, and written when
  a later call has made room.
- What the kernel refuses otherwise may leave a call half done: the error says so, an audit finds
  what is missing, and `repair` does it.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

from pyroute2.netlink.exceptions import NetlinkError

from dataplane.backend import (
    DEFAULT_CAPACITY,
    AuditReport,
    Capacity,
    DataplaneError,
    Hook,
    Json,
    TableFull,
    Unavailable,
    Usage,
)
from dataplane.drops import DropEvent
from dataplane.fib.rows import (
    FibDelta,
    GatewayRow,
    GroupRow,
    Tables,
    address_bytes,
    address_text,
    ifname_of,
    number_addr,
)
from dataplane.xdp import (
    ahead,
    headers,
    kernel,
    layout,
    links,
    loading,
    pack,
    pins,
    privilege,
    report,
)
from dataplane.xdp.changes import Changes
from dataplane.xdp.maps import TABLES, Maps
from dataplane.xdp.state import Resolved, Rows
from dataplane.xdp.totals import Totals

ADJACENCY_WAIT_S = 0.25
"""How long one look-up of new gateways' link addresses may keep the caller."""
_ADJACENCY_POLL_S = 0.01
PATH_PROBE_PERIOD_S = 30.0
"""How often what a path carries is asked for: a packet a second for 30 gateways."""
PATH_PROBES_AT_ONCE = 64
"""With one call: 100 kB. Of more gateways each is asked more seldom."""


P = ParamSpec("P")
T = TypeVar("T")


def _told(call: Callable[P, T]) -> Callable[P, T]:
    """Have what the kernel refuses raised as a DataplaneError that says what was being done."""

    @functools.wraps(call)
    def telling(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        except (OSError, NetlinkError) as error:
            raise DataplaneError(f"{call.__name__}: the kernel refuses: {error}") from error

    return telling


class XdpBackend:
    """See `backend.Backend`. Made by `open`."""

    mode: Literal["xdp"] = "xdp"

    @classmethod
    def open(
        cls,
        *,
        instance: str,
        underlay: str,
        wan_ifname: str | None = None,
        capacity: Capacity = DEFAULT_CAPACITY,
        hook: Hook = "xdp",
    ) -> XdpBackend:
        """Adopt or create the instance's maps and load its programs.

        `underlay` is the IP address that tunnels end at; `wan_ifname` the interface they come in
        by, by default the one that has the address. Unavailable says what this machine lacks;
        DataplaneError, that it could, but something is in the way.
        """
        require_xdp()
        address = links.canonical(underlay)
        if hook == "tc" and len(number_addr(address)) != layout.U32.size:
            raise DataplaneError(
                "tc programs carry no tunnels over IPv6, where outer UDP has a checksum that is not"
                " to be had of packets with offloads: [dataplane] hook = 'xdp' does"
            )
        wan_ifname = wan_ifname or links.interface_with_address(underlay)
        if wan_ifname is None:
            raise Unavailable(f"no interface has the underlay address {underlay}")
        if links.interface(wan_ifname) is None:
            raise Unavailable(f"there is no interface {wan_ifname}")
        directory = pins.PinDir(instance)
        if (newer := directory.newer()) is not None:
            raise DataplaneError(
                f"a later version of Weft forwards here ({newer}, this one is v{layout.ABI}):"
                " install that again, or end its forwarding by removing this directory"
            )
        directory.make()
        lock = _lock(directory.path)
        try:
            maps = Maps(directory, capacity)
            try:
                loading.load(directory.path, hook)
                return cls(directory, maps, lock, wan_ifname, address, hook)
            except BaseException:
                maps.close()
                raise
        except OSError as error:
            os.close(lock)
            raise Unavailable(f"the kernel refuses BPF: {error.strerror}") from error
        except BaseException:
            os.close(lock)
            raise

    def __init__(
        self,
        directory: pins.PinDir,
        maps: Maps,
        lock: int,
        wan_ifname: str,
        underlay: int,
        hook: Hook,
    ) -> None:
        self._directory = directory
        self._maps = maps
        self._lock = lock
        self._wan_ifname = wan_ifname
        self._underlay = underlay
        self._generation = maps.generation()
        self._maps.configure(underlay, self._generation)
        self._hook: Hook = hook
        self._programs = {name: directory.program(name) for name in layout.PROGRAMS[hook][:2]}
        self._switched = False
        self._groups: dict[int, GroupRow] = {}
        self._state = Resolved(underlay)
        self._totals = Totals(maps)
        self._probe = links.PathProbe(address_text(underlay))
        self.changes = Changes()
        self._probed_at_s: dict[str, float] = {}
        """By underlay address, the longest ago first."""
        self._refused: dict[str, dict[bytes, bytes]] = {name: {} for name in TABLES}
        self._freed: set[str] = set()
        """Tables with refused rows that something was removed from since they were tried."""

    def describe(self) -> str:
        """What runs where, in words."""
        where = f"tunnels on {self._wan_ifname}, pinned at {self._directory.path}"
        return where if self._hook == "xdp" else f"tc programs, {where}"

    # ---- rows -----------------------------------------------------------------------------------

    @_told
    def replace(self, tables: Tables) -> None:
        self._generation = (self._generation + 1) % (1 << 32)
        self._groups = dict(tables.groups)
        former = self._state
        state = self._state = Resolved.of(self._underlay, tables, former.ways)
        _look_up_ways(state, tables.gateways.values())
        self._stop_counting(former)
        self._maps.adopt()
        self._refused = {name: {} for name in TABLES}
        self._write(tables)
        for name in reversed(TABLES):
            self._maps.delete_stale(name, self._generation)
        self._freed.update(TABLES)
        vnis = {key.vni for key in tables.subnets} | {row.vni for row in tables.ports.values()}
        self._maps.keep_counting_drops(vnis)
        self._maps.configure(self._underlay, self._generation)
        state.peers = state.peer_owners()
        self._switch()
        self._settle()

    @_told
    def apply(self, delta: FibDelta) -> None:
        state = self._state
        self._groups.update(delta.groups.put)
        state.gateways.update(delta.gateways.put)
        for ifname, row in delta.ports.put.items():
            self._stop_counting_port(state, ifname, row.vni)
        state.ports.update(delta.ports.put)
        state.attach_endpoints(delta.endpoints.put)
        state.detach_endpoints(delta.endpoints.remove)
        state.look_up_interfaces(delta.ports.put)
        _look_up_ways(state, delta.gateways.put.values())
        now_ns = time.monotonic_ns()
        moved = [(key, pack.moved_value(group, now_ns)) for key, group in delta.moved.items()]
        self._maps.remember(moved)
        self._write(delta.put)
        self._delete("subnets", [pack.subnet_key(key) for key in delta.subnets.remove])
        self._delete("endpoints", delta.endpoints.remove)
        self._remove_ports(delta.ports.remove)
        self._delete("entitled", [pack.entitled_key(key) for key in delta.entitled.remove])
        self._delete("groups", [pack.u32(id) for id in delta.groups.remove])
        for group in delta.groups.remove:
            self._groups.pop(group, None)
        self._remove_gateways(delta.gateways.remove)
        if delta.ports.changes or not self._switched:
            self._switch()
        self._settle()

    def _write(self, rows: Tables) -> None:
        """Write rows in order."""
        state, generation, put = self._state, self._generation, self._put
        put("gateways", state.gateway_rows(rows.gateways, generation))
        if rows.gateways:
            put("peers", state.peer_rows(generation))
        group_rows = [
            (pack.u32(id), pack.group_value(row, generation)) for id, row in rows.groups.items()
        ]
        put("groups", group_rows)
        value = pack.entitled_value(generation)
        put("entitled", [(pack.entitled_key(key), value) for key in rows.entitled])
        put("ports", state.port_rows(rows.ports, generation))
        vnis = {row.vni for row in rows.ports.values()} | {key.vni for key in rows.subnets}
        for vni in sorted(vnis):
            self._maps.count_drops(vni)
        put("endpoints", state.endpoint_rows(rows.endpoints, generation))
        subnet_rows = [
            (pack.subnet_key(key), pack.subnet_value(row, generation))
            for key, row in rows.subnets.items()
        ]
        put("subnets", subnet_rows)

    def _put(self, name: str, rows: Rows) -> None:
        """Write rows; those without room are kept for later."""
        out = self._refused[name]
        if out:
            for key, _ in rows:
                out.pop(key, None)
        out.update(self._maps.put(name, rows))

    def _delete(self, name: str, keys: Sequence[bytes]) -> None:
        self._maps.delete(name, keys)
        if keys:
            self._freed.add(name)
            for key in self._refused[name].keys() & set(keys):
                del self._refused[name][key]

    def _settle(self) -> None:
        """Write what had no room where there may be some now; TableFull if rows are left out."""
        for name in sorted(self._freed):
            self._refused[name] = dict(self._maps.put(name, list(self._refused[name].items())))
        self._freed.clear()
        out = {name: len(rows) for name, rows in self._refused.items() if rows}
        if out:
            name = max(out, key=out.__getitem__)
            room = self._maps.capacity(name)
            raise TableFull(name, out[name], Usage(room, room), sum(out.values()))

    def _remove_ports(self, ifnames: Iterable[str]) -> None:
        for ifname in ifnames:
            row = self._state.ports.pop(ifname, None)
            interface = self._state.interfaces.pop(ifname, None)
            if row is not None and interface is not None:
                self._forget_port(row.vni, interface.ifindex)

    def _forget_port(self, vni: int, ifindex: int) -> None:
        """Take out an interface's row, counters and program."""
        self._totals.stop_port(vni, ifindex)
        self._delete("ports", [pack.u32(ifindex)])
        if (pin := self._directory.link_path(ifindex)).exists():
            pins.end_link(pin)

    def _remove_gateways(self, ids: Iterable[int]) -> None:
        state = self._state
        gone = list(ids)
        for id in gone:
            row = state.gateways.pop(id, None)
            if row is not None:
                self._totals.stop_gateway(row.site, id)
        # A peer's address may have changed, or pass to another gateway that claims it.
        owners = state.peer_owners()
        if owners != state.peers:
            self._put("peers", state.peer_rows(self._generation))
            left = [address_bytes(address) for address in state.peers if address not in owners]
            self._delete("peers", left)
            state.peers = owners
        self._delete("gateways", [pack.u32(id) for id in gone])

    # ---- counters -------------------------------------------------------------------------------

    def _stop_counting(self, former: Resolved) -> None:
        """Take away the counters of what a full sync leaves out, or gives to another VPC."""
        state = self._state
        for ifname in former.ports:
            row = state.ports.get(ifname)
            self._stop_counting_port(former, ifname, row.vni if row else None)
        for id, gateway in former.gateways.items():
            if id not in state.gateways:
                self._totals.stop_gateway(gateway.site, id)

    def _stop_counting_port(self, state: Resolved, ifname: str, vni: int | None) -> None:
        """The port is this VPC's from now on (None: nobody's)."""
        row, interface = state.ports.get(ifname), state.interfaces.get(ifname)
        if row is not None and interface is not None and row.vni != vni:
            self._totals.stop_port(row.vni, interface.ifindex)

    # ---- interfaces and ways --------------------------------------------------------------------

    @_told
    def refresh_adjacency(self) -> int:
        state = self._state
        before = dict(state.interfaces)
        state.look_up_interfaces()
        changed = [name for name in state.ports if before.get(name) != state.interfaces.get(name)]
        for name in changed:
            old, new = before.get(name), state.interfaces.get(name)
            if old is not None and (new is None or new.ifindex != old.ifindex):
                self._forget_port(state.ports[name].vni, old.ifindex)
        ports = {name: state.ports[name] for name in changed}
        endpoints = {key: row for key, row in state.local.items() if ifname_of(row) in ports}
        ways = dict(state.ways)
        _look_up_ways(state, state.gateways.values())
        self._probe_paths()
        gateways = {
            id: row
            for id, row in state.gateways.items()
            if ways.get(row.underlay) != state.ways.get(row.underlay)
        }
        self._write(Tables(gateways=gateways, ports=ports, endpoints=endpoints))
        if self._switched:
            self._attach_all(thorough=True)
        return state.unresolved()

    def _probe_paths(self) -> None:
        """Ask for what the paths carry whose turn it is."""
        state, now_s = self._state, time.monotonic()
        mtus = {address_text(number): way.link_mtu for number, way in state.ways.items()}
        never = dict.fromkeys(mtus.keys() - self._probed_at_s, -PATH_PROBE_PERIOD_S)
        known = {a: at_s for a, at_s in self._probed_at_s.items() if a in mtus}
        due = [a for a, at_s in (never | known).items() if now_s - at_s >= PATH_PROBE_PERIOD_S]
        for address in due[:PATH_PROBES_AT_ONCE]:
            self._probe.send(address, mtus[address])
            known.pop(address, None)
            known[address] = now_s
        self._probed_at_s = known

    def missing_interfaces(self) -> tuple[str, ...]:
        state = self._state
        return tuple(sorted(name for name in state.ports if name not in state.interfaces))

    # ---- programs -------------------------------------------------------------------------------

    def _switch(self) -> None:
        """Put the programs in place; at the first sync also in place of a predecessor's."""
        self._attach_all(thorough=not self._switched)
        if not self._switched:
            self._switched = True
            for path in self._directory.older():
                pins.remove(path)

    def _attach_all(self, *, thorough: bool) -> None:
        """Attach the programs where links are missing, and take out links of other interfaces.

        With `thorough`, also look whether each link is alive and runs the present program.
        """
        pod_program, wan_program = self._programs
        wanted = {interface.ifindex: pod_program for interface in self._state.interfaces.values()}
        wan = links.interface(self._wan_ifname)
        if wan is not None:
            wanted[wan.ifindex] = wan_program
        pinned = dict(self._directory.links())
        older = self._directory.older() if thorough else []
        for ifindex, program in wanted.items():
            pin, fd = self._directory.link_path(ifindex), self._programs[program]
            current = ifindex in pinned
            if current and thorough:
                current = links.attached(pin, ifindex, kernel.prog_id(fd))
            if not current:
                links.attach(fd, ifindex, pin, [path / pin.name for path in older], self._hook)
        for ifindex, path in pinned.items():
            if ifindex not in wanted:
                pins.end_link(path)

    # ---- reports --------------------------------------------------------------------------------

    @_told
    def audit(self, tables: Tables) -> AuditReport:
        state = Resolved.of(self._underlay, tables, self._state.ways)
        _look_up_ways(state, tables.gateways.values())
        return report.audit(
            tables, self._maps, state, self._directory, self._wan_ifname, self._programs
        )

    @_told
    def repair(self, tables: Tables) -> AuditReport:
        before = self.audit(tables)
        self.replace(tables)
        self._attach_all(thorough=True)
        return before

    @_told
    def counters(self) -> Json:
        return {
            **report.counters(self._maps, self._state),
            "vpcs": self._totals.vpcs(self._state),
            "sites": self._totals.sites(self._state),
        }

    @_told
    def take_drops(self) -> list[DropEvent]:
        return report.drop_events(self._maps)

    @_told
    def usage(self) -> Usage:
        return self._maps.usage("endpoints")

    @_told
    def usages(self) -> dict[str, Usage]:
        return {name: self._maps.usage(name) for name in TABLES}

    def capacities(self) -> dict[str, int]:
        return {name: self._maps.capacity(name) for name in TABLES}

    @_told
    def show(self) -> Json:
        return report.show(self._maps, self._state, self._groups)

    @_told
    def explain(self, vni: int, ip: str) -> Json:
        return report.explain(self._maps, self._state, vni, ip)

    # ---- end ------------------------------------------------------------------------------------

    def detach(self) -> None:
        self.close(unlock=False)
        for path in (*self._directory.older(), self._directory.path):
            pins.remove(path)
        pins.prune()
        os.close(self._lock)

    def close(self, *, unlock: bool = True) -> None:
        for fd in self._programs.values():
            os.close(fd)
        self._programs = {}
        self._probe.close()
        self.changes.close()
        self._maps.close()
        if unlock:
            os.close(self._lock)


def require_xdp() -> None:
    """Raise Unavailable, saying what is missing, unless this process can load XDP programs."""
    what = lacking()
    if what is not None:
        raise Unavailable(what)
    pins.require_bpffs()
    try:
        os.close(kernel.prog_load(kernel.PASS, "probe", flags=0))
    except OSError as error:
        raise Unavailable(f"the kernel refuses BPF: {error.strerror}") from error


def lacking() -> str | None:
    """What this process lacks to run the backend, in words; None if nothing."""
    if sys.platform != "linux" or not kernel.supported():
        return "not Linux on x86-64 or aarch64"
    if names := privilege.missing():
        return f"this process lacks {' and '.join(names)}"
    if ahead.object_file() is not None:
        return None
    if importlib.util.find_spec("bcc") is None:
        return "bcc not importable (Debian: apt install python3-bpfcc)"
    return headers.missing()


def _lock(directory: Path) -> int:
    """Hold an instance for this process; released with the process, however it ends."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise DataplaneError(f"{directory} is in use by another running node") from error
    return fd


def _look_up_ways(state: Resolved, gateways: Iterable[GatewayRow]) -> None:
    """Resolve gateways, with a short wait for those that have never been resolved."""
    wanted = {address_text(row.underlay): row.underlay for row in gateways if state.in_reach(row)}
    if not wanted:
        return
    deadline = time.monotonic() + ADJACENCY_WAIT_S
    with links.Underlay() as underlay:
        provoked = False
        while True:
            for address, way in underlay.resolve(wanted).items():
                state.ways[wanted[address]] = way
            unknown = [a for a, number in wanted.items() if number not in state.ways]
            if not provoked:
                for address in unknown:
                    underlay.provoke(address)
                provoked = True
            if not unknown or time.monotonic() >= deadline:
                return
            time.sleep(_ADJACENCY_POLL_S)
