"""What leaves is what tshark takes it for: nothing malformed, no wrong checksum, the right VNI."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dataplane import frames
from tests.dataplane.conftest import SitePair, SixPair
from tests.dataplane.frames import CROWD, SIX, SIX_FAR, World
from tests.dataplane.workbench import ABROAD, REDIRECT, ROUTER, VNI

WRONG = (
    "_ws.malformed || _ws.expert.severity == error || ip.checksum.status == Bad"
    " || udp.checksum.status == Bad || icmp.checksum.status == Bad"
    " || icmpv6.checksum.status == Bad"
)


@pytest.fixture(scope="module", params=[SitePair, SixPair])
def world(xdp_machine: None, request: Any) -> Iterator[World]:
    """Over IPv4, and over IPv6."""
    with frames.world(request.param) as made:
        yield made


@pytest.fixture(scope="module")
def tshark() -> str:
    found = shutil.which("tshark")
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("tshark has to be here (Debian: apt install tshark)")
    return found or pytest.skip("tshark is not here (Debian: apt install tshark)")


def left(world: World) -> list[bytes]:
    """One frame of each kind that the programs make or change."""
    bench, packets = world.bench, world.bench.packets

    def six(dst: str, size: int, hops: int = 64) -> bytes:
        head = b"\x80\0\0\0\1\2\3\4" + bytes(size)
        blank = packets.ipv6(SIX, dst, head, protocol=58, hops=hops)
        sum = packets.checksum6(blank).to_bytes(2, "big")
        ip = packets.ipv6(SIX, dst, head[:2] + sum + head[4:], protocol=58, hops=hops)
        return bytes(packets.ethernet(ROUTER, world.six.mac, ip, 0x86DD))

    def solicited() -> bytes:
        target = bytes.fromhex("fd000000000000010000000000000099")
        body = bytes([135]) + bytes(7) + target
        ip = packets.ipv6(SIX, "ff02::1:ff00:99", body, protocol=58, hops=255)
        return bytes(packets.ethernet(ROUTER, world.six.mac, ip, 0x86DD))

    mac, ip = bench.pod.mac, bench.pod.ip
    from_pod = [
        bench.sent(bench.datagram(ABROAD)),
        bench.sent(bench.datagram(ABROAD, size=1450)),
        bench.sent(bench.datagram(ABROAD, ttl=1)),
        bench.sent(packets.arp(1, mac, ip, "10.0.1.99"), kind=0x0806),
    ]
    of_six = [six(SIX_FAR, 100), six(SIX_FAR, 1450), six(SIX_FAR, 64, hops=1), solicited()]
    of_six.append(six("fd00:0:0:1::1", 20))
    runs = [
        *bench.run_all("xdp_pod", bench.pod.ifname, from_pod),
        *bench.run_all("xdp_pod", world.six.ifname, of_six),
        bench.from_wan(bench.tunnelled(bench.inner(ip, ttl=1))),
        bench.from_wan(bench.tunnelled(bench.inner(ip))),
    ]
    crowd = [bench.packets.ipv4(ip, CROWD, packets.udp(s, 80, b"one of many")) for s in range(64)]
    sent = bench.run_all("xdp_pod", bench.pod.ifname, [bench.sent(each) for each in crowd])
    runs.append(next(run for run in sent if b"\x12\xb5" in (run.packet[36:38], run.packet[56:58])))
    assert [run.verdict for run in runs] == [REDIRECT] * len(runs)
    return [run.packet for run in runs]


def dissected(tshark: str, capture: Path, *args: str) -> list[str]:
    checks = [f"-o{name}.check_checksum:TRUE" for name in ("ip", "udp")]
    done = subprocess.run(
        [tshark, "-n", "-r", str(capture), *checks, *args],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def write(capture: Path, packets: list[bytes]) -> None:
    """In pcap's form, Ethernet."""
    records = [struct.pack("=IIII", 0, 0, len(raw), len(raw)) + raw for raw in packets]
    head = struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 16, 1)
    capture.write_bytes(head + b"".join(records))


def test_a_dissector_takes_every_frame_for_what_it_is(
    world: World, tshark: str, tmp_path: Path
) -> None:
    capture, packets = tmp_path / "left.pcap", left(world)
    spoilt = bytearray(packets[0])
    spoilt[24] ^= 1  # the outer header's checksum
    write(capture, [*packets, bytes(spoilt)])
    wrong = dissected(tshark, capture, "-Y", WRONG, "-T", "fields", "-e", "frame.number")
    assert wrong == [str(len(packets) + 1)], "of what left, nothing"
    fields = "geneve.vni", "icmp.type", "icmpv6.type", "vxlan.vni"
    asked = [arg for field in fields for arg in ("-e", field)]
    seen = dissected(tshark, capture, "-T", "fields", *asked)[: len(packets)]
    vni = f"{VNI:#08x}"
    expected = [
        (vni, "", ""), ("", "3", ""), ("", "11", ""), ("", "", ""),
        (vni, "", "128"), ("", "", "2,128"), ("", "", "3,128"), ("", "", "136"), ("", "", "129"),
        (vni, "11", ""), ("", "", ""),
    ]  # fmt: skip
    told = [tuple(line.split("\t")) for line in seen]
    assert told == [(*each, "") for each in expected] + [("", "", "", str(VNI))]
