"""Whom to dial and when. Pure: time comes in as `now_ns`, chance as a `random.Random`.

Rules
- In a mesh of at most FULL_MESH_MAX others everybody is wanted.
- In a larger one LINKS_MIN links to members picked at random are, and whoever was a neighbour or
  was picked and has not been reached: a mesh that fell apart must find together again, however
  content each part is with itself (memberlist#222).
- Whoever is newly wanted, or was just lost, is dialled once a second for a minute; after that all
  who are wanted share SLOW_DIALS_PER_S, at random, for ever.
- Who is blocked is not dialled until the block ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from mesh.core.ops import NodeId

FULL_MESH_MAX = 8
"""Other members up to which everybody is linked with everybody."""

LINKS_MIN = 4
"""Links kept in a larger mesh: 1,000 nodes with 4 each stay connected and push reaches all."""

DIALS_PER_POLL_MAX = 16
"""Dials started at once. A handshake costs some 10 ms of CPU at each end."""

EAGER_NS = 60 * 10**9
REDIAL_NS = 10**9
SLOW_DIALS_PER_S = 2

_BURST_PAUSE_NS = 100_000_000


class Overlay:
    """The dialling policy of one node."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._targets: frozenset[NodeId] = frozenset()
        self._linked: set[NodeId] = set()
        self._wanted_since_ns: dict[NodeId, int] = {}
        self._next_ns: dict[NodeId, int] = {}
        self._blocked_until_ns: dict[NodeId, int] = {}
        self._slow_next_ns = 0
        self._failed: set[NodeId] = set()

    def set_targets(self, nodes: Iterable[NodeId], now_ns: int) -> None:
        """Replace the set of members that may be dialled (without this node itself)."""
        self._targets = frozenset(nodes)
        for known in (self._wanted_since_ns, self._next_ns):
            for node in [n for n in known if n not in self._targets]:
                del known[node]
        for node in [n for n, until_ns in self._blocked_until_ns.items() if until_ns <= now_ns]:
            del self._blocked_until_ns[node]
        self._failed &= self._targets
        self._want(now_ns)

    def up(self, node: NodeId, now_ns: int) -> None:
        """There is a link to `node`, whoever dialled."""
        self._linked.add(node)
        self._failed.discard(node)
        self._wanted_since_ns.pop(node, None)

    def down(self, node: NodeId, now_ns: int) -> None:
        """The link to `node` is gone: win it back."""
        self._linked.discard(node)
        if node in self._targets:
            self._wanted_since_ns[node] = now_ns
            self._next_ns[node] = now_ns
        self._want(now_ns)

    def failed(self, node: NodeId, now_ns: int) -> None:
        """A dial did not end in a link: in a large mesh somebody else is picked besides."""
        if node in self._targets and node not in self._linked:
            self._failed.add(node)
            self._want(now_ns)

    def block(self, node: NodeId, until_ns: int) -> None:
        """Leave `node` alone until then."""
        self._blocked_until_ns[node] = until_ns

    def blocked(self, node: NodeId, now_ns: int) -> bool:
        until_ns = self._blocked_until_ns.get(node)
        if until_ns is not None and until_ns <= now_ns:
            del self._blocked_until_ns[node]
            until_ns = None
        return until_ns is not None

    def due(self, now_ns: int) -> list[NodeId]:
        """Whom to dial now; each of them counts as dialled."""
        self._want(now_ns)
        ready = [
            node
            for node in sorted(self._wanted_since_ns)
            if self._next_ns.get(node, 0) <= now_ns and not self.blocked(node, now_ns)
        ]
        eager = [n for n in ready if now_ns - self._wanted_since_ns[n] < EAGER_NS]
        self._rng.shuffle(eager)
        dials = eager[:DIALS_PER_POLL_MAX]
        slow = [n for n in ready if now_ns - self._wanted_since_ns[n] >= EAGER_NS]
        if slow and self._slow_next_ns <= now_ns:
            dials.append(self._rng.choice(slow))
            self._slow_next_ns = now_ns + 10**9 // SLOW_DIALS_PER_S
        for node in dials:
            self._next_ns[node] = now_ns + REDIAL_NS
        return dials

    def next_deadline_ns(self, now_ns: int) -> int | None:
        """When `due` may next have somebody; None: not before something else happens."""
        deadlines_ns = []
        for node, since_ns in self._wanted_since_ns.items():
            at_ns = max(self._next_ns.get(node, 0), self._blocked_until_ns.get(node, 0))
            if max(at_ns, now_ns) - since_ns >= EAGER_NS:
                at_ns = max(at_ns, self._slow_next_ns)
            deadlines_ns.append(at_ns)
        if not deadlines_ns:
            return None
        return max(min(deadlines_ns), now_ns + _BURST_PAUSE_NS)

    def _want(self, now_ns: int) -> None:
        """Add to those wanted whoever the rules add now."""
        unlinked = sorted(self._targets - self._linked - self._wanted_since_ns.keys())
        if len(self._targets) > FULL_MESH_MAX:
            hopeful = sum(1 for n in self._wanted_since_ns if n not in self._failed)
            missing = LINKS_MIN - len(self._linked & self._targets) - hopeful
            unlinked = [n for n in unlinked if not self.blocked(n, now_ns)]
            unlinked = self._rng.sample(unlinked, max(0, min(missing, len(unlinked))))
        for node in unlinked:
            self._wanted_since_ns[node] = now_ns
