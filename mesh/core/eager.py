"""On which links news are pushed: some rest, so that an update comes a few times and not from all.

In a mesh that is not linked completely each node has at least four links for each shard, and on
average twice as many; with all of them in use an update would come seven times to each node. So
links rest, as in Plumtree (Leitão, Pereira, Rodrigues 2007), with these departures:

- A link rests in both directions, and only if both ends have EAGER_MIN others on which they push,
  for every shard that the two have in common. What is left is no tree: the loss of any link delays
  nothing, and each node chooses among its links by itself.
- Who is brought mostly what has come before asks (REST); the other end rests the link and says so
  (REST, agreed), or does not answer. WAKE ends it, at once.
- A link is woken when an end is short of others, or when it brings news by anti-entropy that the
  others would have brought long before.

In a mesh of up to COMPLETE nodes no link rests: each update comes from who wrote it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mesh.core import wire
from mesh.core.ops import NodeId

EAGER_MIN: Final = 4
"""As many as the overlay keeps for a shard: 1,000 nodes with 4 each stay connected, and push
reaches all."""
COMPLETE: Final = 9
"""Nodes up to which all are linked with all."""
STALE_SHARE: Final = 4
"""A resting link that brings more than one part in so many of what the others bring is missed: what
is on its way when two nodes compare is far less in a busy mesh."""

Shards = frozenset[str] | None
"""None: all."""


@dataclass(slots=True)
class _Link:
    rests: bool = False
    asked: bool = False
    """whether the peer was asked to let it rest, and has not answered"""
    news: int = 0
    again: int = 0
    """what it brought since the last look: for the first time, and what had come before"""
    mark: int = 0
    """what the links that do not rest had brought at the last look"""


class EagerLinks:
    """The links of one node.

    Args:
        send: gives a frame to a peer.
        common: the shards that both this node and the peer keep.
        members: how many nodes the mesh has.
    """

    def __init__(
        self,
        send: Callable[[NodeId, wire.Frame], None],
        common: Callable[[NodeId], Shards],
        members: Callable[[], int],
    ) -> None:
        self._send = send
        self._common = common
        self._members = members
        self._links: dict[NodeId, _Link] = {}
        self._news = 0
        self.copies = 0
        """Deltas that peers have sent, news or not."""

    def up(self, peer: NodeId) -> None:
        self._links[peer] = _Link(mark=self._news)

    def down(self, peer: NodeId) -> None:
        """The link is gone: others may be needed in its place."""
        del self._links[peer]
        for other, link in sorted(self._links.items()):
            if link.rests and not self._spared(other):
                self._wake(other, link)

    def awake(self) -> list[NodeId]:
        """The peers that are told at once of what is new, in order."""
        return sorted([peer for peer, link in self._links.items() if not link.rests])

    def news(self, peer: NodeId) -> None:
        """The peer has sent a delta for the first time."""
        self.copies += 1
        link = self._links.get(peer)
        if link is not None:
            link.news += 1
            self._news += not link.rests

    def again(self, peer: NodeId) -> None:
        """The peer has sent what had come before."""
        self.copies += 1
        link = self._links.get(peer)
        if link is not None:
            link.again += 1

    def look(self, peer: NodeId) -> None:
        """Let the link rest, or wake it, by what it has brought since the last look."""
        link = self._links[peer]
        if link.rests:
            missed = link.news * STALE_SHARE > self._news - link.mark
            if missed or not self._spared(peer):
                self._wake(peer, link)
        else:
            link.asked = link.again > link.news and self._spared(peer)
            if link.asked:
                self._send(peer, wire.Rest(agreed=False))
        link.news, link.again, link.mark = 0, 0, self._news

    def receive(self, peer: NodeId, frame: wire.Rest | wire.Wake) -> None:
        link = self._links[peer]
        if isinstance(frame, wire.Wake):
            link.rests = link.asked = False
        elif frame.agreed:
            if link.asked:
                link.rests, link.asked = True, False
            elif not link.rests:
                self._send(peer, wire.Wake())  # woken since it was asked
        elif self._spared(peer):
            link.rests, link.asked = True, False
            self._send(peer, wire.Rest(agreed=True))

    def _wake(self, peer: NodeId, link: _Link) -> None:
        link.rests = False
        self._send(peer, wire.Wake())

    def _spared(self, peer: NodeId) -> bool:
        """Whether there are enough others for every shard that the peer keeps, too."""
        others = [
            self._common(other)
            for other, link in self._links.items()
            if other != peer and not link.rests and not link.asked
        ]
        if len(others) < EAGER_MIN or self._members() <= COMPLETE:
            return False
        shards = self._common(peer)
        if shards is None:
            return others.count(None) >= EAGER_MIN
        return all(
            sum(kept is None or shard in kept for kept in others) >= EAGER_MIN for shard in shards
        )
