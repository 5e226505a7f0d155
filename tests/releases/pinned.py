"""Former releases, whole, to be run beside this one: `wire-N.tar.xz` is the last that spoke wire
version N and none above.

A pin holds what a node runs of its commit (the packages below), so that it is there without a
network, and in a clone without history. It is made once, before `wire.WIRE_VERSION` is raised:

    python -m tests.releases.pinned COMMIT

The same commit makes the same bytes (of one version of liblzma). A pin goes when this release
speaks its version no more.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from hashlib import sha256
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache" / "releases"
PACKAGES = ("crdt", "mesh", "dataplane")
_VERSION = re.compile(r"^WIRE_VERSION = (\d+)$", re.MULTILINE)


def file_of(version: int) -> Path:
    return HERE / f"wire-{version}.tar.xz"


def unpack(version: int) -> Path:
    """The directory from which `python -m mesh.cli` is the last release of that wire version. It
    stays: what is compiled in it is there for the next run."""
    packed = file_of(version).read_bytes()
    home = CACHE / f"wire-{version}-{sha256(packed).hexdigest()[:12]}"
    if not home.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=CACHE))
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(made)
        try:
            made.rename(home)
        except OSError:  # another run was faster
            shutil.rmtree(made)
    return home


def environment() -> dict[str, str]:
    """For its processes: none of this release's modules instead of its own, compiled or not."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def pin(commit: str) -> Path:
    """Make the pin of a commit of this repository; the file."""
    command = ["git", "archive", "--format=tar", commit, *PACKAGES]
    made = subprocess.run(command, cwd=HERE.parents[1], check=True, capture_output=True).stdout
    packed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(made)) as archive,
        tarfile.open(fileobj=packed, mode="w:xz", preset=9, format=tarfile.USTAR_FORMAT) as pinned,
    ):
        wire = archive.extractfile("mesh/core/wire.py")
        assert wire is not None
        found = _VERSION.search(wire.read().decode())
        assert found is not None, "the commit's mesh/core/wire.py names no WIRE_VERSION"
        files = [member for member in archive.getmembers() if member.isfile()]
        for member in sorted(files, key=lambda member: member.name):
            plain = tarfile.TarInfo(member.name)
            plain.size = member.size
            pinned.addfile(plain, archive.extractfile(member))
    path = file_of(int(found[1]))
    path.write_bytes(packed.getvalue())
    return path


if __name__ == "__main__":
    sys.stdout.write(f"{pin(*sys.argv[1:])}\n")
