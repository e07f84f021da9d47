"""Shards of samples in .tar files: order, places, faults, and what is never followed."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import encoded, photo
from pictures import write_tar as write

from pipeline.errors import InputError
from pipeline.stimuli import content_id, index_stimuli, open_stimuli
from pipeline.stimuli import encoded as encoded_images
from pipeline.stimuli.decode import decode
from pipeline.stimuli.ids import hex_ids
from pipeline.stimuli.webdataset import WebDatasetSpec, shard_paths

PHOTOS = [encoded(photo(i), "JPEG") for i in range(7)]
Members = list[tuple[str, bytes]]


def spec(*shards: Path | str, **keys: Any) -> WebDatasetSpec:
    return WebDatasetSpec(source="webdataset", shards=tuple(map(str, shards)), **keys)


def sample(i: int, **others: bytes) -> Members:
    extra = {"txt": f"photo {i}\n".encode(), "cls": str(i % 3).encode(), **others}
    return [(f"{i:03d}.{e}", c) for e, c in {"jpg": PHOTOS[i], **extra}.items() if c]


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Three shards of 3, 2 and 2 samples, in three formats of .tar files."""
    parts = [(0, 1, 2), (3, 4), (5, 6)]
    formats = [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]
    return [
        write(tmp_path / f"birds/part-{k}.tar", [m for i in part for m in sample(i)], format=how)
        for k, (part, how) in enumerate(zip(parts, formats, strict=True))
    ]


def same_photos(found: Any, photos: list[bytes]) -> None:
    assert len(found) == len(photos)
    for image, photo_ in zip(found, photos, strict=True):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(decode(photo_)))


def test_shards__items_in_order_through_a_store(shards: list[Path], stored: Any) -> None:
    pattern = str(shards[0]).replace("part-0", "part-{0..2}")
    table = index_stimuli(spec(pattern))
    assert table.name == "birds"
    assert table.modalities == ("image", "text")
    assert list(hex_ids(table.ids("image"))) == [content_id(p) for p in PHOTOS]
    assert list(table.columns["caption"]) == [f"photo {i}" for i in range(7)]
    assert table.columns["label"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert table.columns["shard"].tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert list(table.columns["path"]) == [f"{i:03d}.jpg" for i in range(7)]
    assert table.item_bytes == 4 * 16 * 12
    assert table.notes == []
    for shard, offset, size, photo_ in zip(
        *(table.columns[c].tolist() for c in ("shard", "offset", "bytes")), PHOTOS, strict=True
    ):
        assert shards[shard].read_bytes()[offset : offset + size] == photo_
    reader, _ = stored(spec(pattern), table)
    same_photos(reader.read("image", slice(0, 7)), PHOTOS)
    same_photos(reader.read("image", slice(2, 4)), PHOTOS[2:4])  # of two shards
    assert reader.read("text", slice(6, 7)) == ["photo 6"]


def test_shard_paths__order(tmp_path: Path) -> None:
    for n in (10, 2, 1):
        write(tmp_path / f"s{n}.tar", sample(0))
    write(tmp_path / "b/s1.tar", sample(0))

    def names(*patterns: str) -> list[str]:
        found = shard_paths(spec(*(str(tmp_path / p) for p in patterns)))
        return [p.relative_to(tmp_path).as_posix() for p in found]

    assert names("s*.tar") == ["s1.tar", "s2.tar", "s10.tar"]
    assert names("s10.tar", "s1.tar") == ["s10.tar", "s1.tar"]
    assert names("s{2..1}.tar") == ["s2.tar", "s1.tar"]
    assert names("*/s?.tar", "s2.tar") == ["b/s1.tar", "s2.tar"]
    write(tmp_path / "p/009.tar", sample(0))
    write(tmp_path / "p/010.tar", sample(0))
    assert names("p/{009..010}.tar") == ["p/009.tar", "p/010.tar"]


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ("s{1..3}.tar", r"there is no file .*s2\.tar \(paths are relative to .*\)\. Did you mean"),
        ("x*.tar", r"no file matches shards: .*x\*\.tar \(paths are relative"),
        ("https://a.org/1.tar", r"shards are read from their middle, which needs local files\."),
        ("pipe:curl a.org/1.tar", r"Download them first"),
    ],
)
def test_shard_paths__faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: str, message: str
) -> None:
    write(tmp_path / "s1.tar", sample(0))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        index_stimuli(spec(shard))


def test_absolute__for_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert spec("a/{0..1}.tar").absolute().shards == (str(tmp_path / "a/{0..1}.tar"),)


def test_metadata__fields_are_columns(tmp_path: Path) -> None:
    fields = [
        {"id": "x", "key": "007", "width": 9, "ok": True, "exif": {"f": 2}},
        {"id": "y", "key": "008", "year": 1999, "ok": False},
    ]
    members = [m for i, f in enumerate(fields) for m in sample(i, json=json.dumps(f).encode())]
    table = index_stimuli(spec(write(tmp_path / "s.tar", members)))
    assert list(table.columns["id"]) == ["x", "y"]
    assert list(table.columns["key"]) == ["007", "008"]
    assert table.columns["ok"].tolist() == [True, False]
    assert list(table.columns["year"]) == ["", "1999"]
    assert table.notes == [
        "Columns that were left out, because the store uses their names or cannot have such "
        "names: 'width'.",
        "Columns that were left out, because they are not scalars: 'exif'.",
    ]
    bare = index_stimuli(spec(tmp_path / "s.tar", metadata=None, caption=None, label=None))
    assert bare.columns.keys() == {
        "path", "shard", "offset", "bytes", "image_width", "image_height",
    }  # fmt: skip
    assert bare.modalities == ("image",)


def test_samples__names_with_folders_and_several_dots(tmp_path: Path) -> None:
    members = [
        ("./a/1.JPG", PHOTOS[0]),
        ("./a/1.seg.png", b"of another kind"),
        ("./b/1.jpg", PHOTOS[1]),
        ("./b/1.txt", "Größe".encode()),
    ]
    table = index_stimuli(spec(write(tmp_path / "s.tar", members)))
    assert list(table.columns["path"]) == ["./a/1.JPG", "./b/1.jpg"]
    assert list(table.columns["caption"]) == ["", "Größe"]
    assert hex_ids(table.content["text"])[0] == ""


def test_image__extension_is_chosen(tmp_path: Path) -> None:
    file = write(tmp_path / "s.tar", sample(0, png=encoded(photo(9))))
    with pytest.raises(
        InputError,
        match=r"s\.tar: 000: it has 2 images, of which image: has to choose: its members are "
        r"\.jpg, \.txt, \.cls, \.png\n",
    ):
        index_stimuli(spec(file))
    table = index_stimuli(spec(file, image="png"))
    assert list(table.columns["path"]) == ["000.png"]
    with pytest.raises(
        InputError, match=r"it has no image with the extension webp, gif: its members are \.jpg"
    ):
        index_stimuli(spec(file, image=["webp", "gif"]))


def test_faults__all_are_named_at_once(tmp_path: Path) -> None:
    members = [
        *sample(0),
        ("001.txt", b"no image"),
        *sample(2),
        ("003.jpg", PHOTOS[3][:-20]),
        ("003.cls", b"2"),
        *sample(4, txt=b"\xff\xfe"),
        *sample(5, json=b"{"),
        *sample(6, json=b"[1]"),
        ("007.jpg", PHOTOS[5]),
        ("007.jpg", PHOTOS[6]),
    ]
    file = write(tmp_path / "s.tar", members)
    with pytest.raises(
        InputError,
        match=r"6 of 8 cannot be used:\n"
        r"  s\.tar: 001: it has no image: its members are \.txt\n"
        r"  s\.tar: 003: image file is truncated .*\n"
        r"  s\.tar: 004: 004\.txt: it is not UTF-8 text\n"
        r"  s\.tar: 005: 005\.json: it is not JSON: .*\n"
        r"  s\.tar: 006: 006\.json: it is no JSON object, {field: value}\n"
        r"  s\.tar: 007: it has two members \.jpg\n",
    ):
        index_stimuli(spec(file))
    table = index_stimuli(spec(file, on_bad_stimulus="drop"))
    assert list(table.columns["path"]) == ["000.jpg", "002.jpg"]
    assert table.columns["label"].tolist() == [0, 2]
    reader = open_stimuli(spec(file), table)
    same_photos(reader.read("image", slice(0, 2)), [PHOTOS[0], PHOTOS[2]])


def test_duplicates__dropped(tmp_path: Path) -> None:
    file = write(tmp_path / "s.tar", [("a.jpg", PHOTOS[0]), ("b.jpg", PHOTOS[0])])
    table = index_stimuli(spec(file, duplicates="drop"))
    assert list(table.columns["path"]) == ["a.jpg"]
    assert table.notes == ["Dropped as exact duplicates: 1 of 2 (s.tar: b)."]


def test_links__are_never_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(PHOTOS[1])
    file = tmp_path / "s.tar"
    with tarfile.open(file, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            member = tarfile.TarInfo(f"{kind.decode()}.jpg")
            member.type, member.linkname = kind, str(secret)
            tar.addfile(member)
        folder = tarfile.TarInfo("folder.d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in (".hidden.jpg", "README"):
            tar.addfile(tarfile.TarInfo(name))
        last = tarfile.TarInfo("../../up.jpg")  # a name, where nothing is written
        last.size = len(PHOTOS[0])
        tar.addfile(last, io.BytesIO(PHOTOS[0]))
    table = index_stimuli(spec(file))
    assert list(table.columns["path"]) == ["../../up.jpg"]
    assert table.notes == [
        "Members of the shards that were left out, because they are links, or have names without "
        "an extension or that begin with a dot: 6."
    ]


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def blocks(n: int) -> int:
    return 512 * (1 + -(-n // 512))


@pytest.mark.parametrize("fault", ["data", "header", "between", "damaged", "joined", "none", "zip"])
def test_scan__damaged_shards(tmp_path: Path, fault: str) -> None:
    file = write(tmp_path / "s.tar", [("a.jpg", PHOTOS[0]), ("b.jpg", PHOTOS[1])])
    first = blocks(len(PHOTOS[0]))
    whole = bytearray(file.read_bytes())
    message = r"s\.tar is damaged, cut off or no \.tar file: {}.*\. Copy or write it again\."
    if fault == "data":
        cut(file, first + 512 + 100)
        message = message.format("unexpected end of data")
    elif fault == "header":
        cut(file, first + 100)
        message = message.format("its end is missing")
    elif fault == "between":
        cut(file, first)
        message = message.format("its end is missing")
    elif fault == "damaged":
        whole[first + 20] ^= 1
        file.write_bytes(whole)
        message = message.format(f"the header at byte {first} is damaged")
    elif fault == "joined":
        file.write_bytes(bytes(whole) * 2)
        message = message.format(r"another \.tar file follows its end")
    elif fault == "none":
        file.write_bytes(b"no tar file, but long enough to hold a header" * 20)
        message = message.format("")
    else:
        file.write_bytes(gzip.compress(bytes(whole)))
        message = (
            r"s\.tar is compressed \(gzip\): images cannot be read from the middle of it\. "
            r"Decompress it"
        )
    with pytest.raises(InputError, match=message):
        index_stimuli(spec(file))


def test_scan__samples_that_are_torn_apart(tmp_path: Path) -> None:
    members = [("a.jpg", PHOTOS[0]), ("b.jpg", PHOTOS[1]), ("a.txt", b"a"), ("b.txt", b"b")]
    with pytest.raises(
        InputError,
        match=r"s\.tar: the members of the sample a are not next to each other, or two samples "
        r"have this name\. Write the shard ordered by name",
    ):
        index_stimuli(spec(write(tmp_path / "s.tar", members)))
    with pytest.raises(InputError, match=r"have no samples: files whose names are like 000017"):
        index_stimuli(spec(write(tmp_path / "e.tar", [("README", b"")])))


def test_read__shards_that_changed_are_refused(shards: list[Path]) -> None:
    table = index_stimuli(spec(*shards))
    reader = open_stimuli(spec(*shards[:2]), table)
    with pytest.raises(InputError, match=r"2 are found on this machine, but number 2, counted"):
        reader.read("image", slice(0, 7))
    swapped = open_stimuli(spec(shards[1], shards[0], shards[2]), table)
    with pytest.raises(
        InputError, match=r"part-1\.tar: 000\.jpg is not the image that the set has"
    ):
        swapped.read("image", slice(0, 1))
    reader = open_stimuli(spec(*shards), table)
    shards[2].unlink()
    with pytest.raises(InputError, match=r"part-2\.tar cannot be read: No such file.*same shards"):
        reader.read("image", slice(5, 6))


def test_known__is_taken_while_the_shards_are_the_same(
    shards: list[Path], monkeypatch: pytest.MonkeyPatch, stored: Any
) -> None:
    read: list[int] = []
    inspect = encoded_images._inspect
    monkeypatch.setattr(encoded_images, "_inspect", lambda c: read.append(1) or inspect(c))
    _, known = stored(spec(*shards), index_stimuli(spec(*shards)))
    assert len(read) == 7
    assert index_stimuli(spec(*shards), known).digest == known.digest
    assert len(read) == 7
    os.utime(shards[1], (1, 1))
    assert index_stimuli(spec(*shards), known).digest == known.digest
    assert len(read) == 14
    assert len(index_stimuli(spec(*shards[:2]), known)) == 5


def test_progress__counts_images(shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded_images, "AT_ONCE", 3)
    seen: list[tuple[int, int]] = []
    index_stimuli(spec(*shards), progress=lambda done, n: seen.append((done, n)))
    assert seen == [(3, 7), (6, 7), (7, 7)]
