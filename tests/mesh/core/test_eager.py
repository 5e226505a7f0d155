"""Which links rest: both ends agree, nobody is left with fewer than four, and what is lost is
made good."""

from __future__ import annotations

from collections import deque
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core import wire
from mesh.core.eager import COMPLETE, EAGER_MIN, EagerLinks, Shards


class Graph:
    """Nodes with links at random, and what is on its way on each, in order."""

    def __init__(self, chance: Random, nodes: int, kept: list[Shards]) -> None:
        self.chance = chance
        self.kept = kept
        self.under_way: dict[tuple[int, int], deque[wire.Frame]] = {}
        self.peers: list[set[int]] = [set() for _ in range(nodes)]
        self.links = [self._links_of(node) for node in range(nodes)]
        for node in range(nodes):
            others = [n for n in range(nodes) if n != node and n not in self.peers[node]]
            for peer in chance.sample(others, min(4, len(others))):
                self.link(node, peer)

    def _links_of(self, node: int) -> EagerLinks:
        return EagerLinks(
            lambda peer, frame: self.under_way[node, peer[0]].append(frame),
            lambda peer: self.both(node, peer[0]),
            lambda: len(self.peers),
        )

    def both(self, a: int, b: int) -> Shards:
        one, other = self.kept[a], self.kept[b]
        if one is None or other is None:
            return other if one is None else one
        return one & other

    def link(self, a: int, b: int) -> None:
        for node, peer in ((a, b), (b, a)):
            self.peers[node].add(peer)
            self.under_way[node, peer] = deque()
            self.links[node].up(bytes([peer]))

    def unlink(self, a: int, b: int) -> None:
        for node, peer in ((a, b), (b, a)):
            self.peers[node].remove(peer)
            del self.under_way[node, peer]
        for node, peer in ((a, b), (b, a)):
            self.links[node].down(bytes([peer]))

    def step(self) -> None:
        """A frame arrives, or a node looks at a link, which has brought old news."""
        ready = [pair for pair, frames in self.under_way.items() if frames]
        if ready and self.chance.random() < 0.7:
            sender, receiver = self.chance.choice(ready)
            frame = self.under_way[sender, receiver].popleft()
            assert isinstance(frame, wire.Rest | wire.Wake)
            self.links[receiver].receive(bytes([sender]), frame)
        else:
            node, peer = self.chance.choice(list(self.under_way))
            self.links[node].again(bytes([peer]))
            self.links[node].look(bytes([peer]))

    def arrive(self) -> None:
        """All that is on its way arrives, and what answers it."""
        while any(self.under_way.values()):
            for (sender, receiver), frames in self.under_way.items():
                while frames:
                    frame = frames.popleft()
                    assert isinstance(frame, wire.Rest | wire.Wake)
                    self.links[receiver].receive(bytes([sender]), frame)

    def pushing(self, node: int) -> set[int]:
        return {peer[0] for peer in self.links[node].awake()}


def _check(graph: Graph) -> None:
    for node, links in enumerate(graph.peers):
        for peer in links:
            assert (peer in graph.pushing(node)) == (node in graph.pushing(peer))
            shards = graph.both(node, peer)
            for shard in shards if shards is not None else ("any",):
                linked = sum(_keeps(graph, node, other, shard) for other in links)
                pushed = sum(_keeps(graph, node, other, shard) for other in graph.pushing(node))
                assert pushed >= min(EAGER_MIN, linked)


def _keeps(graph: Graph, a: int, b: int, shard: str) -> bool:
    both = graph.both(a, b)
    return both is None or shard in both


@settings(max_examples=60)
@given(st.integers(0, 1 << 32), st.integers(COMPLETE + 1, 40), st.booleans())
def test_every_shard_of_every_node_keeps_four_links(seed: int, nodes: int, interest: bool) -> None:
    chance = Random(seed)
    kept: list[Shards] = [
        frozenset({"mesh", *chance.sample("abc", chance.randint(0, 3))}) if interest else None
        for _ in range(nodes)
    ]
    graph = Graph(chance, nodes, kept)
    for _ in range(nodes * 40):
        graph.step()
    for _ in range(nodes // 2):
        a = chance.choice([n for n in range(nodes) if graph.peers[n]])
        graph.unlink(a, chance.choice(sorted(graph.peers[a])))
    graph.arrive()
    for node in range(nodes):  # a link that went while its end was being asked
        for peer in sorted(graph.peers[node]):
            graph.links[node].look(bytes([peer]))
            graph.arrive()
    _check(graph)


def test_most_that_are_too_many_rest() -> None:
    graph = Graph(Random(1), 100, [None] * 100)
    for _ in range(100 * 60):
        graph.step()
    graph.arrive()
    _check(graph)
    assert sum(map(len, graph.peers)) / 100 == 8
    assert 4 <= sum(len(graph.pushing(node)) for node in range(100)) / 100 < 5


def test_none_rests_where_all_are_linked() -> None:
    graph = Graph(Random(2), COMPLETE, [None] * COMPLETE)
    for _ in range(400):
        graph.step()
    assert all(graph.pushing(node) == graph.peers[node] for node in range(COMPLETE))


def test_a_resting_link_that_brings_what_the_others_do_not_is_woken() -> None:
    graph = Graph(Random(3), 30, [None] * 30)
    for _ in range(30 * 60):
        graph.step()
    graph.arrive()
    node, peer = next((n, p) for n in range(30) for p in graph.peers[n] - graph.pushing(n))
    pushing = sorted(graph.pushing(node))
    for _ in range(20):
        graph.links[node].news(bytes([pushing[0]]))
    graph.links[node].news(bytes([peer]))
    graph.links[node].look(bytes([peer]))
    graph.arrive()
    assert peer not in graph.pushing(node)  # on its way when the two compared
    for _ in range(5):
        graph.links[node].news(bytes([pushing[0]]))
        graph.links[node].news(bytes([peer]))
    graph.links[node].look(bytes([peer]))
    graph.arrive()
    assert peer in graph.pushing(node)
    assert node in graph.pushing(peer)
