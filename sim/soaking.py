"""Many seeds of one scenario, over the cores of this machine or the workers of a Dask cluster.

What is found does not depend on how many run at a time, nor where: results are taken as they come
and counted in the order of their seeds, up to the first that fails.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import pickle
import re
import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, fields, is_dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final, Protocol

from mesh.core.errors import BadInput, NotReady
from sim.collecting import collect_run, few_collections
from sim.core.scenario import Scenario
from sim.core.simulation import Result, run
from sim.seeding import chance_of

PIECES_PER_WORKER: Final = 3
"""Pieces handed out ahead, so that no worker waits for the next one."""
PIECE_SEEDS_MAX: Final = 4
"""Seeds of one piece, so that progress is seen and a violation stops the rest soon."""
CONNECT_S: Final = 5.0
_ADDRESS: Final = re.compile(r"(?:(?:tcp|tls)://)?(?:\[[0-9a-fA-F:.]+\]|[^\s:/@]+):[0-9]{1,5}")
PACKAGES: Final = ("crdt", "mesh", "dataplane", "sim")


def run_piece(scenario: Scenario, seeds: range) -> list[Result]:
    """Up to the first that fails: those behind it count for nothing."""
    results: list[Result] = []
    with few_collections():
        for seed in seeds:
            results.append(run(scenario, seed, chance_of(seed)))
            collect_run()
            if not results[-1].ok:
                break
    return results


class _Packer(pickle.Pickler):
    """Values by their types and fields: compiled classes that are frozen do not say how else."""

    def reducer_override(self, value: Any) -> Any:
        if not is_dataclass(value) or isinstance(value, type):
            return NotImplemented
        return type(value), tuple(getattr(value, each.name) for each in fields(value))


def _packed(value: object) -> bytes:
    """For another process, and `pickle.loads` there."""
    out = io.BytesIO()
    _Packer(out, pickle.HIGHEST_PROTOCOL).dump(value)
    return out.getvalue()


def _run_packed(scenario: bytes, seeds: range) -> bytes:
    return _packed(run_piece(pickle.loads(scenario), seeds))  # noqa: S301  # of our own process


def _unpacked(results: bytes) -> list[Result]:
    found: list[Result] = pickle.loads(results)  # noqa: S301  # of processes that we started
    return found


class Pool(Protocol):
    """Who runs pieces."""

    workers: int

    def submit(self, seeds: range) -> None: ...

    def next(self) -> list[Result]:
        """A piece that is done; the earliest submitted need not be the first. Raises NotReady."""

    def close(self) -> None:
        """Stop, also what is under way."""


@dataclass(slots=True)
class Sweep:
    """What is known so far of the seeds of a range."""

    seeds: range
    done: int = 0
    """in the order of seeds, up to the first that fails; or, interrupted, all that were run"""
    writes: int = 0
    frames: int = 0
    faults: int = 0
    failed: Result | None = None
    _waiting: dict[int, Result] = field(default_factory=dict)
    _fingerprints: Any = field(default_factory=hashlib.sha256)

    @property
    def fingerprint(self) -> str:
        """Over every frame and flush of all runs counted: equal wherever they were run."""
        return str(self._fingerprints.hexdigest())

    @property
    def finished(self) -> bool:
        return self.failed is not None or self.done == len(self.seeds)

    @property
    def seen(self) -> int:
        """Results that have come, counted yet or not."""
        return self.done + len(self._waiting)

    def add(self, results: list[Result]) -> None:
        for result in results:
            self._waiting[result.seed] = result
        while self.failed is None and self.done < len(self.seeds):
            next_one = self._waiting.pop(self.seeds[self.done], None)
            if next_one is None:
                break
            self._count(next_one)

    def interrupted(self) -> None:
        """Nothing comes any more: count what came out of order, too."""
        for seed in sorted(self._waiting):
            if self.failed is None:
                self._count(self._waiting[seed])
        self._waiting.clear()

    def _count(self, result: Result) -> None:
        self.done += 1
        self.writes += result.writes
        self.frames += result.frames
        self.faults += result.faults
        self._fingerprints.update(bytes.fromhex(result.fingerprint))
        if not result.ok:
            self.failed = result


def sweep(pool: Pool, into: Sweep) -> Iterator[None]:
    """Run the seeds; one step for each piece that came. Raises NotReady when the pool is lost."""
    pieces = _pieces(into.seeds, pool.workers)
    under_way = 0
    failing = False
    while not into.finished:
        while not failing and under_way < pool.workers * PIECES_PER_WORKER:
            piece = next(pieces, None)
            if piece is None:
                break
            pool.submit(piece)
            under_way += 1
        results = pool.next()
        under_way -= 1
        # One of the pieces before may fail at a lower seed: these are waited for.
        failing = failing or not all(result.ok for result in results)
        into.add(results)
        yield


def _pieces(seeds: range, workers: int) -> Iterator[range]:
    size = min(PIECE_SEEDS_MAX, len(seeds) // (workers * PIECES_PER_WORKER)) if workers > 1 else 1
    size = max(size, 1)
    for start in range(0, len(seeds), size):
        yield seeds[start : start + size]


class Here:
    """In this process: for one job."""

    workers = 1

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._seeds: list[range] = []

    def submit(self, seeds: range) -> None:
        self._seeds.append(seeds)

    def next(self) -> list[Result]:
        return run_piece(self._scenario, self._seeds.pop(0))

    def close(self) -> None:
        self._seeds.clear()


class Cores:
    """Processes of this machine."""

    def __init__(self, scenario: Scenario, jobs: int) -> None:
        self.workers = jobs
        self._scenario = _packed(scenario)
        self._before = multiprocessing.active_children()
        self._pool = ProcessPoolExecutor(jobs, initializer=_undisturbed)
        self._futures: set[Future[bytes]] = set()

    def children(self) -> list[BaseProcess]:
        return [c for c in multiprocessing.active_children() if c not in self._before]

    def submit(self, seeds: range) -> None:
        self._futures.add(self._pool.submit(_run_packed, self._scenario, seeds))

    def next(self) -> list[Result]:
        done, _ = wait(self._futures, return_when=FIRST_COMPLETED)
        future = done.pop()
        self._futures.remove(future)
        try:
            packed = future.result()
        except BrokenProcessPool:
            raise NotReady(
                "a process of the soak was killed, perhaps for want of memory: use fewer --jobs"
            ) from None
        return _unpacked(packed)

    def close(self) -> None:
        # A run may take minutes: what is under way is not waited for. The pool's own thread reaps
        # the processes: of two who wait for one, the one who comes late is told nothing.
        for child in self.children():
            child.terminate()
        self._pool.shutdown(cancel_futures=True)


def _undisturbed() -> None:
    """Ctrl-C is for whoever started the processes; they are ended by it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Cluster:
    """The workers of a Dask cluster."""

    def __init__(self, scenario: Scenario, address: str) -> None:
        """Raises BadInput (the extra is missing, no address), NotReady (nobody there to run)."""
        distributed = _dask()
        if not _ADDRESS.fullmatch(address):
            raise BadInput(f"--dask: {address!r}: write tcp://HOST:8786, as its scheduler says")
        self._scenario = _packed(scenario)
        self._address = address
        try:
            self._client = distributed.Client(address, timeout=CONNECT_S)
        except (OSError, TimeoutError):
            raise NotReady(
                f"--dask: {address}: no scheduler answers there within {CONNECT_S:g} s:"
                " start one with `dask scheduler`, or mend the address"
            ) from None
        try:
            self.workers = self._check_workers()
        except BaseException:
            self.close()
            raise
        self._done = distributed.as_completed()
        self._under_way: set[Any] = set()

    def _check_workers(self) -> int:
        """How many pieces they run at a time. Raises NotReady unless they run this very code."""
        threads: dict[str, int] = self._client.nthreads()
        if not threads:
            raise NotReady(
                f"--dask: {self._address}: the cluster has no workers: start some with"
                f" `dask worker {self._address}`"
            )
        for worker, answer in self._client.run(code_digest, on_error="return").items():
            if isinstance(answer, Exception):
                raise NotReady(
                    f"--dask: worker {worker} cannot run this ({type(answer).__name__}: {answer}):"
                    " install the same weft there"
                )
            if answer != code_digest():
                raise NotReady(
                    f"--dask: worker {worker} has another version of weft: install the same there"
                )
        return sum(threads.values())

    def submit(self, seeds: range) -> None:
        future = self._client.submit(_run_packed, self._scenario, seeds, pure=False)
        self._under_way.add(future)
        self._done.add(future)

    def next(self) -> list[Result]:
        future = next(self._done)
        self._under_way.discard(future)
        try:
            packed: bytes = future.result()
        except Exception as error:
            raise NotReady(
                f"--dask: {self._address}: the cluster failed"
                f" ({type(error).__name__}: {error}): see its scheduler's log"
            ) from None
        return _unpacked(packed)

    def close(self) -> None:
        for future in getattr(self, "_under_way", ()):
            future.cancel()
        self._client.close(timeout=CONNECT_S)


def _dask() -> Any:
    """The library. Raises BadInput."""
    import logging

    try:
        import distributed
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("distributed", "dask"):
            raise
        raise BadInput(
            "--dask: Dask is not installed here: pip install 'weft[dask]', or leave --dask out"
        ) from None
    # What it has to say is said in the error.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    return distributed


def code_digest() -> str:
    """Over all of our code, here: who runs the same finds the same."""
    root = Path(__file__).parents[1]
    found = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def pool_for(scenario: Scenario, seeds: range, jobs: int, dask: str | None) -> Pool:
    """Raises BadInput, NotReady."""
    if dask is not None:
        return Cluster(scenario, dask)
    jobs = min(jobs, len(seeds))
    return Here(scenario) if jobs == 1 else Cores(scenario, jobs)
