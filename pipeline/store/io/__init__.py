"""Storage below Zarr: folders and object stores, the lease, checksums, reading that raises."""
