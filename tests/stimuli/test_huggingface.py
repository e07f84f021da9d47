"""Data sets of the Hugging Face hub and of local folders, read by `datasets`."""

from __future__ import annotations

import builtins
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hub import Hub
from pictures import encoded, photo

from pipeline.errors import InputError
from pipeline.stimuli import content_id, index_stimuli, open_stimuli
from pipeline.stimuli import encoded as encoded_images
from pipeline.stimuli.decode import decode
from pipeline.stimuli.huggingface import HuggingFaceSpec
from pipeline.stimuli.ids import hex_ids, text_id

N = 6
PHOTOS = [encoded(photo(i)) for i in range(N)]
LEFT_OUT = (
    "Columns that were left out, because the store uses their names or cannot have such names: {}."
)
CAPTIONS = [[f"photo {i}", f"picture {i}"] for i in range(N)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def spec(dataset: Path | str, **keys: Any) -> HuggingFaceSpec:
    return HuggingFaceSpec(source="huggingface", dataset=str(dataset), **keys)


def rows(n: int = N, **others: Any) -> datasets.Dataset:
    """Return photos with two captions each, and columns that the test gives as (type, values)."""
    features = {
        "image": datasets.Image(),
        "text": datasets.List(datasets.Value("string")),
        **{name: feature for name, (feature, _) in others.items()},
    }
    columns = {
        "image": [{"bytes": p, "path": None} for p in PHOTOS[:n]],
        "text": CAPTIONS[:n],
        **{name: values for name, (_, values) in others.items()},
    }
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def parquet(data: datasets.Dataset, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    data.to_parquet(file)
    return file


def same_photos(found: list[Any], photos: list[bytes]) -> None:
    assert len(found) == len(photos)
    for image, photo_ in zip(found, photos, strict=True):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(decode(photo_)))


# local folders


def test_parquet__items_in_order_through_a_store(tmp_path: Path, stored: Any) -> None:
    parquet(rows(score=(datasets.Value("float32"), [0.5] * N)), tmp_path / "prh/test.parquet")
    table = index_stimuli(spec(tmp_path / "prh"))
    assert table.name == "prh-test"
    assert table.modalities == ("image", "text")
    assert list(hex_ids(table.ids("image"))) == [content_id(p) for p in PHOTOS]
    assert list(hex_ids(table.ids("text"))) == [text_id(c[0]) for c in CAPTIONS]
    assert list(table.columns["caption"]) == [c[0] for c in CAPTIONS]
    assert table.columns["row"].tolist() == list(range(N))
    assert table.columns["image_width"].tolist() == [16] * N
    assert table.columns["bytes"].tolist() == [len(p) for p in PHOTOS]
    assert table.columns["score"].tolist() == [0.5] * N
    assert table.item_bytes == 4 * 16 * 12
    assert table.notes == []
    assert table.details["split"] == "test"
    reader, _ = stored(spec(tmp_path / "prh"), table)
    same_photos(reader.read("image", slice(0, N)), PHOTOS)
    same_photos(reader.read("image", slice(2, 3)), PHOTOS[2:3])
    assert reader.read("text", slice(1, 3)) == ["photo 1", "photo 2"]


def test_caption_index__chooses_of_a_list(tmp_path: Path) -> None:
    parquet(rows(), tmp_path / "prh/test.parquet")
    table = index_stimuli(spec(tmp_path / "prh", caption_index=1))
    assert list(table.columns["caption"]) == [c[1] for c in CAPTIONS]
    with pytest.raises(
        InputError,
        match=r"6 of 6 cannot be used:\n  row 0: its column text lists 2 captions, so there is "
        r"none at caption_index 2, counted from 0",
    ):
        index_stimuli(spec(tmp_path / "prh", caption_index=2))


def test_null__leaves_out(tmp_path: Path) -> None:
    parquet(
        rows(id=(datasets.Value("int64"), [7] * N), label=(datasets.Value("int64"), [1] * N)),
        tmp_path / "prh/test.parquet",
    )
    table = index_stimuli(spec(tmp_path / "prh", caption=None, label=None, id=None))
    assert table.modalities == ("image",)
    assert table.columns.keys() == {"row", "bytes", "image_width", "image_height"}
    texts = index_stimuli(spec(tmp_path / "prh", image=None, id=None))
    assert texts.modalities == ("text",)
    with pytest.raises(InputError, match=r"row 0 and row 1 have the same id '7'.*set id: null"):
        index_stimuli(spec(tmp_path / "prh"))
    with pytest.raises(InputError, match=r"Set image: or caption: to the one that is meant"):
        index_stimuli(spec(tmp_path / "prh", image=None, caption=None))


def test_labels__names_of_classes(tmp_path: Path) -> None:
    classes = datasets.ClassLabel(names=["cat", "dog", "eel"])
    parquet(
        rows(
            animal=(classes, [2, 0, 0, 1, 1, 1]), label=(datasets.Value("string"), list("aabbab"))
        ),
        tmp_path / "pets/test.parquet",
    )
    table = index_stimuli(spec(tmp_path / "pets", label="animal"))
    assert table.columns["label"].tolist() == [2, 0, 0, 1, 1, 1]
    assert list(table.columns["label_name"]) == ["eel", "cat", "cat", "dog", "dog", "dog"]
    assert table.notes == [LEFT_OUT.format("'label'")]
    table = index_stimuli(spec(tmp_path / "pets"))  # a column called label comes first
    assert table.columns["label"].tolist() == [0, 0, 1, 1, 0, 1]
    assert list(table.columns["label_name"]) == list("aabbab")


def test_labels__of_a_test_split_without_any(tmp_path: Path) -> None:
    classes = datasets.ClassLabel(names=["cat", "dog"])
    parquet(rows(label=(classes, [-1] * N)), tmp_path / "pets/test.parquet")
    table = index_stimuli(spec(tmp_path / "pets"))
    assert "label" not in table.columns
    assert table.notes == ["The column label was left out: it has no labels."]
    parquet(rows(label=(classes, [-1, *[0] * (N - 1)])), tmp_path / "some/test.parquet")
    with pytest.raises(InputError, match=r"1 of 6 rows have no label, first row 0"):
        index_stimuli(spec(tmp_path / "some"))


def test_columns__those_that_the_store_cannot_keep(tmp_path: Path) -> None:
    value = datasets.Value("int64")
    parquet(
        rows(
            image_id=(value, [3] * N),
            boxes=(datasets.List(value), [[1, 2]] * N),
            site=(datasets.Value("string"), list("aabbcc")),
            group=(datasets.Value("string"), list("xxyyzz")),
        ),
        tmp_path / "coco/val.parquet",
    )
    table = index_stimuli(spec(tmp_path / "coco", group="site"))
    assert list(table.columns["group"]) == list("aabbcc")
    assert table.notes == [
        LEFT_OUT.format("'image_id', 'group'"),
        "Columns that were left out, because they are not scalars: 'boxes'.",
    ]


def test_save_to_disk__a_split_and_several(tmp_path: Path, stored: Any) -> None:
    rows().save_to_disk(tmp_path / "one")
    table = index_stimuli(spec(tmp_path / "one"))
    assert table.name == "one"
    same_photos(stored(spec(tmp_path / "one"), table)[0].read("image", slice(3, 5)), PHOTOS[3:5])
    several = datasets.DatasetDict({"train": rows(4), "test": rows(2)})
    several.save_to_disk(tmp_path / "two")
    assert len(index_stimuli(spec(tmp_path / "two", split="train"))) == 4
    with pytest.raises(
        InputError, match=r"data set .*two has 2 splits\. Set split: to one of train, test\."
    ):
        index_stimuli(spec(tmp_path / "two"))
    with pytest.raises(
        InputError, match=r"has no split 'tset'\. Did you mean 'test'\? Set split: to one of train"
    ):
        index_stimuli(spec(tmp_path / "two", split="tset"))
    with pytest.raises(InputError, match=r"one is a single split: leave out split:"):
        index_stimuli(spec(tmp_path / "one", split="test"))


def test_split__a_part(tmp_path: Path) -> None:
    parquet(rows(), tmp_path / "prh/test.parquet")
    table = index_stimuli(spec(tmp_path / "prh", split="test[2:4]"))
    assert list(hex_ids(table.ids("image"))) == [content_id(p) for p in PHOTOS[2:4]]
    assert table.name == "prh-test-2-4"


def test_imagefolder__classes_and_order(tmp_path: Path, stored: Any) -> None:
    for i, name in enumerate(["cat/b.png", "cat/a.png", "dog/c.png"]):
        file = tmp_path / "pets" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(PHOTOS[i])
    table = index_stimuli(spec(tmp_path / "pets"))
    assert list(table.columns["label_name"]) == ["cat", "cat", "dog"]
    reader, _ = stored(spec(tmp_path / "pets"), table)
    same_photos(reader.read("image", slice(0, 3)), [PHOTOS[1], PHOTOS[0], PHOTOS[2]])
    (tmp_path / "pets/dog/c.png").write_bytes(PHOTOS[4])
    reader = open_stimuli(spec(tmp_path / "pets"), table)
    with pytest.raises(InputError, match=r"row 2 is not the image that the set has \(id "):
        reader.read("image", slice(0, 3))
    (tmp_path / "pets/dog/c.png").unlink()
    with pytest.raises(InputError, match=r"row 2 cannot be read: .*c.png: No such file"):
        reader.read("image", slice(2, 3))


def test_bytes__that_nobody_declared_as_images(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict(
        {"jpg": PHOTOS, "n": list(range(N))},
        datasets.Features({"jpg": datasets.Value("binary"), "n": datasets.Value("int64")}),
    )
    parquet(data, tmp_path / "raw/test.parquet")
    table = index_stimuli(spec(tmp_path / "raw", image="jpg"))
    reader = open_stimuli(spec(tmp_path / "raw", image="jpg"), table)
    same_photos(reader.read("image", slice(0, N)), PHOTOS)
    with pytest.raises(
        InputError,
        match=r"no column of images or captions is known by its type or name\. It has jpg "
        r"\(binary\), n \(int64\)\. Set image: or caption:",
    ):
        index_stimuli(spec(tmp_path / "raw"))
    with pytest.raises(
        InputError, match=r"its column 'n' is int64, not an image\. It has jpg \(binary\), n"
    ):
        index_stimuli(spec(tmp_path / "raw", image="n"))
    with pytest.raises(InputError, match=r"has no column 'jpeg'\. Did you mean 'jpg'\? It has"):
        index_stimuli(spec(tmp_path / "raw", image="jpeg"))


def test_auto__leaves_no_choice_to_chance(tmp_path: Path) -> None:
    other = [{"bytes": p, "path": None} for p in PHOTOS]
    parquet(rows(depth=(datasets.Image(), other)), tmp_path / "two/test.parquet")
    with pytest.raises(
        InputError,
        match=r"several columns may be meant by image: image, depth\. It has image \(Image\), text "
        r"\(list of string\), depth \(Image\)\. Set image: to one of them, or to null",
    ):
        index_stimuli(spec(tmp_path / "two"))
    assert len(index_stimuli(spec(tmp_path / "two", image="depth"))) == N


def test_faults__all_are_named_at_once(tmp_path: Path) -> None:
    photos = [*PHOTOS[:3], PHOTOS[3][:60], b"no image", None]
    data = datasets.Dataset.from_dict(
        {"image": [{"bytes": p, "path": None} if p else None for p in photos]},
        datasets.Features({"image": datasets.Image()}),
    )
    parquet(data, tmp_path / "bad/test.parquet")
    with pytest.raises(
        InputError,
        match=r"3 of 6 cannot be used:\n  row 3: .*\n  row 4: it is no image that Pillow can read\n"
        r"  row 5: it has no image\n",
    ):
        index_stimuli(spec(tmp_path / "bad"))
    table = index_stimuli(spec(tmp_path / "bad", on_bad_stimulus="drop"))
    assert table.columns["row"].tolist() == [0, 1, 2]
    reader = open_stimuli(spec(tmp_path / "bad"), table)
    same_photos(reader.read("image", slice(0, 3)), PHOTOS[:3])


def test_known__is_taken_while_the_data_set_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: Any
) -> None:
    read: list[int] = []
    inspect = encoded_images._inspect
    monkeypatch.setattr(encoded_images, "_inspect", lambda c: read.append(1) or inspect(c))
    file = parquet(rows(), tmp_path / "prh/test.parquet")
    first = index_stimuli(spec(tmp_path / "prh"))
    assert len(read) == N
    _, known = stored(spec(tmp_path / "prh"), first)
    again = index_stimuli(spec(tmp_path / "prh"), known)
    assert len(read) == N
    assert again.digest == first.digest
    # another choice of columns, or other data, are read
    index_stimuli(spec(tmp_path / "prh", caption=None), known)
    assert len(read) == 2 * N
    parquet(rows(5), file)
    os.utime(file, (1, 1))
    assert len(index_stimuli(spec(tmp_path / "prh"), known)) == 5
    assert len(read) == 2 * N + 5


def test_progress__counts_images(tmp_path: Path) -> None:
    parquet(rows(), tmp_path / "prh/test.parquet")
    seen: list[tuple[int, int]] = []
    index_stimuli(spec(tmp_path / "prh"), progress=lambda done, n: seen.append((done, n)))
    assert seen == [(N, N)]


def test_folder__that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*gone .* a name on the hub such as"):
        index_stimuli(spec(tmp_path / "gone"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputError, match=r"empty cannot be loaded: .* doesn't contain any data files\. It has"
    ):
        index_stimuli(spec(tmp_path / "empty"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/test.parquet").write_bytes(b"PAR1, but no more")
    with pytest.raises(InputError, match=r"data set .*bad cannot be loaded: .*It has to be one"):
        index_stimuli(spec(tmp_path / "bad"))
    with pytest.raises(InputError, match=r"a local folder, which has no revisions: leave out"):
        index_stimuli(spec(tmp_path / "bad", revision="v1"))


def test_absolute__of_folders_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prh").mkdir()
    monkeypatch.chdir(tmp_path)
    assert spec("prh").absolute().dataset == str(tmp_path / "prh")
    assert spec("minhuh/prh").absolute().dataset == "minhuh/prh"


def test_datasets__not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.split(".")[0] in ("datasets", "huggingface_hub"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        InputError, match=r"not installed: pip install 'consilience\[datasets\]'\.$"
    ):
        index_stimuli(spec("minhuh/prh"))


# the hub, which a process of its own reads: the address is read when `huggingface_hub` is imported

READ = """
import json, sys, time
from pipeline.errors import InputError
from pipeline.stimuli import index_stimuli, open_stimuli
from pipeline.stimuli.huggingface import HuggingFaceSpec
from pipeline.stimuli.ids import hex_ids
for keys in json.loads(sys.argv[1]):
    spec, start = HuggingFaceSpec(source="huggingface", **keys), time.monotonic()
    try:
        table = index_stimuli(spec)
        images = open_stimuli(spec, table).read("image", slice(0, len(table)))
        found = {"ids": list(hex_ids(table.ids("image"))), "details": dict(table.details),
                 "name": table.name, "sizes": [i.size for i in images]}
    except InputError as error:
        found = {"error": str(error)}
    print(json.dumps({**found, "seconds": time.monotonic() - start}))
"""


class Reader:
    """Reads data sets of a hub in new processes, which share a cache."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self.hub, self.home = hub, home

    def __call__(self, *specs: dict[str, Any], **environment: str) -> list[dict[str, Any]]:
        found = subprocess.run(
            [sys.executable, "-c", READ, json.dumps(specs)],
            env={**os.environ, **self.hub.environment(self.home), **environment},
            stdout=subprocess.PIPE,
            cwd=self.home.parent,
            check=True,
        )
        return [json.loads(line) for line in found.stdout.splitlines()]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as running:
        yield running


def commit(hub: Hub, n: int, file: Path, **options: Any) -> str:
    content = parquet(rows(n), file).read_bytes()
    return hub.commit("org/set", {"data/test-0.parquet": content}, kind="datasets", **options)


def test_hub__revisions_online_and_offline(hub: Hub, tmp_path: Path) -> None:
    old = commit(hub, 4, tmp_path / "old.parquet", tag="v1")
    new = commit(hub, 6, tmp_path / "new.parquet")
    read = Reader(hub, tmp_path / "home")
    main, v1 = {"dataset": "org/set"}, {"dataset": "org/set", "revision": "v1"}
    online = read(main, v1)
    assert [r["details"]["revision"] for r in online] == [new, old]
    assert [r["ids"] for r in online] == [[content_id(p) for p in PHOTOS[:n]] for n in (6, 4)]
    assert online[0]["name"] == "set-test"
    assert online[1]["sizes"] == [[16, 12]] * 4
    # without the hub: the same commits, of which the older one was cached last
    hub.requests.clear()
    offline = read(main, v1, {**v1, "revision": old}, HF_HUB_OFFLINE="1")
    assert hub.requests == []
    for found, expected in zip(offline, [*online, online[1]], strict=True):
        assert found["ids"] == expected["ids"]
        assert found["details"] == expected["details"]
    hub.stop()
    started = time.monotonic()
    gone = read(main, {**main, "revision": "v2"}, {"dataset": "org/other"})
    assert time.monotonic() - started < 15
    assert gone[0]["ids"] == online[0]["ids"]
    assert (
        f"data set org/set: the hub {hub.url} cannot be reached, and org/set, revision v2 is not "
        f"in the cache of this machine ({tmp_path / 'home'}). Load it once where there is a "
        "network" in gone[1]["error"]
    )
    assert "org/other is not in the cache" in gone[2]["error"]


def test_hub__faults(hub: Hub, tmp_path: Path) -> None:
    commit(hub, 2, tmp_path / "x.parquet")
    hub.commit("org/gated", {"README.md": b"Ask."}, kind="datasets")
    hub.commit("org/code", {"code.py": b"raise SystemExit"}, kind="datasets")
    hub.gated.add("org/gated")
    found = Reader(hub, tmp_path / "home")(
        {"dataset": "org/st"},
        {"dataset": "org/set", "revision": "v9"},
        {"dataset": "org/gated"},
        {"dataset": "org/set", "split": "train"},
        {"dataset": "org/set", "config": "small"},
        {"dataset": "org/code"},
        {"dataset": "no such name"},
    )
    for result, message in zip(
        found,
        (
            f"data set org/st: the hub {hub.url} has none of this name, or it is private",
            f"data set org/set: the hub {hub.url} has no revision 'v9' of it. Set revision: to",
            f"data set org/gated is gated: its owner decides who may read it. Ask for access at "
            f"{hub.url}/datasets/org/gated, and log in with `hf auth login`",
            "data set org/set has no split 'train'. Set split: to one of test.",
            "data set org/set cannot be loaded: BuilderConfig 'small' not found. Available:",
            "data set org/code cannot be loaded: Dataset scripts are no longer supported",
            "stimuli: 'no such name' is no name on the hub, which is like minhuh/prh",
        ),
        strict=True,
    ):
        assert message in result["error"]
        assert result["seconds"] < 10
