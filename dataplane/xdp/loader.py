"""Compiles the programs, loads them, pins them, and exits: `python -m dataplane.xdp.loader`.

A process of its own, because BCC brings a compiler of over 100 MB into it, and because it takes
privileges that nothing else does (`privilege.py`). It reads one line, an instance's pin directory,
whose maps are there by then; at the end of its input it exits. The programs appear in it one by
one, each atomically in place of its predecessor. Prints one JSON line `{"frags": bool}`; on an
error, the reason goes to stderr and the exit status is 1.
"""

from __future__ import annotations

import errno
import json
import os
import re
import struct
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataplane.xdp import headers, kernel, layout

SOURCE_DIR = Path(__file__).parent / "bpf"
INSTRUCTION_BYTES = 8
_LOAD_64 = 0x18  # BPF_LD | BPF_IMM | BPF_DW
_MAP_FD = 1  # BPF_PSEUDO_MAP_FD, in the upper half of the second byte
_IMMEDIATE = struct.Struct("=i")
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
    """Instructions of each program, with this process's descriptors of the pinned maps in them.

    BCC opens pinned maps by id, which takes CAP_SYS_ADMIN. So it makes maps of its own, which are
    exchanged for the pinned ones afterwards: that takes CAP_BPF only.
    """
    with tempfile.TemporaryDirectory(prefix="weft-headers-") as tree:
        headers.make_tree(Path(tree))
        os.environ["BCC_KERNEL_SOURCE"] = tree
        from bcc import BPF

        compiled: Any = BPF(text=source().encode(), cflags=headers.search_paths())
    maps = {}
    for name in layout.maps():
        fd = kernel.get_pinned(str(pin_dir / f"map-{name}"))
        own = int(compiled[name.encode()].map_fd)
        _require_alike(name, kernel.map_info(own), kernel.map_info(fd))
        maps[own] = fd
    return {
        name: exchanged(bytes(compiled.dump_func(name.encode())), maps) for name in layout.PROGRAMS
    }


def _require_alike(name: str, compiled: kernel.MapInfo, pinned: kernel.MapInfo) -> None:
    shapes = [(info.type, info.key_bytes, info.value_bytes) for info in (compiled, pinned)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"map {name} is (type, key, value) {shapes[1]}, programs have {shapes[0]}")


def exchanged(instructions: bytes, maps: Mapping[int, int]) -> bytes:
    """The instructions with other maps, by descriptor. KeyError for one that is not known.

    A reference is a load of 64 bits in two instructions, whose first has the descriptor for its
    immediate (`struct bpf_insn` in linux/bpf.h).
    """
    changed = bytearray(instructions)
    for at in range(0, len(changed), INSTRUCTION_BYTES):
        if changed[at] == _LOAD_64 and changed[at + 1] >> 4 == _MAP_FD:
            (fd,) = _IMMEDIATE.unpack_from(changed, at + 4)
            _IMMEDIATE.pack_into(changed, at + 4, maps[fd])
    return bytes(changed)


def load(name: str, instructions: bytes) -> tuple[int, bool]:
    """Load a program, with multi-buffer support where the kernel has it (MTU above 3,506)."""
    try:
        return kernel.prog_load(instructions, name, flags=kernel.XDP_HAS_FRAGS), True
    except OSError as error:
        if error.errno != errno.EINVAL:
            return kernel.prog_load(instructions, name, flags=0, log=True), False
    return kernel.prog_load(instructions, name, flags=0, log=True), False


def main() -> int:
    line = sys.stdin.readline().strip()
    if not line:
        return 0
    pin_dir = Path(line)
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
    sys.exit(main())
