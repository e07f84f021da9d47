"""Packages of others that serve as oracles and need care to import."""

import tempfile
from pathlib import Path

from filelock import FileLock

# numba compiles dcor when it is first imported; two test processes that did so at once have crashed
with FileLock(Path(tempfile.gettempdir()) / "consilience-tests-dcor.lock"):
    import dcor

__all__ = ["dcor"]
