"""Random batches of effects and a model of what a store holds after them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from crdt import entry
from crdt.entry import Entry
from crdt.header import ChainId, Epoch
from mesh.core.effects import DropBranches, Forget, Persist, PersistStatements, Rewrite

Effect = Persist | DropBranches | Rewrite | PersistStatements | Forget
Branch = tuple[bytes, dict[bytes, Entry]]


@dataclass
class Model:
    statements: set[bytes] = field(default_factory=set)
    branches: dict[tuple[ChainId, Epoch], Branch] = field(default_factory=dict)

    def apply(self, effect: Effect) -> None:
        if isinstance(effect, PersistStatements):
            self.statements.update(effect.statements)
            self.statements.difference_update(effect.left)
            return
        if isinstance(effect, Forget):
            self.branches = {i: b for i, b in self.branches.items() if i[0].node != effect.node}
            return
        if isinstance(effect, Rewrite):
            kept = {i: b for i, b in self.branches.items() if i[0] != effect.chain}
            self.branches = kept
            for branch in effect.branches:
                self.apply(branch)
            return
        if isinstance(effect, DropBranches):
            for epoch in effect.epochs:
                self.branches.pop((effect.chain, epoch), None)
            return
        old = (effect.chain, effect.relabel_from or effect.epoch)
        _, records = self.branches.pop(old, (b"", {}))
        if effect.replace:
            records = {}
        for key in effect.deletes:
            records.pop(key, None)
        records.update(effect.puts)
        self.branches[effect.chain, effect.epoch] = (effect.header, records)
        for epoch in effect.drop:
            self.branches.pop((effect.chain, epoch), None)


class Author:
    """Makes effects that a replica could make: seqs only grow, relabelled branches exist."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._seq = 0
        self._said: list[bytes] = []
        self._counter = 0
        self._epochs: dict[ChainId, list[Epoch]] = {}

    def batch(self) -> list[Effect]:
        return [self._effect() for _ in range(self._random.randint(1, 4))]

    def _whole(self, chain: ChainId, epoch: Epoch) -> Persist:
        self._seq += 1
        return Persist(chain, epoch, b"rewritten", {b"k": entry.pack(self._seq, b"r")}, ())

    def _effect(self) -> Effect:
        chance = self._random
        if chance.random() < 0.1:
            fresh = tuple(chance.randbytes(8) for _ in range(chance.randint(0, 3)))
            left = tuple(chance.sample(self._said, min(len(self._said), chance.randint(0, 2))))
            self._said = [blob for blob in (*self._said, *fresh) if blob not in left]
            return PersistStatements(fresh, left)
        if chance.random() < 0.03:
            gone = bytes([chance.randrange(3)]) * 16
            for chain in self._epochs:
                if chain.node == gone:
                    self._epochs[chain] = []
            return Forget(gone)
        chain = ChainId(bytes([chance.randrange(3)]) * 16, chance.choice(["mesh", "ab" * 16]))
        epochs = self._epochs.setdefault(chain, [])
        if epochs and chance.random() < 0.05:
            return Rewrite(chain, tuple(self._whole(chain, epoch) for epoch in epochs))
        if epochs and chance.random() < 0.05:
            return DropBranches(chain, (epochs.pop(), Epoch(0, b"unknown.")))
        relabel_from = None
        drop: tuple[Epoch, ...] = ()
        if not epochs or chance.random() < 0.2:
            self._counter += 1
            if epochs and chance.random() < 0.5:
                relabel_from = epochs.pop()
                drop = (relabel_from,)  # named, and gone already
            epochs.append(Epoch(self._counter, chance.randbytes(8)))
        if len(epochs) > 1 and chance.random() < 0.5:
            drop = (*drop, *epochs[:-1])
            del epochs[:-1]
        puts: dict[bytes, Entry] = {}
        for key in chance.sample(range(12), chance.randint(0, 6)):
            self._seq += 1
            puts[b"k%d" % key] = entry.pack(self._seq, chance.randbytes(chance.randint(0, 40)))
        return Persist(
            chain,
            epochs[-1],
            chance.randbytes(20),
            puts,
            tuple(b"k%d" % chance.randrange(12) for _ in range(chance.randint(0, 3))),
            replace=chance.random() < 0.1,
            relabel_from=relabel_from,
            drop=drop,
        )
