"""What a change of a node's rights does to the view, forks among them, and what it costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from typing import Any

import pytest

from mesh.core import keys, model
from mesh.core.explain import explain
from mesh.core.ops import MESH_SHARD
from mesh.core.view import claims, registers
from mesh.core.view.catalog import Catalog
from tests.mesh.core.core_world import World, both_claim, node_id, shape
from tests.mesh.core.view_feed import Change, FedView, Held

IP = "10.0.200.5"


def say_vpc(world: World, name: str, vpc: str, revision: int, **fields: Any) -> None:
    """A node's record of a VPC's register, whatever its writer would say."""
    held = world.views["a1"].catalog.vpc_records(vpc)[node_id("a1")]
    values = {field: getattr(held, field) for field in held.__match_args__}
    record = model.VpcRecord(**values | {"revision": revision} | fields)
    key = keys.pack(keys.VpcKey(vpc))
    for view in world.views.values():
        view.apply([Change(node_id(name), MESH_SHARD, key, model.encode(record))])


# --- forks -----------------------------------------------------------------------------------


def test_a_claim_of_a_node_that_signed_two_histories_ranks_last_and_says_why() -> None:
    world = World("a1", "b1")
    red = both_claim(world)
    world.change_member("a1", forked=True)
    view = world.view()
    assert shape(view.claims(red, IP), view) == [
        ("b1", "active", claims.RULE_FORKED),
        ("a1", "conflict", claims.LOST_FORKED),
    ]
    (conflict,) = view.conflicts()
    assert (conflict.claimants, conflict.winner) == (("b1", "a1"), "b1")
    assert conflict.rule == claims.RULE_FORKED
    assert conflict.since_hlc == max(claim.hlc for claim in view.claims(red, IP))
    said = explain(view, "red", IP)["claims"][1]
    assert (said["rule"], said["outranked_by"]) == (claims.LOST_FORKED, "b1")
    view.take_delta()
    world.change_member("b1", name="b9")
    assert view.take_delta().conflicts and view.conflicts()[0].winner == "b9"
    world.change_member("b1", forked=True)
    assert [claim.site for claim in world.view().claims(red, IP)] == ["a", "b"]


def test_a_forked_nodes_move_outranks_nobody_and_is_a_conflict() -> None:
    world = World("a1", "b1")
    red = world.red()
    world.everywhere("b1", "add_endpoint", "red", IP)
    world.everywhere("a1", "move_endpoint", "red", IP)
    assert world.view().conflicts() == []
    world.change_member("a1", forked=True)
    view = world.view()
    assert shape(view.claims(red, IP), view) == [
        ("b1", "active", claims.RULE_FORKED),
        ("a1", "conflict", claims.LOST_FORKED),
    ]
    assert len(view.conflicts()) == 1
    world.change_member("a1", forked=False)
    world.everywhere("b1", "move_endpoint", "red", IP)
    world.change_member("a1", forked=True)
    assert world.view().claims(red, IP)[1].state == "shadowed" and not world.view().conflicts()


def test_a_forked_node_is_no_co_writer_of_its_sites_claim() -> None:
    world = World("a1", "a2", "b1")
    red = world.red()
    world.everywhere("a1", "add_endpoint", "red", IP)
    world.everywhere("a2", "add_endpoint", "red", IP)
    world.change_member("a1", forked=True)
    view = world.view()
    assert shape(view.claims(red, IP), view) == [
        ("a2", "active", claims.RULE_FORKED),
        ("a1", "shadowed", claims.LOST_FORKED),
    ]
    assert view.conflicts() == []


def test_any_record_of_a_register_beats_one_of_a_forked_writer() -> None:
    world = World("a1", "a2", "b1")
    red = world.red()
    say_vpc(world, "a2", red, 5, tenant="forged", hlc=9)
    assert world.view().vpcs[red].tenant == "forged"
    world.change_member("a2", forked=True)
    assert world.view().vpcs[red].tenant == "acme"
    (conflict,) = world.view().conflicts()
    assert (conflict.kind, conflict.rule) == ("value", registers.RULE_FORKED)
    assert (conflict.claimants, conflict.winner) == (("a1", "a2"), "a1")
    world.change_member("a1", forked=True)
    assert world.view().vpcs[red].tenant == "forged" and world.view().conflicts() == []


def test_a_forked_writers_deletion_counts_only_where_nobody_else_has_written() -> None:
    world = World("a1", "a2", "b1")
    red = world.red()
    say_vpc(world, "a2", red, 2, deleted=True)
    assert red not in world.view().vpcs
    world.change_member("a2", forked=True)
    assert red in world.view().vpcs
    world.change_member("a1", forked=True)
    assert red in world.view().catalog.removed
    world.change_member("a2", forked=False)
    say_vpc(world, "a1", red, 9)
    assert red in world.view().catalog.removed, "of one that has not forked it wins for good"


# --- cost ------------------------------------------------------------------------------------


class Count:
    """What a view does from here on: registers derived, claims judged, records read."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.done: Counter[str] = Counter()
        judge = claims.ClaimTable.judge

        def judging(table: claims.ClaimTable, vpc: str, touched: Set[bytes]) -> bool:
            self.done["judged"] += len(list(touched))
            return judge(table, vpc, touched)

        patch.setattr(claims.ClaimTable, "judge", judging)
        for of, name in ((Catalog, "_read_vpc"), (Catalog, "_read_subnet"), (Held, "read")):
            self._counting(patch, of, name)

    def _counting(self, patch: pytest.MonkeyPatch, of: Any, name: str) -> None:
        inner = getattr(of, name)

        def counting(*args: Any) -> Any:
            self.done[name] += 1
            return inner(*args)

        patch.setattr(of, name, counting)

    def take(self) -> Counter[str]:
        done, self.done = self.done, Counter()
        return done


def busy_world() -> World:
    """a1 has made red and has 99 claims in it; b1 has made blue and has 3 in red."""
    world = World("a1", "a2", "b1", "b2")
    world.red()
    for name, count in (("a1", 99), ("b1", 3)):
        subnet = "10.0.1" if name == "a1" else "10.0.2"
        for end in range(2, 2 + count):
            world.do(name, "add_endpoint", "red", f"{subnet}.{end}")
    world.do("b1", "add_vpc", "blue", 8, ["10.1.0.0/16"])
    world.do("b1", "add_subnet", "s", "blue", "10.1.1.0/24")
    world.sync()
    return world


def rights(world: World, view: FedView, name: str, **fields: Any) -> None:
    world.change_member(name, **fields)
    assert view.members[node_id(name)] == world.members[node_id(name)]


def test_a_change_of_rights_costs_what_that_node_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    world = busy_world()
    view = world.views["a1"]
    world.views = {"a1": view}
    count = Count(monkeypatch)
    rights(world, view, "b1", state="forgotten")
    assert count.take() == {"judged": 3, "_read_vpc": 1, "_read_subnet": 1}
    rights(world, view, "b1", state="active", forked=True)
    assert count.take() == {"judged": 3, "_read_vpc": 1, "_read_subnet": 1}
    # an admin's claims count as before
    rights(world, view, "b1", admin=True)
    assert count.take() == {"_read_vpc": 1, "_read_subnet": 1}
    # nothing of what it wrote is read otherwise
    rights(world, view, "b1", state="retired")
    assert count.take() == {}
    # of these nothing was ever read
    rights(world, view, "b2", admin=True)
    del world.members[node_id("b2")]
    world.set_members()
    assert count.take() == {}


def test_a_creators_coming_and_going_costs_its_vpcs(monkeypatch: pytest.MonkeyPatch) -> None:
    world = busy_world()
    view = world.views["a1"]
    world.views = {"a1": view}
    view.apply([c._replace(record=None) for c in world.log if c.node == node_id("b1")])
    # what b2 has written of b1's VPC hangs on who has made it
    blue = next(c for c in world.log if c.node == node_id("b1") and c.key[:1] == keys.VPC)
    view.apply([blue._replace(node=node_id("b2"))])
    assert [vpc.name for vpc in view.vpcs.values()].count("blue") == 1
    count = Count(monkeypatch)
    gone = world.members.pop(node_id("b1"))
    world.set_members()
    assert [vpc.name for vpc in view.vpcs.values()] == ["red"]
    assert count.take()["_read_vpc"] == 1
    world.members[node_id("b1")] = gone
    world.set_members()
    assert len(view.vpcs) == 2 and count.take()["_read_vpc"] == 1


def test_who_owns_a_vpc_decides_on_its_evictions_and_peerings_too() -> None:
    world = World("a1", "a2", "b1", "c1", admins=["c1"])
    red = world.red("a1")
    for vpc, subnet in (("red", "10.0.9.0/24"), ("blue", "10.1.9.0/24")):
        if vpc == "blue":
            world.everywhere("c1", "add_vpc", vpc, 8, ["10.1.0.0/16"])
        world.everywhere("c1", "set_vpc", vpc, tenant="third")
        world.everywhere("c1", "add_subnet", "late", vpc, subnet, ["a", "b"])
    world.everywhere("b1", "add_endpoint", "red", "10.0.9.5")
    world.everywhere("a2", "remove_endpoint", "red", "10.0.9.5")
    world.everywhere("a2", "add_peering", "red", "blue")
    view = world.view()
    assert view.claims(red, "10.0.9.5") == () and len(view.peerings()) == 1
    view.take_delta()
    creator = world.members.pop(node_id("a1"))
    world.set_members()
    delta = view.take_delta()
    assert (red, "10.0.9.5") in delta.places() and delta.peerings and delta.conflicts
    assert len(view.claims(red, "10.0.9.5")) == 1 and view.peerings() == []
    world.members[node_id("a1")] = creator
    world.set_members()
    assert (red, "10.0.9.5") in view.take_delta().places()
    assert view.claims(red, "10.0.9.5") == () and len(view.peerings()) == 1


def test_members_set_before_anything_is_read_touch_nothing() -> None:
    world = busy_world()
    view = FedView()
    view.held.put(world.log)
    reader = view.reader()
    view.set_members(world.members)
    assert not reader.take().endpoints
