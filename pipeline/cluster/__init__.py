"""Dask clusters, and the sliding window through which tasks reach them.

The only importer of `dask.distributed`, dask-jobqueue and dask-kubernetes. A cluster starts when
the first task is submitted, so a run that finds nothing to do starts none.
"""

from pipeline.cluster.connection import connect
from pipeline.cluster.machine import cpu_count, n_gpus, worker_folder
from pipeline.cluster.spec import (
    AddressSpec,
    AnyCluster,
    BatchSpec,
    ClusterSpec,
    KubernetesSpec,
    LocalSpec,
    SshSpec,
    TlsSpec,
    override,
)
from pipeline.cluster.window import Device, Executor, Outcome, Task, describe_failure, executor

__all__ = [
    "AddressSpec",
    "AnyCluster",
    "BatchSpec",
    "ClusterSpec",
    "Device",
    "Executor",
    "KubernetesSpec",
    "LocalSpec",
    "Outcome",
    "SshSpec",
    "Task",
    "TlsSpec",
    "connect",
    "cpu_count",
    "describe_failure",
    "executor",
    "n_gpus",
    "override",
    "worker_folder",
]
