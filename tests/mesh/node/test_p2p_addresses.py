"""Over which addresses a node is reached: IPv4 and IPv6, several at once, and bootstrap."""

from __future__ import annotations

import errno
from random import Random

import pytest
import trio

from mesh.core.errors import BadInput, NotReady
from mesh.node.p2p.dialler import BOOTSTRAP_MAX, CONNECT_S, STAGGER_S
from mesh.node.p2p.events import PeerDown
from mesh.node.p2p.join import request_join
from mesh.node.p2p.tcp import Address, Conduit, Listener, TcpNet, _listen_error
from tests.mesh.node.p2p_peers import (
    LOOPBACK,
    Members,
    Peer,
    eventually,
    key_of,
    link_up,
    nothing_leaks,
    running,
    seed_of,
)
from tests.own_time import OWN_TIME
from tests.ports import free_port

pytestmark = OWN_TIME

LOOPBACK6 = "/ip6/::1/tcp/0"
BLACK_HOLE = "/ip4/192.0.2.77/tcp/7400"


def port_of(addr: str) -> int:
    return Address.parse(addr).port


class Swallowing(TcpNet):
    """A network in which connecting to BLACK_HOLE is never answered."""

    async def connect(self, address: Address) -> Conduit:
        if str(address) == BLACK_HOLE:
            await trio.sleep_forever()
        return await super().connect(address)


async def test_two_nodes_link_over_ipv6() -> None:
    a, b = (Peer(n, Members([1, 2]), listen=[LOOPBACK6]) for n in (1, 2))
    async with running(a, b):
        (addr,) = b.transport.listen_addrs()
        assert addr == f"/ip6/::1/tcp/{port_of(addr)}"
        await link_up(a, b)
        a.transport.send(b.id, b"six")
        await b.until_frames(a, 1)
        assert a.transport.peers()[0].addr == addr
        (info,) = b.transport.peers()
        assert info.addr.startswith("/ip6/::1/tcp/")


async def test_a_node_listens_on_both_families_and_is_reached_on_either() -> None:
    b = Peer(2, Members([1, 2, 3]), listen=[LOOPBACK, LOOPBACK6])
    a, c = (Peer(n, Members([1, 2, 3])) for n in (1, 3))
    async with running(a, b, c):
        four, six = b.transport.listen_addrs()
        a.transport.set_targets({b.id: [four]})
        c.transport.set_targets({b.id: [six]})
        await a.until_linked(b)
        await c.until_linked(b)
        assert (a.transport.peers()[0].addr, c.transport.peers()[0].addr) == (four, six)


async def test_both_wildcards_can_share_a_port() -> None:
    port = free_port()
    wildcards = [f"/ip6/::/tcp/{port}", f"/ip4/0.0.0.0/tcp/{port}"]
    a, b = Peer(1, Members([1, 2])), Peer(2, Members([1, 2]), listen=wildcards)
    async with running(a, b):
        assert list(b.transport.listen_addrs()) == wildcards
        for host in ("/ip4/127.0.0.1", "/ip6/::1"):
            a.transport.set_targets({b.id: [f"{host}/tcp/{port}"]})
            await a.until_linked(b)
            a.transport.drop(b.id, "next", 0)
            await eventually(lambda: not a.linked(b))


class FourOnly(TcpNet):
    """A machine without IPv6."""

    async def listen(self, address: Address) -> Listener:
        if address.protocol == "ip6":
            error = OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            raise _listen_error(address, error) from error
        return await super().listen(address)


async def test_a_machine_without_ipv6_has_no_ipv6_addresses_and_no_trouble() -> None:
    port = free_port()
    both = [f"/ip4/0.0.0.0/tcp/{port}", f"/ip6/::/tcp/{port}"]
    a = Peer(1, Members([1]), listen=both, net=FourOnly())
    async with running(a):
        assert a.transport.listen_addrs() == (both[0],)
    with pytest.raises(NotReady, match="this machine has no IPv6"):
        await Peer(1, Members([1]), listen=[LOOPBACK6], net=FourOnly()).transport.run()


@pytest.mark.parametrize("shuffle", range(4))
async def test_an_address_that_swallows_packets_costs_a_moment(shuffle: int) -> None:
    a, b = Peer(1, Members([1, 2]), net=Swallowing()), Peer(2, Members([1, 2]), listen=[LOOPBACK6])
    async with running(a, b):
        good = b.transport.listen_addrs()[0]
        addrs = [BLACK_HOLE, "/ip4/127.0.0.1/tcp/1", good]
        Random(shuffle).shuffle(addrs)
        a.transport.set_targets({b.id: addrs})
        began_s = trio.current_time()
        assert await a.until_linked(b) - began_s < CONNECT_S - 1
        # What was good goes first the next time.
        a.transport.drop(b.id, "again", 0)
        began_s = await a.until_downs(b)
        assert await a.until_ups(b, 2) - began_s < STAGGER_S + 1


async def test_what_else_connected_is_closed_when_there_is_a_link() -> None:
    b = Peer(2, Members([1, 2]), listen=[LOOPBACK, LOOPBACK6])
    a = Peer(1, Members([1, 2]))
    async with running(a, b), nothing_leaks():
        a.target(b)
        await a.until_linked(b)
        await eventually(lambda: a.idle() and b.idle())
        a.transport.set_targets({})
        a.transport.drop(b.id, "over", 0)
        await a.until_downs(b)
        await b.until_downs(a)
        await eventually(lambda: a.idle() and b.idle())


async def test_a_token_with_several_addresses_is_used_at_once() -> None:
    async def admit(key: bytes, request: bytes) -> bytes:
        return b"in: " + request

    a = Peer(1, Members([1]), listen=[LOOPBACK6], join_handler=admit)
    async with running(a):
        a.transport.open_joining(True)
        addrs = [BLACK_HOLE, BLACK_HOLE, "/ip4/127.0.0.1/tcp/1", *a.transport.listen_addrs()]
        began_s = trio.current_time()
        answer = await request_join(seed_of(9), addrs, key_of(1), b"me", 10, Swallowing())
        assert answer == b"in: me"
        assert trio.current_time() - began_s < CONNECT_S - 1


# -- bootstrap -------------------------------------------------------------------------------------


async def test_who_is_at_a_bootstrap_address_is_learned_in_the_handshake() -> None:
    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
    async with running(a, b):
        a.transport.set_bootstrap(b.transport.listen_addrs())
        await a.until_linked(b)
        assert a.transport._dialler.targets == {}
        # It is a link like any other, and won back like any other.
        await b.stop()
        await a.until_downs(b)
        again = Peer(2, Members([1, 2]), listen=b.transport.listen_addrs())
        async with running(again):
            await a.until_ups(b, 2)


async def test_a_bootstrap_address_of_somebody_already_linked_is_left_alone() -> None:
    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
    async with running(a, b):
        await link_up(a, b)
        a.transport.set_bootstrap(b.transport.listen_addrs())
        await eventually(lambda: bool(a.transport._dialler._found) and not _wanted(a))
        await eventually(a.idle)
        assert a.ups(b) == 1 and not a.said(PeerDown)


async def test_ones_own_address_and_strangers_are_no_use_and_do_no_harm() -> None:
    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
    stranger = Peer(3, Members([1, 3]))
    async with running(a, b, stranger):
        own, foreign = a.transport.listen_addrs()[0], stranger.transport.listen_addrs()[0]
        a.transport.set_bootstrap([own, foreign, *b.transport.listen_addrs()])
        await a.until_linked(b)
        await eventually(lambda: a.transport._dialler._found.get(own) == a.id)
        await eventually(lambda: _dials(a, foreign) >= 1)
        assert not stranger.log and [type(e).__name__ for e in a.log] == ["PeerUp"]
        await eventually(lambda: _wanted(a) == [foreign])


async def test_bootstrap_addresses_are_checked_and_bounded() -> None:
    a = Peer(1, Members([1]))
    async with running(a):
        with pytest.raises(BadInput):
            a.transport.set_bootstrap(["nonsense"])
        a.transport.set_bootstrap([f"/ip4/127.0.0.1/tcp/{n}" for n in range(1, 50)])
        assert len(a.transport._dialler._bootstrap) == BOOTSTRAP_MAX


def _wanted(peer: Peer) -> list[str]:
    return sorted(peer.transport._dialler._redial.wanted())


def _dials(peer: Peer, addr: str) -> int:
    return peer.transport._dialler.dialled.get(Address.parse(addr), -1) + 1
