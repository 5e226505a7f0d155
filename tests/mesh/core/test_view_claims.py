"""The view's rules for claims one by one, what cannot be read, and what a change costs."""

from __future__ import annotations

from collections.abc import Set

import pytest

from mesh.core import keys, model
from mesh.core.ops import MESH_SHARD
from mesh.core.view import View, claims
from mesh.core.view.view import UNREAD_MAX
from tests.mesh.core.core_world import World, both_claim, node_id, shape
from tests.mesh.core.view_feed import Change, FedView

# --- claims ----------------------------------------------------------------------------------


def test_one_claim_is_the_endpoint() -> None:
    world = World("a1", "b1")
    red = world.red()
    world.everywhere("b1", "add_endpoint", "red", "10.0.1.5", name="web")
    view = world.view()
    endpoint = view.winner(red, "10.0.1.5")
    assert endpoint is not None
    assert (endpoint.site, endpoint.name, endpoint.state) == ("b", "web", "active")
    assert endpoint.rule == claims.RULE_ONLY and endpoint.mobility == 0
    assert list(view.endpoints()) == list(view.endpoints(red)) == [endpoint]
    assert list(view.endpoints(site="b")) == [endpoint]
    assert list(view.endpoints(site="a")) == list(view.endpoints("00" * 16)) == []
    assert view.winner(red, "10.0.1.6") is None and view.conflicts() == []


def test_claims_of_two_sites_are_a_conflict_that_the_earlier_wins() -> None:
    world = World("a1", "b1", "c1")
    red = both_claim(world)
    view = world.view()
    assert shape(view.claims(red, "10.0.200.5"), view) == [
        ("a1", "active", claims.RULE_HLC),
        ("b1", "conflict", claims.LOST_HLC),
    ]
    (conflict,) = view.conflicts()
    assert conflict.key == "endpoint/red/10.0.200.5" and conflict.kind == "endpoint"
    assert (conflict.claimants, conflict.winner) == (("a1", "b1"), "a1")
    assert conflict.rule == claims.RULE_HLC
    loser = view.claims(red, "10.0.200.5")[1]
    assert conflict.since_hlc == loser.hlc


def test_equal_stamps_are_decided_by_hash() -> None:
    world = World("a1", "b1")
    red = world.red()
    for name in ("a1", "b1"):
        world.writers[name]._author.clock.last = 0
        world.do(name, "add_endpoint", "red", "10.0.200.5")
    world.sync()
    found = world.view().claims(red, "10.0.200.5")
    assert found[0].hlc == found[1].hlc
    assert [claim.rule for claim in found] == [claims.RULE_HASH, claims.LOST_HASH]
    assert world.view().conflicts()[0].rule == claims.RULE_HASH


def test_gateways_of_one_site_with_equal_mobility_are_one_claim() -> None:
    world = World("a1", "a2", "b1")
    red = world.red()
    world.everywhere("a1", "add_endpoint", "red", "10.0.200.5")
    world.everywhere("a2", "add_endpoint", "red", "10.0.200.5")
    view = world.view()
    assert shape(view.claims(red, "10.0.200.5"), view) == [
        ("a1", "active", claims.RULE_ONLY),
        ("a2", "active", claims.RULE_SITE),
    ]
    assert view.conflicts() == []


def test_a_move_outranks_and_its_end_brings_the_former_claim_back() -> None:
    world = World("a1", "b1")
    red = world.red("a1")
    world.everywhere("b1", "add_endpoint", "red", "10.0.200.5")
    world.everywhere("a1", "move_endpoint", "red", "10.0.200.5")
    view = world.view()
    assert shape(view.claims(red, "10.0.200.5"), view) == [
        ("a1", "active", claims.RULE_MOBILITY),
        ("b1", "shadowed", claims.LOST_MOBILITY),
    ]
    assert view.conflicts() == []
    key = keys.pack(keys.EndpointKey(keys.addr_of("10.0.200.5")))
    view.apply([Change(node_id("a1"), red, key, None)])
    assert shape(view.claims(red, "10.0.200.5"), view) == [("b1", "active", claims.RULE_ONLY)]


def test_an_eviction_hides_claims_up_to_its_mobility() -> None:
    world = World("a1", "b1")
    red = both_claim(world)
    world.everywhere("a1", "resolve_conflict", "endpoint/red/10.0.200.5", "b1")
    view = world.view()
    assert shape(view.claims(red, "10.0.200.5"), view) == [("b1", "active", claims.RULE_ONLY)]
    assert view.conflicts() == []
    world.everywhere("b1", "remove_endpoint", "red", "10.0.200.5")
    world.everywhere("a1", "add_endpoint", "red", "10.0.200.5")
    endpoint = world.view().winner(red, "10.0.200.5")
    assert endpoint is not None and (endpoint.site, endpoint.mobility) == ("a", 1)


def test_an_eviction_by_a_stranger_hides_nothing() -> None:
    world = World("a1", "b1")
    red = both_claim(world)
    addr = keys.addr_of("10.0.200.5")
    key = keys.pack(keys.EvictionKey(red, node_id("a1"), addr))
    record = model.encode(model.Eviction(9, 1))
    world.views["a1"].apply([Change(node_id("b1"), MESH_SHARD, key, record)])
    assert len(world.views["a1"].claims(red, "10.0.200.5")) == 2
    world.change_member("b1", admin=True)
    assert len(world.views["a1"].claims(red, "10.0.200.5")) == 1
    world.views["a1"].apply([Change(node_id("b1"), MESH_SHARD, key, None)])
    assert len(world.views["a1"].claims(red, "10.0.200.5")) == 2


def test_an_eviction_by_a_gateway_of_its_site_hides_what_a_retired_one_claims() -> None:
    world = World("a1", "b1", "b2", "c1")
    red = both_claim(world)
    key = keys.pack(keys.EvictionKey(red, node_id("b1"), keys.addr_of("10.0.200.5")))
    record = model.encode(model.Eviction(9, 1))
    view = world.views["a1"]
    for name in ("b2", "c1"):
        view.apply([Change(node_id(name), MESH_SHARD, key, record)])
    assert len(view.claims(red, "10.0.200.5")) == 2
    world.change_member("b1", state="retired")
    assert [claim.site for claim in view.claims(red, "10.0.200.5")] == ["a"]
    assert view.conflicts() == []
    world.change_member("b2", state="forgotten")
    assert len(view.claims(red, "10.0.200.5")) == 2  # the other eviction is a stranger's


# --- where a claim counts --------------------------------------------------------------------


def claim_raw(world: World, name: str, vpc: str, ip: str) -> None:
    """Claim without asking the writer, as a hostile or outdated node can."""
    key = keys.pack(keys.EndpointKey(keys.addr_of(ip)))
    record = model.encode(model.Claim(0, 1, "02:00:00:00:00:01"))
    for view in world.views.values():
        view.apply([Change(node_id(name), vpc, key, record)])


def test_gateway_network_and_broadcast_addresses_cannot_be_claimed() -> None:
    world = World("a1", "b1")
    red = world.red()
    for end in (0, 1, 255):
        claim_raw(world, "a1", red, f"10.0.1.{end}")
        assert world.view().claims(red, f"10.0.1.{end}") == ()
    for end in (2, 254):
        claim_raw(world, "a1", red, f"10.0.1.{end}")
        assert len(world.view().claims(red, f"10.0.1.{end}")) == 1
    subnet = world.view().subnet_of(red, "10.0.1.1")
    assert subnet is not None and subnet.gateway == "10.0.1.1"


def test_a_claim_appears_and_vanishes_with_its_subnet() -> None:
    world = World("a1", "b1")
    red = world.red()
    claim_raw(world, "a1", red, "10.0.7.5")
    claim_raw(world, "b1", red, "10.0.7.5")
    assert world.view().claims(red, "10.0.7.5") == ()
    world.view().take_delta()
    world.everywhere("a1", "add_subnet", "late", "red", "10.0.7.0/24")
    view = world.views["a1"]
    assert (red, "10.0.7.5") in view.take_delta().places()
    assert len(view.claims(red, "10.0.7.5")) == 2 and len(view.conflicts()) == 1
    subnet = view.subnet("red", "late")
    removal = model.SubnetRecord(2, 2, True, node_id("a1"), _nonce_of(view, subnet.id, red))
    key = keys.pack(keys.SubnetKey(red, subnet.id))
    view.apply([Change(node_id("a1"), MESH_SHARD, key, model.encode(removal))])
    assert (red, "10.0.7.5") in view.take_delta().places()
    assert view.claims(red, "10.0.7.5") == () and view.conflicts() == []
    assert view.subnet_by_id(subnet.id) is None


def _nonce_of(view: View, subnet: str, vpc: str) -> bytes:
    return view.catalog.subnet_records(vpc, subnet)[node_id("a1")].nonce


def test_a_restricted_subnet_and_a_vpcs_site_list_say_who_may_claim() -> None:
    world = World("a1", "b1", "c1")
    red = world.red()
    world.everywhere("a1", "add_subnet", "own", "red", "10.0.9.0/24", ["a"], True)
    for name in ("a1", "b1"):
        claim_raw(world, name, red, "10.0.9.5")
        claim_raw(world, name, red, "10.0.1.5")
    view = world.view()
    assert [c.site for c in view.claims(red, "10.0.9.5")] == ["a"]
    assert len(view.claims(red, "10.0.1.5")) == 2 and len(view.conflicts()) == 1
    view.take_delta()
    world.everywhere("a1", "set_vpc", "red", sites=["a", "c"])
    assert (red, "10.0.1.5") in view.take_delta().places()
    assert [c.site for c in world.view().claims(red, "10.0.1.5")] == ["a"]
    assert world.view().conflicts() == []


def test_nothing_is_read_from_strangers_and_forgotten_nodes_and_retired_ones_as_before() -> None:
    world = World("a1", "b1")
    red = both_claim(world)
    world.do("b1", "register_gateway", "192.0.2.2", ["/ip4/192.0.2.2/tcp/1"], "1")
    world.sync()
    assert node_id("b1") in world.view().gateways
    world.change_member("b1", state="retired")
    assert len(world.view().conflicts()) == 1
    assert node_id("b1") not in world.view().gateways
    world.change_member("b1", state="forgotten")
    assert world.view().conflicts() == []
    assert len(world.view().claims(red, "10.0.200.5")) == 1
    assert world.view().sites() == ("a",)
    del world.members[node_id("b1")]
    world.set_members()
    assert len(world.view().claims(red, "10.0.200.5")) == 1


def test_what_a_forgotten_node_wrote_is_gone_and_its_site_stays_the_owner() -> None:
    world = World("a1", "a2", "b1")
    red = world.red()
    world.everywhere("a2", "set_vpc", "red", tenant="other")
    world.change_member("a1", state="forgotten")
    view = world.view()
    assert view.vpcs[red].site == "a" and view.vpcs[red].tenant == "other"
    assert view.subnets() == []
    world.everywhere("a2", "add_subnet", "s-a", "red", "10.0.1.0/24")
    world.change_member("a2", state="forgotten")
    assert not world.view().vpcs and not world.view().subnets()


# --- what cannot be read ---------------------------------------------------------------------


def test_what_cannot_be_read_is_counted_while_it_is_held() -> None:
    view = FedView()
    key = b"zfuture"
    changes = [
        Change(b"n" * 16, MESH_SHARD, key, b"?"),
        Change(b"n" * 16, MESH_SHARD, b"v", b"?"),
        Change(b"n" * 16, "11" * 16, b"e\x0a\0\0\5", b"\xc1"),
        Change(b"n" * 16, "11" * 16, b"e\x0a\0\0\6", b"\x81\x00\x02"),
    ]
    view.apply(changes)
    assert (view.unknown, view.invalid) == (2, 2)
    view.apply(changes)
    assert (view.unknown, view.invalid) == (2, 2)
    view.apply([change._replace(record=None) for change in changes])
    assert (view.unknown, view.invalid) == (0, 0)


def test_a_flood_of_unreadable_records_is_counted_up_to_a_bound() -> None:
    view = FedView()
    view.apply(Change(b"n" * 16, MESH_SHARD, b"z%d" % i, b"") for i in range(UNREAD_MAX + 1))
    assert view.unknown == UNREAD_MAX
    view.apply([Change(b"n" * 16, MESH_SHARD, b"z%d" % UNREAD_MAX, None)])
    assert view.unknown == UNREAD_MAX


def test_an_unreadable_record_replaces_the_readable_one_before_it() -> None:
    world = World("a1", "b1")
    red = world.red()
    world.everywhere("a1", "add_endpoint", "red", "10.0.1.5")
    view = world.view()
    key = keys.pack(keys.EndpointKey(keys.addr_of("10.0.1.5")))
    view.apply([Change(node_id("a1"), red, key, b"\xc1")])
    assert view.claims(red, "10.0.1.5") == () and view.invalid == 1


# --- readers and cost ------------------------------------------------------------------------


def test_readers_are_independent_until_released() -> None:
    world = World("a1", "b1")
    view = world.view()
    one, two = view.reader(), view.reader()
    one.take()
    two.take()
    world.red()
    assert one and one.take().vpcs and not one.take()
    view.release(two)
    world.everywhere("a1", "add_endpoint", "red", "10.0.1.5")
    assert one.take().endpoints and not two.take().endpoints


def test_a_brief_reader_is_told_of_one_endpoint_of_each_vpc() -> None:
    world = World("a1", "b1")
    red = world.red()
    world.everywhere("a1", "add_endpoint", "red", "10.0.1.5")
    world.everywhere("a1", "add_endpoint", "red", "10.0.1.6")
    view = world.views["a1"]
    whole, brief = view.reader(), view.reader(brief=True)
    for ip in ("10.0.1.7", "10.0.1.8", "10.0.1.9"):
        told = whole.take(), brief.take()
        assert set(told[1].endpoints) == set(told[0].endpoints) == {red}
        assert len(told[1].endpoints[red]) == 1
        assert (told[0].vpcs, told[0].subnets) == (told[1].vpcs, told[1].subnets)
        assert not whole and not brief
        world.everywhere("a1", "add_endpoint", "red", ip)
        world.everywhere("a1", "remove_endpoint", "red", ip)


def test_a_change_of_one_endpoint_judges_one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World("a1", "b1")
    red = world.red()
    for end in range(2, 100):
        world.do("a1", "add_endpoint", "red", f"10.0.1.{end}")
    view = world.views["a1"]
    judged: list[bytes] = []
    judge = claims.ClaimTable.judge

    def counting(table: claims.ClaimTable, vpc: str, touched: Set[bytes]) -> bool:
        judged.extend(touched)
        return judge(table, vpc, touched)

    monkeypatch.setattr(claims.ClaimTable, "judge", counting)
    world.do("a1", "add_endpoint", "red", "10.0.1.200")
    assert judged == [keys.pack(keys.EndpointKey(keys.addr_of("10.0.1.200")))]
    judged.clear()
    world.do("a1", "add_subnet", "x", "red", "10.0.50.0/24")
    view.set_members({**world.members, node_id("c1"): view.member("a1")})
    assert judged == []
    assert red in view.vpcs
