"""Figures and the HTML report, from a store's results alone: nothing is computed anew.

Importing this room imports neither torch nor dask.distributed; matplotlib and jinja2 only when a
report is written.
"""

from pipeline.report.write import (
    Report,
    default_folder,
    findings,
    is_current,
    notes,
    write_report,
)

__all__ = ["Report", "default_folder", "findings", "is_current", "notes", "write_report"]
