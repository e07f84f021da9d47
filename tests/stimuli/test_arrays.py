"""Numbers of .npy, .npz and Zarr files: read by rows, never whole, never as objects."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pipeline.errors import InputError
from pipeline.stimuli import arrays, index_stimuli, open_stimuli
from pipeline.stimuli.arrays import ArraysSpec
from pipeline.stimuli.ids import array_id, hex_ids

VALUES = np.random.default_rng(0).normal(size=(9, 3, 2)).astype(np.float32)


def spec(path: Path, **keys: Any) -> ArraysSpec:
    return ArraysSpec(source="arrays", path=str(path), **keys)


def saved(folder: Path, kind: str, values: np.ndarray = VALUES) -> Path:
    path = folder / f"x.{kind}"
    if kind == "npy":
        np.save(path, values)
    elif kind == "npz":
        np.savez(path, tokens=values)
    else:
        zarr.create_array(str(path), data=values, chunks=(4, *values.shape[1:]))
    return path


@pytest.mark.parametrize("kind", ["npy", "npz", "zarr"])
def test_index__rows_in_order(tmp_path: Path, kind: str) -> None:
    chosen = spec(saved(tmp_path, kind))
    table = index_stimuli(chosen)
    assert table.modalities == ("array",)
    assert list(hex_ids(table.row_ids)) == [array_id(v) for v in VALUES]
    assert table.key == f"x-{table.fingerprint[:8]}"
    reader = open_stimuli(chosen, table)
    np.testing.assert_array_equal(np.stack(reader.read("array", slice(0, 9))), VALUES)
    np.testing.assert_array_equal(np.stack(reader.read("array", slice(3, 5))), VALUES[3:5])


def test_key__of_several(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", tokens=VALUES, mask=VALUES[..., 0])
    assert len(index_stimuli(spec(tmp_path / "x.npz", key="mask"))) == 9
    with pytest.raises(InputError, match=r"x.npz has 2 arrays\. Set key: to one of tokens, mask"):
        index_stimuli(spec(tmp_path / "x.npz"))
    with pytest.raises(InputError, match=r"no array 'token'\. Did you mean 'tokens'\?"):
        index_stimuli(spec(tmp_path / "x.npz", key="token"))
    group = zarr.create_group(str(tmp_path / "g.zarr"))
    group.create_array("a", data=VALUES)
    assert len(index_stimuli(spec(tmp_path / "g.zarr"))) == 9


def test_columns__of_files(tmp_path: Path) -> None:
    path = saved(tmp_path, "npy", np.arange(6).reshape(3, 2))
    np.save(tmp_path / "label.npy", [2, 0, 2])
    (tmp_path / "caption.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "id.txt").write_text("a\nb\nc")
    np.save(tmp_path / "weight.npy", [0.5, 1.5, 2.5])
    columns = {n: str(tmp_path / f"{n}.{'npy' if n in ('label', 'weight') else 'txt'}")
               for n in ("label", "caption", "id", "weight")}  # fmt: skip
    table = index_stimuli(spec(path, columns=columns))
    assert table.modalities == ("text", "array")
    assert table.columns["label"].tolist() == [2, 0, 2]
    assert list(table.columns["id"]) == ["a", "b", "c"]
    assert table.columns["weight"].tolist() == [0.5, 1.5, 2.5]
    reader = open_stimuli(spec(path, columns=columns), table)
    assert reader.read("text", slice(1, 3)) == ["two", "three"]
    (tmp_path / "id.txt").write_text("a\nb")
    with pytest.raises(InputError, match=r"id.txt has 2 values for the column 'id', but .* has 3"):
        index_stimuli(spec(path, columns=columns))


def test_pixels__are_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (4, 8, 6, 3), dtype=np.uint8)
    chosen = spec(saved(tmp_path, "npy", pixels), modality="image")
    table = index_stimuli(chosen)
    (image,) = open_stimuli(chosen, table).read("image", slice(2, 3))
    np.testing.assert_array_equal(np.asarray(image), pixels[2])
    with pytest.raises(InputError, match=r"arrays of images need dtype uint8 and shape .*float32"):
        index_stimuli(spec(saved(tmp_path, "npy"), modality="image"))


def test_faults__not_finite(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[4, 1], values[7, 0] = np.nan, np.inf
    path = saved(tmp_path, "npy", values)
    with pytest.raises(InputError, match=r"2 of 9 cannot be used:\n  row 4: it has values that are"
                       r" not finite\n  row 7: "):  # fmt: skip
        index_stimuli(spec(path))
    dropped = spec(path, on_bad_stimulus="drop")
    table = index_stimuli(dropped)
    assert table.columns["row"].tolist() == [0, 1, 2, 3, 5, 6, 8]
    reader = open_stimuli(dropped, table)
    np.testing.assert_array_equal(np.stack(reader.read("array", slice(3, 6))), values[[3, 5, 6]])
    assert index_stimuli(dropped, table).digest == table.digest


def test_duplicates__dropped(tmp_path: Path) -> None:
    values = VALUES[[0, 1, 0, 2]]
    chosen = spec(saved(tmp_path, "npy", values), duplicates="drop")
    table = index_stimuli(chosen)
    assert table.columns["row"].tolist() == [0, 1, 3]
    assert table.notes == ["Dropped as exact duplicates: 1 of 4 (row 2)."]


def test_known__is_not_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, "npy")
    table = index_stimuli(spec(path))
    monkeypatch.setattr(arrays, "row_ids", lambda _: pytest.fail("read again"))
    assert index_stimuli(spec(path), table).digest == table.digest
    np.save(path, VALUES + 1)
    with pytest.raises(pytest.fail.Exception, match="read again"):
        index_stimuli(spec(path), table)


def test_read__a_file_that_changed(tmp_path: Path) -> None:
    path = saved(tmp_path, "npy")
    table = index_stimuli(spec(path))
    changed = VALUES.copy()
    changed[5] += 1
    np.save(path, changed)
    with pytest.raises(InputError, match=r"x.npy: row 5 is not the array that the set has"):
        open_stimuli(spec(path), table).read("array", slice(0, 9))


def test_index__pickles_are_not_read(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    np.save(tmp_path / "x.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    (tmp_path / "y.npy").write_bytes(pickle.dumps(Payload()))
    for name in ("x.npy", "y.npy"):
        with pytest.raises(InputError, match="objects are not read, since reading them may run"):
            index_stimuli(spec(tmp_path / name))
    assert not (tmp_path / "ran").exists()


def test_index__what_is_no_array(tmp_path: Path) -> None:
    saved(tmp_path, "npy")
    with pytest.raises(InputError, match=r"y.npy: there is no such file .* Did you mean 'x.npy'"):
        index_stimuli(spec(tmp_path / "y.npy"))
    (tmp_path / "z.npy").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"z.npy cannot be read as numbers"):
        index_stimuli(spec(tmp_path / "z.npy"))
    for values in (np.float32(3), np.zeros((0, 3))):
        np.save(tmp_path / "e.npy", values)
        with pytest.raises(InputError, match=r"e.npy has no rows: its shape is"):
            index_stimuli(spec(tmp_path / "e.npy"))
    np.save(tmp_path / "e.npy", np.zeros((3, 0)))
    with pytest.raises(InputError, match=r"the rows are empty: the shape is \(3, 0\)"):
        index_stimuli(spec(tmp_path / "e.npy"))
    np.save(tmp_path / "s.npy", np.array(["a", "b"]))
    with pytest.raises(InputError, match=r"stimuli are numbers, but its dtype is <U1"):
        index_stimuli(spec(tmp_path / "s.npy"))


def test_index__memory_of_a_stimulus(tmp_path: Path) -> None:
    """Bytes of the driver for each stimulus, whatever a stimulus is."""
    n = 100_000
    np.save(tmp_path / "x.npy", np.arange(4 * n, dtype=np.int64).reshape(n, 4))
    tracemalloc.start()
    table = index_stimuli(spec(tmp_path / "x.npy"))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table) == n
    assert kept / n < 40
    assert peak / n < 200
