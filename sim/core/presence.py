"""Which nodes are there when: what a scenario says of a node that is not there yet, or no more, is
a mistake, and so is letting the only admin go while it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from sim.core.clock import seconds
from sim.core.events import Clone, Crash, Event, Join, Part, Trouble, kind_in
from sim.core.tables import Table

Written: TypeAlias = tuple[Event, Table]


def check_presence(
    events: Sequence[Written], members: Sequence[str], joining: Sequence[str], *, by_chance: bool
) -> None:
    """Raise Misread. `members`: there from the start, the first of them the only admin; `joining`:
    the nodes of the events that say so, in the order of their times; `by_chance`: some go that no
    event names."""
    _Presence(members, joining, by_chance).check(sorted(events, key=lambda pair: pair[0].at_ns))


class _Presence:
    def __init__(self, members: Sequence[str], joining: Sequence[str], by_chance: bool) -> None:
        self._admin = members[0]
        self._left = {*members, *joining}
        self._joining = joining
        self._joined_ns: dict[str, int] = {}
        self._gone_ns: dict[str, int] = {}
        self._by_chance = by_chance

    def check(self, events: Sequence[Written]) -> None:
        joins = [event for event, _ in events if isinstance(event, Join)]
        self._joined_ns = {
            name: event.at_ns for name, event in zip(self._joining, joins, strict=True)
        }
        for event, table in events:
            if isinstance(event, Join):
                self._need_admin(event, table)
                continue
            node: str | None = getattr(event, "node", None)
            if node is None:
                continue
            self._joined(event, node, table)
            if isinstance(event, Part):
                self._part(event, table)
            elif node in self._gone_ns:
                at_s = seconds(self._gone_ns[node])
                raise table.bad(kind_in(table), f"{node} has gone at {at_s:g} s: leave this out")
            if isinstance(event, Part) or (isinstance(event, Trouble) and event.kind == "hostile"):
                self._left.discard(node)
                if not self._left:
                    words = "no node is left that anything could be promised of: let one stay"
                    raise table.bad(kind_in(table), words)

    def _joined(self, event: Event, node: str, table: Table) -> None:
        joined_ns = self._joined_ns.get(node, -1)
        joined_s = seconds(joined_ns)
        if event.at_ns < joined_ns:
            words = f"{node} joins at {joined_s:g} s only: write a later at_s, or another node"
            raise table.bad(kind_in(table), words)
        since_ns = None
        if isinstance(event, Crash):
            since_ns = event.restore_ns
        elif isinstance(event, Clone):
            since_ns = event.from_ns
        if since_ns is not None and since_ns <= joined_ns:
            key = "lost_s" if kind_in(table) == "power" else "from_s"
            words = f"{node} joins at {joined_s:g} s, and has no disk before: "
            words += "use less" if key == "lost_s" else "use more"
            raise table.bad(key, words)

    def _part(self, event: Part, table: Table) -> None:
        node, kind = event.node, event.kind
        if kind == "forget":
            if node not in self._gone_ns and not self._by_chance:
                raise table.bad("forget", f"{node} is still a member: retire it before")
        elif node in self._gone_ns:
            raise table.bad(kind, f"{node} has gone already: leave this out")
        if kind != "leave":
            if node == self._admin:
                words = "is the only admin, and nobody else may say that: let it leave"
                raise table.bad(kind, f"{node} {words}, or name another node")
            self._need_admin(event, table)
        self._gone_ns.setdefault(node, event.at_ns)

    def _need_admin(self, event: Event, table: Table) -> None:
        if self._admin in self._gone_ns:
            words = f"{self._admin}, the only admin, has left before: let it leave later"
            raise table.bad(kind_in(table), words)
