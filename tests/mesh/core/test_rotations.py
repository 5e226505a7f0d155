"""Rotations as a set: which key is in use, and what the earlier ones count for."""

from __future__ import annotations

from hashlib import sha256

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.header import ChainId, Epoch, Header
from mesh.core import ed25519
from mesh.core.errors import PeerError, Refused
from mesh.core.members import Member, MemberState
from mesh.core.roster import Roster
from mesh.core.rotations import ROTATIONS_MAX, heads_fields, unheard
from mesh.core.statements import (
    ADMIT,
    HEADS,
    ROTATE,
    Statement,
    admission,
    found_mesh,
    make_fork,
    make_rotation,
    make_statement,
)

ROOT, FOUNDER = b"r" * 32, b"f" * 32
SEEDS = [sha256(b"rotation %d" % i).digest() for i in range(8)]
KEYS = [ed25519.public_key(seed) for seed in SEEDS]
NODE = ed25519.node_id(KEYS[0])
FIRST = ed25519.node_id(ed25519.public_key(FOUNDER))
EPOCH = Epoch(1, b"e" * 8)
CHAIN = ChainId(NODE, "mesh")


def _member(number: int, state: MemberState = "active") -> Member:
    node = bytes([number]) * 16
    return Member(node, f"n{number:02}", "a", bytes(32), state, admin=False)


@pytest.mark.parametrize(
    ("others", "linked", "heard", "lacking"),
    [
        (0, [], [], []),
        (2, [], [], ["n01", "n02"]),
        (2, [1], [1], ["n02"]),
        (2, [], [1, 2], []),
        (8, [1, 2], [1, 2], ["n03", "n04", "n05", "n06", "n07", "n08"]),
        (9, [1, 2], [1], ["n02"]),  # not all are linked in a mesh of so many: these count for all
        (9, [1, 2], [1, 2], []),
        (9, [], [3], []),
        (9, [1, 2], [], [f"n{number:02}" for number in range(1, 10)]),
    ],
)
def test_who_may_hold_what_a_node_has_lost(
    others: int, linked: list[int], heard: list[int], lacking: list[str]
) -> None:
    members = {m.node: m for m in map(_member, range(others, -1, -1))}
    for gone in (_member(20, "retired"), _member(21, "forgotten")):
        members[gone.node] = gone
    known = {bytes([number]) * 16 for number in heard}
    found = unheard(bytes(16), members, [bytes([n]) * 16 for n in linked], known.__contains__)
    assert [member.name for member in found] == lacking


def founded() -> Roster:
    roster = Roster.founded_by(found_mesh("m", ROOT, FOUNDER, "n0", "s0"))
    roster.add([roster.admit(FOUNDER, KEYS[0], "x", "s")])
    return roster


def turn(roster: Roster, old: int, new: int, head: int = 0) -> list[bytes]:
    """What replaces key `old` of the node by key `new`, the old one counting up to `head`."""
    return roster.rotate(SEEDS[old], SEEDS[new], [(CHAIN, EPOCH, head)])


def header(seed: int, hi: int, root: bytes = b"r", epoch: Epoch = EPOCH) -> Header:
    zero = bytes(32)
    unsigned = Header(CHAIN, epoch, hi - 1, hi, 1, 0, zero, zero, sha256(root).digest())
    return unsigned.signed(founded().mesh_id, lambda m: ed25519.sign(SEEDS[seed], m))


def thrice() -> Roster:
    roster = founded()
    for i in range(3):
        roster.add(turn(roster, i, i + 1, 10 * (i + 1)))
    return roster


def contested() -> tuple[Roster, list[list[bytes]]]:
    """Two that each go on from the first key, and one with all that both say."""
    sides = []
    for new, after in ((1, 2), (3, 4)):
        side = founded()
        side.add(turn(side, 0, new, new))
        side.add(turn(side, new, after))
        sides.append(side.statements())
    roster = Roster.founded_by(sides[0])
    for _ in range(2):
        roster.add(sides[1])
    return roster, sides


def test_three_rotations_in_a_row_leave_one_key_in_use() -> None:
    roster = thrice()
    member = roster.members()[NODE]
    assert (member.key, member.rotations, member.contested) == (KEYS[3], 3, False)
    assert [roster.node_of_key(key) for key in KEYS[:4]] == [None, None, None, NODE]
    assert roster.had_key(KEYS[1]) == member
    assert roster.had_key(KEYS[3]) is None
    for i in range(3):
        assert roster.signed(header(i, 10 * (i + 1)))
        assert not roster.signed(header(i, 10 * (i + 1) + 1)), "beyond what was named"
        assert not roster.signed(header(i, 1, epoch=Epoch(1, b"x" * 8))), "an epoch not named"
    assert roster.signed(header(3, 1000))
    assert not roster.signed(header(4, 1))


@given(st.permutations(thrice().statements()), st.data())
def test_what_is_in_use_follows_from_the_set_whatever_the_order(
    blobs: list[bytes], data: st.DataObject
) -> None:
    whole = thrice()
    roster = Roster(whole.mesh_id)
    for _ in range(8):  # a statement before its signer is left out, and offered again
        cut = data.draw(st.integers(0, len(blobs)))
        roster.add(blobs[:cut])
        roster.add(blobs[cut:])
    assert roster.digest() == whole.digest()
    assert roster.members() == whole.members()
    assert Roster.founded_by(roster.statements()).digest() == whole.digest()


@given(st.permutations([blob for side in contested()[1] for blob in side]), st.data())
def test_of_concurrent_rotations_the_lower_hash_counts_in_any_order(
    blobs: list[bytes], data: st.DataObject
) -> None:
    whole, sides = contested()
    member = whole.members()[NODE]
    rotations = sorted(
        (s.hash, s.key())
        for blob in {blob for side in sides for blob in side}
        if (s := Statement.parse(blob)).kind == ROTATE and s.replaced_key() == KEYS[0]
    )
    wins = KEYS.index(rotations[0][1])
    assert (member.key, member.rotations, member.contested) == (KEYS[wins + 1], 2, True)
    roster = Roster(whole.mesh_id)
    for _ in range(8):
        cut = data.draw(st.integers(0, len(blobs)))
        roster.add(blobs[:cut])
        roster.add(blobs[cut:])
    assert roster.digest() == whole.digest()
    assert roster.members() == whole.members()


def test_a_rotation_by_a_key_that_is_not_on_the_line_counts_for_nothing() -> None:
    roster, sides = contested()
    loser = next(
        blob
        for side in sides
        for blob in side
        if (s := Statement.parse(blob)).kind == ROTATE
        and s.key() not in (roster.members()[NODE].key, KEYS[1], KEYS[3])
    )
    assert roster.add([loser]) == []
    fields = heads_fields(NODE, [], [])
    stranger = make_rotation(SEEDS[6], SEEDS[7], roster.mesh_id, NODE, fields, 2)
    assert roster.add(stranger) == []
    assert roster.add([stranger[1]]) == [], "what no rotation names is not held"
    again = make_rotation(SEEDS[3], SEEDS[1], thrice().mesh_id, NODE, fields, 3)
    row = thrice()
    row.add(again)
    assert row.members()[NODE].key == KEYS[3], "a key is used once"
    assert row.digest() == thrice().digest()


def test_forged_rotations_are_their_senders_fault() -> None:
    roster = founded()
    rotation, heads = turn(roster, 0, 1)
    body, _ = msgpack.unpackb(rotation)
    fields = dict(Statement.parse(rotation).fields)
    unproven = {**fields, "key": KEYS[2]}
    forgeries = [
        msgpack.packb([body, bytes(64)]),
        make_statement(SEEDS[0], NODE, roster.mesh_id, ROTATE, unproven),
        make_statement(SEEDS[0], FIRST, roster.mesh_id, ROTATE, fields),
        make_statement(SEEDS[0], NODE, roster.mesh_id, ROTATE, {**fields, "proof": b"short"}),
    ]
    for forged in forgeries:
        with pytest.raises(PeerError):
            roster.add([forged])
    signed = msgpack.packb([msgpack.unpackb(heads)[0], bytes(64)])
    with pytest.raises(PeerError, match="somebody signs"):
        roster.add([signed])
    assert roster.digest() == founded().digest()
    roster.add([rotation, heads])
    assert roster.members()[NODE].key == KEYS[1]


def test_until_it_is_told_what_counts_of_a_key_all_of_it_does() -> None:
    roster = founded()
    rotation, heads = turn(roster, 0, 1, 5)
    roster.add([rotation])
    assert roster.members()[NODE].key == KEYS[1]
    assert roster.signed(header(0, 6))
    roster.add([heads])
    assert roster.signed(header(0, 5))
    assert not roster.signed(header(0, 6))


def test_what_an_admin_said_stays_and_what_its_old_key_says_later_does_not() -> None:
    roster = founded()
    turn_of_admin = roster.rotate(FOUNDER, SEEDS[5], [])
    late = roster.admit(FOUNDER, KEYS[6], "late", "s")
    unaware = Roster.founded_by(roster.statements())
    unaware.add([late])
    gone = unaware.retire(SEEDS[6], ed25519.node_id(KEYS[6]))  # and what hangs on it
    unaware.add([gone])
    roster.add(turn_of_admin)
    assert NODE in roster.members()
    assert roster.add([late]) == [], "not forged: others may not know yet"
    with pytest.raises(Refused, match="no admin"):
        roster.admit(FOUNDER, KEYS[7], "y", "s")
    roster.add([roster.admit(SEEDS[5], KEYS[7], "y", "s")])
    assert roster.by_name("y")
    unaware.add(roster.statements())
    assert set(unaware.take_left()) == {late, gone}
    assert unaware.digest() == roster.digest()
    assert unaware.members() == roster.members()
    assert Roster.founded_by(roster.statements()).digest() == roster.digest()
    with pytest.raises(PeerError, match="forged"):
        roster.add(
            [
                make_statement(
                    SEEDS[7], FIRST, roster.mesh_id, ADMIT, admission(KEYS[4], "z", "s", b"")
                )
            ]
        )


def test_whoever_has_rotated_can_be_made_an_admin_and_retired() -> None:
    roster = thrice()
    roster.add([roster.appoint(ROOT, NODE)])
    assert roster.members()[NODE].admin
    roster.add([roster.admit(SEEDS[3], KEYS[5], "y", "s")])
    roster.add([roster.retire(SEEDS[3], NODE)])
    assert roster.by_name("y")
    assert roster.members()[NODE].state == "retired"
    with pytest.raises(Refused, match="no active member"):
        roster.rotate(SEEDS[3], SEEDS[6], [])


def test_an_old_key_proves_no_fork_beyond_what_it_counts_for() -> None:
    roster = founded()
    early = (header(0, 4, b"one"), header(0, 4, b"other"))
    late = (header(0, 9, b"one"), header(0, 9, b"other"))
    unaware = Roster.founded_by(roster.statements())
    unaware.add([make_fork(roster.mesh_id, *late)])
    assert unaware.members()[NODE].forked
    roster.add(turn(roster, 0, 1, 5))
    assert roster.fork_proof(*late) is None
    assert roster.add([make_fork(roster.mesh_id, *late)]) == []
    unaware.add(roster.statements())
    assert not unaware.members()[NODE].forked, "whoever has the old key makes nobody rank last"
    assert unaware.digest() == roster.digest()
    proof = roster.fork_proof(*early)
    assert proof is not None
    roster.add([proof])
    assert roster.members()[NODE].forked


def test_the_set_stays_small_whatever_a_stolen_key_signs() -> None:
    roster = founded()
    for i in range(20):
        new = sha256(b"thief %d" % i).digest()
        roster.add(founded().rotate(SEEDS[0], new, [(CHAIN, EPOCH, i)]))
    kinds = [Statement.parse(blob).kind for blob in roster.statements()]
    assert (kinds.count(ROTATE), kinds.count(HEADS)) == (2, 1)
    assert roster.members()[NODE].contested


def test_a_key_is_replaced_a_bounded_number_of_times() -> None:
    roster, seed = founded(), SEEDS[0]
    for i in range(ROTATIONS_MAX):
        new = sha256(b"turn %d" % i).digest()
        roster.add(roster.rotate(seed, new, []))
        seed = new
    assert roster.members()[NODE].rotations == ROTATIONS_MAX
    with pytest.raises(Refused, match="most"):
        roster.rotate(seed, SEEDS[1], [])
    beyond = make_rotation(
        seed, SEEDS[1], roster.mesh_id, NODE, heads_fields(NODE, [], []), ROTATIONS_MAX
    )
    before = roster.digest()
    roster.add(beyond)
    assert roster.digest() == before
    assert max(map(len, roster.rotations(NODE))) < 400, "all of them fit a handshake"
