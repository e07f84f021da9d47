"""Write the report: figures as PNG, and one HTML file that holds them all."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError
from pipeline.report import prose
from pipeline.report.findings import detailed
from pipeline.report.maps import alignment_map, layer_map
from pipeline.report.results import Results, load_results
from pipeline.report.style import Section, number, p_value
from pipeline.report.training import training_figure
from pipeline.report.trends import scale_figure

if TYPE_CHECKING:
    from pipeline.store import Store

TEMPLATE = "template.html.j2"
PAGE = "index.html"
_HEAD = 1000  # characters, among which the page says what it is made from


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
        Where to write; made if it is not there. Default: beside the store,
        `quickstart.zarr` → `quickstart.report`, and in it a folder per subset where the store has
        several.
    subset
        Key of the subset to report; may be left out where the store has one only.

    Returns
    -------
    Report
        The files. Figures for which there is nothing to draw are not among them; the report says
        why.

    Raises
    ------
    InputError
        Where there is no such subset, nothing has been aggregated on it yet, or the folder is a
        file.

    Examples
    --------
    >>> write_report(open_store("store/quickstart.zarr")).html  # doctest: +SKIP
    PosixPath('store/quickstart.report/index.html')
    """
    results = load_results(store, subset)
    folder = default_folder(store, results.key) if folder is None else Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, and a report is a folder. Name another path.")
    sections = [
        *(alignment_map(results, label) for label in results.labels),
        *(scale_figure(results, label) for label in results.labels),
        training_figure(results),
        layer_map(results),
    ]
    page = render(results, sections)
    folder.mkdir(parents=True, exist_ok=True)
    figures = []
    for section in sections:
        if section.png is not None:
            figures.append(folder / f"{section.name}.png")
            figures[-1].write_bytes(section.png)
    html = folder / PAGE
    # the page last and at once: it says what it was made from
    partial = html.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(html)
    return Report(html, figures)


def notes(store: Store, subset: str | None = None) -> list[str]:
    """Return what the report says of what it leaves out, and why, a sentence each.

    Parameters
    ----------
    store
        An open store.
    subset
        Its key; may be left out where the store has one subset only.

    Raises
    ------
    InputError
        As `write_report`.
    """
    return prose.notes(load_results(store, subset))


def is_current(store: Store, folder: Path, subset: str) -> bool:
    """Tell whether the report in a folder was made from what the store holds now."""
    try:
        with (folder / PAGE).open(encoding="utf-8") as page:
            head = page.read(_HEAD)
    except OSError:
        return False
    return _inputs(load_results(store, subset)) in head


def _inputs(results: Results) -> str:
    """Return the identity of what a report is made from: datasets, and what is said of the rest."""
    datasets = [(label, results.alignment[label].attrs["inputs"]) for label in results.labels]
    made_from = [datasets, prose.summary(results), prose.notes(results)]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()


def default_folder(store: Store, subset_key: str) -> Path:
    """Return the folder beside the store, and in it one per subset where there are several.

    Beside a store at a URL stands the working directory.
    """
    folder = store.location.folder / f"{store.location.name}.report"
    return folder if len(store.subsets) == 1 else folder / subset_key


def render(results: Results, sections: list[Section]) -> str:
    """Return the HTML page, figures included."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, base64=_base64, p_value=p_value, percent=_percent)
    environment.tests["finite"] = math.isfinite
    rows = detailed(results)
    return environment.get_template(TEMPLATE).render(
        inputs=_inputs(results),
        title=results.store.location.name,
        summary=prose.summary(results),
        notes=prose.notes(results),
        findings=rows,
        image_text=prose.image_text(rows),
        sections=sections,
        models=prose.models(results),
        conventions=prose.conventions(results),
        provenance=prose.provenance(results),
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _percent(value: float) -> str:
    return f"{100 * value:.0f}%" if math.isfinite(value) else "–"
