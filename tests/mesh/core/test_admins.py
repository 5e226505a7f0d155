"""The root key alone makes and retires admins; what stays of a retired one follows from the set."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import ed25519
from mesh.core.effects import DropPeer, Forget
from mesh.core.errors import PeerError, Refused
from mesh.core.ops import NodeId
from mesh.core.roster import Roster
from mesh.core.statements import (
    ADMIN,
    ADMIT,
    DEMOTE,
    FORGET,
    KEEP_MAX,
    RETIRE,
    Statement,
    admission,
    demotions,
    found_mesh,
    make_statement,
)
from tests.mesh.core.test_replica import Wire, put

ROOT = b"r" * 32
SEEDS = [sha256(b"member %d" % i).digest() for i in range(7)]
KEYS = [ed25519.public_key(seed) for seed in SEEDS]
NODES = [ed25519.node_id(key) for key in KEYS]
FOUNDING = found_mesh("m", ROOT, SEEDS[0], "n0", "s0")
MESH = Roster.founded_by(FOUNDING).mesh_id


def said(i: int | None, kind: str, **fields: object) -> bytes:
    """A statement of member `i`, of the root key if None."""
    seed, signer = (ROOT, b"") if i is None else (SEEDS[i], NODES[i])
    return make_statement(seed, signer, MESH, kind, fields)


def admits(i: int | None, node: int, token: bytes = b"") -> bytes:
    return said(i, ADMIT, **admission(KEYS[node], f"n{node}", f"s{node}", token))


def hash_of(blob: bytes) -> bytes:
    return Statement.parse(blob).hash


def founded(*more: bytes) -> Roster:
    roster = Roster.founded_by(FOUNDING)
    roster.add(more)
    return roster


def states(roster: Roster) -> dict[str, str]:
    return {member.name: member.state for member in roster.members().values()}


def admins(roster: Roster) -> set[str]:
    return {member.name for member in roster.members().values() if member.admin}


who = st.one_of(st.none(), st.integers(0, 2))
node = st.integers(0, 6)
utterances = st.lists(
    st.one_of(
        st.builds(admits, who, node, st.sampled_from([b"", b"t1", b"t2"])),
        st.builds(lambda i, n, c: said(i, RETIRE, node=NODES[n], compromised=c),
                  who, node, st.booleans()),
        st.builds(lambda i: said(i, RETIRE, node=NODES[i]), node),
        st.builds(lambda i, n: said(i, FORGET, node=NODES[n]), who, node),
        st.builds(lambda n: said(None, ADMIN, key=KEYS[n]), st.integers(1, 2)),
        st.builds(lambda i, x: said(i, "hologram", x=x), node, st.integers(0, 3)),
    ),
    max_size=20,
)  # fmt: skip


@st.composite
def histories(draw: st.DrawFn) -> list[bytes]:
    """Everything that was ever said in a mesh, demotions of admins among it."""
    blobs = [*FOUNDING, *draw(utterances)]
    for _ in range(draw(st.integers(0, 3))):
        keep = draw(st.lists(st.sampled_from(blobs), max_size=6))
        blobs += demotions(ROOT, MESH, NODES[draw(st.integers(0, 2))], map(hash_of, keep))
    return blobs


def told(blobs: list[bytes], batches: st.DataObject) -> Roster:
    """A roster that was told all of it, in this order and some batches, until nothing is new."""
    roster = Roster(MESH)
    news = True
    while news:
        news, at = False, 0
        while at < len(blobs):
            step = batches.draw(st.integers(1, len(blobs)))
            news |= bool(roster.add(blobs[at : at + step]))
            at += step
    return roster


@given(histories(), st.data())
def test_membership_is_a_pure_function_of_what_was_said(
    blobs: list[bytes], data: st.DataObject
) -> None:
    one = told(data.draw(st.permutations(blobs)), data)
    other = told([*data.draw(st.permutations(blobs)), *blobs], data)
    assert one.digest() == other.digest()
    assert one.members() == other.members()
    assert (one.mesh_name, one.take_left()) == ("m", [])
    again = Roster.founded_by(one.statements())
    assert (again.digest(), again.members()) == (one.digest(), one.members())


@given(histories(), st.data())
def test_what_a_demoted_admin_said_and_is_not_kept_counts_for_nothing(
    blobs: list[bytes], data: st.DataObject
) -> None:
    whole = told(blobs, data)
    parsed = [Statement.parse(blob) for blob in blobs]
    kept: dict[NodeId, set[bytes]] = {}
    for statement in parsed:
        if statement.kind == DEMOTE:
            kept.setdefault(statement.node(), set()).update(statement.keep())
    without = [
        s.blob for s in parsed
        if s.signer not in kept or s.hash in kept[s.signer] or s.of_itself
    ]  # fmt: skip
    assert told(without, data).members() == whole.members()
    assert not any(whole.members()[n].admin for n in kept if n in whole.members())


@given(st.lists(st.integers(0, 1), min_size=2, max_size=2, unique=True), st.booleans())
def test_two_admins_who_retire_each_other_apart_end_the_same_everywhere(
    order: list[int], compromised: bool
) -> None:
    base = [said(None, ADMIN, key=KEYS[1]), admits(0, 1), admits(0, 2)]
    both = []
    for i in range(2):
        apart = founded(*base)
        both.append(apart.retire(SEEDS[i], NODES[1 - i], compromised=compromised))
        apart.add(both[-1:])
        assert admins(apart) == {f"n{i}"}
    healed = founded(*base)
    for i in order:
        healed.add([both[i]])
    gone = "forgotten" if compromised else "retired"
    assert states(healed) == {"n0": gone, "n1": gone, "n2": "active"}
    assert admins(healed) == set()
    # The root key alone brings an admin back, and undoes what one of the two did.
    healed.add([healed.appoint(ROOT, NODES[2])])
    assert admins(healed) == {"n2"}
    own = [hash_of(FOUNDING[2]), *(hash_of(b) for b in base[1:])]
    healed.add(healed.demote(ROOT, NODES[0], own))
    assert states(healed) == {"n0": gone, "n1": "active", "n2": "active"}
    assert admins(healed) == {"n1", "n2"}


def test_demotions_add_up() -> None:
    early, late = admits(1, 2), admits(1, 3)
    roster = founded(said(None, ADMIN, key=KEYS[1]), admits(0, 1), early, late)
    assert states(roster) == dict.fromkeys(["n0", "n1", "n2", "n3"], "active")
    roster.add(roster.demote(ROOT, NODES[1], [hash_of(early)]))
    assert states(roster) == dict.fromkeys(["n0", "n1", "n2"], "active")
    assert admins(roster) == {"n0"}
    roster.add([said(1, RETIRE, node=NODES[2]), said(1, FORGET, node=NODES[0]), admits(1, 4)])
    assert states(roster) == dict.fromkeys(["n0", "n1", "n2"], "active")
    roster.add(roster.demote(ROOT, NODES[1], [hash_of(late)]))
    assert states(roster) == dict.fromkeys(["n0", "n1", "n2", "n3"], "active")
    # It goes on as a member, who may leave, and no more.
    with pytest.raises(Refused, match="no admin"):
        roster.retire(SEEDS[1], NODES[2])
    roster.add([said(1, RETIRE, node=NODES[1], compromised=True)])
    assert states(roster)["n1"] == "retired"


def test_a_forgotten_admin_strays_until_the_root_key_ends_it() -> None:
    roster = founded(said(None, ADMIN, key=KEYS[1]), admits(0, 1), admits(0, 2))
    roster.add([said(0, RETIRE, node=NODES[2], compromised=True)])
    roster.add([said(0, RETIRE, node=NODES[1])])
    assert roster.stray_admins() == []
    roster.add([said(0, RETIRE, node=NODES[1], compromised=True)])
    assert [member.name for member in roster.stray_admins()] == ["n1"]
    roster.add(roster.demote(ROOT, NODES[1], []))
    assert roster.stray_admins() == []


def test_a_retirement_that_only_a_demoted_admin_signed_does_not_hold() -> None:
    base = [said(None, ADMIN, key=KEYS[1]), admits(0, 1), admits(0, 2), admits(0, 3)]
    roster = founded(*base, said(1, RETIRE, node=NODES[2]), said(1, FORGET, node=NODES[3]))
    assert states(roster) == {"n0": "active", "n1": "active", "n2": "retired", "n3": "forgotten"}
    roster.add(roster.demote(ROOT, NODES[1], []))
    assert states(roster) == dict.fromkeys(["n0", "n1", "n2", "n3"], "active")


def test_an_admin_that_only_admitted_itself_is_no_member_once_that_is_not_kept() -> None:
    roster = founded(admits(0, 2))
    roster.add(roster.demote(ROOT, NODES[0], []))
    assert states(roster) == {}
    roster.add(roster.demote(ROOT, NODES[0], [hash_of(FOUNDING[2])]))
    assert states(roster) == {"n0": "active"}


def test_a_token_that_a_demoted_admin_gave_to_another_is_free_again() -> None:
    both = [admits(i, 2 + i, b"token") for i in range(2)]
    roster = founded(said(None, ADMIN, key=KEYS[1]), admits(0, 1), *both)
    loser = {"n2", "n3"} - set(states(roster))
    assert len(loser) == 1
    first = max(range(2), key=lambda i: f"n{2 + i}" in states(roster))
    own = [hash_of(FOUNDING[2])]
    roster.add(roster.demote(ROOT, NODES[first], [*own, hash_of(admits(0, 1))]))
    assert loser < set(states(roster))


def test_only_the_root_key_appoints_and_demotes_and_only_whom_it_can() -> None:
    roster = founded(admits(0, 1), admits(0, 2), said(0, RETIRE, node=NODES[2]))
    with pytest.raises(Refused, match="another mesh"):
        roster.appoint(SEEDS[0], NODES[1])
    with pytest.raises(Refused, match="another mesh"):
        roster.demote(SEEDS[0], NODES[0], [])
    with pytest.raises(Refused, match="no node"):
        roster.appoint(ROOT, NODES[5])
    with pytest.raises(Refused, match="only an active node"):
        roster.appoint(ROOT, NODES[2])
    with pytest.raises(Refused, match="never was an admin"):
        roster.demote(ROOT, NODES[1], [])
    roster.add([roster.appoint(ROOT, NODES[1])])
    assert admins(roster) == {"n0", "n1"}
    roster.add(roster.demote(ROOT, NODES[1], []))
    with pytest.raises(Refused, match="for good"):
        roster.appoint(ROOT, NODES[1])
    roster.add([said(None, ADMIN, key=KEYS[1])])
    assert admins(roster) == {"n0"}, "an appointment that was under way, or made by hand"
    for kind, fields in ((ADMIN, {"key": KEYS[1]}), (DEMOTE, {"node": NODES[0], "keep": []})):
        with pytest.raises(PeerError, match="root key"):
            roster.add([said(0, kind, **fields)])


def test_a_demotion_that_keeps_more_than_one_statement_holds_is_several() -> None:
    roster = founded()
    keep = [sha256(b"%d" % i).digest() for i in range(2 * KEEP_MAX)] + [hash_of(FOUNDING[2])]
    blobs = roster.demote(ROOT, NODES[0], keep)
    assert len(blobs) == 3
    assert set(roster.add(blobs[:2])) == set(blobs[:2])
    assert roster.add(blobs) == blobs[2:]
    assert states(roster) == {"n0": "active"}


def test_nodes_that_are_members_no_more_are_dropped_and_refused_by_all() -> None:
    mesh = Wire(3)
    mesh.link(0, 1)
    mesh.link(1, 2)
    mesh.run()
    for i in range(3):
        put(mesh.replicas[i], b"k%d" % i)
    mesh.run()
    assert len(mesh.digests()) == 1
    mesh.links -= {(1, 2), (2, 1)}
    roster = mesh.replicas[0].roster
    keep = [s.hash for s in roster.said_by(mesh.nodes[0]) if s.node() != mesh.nodes[2]]
    mesh.replicas[0].add_statements(roster.demote(b"r" * 32, mesh.nodes[0], keep), mesh.now_ns)
    mesh.run()
    assert any(isinstance(effect, Forget) and effect.node == mesh.nodes[2]
               for _, effect in mesh.effects)  # fmt: skip
    for replica in mesh.replicas[:2]:
        assert {id.node for id in replica.lattice.chains()} == set(mesh.nodes[:2])
        assert not replica.roster.members()[mesh.nodes[0]].admin
    # Who has not heard of it keeps its own until it does, and gets nothing of it in anywhere.
    assert {id.node for id in mesh.replicas[2].lattice.chains()} == set(mesh.nodes)
    dropped = [e for i, e in mesh.effects if i == 1 and isinstance(e, DropPeer)]
    assert [e.peer for e in dropped] == [mesh.nodes[2]]
    mesh.tick(3)
    assert {id.node for id in mesh.replicas[0].lattice.chains()} == set(mesh.nodes[:2])
