"""Random frames do what the reference says, in the kernel. `./just frames` tries a million."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from dataplane.reasons import DropReason
from tests.dataplane import frames
from tests.dataplane.conftest import SitePair, SixPair
from tests.dataplane.frames import Comparison, Differs, Maker, World
from tests.dataplane.reference import DROP, PASS, REDIRECT
from tests.dataplane.workbench import ABROAD

COUNT, SEED = 30_000, 20  # half of them over IPv4, half over IPv6
UNREACHED = {
    DropReason.NO_PORT,  # the world's interfaces have their rows,
    DropReason.NO_GATEWAY,  # its groups their gateways,
    DropReason.UNRESOLVED,  # and those their ways
    DropReason.NO_ROOM,
}


@pytest.fixture(
    scope="module",
    params=[(SitePair, "bcc", "xdp"), (SixPair, "clang", "xdp"), (SitePair, "bcc", "tc")],
)
def world(xdp_machine: None, request: Any) -> Iterator[World]:
    """One build over IPv4 and the other over IPv6, and the other hook: `./just frames` has all."""
    kind, build, hook = request.param
    built = request.getfixturevalue("built_ahead") if build == "clang" else None
    with frames.world(kind, built, hook) as made:
        yield made


def test_random_frames_do_what_the_reference_says(world: World) -> None:
    comparison = Comparison(world, Maker(world, random.Random(SEED)))
    try:
        comparison.run(COUNT // 2)
    except Differs as error:
        pytest.fail(f"{error}\nreplay: ./just frames {COUNT} {SEED}", pytrace=False)
    assert comparison.verdicts.keys() == {DROP, PASS, REDIRECT}
    assert set(DropReason) - comparison.reasons.keys() == UNREACHED
    assert comparison.verdicts[REDIRECT] > COUNT / 10, "many frames get through"
    assert len(set(comparison.ports.values())) > 10, "flows have ports of their own"


def test_what_differs_is_found(world: World) -> None:
    """The comparison's own honesty: other verdicts, other bytes, other counts."""
    frame = world.bench.sent(world.bench.datagram(ABROAD))
    sent = "xdp_pod", world.bench.pod.ifname, frame
    known = world.reference

    def run() -> None:
        comparison = Comparison(world, Maker(world, random.Random(SEED)))
        world.bench.gateway.run(lambda: comparison.run_all([sent]))

    run()
    ways = {ip: replace(way, dst_mac=bytes(6)) for ip, way in known.ways.items()}
    unclaimed = {key: row for key, row in known.tables.endpoints.items() if not row}
    others = (
        replace(known, tables=replace(known.tables, groups={})),
        replace(known, tables=replace(known.tables, endpoints=unclaimed)),
        replace(known, ways=ways),
    )
    try:
        for world.reference in others:
            with pytest.raises(Differs, match=f"{sent[1]}: {frame.hex()}"):
                run()
        world.reference = replace(known, tables=replace(known.tables, subnets={}))
        outside = world.bench.sent(world.bench.datagram("10.0.200.99"))
        sent = *sent[:2], outside
        with pytest.raises(Differs, match="is counted as"):
            run()
    finally:
        world.reference = known
