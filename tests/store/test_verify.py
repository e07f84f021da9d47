"""Everything that is damaged or lost is named; repair marks exactly that to be recomputed."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from zarr.storage import LocalStore
from zoo import MEASURES, Zoo, chunk_files, flip_byte, tree

from pipeline.cli import main
from pipeline.errors import InputError, StoreError, UnreadableError
from pipeline.schema import SCORE_GROUP, State
from pipeline.store import open_store
from pipeline.store.io.lease import lease
from pipeline.store.io.location import LOCK
from pipeline.store.verify import Verification, verify

SET = "digits-test-*"
TOWER = f"activations/{SET}/timm/vit-a/image"
MEASURE = f"measures/{SET}/cka"
NULL = f"calibration/{SET}/cka/permutation-39-seed3"
ALIGNMENT = f"alignment/{SET}/cka"


def at(store: Path, pattern: str) -> Path:
    """Give the one path that a pattern names; of subsets, that of images."""
    found = sorted(store.glob(pattern), key=lambda p: ("captions" in str(p), str(p)))
    return found[0]


def flip(file: Path) -> None:
    flip_byte(file, file.stat().st_size // 2)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:10])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def delete(file: Path) -> None:
    file.unlink()


def spoil(file: Path) -> None:
    file.write_text('{"zarr_format": 3, "node')


HOW = {"flipped": flip, "truncated": truncate, "emptied": empty, "deleted": delete}


@pytest.fixture
def store(zoo: Zoo, tmp_path: Path) -> Path:
    """A copy of the zoo's store."""
    path = tmp_path / "store.zarr"
    shutil.copytree(zoo.path, path, ignore=shutil.ignore_patterns(LOCK))
    return path


def named(found: Verification) -> str:
    return "\n".join(f"{d.what}: {d.why}" for d in found.damages)


def test_verify__whole_store(store: Path) -> None:
    before = tree(store)
    found = verify(store)
    assert found.is_whole, named(found)
    nodes = [json.loads(f.read_text())["node_type"] for f in store.rglob("zarr.json")]
    assert found.arrays == nodes.count("array")
    assert found.chunks > 300
    assert tree(store) == before


DAMAGED_CHUNKS = {
    f"{TOWER}/blocks.1": r"timm/vit-a@step0#image/blocks\.1, rows 0:597: a chunk is ",
    f"activations/{SET}/timm/vit-b/image/stimulus": (
        r"timm/vit-b#image, ids of the stimuli: .*a chunk is"
    ),
    f"activations/{SET}/timm/conv/image/checkpoint": r"timm/conv#image: .*(lost|damaged)",
    f"measures/{SET}/cka/score": r"measure cka on digits-test-\S+, score of slots 0:128 × 0:128",
    f"measures/{SET}/knn/slot": r"measure knn on \S+: .*(slots|damaged)",
    f"measures/{SET}/prh/clip": r"measure prh on \S+: a chunk is damaged",
    f"measures/{SET}/row": r"subset digits-test-\S+, its rows: a chunk is",
    f"{NULL}/null": r"null permutation-39-seed3 of cka on .*, null of slots 0:16 × 0:16",
    f"calibration/{SET}/knn/permutation-39-seed3/permuted": (
        r"null permutation-39-seed3 of knn on .*, permuted of slots 0:16 × 0:16"
    ),
    f"{ALIGNMENT}/score": r"alignment digits-test-\S+/cka: .*(lost|damaged)",
    f"stimuli/{SET}/caption": r"stimuli digits-test-\S+: .*(lost|damaged)",
}


@pytest.mark.parametrize("how", HOW)
def test_verify__damaged_chunks_are_named(store: Path, how: str) -> None:
    expected = []
    for array, text in DAMAGED_CHUNKS.items():
        if how == "deleted" and array.endswith("/clip"):
            continue  # what may not have been written yet: nothing says that it was
        HOW[how](chunk_files(store, at(store, array).relative_to(store).as_posix())[0])
        expected.append(text)
    found = verify(store)
    lines = named(found).splitlines()
    for text in expected:
        assert len([line for line in lines if re.search(text, line)]) == 1, (text, named(found))
    assert len(lines) == len(expected), named(found)


DAMAGED_METADATA = {
    f"activations/{SET}/timm/conv/image": r"timm/conv#image: its zarr\.json",
    f"{TOWER}/blocks.0": r"/blocks\.0: .*zarr\.json cannot be read",
    f"{TOWER}/complete": r"/complete: .*zarr\.json cannot be read",
    f"activations/{SET}/timm": r"activations/.*/timm: its zarr\.json",
    f"measures/{SET}/cka": r"measure cka on .*: its zarr\.json",
    f"measures/{SET}/knn/state": r"knn/state: .*zarr\.json cannot be read",
    f"measures/{SET}": r"subset digits-test-.*: its zarr\.json",
    ALIGNMENT: r"alignment digits.*/cka: its zarr\.json",
    f"alignment/{SET}/knn/p": r"alignment digits.*/knn: .*(is lost|cannot be read)",
}


@pytest.mark.parametrize("how", ["spoiled", "deleted"])
def test_verify__damaged_metadata_is_named(store: Path, how: str) -> None:
    for node in DAMAGED_METADATA:
        (spoil if how == "spoiled" else delete)(at(store, node) / "zarr.json")
    found = verify(store)
    lines = named(found).splitlines()
    for text in DAMAGED_METADATA.values():
        assert len([line for line in lines if re.search(text, line)]) == 1, (text, named(found))
    assert len(lines) == len(DAMAGED_METADATA), named(found)


def test_verify__metadata_that_parses_and_is_wrong(store: Path) -> None:
    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        "vit-a/image/blocks.0": lambda m: m["shape"].__setitem__(1, 596),
        "vit-a/image/blocks.1": lambda m: m["attributes"].update(layer_index=0),
        "vit-b/image/blocks.0": lambda m: m.update(data_type="int32", fill_value=0),
        "vit-b/image/blocks.1": lambda m: m["attributes"].pop("metadata_crc32c"),
        "conv/image/stages.0": lambda m: m["codecs"].pop(),
    }
    for node, change in changes.items():
        file = at(store, f"activations/{SET}/timm/{node}") / "zarr.json"
        about = json.loads(file.read_text())
        change(about)
        file.write_text(json.dumps(about))
    lines = named(verify(store)).splitlines()
    for node in changes:
        expected = f"{node}/zarr.json cannot be read: its checksum does not match"
        if node == "vit-b/image/blocks.1":
            expected = f"{node}/zarr.json cannot be read: it has no checksum"
        assert len([line for line in lines if expected in line]) == 1, (node, lines)
    assert len(lines) == len(changes)


def test_verify__any_bit_of_metadata(store: Path) -> None:
    """A bit that flips in an attribute leaves JSON that can be read: with another recipe, say.

    Those of the root are `test_repair__root_with_a_flipped_bit`.
    """
    rng = np.random.default_rng(0)
    files = sorted(store.rglob("zarr.json"))
    chosen = {
        file.parent.relative_to(store).as_posix(): file
        for file in rng.choice(np.array(files, object), 40, replace=False)
        if file.parent != store
    }
    whole = {node: file.read_bytes() for node, file in chosen.items()}
    flipped = {node: flip_bit(content, rng) for node, content in whole.items()}
    assert sum(readable for _, readable in flipped.values()) > 10
    for batch in apart(chosen):
        for node in batch:
            chosen[node].write_bytes(flipped[node][0])
        found = verify(store)
        where = [f"{d.what} {d.path} {d.why}" for d in found.damages]
        for node in batch:
            assert any(node in each for each in where), (node, named(found))
            chosen[node].write_bytes(whole[node])


def flip_bit(before: bytes, rng: np.random.Generator) -> tuple[bytes, bool]:
    """Flip a bit that is not white space, and tell whether what results is JSON."""
    while True:
        at_bit = int(rng.integers(len(before) * 8))
        after = bytearray(before)
        after[at_bit // 8] ^= 1 << at_bit % 8
        try:
            if json.loads(bytes(after)) != json.loads(before):
                return bytes(after), True
        except ValueError:
            return bytes(after), False


def apart(nodes: Iterable[str]) -> list[list[str]]:
    """Divide nodes into batches in which none hides another: of each group one member."""
    batches: list[list[str]] = []
    for node in nodes:
        group = node.rpartition("/")[0]
        for batch in batches:
            if not any(group in other or other in node for other in batch):
                batch.append(node)
                break
        else:
            batches.append([node])
    return batches


def test_verify__metadata_of_another_array(store: Path) -> None:
    """Whole, but not where they were written."""
    one, other = (at(store, f"{TOWER}/blocks.{i}") / "zarr.json" for i in (0, 1))
    shutil.copyfile(one, other)
    (line,) = named(verify(store)).splitlines()
    assert "blocks.1/zarr.json cannot be read: its checksum does not match" in line


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ('"attributes"', '"attribuses"'),
        ('"metadata_crc32c"', '"metadata_crc32b"'),
        ('"consilience"', '"consiliencd"'),
        ('"format_version": 2', '"format_version": 3'),
    ],
)
def test_repair__root_with_a_flipped_bit(store: Path, text: str, other: str) -> None:
    file = store / "zarr.json"
    before = file.read_text()
    file.write_text(before.replace(text, other))
    assert file.read_text() != before
    assert "the store's root: its zarr.json cannot be read: it" in named(verify(store))
    assert verify(store, repair=True).repaired
    assert json.loads(file.read_text()) == json.loads(before)
    assert verify(store).is_whole


def test_repair__leaves_stores_of_others_alone(tmp_path: Path) -> None:
    path = tmp_path / "theirs.zarr"
    root = zarr.create_group(path, attributes={"theirs": True})
    root.create_group("stimuli/a").create_array("x", shape=(3,), dtype="f4")[...] = 1
    before = tree(path)
    for repair in (False, True):
        with pytest.raises(InputError, match="is a Zarr group, but not a Consilience store"):
            verify(path, repair=repair)
    assert tree(path) == before


def test_verify__leftovers(store: Path) -> None:
    left = at(store, f"{TOWER}/blocks.0/c/0/0") / "0.12ab.partial"
    left.write_bytes(b"half")
    assert "0.12ab.partial: left by a killed writer" in named(verify(store))
    assert verify(store, repair=True).repaired
    assert not left.exists()
    assert verify(store).is_whole


def test_verify__files_of_others_are_no_damage(store: Path) -> None:
    (store / "logs").mkdir()
    (store / "logs" / "run.log").write_text("text")
    (store / "activations" / ".DS_Store").write_text("text")
    assert verify(store).is_whole


@pytest.mark.parametrize("file", ["state", "complete"])
def test_verify__marks_that_are_lost(store: Path, file: str) -> None:
    where = f"{MEASURE}/state" if file == "state" else f"{TOWER}/complete"
    delete(chunk_files(store, at(store, where).relative_to(store).as_posix())[0])
    assert re.search("lost, or a writer was killed", named(verify(store)))


def test_repair__a_damaged_mark_costs_its_block_alone(store: Path) -> None:
    marks = at(store, f"{TOWER}/complete").relative_to(store).as_posix()
    first, *others = chunk_files(store, marks)
    flip(first)
    (damage,) = verify(store, repair=True).damages
    assert re.search(r"^timm/vit-a@step0#image/its mark in `complete`, rows 0:", damage.what)
    assert not first.exists()
    assert others
    assert all(other.exists() for other in others)


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_repair__what_cannot_be_read_now_is_no_damage(
    store: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk or a network that fails for an hour is not to cost what stands on it."""
    layer = at(store, f"{TOWER}/blocks.0").relative_to(store).as_posix()
    chunk = chunk_files(store, layer)[0].relative_to(store).as_posix()
    metadata = f"{at(store, MEASURE).relative_to(store).as_posix()}/zarr.json"
    original, failing = LocalStore.get, {chunk}

    async def get(self: LocalStore, key: str, *arguments: Any, **settings: Any) -> Any:
        if key in failing:
            raise OSError(code, os.strerror(code), key)
        return await original(self, key, *arguments, **settings)

    monkeypatch.setattr(LocalStore, "get", get)
    before = tree(store)
    found = verify(store, repair=True)
    assert not found.is_whole
    assert found.damages == []
    (line,) = found.unread
    assert line.startswith(f"{chunk} cannot be read now: {os.strerror(code)}. ")
    assert "not read: 1" in "\n".join(found.lines("s"))
    with pytest.raises(UnreadableError, match=re.escape(chunk)):
        np.asarray(
            open_store(store).activations("timm/vit-a", layer="blocks.0", checkpoint="step0")
        )
    failing.add(metadata)
    with pytest.raises(UnreadableError, match=re.escape(metadata)):
        verify(store, repair=True)
    assert tree(store) == before
    failing.clear()
    assert verify(store).is_whole


def test_verify__refuses_to_repair_while_a_run_is_at_work(store: Path) -> None:
    flip(chunk_files(store, at(store, f"{MEASURE}/score").relative_to(store).as_posix())[0])
    with lease(store):
        before = tree(store)
        with pytest.raises(StoreError, match="is in use by process"):
            verify(store, repair=True)
        found = verify(store)  # looking is allowed, and says who writes
        assert found.running is not None
        assert tree(store) == before


def test_verify__no_store(tmp_path: Path) -> None:
    for repair in (False, True):
        with pytest.raises(InputError, match="there is no store at"):
            verify(tmp_path / "none.zarr", repair=repair)
    assert list(tmp_path.iterdir()) == []


def test_verify__command_line(store: Path) -> None:
    def call(*options: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["store", "verify", str(store), *options])
        return result.exit_code, result.output

    code, output = call()
    assert (code, "nothing is damaged or lost" in output) == (0, True)
    assert re.search(r"read \d+ arrays, \d+ chunks, .*B in \d+\.\d s \(.*B/s\)", output)
    flip(chunk_files(store, at(store, f"{MEASURE}/score").relative_to(store).as_posix())[0])
    code, output = call()
    assert code == 1
    assert "damaged or lost: 1" in output
    assert "--repair` prepares them" in output
    code, output = call("--repair")
    assert (code, "the next run computes it again" in output) == (1, True)
    assert call()[0] == 0


CHUNKS = (
    f"{TOWER}/blocks.1",
    f"{MEASURE}/score",
    f"measures/{SET}/prh/state",
    # of all measures: one that is permuted without the others may differ in the last bit
    *(f"calibration/{SET}/{label}/permutation-39-seed3/null" for label in MEASURES),
    f"{ALIGNMENT}/score",
    f"convergence/{SET}/knn/bin",
    f"stimuli/{SET}/caption",
    f"measures/{SET}/row",
    f"activations/{SET}/timm/vit-b/image/stimulus",
    f"measures/{SET}/cka_debiased/slot",
)
METADATA = (
    "",
    "activations",
    f"activations/{SET}/timm/conv/image/stages.2",
    f"activations/{SET}/timm/conv/image/complete",
    f"measures/{SET}/prh/score",
    f"measures/{SET}/knn",
    f"calibration/{SET}/prh/permutation-39-seed3/null",
    f"competence/{SET}",
)


def test_repair__the_next_run_mends_exactly_what_was_damaged(copied: Zoo, zoo: Zoo) -> None:
    """Many faults at once; afterwards the store is the undisturbed one, file by file."""
    store = copied.path
    hows = list(HOW.values())
    for n, pattern in enumerate(CHUNKS):
        if sorted(store.glob(pattern)):
            array = at(store, pattern).relative_to(store).as_posix()
            hows[n % len(hows)](chunk_files(store, array)[0])
    for n, pattern in enumerate(METADATA):
        file = (at(store, pattern) if pattern else store) / "zarr.json"
        (spoil if n % 2 else delete)(file)
    (store / "stimuli" / "x.partial").write_bytes(b"half")
    tower = at(store, TOWER)
    clean = tree(store, tower.relative_to(store).as_posix())
    assert not verify(store).is_whole
    for _ in range(3):  # what stands below lost metadata is read once that is there
        if verify(store, repair=True).is_whole:
            break
    assert verify(store).is_whole
    kept = tree(store, tower.relative_to(store).as_posix())
    gone = {f.rpartition("/c/")[0].rpartition("/")[2] for f in clean.keys() - kept.keys()}
    assert gone == {"blocks.0", "blocks.1", "complete"}  # of one checkpoint; the other is left
    report = copied.run()
    assert report.failures == {}
    assert report.tasks["extract"] == 1  # the one model
    assert report.tasks["compare"] <= 3
    assert tree_of_arrays(copied.path) == tree_of_arrays(zoo.path)
    assert verify(store).is_whole
    assert copied.run().tasks == dict.fromkeys(report.tasks, 0)


def tree_of_arrays(store: Path) -> dict[str, str]:
    """Digest all chunks, but those that say when files were made."""
    return {n: d for n, d in tree(store).items() if "/c/" in n and "/weights_mtime_ns/" not in n}


def test_read__everything_damaged_raises(store: Path) -> None:
    """Each way to data through the API, with each kind of damage to a chunk below it."""
    rows = at(store, f"measures/{SET}/row").relative_to(store).as_posix()
    reads: dict[str, Callable[[], object]] = {
        f"{TOWER}/blocks.1": lambda: (
            open_store(store).activations("timm/vit-a", layer="blocks.1", checkpoint="step0").values
        ),
        f"{TOWER}/stimulus": lambda: open_store(store).activations(
            "timm/vit-a", layer="blocks.1", checkpoint="step0"
        ),
        f"{TOWER}/checkpoint": lambda: open_store(store).catalog(),
        f"{TOWER}/weights_digest": lambda: open_store(store).catalog(),
        f"{TOWER}/step": lambda: open_store(store).catalog(),
        f"{MEASURE}/score": lambda: open_store(store).similarity("cka"),
        f"{MEASURE}/slot": lambda: open_store(store).similarity("cka"),
        f"{MEASURE}/representation": lambda: open_store(store).similarity("cka"),
        f"{ALIGNMENT}/q": lambda: open_store(store).alignment("cka"),
        f"{ALIGNMENT}/encoder_x": lambda: open_store(store).alignment("cka"),
        f"convergence/{SET}/cka/slope": lambda: open_store(store).convergence("cka"),
        f"competence/{SET}/knn_accuracy": lambda: open_store(store).competence(),
        f"stimuli/{SET}/image": lambda: open_store(store).stimuli(),
        f"stimuli/{SET}/label": lambda: open_store(store).stimuli(),
        f"measures/{SET}/row": lambda: open_store(store).rows(rows.split("/")[1]),
    }
    missed = []
    for pattern, call in reads.items():
        matches = sorted(store.glob(pattern))
        if not matches:
            missed.append(f"{pattern} is not there")
            continue
        array = at(store, pattern).relative_to(store).as_posix()
        file = chunk_files(store, array)[0]
        whole = file.read_bytes()
        for name, damage in HOW.items():
            damage(file)
            try:
                call()
                missed.append(f"{array} {name}: no error")
            except StoreError as error:
                if "--repair" not in str(error):
                    missed.append(f"{array} {name}: no remedy in {error}")
            file.write_bytes(whole)
        call()
    assert missed == []


def test_read__lost_activations_are_not_nan_to_dask(store: Path) -> None:
    lazy = open_store(store).activations("timm/vit-a", layer="blocks.1", checkpoint="step0")
    array = at(store, f"{TOWER}/blocks.1").relative_to(store).as_posix()
    delete(chunk_files(store, array)[0])
    with pytest.raises(StoreError, match=r"vit-a/image@step0/blocks\.1: a chunk is lost"):
        lazy.mean().compute()


def test_write_chunk__does_not_fill_up_what_is_lost(store: Path) -> None:
    from pipeline.store.grid import Grid

    group = zarr.open_group(store, mode="r+")[at(store, MEASURE).relative_to(store).as_posix()]
    assert isinstance(group, zarr.Group)
    grid = Grid(group, SCORE_GROUP)
    assert (grid.state() != State.MISSING).any()
    delete(chunk_files(store, f"{group.path}/score")[0])
    one = np.zeros((128, 128), bool)
    one[0, 0] = True
    with pytest.raises(StoreError, match=r"score of slots 0:128 × 0:128 is lost"):
        grid.write_chunk(0, 0, {"score": np.zeros((128, 128))}, one, ~one)
