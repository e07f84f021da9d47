"""The Zarr store: layout, region writes, completion, reading. Knows no torch."""

from pipeline.store.store import Store, open_store

__all__ = ["Store", "open_store"]
