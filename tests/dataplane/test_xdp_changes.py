"""Changes of interfaces, addresses and neighbours are heard of, and what is none is not."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyroute2 import IPRoute

from dataplane.xdp import changes, links
from dataplane.xdp.changes import Changes
from tests.dataplane.conftest import WAIT_S, Namespaces, wait_for

OTHER = "02:00:00:00:00:99"
NEW_NEIGHBOUR = 28


class Place:
    """A namespace with a wire, and its changes."""

    def __init__(self, spaces: Namespaces) -> None:
        self.netns = spaces.make("changes")
        spaces.veth((self.netns, "one"), (self.netns, "two"))
        self.changes: Changes = links.in_netns(self.netns, Changes)

    def do(self, call: Callable[[IPRoute, int], Any]) -> None:
        def run() -> None:
            with IPRoute() as netlink:
                call(netlink, socket.if_nametoindex("one"))

        links.in_netns(self.netns, run)

    def neighbour(self, number: int, mac: str = OTHER, state: str = "permanent") -> None:
        self.do(
            lambda netlink, index: netlink.neigh(
                "replace", dst=f"192.0.2.{number}", lladdr=mac, ifindex=index, state=state
            )
        )

    def told(self) -> None:
        """Something is told of that is a change."""
        wait_for(self.changes.take, "a change is told of")

    def news(self, count: int, kind: int = NEW_NEIGHBOUR) -> list[bool]:
        """Whether the next so many messages of a kind are of changes. The kernel has something to
        say of interfaces at any time."""
        found: list[bool] = []
        while len(found) < count:
            assert select.select([self.changes], [], [], WAIT_S)[0], "the kernel says something"
            data = self.changes._socket.recv(1 << 16)
            if struct.unpack_from("=IH", data)[1] == kind:
                found.append(self.changes._tells(data))
        return found


@pytest.fixture
def place() -> Iterator[Place]:
    if os.geteuid() != 0:
        pytest.skip("namespaces are made by root")
    spaces = Namespaces()
    try:
        place = Place(spaces)
        yield place
        place.changes.close()
    finally:
        spaces.remove()


def test_what_changes_is_told(place: Place) -> None:
    calls: tuple[tuple[int, Callable[[IPRoute, int], Any]], ...] = (
        (20, lambda netlink, index: netlink.addr("add", index=index, address="192.0.2.1/24")),
        (24, lambda netlink, index: netlink.route("add", dst="198.51.100.0/24", oif=index)),
        (16, lambda netlink, index: netlink.link("set", index=index, mtu=1400)),
        (21, lambda netlink, index: netlink.addr("del", index=index, address="192.0.2.1/24")),
        (17, lambda netlink, index: netlink.link("del", index=index)),
    )
    for kind, call in calls:
        place.do(call)
        assert place.news(1, kind) == [True]


def test_a_neighbour_is_told_of_when_its_link_address_is_new(place: Place) -> None:
    steps = (
        ((2, OTHER, "permanent"), True),
        ((2, OTHER, "noarp"), False),
        ((2, "02:00:00:00:00:98", "permanent"), True),
        ((3, OTHER, "permanent"), True),
        ((2, "02:00:00:00:00:98", "noarp"), False),
        ((2, OTHER, "noarp"), True),
    )
    for step, new in steps:
        place.neighbour(*step)
        assert place.news(1) == [new], step


def test_what_is_lost_counts_as_a_change(place: Place) -> None:
    place.neighbour(2)
    assert place.news(1) == [True]
    place.changes._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)

    def toggle(netlink: IPRoute, index: int) -> None:
        for number in range(100):
            state = "noarp" if number % 2 else "permanent"
            netlink.neigh("replace", dst="192.0.2.2", lladdr=OTHER, ifindex=index, state=state)

    place.do(toggle)
    place.told()  # though none of these would be a change
    while place.changes.take():
        pass
    place.changes._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    place.neighbour(2, state="permanent")
    place.neighbour(2, mac="02:00:00:00:00:98")
    assert place.news(2) == [False, True], "what comes after is heard again"


def test_neighbours_beyond_the_bound_are_forgotten(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "KNOWN_MAX", 3)
    for number in (2, 3, 4, 5):
        place.neighbour(number)
    assert place.news(4) == [True] * 4 and len(place.changes._known) == 1
    place.neighbour(5, state="noarp")
    place.neighbour(2, state="noarp")
    assert place.news(2) == [False, True]


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("=IHHII", 0, 28, 0, 0, 0),
        struct.pack("=IHHII", 20, 28, 0, 0, 0) + bytes(4),
        struct.pack("=IHHII", 1 << 31, 16, 0, 0, 0),
    ],
)
def test_what_is_no_message_as_we_know_them_is_a_change(place: Place, data: bytes) -> None:
    assert place.changes._tells(data)


def test_attributes_end_where_they_say_nonsense(place: Place) -> None:
    head = struct.pack("=IHHII", 16 + 12 + 4, 28, 0, 0, 0)
    body = struct.pack("=B3xiHBB", socket.AF_INET, 7, 2, 0, 0) + struct.pack("=HH", 0, 1)
    assert place.changes._tells(head + body)
    assert not place.changes._tells(head + body), "the same neighbour without an address"
