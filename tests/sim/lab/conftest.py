"""What the tests of the lab need of the machine, and names of labs that nobody else has."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType, ModuleType
from typing import Any

import pytest

from dataplane.backend import Unavailable
from dataplane.xdp import pins
from mesh.core.errors import NotReady
from sim.lab import netns, processes, state
from sim.lab.lab import Lab, check_machine
from sim.lab.state import State
from sim.lab.topology import LabSpec, Topology, plan

_numbers = itertools.count()


def need(present: bool, what: str) -> None:
    """Skip a test for want of something; where it has to be there (CI), fail."""
    if present:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI lacks {what}")
    pytest.skip(f"needs {what}")


def by_another(call: Callable[[], object]) -> None:
    """As by another command; raises what it raises."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(call).result()


def each_line_interrupted(call: Callable[[], object], *modules: ModuleType) -> Iterator[None]:
    """Call it again and again, with a Ctrl-C between its next two lines in one of the modules each
    time; yields while its KeyboardInterrupt is being handled, until there is no line left."""
    inside = {module.__file__ for module in modules}
    left = 0

    def at_a_line(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in inside:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                signal.raise_signal(signal.SIGINT)
        return at_a_line

    former = sys.gettrace()
    for line in itertools.count(1):
        left = line
        try:
            sys.settrace(at_a_line)
            call()
            sys.settrace(former)
            return
        except KeyboardInterrupt:
            sys.settrace(former)
            yield


@pytest.fixture
def root() -> None:
    need(os.geteuid() == 0, "root")
    need(shutil.which("nsenter") is not None, "nsenter (util-linux)")


@pytest.fixture
def lab_name() -> str:
    return f"t{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def built(root: None, lab_name: str) -> Iterator[Callable[..., Topology]]:
    """Make the namespaces and links of a lab, without nodes; they go at the end of the test."""
    made: list[Topology] = []

    def build(underlay: str = "ipv4", **size: int) -> Topology:
        spec = LabSpec(name=f"{lab_name}-{len(made)}", underlay=underlay, **size)
        topology = plan(spec)
        made.append(topology)
        netns.build(topology)
        return topology

    yield build
    for topology in made:
        netns.remove_namespaces(topology.namespaces())


@pytest.fixture
def nft(root: None) -> None:
    need(shutil.which("nft") is not None, "nft (nftables)")


@pytest.fixture
def stand_in_lab(root: None, nft: None, lab_name: str) -> Iterator[Lab]:
    """A lab whose nodes are `sleep`: everything about it but the mesh."""
    topology = plan(LabSpec(name=lab_name, sites=2, vpcs=1))
    state.make_directory(topology)
    try:
        netns.build(topology)
        current = State(topology, ready=True)
        for gateway in topology.gateways:
            log = state.lab_directory(lab_name) / gateway.name / "node.log"
            process = processes.spawn(gateway.netns, ["sleep", "300"], log=log)
            current = current.with_process(gateway.name, process)
        state.save(current)
        yield Lab.open(lab_name)
    finally:
        Lab.take_down(lab_name)


@pytest.fixture
def bpffs(root: None) -> None:
    try:
        pins.require_bpffs()
    except Unavailable as error:
        need(False, f"bpffs ({error})")


@pytest.fixture(scope="session")
def xdp() -> None:
    """What whole labs need: root, tools, and XDP programs that can be compiled and loaded."""
    try:
        check_machine()
    except NotReady as error:
        need(False, f"a machine for labs ({error})")
