"""The form of statements: golden bytes, what their hash stands for, and how many are held."""

from __future__ import annotations

from hashlib import sha256

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.header import ChainId, Epoch, Header
from mesh.core import ed25519, retaining
from mesh.core.bounds import Quotas
from mesh.core.errors import PeerError
from mesh.core.retaining import beyond_bounds
from mesh.core.roster import Roster
from mesh.core.rotations import heads_fields
from mesh.core.statements import (
    ADMIN,
    ADMIT,
    FORGET,
    RETIRE,
    Statement,
    admission,
    demotions,
    found_mesh,
    make_fork,
    make_rotation,
    make_statement,
    rank,
)

ROOT, FOUNDER, OTHER = b"r" * 32, b"f" * 32, b"o" * 32
KEY = ed25519.public_key(OTHER)
NODE = ed25519.node_id(KEY)
FIRST = ed25519.node_id(ed25519.public_key(FOUNDER))
FOUNDING = found_mesh("m", ROOT, FOUNDER, "n0", "s0")
MESH = Roster.founded_by(FOUNDING).mesh_id


def header(hi: int) -> Header:
    zero = bytes(32)
    unsigned = Header(ChainId(NODE, "mesh"), Epoch(1, bytes(8)), 0, hi, 1, 0, zero, zero, zero)
    return unsigned.signed(MESH, lambda message: ed25519.sign(OTHER, message))


ROTATION = make_rotation(
    OTHER,
    b"n" * 32,
    MESH,
    NODE,
    heads_fields(NODE, [(ChainId(NODE, "mesh"), Epoch(1, bytes(8)), 9)], [b"k" * 32]),
)
EVERY_KIND = {
    "mesh": FOUNDING[0],
    "admin": FOUNDING[1],
    "admit": FOUNDING[2],
    "admit with quotas": make_statement(
        FOUNDER, FIRST, MESH, ADMIT, admission(KEY, "x", "s", b"t" * 32, Quotas(5, 7))
    ),
    "demote": demotions(ROOT, MESH, NODE, [b"k" * 32])[0],
    "retire": make_statement(FOUNDER, FIRST, MESH, RETIRE, {"node": NODE}),
    "compromised": make_statement(
        FOUNDER, FIRST, MESH, RETIRE, {"node": NODE, "compromised": True}
    ),
    "leave": make_statement(OTHER, NODE, MESH, RETIRE, {"node": NODE}),
    "forget": make_statement(ROOT, b"", MESH, FORGET, {"node": NODE}),
    "fork": make_fork(MESH, header(1), header(2)),
    "rotate": ROTATION[0],
    "heads": ROTATION[1],
    "of a newer version": make_statement(FOUNDER, FIRST, MESH, "hologram", {"x": {1: [2, None]}}),
}

GOLDEN = {  # kind -> the start of the SHA-256 of the blob, and of its hash
    "mesh": ("2a6bd6376dc48fe2", "b406e27a6b1ea9c8"),
    "admin": ("926e96ca74075789", "1c05c062e7f3d572"),
    "admit": ("37d08cee302a30e9", "3c7bb63642db32cb"),
    "admit with quotas": ("d02c491150e57be7", "e8a49ac79887b445"),
    "demote": ("aa1619aa39211dad", "5a5d0681d132a5a4"),
    "retire": ("6ac4c4aa961b4b84", "1505da55ff3979f2"),
    "compromised": ("cb96155baba78cbd", "ffe5ce55fa4c69a9"),
    "leave": ("019b893cd0064886", "21cee4b7af5b05ca"),
    "forget": ("c8c8b3c34d4d8fff", "9dea9fba43c5cbf3"),
    "fork": ("58cb92d384e3b810", "823a86ad8dd604a4"),
    "rotate": ("fc00e97354d4833f", "546a34d4b2bd151d"),
    "heads": ("d233eab6e2c6ffa8", "d974a75eb8285612"),
    "of a newer version": ("143dbebb8d11c0f3", "276333a18cfe2680"),
}


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_form_of_every_kind_is_pinned(kind: str) -> None:
    """Every node of every version must make and hash them alike: a change here parts meshes."""
    blob = EVERY_KIND[kind]
    statement = Statement.parse(blob)
    assert (sha256(blob).hexdigest()[:16], statement.hash.hex()[:16]) == GOLDEN[kind]
    assert statement.blob == blob
    roster = Roster.founded_by(FOUNDING)
    needs = [] if kind != "heads" else [EVERY_KIND["rotate"]]
    roster.add([EVERY_KIND["admin"], EVERY_KIND["admit with quotas"], *needs, blob])
    assert roster.get(statement.hash) == blob


def test_a_statement_is_what_was_said_however_it_is_wrapped_or_signed_again() -> None:
    """Or a relay could fill every roster with copies of one statement."""
    roster = Roster.founded_by(FOUNDING)
    blob = EVERY_KIND["admit with quotas"]
    body, signature = msgpack.unpackb(blob)
    wide = b"\xdc\x00\x02" + msgpack.packb(body) + msgpack.packb(signature)
    assert wide != blob
    assert Statement.parse(wide) == Statement.parse(blob)
    assert roster.add([wide]) == [blob]
    assert roster.add([blob, wide]) == []
    resigned = msgpack.packb([body, bytes(64)])
    assert Statement.parse(resigned).hash == Statement.parse(blob).hash
    with pytest.raises(PeerError, match="forged"):
        Roster.founded_by(FOUNDING).add([resigned])


def test_fields_of_a_newer_version_are_kept_and_passed_on() -> None:
    fields = {**admission(KEY, "x", "s", b""), "quotas": [5, 7, "more"], "colour": {1: "red"}}
    newer = make_statement(FOUNDER, FIRST, MESH, ADMIT, fields)
    roster = Roster.founded_by(FOUNDING)
    assert roster.add([newer]) == [newer]
    assert roster.members()[NODE].quotas == Quotas(5, 7)
    assert newer in Roster.founded_by(roster.statements()).statements()


@given(st.binary(max_size=300))
def test_no_bytes_break_the_parser(raw: bytes) -> None:
    with pytest.raises(PeerError):
        Roster.founded_by(FOUNDING).add([raw])


@given(st.sampled_from(sorted(EVERY_KIND)), st.data())
def test_an_altered_statement_is_refused_or_waits(kind: str, data: st.DataObject) -> None:
    blob = EVERY_KIND[kind]
    at = data.draw(st.integers(0, len(blob) - 1))
    altered = blob[:at] + bytes([blob[at] ^ data.draw(st.integers(1, 255))]) + blob[at + 1 :]
    roster = Roster.founded_by([*FOUNDING, EVERY_KIND["admit with quotas"]])
    before = roster.digest()
    try:
        taken = roster.add([altered])
    except PeerError:
        taken = []
    assert taken in ([], [blob])
    assert roster.digest() == before or taken


def test_who_is_no_admin_has_few_statements_in_the_set() -> None:
    roster = Roster.founded_by([*FOUNDING, EVERY_KIND["admit with quotas"]])
    size = len(roster.statements())
    said = [make_statement(OTHER, NODE, MESH, "hologram", {"x": i}) for i in range(60)]
    leaves = [make_statement(OTHER, NODE, MESH, RETIRE, {"node": NODE, "x": i}) for i in range(9)]
    for blob in said + leaves:
        roster.add([blob])
    assert len(roster.statements()) == size + retaining.NEWER_MAX + 1
    assert roster.members()[NODE].state == "retired"
    least = sorted(said, key=lambda blob: Statement.parse(blob).hash)[: retaining.NEWER_MAX]
    assert set(least) < set(roster.statements())
    left = roster.take_left()
    assert left
    assert not set(left) & set(roster.statements())
    assert set(left) < set(said + leaves)
    assert roster.take_left() == []


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a test reaches within a second."""
    most = {**retaining._MOST, "said": 6, "dropped": 2, "newer": 2, "newer of admin": 3}
    monkeypatch.setattr(retaining, "_MOST", most)
    monkeypatch.setattr(retaining, "STATEMENTS_MAX", 20)


SEEDS = [sha256(b"%d" % i).digest() for i in range(5)]
KEYS = [ed25519.public_key(seed) for seed in SEEDS]
NODES = [ed25519.node_id(key) for key in KEYS]


def hostile() -> list[bytes]:
    """An admin admits too many, is demoted, and they and it all say too much."""
    blobs = [
        *FOUNDING, make_statement(ROOT, b"", MESH, ADMIN, {"key": KEY}),
        *(make_statement(OTHER, NODE, MESH, ADMIT, admission(key, f"x{i}", "s", b""))
          for i, key in enumerate(KEYS)),
        *(make_statement(SEEDS[i], NODES[i], MESH, "hologram", {"x": x})
          for i in range(5) for x in range(4)),
        *(make_statement(FOUNDER, FIRST, MESH, "hologram", {"x": x}) for x in range(5)),
    ]  # fmt: skip
    keep = [Statement.parse(blob).hash for blob in blobs[4:6]]
    return [*blobs, *demotions(ROOT, MESH, NODE, keep)]


@pytest.mark.usefixtures("small")
@given(st.data())
def test_beyond_the_bounds_two_that_have_exchanged_their_sets_hold_the_same(
    data: st.DataObject,
) -> None:
    blobs = hostile()
    one, other = Roster.founded_by(FOUNDING), Roster.founded_by(FOUNDING)
    for roster in (one, other):
        for blob in data.draw(st.permutations(blobs)):
            roster.add([blob])
    for receiver, giver in ((one, other), (other, one), (one, other)):
        receiver.add(giver.statements())
    assert one.digest() == other.digest()
    assert one.members() == other.members()
    held = sorted(map(Statement.parse, one.statements()), key=rank)
    assert beyond_bounds(held) == []
    assert len(held) <= retaining.STATEMENTS_MAX
    again = Roster.founded_by(one.statements())
    assert again.digest() == one.digest(), "nobody's signer has left without it"
