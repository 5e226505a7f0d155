"""Members that say what no honest node would, over whole links to a node that is a process: each
kind of frame with absurd contents, histories that fork, roots that are lies, wrong clocks, and a
version that does not exist yet."""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeAlias

import msgpack
import pytest
import trio

from crdt.header import ChainId, Epoch
from mesh.core import keys, model, wire
from mesh.core.bounds import MESH_RECORDS, bytes_of
from mesh.core.clock import hlc_of_ns
from mesh.core.ops import MESH_SHARD
from mesh.core.replica import UNSIGNED_MAX
from mesh.core.statements import RETIRE, make_statement
from mesh.core.vectors import VECTOR_MAX, Cursor, Held, Vector
from mesh.node.p2p.framing import FRAME_BYTES_MAX
from tests.mesh.node.hostile_members import Hostile, Said, Victims, linked
from tests.mesh.node.processes import id_of, seed_of

pytestmark = pytest.mark.trio

YEAR_NS = 365 * 86_400 * 10**9
FAR = (1 << 63) - 1

Deed: TypeAlias = Callable[[Hostile], Iterable[Said]]


def digest(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def raw(kind: int, *fields: object) -> bytes:
    return bytes(msgpack.packb([wire.WIRE_VERSION, kind, *fields]))


def zipped(plain: bytes) -> bytes:
    return raw(wire.ZIPPED, zlib.compress(plain, 9))


def held(number: int) -> Held:
    return Held(Epoch(FAR - number, b"nonce..."), FAR, b"r" * 8)


def heads(number: int, branches: int = 1) -> Vector:
    """That many chains nobody has heard of."""
    vector = tuple(held(n) for n in range(branches))
    return {digest(n)[:8]: vector for n in range(number)}


# -- nonsense that costs the link, or is passed over ----------------------------------------------


def not_msgpack(_: Hostile) -> Iterable[Said]:
    return [b"\xc1" * 1000]


def deep_nesting(_: Hostile) -> Iterable[Said]:
    return [raw(wire.SYNC) + b"", b"\x93\x01\x01" + b"\x91" * 1_000_000]


def wide_nesting(_: Hostile) -> Iterable[Said]:
    """Arrays that say that they have millions of elements, each in the other."""
    size = FRAME_BYTES_MAX - 100_000
    return [(b"\xdd" + size.to_bytes(4, "big")) * 1000 + bytes(size)]


def millions_of_empty_things(_: Hostile) -> Iterable[Said]:
    size = FRAME_BYTES_MAX - 20
    lists = b"\x93\x01\x0b\xdd" + size.to_bytes(4, "big") + b"\x90" * size
    return [zipped(lists), lists]


def a_zip_bomb(_: Hostile) -> Iterable[Said]:
    return [zipped(bytes(1 << 28))]


def a_zip_in_a_zip(_: Hostile) -> Iterable[Said]:
    return [zipped(zipped(wire.encode(wire.Same())))]


def many_statements(_: Hostile) -> Iterable[Said]:
    return [raw(wire.STATEMENTS, [b""] * 1_000_000)]


def thousands_of_own_statements(member: Hostile) -> Iterable[Said]:
    """Signed by a member, and of kinds that only a newer version knows: each a verification."""
    seed, mesh = seed_of(member.name), member.victims.mesh_id
    blobs = [make_statement(seed, member.id, mesh, f"newer{n}", {"n": n}) for n in range(25_000)]
    return [raw(wire.STATEMENTS, blobs)]


def statements_it_may_not_make(member: Hostile) -> Iterable[Said]:
    seed, mesh = seed_of(member.name), member.victims.mesh_id
    retire = {"node": id_of(member.victims.a.name), "compromised": True}
    admit = {"key": bytes(32), "name": "x", "site": "x", "token": b""}
    return [
        wire.Statements((make_statement(seed, member.id, mesh, kind, fields),))
        for kind, fields in ((RETIRE, retire), ("forget", retire), ("admit", admit))
    ]


def thousands_of_tiny_deltas(member: Hostile) -> Iterable[Said]:
    chain = member.chain()
    deltas = []
    for n in range(8000):
        chain.put(b"?%d" % n, b"")
        deltas.append(member.flush(chain).pack())
    return [raw(wire.DELTAS, deltas)]


def a_forged_delta(member: Hostile) -> Iterable[Said]:
    chain = member.chain()
    chain.put(b"k", b"v")
    delta = member.flush(chain)
    theirs = delta.header._replace(chain=delta.header.chain._replace(node=id_of("b1")))
    forged = theirs.signed(member.victims.mesh_id, member.sign)
    frame = wire.Deltas((replace(delta, header=forged),) * 512)
    return [frame] * (UNSIGNED_MAX // 512 + 1)


def beyond_the_quota(member: Hostile) -> Iterable[Said]:
    chain = member.chain()
    chain.put(b"k", b"v")
    delta = member.flush(chain)
    header = member.forge(delta.header, entries=FAR)
    return [wire.Deltas((replace(delta, header=header),))]


def beyond_the_quota_of_bytes(member: Hostile) -> Iterable[Said]:
    """A few hundred records, as large as they may be, in a shard for thousands of small ones."""
    chain = member.chain()
    said: list[Said] = []
    while chain.size_bytes <= bytes_of(MESH_RECORDS):
        for _ in range(15):
            chain.put(b"k%d" % chain.head, bytes(16_000))
        said.append(wire.Deltas((member.flush(chain),)))
    return said


COSTS_THE_LINK = [
    not_msgpack, deep_nesting, wide_nesting, millions_of_empty_things, a_zip_bomb, many_statements,
    thousands_of_own_statements, thousands_of_tiny_deltas, a_forged_delta,
]  # fmt: skip


# -- frames in good order that mean nothing -------------------------------------------------------


def syncs_of_a_universe(member: Hostile) -> Iterable[Said]:
    odd = {"x" * 64: bytes(16), "../../etc": bytes(16), "\x00": bytes(16), "MESH": bytes(16)}
    shards = {digest(n)[:16].hex(): digest(n)[16:] for n in range(wire.SHARDS_MAX - len(odd))}
    mesh = member.victims.mesh_id
    return [
        wire.Sync(mesh, digest(n)[:16], {**odd, **shards}, True, bool(n), n + 1) for n in range(3)
    ]


def probes(_: Hostile) -> Iterable[Said]:
    return [wire.Probe(digest(n)[:16]) for n in range(2000)]


def recents(_: Hostile) -> Iterable[Said]:
    named = {digest(n)[:8]: FAR for n in range(wire.NAMED_MAX)}
    return [wire.Recent(bytes(16), digest(n)[:16], named, bool(n % 2)) for n in range(500)]


def heads_of_a_universe(_: Hostile) -> Iterable[Said]:
    big = heads(VECTOR_MAX)
    return [
        wire.Heads(MESH_SHARD, b"\xff", b"", big),
        wire.Heads("", wire.FIRST, wire.LAST, big),
        wire.Heads("ff" * 16, wire.FIRST, wire.LAST, heads(1500, 64)),
        wire.Heads("no shard", wire.FIRST, wire.LAST, big),
    ]


def wants_of_a_universe(_: Hostile) -> Iterable[Said]:
    staged = {digest(n)[:8]: Cursor(Epoch(FAR, b"nonce..."), FAR) for n in range(8000)}
    return [wire.Want(n, heads(VECTOR_MAX), staged) for n in range(5)]


def the_same_want_for_ever(member: Hostile) -> Iterable[Said]:
    short = ChainId(id_of(member.victims.a.name), MESH_SHARD).short()
    return [wire.Want(n, {short: ()}) for n in range(2000)]


def answers_nobody_asked_for(member: Hostile) -> Iterable[Said]:
    chain = member.chain()
    chain.put(b"k", b"v")
    delta = member.flush(chain)
    parts = [wire.Part(n, delta, True, FAR) for n in (0, 1, 2, FAR)]
    return [*parts, wire.Done(1), wire.More(FAR), wire.Done(FAR), *[wire.Told(FAR)] * 500]


def questions_about_the_roster(_: Hostile) -> Iterable[Said]:
    hashes = tuple(digest(n) for n in range(100_000))
    return [wire.Have(hashes), wire.Ask(hashes), wire.Have(()), *[wire.Have(())] * 200]


def chains_in_thousands_of_shards(member: Hostile) -> Iterable[Said]:
    said = []
    for n in range(5000):
        chain = member.chain(digest(n)[:16].hex())
        chain.put(b"k", b"v")
        said.append((member.flush(chain), 400))
    return [wire.Deltas(tuple(group)) for group in wire.chunks(said)]


def epochs_without_end(member: Hostile) -> Iterable[Said]:
    said = []
    for counter in range(300):
        chain = member.chain(counter=FAR - counter)
        chain.put(b"k", b"%d" % counter)
        said.append((member.flush(chain), 400))
    return [wire.Deltas(tuple(group)) for group in wire.chunks(said)]


def records_that_are_nonsense(member: Hostile) -> Iterable[Said]:
    """Signed in good order: under keys of every kind, what no version would write."""
    chain = member.chain()
    bodies = [b"", b"\xc1", b"\x91" * 5000, b"\xdd\xff\xff\xff\xff", msgpack.packb({0: 1})]
    bodies += [msgpack.packb({0: 1, **dict.fromkeys(range(1, 12), FAR)}), bytes(16_000)]
    bodies += [msgpack.packb({0: FAR}), msgpack.packb({"a": {"b": [None] * 3000}})]
    names = [k + digest(n)[: 16 * n] for k in (b"v", b"s", b"p", b"x", b"g", b"b", b"e", b"?")
             for n in range(3)]  # fmt: skip
    for place, name in enumerate(names):
        chain.put(name or b"\x00", bodies[place % len(bodies)])
        chain.put(name + b"+", bodies[(place + 3) % len(bodies)])
    return [wire.Deltas((member.flush(chain),))]


def kinds_of_a_later_version(member: Hostile) -> Iterable[Said]:
    chain = member.chain()
    record = msgpack.packb({0: 99, 1: "newer", 77: {"more": [1, 2]}})
    gateway = keys.pack(keys.GatewayKey(member.id))
    chain.put(gateway, record)
    chain.put(b"Z new kind", record)
    statement = make_statement(
        seed_of(member.name), member.id, member.victims.mesh_id, "newer", {"field": 1}
    )
    return [
        bytes(msgpack.packb([wire.WIRE_VERSION + 1, 1, b"what a later version says"])),
        raw(99, {"a": 1}, [2]),
        raw(wire.SAME, 1, "more", {"fields": 1}),
        raw(wire.PROBE, bytes(16), "one more"),
        raw(wire.STATEMENTS, [statement], "one more"),
        wire.Deltas((member.flush(chain),)),
    ]


PASSED_OVER = [
    a_zip_in_a_zip, statements_it_may_not_make, beyond_the_quota, syncs_of_a_universe, probes,
    recents, heads_of_a_universe, wants_of_a_universe, the_same_want_for_ever,
    beyond_the_quota_of_bytes, answers_nobody_asked_for, questions_about_the_roster,
    chains_in_thousands_of_shards,
    epochs_without_end, records_that_are_nonsense, kinds_of_a_later_version,
]  # fmt: skip


async def say_all(victims: Victims, deed: Deed) -> str:
    """Why the node ended the link; empty if it did not."""
    async with linked(victims) as member:
        await member.say_all(deed)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, victims.answers)
            await member.until_taken()
        return member.why


@pytest.mark.parametrize("deed", COSTS_THE_LINK, ids=lambda deed: deed.__name__)
async def test_what_breaks_the_protocol(victims: Victims, deed: Deed) -> None:
    with victims.unharmed():
        assert await say_all(victims, deed), "it costs the link"


@pytest.mark.parametrize("deed", PASSED_OVER, ids=lambda deed: deed.__name__)
async def test_what_means_nothing(victims: Victims, deed: Deed) -> None:
    with victims.unharmed():
        assert await say_all(victims, deed) == "", "it is no reason to end the link"


async def test_a_member_of_versions_to_come_parts_again_and_is_named(victims: Victims) -> None:
    with victims.unharmed():
        later = wire.Versions(wire.WIRE_VERSION + 1, wire.WIRE_VERSION + 2)
        async with linked(victims, speaks=later) as member:
            member.say(bytes(msgpack.packb([later.lowest, 1, "what it would say"])))
            await member.until_ended()
        victims.a.until(alarmed(victims, f"peer.incompatible: peer={member.name}"), "it is named")


# -- members that lie ------------------------------------------------------------------------------


def alarmed(victims: Victims, what: str) -> Callable[[], bool]:
    return lambda: any(what in problem["what"] for problem in victims.a.status()["problems"])


async def test_a_member_that_signs_two_histories(victims: Victims) -> None:
    """Everybody learns of it, from whoever was told both; its link is its own to keep."""
    with victims.unharmed():
        async with linked(victims) as member:
            for body in (b"one", b"two"):
                chain = member.chain()
                chain.put(b"k", body)
                member.say(wire.Deltas((member.flush(chain),)))
            await member.until_taken()
        for node in (victims.a, victims.b):
            node.until(
                lambda node=node: any(  # type: ignore[misc]
                    f"node {member.name} signed two histories" in problem["what"]
                    for problem in node.status()["problems"]
                ),
                "the fork is known",
            )


async def test_a_member_whose_roots_are_lies(victims: Victims) -> None:
    with victims.unharmed():
        async with linked(victims) as member:
            chain = member.chain(counter=7)
            chain.put(b"k", b"v")
            delta = member.flush(chain)
            header = member.forge(delta.header, root=b"?" * 32)
            member.say(wire.Deltas((replace(delta, header=header),)), channel="push")
            await member.until_taken()
        victims.a.until(alarmed(victims, "chain.disproved"), "the lie is known")


@pytest.mark.parametrize("year", [1970, 2100])
async def test_a_member_with_a_clock_of_another_century(victims: Victims, year: int) -> None:
    """Its stamps and its heartbeats: nobody's own clock follows, nobody is refused."""
    ahead_ns = (year - 2026) * YEAR_NS
    name = f"of-{year}"
    with victims.unharmed():
        async with linked(victims, ahead_ns=ahead_ns) as member:
            vpc = model.vpc_id(member.id, b"n" * 16)
            stamp = hlc_of_ns(max(0, time.time_ns() + ahead_ns))
            record = model.VpcRecord(
                1, stamp, False, member.id, b"n" * 16, name, year, ("10.0.0.0/16",), since=stamp
            )
            chain = member.chain()
            chain.put(keys.pack(keys.VpcKey(vpc)), model.encode(record))
            member.say(wire.Deltas((member.flush(chain),)))
            await member.until_taken()
            assert not member.ended.is_set()
        victims.b.until(lambda: name in victims.b.vpcs(), "its VPC is one like any other")
        assert victims.a.ask("GET", "/v1/members")[0] == 200
    victims.until_equal()
