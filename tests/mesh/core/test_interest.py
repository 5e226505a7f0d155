"""Which shards a node keeps and who may have them, as VPCs, subnets and peerings come and go."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core import keys
from mesh.core.errors import RequestError
from mesh.core.interest import Interests, Policy
from mesh.core.ops import MESH_SHARD, Delete, Put
from tests.mesh.core.core_world import World, node_id

NAMES = ("a1", "b1", "b2", "c1")


def interests(world: World, name: str, policy: Policy = "hosted") -> Interests:
    """What a node makes of its view now."""
    view = world.views[name]

    def writes(shard: str) -> bool:
        return any(touched.shard == shard for touched in view.held.held(node_id(name)))

    made = Interests(node_id(name), name[0], view, writes, policy)
    made.update()
    return made


def kept(world: World, vpc: str) -> str:
    """The nodes that keep the VPC's shard."""
    return " ".join(name for name in world.views if vpc in interests(world, name).vpcs)


def entitled(world: World, vpc: str, by: str = "a1") -> str:
    """The nodes that may have the VPC's shard."""
    made = interests(world, by)
    return " ".join(name for name in world.views if made.entitled(node_id(name), vpc))


def test_owners_homes_and_claimants_keep_a_vpc() -> None:
    world = World(*NAMES)
    world.everywhere("a1", "add_vpc", "red", 7, ["10.0.0.0/16"], "acme")
    red = world.view().vpc("red").id
    assert (kept(world, red), entitled(world, red)) == ("a1", "a1 b1 b2 c1")
    world.everywhere("a1", "add_subnet", "s-b", "red", "10.0.2.0/24", ["b"])
    assert kept(world, red) == "a1 b1 b2"
    world.everywhere("c1", "add_endpoint", "red", "10.0.2.5")
    assert kept(world, red) == "a1 b1 b2 c1"


def test_a_list_of_sites_admits_them_the_homes_and_the_owner() -> None:
    world = World(*NAMES)
    red = world.red()
    world.everywhere("a1", "set_vpc", "red", sites=["a"])
    assert entitled(world, red) == "a1 b1 b2", "c is on no list"
    assert kept(world, red) == "a1 b1 b2"
    assert interests(world, "c1", "all").vpcs == set(), "nobody keeps what is not for his site"


def test_who_is_no_longer_admitted_keeps_nothing_even_with_a_chain_of_his_own() -> None:
    world = World(*NAMES)
    red = world.red()
    world.everywhere("c1", "add_endpoint", "red", "10.0.200.5")
    assert "c1" in kept(world, red)
    world.everywhere("a1", "set_vpc", "red", sites=["a", "b"])
    assert kept(world, red) == "a1 b1 b2"


def test_an_active_peering_entitles_both_sides_to_both_and_links_what_they_keep() -> None:
    world = World(*NAMES)
    world.everywhere("a1", "add_vpc", "red", 7, ["10.0.0.0/16"], "acme")
    world.everywhere("a1", "set_vpc", "red", sites=["a"])
    world.everywhere("c1", "add_vpc", "blue", 8, ["10.1.0.0/16"], "acme")
    world.everywhere("c1", "set_vpc", "blue", sites=["c"])
    red, blue = (world.view().vpc(name).id for name in ("red", "blue"))
    before = (kept(world, red), entitled(world, red), kept(world, blue), entitled(world, blue))
    assert before == ("a1", "a1", "c1", "c1")
    world.everywhere("a1", "add_peering", "red", "blue")
    assert kept(world, red) == "a1", "a half is nothing"
    world.everywhere("c1", "add_peering", "blue", "red")
    for vpc in (red, blue):
        assert (kept(world, vpc), entitled(world, vpc)) == ("a1 c1", "a1 c1")
    world.everywhere("c1", "remove_peering", "blue", "red")
    after = (kept(world, red), entitled(world, red), kept(world, blue), entitled(world, blue))
    assert after == before


@pytest.mark.parametrize("restarted", [False, True])
def test_a_removed_vpc_stays_with_who_kept_it(restarted: bool) -> None:
    """Its peer, too. After a restart those are known that had said that they keep it."""
    world = World(*NAMES)
    world.everywhere("a1", "add_vpc", "red", 7, ["10.0.0.0/16"], "acme")
    world.everywhere("a1", "set_vpc", "red", sites=["a"])
    world.everywhere("b1", "add_vpc", "blue", 8, ["10.1.0.0/16"], "acme")
    world.everywhere("b1", "set_vpc", "blue", sites=["b"])
    red, blue = (world.view().vpc(name).id for name in ("red", "blue"))
    world.everywhere("a1", "add_peering", "red", "blue")
    world.everywhere("b1", "add_peering", "blue", "red")
    running = {name: interests(world, name) for name in NAMES}
    if restarted:
        for name, made in running.items():
            world.writers[name].set_interest(made.vpcs)
            world.tend(name)
        world.sync()
    world.everywhere("a1", "remove_vpc", "red")
    for name in NAMES:
        if restarted:
            running[name] = interests(world, name)
        made = running[name]
        made.update()
        found = [other for other in NAMES if made.entitled(node_id(other), red)]
        assert found == ["a1", "b1", "b2"]
        assert (red in made.vpcs) == (name in found)
        if restarted:
            assert (blue in made.vpcs) == (name in ("b1", "b2"))


def test_the_first_claim_of_a_node_makes_it_keep_the_vpc() -> None:
    world = World(*NAMES)
    red = world.red()
    made = interests(world, "c1")
    assert red not in made.vpcs
    world.everywhere("c1", "add_endpoint", "red", "10.0.200.5")
    assert made.update() and red in made.vpcs


def test_a_home_that_is_one_no_more_lets_the_vpc_go() -> None:
    world = World(*NAMES)
    world.everywhere("a1", "add_vpc", "red", 7, ["10.0.0.0/16"], "acme")
    world.everywhere("a1", "add_subnet", "s-c", "red", "10.0.2.0/24", ["c"])
    red = world.view().vpc("red").id
    made = interests(world, "c1")
    assert red in made.vpcs
    world.everywhere("a1", "remove_subnet", "s-c", "red")
    assert made.update() and red not in made.vpcs


def test_an_attached_interface_keeps_a_vpc_and_so_does_a_retired_node_of_the_site() -> None:
    world = World(*NAMES)
    world.everywhere("a1", "add_vpc", "red", 7, ["10.0.0.0/16"], "acme")
    red = world.view().vpc("red").id
    here = interests(world, "c1")
    assert red not in here.vpcs
    here.attach(red)
    assert here.update() and red in here.vpcs
    here.detach(red)
    assert here.update() and red not in here.vpcs
    world.writers["b1"].set_interest({red})
    world.tend("b1")
    world.sync()
    other = interests(world, "b2")
    assert red not in other.vpcs
    world.change_member("b1", state="retired")
    other.members_changed()
    assert other.update() and red in other.vpcs


def test_a_node_says_what_it_keeps_and_nobody_else_says_it_for_it() -> None:
    world = World(*NAMES)
    red = world.red()
    world.writers["b1"].set_interest({red})
    assert world.writers["b1"].next_deadline_ns() == 0
    ops = world.tend("b1")
    key = keys.pack(keys.InterestKey(node_id("b1"), red))
    assert [op.key for op in ops if isinstance(op, Put) and op.key[:1] == keys.INTEREST] == [key]
    assert world.tend("b1") == []
    forged = keys.pack(keys.InterestKey(node_id("c1"), red))
    record = next(op.record for op in ops if isinstance(op, Put) and op.key == key)
    world.carry_out("b1", [Put(MESH_SHARD, forged, record)])
    world.sync()
    for view in world.views.values():
        assert view.catalog.interest(node_id("b1")) == {red}
        assert view.catalog.interest(node_id("c1")) == set()
    world.writers["b1"].set_interest(set())
    assert Delete(MESH_SHARD, key) in world.tend("b1")
    world.sync()
    assert world.view().catalog.all_interests() == set()


@settings(max_examples=60)
@given(st.integers(0, 1 << 32), st.sampled_from(["hosted", "all"]))
def test_followed_step_by_step_it_is_what_the_view_says_at_once(seed: int, policy: Policy) -> None:
    """But for removed VPCs, which stay as they were, whatever else changes."""
    rng = random.Random(seed)
    world = World(*NAMES)
    running = {name: interests(world, name, policy) for name in NAMES}
    for _ in range(40):
        name = rng.choice(NAMES)
        try:
            step(world, rng, name)
        except RequestError:
            continue
        if rng.random() < 0.3:
            running[name].update()
            world.writers[name].set_interest(frozenset(running[name].vpcs))
            world.tend(name)
        if rng.random() < 0.02:
            world.change_member(rng.choice(NAMES), state="retired")
            for made in running.values():
                made.members_changed()
    world.sync()
    for name, made in running.items():
        made.update()
        fresh = interests(world, name, policy)
        gone = world.views[name].catalog.removed
        assert made.vpcs - gone.keys() == fresh.vpcs - gone.keys()
        assert made.holders == {vpc: holders(world, made, name, vpc) for vpc in made.vpcs}
        for vpc in world.views[name].vpcs:
            for other in NAMES:
                assert made.entitled(node_id(other), vpc) == fresh.entitled(node_id(other), vpc)


def holders(world: World, made: Interests, name: str, vpc: str) -> set[bytes]:
    """By their own words, read afresh."""
    catalog = world.views[name].catalog
    return {
        node
        for node, member in world.members.items()
        if member.state == "active"
        and node != node_id(name)
        and vpc in catalog.interest(node)
        and made.entitled(node, vpc)
    }


def test_holders_are_those_who_say_so_and_may() -> None:
    world = World(*NAMES)
    red = world.red()
    made = interests(world, "a1")
    versions = [made.holders_version]

    def follow(*names: str) -> set[str]:
        world.sync()
        made.update()
        versions.append(made.holders_version)
        return {name for name in names or NAMES if node_id(name) in made.holders[red]}

    assert follow() == set(), "nobody has said anything"
    for name in ("a1", "b1", "b2", "c1"):
        world.writers[name].set_interest({red})
        world.tend(name)
    assert follow() == {"b1", "b2", "c1"}, "and this node is none of the others"
    world.everywhere("a1", "set_vpc", "red", sites=["a", "b"])
    assert follow() == {"b1", "b2"}, "c may not have it"
    assert follow() == {"b1", "b2"}
    assert versions[-1] == versions[-2], "nothing has changed"
    world.writers["b2"].set_interest(set())
    world.tend("b2")
    assert follow() == {"b1"}
    world.change_member("b1", state="retired")
    made.members_changed()
    assert follow() == set()
    assert versions == sorted(versions)


def step(world: World, rng: random.Random, name: str) -> None:
    vpcs = [vpc.name for vpc in world.views[name].vpcs.values()] or ["none"]
    vpc, other = rng.choice(vpcs), rng.choice(vpcs)
    sites = rng.sample(["a", "b", "c"], rng.randint(0, 3))
    number = rng.randint(1, 3)
    match rng.randint(0, 8):
        case 0:
            world.everywhere(name, "add_vpc", f"v{number}", number, ["10.0.0.0/16"])
        case 1:
            world.everywhere(name, "set_vpc", vpc, sites=sites)
        case 2:
            cidr = f"10.0.{number}.0/24"
            world.everywhere(name, "add_subnet", f"s{number}", vpc, cidr, sites or ["a"])
        case 3:
            world.everywhere(name, "remove_subnet", f"s{number}", vpc)
        case 4:
            world.everywhere(name, "add_endpoint", vpc, f"10.0.{number}.{rng.randint(2, 9)}")
        case 5 | 6:
            world.everywhere(name, "add_peering", vpc, other)
        case 7:
            world.everywhere(name, "remove_peering", vpc, other)
        case _:
            world.everywhere(name, "remove_vpc", vpc, force=True)


@pytest.mark.parametrize("shard", [MESH_SHARD, "f" * 32])
def test_mesh_is_for_all_and_what_is_not_known_for_nobody(shard: str) -> None:
    made = interests(World(*NAMES), "a1")
    assert made.entitled(node_id("c1"), shard) == (shard == MESH_SHARD)
    assert not made.entitled(b"x" * 16, "f" * 32)
