"""Figures and the HTML report, made from what a store holds.

Importing this package imports neither torch nor dask.distributed, and matplotlib and jinja2 only
once a report is written.
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
