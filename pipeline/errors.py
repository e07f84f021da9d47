"""The exceptions that users see.

A message says what is wrong, where, why, and what to do. The command line prints it without a
traceback and exits with code 2.
"""

from __future__ import annotations

from collections.abc import Sequence


class ConsilienceError(Exception):
    """Base of every error raised on purpose."""


class InputError(ConsilienceError, ValueError):
    """An invalid YAML file, option, argument or array."""


class FaultyFileError(InputError):
    """YAML files with faults, which are listed one a line, each with file and line number.

    Parameters
    ----------
    faults
        One message for each fault, on one line.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__(tuple(faults))
        self.faults = tuple(faults)

    def __str__(self) -> str:
        if len(self.faults) == 1:
            return self.faults[0]
        return f"{len(self.faults)} faults:\n" + "\n".join(f"  {fault}" for fault in self.faults)


class _WithRemedy(ConsilienceError):
    """An error of two parts.

    Parameters
    ----------
    what
        What is wrong, and where; without its final full stop.
    remedy
        What to do about it, in whole sentences; may be empty.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what, remedy)  # both, so that it survives pickling
        self.what, self.remedy = what, remedy

    def __str__(self) -> str:
        return f"{self.what}. {self.remedy}".rstrip()


class StoreError(_WithRemedy):
    """A store that is foreign, newer, damaged or locked, or lacks what was asked for."""


class UnreadableError(_WithRemedy):
    """Part of a store that exists but cannot be read now; it need not be damaged."""


class LostError(StoreError):
    """A store that this run may no longer write, because another run holds its lock."""


class ModelError(ConsilienceError):
    """A model that cannot be built, loaded or run; a run continues without it."""


class ClusterError(ConsilienceError):
    """A cluster that is unreachable, has no workers left, or whose workers a task kills."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, with a full stop."""
    text = str(error).strip().split("\n")[0]
    return text if text.endswith((".", "?", "!")) else text + "."
