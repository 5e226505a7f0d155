"""kill -9 of whole nodes in the middle of writes: what was acknowledged is there afterwards."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tests.mesh.node.processes import DEADLINE_S, Process, new_mesh, running

WRITERS = 4
WRITES_PER_S = 200.0
ADDRESSES = 60_000


@dataclass
class Acknowledged:
    """What the writers were told is written, and what they asked without an answer."""

    ips: set[str]
    lock: threading.Lock
    next: int = 0


def _write(node: Process, acknowledged: Acknowledged, stop: threading.Event) -> None:
    """One writer's share of the rate, until the node is gone or it is told to stop."""
    due_s = time.monotonic()
    while not stop.is_set():
        with acknowledged.lock:
            number = acknowledged.next % ADDRESSES
            acknowledged.next += 1
        ip = f"10.0.{number // 250 + 1}.{number % 250 + 2}"
        try:
            code, answer = node.ask("POST", "/v1/endpoints", {"vpc": "v", "ip": ip})
        except OSError:
            return
        assert code == 200, answer
        with acknowledged.lock:
            acknowledged.ips.add(ip)
        due_s += WRITERS / WRITES_PER_S
        stop.wait(max(0.0, due_s - time.monotonic()))


def kill_nodes(home: Path, count: int, seed: int) -> list[float]:
    """Kill a node `count` times under writes; seconds from each start to equal digests.

    Raises AssertionError when anything acknowledged is missing, there or at the other node.
    """
    chance = random.Random(seed)
    nodes = new_mesh(home, ["a1", "b1"])
    a, b = nodes["a1"], nodes["b1"]
    acknowledged = Acknowledged(set(), threading.Lock())
    back_s = []
    with running([a, b]):
        a.add_vpc("v", 7)
        subnet = {"name": "s", "vpc": "v", "cidr": "10.0.0.0/16", "sites": ["a", "b"]}
        assert a.ask("POST", "/v1/subnets", subnet)[0] == 200
        b.until(lambda: "v" in b.vpcs(), "the VPC")
        assert b.ask("POST", "/v1/endpoints", {"vpc": "v", "ip": "10.0.250.9"})[0] == 200
        for _ in range(count):
            stop = threading.Event()
            writers = [
                threading.Thread(target=_write, args=(a, acknowledged, stop))
                for _ in range(WRITERS)
            ]
            for writer in writers:
                writer.start()
            time.sleep(chance.uniform(0.2, 1.5))  # when the blow falls is left to chance
            a.kill()
            stop.set()
            for writer in writers:
                writer.join(DEADLINE_S)
            start_s = time.monotonic()
            a.start()
            _all_there(a, acknowledged, f"seed {seed}")
            a.until(lambda: _digests(a) == _digests(b), "equal digests")
            back_s.append(time.monotonic() - start_s)
            _all_there(b, acknowledged, f"seed {seed}")
    return back_s


def _all_there(node: Process, acknowledged: Acknowledged, hint: str) -> None:
    held = {endpoint["ip"] for endpoint in node.ask("GET", "/v1/endpoints?vpc=v")[1]}
    lost = acknowledged.ips - held
    assert not lost, f"{hint}: {node.name} has lost {len(lost)}, such as {sorted(lost)[:3]}"


def _digests(node: Process) -> dict[str, str]:
    return {name: shard["digest"] for name, shard in node.status()["shards"].items()}
