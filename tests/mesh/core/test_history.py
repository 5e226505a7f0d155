"""What is known of a key: each writer's last word, evictions, and what was dropped of late."""

from __future__ import annotations

import pytest

from crdt.header import ChainId
from mesh.core import keys
from mesh.core.clock import HybridClock
from mesh.core.errors import BadInput, NotFound
from mesh.core.history import history
from mesh.core.ops import MESH_SHARD, Put
from mesh.core.view import View
from mesh.core.writer import Writer
from tests.mesh.core.core_world import SECOND_NS, START_NS, asked_of
from tests.mesh.core.test_replica import Wire


class Mesh(Wire):
    """Two linked nodes with views and writers; every write is heard at once."""

    def __init__(self) -> None:
        super().__init__(2)
        self.link(0, 1)
        self.run()
        self.wall_ns = START_NS
        self.views = [View(replica.holdings) for replica in self.replicas]
        for view, replica in zip(self.views, self.replicas, strict=True):
            view.set_members(replica.roster.members())
        self.writers = [
            Writer(self.nodes[i], f"s{i}", self.views[i], HybridClock(), lambda n: b"n" * n)
            for i in range(2)
        ]

    def do(self, i: int, method: str, *args: object, **fields: object) -> None:
        self.wall_ns += SECOND_NS
        ops = asked_of(self.writers[i], method, *args, now_ns=self.wall_ns, **fields)
        self.replicas[i].local(ops, self.now_ns)
        self.run()
        for view, replica in zip(self.views, self.replicas, strict=True):
            view.update(replica.take_touched())

    def told(self, text: str) -> list[tuple[str, str]]:
        """(node, what), the same at both nodes."""
        told = [
            [(f"n{self.nodes.index(known.chain.node)}", known.what)
             for known in history(view, replica.lattice, text)]
            for view, replica in zip(self.views, self.replicas, strict=True)
        ]  # fmt: skip
        assert told[0] == told[1]
        return told[0]


def test_an_endpoints_claims_evictions_and_drops_are_told_in_order() -> None:
    mesh = Mesh()
    mesh.do(0, "add_vpc", "red", 7, ["10.0.0.0/16"])
    mesh.do(0, "add_subnet", "s", "red", "10.0.1.0/24", ["s0", "s1"])
    key = "endpoint/red/10.0.1.5"
    assert mesh.told(key) == []
    mesh.do(1, "add_endpoint", "red", "10.0.1.5")
    mesh.do(0, "move_endpoint", "red", "10.0.1.5")
    assert mesh.told(key) == [("n1", "claim"), ("n0", "claim")]
    mesh.do(0, "remove_endpoint", "red", "10.0.1.5")
    assert mesh.told(key) == [("n1", "claim"), ("n0", "eviction"), ("n0", "dropped")]
    mesh.do(1, "housekeeping")  # it drops what is hidden
    mesh.do(1, "add_endpoint", "red", "10.0.1.5")
    assert mesh.told(key) == [
        ("n0", "eviction"), ("n1", "dropped"), ("n1", "claim"), ("n0", "dropped"),
    ]  # fmt: skip
    last = history(mesh.views[0], mesh.replicas[0].lattice, key)[2]
    assert last.value is not None and last.value["mobility"] > 0
    chain = ChainId(mesh.nodes[1], mesh.views[0].vpc("red").id)
    held = mesh.replicas[0].lattice.get(chain, keys.pack(keys.EndpointKey(b"\x0a\x00\x01\x05")))
    assert held is not None and (last.epoch, last.seq) == held[:2]


def test_a_registers_revisions_and_deletion_are_told() -> None:
    mesh = Mesh()
    mesh.do(1, "add_vpc", "red", 7, ["10.0.0.0/16"])
    red = mesh.views[0].vpc("red").id
    mesh.do(0, "set_vpc", "red", tenant="t")  # by the admin: a record of its own
    assert mesh.told("vpc/red") == [("n1", "revision"), ("n0", "revision")]
    mesh.do(1, "remove_vpc", "red")
    assert mesh.told(f"vpc/{red}") == [("n0", "revision"), ("n1", "deletion")]
    with pytest.raises(NotFound):
        mesh.told("vpc/red")
    with pytest.raises(BadInput):
        mesh.told("red")


def test_what_a_newer_version_wrote_has_a_history_too() -> None:
    mesh = Mesh()
    mesh.do(0, "register_gateway", "192.0.2.1", [], "1")
    assert mesh.told("gateway/n0") == [("n0", "registration")]
    key = b"Q" + bytes(3)
    mesh.replicas[0].local([Put(MESH_SHARD, key, b"\x00")], mesh.now_ns)
    mesh.run()
    assert mesh.told(f"unknown/{key.hex()}") == [("n0", "unknown")]
