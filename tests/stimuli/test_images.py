"""Image files of a folder, or of a manifest: order, ids, faults, links, duplicates."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import encoded, photo, write_photos
from pydantic import ValidationError

from pipeline.errors import InputError
from pipeline.stimuli import (
    StimulusTable,
    SubsetSpec,
    content_id,
    draw,
    images,
    index_stimuli,
    open_stimuli,
)
from pipeline.stimuli.decode import decode
from pipeline.stimuli.files import set_name
from pipeline.stimuli.ids import hex_ids
from pipeline.stimuli.images import ImagesSpec

NAMES = ["cats/a.jpg", "cats/b.JPEG", "dogs/c.jpg", "dogs/deep/d.png", "e.webp"]


def spec(root: Path, **keys: Any) -> ImagesSpec:
    return ImagesSpec(source="images", root=str(root), **keys)


def of_manifest(path: Path, **keys: Any) -> ImagesSpec:
    return ImagesSpec(source="images", manifest=str(path), **keys)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def paths(table: StimulusTable) -> list[str]:
    return [str(p) for p in table.columns["path"]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_photos(tmp_path / "pets", NAMES)
    return tmp_path / "pets"


# a folder


def test_folder__every_image_by_the_digest_of_its_bytes(folder: Path) -> None:
    table = index_stimuli(spec(folder))
    assert sorted(paths(table)) == sorted(NAMES)
    for path, found in zip(paths(table), hex_ids(table.ids("image")), strict=True):
        assert found == content_id((folder / path).read_bytes())
    assert table.modalities == ("image",)
    assert table.key == f"pets-{table.fingerprint[:8]}"
    assert table.notes == []
    assert table.columns["image_width"].tolist() == [16] * 5
    assert table.columns["image_height"].tolist() == [12] * 5
    assert table.item_bytes == 4 * 16 * 12


def test_folder__order_depends_on_content_alone(folder: Path, tmp_path: Path) -> None:
    table = index_stimuli(spec(folder))
    assert (np.diff(table.ids("image").astype(object)) > 0).all()
    other = tmp_path / "pets-2"
    for k, name in enumerate(reversed(NAMES)):  # written in another order, under other names
        (other / f"{k}").mkdir(parents=True)
        (other / f"{k}/x{9 - k}{Path(name).suffix}").write_bytes((folder / name).read_bytes())
    renamed = index_stimuli(spec(other, name="pets"))
    assert renamed.key == table.key
    np.testing.assert_array_equal(renamed.row_ids, table.row_ids)


def test_folder__read_back(folder: Path) -> None:
    table = index_stimuli(spec(folder))
    reader = open_stimuli(spec(folder), table)
    for rows in (slice(0, 5), slice(2, 3), slice(3, 5)):
        for path, image in zip(paths(table)[rows], reader.read("image", rows), strict=True):
            expected = decode((folder / path).read_bytes())
            np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


def test_folder__classes(tmp_path: Path) -> None:
    write_photos(tmp_path, ["b/1.png", "a/2.png", "b/x/3.png"])
    table = index_stimuli(spec(tmp_path, labels="folders", name="n"))
    found = dict(
        zip(
            paths(table),
            zip(table.columns["label"], table.columns["label_name"], strict=True),
            strict=True,
        )
    )
    assert found == {"a/2.png": (0, "a"), "b/1.png": (1, "b"), "b/x/3.png": (1, "b")}
    write_photos(tmp_path, ["loose.png"])
    with pytest.raises(InputError, match=r"1 images lie in no class folder of .*, first loose.png"):
        index_stimuli(spec(tmp_path, labels="folders"))


def test_folder__pattern(folder: Path) -> None:
    assert sorted(paths(index_stimuli(spec(folder, pattern="dogs/*")))) == NAMES[2:4]
    assert paths(index_stimuli(spec(folder, pattern="*.png"))) == [NAMES[3]]
    with pytest.raises(InputError, match=r"pets has no file that matches '\*\.bmp'"):
        index_stimuli(spec(folder, pattern="*.bmp"))


def test_folder__other_files_are_left_out_and_counted(folder: Path) -> None:
    for name in ("notes.txt", "cats/Thumbs.db", ".hidden.jpg", ".git/x.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    table = index_stimuli(spec(folder))
    assert len(table) == 5
    assert table.notes == ["Left out, without the suffix of an image: 2 files."]


def test_folder__missing_or_empty(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*nowhere \(paths are relative to"):
        index_stimuli(spec(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="has no file with the suffix of an image"):
        index_stimuli(spec(tmp_path))


# what was read before is not read again


def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counted: list[int] = []
    monkeypatch.setattr(images, "decode", lambda c: counted.append(1) or decode(c))
    return counted


def test_known__only_what_changed_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = index_stimuli(spec(folder))
    counted = reads(monkeypatch)
    again = index_stimuli(spec(folder), first)
    assert (again.digest, counted) == (first.digest, [])
    (folder / NAMES[2]).write_bytes(encoded(photo(99), "JPEG"))
    write_photos(folder, ["new.png"])
    changed = index_stimuli(spec(folder), first)
    assert counted == [1, 1]
    assert changed.digest == index_stimuli(spec(folder)).digest != first.digest


@pytest.mark.parametrize("trait", ["time", "place"])
def test_known__a_file_of_the_same_size_is_another(folder: Path, trait: str) -> None:
    """Archives give many files one time: one that is moved in another's place is noticed too."""
    names = ["x/a.bmp", "y/b.bmp"]
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(encoded(photo(50 + seed), "BMP"))
        os.utime(folder / name, ns=(10**18, 10**18))
    chosen = spec(folder, pattern="*.bmp", labels="folders")
    before = index_stimuli(chosen)
    if trait == "time":
        (folder / names[0]).write_bytes(encoded(photo(60), "BMP"))
    else:
        (folder / names[0]).rename(folder / "c")
        (folder / names[1]).rename(folder / names[0])
        (folder / "c").rename(folder / names[1])
    after = index_stimuli(chosen, before)
    assert after.digest == index_stimuli(chosen).digest != before.digest


def test_known__of_another_decoder_is_decoded_again(folder: Path, monkeypatch: Any) -> None:
    first = index_stimuli(spec(folder))
    counted = reads(monkeypatch)
    older = dataclasses.replace(first, details={**first.details, "decoder": "Pillow 9"})
    assert index_stimuli(spec(folder), older).details == first.details
    assert len(counted) == 5


def test_read__a_file_that_changed_is_refused(folder: Path) -> None:
    table = index_stimuli(spec(folder))
    reader = open_stimuli(spec(folder), table)
    name = paths(table)[1]
    old, new = hex_ids(table.row_ids)[1], encoded(photo(99), "PNG")
    (folder / name).write_bytes(new)
    reader.read("image", slice(0, 1))
    with pytest.raises(
        InputError,
        match=rf"{re.escape(name)} is not the image that the set has \(id {old}, now "
        rf"{content_id(new)}\)\. It changed, or this machine has other files",
    ):
        reader.read("image", slice(0, 3))
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"{re.escape(name)} cannot be read: there is no such"):
        reader.read("image", slice(1, 2))


def test_progress__counts_files(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    index_stimuli(spec(folder), progress=lambda done, of: seen.append((done, of)))
    assert sorted(seen) == [(k, 5) for k in range(1, 6)]


# faults


def test_faults__all_are_named_at_once(folder: Path) -> None:
    (folder / "dogs/c.jpg").write_bytes(b"")
    whole = (folder / "cats/a.jpg").read_bytes()
    (folder / "cats/a.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "z.png").write_text("no picture")
    with pytest.raises(InputError) as error:
        index_stimuli(spec(folder))
    message = str(error.value)
    assert "stimuli 'pets': 3 of 6 cannot be used:" in message
    assert re.search(r"\n  cats/a.jpg: .*[Tt]runcated", message)
    assert "\n  dogs/c.jpg: it is empty\n" in message
    assert "\n  z.png: it is no image that Pillow can read\n" in message
    assert message.endswith("leave them out for all models with on_bad_stimulus: drop.")


def test_faults__dropped(folder: Path) -> None:
    (folder / "dogs/c.jpg").write_bytes(b"")
    table = index_stimuli(spec(folder, on_bad_stimulus="drop"))
    assert sorted(paths(table)) == sorted({*NAMES} - {"dogs/c.jpg"})
    (note,) = table.notes
    assert note == "Dropped because they cannot be used: 1 of 5 (dogs/c.jpg)."
    # what was dropped is looked at again, once it is whole
    (folder / "dogs/c.jpg").write_bytes(encoded(photo(50)))
    assert len(index_stimuli(spec(folder, on_bad_stimulus="drop"), table)) == 5


def test_faults__none_left(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"stimuli .*: none are left"):
        index_stimuli(spec(tmp_path, on_bad_stimulus="drop"))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_links__never_lead_out_of_the_root(folder: Path, tmp_path: Path, kind: str) -> None:
    write_photos(tmp_path / "private", ["secret.png"])
    target = tmp_path / "private"
    if kind == "file":
        (folder / "link.png").symlink_to(target / "secret.png")
        with pytest.raises(InputError, match=r"link.png: it leads out of the folder .*pets"):
            index_stimuli(spec(folder))
    else:
        (folder / "link").symlink_to(target)
        with pytest.raises(InputError, match=r"link is a link to a folder, which may lead out of"):
            index_stimuli(spec(folder))


def test_links__within_the_root_and_to_the_root_are_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "again.jpg").symlink_to(folder / "cats/a.jpg")
    (tmp_path / "root").symlink_to(folder)
    table = index_stimuli(spec(tmp_path / "root"))
    assert len(table) == 6
    reader = open_stimuli(spec(tmp_path / "root"), table)
    assert len(reader.read("image", slice(0, 6))) == 6


def test_read__a_path_of_the_store_never_leads_out(folder: Path, tmp_path: Path) -> None:
    """Stores come from other people: their paths are checked where they are read, too."""
    write_photos(tmp_path, ["secret.png"])
    table = index_stimuli(spec(folder))
    table.columns["path"][0] = "../secret.png"
    with pytest.raises(InputError, match=r"secret.png cannot be read: it leads out of the folder"):
        open_stimuli(spec(folder), table).read("image", slice(0, 1))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_faults__unreadable(folder: Path) -> None:
    (folder / NAMES[0]).chmod(0)
    with pytest.raises(InputError, match=r"cats/a.jpg: Permission denied"):
        index_stimuli(spec(folder))


# duplicates


def test_duplicates__are_reported(folder: Path) -> None:
    (folder / "zz.jpg").write_bytes((folder / "cats/a.jpg").read_bytes())
    table = index_stimuli(spec(folder))
    assert len(table) == 6
    (note,) = table.notes
    assert note == (
        "Exact duplicates of earlier stimuli: 1 of 6 (zz.jpg). They are each other's "
        "nearest neighbours: duplicates: drop leaves them out."
    )


def test_duplicates__dropped_but_the_first(folder: Path) -> None:
    (folder / "aa.jpg").write_bytes((folder / "cats/a.jpg").read_bytes())
    table = index_stimuli(spec(folder, duplicates="drop"))
    assert "aa.jpg" in paths(table)
    assert "cats/a.jpg" not in paths(table)
    assert table.notes == ["Dropped as exact duplicates: 1 of 6 (cats/a.jpg)."]


# a manifest

CSV = """image,caption,label,group,id,artist,year
cats/a.jpg,a cat,pet,g1,one,Anna,1999
e.webp,"a thing, perhaps",other,g2,two,"",2000
dogs/c.jpg,a dög,pet,g1,three,Carl,2001
"""


def test_manifest__rows_keep_their_order_and_columns(folder: Path) -> None:
    table = index_stimuli(of_manifest(write(folder / "list.csv", CSV)))
    assert paths(table) == ["cats/a.jpg", "e.webp", "dogs/c.jpg"]
    assert table.modalities == ("image", "text")
    assert table.key.startswith("list-")
    columns = {name: list(values) for name, values in table.columns.items()}
    assert columns["caption"] == ["a cat", "a thing, perhaps", "a dög"]
    assert columns["label"] == [1, 0, 1]
    assert columns["label_name"] == ["pet", "other", "pet"]
    assert columns["group"] == ["g1", "g2", "g1"]
    assert columns["id"] == ["one", "two", "three"]
    assert columns["artist"] == ["Anna", "", "Carl"]
    assert columns["year"] == [1999, 2000, 2001]
    reader = open_stimuli(of_manifest(folder / "list.csv"), table)
    assert reader.read("text", slice(1, 3)) == ["a thing, perhaps", "a dög"]
    assert reader.read("image", slice(0, 1))[0].size == (16, 12)


def test_manifest__formats_agree(folder: Path) -> None:
    import csv
    import json

    table = list(csv.reader(CSV.splitlines()))
    rows = [dict(zip(table[0], row, strict=True)) for row in table[1:]]
    written = [{**row, "year": int(row["year"])} for row in rows]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in written)
    files = [
        write(folder / "list.csv", CSV),
        write(folder / "list.tsv", "".join("\t".join(r) + "\n" for r in table)),
        write(folder / "list.jsonl", lines),
    ]
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.Table.from_pylist(written), folder / "list.parquet")
    files.append(folder / "list.parquet")
    assert len({index_stimuli(of_manifest(f)).digest for f in files}) == 1


def test_manifest__named_columns_and_root(folder: Path, tmp_path: Path) -> None:
    text = "file;x,what,kind\n"
    path = write(tmp_path / "m.csv", text + "cats/a.jpg,A,3\ndogs/c.jpg,B,1\n")
    table = index_stimuli(
        of_manifest(path, root=str(folder), image="file;x", caption="what", label="kind")
    )
    assert table.columns["label"].tolist() == [3, 1]  # numbers stay as they are
    assert "label_name" not in table.columns
    assert list(table.columns["caption"]) == ["A", "B"]


def test_manifest__several_captions_of_an_image(folder: Path, monkeypatch: Any) -> None:
    """Rows with one image and other captions are no duplicates, but ties to image towers."""
    rows = "image,caption\ncats/a.jpg,x\ncats/a.jpg,y\ne.webp,z\ncats/a.jpg,x\n"
    path = write(folder / "m.csv", rows)
    counted = reads(monkeypatch)
    table = index_stimuli(of_manifest(path))
    assert len(counted) == 2
    assert len(table) == 4
    assert table.notes[0].startswith("Exact duplicates of earlier stimuli: 1 of 4 (m.csv, line 5")
    assert table.notes[1].startswith("Rows with the image of an earlier one: 2 of 4 (m.csv, line 3")
    dropped = index_stimuli(of_manifest(path, duplicates="drop"))
    assert list(dropped.columns["caption"]) == ["x", "y", "z"]
    assert dropped.notes[1].startswith("Rows with the image of an earlier one: 1 of 4")


def test_manifest__cells_are_texts_as_they_are_written(folder: Path) -> None:
    for name in ("0001", "1_000"):
        (folder / name).write_bytes(encoded(photo(len(name))))
    path = write(
        folder / "m.CSV", "image,caption,label,id,n,x,code\n0001,007,1,01,1,1.5,01\n"
        "1_000, nan,2,1,-2,2e3,2\n",
    )  # fmt: skip
    table = index_stimuli(of_manifest(path))
    assert paths(table) == ["0001", "1_000"]
    assert list(table.columns["caption"]) == ["007", " nan"]
    assert list(table.columns["id"]) == ["01", "1"]
    assert table.columns["label"].tolist() == [1, 2]
    assert table.columns["n"].tolist() == [1, -2]
    assert table.columns["x"].tolist() == [1.5, 2000.0]
    assert list(table.columns["code"]) == ["01", "2"]


@pytest.mark.parametrize(
    "labels", [("1_0", "10", "010"), ("-1", "0", "1"), ("9" * 20, "1", "2"), ("1.0", "2", "3")]
)
def test_manifest__labels_that_are_no_class_numbers_are_names(
    folder: Path, labels: tuple[str, ...]
) -> None:
    rows = "".join(f"{n},{label}\n" for n, label in zip(NAMES, labels, strict=False))
    table = index_stimuli(of_manifest(write(folder / "m.csv", f"image,label\n{rows}")))
    assert list(table.columns["label_name"]) == list(labels)
    chosen = draw(table, SubsetSpec(where={"label": labels[1]}))
    assert list(table.columns["label_name"][chosen.rows]) == [labels[1]]


def test_manifest__a_row_without_a_caption(folder: Path) -> None:
    path = write(folder / "m.csv", "image,caption,id\ncats/a.jpg,x,one\ne.webp,,two\n")
    table = index_stimuli(of_manifest(path))
    assert len(table.ids("image")) == 2
    with pytest.raises(
        InputError,
        match=r"1 of 2 rows have no caption, which text towers need; first two\. Leave these rows "
        r"out of the source, or the text towers out of the models",
    ):
        table.ids("text")


FAULTS = {
    "no such column": ("picture,caption\na.jpg,x\n", r"m.csv has no column 'image'. It has "
                       r"picture, caption: set image: to the one that is meant"),
    "missing file": ("image\ncats/a.jpg\ncats/nope.jpg\n",
                     r"m.csv, line 3 \(cats/nope.jpg\): there is no such file"),
    "out of the root": ("image\n../outside.png\n", r"m.csv, line 2 \(../outside.png\): it leads "
                        r"out of the folder"),
    "absolute": ("image\n/etc/passwd\n", r"line 2 \(/etc/passwd\): it leads out of the folder"),
    "a folder": ("image\ncats\n", r"line 2 \(cats\): there is no such file"),
    "no path": ("image,caption\ncats/a.jpg,x\n,y\n", r"m.csv, line 3: it names no image"),
    "only blanks": ("image,caption\n,y\n", "no row of the manifest names an image"),
    "too few fields": ("image,caption\ncats/a.jpg\n", r"m.csv, line 2: 1 fields, but the first "
                       r"line names 2 columns"),
    "two columns": ("image,image\na,b\n", r"two columns 'image'. Rename one"),
    "empty": ("", "m.csv has no rows"),
    "header only": ("image,caption\n", "m.csv has no rows"),
    "missing label": ("image,label\ncats/a.jpg,x\ne.webp,\n",
                      r"1 of 2 rows have no label, first m.csv, line 3\. Label all rows"),
    "repeated id": ("image,id\ncats/a.jpg,x\ne.webp,x\n",
                    r"m.csv, line 2 and m.csv, line 3 have the same id 'x'"),
    "no id": ("image,id\ncats/a.jpg,x\ne.webp,\n", r"m.csv, line 3 has no id"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_manifest__faults(folder: Path, fault: str) -> None:
    text, message = FAULTS[fault]
    write_photos(folder.parent, ["outside.png"])
    with pytest.raises(InputError, match=message):
        index_stimuli(of_manifest(write(folder / "m.csv", text)))


def test_manifest__columns_that_cannot_be_kept(folder: Path) -> None:
    path = write(folder / "m.csv", "image,mtime_ns,a/b,fine name\ncats/a.jpg,1,2,3\n")
    table = index_stimuli(of_manifest(path))
    assert table.notes == [
        "Columns that were left out, because the store uses their names or cannot have such "
        "names: 'mtime_ns', 'a/b'."
    ]
    assert table.columns["fine name"].tolist() == [3]
    assert table.columns["mtime_ns"][0] > 10**18


def test_manifest__files_that_are_none(folder: Path) -> None:
    write(folder / "m.csv", CSV)
    with pytest.raises(InputError, match=r"mm.csv: there is no such file .* Did you mean 'm.csv'"):
        index_stimuli(of_manifest(folder / "mm.csv"))
    with pytest.raises(InputError, match=r"the format of a table is known by its suffix, which is"):
        index_stimuli(of_manifest(write(folder / "m.xls", CSV)))
    (folder / "latin.csv").write_bytes("image\nä.jpg\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin.csv cannot be read: 'utf-8' codec"):
        index_stimuli(of_manifest(folder / "latin.csv"))
    write(folder / "m.jsonl", '{"image": "cats/a.jpg"}\nnonsense\n')
    with pytest.raises(InputError, match=r"m.jsonl, line 2: this is not JSON"):
        index_stimuli(of_manifest(folder / "m.jsonl"))
    write(folder / "m.jsonl", '{"image": "cats/a.jpg", "image": "e.webp"}\n')
    with pytest.raises(InputError, match=r"line 1: this is not JSON: a key is given twice"):
        index_stimuli(of_manifest(folder / "m.jsonl"))
    write(folder / "m.jsonl", "[" * 100_000)
    with pytest.raises(InputError, match=r"line 1: this is not JSON: "):
        index_stimuli(of_manifest(folder / "m.jsonl"))
    write(folder / "m.jsonl", '{"image": "cats/a.jpg", "caption": ["a", "b"]}\n')
    with pytest.raises(InputError, match=r"line 1: the column 'caption' holds lists, where texts"):
        index_stimuli(of_manifest(folder / "m.jsonl"))
    write(folder / "m.jsonl", '{"image": "cats/a.jpg", "caption": "\\ud800"}\n')
    with pytest.raises(InputError, match=r"'\\ud800' is no valid text: surrogates not allowed"):
        index_stimuli(of_manifest(folder / "m.jsonl"))
    write(folder / "m.jsonl", '{"image": "cats/a.jpg", "caption": "a\u2028b", "label": NaN}\n')
    with pytest.raises(InputError, match=r"1 of 1 rows have no label"):
        index_stimuli(of_manifest(folder / "m.jsonl"))
    table = index_stimuli(of_manifest(folder / "m.jsonl", label=None))
    assert list(table.columns["caption"]) == ["a\u2028b"]
    write(folder / "m.jsonl", "[1]\n")
    with pytest.raises(InputError, match=r"m.jsonl, line 1: expected an object"):
        index_stimuli(of_manifest(folder / "m.jsonl"))


# spec


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "name a folder"),
        ({"manifest": "m.csv", "pattern": "*"}, "pattern and labels are for folders"),
        ({"root": ".", "name": "a/b"}, "String should match pattern"),
    ],
)
def test_spec__faults(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ImagesSpec(source="images", **keys)


def test_spec__absolute_for_workers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    relative = ImagesSpec(source="images", root="pets")
    table = index_stimuli(relative)
    monkeypatch.chdir("/")
    moved = relative.model_copy(update={"root": str(folder)})
    assert len(open_stimuli(moved, table).read("image", slice(0, 5))) == 5
    monkeypatch.chdir(folder.parent)
    assert relative.absolute() == moved
    assert relative.recorded() == {"source": "images", "root": "pets"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("My Pictures (2)", "My-Pictures--2"),
        ("..", "stimuli"),
        ("ä", "stimuli"),
        ("a" * 90, "a" * 60),
    ],
)
def test_set_name__fits_the_store(name: str, expected: str) -> None:
    assert set_name(name) == expected
