"""What a node writes by itself: withdrawals, bindings, its registration, the sweep."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core import keys, model
from mesh.core.errors import RequestError
from mesh.core.housekeeping import (
    DELETION_KEPT_NS,
    REMOVED_VPC_KEPT_NS,
    SWEEP_INTERVAL_NS,
    WITHDRAW_AFTER_NS,
)
from mesh.core.ops import MESH_SHARD, Delete, Put
from mesh.core.view import Endpoint, View
from tests.mesh.core.core_world import SECOND_NS, World, node_id
from tests.mesh.core.view_feed import Change

IP = "10.0.200.5"
CLAIM = keys.pack(keys.EndpointKey(keys.addr_of(IP)))


def quiet(world: World) -> None:
    """Carry out what is due everywhere until nothing is."""
    for _ in range(3):
        for name in world.views:
            world.tend(name)
        world.sync()


def moved(world: World) -> str:
    """b1 has moved the endpoint away from a1, and both know."""
    red = world.red()
    world.everywhere("a1", "add_endpoint", "red", IP)
    quiet(world)
    world.everywhere("b1", "move_endpoint", "red", IP)
    return red


def test_a_claim_is_withdrawn_30_s_after_it_is_seen_outranked() -> None:
    world = World("a1", "b1")
    red = moved(world)
    quiet(world)
    writer = world.writers["a1"]
    assert writer.next_deadline_ns() == world.now_ns + WITHDRAW_AFTER_NS
    world.now_ns += WITHDRAW_AFTER_NS - 1
    assert world.tend("a1") == []
    world.now_ns += 1
    assert world.tend("a1") == [Delete(red, CLAIM)]
    assert world.tend("a1") == [] and world.tend("b1") == []
    world.sync()
    assert [claim.site for claim in world.view().claims(red, IP)] == ["b"]


def test_another_move_does_not_put_the_withdrawal_off() -> None:
    world = World("a1", "b1")
    red = moved(world)
    quiet(world)
    world.now_ns += WITHDRAW_AFTER_NS - SECOND_NS
    world.everywhere("b1", "move_endpoint", "red", IP, "02:00:00:00:00:09")
    quiet(world)
    world.now_ns += SECOND_NS
    assert world.tend("a1") == [Delete(red, CLAIM)]


def test_a_claim_that_counts_again_is_kept() -> None:
    world = World("a1", "b1")
    red = moved(world)
    quiet(world)
    world.carry_out("b1", [Delete(red, CLAIM)])
    world.sync()
    world.now_ns += WITHDRAW_AFTER_NS
    assert world.tend("a1") == []
    assert [claim.site for claim in world.view().claims(red, IP)] == ["a"]
    # outranked again: the 30 s begin again
    world.everywhere("b1", "move_endpoint", "red", IP)
    assert world.tend("a1") == []
    world.now_ns += WITHDRAW_AFTER_NS
    assert world.tend("a1") == [Delete(red, CLAIM)]


def test_withdrawals_are_due_one_by_one() -> None:
    world = World("a1", "b1")
    world.red()
    ips = ["10.0.200.5", "10.0.200.6"]
    for ip in ips:
        world.everywhere("a1", "add_endpoint", "red", ip)
    for ip in ips:
        world.everywhere("b1", "move_endpoint", "red", ip)
        quiet(world)
        world.now_ns += SECOND_NS
    world.now_ns += WITHDRAW_AFTER_NS - 2 * SECOND_NS
    assert len(world.tend("a1")) == 1
    world.now_ns += SECOND_NS
    assert len(world.tend("a1")) == 1


def test_a_conflict_is_nobodys_to_withdraw() -> None:
    world = World("a1", "b1")
    red = world.red()
    for name in ("a1", "b1"):
        world.do(name, "add_endpoint", "red", IP)
    world.sync()
    quiet(world)
    world.now_ns += 10 * WITHDRAW_AFTER_NS
    quiet(world)
    assert len(world.view().claims(red, IP)) == 2


def test_an_evicted_claim_is_dropped_at_once() -> None:
    world = World("a1", "b1")
    red = world.red()
    world.everywhere("b1", "add_endpoint", "red", IP)
    quiet(world)
    world.everywhere("a1", "remove_endpoint", "red", IP)
    assert world.tend("b1") == [Delete(red, CLAIM)]
    assert world.tend("b1") == []


def test_a_claim_hidden_for_another_reason_is_kept() -> None:
    world = World("a1", "b1")
    red = world.red()
    world.everywhere("b1", "add_endpoint", "red", IP)
    quiet(world)
    world.everywhere("a1", "set_vpc", "red", sites=["a"])
    quiet(world)
    assert world.view().claim(node_id("b1"), red, IP) is not None
    world.everywhere("a1", "set_vpc", "red", sites=[])
    assert len(world.view().claims(red, IP)) == 1


def test_a_writer_that_starts_late_finds_what_is_due() -> None:
    world = World("a1", "b1")
    red = moved(world)
    late = world._writer("a1")
    assert late.next_deadline_ns() == 0
    assert Delete(red, CLAIM) not in late.housekeeping(world.now_ns)
    assert late.housekeeping(world.now_ns + WITHDRAW_AFTER_NS) == [Delete(red, CLAIM)]


def test_deadlines_are_now_after_a_change_and_the_next_sweep_at_rest() -> None:
    world = World("a1", "b1")
    world.red()
    writer = world.writers["a1"]
    assert writer.next_deadline_ns() == 0
    world.tend("a1")
    assert writer.next_deadline_ns() == world.now_ns + SWEEP_INTERVAL_NS
    world.everywhere("a1", "add_endpoint", "red", IP)
    assert writer.next_deadline_ns() == 0


# --- bindings and registration ---------------------------------------------------------------


def test_a_node_binds_the_vni_of_a_vpc_in_which_it_has_endpoints() -> None:
    world = World("a1", "b1")
    red = world.red()
    quiet(world)
    catalog = world.view().catalog
    assert catalog.binding(red, node_id("a1")) is None
    world.everywhere("a1", "add_endpoint", "red", IP)
    (op,) = world.tend("a1")
    assert isinstance(op, Put) and op.shard == MESH_SHARD
    quiet(world)
    binding = world.view().catalog.binding(red, node_id("a1"))
    assert binding is not None and binding.vni == 7
    assert world.view().catalog.votes(world.view().vpcs[red]) == 1
    world.everywhere("a1", "set_vpc", "red", vni=9)
    quiet(world)
    binding = world.view().catalog.binding(red, node_id("a1"))
    assert binding is not None and binding.vni == 9
    # it stays while the VPC lives, and goes with it
    world.everywhere("a1", "remove_endpoint", "red", IP)
    quiet(world)
    assert world.view().catalog.binding(red, node_id("a1")) is not None
    world.everywhere("a1", "remove_vpc", "red")
    quiet(world)
    assert world.view().catalog.binding(red, node_id("a1")) is None


def test_an_established_vpc_is_not_darkened_by_a_newcomer_with_an_old_clock() -> None:
    world = World("a1", "b1", "c1")
    red = world.red()
    for name, ip in (("a1", "10.0.1.5"), ("b1", "10.0.2.5")):
        world.everywhere(name, "add_endpoint", "red", ip)
    world.sync("a1", "b1")
    for name in ("a1", "b1"):
        world.tend(name)
    # c1 makes a VPC of the same VNI, by its clock years ago
    nonce = b"c" * 16
    blue = model.vpc_id(node_id("c1"), nonce)
    record = model.VpcRecord(
        1, 1, False, node_id("c1"), nonce, "blue", 7, ("10.0.0.0/16",), since=1
    )
    subnet = model.SubnetRecord(1, 1, False, node_id("c1"), nonce, "s", "10.0.1.0/24", ("c",))
    subnet_id = model.subnet_id(blue, node_id("c1"), nonce)
    world.carry_out(
        "c1",
        [
            Put(MESH_SHARD, keys.pack(keys.VpcKey(blue)), model.encode(record)),
            Put(MESH_SHARD, keys.pack(keys.SubnetKey(blue, subnet_id)), model.encode(subnet)),
        ],
    )
    world.do("c1", "add_endpoint", blue, "10.0.1.7")
    world.sync()
    quiet(world)
    view = world.view()
    assert (view.vpcs[red].state, view.vpcs[blue].state) == ("active", "vni-conflict")
    assert view.catalog.binding(blue, node_id("c1")) is None


def test_a_node_binds_one_vni_to_one_live_vpc_only() -> None:
    # red and blue have one VNI; b1 is bound to red, and blue becomes the stronger elsewhere
    world = World("a1", "b1", "c1", "d1")
    red = world.red()
    world.everywhere("b1", "add_endpoint", "red", "10.0.2.5")
    world.tend("b1")
    nonce = b"c" * 16
    blue = model.vpc_id(node_id("c1"), nonce)
    record = model.VpcRecord(1, 1, False, node_id("c1"), nonce, "blue", 7, ("10.0.0.0/16",))
    subnet = model.SubnetRecord(1, 1, False, node_id("c1"), nonce, "s", "10.0.1.0/24", ("c",))
    subnet_key = keys.SubnetKey(blue, model.subnet_id(blue, node_id("c1"), nonce))
    binding = model.encode(model.Binding(1, 7))
    for name in ("c1", "d1"):
        bound = keys.pack(keys.BindingKey(node_id(name), blue))
        world.carry_out(name, [Put(MESH_SHARD, bound, binding)])
    world.carry_out(
        "c1",
        [
            Put(MESH_SHARD, keys.pack(keys.VpcKey(blue)), model.encode(record)),
            Put(MESH_SHARD, keys.pack(subnet_key), model.encode(subnet)),
        ],
    )
    world.sync()
    assert world.view().vpcs[blue].state == "active"
    world.everywhere("b1", "add_endpoint", blue, "10.0.1.5")
    quiet(world)
    assert world.view().catalog.binding(blue, node_id("b1")) is None
    world.everywhere("a1", "remove_vpc", "red", force=True)
    quiet(world)
    assert world.view().catalog.binding(red, node_id("b1")) is None
    taken = world.view().catalog.binding(blue, node_id("b1"))
    assert taken is not None and taken.vni == 7


def test_the_registration_is_kept_as_the_node_has_set_it() -> None:
    world = World("a1", "b1")
    world.everywhere("a1", "register_gateway", "192.0.2.1", [], "1")
    quiet(world)
    key = keys.pack(keys.GatewayKey(node_id("a1")))
    world.carry_out("a1", [Delete(MESH_SHARD, key)])
    world.sync()
    (op,) = world.tend("a1")
    assert isinstance(op, Put) and op.key == key
    assert world.tend("a1") == []
    other = model.encode(model.Registration(1, "192.0.2.9", (), "1"))
    world.carry_out("a1", [Put(MESH_SHARD, key, other)])
    quiet(world)
    assert world.view().gateways[node_id("a1")].underlay == "192.0.2.1"


def test_a_node_that_has_not_registered_refreshes_nothing() -> None:
    world = World("a1")
    record = model.encode(model.Registration(1, "192.0.2.9", (), "1"))
    world.carry_out("a1", [Put(MESH_SHARD, keys.pack(keys.GatewayKey(node_id("a1"))), record)])
    assert world.tend("a1") == []


# --- the sweep -------------------------------------------------------------------------------


def own_keys(world: World, name: str) -> int:
    """How many records the node holds now."""
    held: dict[tuple[str, bytes], bytes | None] = {}
    for change in world.log:
        if change.node == node_id(name):
            held[change.shard, change.key] = change.record
    return sum(record is not None for record in held.values())


def full_vpc() -> World:
    """Something of everything in VPC red, by a1, a2 and b1."""
    world = World("a1", "a2", "b1")
    red = world.red()
    world.everywhere("b1", "add_vpc", "blue", 8, ["10.1.0.0/16"])
    world.everywhere("a1", "add_peering", "red", "blue")
    world.everywhere("b1", "add_peering", "blue", "red")
    world.everywhere("b1", "add_endpoint", "red", IP)
    world.everywhere("a1", "add_endpoint", "red", "10.0.1.5")
    world.everywhere("a1", "remove_endpoint", "red", IP)
    world.everywhere("b1", "move_endpoint", "red", "10.0.1.5")
    world.everywhere("a2", "set_vpc", "red", tenant="x")
    quiet(world)
    world.now_ns += WITHDRAW_AFTER_NS
    quiet(world)
    assert red in world.view().vpcs
    return world


def test_a_day_after_a_vpc_is_removed_its_records_are_deleted_by_their_owners() -> None:
    world = full_vpc()
    world.everywhere("a1", "remove_vpc", "red", force=True)
    world.now_ns += REMOVED_VPC_KEPT_NS - SECOND_NS
    quiet(world)
    # a2's value is overridden for good; everything else stays for a day
    assert own_keys(world, "a2") == 0
    assert (own_keys(world, "a1"), own_keys(world, "b1")) == (6, 3)
    world.now_ns += SWEEP_INTERVAL_NS
    quiet(world)
    # left: the deletion, and b1's own VPC
    assert (own_keys(world, "a1"), own_keys(world, "b1")) == (1, 1)
    assert "red" not in {vpc.name for vpc in world.view().vpcs.values()}


def test_a_deletion_is_kept_for_90_days_and_while_it_hides_something() -> None:
    world = full_vpc()
    red = world.view().vpc("red").id
    world.everywhere("a1", "remove_vpc", "red", force=True)
    key = keys.pack(keys.VpcKey(red))
    stale = next(c for c in world.log if c.key == key and c.node == node_id("a2"))
    quiet(world)
    world.now_ns += DELETION_KEPT_NS - SECOND_NS
    quiet(world)
    assert own_keys(world, "a1") == 1
    # a2 was cut off and still has its value: the deletion stays
    for view in world.views.values():
        view.apply([stale])
    world.views["a2"].apply([stale._replace(record=None)])
    world.now_ns += SWEEP_INTERVAL_NS + SECOND_NS
    world.tend("a1")
    assert own_keys(world, "a1") == 1
    for view in world.views.values():
        view.apply([Change(node_id("a2"), MESH_SHARD, key, None)])
    world.now_ns += SWEEP_INTERVAL_NS
    quiet(world)
    assert own_keys(world, "a1") == 0
    assert red not in world.view().vpcs and red not in world.view().catalog.removed


def test_a_removed_subnet_and_peering_are_swept_like_a_vpc() -> None:
    world = full_vpc()
    world.everywhere("a2", "remove_subnet", "s-b", "red")
    world.everywhere("a2", "remove_peering", "red", "blue")
    before = own_keys(world, "a1")
    world.now_ns += SWEEP_INTERVAL_NS
    quiet(world)
    assert own_keys(world, "a1") == before - 2  # a1's values of both
    assert own_keys(world, "a2") == 3
    world.now_ns += DELETION_KEPT_NS + SECOND_NS
    quiet(world)
    assert own_keys(world, "a2") == 1
    assert {s.name for s in world.view().subnets()} == {"s-a", "wide"}


def test_a_strangers_deletion_sweeps_nothing() -> None:
    world = full_vpc()
    red = world.view().vpc("red").id
    record = world.view().catalog.vpc_record(red)
    assert record is not None
    forged = model.VpcRecord(9, 9, True, record.creator, record.nonce)
    world.carry_out("b1", [Put(MESH_SHARD, keys.pack(keys.VpcKey(red)), model.encode(forged))])
    world.sync()
    before = own_keys(world, "a1"), own_keys(world, "a2")
    world.now_ns += SWEEP_INTERVAL_NS
    quiet(world)
    assert (own_keys(world, "a1"), own_keys(world, "a2")) == before


def test_others_endpoints_that_never_moved_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World("a1", "b1")
    world.red()
    world.do("a1", "add_endpoint", "red", "10.0.1.5")
    for end in range(2, 100):
        world.do("b1", "add_endpoint", "red", f"10.0.2.{end}")
    looked_at: list[str] = []
    claims = View.claims

    def counting(view: View, vpc: str, ip: str) -> tuple[Endpoint, ...]:
        looked_at.append(ip)
        return claims(view, vpc, ip)

    monkeypatch.setattr(View, "claims", counting)
    world.sync()
    world.tend("a1")
    assert looked_at == [], "nor has its own one"
    world.everywhere("b1", "move_endpoint", "red", "10.0.1.5")
    world.everywhere("a1", "remove_endpoint", "red", "10.0.1.5")
    looked_at.clear()
    world.tend("a1")
    assert looked_at == ["10.0.1.5"], "it was this node's, and has moved"


@pytest.mark.parametrize("endpoints_max", [1, 3, 100, None])
def test_a_few_endpoints_at_a_time_come_to_the_same(endpoints_max: int | None) -> None:
    world = World("a1", "b1")
    red = world.red()
    ips = [f"10.0.200.{end}" for end in range(2, 14)]
    for ip in ips:
        world.everywhere("a1", "add_endpoint", "red", ip)
    quiet(world)
    for ip in ips[:7]:
        world.everywhere("b1", "move_endpoint", "red", ip)
    writer, steps = world.writers["a1"], 0
    while writer.housekeeping_behind or not steps:
        assert writer.next_deadline_ns() == 0
        assert writer.housekeeping(world.now_ns, endpoints_max) == []
        steps += 1
    assert steps == (1 if endpoints_max is None else -(-7 // endpoints_max))
    assert writer.next_deadline_ns() == world.now_ns + WITHDRAW_AFTER_NS
    world.now_ns += WITHDRAW_AFTER_NS
    withdrawn = [Delete(red, keys.pack(keys.EndpointKey(keys.addr_of(ip)))) for ip in ips[:7]]
    assert sorted(writer.housekeeping(world.now_ns, endpoints_max), key=repr) == sorted(
        withdrawn, key=repr
    )


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1 << 32))
def test_own_claims_are_noted_in_bulk_as_they_would_be_one_by_one(seed: int) -> None:
    """Whichever way a claim was read, what is hosted is what counts now, and moves are counted."""
    rng = random.Random(seed)
    world = World("a1", "b1", admins=("a1",))
    red = world.red()
    world.tend("a1")
    for _ in range(60):
        name, ip = rng.choice(("a1", "b1")), f"10.0.{rng.choice((1, 200))}.{rng.randint(2, 3)}"
        with suppress(RequestError):
            match rng.randint(0, 5):
                case 0 | 1:
                    world.do(name, "add_endpoint", "red", ip)
                case 2:
                    world.everywhere(name, "move_endpoint", "red", ip)
                case 3:
                    world.do(name, "remove_endpoint", "red", ip)
                case 4:
                    key = f"endpoint/red/{ip}"
                    world.do("a1", "resolve_conflict", key, rng.choice(("a1", "b1")))
                case _:
                    world.now_ns += rng.choice((1, 1, 1, 40)) * SECOND_NS
        if rng.random() < 0.5:
            world.sync()
        if rng.random() < 0.5:
            world.tend(rng.choice(("a1", "b1")))
    for name in ("a1", "b1"):
        world.tend(name)
        world.tend(name)  # what it has withdrawn itself is in the view now
        view, keeper = world.views[name], world.writers[name]._housekeeper
        own = {
            keys.ENDPOINT + keys.addr_of(endpoint.ip)
            for endpoint in view.endpoints(red)
            if endpoint.node == node_id(name)
        }
        assert keeper._hosted.get(red, {}).keys() == own
        shadowed = {
            (red, endpoint.ip)
            for endpoint in view.endpoints(red)
            if endpoint.node == node_id(name) and endpoint.state == "shadowed"
        }
        assert keeper._outranked.keys() == shadowed
        for (vpc, ip), track in keeper._damper._tracks.items():
            best = view.winner(vpc, ip)
            assert track.mobility == (best.mobility if best else 0)
