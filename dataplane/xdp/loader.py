"""Compiles the programs, loads them, pins them, and exits: `python -m dataplane.xdp.loader DIR`.

A process of its own, because BCC brings a compiler of over 100 MB into it. DIR is an instance's
pin directory, whose maps are there already. The programs appear in it one by one, each atomically
in place of its predecessor. Prints one JSON line `{"frags": bool}`; on an error, the reason goes to
stderr and the exit status is 1.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from dataplane.xdp import headers, kernel, layout

SOURCE_DIR = Path(__file__).parent / "bpf"
_INCLUDE = re.compile(r'^#include "([a-z_]+\.h)"$', re.MULTILINE)
_LOOKUP = re.compile(r"\bLOOKUP\((\w+),\s*([^()]+)\)")


def source() -> str:
    """The whole program text: our headers inlined, look-ups in BCC's form, assertions at the end.

    BCC rewrites look-ups in the main file only, and not inside macros; hence both substitutions.
    """
    text = (SOURCE_DIR / "weft.c").read_text()
    text = _INCLUDE.sub(lambda match: (SOURCE_DIR / match.group(1)).read_text(), text)
    return _LOOKUP.sub(r"\1.lookup(\2)", text) + layout.assertions()


def compile_programs(pin_dir: Path) -> dict[str, bytes]:
    """Instructions of each program, relocated to this process's descriptors of the pinned maps.

    The compiler object has to live on until they are loaded, so it is kept for the process's life.
    """
    with tempfile.TemporaryDirectory(prefix="weft-headers-") as tree:
        headers.make_tree(Path(tree))
        os.environ["BCC_KERNEL_SOURCE"] = tree
        from bcc import BPF

        flags = [f'-DPIN_DIR="{pin_dir}"', *headers.search_paths()]
        compiled: Any = BPF(text=source().encode(), cflags=flags)
    _keep_alive.append(compiled)
    return {name: bytes(compiled.dump_func(name.encode())) for name in layout.PROGRAMS}


_keep_alive: list[Any] = []


def load(name: str, instructions: bytes) -> tuple[int, bool]:
    """Load a program, with multi-buffer support where the kernel has it (MTU above 3,506)."""
    try:
        return kernel.prog_load(instructions, name, flags=kernel.XDP_HAS_FRAGS), True
    except OSError as error:
        if error.errno != errno.EINVAL:
            return kernel.prog_load(instructions, name, flags=0, log=True), False
    return kernel.prog_load(instructions, name, flags=0, log=True), False


def main(arguments: list[str]) -> int:
    (pin_dir,) = (Path(argument) for argument in arguments)
    frags = True
    for name, instructions in compile_programs(pin_dir).items():
        fd, with_frags = load(name, instructions)
        frags = frags and with_frags
        # bpffs names have no dots, and a rename there replaces its target.
        fresh = pin_dir / f"new-{name}"
        fresh.unlink(missing_ok=True)
        kernel.pin(fd, str(fresh))
        fresh.rename(pin_dir / f"prog-{name}")
        os.close(fd)
    sys.stdout.write(json.dumps({"frags": frags}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
