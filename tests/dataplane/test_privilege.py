"""What a node that runs may do: what it needs, in every thread, and its programs are as fast."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dataplane.xdp import kernel, privilege, programs
from dataplane.xdp.privilege import NEEDED, Capability

ROOT = Path(privilege.__file__).parents[2]
UNIT = ROOT / "systemd/weft.service"

NODE = """
import json, os, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from dataplane.backend import Capacity
from dataplane.fib.rows import Tables
from dataplane.xdp import loading, privilege
from dataplane.xdp.backend import XdpBackend
if sys.argv[3] == "prepared":
    loading.prepare()
privilege.give_away_all_but()
def opened():
    backend = XdpBackend.open(instance=sys.argv[1], underlay=sys.argv[2], capacity=Capacity(64))
    backend.replace(Tables())
with ThreadPoolExecutor(1) as threads:
    threads.submit(opened).result()
    tasks = list(Path("/proc/self/task").iterdir())
    assert len(tasks) > 1
    statuses = [(task / "status").read_text() for task in tasks]
read = [line.split() for status in statuses
        for line in status.splitlines() if line.startswith("Cap")]
child = os.popen("grep ^Cap /proc/self/status").read().splitlines()
print(json.dumps([read, [line.split() for line in child], privilege.missing()]))
"""


def start(gateway: Any, how: str) -> Any:
    """Open a data plane as a node does, in a process of its own that then ends."""
    command = [sys.executable, "-c", NODE, gateway.instance, gateway.underlay, how]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )

    done = gateway.run(run)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def jited_bytes(gateway: Any, program: str) -> int:
    fd = kernel.get_pinned(str(gateway.pin_dir / f"prog-{program}"))
    try:
        return kernel.prog_info(fd).jited_bytes
    finally:
        os.close(fd)


def test_a_node_holds_what_it_needs_and_loads_programs_without_guards(site_pair: Any) -> None:
    gateway = site_pair.a
    kept = sum(1 << capability for capability in NEEDED)
    sizes = {}
    for how in ("prepared", "alone"):
        threads, child, missing = start(gateway, how)
        assert not missing
        for name, bits in [*threads, *child]:
            expected = 0 if name in ("CapInh:", "CapAmb:") else kept
            assert int(bits, 16) == expected, (name, bits)
        sizes[how] = jited_bytes(gateway, "xdp_pod")
        for path in gateway.pin_dir.glob("link-*"):
            path.unlink()
    assert sizes["prepared"] < sizes["alone"], "the loader had CAP_PERFMON"


def test_what_is_missing_has_names() -> None:
    assert privilege.missing(()) == []
    code = (
        "from dataplane.xdp import privilege\n"
        "privilege.give_away_all_but(())\n"
        "print(privilege.missing())\n"
        "privilege.give_away_all_but()\n"
        "print(privilege.missing())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split("\n")[:2] == [str([c.name for c in NEEDED])] * 2, done.stderr


def test_a_loader_that_is_not_asked_ends() -> None:
    code = (
        "from dataplane.xdp import loading\n"
        "loading.prepare()\n"
        "process = loading._waiting[0]\n"
        "loading.dismiss()\n"
        "print(process.returncode, loading._waiting)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "0 []\n", done.stderr


def test_map_references_are_exchanged_and_nothing_else() -> None:
    load, value = bytes([0x18, 0x11, 0, 0]), bytes([0x18, 0x01, 0, 0])
    second, move = bytes(8), bytes([0xB7, 0x10, 0, 0, 5, 0, 0, 0])
    five, nine = (number.to_bytes(4, "little") for number in (5, 9))
    program = load + five + second + value + five + second + move
    assert programs.exchanged(program, {5: 9}) == (
        load + nine + second + value + five + second + move
    )
    with pytest.raises(KeyError):
        programs.exchanged(program, {6: 9})


def test_the_unit_allows_what_is_needed_and_no_more(tmp_path: Path) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    service = unit["Service"]
    allowed = set(service["CapabilityBoundingSet"].split())
    assert allowed == {c.name for c in (*NEEDED, Capability.CAP_PERFMON)}
    assert service["NoNewPrivileges"] == "yes"
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("systemd-analyze is not here (Debian: apt install systemd)")
    weft = Path(sys.executable).with_name("weft")
    copy = tmp_path / "weft.service"
    copy.write_text(UNIT.read_text().replace("/usr/local/bin/weft", str(weft)))
    done = subprocess.run([verify, "verify", "--man=no", str(copy)], capture_output=True, text=True)
    assert done.returncode == 0 and "weft.service" not in done.stderr, done.stderr
