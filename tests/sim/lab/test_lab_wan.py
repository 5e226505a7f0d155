"""The process that carries a lab's frames: latency, cuts one way and both, loss, TCP's segments
whole, and what it counts. Between namespaces with nobody in them but the test."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.errors import NotReady
from sim.lab.probes import Flow, Pinger, transfer
from sim.lab.topology import Topology
from sim.lab.wan import VNET_HEADER_BYTES, payload_bytes
from sim.lab.weather import Wan

DEADLINE_S = 30.0
CUT_TIMEOUT_S = 0.5  # for answers that must not come


@dataclass
class Carried:
    """Two sites, and the process between them."""

    topology: Topology
    wan: Wan

    def links(self, delay_ms: float = 0.0, cut: tuple[str, ...] = (), loss: float = 0.0) -> None:
        """`cut`: directions, as "a1b1"."""
        names = {gateway.name: gateway.port for gateway in self.topology.gateways}
        self.wan.set(
            [
                {
                    "from": port,
                    "to": other,
                    "delay_ms": delay_ms,
                    "jitter_ms": 0.0,
                    "loss": loss,
                    "bits_per_s": 0,
                    "cut": f"{name}{other_name}" in cut,
                }
                for name, port in names.items()
                for other_name, other in names.items()
                if name != other_name
            ]
        )

    def rtt_ms(self, timeout_s: float = DEADLINE_S) -> float | None:
        """Of a request from a1 to b1."""
        a, b = self.topology.gateways
        with Pinger([Flow("a1 → b1", a.netns, b.underlay_ip)]) as pinger:
            return pinger.run(rounds=1, interval_s=0.0, timeout_s=timeout_s)[0].rtt_ms


@pytest.fixture
def carried(built: Callable[..., Topology]) -> Iterator[Carried]:
    topology = built(sites=2, vpcs=0, pods=0)
    wan = Wan(topology)
    yield Carried(topology, wan)
    wan.end()


def test_frames_take_as_long_as_they_are_told(carried: Carried) -> None:
    assert carried.rtt_ms() is not None, "as a bridge, before it is told anything"
    carried.links(delay_ms=60)
    rtt_ms = carried.rtt_ms()
    assert rtt_ms is not None and rtt_ms >= 120
    carried.links()
    deadline_s = time.monotonic() + DEADLINE_S
    while (carried.rtt_ms() or 999) >= 120:  # the process has not had its turn
        assert time.monotonic() < deadline_s


@pytest.mark.parametrize("cut", [("a1b1",), ("b1a1",), ("a1b1", "b1a1")])
def test_a_cut_in_any_direction_loses_the_answer(carried: Carried, cut: tuple[str, ...]) -> None:
    assert carried.rtt_ms() is not None
    carried.links(cut=cut)
    assert carried.rtt_ms(CUT_TIMEOUT_S) is None
    carried.links(loss=1.0)
    assert carried.rtt_ms(CUT_TIMEOUT_S) is None
    carried.links()
    assert carried.rtt_ms() is not None


def test_bulk_tcp_goes_through_whole_and_is_counted_once(carried: Carried) -> None:
    """Frames of up to 64 KiB, with checksums and cutting left to hardware that is not there."""
    a, b = carried.topology.gateways
    before = carried.wan.sent_bytes()
    assert before == {"a1": 0, "b1": 0}
    size = 20_000_000
    result = transfer(a.netns, b.netns, b.underlay_ip, size)
    assert result.intact
    sent = carried.wan.sent_bytes()
    assert size <= sent["a1"] < 1.1 * size
    assert sent["b1"] < 1000


def test_a_process_that_has_ended_is_told(carried: Carried) -> None:
    carried.wan.end()
    with pytest.raises(NotReady, match="has ended"):
        carried.wan.sent_bytes()


@given(st.binary(max_size=120))
def test_any_frame_is_counted(frame: bytes) -> None:
    assert payload_bytes(frame) >= 0


def test_what_tcp_carries_is_counted() -> None:
    ip = struct.pack("!BBHHHBBH8x", 0x45, 0, 20 + 32 + 7, 0, 0, 64, 6, 0)
    tcp = bytes(12) + bytes([8 << 4]) + bytes(19) + b"payload"
    ethernet = bytes(VNET_HEADER_BYTES + 12) + b"\x08\x00"
    assert payload_bytes(ethernet + ip + tcp) == 7
    assert payload_bytes(ethernet + ip + tcp + bytes(6)) == 7, "padding is nothing sent"
    udp = ip[:9] + bytes([17]) + ip[10:]
    assert payload_bytes(ethernet + udp + tcp) == 0
