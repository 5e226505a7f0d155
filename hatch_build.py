"""Compiles the pure modules with mypyc: for a wheel that is asked to have them, and for a checkout.

    HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 uv build --wheel     # needs gcc and Python's headers
    python hatch_build.py DIRECTORY                       # extension modules alone, into DIRECTORY

The sources stay in the wheel. An extension module is found before a source of the same name, and
what it does is the same: mypyc checks the annotations while it runs, and calls past the
interpreter. Without asking a wheel has the sources only, and runs anywhere.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PURE: Final = ("crdt", "dataplane/fib", "mesh/core", "sim/core")
INTERPRETED: Final = (
    "mesh/core/errors.py",  # the shells derive from these, and from compiled classes none may
)
LIBRARY: Final = "weft_core"
"""All modules are in one library, so that they call each other directly. What is imported under
their names only leads there."""
OPTIMISATION: Final = "1"


def sources(root: Path) -> list[str]:
    """The modules that are compiled, below `root`, in order. A package's own module imports what
    is in it, and little else."""
    found = (path for folder in PURE for path in (root / folder).rglob("*.py"))
    names = (path.relative_to(root).as_posix() for path in found if path.name != "__init__.py")
    return sorted(name for name in names if name not in INTERPRETED)


def compile_into(out: Path) -> None:
    """Compile the modules below the working directory. Each lands in `out` where its source is
    here, the library itself at the top.

    Raises SystemExit for what mypyc does not take, OSError without a C compiler,
    subprocess.CalledProcessError where that fails.
    """
    from mypyc.build import mypycify

    with tempfile.TemporaryDirectory(prefix="weft-compile-") as work:
        extensions = mypycify(
            sources(Path()),
            opt_level=OPTIMISATION,
            debug_level="0",
            multi_file=True,  # for as many compilers at a time as there are cores
            target_dir=work,
            group_name=LIBRARY,
        )
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            made = [
                (extension.name, [pool.submit(_compile, extension, c) for c in extension.sources])
                for extension in extensions
            ]
            for name, objects in made:
                _link(name, [each.result() for each in objects], out)


def _compile(extension: Any, source: str) -> str:
    """The object file. Raises subprocess.CalledProcessError; OSError without a compiler."""
    made = f"{source}.o"
    includes = [*extension.include_dirs, sysconfig.get_path("include")]
    flags = [*_words("CFLAGS"), *_words("CCSHARED"), *extension.extra_compile_args]
    command = [*_words("CC"), *flags, *(f"-I{path}" for path in includes), "-c", source, "-o", made]
    subprocess.run(command, check=True)
    return made


def _link(name: str, objects: list[str], out: Path) -> None:
    path = out / f"{name.replace('.', '/')}{sysconfig.get_config_var('EXT_SUFFIX')}"
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([*_words("LDSHARED"), "-s", *objects, "-o", str(path)], check=True)


def _words(name: str) -> list[str]:
    """What Python itself was built with."""
    return shlex.split(sysconfig.get_config_var(name) or "")


class CompiledCore(BuildHookInterface[Any]):
    """Adds the compiled modules to a wheel, beside their sources."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """`version` is that of the target: an editable wheel stays one of sources."""
        if version == "editable":
            return
        self._out = tempfile.TemporaryDirectory(prefix="weft-wheel-")
        out = Path(self._out.name)
        compile_into(out)
        for path in sorted(out.rglob("*.*")):
            build_data["force_include"][str(path)] = path.relative_to(out).as_posix()
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            self._out.cleanup()


if __name__ == "__main__":
    compile_into(Path(sys.argv[1]))
