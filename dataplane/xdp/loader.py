"""Compiles the programs, loads them, pins them, and exits: `python -m dataplane.xdp.loader`.

A process of its own, because BCC brings a compiler of over 100 MB into it, and because it takes
privileges that nothing else does (`privilege.py`). It reads one line, a hook and an instance's pin
directory, whose maps are there by then; at the end of its input it exits. The programs appear in it
one by one, each atomically in place of its predecessor. Prints one JSON line `{"frags": bool,
"compiled": bool}`, the latter false where they came from the cache (`cache.py`); on an error, the
reason goes to stderr and the exit status is 1.
"""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path

from dataplane.backend import Hook
from dataplane.xdp import ahead, cache, kernel, layout, programs
from dataplane.xdp.programs import Programs


def load(name: str, instructions: bytes) -> tuple[int, bool]:
    """Load a program, with multi-buffer support where the kernel has it (MTU above 3,506)."""
    if name in layout.PROGRAMS["tc"]:
        type = kernel.PROG_TYPE_SCHED_CLS
        return kernel.prog_load(instructions, name, flags=0, log=True, type=type), True
    try:
        return kernel.prog_load(instructions, name, flags=kernel.XDP_HAS_FRAGS), True
    except OSError as error:
        if error.errno != errno.EINVAL:
            return kernel.prog_load(instructions, name, flags=0, log=True), False
    return kernel.prog_load(instructions, name, flags=0, log=True), False


def load_all(made: Programs, pin_dir: Path) -> tuple[dict[str, int], bool]:
    """Descriptors of all programs on an instance's maps, and whether all take frags.

    Those that are loaded when another is refused stay open: the process ends soon.
    """
    maps = {name: kernel.get_pinned(str(pin_dir / f"map-{name}")) for name in layout.maps()}
    loaded = {name: load(name, code) for name, code in made.linked(maps).items()}
    return {name: fd for name, (fd, _) in loaded.items()}, all(f for _, f in loaded.values())


def load_any(pin_dir: Path, where: Path, hook: Hook = "xdp") -> tuple[dict[str, int], bool, bool]:
    """The same, of programs that were compiled before if there are any, and whether any were
    compiled now. What the kernel refuses of the former is compiled again; what was built ahead of
    time is taken or nothing is."""
    if (given := ahead.object_file()) is not None:
        return (*load_all(ahead.read(given, hook), pin_dir), False)
    name = cache.key(hook)
    kept = cache.read(where, name)
    if kept is not None:
        try:
            return (*load_all(kept, pin_dir), False)
        except OSError:
            cache.drop(where, name)
    made = programs.compiled(hook=hook)
    loaded = load_all(made, pin_dir)
    cache.keep(where, name, made)
    return (*loaded, True)


def main() -> int:
    line = sys.stdin.readline().strip()
    if not line:
        return 0
    told, path = line.split(" ", 1)
    hook: Hook = "tc" if told == "tc" else "xdp"
    pin_dir = Path(path)
    loaded, frags, compiled = load_any(pin_dir, cache.directory(), hook)
    for name, fd in loaded.items():
        # bpffs names have no dots, and a rename there replaces its target.
        fresh = pin_dir / f"new-{name}"
        fresh.unlink(missing_ok=True)
        kernel.pin(fd, str(fresh))
        fresh.rename(pin_dir / f"prog-{name}")
    sys.stdout.write(json.dumps({"frags": frags, "compiled": compiled}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
