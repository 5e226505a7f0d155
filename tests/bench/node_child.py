"""`python -m tests.bench.node_child WEFT_TOML`: a whole node that also does what a bench asks.

It is the node of `weft run` with its API, links and store. Beside it one task reads a line of JSON
from stdin, does it, and answers with a line on stdout. Times are nanoseconds of CLOCK_MONOTONIC,
which all processes of a machine share.
"""

from __future__ import annotations

import gc
import json
import logging
import resource
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import trio

from mesh.core import keys, model
from mesh.core.ops import MESH_SHARD, Put
from mesh.node.api import serve
from mesh.node.config import read_config
from mesh.node.memory import give_back
from mesh.node.node import Node
from mesh.node.p2p.events import Channel, PeerUp
from mesh.node.p2p.link import now_ns

FILL_BATCH = 1000
LOOK_S = 0.002
CUT_S = 3600.0


class Steps(trio.abc.Instrument):
    """The longest step of any task, in CPU time of trio's thread, and which task's it was."""

    def __init__(self) -> None:
        self._began_s = time.thread_time()
        self.longest_ms = 0.0
        self.task = ""
        self._collecting_s = 0.0
        self.collection_ms = 0.0
        """the longest collection of garbage, which is in some task's step"""

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began_s = time.thread_time()

    def collects(self, phase: str, _info: dict[str, int]) -> None:
        """For `gc.callbacks`."""
        if phase == "start":
            self._collecting_s = time.thread_time()
        else:
            spent_ms = (time.thread_time() - self._collecting_s) * 1e3
            self.collection_ms = max(self.collection_ms, spent_ms)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        spent_ms = (time.thread_time() - self._began_s) * 1e3
        if spent_ms > self.longest_ms:
            self.longest_ms, self.task = spent_ms, task.name


class Child:
    """The node, and what a bench asks of it. Each public method is one request."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._reader = node.view.reader()
        self._seen_ns: dict[str, int] = {}
        self._linked_ns = 0
        self._steps_ms: list[tuple[float, float]] = []
        self._steps: Steps | None = None
        self._looking = trio.Event()
        self._pushed_ns: list[int] = []
        self._hook()

    def _hook(self) -> None:
        """Note when the view has taken a change, right after it has, when a push was given to a
        link, and the first link: in the shell, since what is compiled cannot be hooked."""
        met = self._node.neighbours.met

        def linked(up: PeerUp) -> None:
            self._linked_ns = self._linked_ns or time.monotonic_ns()
            met(up)

        self._node.neighbours.met = linked  # type: ignore[method-assign]
        absorb: Callable[[], None] = self._node._absorb

        def noting() -> None:
            absorb()
            at_ns = time.monotonic_ns()
            for vpc, changed in self._reader.take().endpoints.items():
                if len(changed) < FILL_BATCH:  # a bulk is counted, not timed
                    for key in changed:
                        self._seen_ns.setdefault(f"{vpc}/{key.hex()}", at_ns)

        self._node._absorb = noting  # type: ignore[method-assign]
        send = self._node.transport.send

        def sending(peer: bytes, frame: bytes, channel: Channel = "push") -> None:
            if channel == "push":
                self._pushed_ns.append(time.monotonic_ns())
            send(peer, frame, channel)

        self._node.transport.send = sending  # type: ignore[method-assign, assignment]

    async def look(self) -> None:
        """How long the loop keeps others waiting, once `pauses` has been asked for."""
        await self._looking.wait()
        last_s, last_cpu_s = time.perf_counter(), time.thread_time()
        while True:
            await trio.sleep(LOOK_S)
            at_s, cpu_s = time.perf_counter(), time.thread_time()
            self._steps_ms.append(((at_s - last_s - LOOK_S) * 1e3, (cpu_s - last_cpu_s) * 1e3))
            last_s, last_cpu_s = at_s, cpu_s

    # ---- requests ----

    async def ready(self) -> bool:
        return self._node.replica.writable and self._node.id in self._node.view.gateways

    async def peers(self) -> int:
        return len(self._node.transport.peers())

    async def vpc(self, names: list[str], sites: list[str]) -> list[str]:
        """Make VPCs with a subnet of all sites; their ids."""
        node, ids = self._node, []
        for number, name in enumerate(names, 1):
            at_ns = time.time_ns()
            await node.submit(
                lambda: node.writer.add_vpc(name, number, ["10.0.0.0/8"], now_ns=at_ns)  # noqa: B023
            )
            await node.submit(
                lambda: node.writer.add_subnet("all", name, "10.0.0.0/8", sites, now_ns=at_ns)  # noqa: B023
            )
            ids.append(node.view.vpc(name).id)
        return ids

    async def vpcs(self) -> int:
        return len(self._node.view.vpcs)

    async def fill(self, vpc: str, first: int, count: int) -> float:
        """Claim `count` addresses from 10.0.0.0 + `first` on; seconds until all are durable."""
        start_s = time.perf_counter()
        for base in range(first, first + count, FILL_BATCH):
            ops = [_claim(vpc, i) for i in range(base, min(base + FILL_BATCH, first + count))]
            await self._node.submit(lambda ops=ops: ops)  # type: ignore[misc]
        return time.perf_counter() - start_s

    async def add(self, vpc: str, first: int, count: int, gap_s: float) -> dict[str, Any]:
        """Claim addresses one by one, one every `gap_s`: when each was asked for and acknowledged,
        and when the first push after that was sent.

        Late ones are not waited for: the next is asked for at its time all the same.
        """
        asked: dict[str, int] = {}
        acknowledged: dict[str, int] = {}
        node = self._node

        async def one(index: int) -> None:
            op = _claim(vpc, index)
            name = f"{vpc}/{op.key.hex()}"
            asked[name] = time.monotonic_ns()
            await node.submit(lambda: [op])
            acknowledged[name] = time.monotonic_ns()

        begin_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            for i in range(count):
                await trio.sleep_until(begin_s + i * gap_s)
                nursery.start_soon(one, first + i)
        pushed, left = self._pushed_ns, {}
        for name, at_ns in asked.items():
            after = bisect_left(pushed, at_ns)
            if after < len(pushed):
                left[name] = pushed[after]
        pushed.clear()
        return {"asked": asked, "acknowledged": acknowledged, "left": left}

    async def seen(self) -> dict[str, int]:
        """When each address was first in the view."""
        return self._seen_ns

    async def seen_count(self) -> int:
        return len(self._seen_ns)

    async def forget_seen(self) -> None:
        self._seen_ns.clear()

    async def records(self) -> int:
        return self._records()

    def _records(self) -> int:
        lattice = self._node.replica.lattice
        return sum(
            len(branch.live)
            for shard in lattice.shards()
            if shard != MESH_SHARD
            for id in lattice.chains(shard)
            for branch in lattice.branches(id)
        )

    async def until_records(self, count: int) -> dict[str, int]:
        """When the first link came up, and when the view holds so many endpoints and the store,
        too."""
        while self._records() < count or self._node.replica.holdings.touched:
            await trio.sleep(0.02)
        await self._node.durable()
        return {"linked_ns": self._linked_ns, "done_ns": time.monotonic_ns()}

    async def digests(self) -> list[str]:
        lattice = self._node.replica.lattice
        return [f"{shard} {lattice.digest(shard).hex()}" for shard in lattice.shards()]

    async def cut(self, names: list[str]) -> None:
        """Have no link with these nodes from now on."""
        for member in list(self._node.replica.roster.members().values()):
            if member.name in names:
                self._node.transport.drop(member.node, "cut by the bench", CUT_S)

    async def heal(self) -> None:
        transport = self._node.transport
        for node in self._node.replica.roster.members():
            transport._overlay.block(node, now_ns())
        transport._dialler.wake()

    async def pauses(self) -> dict[str, Any]:
        """Since the last call, ms: the longest wait for the loop, the most CPU time that it took
        between two looks, the longest step of one task, and which. The first call begins it."""
        self._looking.set()
        steps, self._steps_ms = self._steps_ms, []
        longest, self._steps = self._steps, Steps()
        if longest is not None:
            trio.lowlevel.remove_instrument(longest)
            gc.callbacks.remove(longest.collects)
        trio.lowlevel.add_instrument(self._steps)
        gc.callbacks.append(self._steps.collects)
        return {
            "wall_ms": max((wall_ms for wall_ms, _ in steps), default=0.0),
            "cpu_ms": max((cpu_ms for _, cpu_ms in steps), default=0.0),
            "step_ms": 0.0 if longest is None else longest.longest_ms,
            "task": "" if longest is None else longest.task,
            "collection_ms": 0.0 if longest is None else longest.collection_ms,
        }

    async def usage(self) -> dict[str, float]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        status = Path("/proc/self/status").read_text()
        resident_kib = int(status.partition("VmRSS:")[2].split()[0])
        return {"cpu_s": used.ru_utime + used.ru_stime, "rss_mb": resident_kib / 1024}


def _claim(vpc: str, index: int) -> Put:
    """The claim of the address 10.0.0.0 + `index`; 40 bytes, as an endpoint with MAC and name."""
    addr = bytes((10, index >> 16 & 0xFF, index >> 8 & 0xFF, index & 0xFF))
    mac = "02:" + ":".join(f"{part:02x}" for part in (index >> 24 & 0xFF, *addr))
    hlc = time.time_ns() // 1_000_000 << 16
    record = model.encode(model.Claim(0, hlc, mac, f"w-{index:014}"))
    return Put(vpc, keys.pack(keys.EndpointKey(addr)), record)


async def main(args: Sequence[str]) -> None:
    (path,) = args
    node = Node(read_config(Path(path)))
    child = Child(node)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run, serve)
        nursery.start_soon(child.look)
        print(json.dumps("started"), flush=True)
        asked = trio.wrap_file(sys.stdin)
        async for line in asked:
            name, arguments = json.loads(line)
            if name == "stop":
                break
            print(json.dumps(await getattr(child, name)(**arguments)), flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    give_back()  # as `weft run` does
    logging.getLogger("weft").addHandler(logging.NullHandler())
    trio.run(main, sys.argv[1:])
