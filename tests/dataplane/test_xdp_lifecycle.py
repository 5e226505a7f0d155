"""The life of an instance: adoption, kill, full maps, audit and repair, older ABIs, the end."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from dataplane.backend import Capacity, DataplaneError, TableFull, Unavailable, open_backend
from dataplane.fib.facts import EndpointFact, GatewayFact
from dataplane.fib.rows import EndpointKey, address_bytes, address_of
from dataplane.xdp import backend, headers, kernel, layout, links, pins, privilege, programs
from dataplane.xdp.backend import XdpBackend
from tests.dataplane.conftest import wait_for

VPC, VNI = "v", 77
SUBNETS = {"10.0.1.0/24": ("a",), "10.0.2.0/24": ("b",)}
MAC, MAC_TWO = "02:00:00:00:09:01", "02:00:00:00:09:02"


@pytest.fixture
def pair(site_pair: Any) -> Any:
    """One pod at each site, forwarding."""
    site_pair.vpc(VPC, VNI, SUBNETS)
    site_pair.pod(site_pair.a, "one", VPC, "10.0.1.10")
    site_pair.pod(site_pair.b, "two", VPC, "10.0.2.10")
    site_pair.open()
    return site_pair


def audit(gateway: Any) -> Any:
    return gateway.run(lambda: gateway.backend.audit(gateway.compiler.tables()))


def claim(number: int) -> EndpointFact:
    return EndpointFact(VPC, f"10.0.2.{number}", "b", b"\2" * 16, MAC)


def identities(gateway: Any) -> dict[str, int]:
    """The pinned link's program, so that a change of it shows."""
    found = {}
    for ifindex, pin in pins.PinDir(gateway.instance).links():
        fd = kernel.get_pinned(str(pin))
        found[str(ifindex)] = kernel.link_info(fd).prog_id
        os.close(fd)
    return found


def test_a_restart_adopts_and_loses_no_packet(pair: Any) -> None:
    one, gateway = pair.pods["one"], pair.a
    assert one.ping("10.0.2.10") == 1
    before = identities(gateway)
    answered: list[int] = []
    stop = threading.Event()

    def keep_pinging() -> None:
        while not stop.is_set():
            answered.append(one.ping("10.0.2.10"))

    thread = threading.Thread(target=keep_pinging)
    thread.start()
    try:
        gateway.run(gateway.backend.close)
        gateway.open()
        gateway.sync()
        wait_for(lambda: len(answered) > 10 or not all(answered), "pings go on")
    finally:
        stop.set()
        thread.join()
    assert len(answered) > 10 and all(answered)
    after = identities(gateway)
    assert before.keys() == after.keys() and not set(before.values()) & set(after.values())
    assert audit(gateway).clean
    counters = gateway.run(gateway.backend.counters)
    assert counters["ports"][one.ifname]["tx_packets"] > len(answered)  # counting went on


VICTIM = """
import sys
from dataplane.backend import Capacity
from dataplane.xdp import links
from dataplane.xdp.backend import XdpBackend
def hold():
    backend = XdpBackend.open(instance=sys.argv[2], underlay=sys.argv[3], capacity=Capacity(64))
    print("open", flush=True)
    sys.stdin.read()
links.in_netns(sys.argv[1], hold)
"""


def test_a_killed_process_leaves_everything_forwarding(pair: Any) -> None:
    gateway, one = pair.a, pair.pods["one"]
    gateway.run(gateway.backend.close)
    root = str(Path(programs.__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", VICTIM, gateway.netns, gateway.instance, gateway.underlay],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    ) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"open\n"
        with pytest.raises(DataplaneError, match="in use by another running node"):
            gateway.open()
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        assert one.ping("10.0.2.10", count=3) == 3
    gateway.open()
    gateway.sync()
    assert audit(gateway).clean
    assert one.ping("10.0.2.10") == 1


def test_opening_changes_no_packet_s_way_before_the_first_sync(pair: Any) -> None:
    gateway = pair.a
    before = identities(gateway)
    gateway.run(gateway.backend.close)
    gateway.open()
    assert identities(gateway) == before
    gateway.sync()
    assert identities(gateway) != before


def test_a_sync_removes_what_is_stale_and_keeps_the_rest(pair: Any) -> None:
    gateway = pair.a
    for number in range(20, 30):
        gateway.compiler.set_endpoint(VPC, claim(number).ip, claim(number))
    gateway.push()
    assert gateway.run(gateway.backend.usage) == (12, 64)
    gateway.run(gateway.backend.close)
    for number in range(20, 25):
        gateway.compiler.set_endpoint(VPC, claim(number).ip, None)
    gateway.open()
    stale = audit(gateway)
    assert (
        stale.stale_count == 5 and not stale.wrong_count and "endpoints 77/10.0.2.20" in stale.stale
    )
    gateway.sync()
    assert audit(gateway).clean
    assert gateway.run(gateway.backend.usage) == (7, 64)


def test_a_full_table_is_said_and_filled_when_there_is_room(pair: Any) -> None:
    gateway = pair.a
    for number in range(20, 100):
        gateway.compiler.set_endpoint(VPC, claim(number).ip, claim(number))
    with pytest.raises(TableFull, match=r"endpoints is full \(64 of 64\): 18 rows") as failure:
        gateway.push()
    assert (failure.value.table, failure.value.refused) == ("endpoints", 18)
    assert gateway.run(gateway.backend.usages)["endpoints"] == (64, 64)
    assert audit(gateway).missing_count == 18
    assert pair.pods["one"].ping("10.0.2.10") == 1
    # It is said again by what has nothing to do with it; a row that is out may go or change.
    pair.vpc(VPC, VNI, {"10.0.3.0/24": ("b",)})
    gateway.compiler.set_endpoint(VPC, claim(99).ip, None)
    gateway.compiler.set_endpoint(VPC, claim(98).ip, dataclasses.replace(claim(98), mac=MAC_TWO))
    with pytest.raises(TableFull, match="17 rows"):
        gateway.push()
    # One that finds room, whoever made it, is out of the count, and stays as it was last said.
    gateway.backend._maps.delete("endpoints", [EndpointKey(VNI, address_of("10.0.2.20")).pack()])
    gateway.compiler.set_endpoint(VPC, claim(97).ip, dataclasses.replace(claim(97), mac=MAC_TWO))
    with pytest.raises(TableFull, match="16 rows"):
        gateway.push()
    # What makes room lets them in, though a delta writes before it removes.
    for number in range(20, 50):
        gateway.compiler.set_endpoint(VPC, claim(number).ip, None)
    gateway.push()
    assert audit(gateway).clean


def test_more_ports_than_there_is_room_for(site_pair: Any) -> None:
    gateway = site_pair.a
    site_pair.vpc(VPC, VNI, SUBNETS)
    pods = [site_pair.pod(gateway, f"n{n}", VPC, f"10.0.1.{10 + n}") for n in range(3)]
    two = site_pair.pod(site_pair.b, "two", VPC, "10.0.2.10")
    gateway.open(capacity=Capacity(ports=2))
    site_pair.b.open()
    site_pair.b.sync()
    with pytest.raises(TableFull, match=r"ports is full \(2 of 2\): 1 rows") as failure:
        gateway.sync()
    assert failure.value.refused_all == 1
    gateway.compiler.take_delta()
    (missing,) = audit(gateway).missing
    (out,) = [pod for pod in pods if f"ports {pod.ifname}" == missing]
    carried = [pod for pod in pods if pod is not out]
    assert [pod.ping(two.ip) for pod in carried] == [1, 1]
    assert out.ping(two.ip, timeout_s=0.3) == 0
    wait_for(lambda: gateway.drops("no-port") > 0, "the drop is counted")
    gateway.compiler.set_attachment(carried[0].ifname, None)
    gateway.push()
    assert audit(gateway).clean
    assert out.ping(two.ip) == 1


def test_what_the_kernel_refuses_is_said_seen_and_mended(pair: Any) -> None:
    gateway = pair.a
    fd = gateway.backend._maps._fds["subnets"]
    kept = os.dup(fd)
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        os.dup2(null, fd)
        pair.vpc(VPC, VNI, {"10.0.3.0/24": ("b",)})
        gateway.compiler.set_endpoint(VPC, claim(20).ip, claim(20))
        with pytest.raises(DataplaneError, match=r"apply: the kernel refuses: .*MAP_UPDATE_BATCH"):
            gateway.push()
        os.dup2(kept, fd)
    finally:
        os.close(kept)
        os.close(null)
    assert audit(gateway).missing == ("subnets 77/10.0.3.0/24",)
    gateway.run(lambda: gateway.backend.repair(gateway.compiler.tables()))
    assert audit(gateway).clean


def test_a_table_grows_at_a_restart_and_loses_no_packet(pair: Any) -> None:
    gateway, one = pair.a, pair.pods["one"]
    for number in range(20, 100):
        gateway.compiler.set_endpoint(VPC, claim(number).ip, claim(number))
    with pytest.raises(TableFull):
        gateway.push()
    gateway.run(gateway.backend.close)
    gateway.open(capacity=Capacity(endpoints=128))
    assert one.ping("10.0.2.10") == 1, "the programs at work keep the former table"
    gateway.sync()
    assert audit(gateway).clean
    assert gateway.run(gateway.backend.usages)["endpoints"] == (82, 128)
    assert one.ping("10.0.2.10") == 1
    gateway.run(gateway.backend.close)
    gateway.open(capacity=Capacity(endpoints=64))
    assert gateway.run(gateway.backend.usages)["endpoints"] == (82, 128), "it never shrinks"


def test_a_sync_of_a_full_table_makes_room_first(pair: Any) -> None:
    gateway = pair.a
    for number in range(20, 82):
        gateway.compiler.set_endpoint(VPC, claim(number).ip, claim(number))
    gateway.push()
    assert gateway.run(gateway.backend.usage) == (64, 64)
    for number in range(20, 82):
        gateway.compiler.set_endpoint(VPC, claim(number).ip, None)
    for number in range(90, 152):
        gateway.compiler.set_endpoint(VPC, claim(number).ip, claim(number))
    gateway.sync()
    assert audit(gateway).clean


def test_an_audit_finds_each_kind_of_damage_and_repair_mends_it(pair: Any) -> None:
    gateway, one = pair.a, pair.pods["one"]
    gateway.compiler.set_endpoint(VPC, claim(20).ip, claim(20))
    gateway.push()
    maps = gateway.backend._maps
    rows = {name: dict(maps.rows(name)) for name in ("endpoints", "groups", "ports", "subnets")}
    key, value = next(iter(rows["groups"].items()))
    first = layout.GROUP_VALUE.offsets["gateways"]
    maps.put("groups", [(key, value[:first] + b"\xff" + value[first + 1 :])])
    maps.put(
        "endpoints",
        [(EndpointKey(1, address_of("1.2.3.4")).pack(), next(iter(rows["endpoints"].values())))],
    )
    maps.delete("subnets", [next(iter(rows["subnets"]))])
    maps.delete("ports", list(rows["ports"]))
    (link,) = [
        pin
        for index, pin in pins.PinDir(gateway.instance).links()
        if gateway.run(lambda index=index: socket.if_nametoindex(one.ifname)) == index
    ]
    link.unlink()
    report = audit(gateway)
    assert report.wrong_count == 1 and report.wrong[0].startswith("groups ")
    assert report.stale == ("endpoints 1/1.2.3.4",)
    assert set(report.missing) >= {f"ports {one.ifname}", f"links {one.ifname}"}
    assert report.missing_count == 3
    assert one.ping("10.0.2.10", timeout_s=0.3) == 0
    assert gateway.run(lambda: gateway.backend.repair(gateway.compiler.tables())) == report
    assert audit(gateway).clean
    assert one.ping("10.0.2.10") == 1


def test_a_port_that_a_delta_brings_sends_at_once_and_is_let_go_by_one(pair: Any) -> None:
    gateway, one = pair.a, pair.pods["one"]
    pin = gateway.pin_dir / f"link-{gateway.run(lambda: socket.if_nametoindex(one.ifname))}"
    gateway.compiler.set_attachment(one.ifname, None)
    gateway.push()
    assert not pin.exists()
    gateway.compiler.set_attachment(one.ifname, one.attachment)
    gateway.push()
    assert pin.exists() and audit(gateway).clean
    assert one.ping("10.0.2.10") == 1


@pytest.mark.parametrize("noticed", [True, False])
def test_an_interface_made_anew_is_found_again(pair: Any, noticed: bool) -> None:
    gateway, one = pair.a, pair.pods["one"]

    def remove() -> None:
        with IPRoute() as netlink:
            netlink.link("del", index=socket.if_nametoindex(one.ifname))

    while gateway.backend.changes.take():
        pass
    gateway.run(remove)
    wait_for(gateway.backend.changes.take, "it is told of")
    if noticed:
        assert gateway.run(gateway.backend.refresh_adjacency) == 1
        assert gateway.backend.missing_interfaces() == (one.ifname,)
        assert f"ports {one.ifname}" in audit(gateway).missing
    pair.namespaces.veth((gateway.netns, one.ifname), (one.netns, "eth0"), 1450)
    pair.furnish(one)
    assert gateway.run(gateway.backend.refresh_adjacency) == 0
    assert gateway.backend.missing_interfaces() == ()
    assert audit(gateway).clean
    assert one.ping("10.0.2.10") == 1


def test_a_gateway_that_moves_is_followed(pair: Any) -> None:
    """The peer's address changes: the row, the peers' index, and the old source is refused."""
    new = "192.0.2.22"
    pair.add_address(pair.b, new)
    fact = GatewayFact(pair.b.id, "b", new, True)
    pair.a.compiler.set_gateway(pair.b.id, fact)
    pair.a.push()
    pair.a.run(pair.a.backend.refresh_adjacency)
    assert audit(pair.a).clean
    show = pair.a.run(pair.a.backend.show)
    (row,) = show["gateways"]
    assert (row["underlay"], row["resolved"], row["ifname"]) == (new, True, "wan0")
    assert [key for key, _ in pair.a.backend._maps.rows("peers")] == [
        address_bytes(address_of(new))
    ]


def test_a_foreign_map_in_our_place_is_refused(site_pair: Any) -> None:
    gateway = site_pair.a
    directory = pins.PinDir(gateway.instance)
    directory.make()
    fd = kernel.map_create(kernel.MapType.HASH, 8, 24, 64, kernel.MAP_NO_PREALLOC, "foreign")
    kernel.pin(fd, str(directory.path / "map-endpoints"))
    os.close(fd)
    with pytest.raises(DataplaneError, match=r"map-endpoints has .* is expected"):
        gateway.open()


def test_another_abi_is_replaced_without_a_gap(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway, one = pair.a, pair.pods["one"]
    old = gateway.pin_dir
    before = identities(gateway)
    gateway.run(gateway.backend.close)
    monkeypatch.setattr(layout, "ABI", layout.ABI + 1)
    answered: list[int] = []
    gateway.open()
    answered.append(one.ping("10.0.2.10"))
    assert old.is_dir()  # the old programs go on with the old maps until the new are filled
    gateway.sync()
    answered.append(one.ping("10.0.2.10"))
    assert answered == [1, 1]
    assert not old.exists() and gateway.pin_dir != old
    assert identities(gateway).keys() == before.keys()
    assert audit(gateway).clean


def test_a_version_of_before_does_not_take_over(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway, one = pair.a, pair.pods["one"]
    gateway.run(gateway.backend.close)
    newer, before = gateway.pin_dir, identities(gateway)
    monkeypatch.setattr(layout, "ABI", layout.ABI - 1)
    try:
        with pytest.raises(DataplaneError, match=f"a later version.*{newer}.*removing"):
            gateway.open()
        assert not gateway.pin_dir.exists() and one.ping("10.0.2.10") == 1
    finally:
        monkeypatch.undo()
    assert identities(gateway) == before
    gateway.open()
    gateway.sync()
    assert one.ping("10.0.2.10") == 1


def test_what_a_later_version_only_began_is_no_obstacle(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opened, and went before it had filled its maps: this version forwards still."""
    gateway, one = pair.a, pair.pods["one"]
    gateway.run(gateway.backend.close)
    monkeypatch.setattr(layout, "ABI", layout.ABI + 1)
    gateway.open()
    begun = gateway.pin_dir
    gateway.run(gateway.backend.close)
    monkeypatch.undo()
    gateway.open()
    gateway.sync()
    assert begun.is_dir() and one.ping("10.0.2.10") == 1 and audit(gateway).clean


def test_detach_leaves_nothing(pair: Any) -> None:
    gateway = pair.a
    path = gateway.pin_dir
    assert path.stat().st_mode & 0o777 == 0o700
    gateway.run(gateway.backend.detach)
    gateway.backend = None
    assert not path.exists()

    def attached() -> list[int]:
        with IPRoute() as netlink:
            return [
                link["index"]
                for link in netlink.get_links()
                if (xdp := link.get_attr("IFLA_XDP")) is not None
                and xdp.get_attr("IFLA_XDP_ATTACHED")
            ]

    wait_for(lambda: gateway.run(attached) == [], "the kernel lets go of what nothing pins")


def test_an_interface_with_a_foreign_program_is_left_alone(site_pair: Any) -> None:
    gateway = site_pair.a
    gateway.run(lambda: links.attach_pass("wan0"))
    gateway.open()
    with pytest.raises(DataplaneError, match="wan0 already runs another XDP program"):
        gateway.run(lambda: gateway.backend.replace(gateway.compiler.tables()))


def test_explain_names_the_row_that_decides(pair: Any) -> None:
    gateway = pair.a

    def explain(ip: str) -> Any:
        return gateway.run(lambda: gateway.backend.explain(VNI, ip))

    local, remote = explain("10.0.1.10"), explain("10.0.2.10")
    assert (local["kind"], local["ifname"], local["group"]) == ("endpoint", "p-one", 0)
    (group,) = [
        row
        for row in gateway.run(gateway.backend.show)["groups"]
        if row["name"] == f"gateway/{pair.b.id.hex()}"
    ]
    assert (remote["kind"], remote["group"]) == ("endpoint", group["id"])
    assert remote["gateways"] == group["gateways"]
    assert explain("10.0.2.99")["kind"] == "subnet"
    assert explain("10.9.9.9") == {"kind": "none", "vni": VNI, "ip": "10.9.9.9"}


# ---- choosing a backend -------------------------------------------------------------------------


def test_auto_takes_xdp_where_it_can(site_pair: Any) -> None:
    gateway = site_pair.a

    def choose() -> tuple[Any, str]:
        return open_backend(
            "auto",
            instance=gateway.instance,
            underlay=gateway.underlay,
            capacity=Capacity(endpoints=64),
        )

    chosen, reason = gateway.run(choose)
    try:
        assert chosen.mode == "xdp" and reason.startswith("xdp: tunnels on wan0, pinned at ")
    finally:
        gateway.run(chosen.detach)


@pytest.mark.parametrize(
    ("lacking", "words"), [("not root", "memory: not root"), ("no kernel", "memory: no kernel")]
)
def test_auto_takes_memory_and_says_why(
    monkeypatch: pytest.MonkeyPatch, lacking: str, words: str
) -> None:
    monkeypatch.setattr("dataplane.xdp.backend.lacking", lambda: lacking)
    chosen, reason = open_backend("auto", instance="x", underlay="192.0.2.1")
    assert (chosen.mode, reason) == ("memory", words)
    with pytest.raises(Unavailable, match=lacking):
        open_backend("xdp", instance="x", underlay="192.0.2.1")


def test_what_is_lacking_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "supported", lambda: True)
    monkeypatch.setattr(privilege, "missing", lambda: ["CAP_BPF"])
    assert backend.lacking() == "this process lacks CAP_BPF"
    monkeypatch.setattr(privilege, "missing", lambda: [])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert backend.lacking() == "bcc not importable (Debian: apt install python3-bpfcc)"
    monkeypatch.setattr(kernel, "supported", lambda: False)
    assert backend.lacking() == "not Linux on x86-64 or aarch64"


def test_an_underlay_address_that_nobody_has_is_said(xdp_machine: None) -> None:
    with pytest.raises(Unavailable, match=r"has the underlay address 192\.0\.2\.77"):
        XdpBackend.open(instance=f"test{os.getpid()}-none", underlay="192.0.2.77")
    with pytest.raises(Unavailable, match=r"has the underlay address 2001:db8::77"):
        XdpBackend.open(instance=f"test{os.getpid()}-none", underlay="2001:db8::77")
    with pytest.raises(DataplaneError, match="is no underlay address"):
        XdpBackend.open(instance=f"test{os.getpid()}-none", underlay="::ffff:192.0.2.77")


# ---- the C side ---------------------------------------------------------------------------------


def test_structs_that_differ_from_the_packing_do_not_compile(
    xdp_machine: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    source = programs.source()
    assert source.count("_Static_assert") > 50
    for old, new in (
        ("u16 mtu;   /* of the inner IP packet */\n", "u32 mtu;\n"),
        ("DROP_SPOOFED_IP = 4,", "DROP_SPOOFED_IP = 26,"),
    ):
        assert old in source
        monkeypatch.setattr(
            programs, "source", lambda _, old=old, new=new: source.replace(old, new)
        )
        with pytest.raises(Exception, match="compile"):
            programs.compiled()
        assert re.search("static_assert(ion)? failed", capfd.readouterr().err)


def test_the_header_tree_is_ours_and_has_no_links(tmp_path: Path) -> None:
    """A tree of links into /usr/include once led to the system's headers being overwritten."""
    if headers.missing():
        pytest.skip(str(headers.missing()))
    headers.make_tree(tmp_path / "tree")
    files = list((tmp_path / "tree").rglob("*"))
    assert len([path for path in files if path.is_file()]) >= 7
    assert not [path for path in files if path.is_symlink()]
    with pytest.raises(FileExistsError):
        headers.make_tree(tmp_path / "tree")


def test_how_the_programs_run_is_told(site_pair: Any) -> None:
    site_pair.open()

    def look() -> tuple[bool, bool, bool]:
        wan, loopback = socket.if_nametoindex("wan0"), 1
        before = links.native(loopback)
        fd = site_pair.a.backend._programs["xdp_wan"]
        link = kernel.link_create_xdp(fd, loopback, kernel.XDP_FLAGS_SKB)
        try:
            return links.native(wan), before, links.native(loopback)
        finally:
            os.close(link)

    assert site_pair.a.run(look) == (True, False, False)
