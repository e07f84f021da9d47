"""Write the report: figures as PNG, and one HTML file that holds them all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError
from pipeline.report import prose
from pipeline.report.findings import FINDINGS, findings_rows
from pipeline.report.layers import LAYER_MAPS
from pipeline.report.maps import ALIGNMENT_MAPS
from pipeline.report.measures import MEASURES
from pipeline.report.models import MODELS
from pipeline.report.provenance import PROVENANCE
from pipeline.report.results import ALWAYS, Results, load_results
from pipeline.report.section import Section, SectionMaker
from pipeline.report.templating import render
from pipeline.report.training import TRAINING
from pipeline.report.trends import TRENDS

if TYPE_CHECKING:
    from pipeline.store import Store

SECTIONS: tuple[SectionMaker, ...] = (
    FINDINGS,
    ALIGNMENT_MAPS,
    TRENDS,
    TRAINING,
    LAYER_MAPS,
    MODELS,
    MEASURES,
    PROVENANCE,
)
"""The page from top to bottom; sections of one chapter stand next to each other."""
COLUMNS = (
    "measure",
    "modality",
    "raw_final",
    "raw_init",
    "calibrated_final",
    "calibrated_init",
    "significant",
    "slope_raw",
    "slope_raw_low",
    "slope_raw_high",
    "slope_calibrated",
    "slope_calibrated_low",
    "slope_calibrated_high",
    "n_models",
    "n_pairs",
)
"""Keys of the rows of `findings`."""
PAGE = "index.html"
_HEAD = 1000  # characters at its beginning, among which is the digest of its inputs


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes
    ----------
    html
        The report: one file that needs no other.
    figures
        The figures in it, as PNG files beside it.
    """

    html: Path
    figures: list[Path]


def write_report(store: Store, folder: Path | None = None, *, subset: str | None = None) -> Report:
    """Write figures and an HTML report from what a store holds.

    Parameters
    ----------
    store
        An open store. It is only read.
    folder
        Where to write; created if missing. Default: beside the store, `quickstart.zarr` →
        `quickstart.report`, with a folder for each subset if the store has several.
    subset
        Key of the subset to report; may be omitted if the store has only one.

    Returns
    -------
    Report
        The files. A figure with nothing to draw is not among them; the report says why.

    Raises
    ------
    InputError
        If there is no such subset, nothing has been aggregated on it yet, or the folder is a file.

    Examples
    --------
    >>> write_report(open_store("store/quickstart.zarr")).html  # doctest: +SKIP
    PosixPath('store/quickstart.report/index.html')
    """
    results = _load(store, subset)
    folder = default_folder(store, results.key) if folder is None else Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, but a report is a folder. Name another path.")
    chapters = [
        (chapter, [section for maker in makers for section in maker.make(results)])
        for chapter, makers in groupby(SECTIONS, lambda maker: maker.chapter)
    ]
    page = _page(results, chapters)
    folder.mkdir(parents=True, exist_ok=True)
    figures = []
    for section in chain.from_iterable(sections for _, sections in chapters):
        if section.png is not None:
            figures.append(folder / f"{section.name}.png")
            figures[-1].write_bytes(section.png)
    html = folder / PAGE
    # the page last and atomically: it has the digest of its inputs
    partial = html.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(html)
    return Report(html, figures)


def findings(store: Store, subset: str | None = None) -> list[dict[str, Any]]:
    """Return what was found, one row per measure and modality.

    Parameters
    ----------
    store
        An open store.
    subset
        Its key; may be omitted if the store has only one subset.

    Returns
    -------
    list of dict
        Keys as `COLUMNS` has them, in this order. `measure` is its label, `modality` that of the
        towers. Over pairs of towers of unrelated models: mean alignments `raw_final`, `raw_init`,
        `calibrated_final`, `calibrated_init`; `significant`, the fraction of final pairs with q at
        most alpha; `slope_raw` and `slope_calibrated`, the change of final alignment per tenfold
        parameters, with 95% intervals `…_low`, `…_high` from a bootstrap over models; `n_models`
        and `n_pairs`, those of the raw final alignment. NaN if a value was not computed.

    Raises
    ------
    InputError
        If there is no such subset, or nothing has been aggregated on it yet.

    Examples
    --------
    >>> import pandas as pd                                    # doctest: +SKIP
    >>> pd.DataFrame(findings(open_store("quickstart.zarr")))  # doctest: +SKIP
    """
    return [{name: row[name] for name in COLUMNS} for row in findings_rows(_load(store, subset))]


def _load(store: Store, subset: str | None) -> Results:
    """Read what the sections need."""
    needed = (name for maker in SECTIONS for name in maker.needs)
    return load_results(store, subset, tuple(dict.fromkeys([*ALWAYS, *needed])))


def notes(store: Store, subset: str | None = None) -> list[str]:
    """Return what the report leaves out, and why, a sentence each.

    Parameters
    ----------
    store, subset
        As `findings` takes them.

    Raises
    ------
    InputError
        As `findings`.
    """
    return prose.notes(_load(store, subset))


def is_current(store: Store, folder: Path, subset: str) -> bool:
    """Return whether the report in a folder was made from what the store holds now."""
    try:
        with (folder / PAGE).open(encoding="utf-8") as page:
            head = page.read(_HEAD)
    except OSError:
        return False
    return _inputs(_load(store, subset)) in head


def _inputs(results: Results) -> str:
    """Return a digest of what a report is made from: the datasets, and what is said of the rest."""
    datasets = [
        (name, label, dataset.attrs["inputs"])
        for name, of_label in results.datasets.items()
        for label, dataset in of_label.items()
    ]
    made_from = [datasets, prose.summary(results), prose.notes(results)]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()


def default_folder(store: Store, subset_key: str) -> Path:
    """Return the folder beside the store, with a folder in it for each subset if it has several.

    For a store at a URL, it is in the working directory.
    """
    folder = store.location.folder / f"{store.location.name}.report"
    return folder if len(store.subsets) == 1 else folder / subset_key


def _page(results: Results, chapters: Sequence[tuple[str, Sequence[Section]]]) -> str:
    """Return the HTML page, figures included."""
    return render(
        "page",
        inputs=_inputs(results),
        title=results.store.location.name,
        summary=prose.summary(results),
        notes=prose.notes(results),
        chapters=chapters,
    )
