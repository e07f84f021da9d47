"""Storage below Zarr: folders and object stores, the lease, checksums, reading that raises."""

from pipeline.store.io import objects  # registers the URLs of object stores

__all__ = ["objects"]
