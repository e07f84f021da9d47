"""The exceptions that a person meets.

A message says what is wrong, where, why, and what to do. The command line prints it without a
traceback and exits with code 2.
"""

from __future__ import annotations


class ConsilienceError(Exception):
    """Base of every error raised on purpose."""


class InputError(ConsilienceError, ValueError):
    """A wrong input: a YAML file, an option, an argument, an array."""


class StoreError(ConsilienceError):
    """A store that is not ours, is newer, damaged, locked, or does not hold what was asked."""


class UnreadableError(ConsilienceError):
    """Something of a store that is there, and cannot be read now: this says nothing of damage."""


class LostError(StoreError):
    """A store that this run may no longer write: another one has it."""


class ModelError(ConsilienceError):
    """One model that cannot be built, loaded or run; the others go on without it."""


class ClusterError(ConsilienceError):
    """A cluster that is lost, has no workers left, or whose workers a task kills."""
