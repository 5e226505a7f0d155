"""A writer whose clock is years off decides nothing but ties, and drags nobody's clock along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core import keys, model
from mesh.core.clock import AHEAD_MAX_MS, hlc_of_ns
from mesh.core.errors import RequestError
from mesh.core.housekeeping import REMOVED_VPC_KEPT_NS, SWEEP_INTERVAL_NS
from mesh.core.ops import MESH_SHARD, Delete, Op
from mesh.core.view import Endpoint
from tests.mesh.core.core_world import SECOND_NS, World, node_id

YEAR_NS = 365 * 86_400 * SECOND_NS
NAMES = ("a1", "a2", "b1", "c1")
WRONG = "b1"


class SkewedWorld(World):
    """A world in which the wall clock of one node is off."""

    def __init__(self, off_ns: int) -> None:
        super().__init__(*NAMES, admins=["c1"])
        self.off_ns = off_ns
        self.vpc = self.red()

    def do(self, name: str, method: str, /, *args: Any, **fields: Any) -> list[Op]:
        true_ns = self.now_ns
        self.now_ns += self.off_ns if name == WRONG else 0
        try:
            return super().do(name, method, *args, **fields)
        finally:
            self.now_ns = true_ns

    def tend(self, name: str) -> list[Op]:
        return self.do(name, "housekeeping")


IPS = ("10.0.1.5", "10.0.2.5", "10.0.200.5", "10.0.200.6")
ip = st.sampled_from(IPS)
actions = st.one_of(
    st.tuples(st.just("add_endpoint"), st.just("red"), ip),
    st.tuples(st.just("move_endpoint"), st.just("red"), ip),
    st.tuples(st.just("remove_endpoint"), st.just("red"), ip),
    st.tuples(st.just("set_vpc"), st.just("red"), st.sampled_from(["x", "y"])),
    st.tuples(st.just("add_vpc"), st.sampled_from(["blue", "green"]), st.integers(7, 9)),
    st.tuples(st.just("add_subnet"), st.sampled_from(["s1", "s2"]), st.integers(3, 4)),
    st.tuples(st.just("remove_vpc"), st.sampled_from(["blue", "green"]), st.none()),
    st.tuples(st.just("add_peering"), st.just("red"), st.sampled_from(["blue", "green"])),
)
plays = st.lists(st.tuples(st.sampled_from(NAMES), actions), max_size=10)


def act(world: SkewedWorld, name: str, action: tuple[str, Any, Any]) -> str:
    """Do it, or be refused; which of the two, in words without stamps."""
    method, one, other = action
    fields: dict[str, Any] = {}
    args: list[Any] = [one, other]
    if method == "set_vpc":
        args, fields = [one], {"tenant": other}
    elif method == "add_vpc":
        args = [one, other, ["10.0.0.0/16"]]
    elif method == "add_subnet":
        args = [one, "red", f"10.0.{other}.0/24", ["a", "b"]]
    elif method == "remove_vpc":
        args, fields = [one], {"force": True}
    try:
        return f"{len(world.do(name, method, *args, **fields))} ops"
    except RequestError as error:
        return type(error).__name__


def played(
    off_ns: int, together: Sequence[Any], apart: Sequence[Any]
) -> tuple[SkewedWorld, list[str]]:
    """First everybody hears of each step before the next, then nobody of any."""
    world = SkewedWorld(off_ns)
    said = []
    for name, action in together:
        said.append(act(world, name, action))
        world.sync()
        for tended in NAMES:
            world.tend(tended)
        world.sync()
        world.now_ns += 40 * SECOND_NS
    for name, action in apart:
        said.append(act(world, name, action))
    world.sync()
    return world, said


def contested(world: SkewedWorld) -> dict[str, set[str]]:
    """kind of conflict -> everything that takes part in one"""
    found: dict[str, set[str]] = {}
    for conflict in world.view().conflicts():
        found.setdefault(conflict.kind, set()).update({conflict.key, *conflict.claimants})
    return found


def ties(world: SkewedWorld, claims: Sequence[Endpoint]) -> bool:
    top = [claim for claim in claims if claim.mobility == claims[0].mobility]
    return len({claim.site for claim in top}) > 1


@settings(max_examples=60)
@given(plays, plays, st.sampled_from([-50, -1, 1, 30]))
def test_a_clock_that_is_years_off_decides_nothing_but_ties(
    together: list[Any], apart: list[Any], years: int
) -> None:
    right, said_right = played(0, together, apart)
    wrong, said_wrong = played(years * YEAR_NS, together, apart)
    assert said_right == said_wrong
    one, other = right.view(), wrong.view()
    conflicts = contested(right)
    assert {kind: len(found) > 0 for kind, found in conflicts.items()} == {
        kind: len(found) > 0 for kind, found in contested(wrong).items()
    }
    for place in IPS:
        best, worst = one.claims(right.vpc, place), other.claims(wrong.vpc, place)
        assert {c._replace(hlc=0, state="active", rule="") for c in best} == {
            c._replace(hlc=0, state="active", rule="") for c in worst
        }
        assert [c.mobility for c in best] == [c.mobility for c in worst]
        if best and not ties(right, best):
            assert [c.state for c in best] == [c.state for c in worst]
            assert best[0].site == worst[0].site
    assert set(one.vpcs) == set(other.vpcs)
    for vpc in one.vpcs.values():
        key = one.names.vpc_key(vpc.id)
        same = replace(other.vpcs[vpc.id], hlc=vpc.hlc)
        if key not in conflicts.get("vni", ()):
            same = replace(same, state=vpc.state) if "vni" in conflicts else same
            if key not in conflicts.get("value", ()):
                assert same == vpc
    subnets = {s.id: replace(s, hlc=0) for s in other.subnets()}
    assert {s.id for s in one.subnets()} == set(subnets)
    if "subnet" not in conflicts:
        assert {s.id: replace(s, hlc=0) for s in one.subnets()} == subnets
    assert one.peerings() == other.peerings()


@settings(max_examples=40)
@given(plays, st.sampled_from([-50, 1, 30]))
def test_no_clock_but_its_own_goes_wrong(together: list[Any], years: int) -> None:
    world, _ = played(years * YEAR_NS, together, ())
    latest = hlc_of_ns(world.now_ns + (AHEAD_MAX_MS + 1) * 1_000_000)
    for change in world.log:
        if change.node == node_id(WRONG) or change.record is None:
            continue
        key = keys.unpack(change.shard, change.key)
        assert model.decode(key, change.record).hlc < latest


def test_a_vpc_removed_by_a_clock_of_the_future_is_cleared_up_a_day_later_all_the_same() -> None:
    world = SkewedWorld(30 * YEAR_NS)
    world.everywhere("a1", "add_endpoint", "red", "10.0.1.5")
    world.change_member(WRONG, admin=True)
    world.everywhere(WRONG, "remove_vpc", "red", force=True)
    world.tend("a1")
    world.now_ns += REMOVED_VPC_KEPT_NS - SWEEP_INTERVAL_NS
    assert not any(op.shard != MESH_SHARD for op in world.tend("a1"))
    world.now_ns += 2 * SWEEP_INTERVAL_NS
    assert [type(op) for op in world.tend("a1") if op.shard != MESH_SHARD] == [Delete]
