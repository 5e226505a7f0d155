"""With whom to have links. Pure: time comes in as `now_ns`, chance as a `random.Random`.

Rules
- In a mesh of at most FULL_MESH_MAX others everybody is wanted.
- In a larger one every shard that this node holds has at least LINKS_MIN links to members that hold
  it too, and so has the mesh as a whole; a link counts for every shard that both ends hold, whoever
  dialled it. The rarest shard is served first, by whoever serves most of those that are short: a
  ring for each shard would need five times the links.
- Where several would do as well, every other one is picked for its measured round trip and the rest
  at random. Only near ones would make an island of each city; two random links a node are enough to
  keep a graph connected (Fenner and Frieze 1982).
- A shard that is short is repaired at once; who could not be reached is replaced by somebody else.
- Whoever was a neighbour or was picked and has not been reached stays wanted: a mesh that fell
  apart must find together again, however content each part is with itself (memberlist#222). When it
  is dialled is redial.py's business.
- Members come back, and each time there is a link more than before. A link that this end dialled,
  that has lasted for SURPLUS_AGE_NS and without which all its shards still have more than
  LINKS_PLENTY is let go, one at a time; the other end is told that it was not lost.
- Who is blocked is not dialled until the block ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from random import Random

from mesh.core.ops import NodeId
from mesh.node.p2p.redial import Redial

FULL_MESH_MAX = 8
"""Other members up to which everybody is linked with everybody."""

LINKS_MIN = 4
"""Links for each shard of a larger mesh: 1,000 nodes with 4 each stay connected and push reaches
all."""

LINKS_MAX = 240
"""Links in all. Each may hold FRAME_BYTES_MAX and its windows if its peer is hostile."""

LINKS_PLENTY = 3 * LINKS_MIN
"""Links of a shard beyond which one may be let go; on average there are twice LINKS_MIN."""

SURPLUS_AGE_NS = 600 * 10**9

PICK_BURST = 64
PICKS_PER_S = 4
"""Members picked to be dialled beside those lost: enough at once for a start with dozens of
shards, and later so slow that a node that is cut off does not try a thousand members in seconds."""

CANDIDATES_MAX = 32
"""Members compared for one pick. The best of 32 at random is nearly as good as the best of all."""

_ALL = ""
"""Stands for a shard that every member holds."""

_Shards = dict[str, tuple[Set[NodeId], tuple[NodeId, ...]]]


class Overlay:
    """The dialling policy of one node."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._targets: frozenset[NodeId] = frozenset()
        self._shards: _Shards = {}
        self._linked: dict[NodeId, int | None] = {}
        """node -> since when, of links that this end dialled; None for the others"""
        self._redial: Redial[NodeId] = Redial(rng)
        self._lost: set[NodeId] = set()
        self._failed: set[NodeId] = set()
        self._blocked_until_ns: dict[NodeId, int] = {}
        self._rtt_ns: dict[NodeId, int] = {}
        self._picks, self._picks_at_ns = float(PICK_BURST), 0
        self._settled = False
        """Whether nothing has happened since every shard was looked at and none was short."""

    # -- what the transport says ----------------------------------------------------------------

    def set_targets(self, nodes: Iterable[NodeId], now_ns: int) -> None:
        """Replace the set of members that may be dialled (without this node itself)."""
        self._targets = frozenset(nodes)
        self._shards[_ALL] = (self._targets, tuple(sorted(self._targets)))
        for node in [n for n in self._redial.wanted() if n not in self._targets]:
            self._redial.forget(node)
        for node in [n for n, until_ns in self._blocked_until_ns.items() if until_ns <= now_ns]:
            del self._blocked_until_ns[node]
        self._lost &= self._targets
        self._failed &= self._targets
        self._rtt_ns = {n: rtt_ns for n, rtt_ns in self._rtt_ns.items() if n in self._targets}
        self._settled = False

    def set_holders(self, holders: Mapping[str, Set[NodeId]]) -> None:
        """Say for each shard that this node holds which members do; empty: all hold all."""
        former, self._shards = self._shards, {}
        if _ALL in former:
            self._shards[_ALL] = former[_ALL]
        for shard, nodes in holders.items():
            known = former.get(shard)
            # Most are the very sets of the last time: comparing those would look at every holder.
            if known is None or (known[0] is not nodes and known[0] != nodes):
                known = (nodes, tuple(sorted(nodes)))
            self._shards[shard] = known
        self._settled = False

    def up(self, node: NodeId, now_ns: int, *, dialled: bool = False) -> None:
        """There is a link to `node`; `dialled`: from here."""
        self._linked[node] = now_ns if dialled else None
        self._redial.forget(node)
        self._lost.discard(node)
        self._failed.discard(node)
        self._settled = False

    def down(self, node: NodeId, now_ns: int, *, lost: bool = True) -> None:
        """The link to `node` is gone: win it back, unless both ends meant to end it."""
        self._linked.pop(node, None)
        if lost and node in self._targets:
            self._lost.add(node)
            self._redial.want(node, now_ns)
        self._settled = False

    def failed(self, node: NodeId, now_ns: int) -> None:
        """A dial did not end in a link: in a large mesh somebody else is picked besides."""
        if node in self._redial:
            self._failed.add(node)
            if node not in self._lost and len(self._targets) > FULL_MESH_MAX:
                self._redial.calm(node, now_ns)
            self._settled = False

    def want(self, node: NodeId, now_ns: int) -> None:
        """Dial `node` besides all others, once with the eager ones."""
        if node in self._targets and node not in self._linked and node not in self._redial:
            self._redial.want(node, now_ns)

    def measured(self, node: NodeId, rtt_ns: int) -> None:
        """The round trip to `node`, remembered also when the link is gone."""
        if node in self._targets:
            self._rtt_ns[node] = rtt_ns

    def block(self, node: NodeId, until_ns: int) -> None:
        """Leave `node` alone until then."""
        self._blocked_until_ns[node] = until_ns
        self._settled = False

    def blocked(self, node: NodeId, now_ns: int) -> bool:
        until_ns = self._blocked_until_ns.get(node)
        if until_ns is not None and until_ns <= now_ns:
            del self._blocked_until_ns[node]
            until_ns = None
            self._settled = False
        return until_ns is not None

    @property
    def links(self) -> int:
        """How many links there are."""
        return len(self._linked)

    # -- what it decides ------------------------------------------------------------------------

    def due(self, now_ns: int) -> list[NodeId]:
        """Whom to dial now; each of them counts as dialled."""
        self._want(now_ns)
        return self._redial.due(now_ns, lambda node: self.blocked(node, now_ns))

    def next_deadline_ns(self, now_ns: int) -> int | None:
        """When `due` may next have somebody; None: not before something else happens."""
        deadline_ns = self._redial.next_deadline_ns(
            now_ns, lambda node: self._blocked_until_ns.get(node, 0)
        )
        if self._settled:
            return deadline_ns
        # Short of links with nobody to dial: when there is a pick again, or a block has ended.
        later_ns = [now_ns + 10**9 // PICKS_PER_S]
        if self._picks >= 1:
            later_ns = [until for until in self._blocked_until_ns.values() if until > now_ns]
        return min((at for at in (deadline_ns, *later_ns) if at is not None), default=None)

    def surplus(self, now_ns: int, used: Set[NodeId] = frozenset()) -> NodeId | None:
        """Somebody to whom the link is not needed, if there is one; none of `used`."""
        if len(self._targets) <= FULL_MESH_MAX:
            return None
        linked = self._linked.keys()
        plenty = {
            shard: len(linked & nodes) > LINKS_PLENTY for shard, (nodes, _) in self._shards.items()
        }
        spare = [
            node
            for node, since_ns in sorted(self._linked.items())
            if since_ns is not None
            and node not in used
            and now_ns - since_ns >= SURPLUS_AGE_NS
            and all(plenty[s] for s, (nodes, _) in self._shards.items() if node in nodes)
        ]
        return self._rng.choice(spare) if spare else None

    def _want(self, now_ns: int) -> None:
        """Add to those wanted whoever the rules add now."""
        if self._settled:
            return
        if len(self._targets) <= FULL_MESH_MAX:
            for node in self._targets - self._linked.keys():
                if node not in self._redial:
                    self._redial.want(node, now_ns)
            self._settled = True
            return
        short, room = self._short(now_ns)
        while short and room > 0 and self._may_pick(now_ns):
            shard = min(short, key=lambda s: (len(self._shards[s][0]), s))
            picked = self._pick(shard, short, now_ns)
            if picked is None:
                del short[shard]
                continue
            self._picks -= 1
            room -= 1
            self._redial.want(picked, now_ns)
            for other in [s for s in short if picked in self._shards[s][0]]:
                short[other] -= 1
                if not short[other]:
                    del short[other]
        self._settled = not (short and room > 0) and not self._blocked_until_ns

    def _short(self, now_ns: int) -> tuple[dict[str, int], int]:
        """How many links each shard lacks, those that are being dialled counted as there; and how
        many there may be more."""
        hoped = {
            node
            for node in self._redial.wanted()
            if node not in self._failed and not self.blocked(node, now_ns)
        }
        there = self._linked.keys() | hoped
        counts = {
            shard: min(LINKS_MIN, len(nodes)) - len(there & nodes)
            for shard, (nodes, _) in self._shards.items()
        }
        short = {shard: missing for shard, missing in counts.items() if missing > 0}
        return short, LINKS_MAX - len(there)

    def _may_pick(self, now_ns: int) -> bool:
        earned = (now_ns - self._picks_at_ns) * PICKS_PER_S / 1e9
        self._picks, self._picks_at_ns = min(float(PICK_BURST), self._picks + earned), now_ns
        return self._picks >= 1

    def _pick(self, shard: str, short: Mapping[str, int], now_ns: int) -> NodeId | None:
        """Somebody to dial for `shard`; None when nobody is left to try."""
        everybody = self._shards[shard][1]
        sample = self._rng.sample(everybody, min(CANDIDATES_MAX, len(everybody)))
        free = [node for node in sample if self._free(node, now_ns)]
        if not free and len(sample) < len(everybody):
            free = [node for node in everybody if self._free(node, now_ns)]
            free = self._rng.sample(free, min(CANDIDATES_MAX, len(free)))
        if not free:
            return None
        by_distance = (len(self._linked) + len(self._redial.wanted())) % 2 == 1

        def rank(node: NodeId) -> tuple[int, float]:
            covers = sum(1 for s in short if node in self._shards[s][0])
            far = self._rtt_ns.get(node, float("inf")) if by_distance else 0.0
            return (-covers, far)

        return min(free, key=rank)  # of equals the first of the sample, so one at random

    def _free(self, node: NodeId, now_ns: int) -> bool:
        return (
            node in self._targets
            and node not in self._linked
            and node not in self._redial
            and not self.blocked(node, now_ns)
        )
