"""The deterministic reading of all records: see `mesh.core.view.view`."""
