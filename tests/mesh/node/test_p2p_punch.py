"""Hole punching and circuits: what is decided from bytes and addresses alone."""

from __future__ import annotations

import contextlib

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Status, StopMessage
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from multiaddr import Multiaddr

from mesh.core.errors import BadInput, PeerError
from mesh.node.p2p import punch
from mesh.node.p2p.circuit import MESSAGE_BYTES_MAX, CircuitAddress, Messages, peer_of
from mesh.node.p2p.punch import Seen, outer_host
from mesh.node.p2p.tcp import Address
from tests.mesh.node.p2p_peers import key_of


def seen(local: str, observed: str) -> Seen:
    return Seen(Address.parse(local), Address.parse(observed))


def test_which_port_others_see_is_learned_from_the_links_there_are() -> None:
    kept = seen("/ip4/10.0.0.2/tcp/50000", "/ip4/198.51.100.7/tcp/50000")
    moved = seen("/ip4/10.0.0.2/tcp/50001", "/ip4/198.51.100.7/tcp/61234")
    six = seen("/ip6/fd00::2/tcp/50002", "/ip6/2001:db8::7/tcp/50002")
    assert outer_host([]) is None
    assert outer_host([kept]) == ("ip4", "198.51.100.7")
    assert outer_host([moved]) is None
    assert outer_host([kept, moved]) is None
    assert outer_host([kept, kept, six]) == ("ip4", "198.51.100.7")
    assert outer_host([six, moved]) == ("ip6", "2001:db8::7")


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_any_bytes_as_addresses_are_an_address_or_none(raw: list[bytes]) -> None:
    message = HolePunch(type=HolePunch.CONNECT, ObsAddrs=raw)
    with contextlib.suppress(PeerError):
        address = punch._address(message, "ip4")
        assert address.protocol == "ip4" and 0 < address.port <= 65535


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/127.0.0.1/tcp/22",
        "/ip4/0.0.0.0/tcp/22",
        "/ip4/224.0.0.1/tcp/22",
        "/ip4/169.254.169.254/tcp/80",
        "/ip4/192.0.2.1/tcp/0",
        "/ip6/2001:db8::1/tcp/22",
        "/ip4/192.0.2.1/udp/22",
        "/dns4/example.com/tcp/22",
    ],
)
def test_a_member_cannot_have_this_node_knock_just_anywhere(text: str) -> None:
    raw = Multiaddr(text).to_bytes()
    with pytest.raises(PeerError):
        punch._address(HolePunch(type=HolePunch.CONNECT, ObsAddrs=[raw]), "ip4")


def test_an_address_through_a_relay_is_written_as_the_standard_writes_it() -> None:
    address = CircuitAddress(Address("ip4", "192.0.2.1", 7400), key_of(1))
    text = str(address)
    assert text == (
        "/ip4/192.0.2.1/tcp/7400/p2p/12D3KooWFVSEUV5XeLyGTMsB6H2qpZAab44wqHrxhC6B4Mj627Hz"
        "/p2p-circuit"
    )
    assert CircuitAddress.parse(text) == address
    assert CircuitAddress.parse("/ip4/192.0.2.1/tcp/7400") is None


@given(st.text(max_size=80))
def test_any_text_is_an_address_through_a_relay_or_bad_input(text: str) -> None:
    with contextlib.suppress(BadInput):
        assert CircuitAddress.parse(text) is None
    for before in (text, f"/ip4/192.0.2.1/tcp/7400/p2p/{text}"):
        with pytest.raises(BadInput):
            CircuitAddress.parse(f"{before}/p2p-circuit")


class Fed:
    """A stream that has these pieces to read."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)

    async def read(self, _: int) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""


def test_what_follows_a_message_belongs_to_the_circuit() -> None:
    first = b"first bytes of the far end"
    message = StopMessage(type=StopMessage.STATUS, status=Status.OK).SerializeToString()
    whole = bytes([len(message)]) + message + first

    async def read_in_pieces() -> None:
        for cut in range(1, len(whole)):
            messages = Messages(Fed(whole[:cut], whole[cut:]))  # type: ignore[arg-type]
            assert (await messages.read(StopMessage)).status == Status.OK
            rest = messages.rest()
            assert first.startswith(rest) and (cut < len(message) + 1) == (rest == first)

    trio.run(read_in_pieces)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6))
def test_any_bytes_are_a_message_or_cost_the_stream(pieces: list[bytes]) -> None:
    async def read() -> None:
        messages = Messages(Fed(*pieces))  # type: ignore[arg-type]
        with contextlib.suppress(PeerError):
            while True:
                await messages.read(HopMessage)

    trio.run(read)


def test_a_message_that_says_it_is_long_is_not_waited_for() -> None:
    async def read() -> None:
        for size in (MESSAGE_BYTES_MAX + 1, 1 << 20, 1 << 34):
            prefix = bytearray()
            while size >= 0x80:
                prefix.append(size & 0x7F | 0x80)
                size >>= 7
            messages = Messages(Fed(bytes(prefix) + bytes([size])))  # type: ignore[arg-type]
            with pytest.raises(PeerError, match=r"length|bytes, allowed"):
                await messages.read(HopMessage)

    trio.run(read)


def test_the_bytes_of_the_messages_are_the_standards() -> None:
    """Taken down once; go-libp2p and rust-libp2p read and write the same."""
    connect = HopMessage(type=HopMessage.CONNECT, peer=peer_of(key_of(1)))
    raw = connect.SerializeToString()
    assert raw[:8].hex() == "080112280a260024" and raw[-32:] == key_of(1)
    status = HopMessage(type=HopMessage.STATUS, status=Status.NO_RESERVATION)
    assert status.SerializeToString().hex() == "080228cc01"
    stop = StopMessage(type=StopMessage.STATUS, status=Status.OK)
    assert stop.SerializeToString().hex() == "08012064"
    address = Address("ip4", "198.51.100.7", 50000)
    assert punch._connect([address]).SerializeToString().hex() == "0864120804c633640706c350"
    assert HolePunch(type=HolePunch.SYNC).SerializeToString().hex() == "08ac02"
