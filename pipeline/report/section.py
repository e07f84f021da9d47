"""What a page is made of: sections, and the makers that derive them from results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipeline.report.results import Results


@dataclass(frozen=True)
class Section:
    """One part of the page: a figure or a table, or a sentence that says why there is none.

    Attributes
    ----------
    name
        Names the section on the page, and its figure's file.
    title
        Its heading; empty where the chapter's heading is enough.
    caption
        How to read it.
    png
        A figure, which is also written as a file.
    html
        A fragment of the page, beside the figure or in its place.
    """

    name: str
    title: str = ""
    caption: str = ""
    png: bytes | None = None
    html: str = ""


@dataclass(frozen=True)
class SectionMaker:
    """One kind of section.

    Attributes
    ----------
    chapter
        Heading under which its sections stand, together with those of its neighbours there.
    needs
        Names of the final datasets that it reads.
    make
        Returns its sections: none, one, or one for each measure or modality.
    """

    chapter: str
    needs: tuple[str, ...]
    make: Callable[[Results], Iterable[Section]]
