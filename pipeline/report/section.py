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
        Its heading; empty if the chapter's is enough.
    caption
        How to read it.
    png
        A figure, which is also written to a file of its own.
    html
        A fragment of the page, such as a table: beside the figure or instead of one.
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
        Heading above its sections, and those of adjacent makers with the same chapter.
    needs
        Names of the final datasets that it reads.
    make
        Returns its sections: none, one, or one for each measure or modality.
    """

    chapter: str
    needs: tuple[str, ...]
    make: Callable[[Results], Iterable[Section]]
