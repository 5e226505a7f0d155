"""The roster as a set: order does not matter, authority does; tokens prove themselves once."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import ed25519, token
from mesh.core.bounds import QUOTA_MAX, Quotas
from mesh.core.errors import BadInput, PeerError, Refused
from mesh.core.persisting import load_header
from mesh.core.roster import Roster
from mesh.core.statements import (
    ADMIT,
    DEMOTE,
    FORGET,
    RETIRE,
    Statement,
    found_mesh,
    make_statement,
)
from mesh.core.token import Token

ROOT, FOUNDER = b"r" * 32, b"f" * 32
SEEDS = [sha256(b"%d" % i).digest() for i in range(6)]
KEYS = [ed25519.public_key(seed) for seed in SEEDS]
NODES = [ed25519.node_id(key) for key in KEYS]


def founded() -> Roster:
    return Roster.founded_by(found_mesh("m", ROOT, FOUNDER, "n0", "s0"))


def grown() -> Roster:
    roster = founded()
    for i, key in enumerate(KEYS):
        roster.add([roster.admit(FOUNDER, key, f"x{i}", "s", b"t%d" % i)])
    roster.add([roster.retire(FOUNDER, NODES[0]), roster.retire(SEEDS[1], NODES[1])])
    roster.add([roster.retire(FOUNDER, NODES[4]), roster.forget(FOUNDER, NODES[4])])
    roster.add([roster.retire(FOUNDER, NODES[5], compromised=True)])
    roster.add([roster.retire(FOUNDER, NODES[5])])
    return roster


@given(st.permutations(grown().statements()), st.data())
def test_membership_follows_from_the_set_whatever_the_order(
    blobs: list[bytes], data: st.DataObject
) -> None:
    whole = grown()
    roster = Roster(whole.mesh_id)
    for _ in range(4):  # a statement before its signer is left out, and offered again
        cut = data.draw(st.integers(0, len(blobs)))
        roster.add(blobs[:cut])
        roster.add(blobs[cut:])
    assert roster.members() == whole.members()
    assert roster.digest() == whole.digest()
    assert roster.mesh_name == "m"


def test_states_and_rights() -> None:
    roster = grown()
    states = {member.name: member.state for member in roster.members().values()}
    assert states == {
        "n0": "active", "x0": "retired", "x1": "retired",
        "x2": "active", "x3": "active", "x4": "forgotten", "x5": "forgotten",
    }  # fmt: skip
    with pytest.raises(Refused, match="no admin"):
        roster.admit(SEEDS[2], KEYS[3], "y", "s")
    for say in (roster.retire, roster.forget):
        with pytest.raises(Refused, match=r"no admin.* at n0$"):
            say(SEEDS[2], NODES[3])
        with pytest.raises(Refused, match="no node"):
            say(FOUNDER, b"x" * 16)
    with pytest.raises(Refused, match="no admin"):
        roster.retire(SEEDS[2], NODES[2], compromised=True)
    with pytest.raises(Refused, match="taken"):
        roster.admit(FOUNDER, ed25519.public_key(b"z" * 32), "x2", "s")
    with pytest.raises(Refused, match="used before"):
        roster.admit(FOUNDER, ed25519.public_key(b"z" * 32), "y", "s", b"t2")
    with pytest.raises(Refused, match="admitted before"):
        roster.admit(FOUNDER, KEYS[2], "y", "s")


def test_what_one_without_the_right_says_waits_and_what_nobody_can_say_is_refused() -> None:
    """It may be that its appointment is still under way; a forgery never becomes anything else."""
    roster = grown()
    before = roster.digest()
    admission = {"key": ed25519.public_key(b"z" * 32), "name": "z", "site": "s", "token": b""}
    founder = ed25519.node_id(ed25519.public_key(FOUNDER))
    waiting = [
        make_statement(SEEDS[2], NODES[2], roster.mesh_id, ADMIT, admission),
        make_statement(SEEDS[2], NODES[2], roster.mesh_id, RETIRE, {"node": NODES[3]}),
        make_statement(SEEDS[2], NODES[2], roster.mesh_id, FORGET, {"node": NODES[3]}),
        make_statement(SEEDS[2], NODES[2], roster.mesh_id, FORGET, {"node": NODES[2]}),
    ]
    assert roster.add(waiting) == []
    assert roster.digest() == before
    hostile = [
        make_statement(SEEDS[2], founder, roster.mesh_id, ADMIT, admission),
        make_statement(FOUNDER, founder, roster.mesh_id, ADMIT, {**admission, "token": [1]}),
        make_statement(FOUNDER, founder, roster.mesh_id, ADMIT, {**admission, "name": "n" * 64}),
        make_statement(FOUNDER, founder, roster.mesh_id, "admin", {"key": KEYS[2]}),
        make_statement(FOUNDER, founder, roster.mesh_id, DEMOTE, {"node": founder, "keep": []}),
        make_statement(ROOT, b"", roster.mesh_id, DEMOTE, {"node": founder, "keep": [b"short"]}),
        make_statement(ROOT, b"", roster.mesh_id, DEMOTE, {"node": founder}),
        make_statement(FOUNDER, founder, roster.mesh_id, FORGET, {"node": "x2"}),
        make_statement(SEEDS[2], NODES[2], roster.mesh_id, "admin", {"key": KEYS[2]}),
        make_statement(FOUNDER, founder, b"x" * 16, ADMIT, admission),
        make_statement(FOUNDER, founder, roster.mesh_id, ADMIT, {**admission, "key": b"short"}),
        make_statement(b"q" * 32, b"", roster.mesh_id, "mesh", {"name": "q", "root": b"q" * 32}),
        b"",
        b"\xc1",
        msgpack.packb([b"", b""]),
        bytes(20_000),
        make_statement(FOUNDER, founder, roster.mesh_id, "hologram", {"x": bytes(2048)}),
    ]
    for blob in hostile:
        with pytest.raises(PeerError):
            roster.add([blob])
    assert roster.digest() == before


def test_who_is_no_admin_cannot_call_itself_compromised_only_leave() -> None:
    roster = grown()
    fields = {"node": NODES[2], "compromised": True}
    roster.add([make_statement(SEEDS[2], NODES[2], roster.mesh_id, RETIRE, fields)])
    assert roster.members()[NODES[2]].state == "retired"


def test_the_root_key_retires_and_forgets_an_admin() -> None:
    roster = founded()
    founder = ed25519.node_id(ed25519.public_key(FOUNDER))
    for kind, state in ((RETIRE, "retired"), (FORGET, "forgotten"), (RETIRE, "forgotten")):
        roster.add([make_statement(ROOT, b"", roster.mesh_id, kind, {"node": founder})])
        assert (roster.members()[founder].state, roster.members()[founder].admin) == (state, False)


def test_of_statements_with_a_bad_one_among_them_none_is_taken() -> None:
    roster = founded()
    before = roster.digest(), roster.mesh_name, roster.members()
    admission = roster.admit(FOUNDER, KEYS[2], "x2", "s")
    bad = make_statement(SEEDS[2], b"", roster.mesh_id, FORGET, {"node": NODES[3]})
    with pytest.raises(PeerError):
        roster.add([admission, bad])
    assert (roster.digest(), roster.mesh_name, roster.members()) == before
    assert roster.add([admission]) == [admission]


def test_what_one_signed_whose_token_another_used_counts_the_same_in_every_order() -> None:
    whole = founded()
    both = [whole.admit(FOUNDER, KEYS[i], f"x{i}", "s", b"token") for i in range(2)]
    for i in range(2):
        left = make_statement(SEEDS[i], NODES[i], whole.mesh_id, RETIRE, {"node": NODES[i]})
        one, other = founded(), founded()
        one.add([both[i]])
        one.add([left])
        one.add(both)
        other.add([*both, left])
        assert one.digest() == other.digest()


def test_one_token_admits_one_node_even_through_two_admins() -> None:
    roster = founded()
    both = [roster.admit(FOUNDER, KEYS[i], f"x{i}", "s", b"token") for i in range(2)]
    roster.add(both)
    admitted = [node for node in NODES[:2] if node in roster.members()]
    winner = min(both, key=lambda blob: Statement.parse(blob).hash)
    assert admitted == [NODES[both.index(winner)]]


def test_a_statement_of_a_newer_kind_is_kept_and_passed_on() -> None:
    roster = grown()
    newer = make_statement(SEEDS[2], NODES[2], roster.mesh_id, "hologram", {"x": 1})
    assert roster.add([newer]) == [newer]
    other = Roster(roster.mesh_id)
    other.add(roster.statements())
    assert other.digest() == roster.digest()


@pytest.mark.parametrize("granted", [None, Quotas(1, QUOTA_MAX), Quotas(20_000, 5)])
def test_an_admission_grants_quotas(granted: Quotas | None) -> None:
    roster = founded()
    roster.add([roster.admit(FOUNDER, KEYS[0], "x0", "s", quotas=granted)])
    expected = granted or Quotas(10_000, 150_000)
    assert roster.members()[NODES[0]].quotas == expected
    assert roster.quota(NODES[0], "mesh") == expected.mesh
    assert roster.quota(NODES[0], "a" * 32) == expected.vpc
    assert roster.quota(NODES[1], "mesh") == QUOTA_MAX, "not known yet"


@pytest.mark.parametrize(
    "quotas", [None, 5, [], [1], [0, 1], [1, 0], [-1, 1], [QUOTA_MAX + 1, 1], [1, "1"], [True, 1]]
)
def test_quotas_out_of_range_are_refused(quotas: object) -> None:
    roster = founded()
    founder = ed25519.node_id(ed25519.public_key(FOUNDER))
    fields = {"key": KEYS[0], "name": "z", "site": "s", "token": b"", "quotas": quotas}
    with pytest.raises(PeerError, match="quotas"):
        roster.add([make_statement(FOUNDER, founder, roster.mesh_id, ADMIT, fields)])


TOKEN = Token(b"m" * 16, "m", KEYS[0], ("/ip4/192.0.2.1/tcp/7400",), b"s" * 16, 1000, "paris")


def test_token_round_trips_and_every_cut_or_flip_is_seen() -> None:
    text = TOKEN.encode()
    assert Token.decode(f" {text}\n") == TOKEN
    for i in range(len(text)):
        with pytest.raises(Refused):
            Token.decode(text[:i])
        flipped = "A" if text[i] != "A" else "B"
        with pytest.raises(Refused):
            Token.decode(text[:i] + flipped + text[i + 1 :])


@given(st.text(max_size=80))
def test_no_text_breaks_the_token_decoder(text: str) -> None:
    with pytest.raises(Refused):
        Token.decode(text)


GOOD = (KEYS[1], TOKEN, "paris", False, 999)


@pytest.mark.parametrize(
    ("key", "asked_with", "site", "used", "now_s", "reason"),
    [
        (*GOOD, None),
        (KEYS[1], TOKEN, "paris", True, 999, "used before"),
        (KEYS[1], TOKEN, "paris", False, 1000, "expired"),
        (KEYS[1], TOKEN, "rome", False, 999, "for site paris"),
        (KEYS[2], TOKEN, "paris", False, 999, "prove"),
        (KEYS[1], replace(TOKEN, secret=b"x" * 16), "paris", False, 999, "prove"),
        (KEYS[1], replace(TOKEN, inviter_key=KEYS[3]), "paris", False, 999, "prove"),
    ],
)
def test_a_join_is_checked(
    key: bytes, asked_with: Token, site: str, used: bool, now_s: int, reason: str | None
) -> None:
    request = token.parse_join_request(token.join_request(asked_with, KEYS[1], "n1", site))
    if reason is None:
        token.check_join(request, TOKEN, key, used, now_s)
        request = replace(request, name="other")
        reason = "prove"
    with pytest.raises(Refused, match=reason):
        token.check_join(request, TOKEN, key, used, now_s)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_join_decoders(raw: bytes) -> None:
    with pytest.raises(PeerError):
        token.parse_join_request(raw)


@pytest.mark.parametrize("raw", [{1: 2}, {}, 7, None, b"x", "text", [], [[], 7], [[7], []]])
def test_what_is_no_such_list_breaks_nothing(raw: object) -> None:
    """A map can be sliced in some versions of Python, and raises KeyError then."""
    blob = msgpack.packb(raw)
    with pytest.raises(PeerError):
        token.parse_join_request(blob)
    with pytest.raises(BadInput):
        token.parse_join_answer(blob)
    with pytest.raises(ValueError):
        load_header(blob)
    with pytest.raises(PeerError):
        Statement.parse(blob)


def test_join_answer_round_trips() -> None:
    statements = founded().statements()
    answer = token.join_answer(statements, ["/ip4/192.0.2.1/tcp/7400"])
    assert token.parse_join_answer(answer) == (statements, ["/ip4/192.0.2.1/tcp/7400"])


def test_a_copy_is_whole_and_apart() -> None:
    roster = grown()
    roster.members()
    twin = roster.copy()
    assert vars(twin) == vars(roster)
    key = ed25519.public_key(b"late" * 8)
    before = roster.digest()
    twin.add([twin.admit(FOUNDER, key, "late", "s")])
    assert (roster.digest(), ed25519.node_id(key) in roster.members()) == (before, False)
    fresh = grown()
    fresh.members()
    fresh.digest()
    assert vars(roster) == vars(fresh)
