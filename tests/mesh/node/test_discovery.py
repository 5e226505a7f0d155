"""Members in one local network find each other; what others announce there costs little."""

from __future__ import annotations

import ipaddress
import itertools
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked
from zeroconf._dns import DNSPointer, DNSText
from zeroconf._protocol.outgoing import DNSOutgoing

from mesh.core.ops import NodeId
from mesh.node import addresses
from mesh.node.discovery import (
    FOUND_MAX,
    NAMES_MAX,
    OWN_ADDRS_MAX,
    SERVICE,
    TEXT_ADDRS_MAX,
    Announced,
    Discovery,
    announced,
    text_of,
    within,
)
from mesh.node.store import Store
from tests.fuzz.mutate import mutated
from tests.mesh.node.p2p_peers import Members, id_of, key_of
from tests.mesh.node.processes import Process, new_mesh
from tests.mesh.node.processes import id_of as process_id

_numbers = itertools.count()
A, B = "10.77.0.1", "10.77.0.2"
GARBAGE = 500
THROWER = """
import socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(sys.argv[1]))
for line in sys.stdin:
    sender.sendto(bytes.fromhex(line), ("224.0.0.251", 5353))
"""


# -- what is said ----------------------------------------------------------------------------------


def test_what_is_announced_is_what_libp2p_says() -> None:
    text = text_of(key_of(1), ["/ip4/10.0.0.1/tcp/7400", "/ip6/2001:db8::1/tcp/7400"])
    strings, at = [], 0
    while at < len(text):
        strings.append(text[at + 1 : at + 1 + text[at]].decode())
        at += 1 + text[at]
    assert [string.rpartition("/p2p/")[0] for string in strings] == [
        "dnsaddr=/ip4/10.0.0.1/tcp/7400",
        "dnsaddr=/ip6/2001:db8::1/tcp/7400",
    ]
    assert all(string.rpartition("/p2p/")[2].startswith("12D3Koo") for string in strings)
    assert announced(text) == [
        Announced(key_of(1), "/ip4/10.0.0.1/tcp/7400"),
        Announced(key_of(1), "/ip6/2001:db8::1/tcp/7400"),
    ]


@given(st.binary(max_size=600))
def test_no_text_of_strangers_does_harm(text: bytes) -> None:
    assert len(announced(text)) <= TEXT_ADDRS_MAX


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=60)), max_size=20))
def test_a_text_that_is_nearly_right_does_no_harm(bends: list[tuple[int, bytes]]) -> None:
    text = bytearray(text_of(key_of(1), [f"/ip4/10.0.0.{i}/tcp/7400" for i in range(3)]))
    for at, bent in bends:
        text[at % len(text) : at % len(text) + len(bent)] = bent
    assert all(within(said.addr, ()) is False for said in announced(bytes(text)))


@pytest.mark.parametrize(
    "addr",
    ["/dns4/example.org/tcp/7400", "/ip4/10.0.0.1/udp/7400", "/ip4/10.0.0.1/tcp/0", "/unix/x", ""],
)
def test_what_cannot_be_dialled_in_a_local_network_is_passed_over(addr: str) -> None:
    assert announced(text_of(key_of(1), [addr, "/ip4/10.0.0.1/tcp/1"])) == [
        Announced(key_of(1), "/ip4/10.0.0.1/tcp/1")
    ]


def test_a_text_names_a_few_addresses_at_most() -> None:
    addrs = [f"/ip4/10.0.0.{i}/tcp/7400" for i in range(100)]
    text = text_of(key_of(1), addrs)
    assert [said.addr for said in announced(text)] == addrs[:OWN_ADDRS_MAX]
    assert len(announced(text * 50)) == TEXT_ADDRS_MAX


def test_only_this_machines_networks_count() -> None:
    nets: list[addresses.Cidr] = [
        addresses.Network("10.77.0.1", 24, True).cidr,
        addresses.Network("2001:db8::1", 64, True).cidr,
        ipaddress.ip_network("127.0.0.0/8"),
    ]
    assert within("/ip4/10.77.0.200/tcp/1", nets) and within("/ip6/2001:db8::2/tcp/1", nets)
    assert not within("/ip4/10.78.0.1/tcp/1", nets) and not within("/ip4/8.8.8.8/tcp/53", nets)
    assert not within("/ip4/127.0.0.1/tcp/1", nets), "nobody has us dial ourselves"


# -- what is kept of it ----------------------------------------------------------------------------


class Kept:
    def __init__(self) -> None:
        self.news = 0
        members = Members([1, 2, 3])
        self.discovery = Discovery(
            lambda: key_of(1), lambda: [], members.identify, lambda: setattr(self, "news", 1)
        )

    def take(self, *said: Announced) -> dict[NodeId, tuple[str, ...]]:
        self.news = 0
        self.discovery._take(said)
        return dict(self.discovery.found)


@pytest.mark.trio
async def test_of_what_is_announced_only_members_count_and_few_addresses_of_each() -> None:
    kept = Kept()
    addrs = [f"/ip4/10.0.0.{i}/tcp/7400" for i in range(20)]
    strangers = [Announced(key_of(n), addr) for n, addr in enumerate(addrs, 10)]
    assert kept.take(*strangers, Announced(key_of(1), addrs[0])) == {}, "nor do we ourselves"
    assert kept.news == 0
    found = kept.take(*(Announced(key_of(2), addr) for addr in addrs))
    assert found == {id_of(2): tuple(reversed(addrs[-FOUND_MAX:]))}
    assert kept.news == 1
    assert kept.take(Announced(key_of(2), addrs[-2]))[id_of(2)][0] == addrs[-2]
    assert kept.news == 0, "only the order has changed"


@pytest.mark.trio
async def test_of_names_only_the_last_are_kept() -> None:
    discovery = Kept().discovery
    for i in range(10 * NAMES_MAX):
        discovery._hear(f"{i}")
        discovery._hear("again")
    assert len(discovery._names) == NAMES_MAX
    assert list(discovery._names)[-1] == "again"


@pytest.mark.trio
async def test_what_was_found_is_forgotten_when_it_is_no_longer_asked_for() -> None:
    kept = Kept()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kept.discovery.run)
        await wait_all_tasks_blocked()
        kept.take(Announced(key_of(2), "/ip4/10.0.0.1/tcp/1"))
        kept.news = 0
        kept.discovery.use(False)
        await wait_all_tasks_blocked()
        assert kept.discovery.found == {} and kept.news == 1
        nursery.cancel_scope.cancel()


# -- real networks ---------------------------------------------------------------------------------


@pytest.fixture
def lan() -> Iterator[tuple[str, str]]:
    """Two namespaces joined by a cable."""
    lacking = "root" if os.geteuid() else "" if shutil.which("ip") else "ip"
    if lacking:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI lacks {lacking}")
        pytest.skip(f"needs {lacking}")
    prefix = f"wd{os.getpid()}-{next(_numbers)}-"
    names = (prefix + "a", prefix + "b")
    try:
        for name in names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        pair = ("type", "veth", "peer", "name", "eth", "netns", names[1])
        _ip("-n", names[0], "link", "add", "name", "eth", *pair)
        for name, host in zip(names, (A, B), strict=True):
            _ip("-n", name, "addr", "add", f"{host}/24", "dev", "eth")
            _ip("-n", name, "link", "set", "eth", "up")
            _ip("-n", name, "route", "add", "default", "dev", "eth")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True)


def unaware(process: Process, mdns: bool = True) -> Process:
    """A member that has never met any other, and listens everywhere."""
    text = process.config.read_text().replace(process.addr, f"/ip4/0.0.0.0/tcp/{process.port}")
    assert "mdns = false" in text
    process.config.write_text(text.replace("mdns = false", "mdns = true") if mdns else text)
    return process


def throw_garbage(netns: str) -> None:
    """Answers of multicast DNS that are nearly right, into the network of a namespace."""
    name = f"0123456789abcdef.{SERVICE}"
    answer = DNSOutgoing(0x8400)
    answer.add_answer_at_time(DNSPointer(SERVICE, 12, 1, 4500, name), 0)
    text = text_of(key_of(1), [f"/ip4/{B}/tcp/7400"])
    answer.add_answer_at_time(DNSText(name, 16, 0x8001, 4500, text), 0)
    chance = random.Random(1)
    packets = [mutated(chance, answer.packets())[:1400] for _ in range(GARBAGE)]
    said = "\n".join(packet.hex() for packet in packets)
    command = ["ip", "netns", "exec", netns, sys.executable, "-c", THROWER, B]
    subprocess.run(command, input=said, text=True, check=True)


def linked(process: Process) -> int:
    return int(process.status()["peers"]["connected"])


def test_two_members_in_one_network_find_each_other_and_no_stranger(
    lan: tuple[str, str], tmp_path: Path
) -> None:
    nodes = new_mesh(tmp_path, ["a1", "b1"])
    (stranger,) = new_mesh(tmp_path, ["x1"]).values()
    a, b = (unaware(nodes[name]) for name in ("a1", "b1"))
    for process, other in ((a, b), (b, a)):
        store = Store(process.home / "store.db")
        store.forget_addresses(process_id(other.name))
        store.close()
    try:
        unaware(stranger).start(netns=lan[1])
        a.start(netns=lan[0])
        throw_garbage(lan[1])
        assert a.status()["ready"]
        b.start(wait=False, netns=lan[1])
        for process in (a, b):
            process.until(lambda p=process: linked(p) == 1, "linked")  # type: ignore[misc]
        assert linked(stranger) == 0
        assert "p2p.not_admitted" not in a.log.read_text(), "strangers are not even dialled"
        assert "Traceback" not in a.log.read_text()
    finally:
        for process in (a, b, stranger):
            process.kill()


def test_nothing_is_announced_unless_it_is_asked_for(lan: tuple[str, str], tmp_path: Path) -> None:
    nodes = new_mesh(tmp_path, ["a1", "b1"])
    a, b = unaware(nodes["a1"], mdns=False), unaware(nodes["b1"])
    for process, other in ((a, b), (b, a)):
        store = Store(process.home / "store.db")
        store.forget_addresses(process_id(other.name))
        store.close()
    try:
        a.start(netns=lan[0])
        b.start(netns=lan[1])
        end_s = time.monotonic() + 3
        a.until(lambda: time.monotonic() > end_s, "a while")
        assert linked(a) == linked(b) == 0
        a.config.write_text(a.config.read_text().replace("mdns = false", "mdns = true"))
        assert a.ask("POST", "/v1/reload", {})[0] == 200
        a.until(lambda: linked(a) == 1, "linked after a reload")
    finally:
        for process in (a, b):
            process.kill()
