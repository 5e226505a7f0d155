"""The pure modules compiled, for this checkout: made when first asked for, and kept.

Compiled code lies in `.cache/compiled/DIGEST`, where the digest is over all that it is made of. So
what was compiled from other sources is never imported, and an ordinary Python in this checkout
imports the sources, as it did.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Final

import hatch_build

ROOT: Final = Path(hatch_build.__file__).parent
TREES: Final = ROOT / ".cache" / "compiled"
KEPT_MAX: Final = 4
"""Trees, the one in use with them: of branches that one goes back and forth between. 10 MB each."""
STARTUP: Final = Path(__file__).with_name("sitecustomize.py")


class NoCompiler(Exception):
    """What is missing on this machine."""


def environment() -> dict[str, str]:
    """Of a process that imports the compiled modules, and that of its children.

    Compiles if need be, which takes a minute. Raises NoCompiler; RuntimeError where mypyc or the C
    compiler refuse what is here.
    """
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(_tree()), before)))}


def environment_if_any() -> dict[str, str]:
    """That; or without a C compiler, which is said, this process's own."""
    try:
        return environment()
    except NoCompiler as missing:
        sys.stderr.write(f"interpreted, not compiled: {missing} is missing\n")
        return dict(os.environ)


def make_beside() -> subprocess.Popen[bytes]:
    """Have it compiled by a process of its own, which gives way to all others. Who asks for the
    environment before that is done waits."""
    command = ["nice", "-n", "19", sys.executable, "-m", "tests.compiled", "-c", "pass"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)


def _tree() -> Path:
    tree = TREES / _digest()
    TREES.mkdir(parents=True, exist_ok=True)
    with (TREES / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the others wait for the one who makes it
        if not tree.is_dir():
            _check_compiler()
            _make(tree)
        os.utime(tree)
    return tree


def _digest() -> str:
    """Over sources, what compiles them and how."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    python = (sys.version, sysconfig.get_config_var("EXT_SUFFIX"))
    found = hashlib.sha256(repr((python, version("mypy"), options)).encode())
    ours = [Path(hatch_build.__file__), STARTUP]
    for path in [*ours, *(ROOT / name for name in hatch_build.sources(ROOT))]:
        found.update(f"\0{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:16]


def _check_compiler() -> None:
    compiler, *_ = shlex.split(sysconfig.get_config_var("CC"))
    if shutil.which(compiler) is None:
        raise NoCompiler(compiler)
    if not (header := Path(sysconfig.get_path("include"), "Python.h")).exists():
        raise NoCompiler(str(header))


def _make(tree: Path) -> None:
    sys.stderr.write("compiling the pure modules, for a minute\n")
    partial = tree.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    command = [sys.executable, hatch_build.__file__, str(partial)]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        errors = [line for line in done.stdout.splitlines() if ": warning: " not in line]
        raise RuntimeError("\n".join([shlex.join(command), *errors[-20:]]))
    shutil.copy(STARTUP, partial)
    partial.rename(tree)
    trees = [path for path in TREES.iterdir() if path.is_dir()]
    for old in sorted(trees, key=lambda path: path.stat().st_mtime)[:-KEPT_MAX]:
        shutil.rmtree(old)
