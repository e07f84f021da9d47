"""Modalities: each has its own means, trends and figures, named after it if there are several."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from pipeline.report.results import Results, text

if TYPE_CHECKING:
    import xarray as xr


def modalities(results: Results) -> tuple[str, ...]:
    """Return the modalities of the encoders that were compared, sorted."""
    return tuple(
        sorted({str(t) for a in results.alignment.values() for t in text(a, "modality_x")})
    )


def modality_pairs(results: Results) -> list[tuple[str, str]]:
    """Return the pairs of different modalities."""
    return list(combinations(modalities(results), 2))


def convergence_of(results: Results, label: str, modality: str) -> xr.Dataset:
    """Return the trends of one modality, and its means over the stages that it has."""
    found = results.convergence[label].sel(modality=modality)
    known = (found["step"].values >= 0) | (text(found, "stage") == "end")
    return found.isel(stage=known)


def section_name(results: Results, name: str, modality: str) -> str:
    """Return the name of a modality's section, without the modality if it is the only one."""
    return f"{name}-{modality}" if len(modalities(results)) > 1 else name


def section_title(results: Results, title: str, modality: str) -> str:
    """Return the title of a modality's section, without the modality if it is the only one."""
    return f"{title}, {modality} towers" if len(modalities(results)) > 1 else title


def with_article(modality: str) -> str:
    """Put the indefinite article before a modality."""
    return f"{'an' if modality[0] in 'aeiou' else 'a'} {modality}"
