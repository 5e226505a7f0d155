"""What is seen of real nodes while they play a scenario: when each has which write, and what each
holds. Times are seconds of this machine's monotonic clock.

When a node has a write is heard through a watch of its API, at its writer as at the others, so what
the API takes is in both times and goes out. Writes are endpoints' claims: what is shown of them has
their dot.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from mesh.cli.client import LONG_TIMEOUT_S, Client, segments
from mesh.core.errors import RequestError
from sim.lab.nodes import Node

AGAIN_S: Final = 0.2
LOOK_S: Final = 0.05
"""How often nodes are asked what they hold while that is waited for."""

Heads = dict[tuple[str, str], int]
"""(node, shard) -> how far its chain is"""


class Ears:
    """A watch of every node, each in a thread of its own."""

    def __init__(self, weather: Callable[[], int]) -> None:
        """`weather` counts changes of what is wrong: a time across one is not taken."""
        self._weather = weather
        self._seen: dict[tuple[str, str], dict[str, tuple[float, int]]] = {}
        """(key, dot) -> node -> (when, weather): each shard has dots of its own"""
        self._shown: dict[tuple[str, str], str] = {}
        """(node, key) -> the dot that was shown last, if the endpoint is there"""
        self._lock = threading.Lock()
        self._over = threading.Event()

    def listen(self, node: Node) -> None:
        """From now on, however often it is started anew."""
        threading.Thread(target=self._listen, args=(node.name, node.api), daemon=True).start()

    def end(self) -> None:
        self._over.set()

    def push_s(self) -> list[float]:
        """How long each write took to each other node, ordered."""
        taken = []
        with self._lock:
            for (_, dot), nodes in self._seen.items():
                writer = dot.partition("/")[0]
                if writer not in nodes:
                    continue
                wrote_s, weather = nodes[writer]
                for node, (at_s, then) in nodes.items():
                    if node != writer and then == weather:
                        taken.append(max(0.0, at_s - wrote_s))
        return sorted(taken)

    def _listen(self, name: str, api: Client) -> None:
        while not self._over.is_set():
            try:
                watch = segments("watches", api.post("/v1/watches", {})["watch"])
                while not self._over.is_set():
                    rows = api.get(watch, timeout_s=LONG_TIMEOUT_S)
                    self._take(name, rows, time.monotonic())
            except RequestError:
                self._over.wait(AGAIN_S)  # it is down, or starts

    def _take(self, name: str, rows: Sequence[Mapping[str, Any]], now_s: float) -> None:
        weather = self._weather()
        with self._lock:
            for row in rows:
                key, value = row["key"], row["value"]
                if not key.startswith("endpoint/"):
                    continue
                before = self._shown.pop((name, key), None)
                if value is None:
                    continue
                dot = self._shown[name, key] = value["dot"]
                # A claim that others outranked is shown when they are gone, and came long before.
                if before is None or before == dot:
                    self._seen.setdefault((key, dot), {}).setdefault(name, (now_s, weather))


def quantile_s(ordered: Sequence[float], part: float) -> float | None:
    """As the simulator has it; None of nothing."""
    if not ordered:
        return None
    return round(ordered[min(int(len(ordered) * part), len(ordered) - 1)], 4)


def heads(api: Client) -> Heads:
    """How far a node is with every chain. Raises RequestError."""
    found: Heads = {}
    for chain in api.get("/v1/state/dump"):
        place = chain["node"], chain["shard"]
        found[place] = max(found.get(place, 0), chain["head"])
    return found


def greatest(of_nodes: Collection[Heads]) -> Heads:
    found: Heads = {}
    for of_node in of_nodes:
        for place, head in of_node.items():
            found[place] = max(found.get(place, 0), head)
    return found


def includes(held: Heads, wanted: Heads) -> bool:
    """Of the shards that the node keeps."""
    shards = {shard for _, shard in held}
    return all(held.get(place, 0) >= head for place, head in wanted.items() if place[1] in shards)


def differing(nodes: Collection[Node]) -> list[str]:
    """Of each shard that is not the same at all who keep it, who holds the same. Raises
    RequestError."""
    by_shard: dict[str, dict[str, list[str]]] = {}
    for node in nodes:
        for shard, held in node.api.get("/v1/status")["shards"].items():
            by_shard.setdefault(shard, {}).setdefault(held["digest"], []).append(node.name)
    return [
        f"shard {shard} differs: " + " | ".join(", ".join(names) for names in groups.values())
        for shard, groups in sorted(by_shard.items())
        if len(groups) > 1
    ]
