"""Proofs of forks: two headers prove one exactly if no honest author signed both."""

from __future__ import annotations

from hashlib import sha256
from itertools import combinations
from random import Random

import msgpack
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from crdt.chain import Chain
from crdt.header import HEADER_BYTES_MAX, ChainId, Cover, Epoch, Header
from crdt.lattice import Lattice
from mesh.core import ed25519
from mesh.core.effects import Alarm, DropPeer
from mesh.core.errors import PeerError
from mesh.core.ops import Delete, Op, Put
from mesh.core.own import OwnChains
from mesh.core.roster import Roster
from mesh.core.statements import (
    FORK,
    STATEMENT_VERSION,
    Statement,
    contradict,
    found_mesh,
    make_fork,
)
from tests.mesh.core.test_replica import Wire

FOUNDER = b"f" * 32
SEED = sha256(b"forker").digest()
KEY = ed25519.public_key(SEED)
NODE = ed25519.node_id(KEY)


def founded(*, admitted: bool = True) -> Roster:
    roster = Roster.founded_by(found_mesh("m", b"r" * 32, FOUNDER, "n0", "s0"))
    if admitted:
        roster.add([roster.admit(FOUNDER, KEY, "x", "s")])
    return roster


MESH = founded().mesh_id


def sign(message: bytes) -> bytes:
    return ed25519.sign(SEED, message)


class Author:
    """The node over several lives, on a disk that may be set back; every header it ever signed."""

    def __init__(self) -> None:
        self.signed: list[Header] = []
        self._disks = [Lattice()]
        self._rng = Random(0)  # nonces of a test
        self.start(0)

    def start(self, disk: int) -> None:
        """Start from the disk as it was at some time: the last one, or a backup."""
        self._lattice = Lattice()
        self._lattice.join(self._disks[disk % len(self._disks)])
        self._own = OwnChains(NODE, MESH, self._lattice, sign, self._rng.randbytes)

    def write(self, ops: list[Op]) -> None:
        for op in ops:
            self._own.write(op)
        self._seal()

    def meet(self, disk: int) -> None:
        """A peer gives what the node had at some time."""
        for id in self._disks[disk % len(self._disks)].chains():
            for branch in self._disks[disk % len(self._disks)].branches(id):
                before = self._lattice.branches(id)
                self._lattice.add(branch.copy())
                if branch.epoch not in {held.epoch for held in before}:
                    self._own.meet(branch)
        self._seal()

    def _seal(self) -> None:
        self.signed += [sealed.delta.header for sealed in self._own.seal()]
        kept = Lattice()
        kept.join(self._lattice)
        self._disks.append(kept)


keys = st.integers(0, 5).map(lambda i: b"k%d" % i)
ops = st.one_of(
    st.builds(Put, st.sampled_from(["mesh", "a" * 32]), keys, st.binary(max_size=4)),
    st.builds(Delete, st.sampled_from(["mesh", "a" * 32]), keys),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.lists(ops, min_size=1, max_size=4)),
        st.tuples(st.just("start"), st.integers(0, 20)),
        st.tuples(st.just("meet"), st.integers(0, 20)),
    ),
    max_size=12,
)


@given(steps)
def test_what_an_honest_node_signs_never_proves_a_fork(steps: list[tuple[str, object]]) -> None:
    author = Author()
    for what, argument in steps:
        getattr(author, what)(argument)
    roster = founded()
    for a, b in combinations(author.signed, 2):
        assert roster.fork_proof(a, b) is None
        assert roster.fork_proof(b, a) is None
    for header in author.signed:
        assert roster.fork_proof(header, header) is None


def header(lo: int, hi: int, root: int = 0, prev: int = 0, *, epoch: int = 1) -> Header:
    return Header(
        ChainId(NODE, "mesh"), Epoch(epoch, bytes(8)), lo, hi, 1, 0,
        bytes([prev]) * 32, bytes(32), bytes([root]) * 32,
    ).signed(MESH, sign)  # fmt: skip


spans = st.tuples(st.integers(0, 8), st.integers(1, 8), st.integers(0, 2), st.integers(0, 2))


@given(spans, spans)
def test_what_overlaps_or_does_not_continue_proves_a_fork(
    one: tuple[int, int, int, int], other: tuple[int, int, int, int]
) -> None:
    a, b = (header(lo, lo + size, root, prev) for lo, size, root, prev in (one, other))
    overlap = {*range(a.lo, a.hi)} & {*range(b.lo, b.hi)}
    torn = (a.hi == b.lo and a.root != b.prev_root) or (b.hi == a.lo and b.root != a.prev_root)
    expected = bool((overlap and a != b) or torn)
    roster = founded()
    blob = roster.fork_proof(a, b)
    assert (blob is not None) == expected
    assert blob == roster.fork_proof(b, a), "one form, whoever met which first"
    if blob is not None:
        assert roster.add([blob]) == [blob]
        assert roster.members()[NODE].forked
        assert not roster.members()[ed25519.node_id(ed25519.public_key(FOUNDER))].forked


def test_a_resigned_flush_whose_covers_differ_is_a_fork() -> None:
    a = header(0, 1)
    b = a._replace(covers=(Cover(Epoch(0, bytes(8)), 1, 1),)).signed(MESH, sign)
    assert contradict(a, b)


@pytest.mark.parametrize(
    "other",
    [
        header(0, 2, 2, epoch=2),
        header(0, 2, 2)._replace(chain=ChainId(NODE, "a" * 32)).signed(MESH, sign),
        header(0, 2, 2)._replace(signature=bytes(64)),
        header(0, 2, 2)._replace(packed=header(0, 3, 2).packed),
        header(0, 2, 2).signed(b"x" * 16, sign),
        header(0, 2, 2).signed(MESH, lambda message: ed25519.sign(FOUNDER, message)),
        header(5, 6, 2),
    ],
    ids=["epoch", "chain", "unsigned", "altered", "mesh", "key", "apart"],
)
def test_what_proves_nothing_is_neither_made_nor_taken(other: Header) -> None:
    roster = founded()
    good = header(0, 1)
    assert roster.fork_proof(good, other) is None
    before = roster.digest()
    for a, b in ((good, other), (other, good)):
        fields = {"a": a.pack(), "b": b.pack()}
        body = msgpack.packb([STATEMENT_VERSION, FORK, MESH, b"", fields])
        with pytest.raises(PeerError, match="not proven"):
            roster.add([msgpack.packb([body, b""])])
    assert roster.digest() == before


def proofs(count: int) -> list[bytes]:
    return [make_fork(MESH, header(0, 1, 1), header(0, 2 + i, 2)) for i in range(count)]


@given(st.permutations(proofs(4)), st.permutations(proofs(4)))
def test_one_proof_is_kept_a_node_and_all_say_the_same(
    one: list[bytes], other: list[bytes]
) -> None:
    """So a forker that signs ever more histories makes nobody take, store or send a second one."""
    a, b = founded(), founded()
    assert [len(a.add([blob])) for blob in one] == [1, 0, 0, 0]
    b.add(other)
    assert a.digest() == b.digest()
    assert a.members() == b.members()
    assert len(a.statements()) == len(founded().statements()) + 1
    again = Roster.founded_by(a.statements())
    assert (again.digest(), again.members()) == (a.digest(), a.members())


def test_a_proof_about_a_node_that_is_not_known_yet_waits() -> None:
    roster = founded(admitted=False)
    (proof,) = proofs(1)
    assert roster.fork_proof(header(0, 1, 1), header(0, 2, 2)) is None
    assert roster.add([proof]) == []
    admission = roster.admit(FOUNDER, KEY, "x", "s")
    assert roster.add([proof, admission]) == [admission, proof]
    assert roster.members()[NODE].forked


def test_the_longest_headers_make_a_proof_that_fits() -> None:
    """With the fields of a newer version in them, too: they are signed, and kept as they are."""
    headers = []
    for i in range(2):
        usual = msgpack.unpackb(header(0, 1 + i).packed)
        longest = msgpack.packb([*usual, b""])
        junk = bytes(HEADER_BYTES_MAX - len(longest) - 1)  # bin 16 has one byte more than bin 8
        packed = msgpack.packb([*usual, junk])
        assert len(packed) == HEADER_BYTES_MAX
        unsigned = header(0, 1 + i)._replace(packed=packed)
        headers.append(unsigned._replace(signature=sign(unsigned.message(MESH))))
    roster = founded()
    blob = roster.fork_proof(*headers)
    assert blob is not None
    assert roster.add([blob]) == [blob]


@given(st.binary(max_size=200), st.integers(0, 600))
def test_a_garbled_proof_is_refused(junk: bytes, at: int) -> None:
    (proof,) = proofs(1)
    garbled = proof[: at % len(proof)] + junk + proof[at % len(proof) + len(junk) :]
    assume(garbled != proof)
    roster = founded()
    try:
        taken = roster.add([garbled])
    except PeerError:
        taken = []
    assert taken == [] or Statement.parse(garbled).headers() == Statement.parse(proof).headers()


def test_a_proof_reaches_every_node_once_and_alarms_there() -> None:
    mesh = Wire(3)
    mesh.link(0, 1)
    mesh.link(1, 2)
    mesh.run()
    chain = Chain(ChainId(mesh.nodes[2], "mesh"), Epoch(1, bytes(8)))
    twin = chain.copy()
    headers = []
    for branch, record in ((chain, b"one"), (twin, b"other")):
        branch.put(b"k", record)
        own = mesh.replicas[2].roster.mesh_id
        headers.append(branch.seal(own, lambda m: ed25519.sign(mesh.seeds[2], m), ()))
    for replica in (mesh.replicas[0], mesh.replicas[1]):
        proof = replica.roster.fork_proof(*headers)
        assert proof is not None
        replica.add_statements([proof], mesh.now_ns)
    mesh.run()
    alarms = [(i, e.fields["node"]) for i, e in mesh.effects
              if isinstance(e, Alarm) and e.event == "chain.forked"]  # fmt: skip
    assert sorted(alarms) == [(i, mesh.nodes[2]) for i in range(3)]
    assert all(r.roster.members()[mesh.nodes[2]].forked for r in mesh.replicas)
    assert len({r.roster.digest() for r in mesh.replicas}) == 1
    assert not any(isinstance(effect, DropPeer) for _, effect in mesh.effects)
