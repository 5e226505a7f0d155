"""Writers and views of a small mesh without a network: what is written reaches others by `sync`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

from mesh.core.clock import HybridClock
from mesh.core.importing import EndpointSpec
from mesh.core.members import Member, MemberState
from mesh.core.ops import NodeId, Op, Put
from mesh.core.view import Endpoint, View
from mesh.core.writer import Writer
from tests.mesh.core.view_feed import Change, FedView

START_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000


def node_id(name: str) -> NodeId:
    return sha256(b"node " + name.encode()).digest()[:16]


def member(name: str, *, admin: bool = False, state: MemberState = "active") -> Member:
    """A member whose site is the first letter of its name."""
    key = sha256(b"key " + name.encode()).digest()
    return Member(node_id(name), name, name[0], key, state, admin)


def asked_of(writer: Writer, method: str, /, *args: Any, now_ns: int, **fields: Any) -> list[Op]:
    """What a method of the writer answers; one that takes an `EndpointSpec` is given its fields."""
    if method in ("add_endpoint", "move_endpoint"):
        args, fields = (EndpointSpec(*args, **fields),), {}
    ops: list[Op] = getattr(writer, method)(*args, now_ns=now_ns, **fields)
    return ops


class World:
    """Nodes "a1", "b1", … of sites a, b, …; each has its own view of what it has heard of."""

    def __init__(self, *names: str, admins: Sequence[str] = ()) -> None:
        self.now_ns = START_NS
        self.members = {node_id(name): member(name, admin=name in admins) for name in names}
        self.views = {name: FedView() for name in names}
        self.writers = {name: self._writer(name) for name in names}
        self.log: list[Change] = []
        self._heard = dict.fromkeys(names, 0)
        self.set_members()

    def _writer(self, name: str) -> Writer:
        return Writer(node_id(name), name[0], self.views[name], HybridClock(), self._nonces(name))

    @staticmethod
    def _nonces(name: str) -> Callable[[int], bytes]:
        count = 0

        def nonce(size: int) -> bytes:
            nonlocal count
            count += 1
            return sha256(f"{name} {count}".encode()).digest()[:size]

        return nonce

    def set_members(self) -> None:
        for view in self.views.values():
            view.set_members(self.members)

    def change_member(self, name: str, /, **fields: Any) -> None:
        node = node_id(name)
        self.members[node] = replace(self.members[node], **fields)
        self.set_members()

    def do(self, name: str, method: str, /, *args: Any, **fields: Any) -> list[Op]:
        """Call a method of the node's writer and carry out what it answers."""
        ops = asked_of(self.writers[name], method, *args, now_ns=self.now_ns, **fields)
        self.carry_out(name, ops)
        return ops

    def everywhere(self, name: str, method: str, /, *args: Any, **fields: Any) -> list[Op]:
        """As `do`, and everybody hears of everything."""
        ops = self.do(name, method, *args, **fields)
        self.sync()
        return ops

    def tend(self, name: str) -> list[Op]:
        """The node's housekeeping, carried out."""
        ops = self.writers[name].housekeeping(self.now_ns)
        self.carry_out(name, ops)
        return ops

    def carry_out(self, name: str, ops: Sequence[Op]) -> None:
        node = node_id(name)
        changes = [
            Change(node, op.shard, op.key, op.record if isinstance(op, Put) else None) for op in ops
        ]
        self.log += changes
        self.views[name].apply(changes)

    def sync(self, *names: str) -> None:
        """These nodes (all, if none is named) hear of all that was written until now."""
        for name in names or self.views:
            self.views[name].apply(self.log[self._heard[name] :])
            self._heard[name] = len(self.log)

    def view(self) -> FedView:
        """A node's view, once all are found equal."""
        prints = {view.fingerprint() for view in self.views.values()}
        assert len(prints) == 1, "views differ"
        return next(iter(self.views.values()))

    def red(self, name: str = "a1") -> str:
        """VPC red with subnets: s-a at a, s-b at b, wide over a and b. Returns the VPC's id."""
        self.everywhere(name, "add_vpc", "red", 7, ["10.0.0.0/16"], "acme")
        self.everywhere(name, "add_subnet", "s-a", "red", "10.0.1.0/24", ["a"])
        self.everywhere(name, "add_subnet", "s-b", "red", "10.0.2.0/24", ["b"])
        self.everywhere(name, "add_subnet", "wide", "red", "10.0.200.0/24", ["a", "b"])
        return self.views[name].vpc("red").id


def shape(claims: Sequence[Endpoint], view: View) -> list[tuple[str, str, str]]:
    """(node name, state, rule) of claims, in their order."""
    return [(view.members[c.node].name, c.state, c.rule) for c in claims]


def both_claim(world: World) -> str:
    """Sites a and b claim one address without knowing of each other, a first."""
    red = world.red()
    world.do("a1", "add_endpoint", "red", "10.0.200.5")
    world.now_ns += SECOND_NS
    world.do("b1", "add_endpoint", "red", "10.0.200.5")
    world.sync()
    return red
