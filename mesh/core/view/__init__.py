"""The deterministic reading of all records: see `mesh.core.view.view`."""

from mesh.core.view.types import (
    Conflict,
    Endpoint,
    Gateway,
    Peering,
    Subnet,
    ViewDelta,
    Vpc,
)
from mesh.core.view.view import DeltaReader, View

__all__ = [
    "Conflict",
    "DeltaReader",
    "Endpoint",
    "Gateway",
    "Peering",
    "Subnet",
    "View",
    "ViewDelta",
    "Vpc",
]
