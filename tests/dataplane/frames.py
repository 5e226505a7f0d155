"""`./just frames [COUNT [SEED]]`: random frames for the programs in the kernel,
each compared with what `reference.py` makes of it; the first that differs is shown, with the
command that shows it again.

Frames are built of what the tables know and what they do not, one field in some is made wrong, and
some are cut, stretched or flipped afterwards: most get deep into the programs, all get somewhere.
"""

from __future__ import annotations

import contextlib
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from dataplane.backend import Hook
from dataplane.fib.facts import EndpointFact, GatewayFact
from dataplane.fib.rows import mac_text
from dataplane.reasons import DropReason
from dataplane.xdp import ahead, links
from tests.dataplane import workbench as wb
from tests.dataplane.conftest import Packets, SitePair, SixPair, made_pair
from tests.dataplane.reference import (
    DROP,
    PASS,
    REDIRECT,
    Expected,
    Reference,
    bare,
    reference_of,
)

BATCH = 500
FRAME_BYTES_MIN = 14  # of BPF_PROG_TEST_RUN
COUNT, SEED = 1_000_000, 1

SIX, SIX_FAR, SIX_CROWD = "fd00:0:0:1::10", "fd00:0:0:2::10", "fd00:0:0:3::10"
CROWD = "10.0.3.10"  # at a site with two gateways
FOREIGN = "10.0.2.66"  # claimed by nobody, at the peer's
COLLEAGUE, CROWD_GATEWAYS, STRANGER = 3, (4, 5), 99  # last numbers of underlay addresses

FOUR = [
    "10.0.1.10", "10.0.1.11", "10.0.1.12", wb.ABROAD, wb.MOVED, wb.NOWHERE, wb.IDLE, CROWD, FOREIGN,
    "10.0.1.1", "10.0.2.1", "10.0.200.1", "10.0.1.99", "10.0.200.99", "8.8.8.8", "224.0.0.5",
    "239.1.1.1", "240.0.0.1", "255.255.255.255", "0.0.0.0", "192.0.2.1",
]  # fmt: skip
NEIGHBOURS = ["10.0.1.11", wb.ABROAD, CROWD]
OF_SIX = [
    SIX, SIX_FAR, SIX_CROWD, "fd00:0:0:1::1", "fd00:0:0:2::1", "fd00:0:0:1::99", "2001:db8::1",
    "ff02::1", "ff02::1:ff00:10", "fe80::5", "::", "::1", "::ffff:10.0.1.10", "::ffff:10.0.2.10",
]  # fmt: skip
VXLANS = {COLLEAGUE, 5}
OUTER = [2, COLLEAGUE, *CROWD_GATEWAYS, STRANGER, 1]
VNIS = [wb.VNI] * 8 + [wb.CLOSED_VNI, 7]
SIZES = [0, 1, 3, 4, 5, 8, 20, 27, 28, 29, 64, 300, 1350, 1400, 1421, 1422, 1423, 1436, 1450, 1500]


@dataclass
class World:
    """A gateway with everything that frames can meet."""

    bench: wb.Bench
    six: Any
    reference: Reference

    @property
    def pods(self) -> list[Any]:
        """As often as they are to send."""
        one, two, blocked = self.bench.pod, self.bench.neighbour, self.bench.blocked
        return [one] * 8 + [two] * 3 + [self.six] * 8 + [blocked]


@contextlib.contextmanager
def world(
    kind: type[SitePair] = SitePair, built: Path | None = None, hook: Hook = "xdp"
) -> Iterator[World]:
    """`built`: the programs' object file; they are compiled by BCC otherwise."""
    with pytest.MonkeyPatch.context() as environment:
        if built is not None:
            environment.setenv(ahead.OBJECT_VARIABLE, str(built))
        with made_pair(kind) as pair:
            yield furnished(pair, hook)


def near(gateway: Any, number: int) -> str:
    """An address of the gateway's underlay."""
    end = max(gateway.underlay.rfind("."), gateway.underlay.rfind(":")) + 1
    return f"{gateway.underlay[:end]}{number}"


def furnished(pair: SitePair, hook: Hook = "xdp") -> World:
    """On a new pair."""
    bench = wb.make_bench(pair, Packets, hook)
    homes = {"10.0.3.0/24": "d", "fd00:0:0:1::/64": "a", "fd00:0:0:2::/64": "b"}
    pair.vpc(wb.VPC, wb.VNI, {cidr: (site,) for cidr, site in homes.items()})
    six = pair.pod(pair.a, "six", wb.VPC, SIX, mute=True)
    others = {COLLEAGUE: "a"} | dict.fromkeys(CROWD_GATEWAYS, "d")
    for number, (last, site) in enumerate(others.items(), 10):
        address = near(pair.a, last)
        pair.a.run(partial(_settle, address, number))
        gateway = GatewayFact(bytes([number]) * 16, site, address, True, last in VXLANS)
        pair.a.compiler.set_gateway(gateway.id, gateway)
    for ip, site, node in (
        (SIX_FAR, "b", pair.b.id),
        (SIX_CROWD, "d", None),
        (CROWD, "d", None),
    ):
        pair.tell("endpoint", EndpointFact(wb.VPC, ip, site, node, wb.ABROAD_MAC))
    pair.a.sync()
    return World(bench, six, reference_of(pair.a))


def _settle(address: str, number: int) -> None:
    """A neighbour that nobody has to answer for."""
    with IPRoute() as netlink:
        netlink.neigh(
            "add",
            dst=address,
            family=links.family(address),
            lladdr=f"02:00:00:00:0a:{number:02x}",
            ifindex=socket.if_nametoindex("wan0"),
            state="permanent",
        )


# ---- frames -------------------------------------------------------------------------------------


@dataclass
class Maker:
    """Frames for a world, by chance."""

    world: World
    chance: random.Random

    def one_of(self, values: Sequence[Any]) -> Any:
        return values[int(self.chance.random() * len(values))]

    def rarely(self) -> bool:
        return self.chance.random() < 0.04

    def often(self) -> bool:
        return self.chance.random() < 0.5

    def make(self) -> tuple[str, str, bytes]:
        """A program, the interface that a frame comes in by, and the frame."""
        pod = self.one_of(self.world.pods)
        if self.chance.random() < 0.45:
            frame = self.tunnelled()
            if self.rarely():  # another protocol than it is
                frame = frame[:12] + self.one_of((b"\x08\0", b"\x86\xdd")) + frame[14:]
            return "xdp_wan", "wan0", self.spoilt(frame)
        src = mac_text(self.chance.randbytes(6)) if self.rarely() else pod.mac
        kind, payload = self.sent(pod)
        frame = Packets.ethernet(wb.ROUTER, src, payload, kind)
        return "xdp_pod", pod.ifname, self.spoilt(frame)

    def spoilt(self, frame: bytes) -> bytes:
        """The frame, or what has become of it on the way."""
        fate = self.chance.random()
        if fate < 0.8:
            return frame
        if fate < 0.85:
            frame = frame[: self.chance.randrange(len(frame) + 1)]
        elif fate < 0.9:
            frame += bytes(self.chance.randrange(60))
        else:
            raw = bytearray(frame)
            for _ in range(self.chance.randrange(1, 4)):
                raw[self.chance.randrange(min(len(raw), 130))] = self.chance.randrange(256)
            frame = bytes(raw)
        return frame.ljust(FRAME_BYTES_MIN, b"\0")

    def sent(self, pod: Any) -> tuple[int, bytes]:
        """Ethertype and payload of what a pod sends."""
        kind = self.chance.random()
        if kind < 0.1:
            own = self.one_of(FOUR) if self.rarely() or pod is self.world.six else pod.ip
            asker = wb.ROUTER if self.rarely() else pod.mac
            sender = "0.0.0.0" if self.rarely() else own
            return 0x0806, Packets.arp(self.one_of((1, 1, 1, 2)), asker, sender, self.one_of(FOUR))
        if kind < 0.13:
            return self.chance.randrange(1 << 16), self.chance.randbytes(60)
        if (pod is self.world.six) != self.rarely():
            src = self.one_of(OF_SIX) if self.rarely() or pod.ip not in OF_SIX else pod.ip
            if self.chance.random() < 0.25:
                return 0x86DD, self.solicitation(src)
            return 0x86DD, self.ip6(src, self.one_of(OF_SIX if self.often() else [SIX_FAR]))
        src = self.one_of(FOUR) if self.rarely() or pod.ip not in FOUR else pod.ip
        return 0x0800, self.ip4(src, self.one_of(FOUR if self.often() else NEIGHBOURS))

    def tunnelled(self) -> bytes:
        """A frame of the underlay."""
        six = self.chance.random() < 0.35
        pool = OF_SIX if six else FOUR
        local = [SIX] if six else ["10.0.1.10", "10.0.1.11", CROWD, wb.ABROAD]
        far = SIX_FAR if six else wb.ABROAD
        dst = self.one_of(pool if self.chance.random() < 0.3 else local)
        src = self.one_of(pool) if self.chance.random() < 0.3 else far
        packet = (self.ip6 if six else self.ip4)(src, dst)
        inner = Packets.ethernet(wb.ROUTER, wb.ABROAD_MAC, packet, 0x86DD if six else 0x0800)
        sender = self.one_of(OUTER) if self.chance.random() < 0.3 else 2
        vxlan = (sender in VXLANS) != self.rarely()
        body = self.vxlan(inner) if vxlan else self.geneve(inner)
        port = self.one_of((6080, 6081, 4789)) if self.rarely() else 4789 if vxlan else 6081
        gateway = self.world.bench.gateway
        src = near(gateway, sender)
        dst = near(gateway, 77 if self.rarely() else 1)
        header: dict[str, Any] = {}
        if ":" in src:
            header["protocol"] = 44 if self.rarely() else 17
            header["length"] = self.chance.randrange(200) if self.rarely() else None
        else:
            header["fragment"] = 0x2000 if self.rarely() else 0x4000
            header["total"] = self.chance.randrange(200) if self.rarely() else None
        return self.summed(Packets.outer(src, dst, 0xC001, port, body, **header))

    def vxlan(self, inner: bytes) -> bytes:
        flags = self.one_of((0, 0xF7, 0xFF, 0x0C)) if self.rarely() else 8
        return Packets.vxlan(self.one_of(VNIS), inner, flags=flags)

    def geneve(self, inner: bytes) -> bytes:
        return Packets.geneve(
            self.one_of(VNIS),
            inner,
            first=self.one_of((0x40, 0xC0)) if self.rarely() else 0,
            flags=self.one_of((0x80, 0x40, 0x01)) if self.rarely() else 0,
            protocol=0x0800 if self.rarely() else 0x6558,
            options=bytes(4 * self.chance.randrange(64)) if self.rarely() else b"",
        )

    def summed(self, frame: bytes) -> bytes:
        """The frame, or now and then one with another checksum: right over IPv4, none over IPv6,
        and wrong."""
        if not self.rarely():
            return frame
        six = frame[12:14] == b"\x86\xdd"
        at, ends = (54, frame[22:54]) if six else (34, frame[26:34])
        rest = frame[at : at + 6] + bytes(2) + frame[at + 8 :]
        pseudo = ends + frame[at + 4 : at + 6] + b"\0\x11"
        right = Packets.checksum(pseudo + rest) or 0xFFFF
        sum: int = self.one_of((0, right, right, right ^ 1))
        return frame[: at + 6] + sum.to_bytes(2, "big") + frame[at + 8 :]

    def message(self, six: bool) -> tuple[int, bytes]:
        """A protocol, and what it carries."""
        size, kind = self.one_of(SIZES), self.chance.random()
        sport, dport = self.one_of(((1000, 2000), (1001, 2000), (53, 53)))
        if kind < 0.5:
            return 17, Packets.udp(sport, dport, self.chance.randbytes(size))
        if kind < 0.7:
            return 6, Packets.udp(sport, dport, self.chance.randbytes(size))
        if kind < 0.9:
            types = (128, 129, 1, 2, 3, 135, 136) if six else (8, 0, 3, 11, 5)
            head = bytes([self.one_of(types), self.one_of((0, 0, 4))])
            return (58 if six else 1), head + self.chance.randbytes(6) + bytes(size)
        return self.chance.randrange(256), bytes(size)

    def ip4(self, src: str, dst: str) -> bytes:
        protocol, payload = self.message(False)
        odd = self.rarely()
        return Packets.ipv4(
            src,
            dst,
            payload,
            protocol=protocol,
            ttl=self.one_of((64, 64, 64, 2, 1, 0, 255)),
            fragment=self.one_of((0x4000, 0x4000, 0, 0x2000, 0x2001, 1, 0x4001)),
            total=self.one_of((0, 19, 20, 27, 28, 60, 1500)) if odd else None,
            version_ihl=self.one_of((0x46, 0x44, 0x4F, 0x65)) if self.rarely() else 0x45,
        )

    def ip6(self, src: str, dst: str) -> bytes:
        protocol, payload = self.message(True)
        return Packets.ipv6(
            src,
            dst,
            payload,
            protocol=protocol,
            hops=self.one_of((64, 64, 64, 2, 1, 0, 255)),
            length=self.one_of((0, 8, 24, 1500)) if self.rarely() else None,
            version=4 if self.rarely() else 6,
        )

    def solicitation(self, src: str) -> bytes:
        target = ip_address(self.one_of(OF_SIX)).packed
        option = self.one_of((b"", b"\1\1" + bytes(6)))
        body = bytes([135, 1 if self.rarely() else 0]) + bytes(6) + target + option
        hops = 64 if self.rarely() else 255
        return Packets.ipv6(src, self.one_of(OF_SIX), body, protocol=58, hops=hops)


# ---- comparing ----------------------------------------------------------------------------------


class Differs(AssertionError):
    pass


@dataclass
class Comparison:
    """Runs frames and compares; raises Differs at the first that is not as it should be."""

    world: World
    maker: Maker
    verdicts: Counter[int] = field(default_factory=Counter)
    reasons: Counter[DropReason | None] = field(default_factory=Counter)
    ports: dict[object, bytes] = field(default_factory=dict)
    """What is hashed of each flow."""

    def run(self, count: int) -> None:
        """So many frames more."""
        left = count
        while left > 0:
            batch = [self.maker.make() for _ in range(min(left, BATCH))]
            self.world.bench.gateway.run(partial(self.run_all, batch))
            left -= len(batch)

    def run_all(self, batch: Sequence[tuple[str, str, bytes]]) -> None:
        """These frames, in the gateway's namespace."""
        expected = self._counted(batch)
        if expected is None:
            return
        for frame in batch:  # counters differ: which frame's?
            if (single := self._counted([frame])) is not None:
                raise Differs(f"{_shown(frame)}\nis counted as {single}")
        raise Differs(f"{len(batch)} frames together are counted as {expected}")

    def _counted(self, batch: Sequence[tuple[str, str, bytes]]) -> dict[str, int] | None:
        """Runs frames; what is counted beyond what should be, by reason, or None if nothing."""
        maps = self.world.bench.gateway.backend._maps
        before = {reason: maps.drops(reason) for reason in DropReason}
        wanted: Counter[DropReason] = Counter()
        for frame in batch:
            reason = self._one(*frame)
            if reason is not None:
                wanted[reason] += 1
        off = {
            reason.text: maps.drops(reason) - before[reason] - wanted[reason]
            for reason in DropReason
        }
        return {text: n for text, n in off.items() if n} or None

    def _one(self, program: str, ifname: str, frame: bytes) -> DropReason | None:
        reference = self.world.reference
        expected = (
            reference.from_underlay(frame)
            if program == "xdp_wan"
            else reference.from_port(ifname, frame)
        )
        backend = self.world.bench.gateway.backend
        if backend._hook == "tc" and len(frame) < wb.SKB_BYTES.get(frame[12:14], 14):
            return None
        other = expected.otherwise
        before = 0 if other is None else backend._maps.drops(other)
        done = wb.run_program(backend, program, frame, reference.ifindexes[ifname])
        if other is not None and done.verdict == DROP and backend._maps.drops(other) > before:
            return other
        if done.verdict != expected.verdict or not self._left(expected, done.packet):
            raise Differs(
                f"{_shown((program, ifname, frame))}\nhas verdict {done.verdict}"
                f" {done.packet.hex()}\nand not {expected.verdict} {expected.reason!r}"
                f" {[frame.hex() for frame in expected.frames]}"
            )
        self.verdicts[expected.verdict] += 1
        self.reasons[expected.reason] += 1
        return expected.reason

    def _left(self, expected: Expected, packet: bytes) -> bool:
        """Whether this frame may leave."""
        if expected.verdict == DROP:
            return True
        if expected.flow is None:
            return packet in expected.frames
        rest, hashed = bare(packet)
        right = packet[12:14] != b"\x86\xdd" or Packets.checksum6(_without_padding(packet)) == 0
        return (
            rest in expected.frames
            and int.from_bytes(hashed[-2:], "big") >= 0xC000
            and self.ports.setdefault(expected.flow, hashed) == hashed
            and right
        )


def _without_padding(frame: bytes) -> bytes:
    """The IPv6 packet in a frame."""
    return frame[14 : 54 + int.from_bytes(frame[18:20], "big")]


def _shown(frame: tuple[str, str, bytes]) -> str:
    program, ifname, raw = frame
    return f"{program} by {ifname}: {raw.hex()}"


def main(args: Sequence[str]) -> int:
    count, seed = (int(arg) for arg in (*args, *(str(COUNT), str(SEED))[len(args) :]))
    start_s = time.monotonic()
    verdicts: Counter[int] = Counter()
    reasons: Counter[DropReason | None] = Counter()
    with tempfile.TemporaryDirectory() as directory:
        built = Path(directory) / "weft.o"
        ahead.build(built)
        worlds: list[tuple[type[SitePair], Path | None, Hook]] = [
            *((kind, of, "xdp") for kind, of in product((SitePair, SixPair), (None, built))),
            (SitePair, None, "tc"),
        ]
        for kind, of, hook in worlds:
            with world(kind, of, hook) as here:
                comparison = Comparison(here, Maker(here, random.Random(seed)), verdicts, reasons)
                try:
                    comparison.run(count // len(worlds))
                except Differs as error:
                    sys.stderr.write(f"{error}\nseed {seed}: ./just frames {count} {seed}\n")
                    return 1
    spent_s = time.monotonic() - start_s
    names = {DROP: "dropped", PASS: "passed", REDIRECT: "sent on"}
    lines = [
        *((number, names[verdict]) for verdict, number in verdicts.most_common()),
        *((number, reason.text) for reason, number in reasons.most_common() if reason is not None),
    ]
    sys.stdout.writelines(f"{number:>9,}  {text}\n" for number, text in lines)
    sys.stdout.write(f"{count:,} frames as the reference has them, in {spent_s:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
