"""`python -m mesh.cli`: the same as `weft`."""

from __future__ import annotations

from mesh.cli import main

main()
