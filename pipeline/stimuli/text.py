"""`source: text`: the lines of a file, or a column of a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pipeline.stimuli.draft import Draft, text_column
from pipeline.stimuli.files import read_lines, set_name
from pipeline.stimuli.ids import as_ids, text_id
from pipeline.stimuli.manifest import described, is_manifest, read_manifest
from pipeline.stimuli.memory import CaptionReader
from pipeline.stimuli.source import FileSpec, Progress
from pipeline.stimuli.table import StimulusRows, StimulusTable
from pipeline.types import Modality


class TextSpec(FileSpec):
    """Texts: the lines of a file, or a column of a table."""

    source: Literal["text"]
    """Texts, such as captions."""
    path: str
    """A text file, of which every line that is not blank is a stimulus; or a table (.csv, .tsv,
    .jsonl, .parquet). Rows keep their order."""
    text: str = "text"
    """The table's column of texts."""
    label: str | None = "label"
    """The table's column of classes, numbers or names, if it has one; null: none."""
    group: str | None = "group"
    """The table's column of groups, if it has one; null: none."""
    id: str | None = "id"
    """The table's column of your own ids, if it has one; null: none."""

    def absolute(self) -> Self:
        """Return the spec with an absolute path."""
        return self.model_copy(update={"path": str(Path(self.path).absolute())})


class TextSource:
    """Texts, which the store keeps: workers need no file."""

    spec = TextSpec

    def index(
        self,
        spec: TextSpec,
        known: StimulusTable | None = None,
        progress: Progress | None = None,
    ) -> StimulusTable:
        """Read all texts."""
        name = spec.name or set_name(Path(spec.path).stem)
        if is_manifest(spec.path):
            manifest = read_manifest(spec.path)
            texts = manifest.required(spec.text, "text")
            columns, notes = described(
                manifest, items=[spec.text], label=spec.label, group=spec.group, id=spec.id
            )
            rows = manifest.rows
            faults = {i: "it has no text" for i, t in enumerate(texts) if not t.strip()}
        else:
            lines = read_lines(spec.path)
            numbered = [(i, line) for i, line in enumerate(lines, 1) if line.strip()]
            texts = [line for _, line in numbered]
            rows = [f"{Path(spec.path).name}, line {i}" for i, _ in numbered]
            columns, faults, notes = {}, {}, []
        ids = as_ids("" if i in faults else text_id(t) for i, t in enumerate(texts))
        columns["caption"] = text_column(texts)
        return Draft(rows, {"text": ids}, columns, faults, notes).table(spec, name)

    def open(self, spec: TextSpec, table: StimulusRows) -> TextReader:
        """Open the table itself."""
        return TextReader(table)


class TextReader:
    """Reads texts from the table."""

    def __init__(self, table: StimulusRows) -> None:
        self.table, self.captions = table, CaptionReader(table)

    def read(self, modality: Modality, rows: slice) -> list[str]:
        """Return texts."""
        return self.captions.read(rows)


SOURCE = TextSource()
