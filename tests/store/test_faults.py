"""What storage does to a run: full, read-only, newer, not ours. Through the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zarr
from click.testing import CliRunner
from zoo import Zoo, inside, tree

from pipeline import schema
from pipeline.cli import main
from pipeline.cluster import Executor, Outcome, Task
from pipeline.store.io.lease import lease
from pipeline.store.io.location import LOCK, locate
from pipeline.store.layout import open_root
from pipeline.store.verify import verify

MIB = 2**20


def consilience(zoo: Zoo, *arguments: str) -> tuple[int, str]:
    with inside(zoo.folder):
        result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


def run(zoo: Zoo, store: Path | str, *arguments: str) -> tuple[int, str]:
    cluster = ("--cluster", zoo.cluster) if zoo.cluster else ()
    return consilience(zoo, "run", "workflow.yaml", "--store", str(store), *cluster, *arguments)


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[Path]:
    """Mount a small file system in memory, or skip where that is not permitted."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "consilience-test", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"mounting is not permitted here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def arrays_of(store: Path) -> dict[str, str]:
    """Digest all chunks, but those that say when files were made."""
    return {n: d for n, d in tree(store).items() if "/c/" in n and "/weights_mtime_ns/" not in n}


def test_run__disk_full_again_and_again(copied: Zoo, zoo: Zoo, tmp_path: Path) -> None:
    """The disk fills up in one stage after the other; each run goes on where the last ended."""
    with mounted(tmp_path / "small", 64 * MIB) as small:
        store, ballast = small / "store.zarr", small / "ballast"
        outcomes = []
        for free in (8 * 1024, 256 * 1024, 700 * 1024, 2 * MIB, 4 * MIB):
            ballast.unlink(missing_ok=True)
            ballast.write_bytes(bytes(max(0, shutil.disk_usage(small).free - free)))
            code, output = run(copied, store)
            outcomes.append(code)
            if code:
                assert "No space left on device" in output
                assert "Free some space, and run again. What was finished is kept." in output
                assert "Traceback" not in output
            assert not (store / LOCK).exists()
            if (store / "zarr.json").exists():
                found = verify(store)
                assert found.is_whole, found.damages
        ballast.unlink()
        assert run(copied, store)[0] == 0
        assert arrays_of(store) == arrays_of(zoo.path)
        assert verify(store).is_whole
    assert {1, 2} & set(outcomes[:2])
    assert len([code for code in outcomes if code]) >= 3


def test_run__read_only_store(copied: Zoo, tmp_path: Path) -> None:
    with mounted(tmp_path / "small", 64 * MIB) as small:
        shutil.copytree(copied.path, small / "store.zarr")
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        before = tree(small)
        for settings in ((), ("--set", "compare.measures={knn7: {measure: mutual_knn, k: 7}}")):
            code, output = run(copied, small / "store.zarr", *settings)
            assert code == 2
            assert "store.zarr cannot be written: Read-only file system." in output
            assert "need only read" in output
        code, output = run(copied, small / "other.zarr")
        assert code == 2
        assert "other.zarr cannot be written: Read-only file system." in output
        for command in ("info", "ls", "verify"):
            code, output = consilience(copied, "store", command, str(small / "store.zarr"))
            assert code == 0, output
        code, output = consilience(copied, "store", "verify", "--repair", str(small / "store.zarr"))
        assert (code, "Read-only file system" in output) == (2, True)
        assert tree(small) == before


def newer(path: Path) -> None:
    open_root(path, "a").attrs["format_version"] = schema.FORMAT_VERSION + 1


def another_group(path: Path) -> None:
    zarr.create_group(path, zarr_format=3)


def a_file(path: Path) -> None:
    path.write_text("text")


def a_thesis(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("text")


def spoiled(path: Path) -> None:
    open_root(path, "a").create_group("stimuli")
    (path / "zarr.json").write_text("{")


def lost(path: Path) -> None:
    open_root(path, "a").create_group("stimuli")
    (path / "zarr.json").unlink()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (newer, "has store format 3, but this Consilience reads format 2. Use a newer Consilience"),
        (another_group, "is a Zarr group, but not a Consilience store. Name another path."),
        (a_file, "is a file, but a store is a folder. Name another path."),
        (a_thesis, "is not a store, but a folder with other files. Name another path."),
        (spoiled, "zarr.json cannot be read: "),
        (lost, "has lost its zarr.json. `consilience store verify"),
    ],
)
def test_every_command__refuses_what_is_no_store_it_knows(
    zoo: Zoo, tmp_path: Path, make: Callable[[Path], None], expected: str
) -> None:
    path = tmp_path / "odd.zarr"
    make(path)
    before = tree(tmp_path)
    commands = [["store", "info"], ["store", "ls"], ["report"], ["run"], ["plan"]]
    if make not in (spoiled, lost):  # these are what verify is for
        commands += [["store", "verify"], ["store", "verify", "--repair"]]
    for command in commands:
        named = (
            [*command, "workflow.yaml", "--store", str(path)]
            if command[0] in ("run", "plan")
            else [*command, str(path)]
        )
        code, output = consilience(zoo, *named)
        assert code == 2, (command, output)
        assert expected in output, (command, output)
    assert tree(tmp_path) == before


def test_run__path_below_a_file(zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    code, output = run(zoo, tmp_path / "file" / "store.zarr")
    assert code == 2
    assert "file is a file, but a store is a folder" in output


def test_verify__makes_the_root_again(zoo: Zoo, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    shutil.copytree(zoo.path, store, ignore=shutil.ignore_patterns(LOCK))
    before = json.loads((store / "zarr.json").read_text())
    (store / "zarr.json").unlink()
    code, output = consilience(zoo, "store", "verify", str(store))
    assert (code, "the store's root: its zarr.json is lost" in output) == (1, True)
    assert consilience(zoo, "store", "verify", "--repair", str(store))[0] == 1
    assert json.loads((store / "zarr.json").read_text()) == before
    assert consilience(zoo, "store", "verify", str(store))[0] == 0


def test_run__waits_no_longer_than_it_is_told(copied: Zoo) -> None:
    with lease(copied.path):
        code, output = run(copied, copied.path, "--wait", "0.3")
    assert code == 2
    assert "store.zarr is in use by process" in output
    assert "and was for the 0.3 s of --wait" in output


def test_run__lease_lost_in_the_middle(
    copied: Zoo, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run takes the store while a task runs: nothing of its result is written."""
    monkeypatch.setattr("pipeline.store.io.lease.LOOK", 0.0)
    original = Executor.run

    def run_and_lose(self: Executor, tasks: Iterable[Task]) -> Iterator[Outcome]:
        for outcome in original(self, tasks):
            locate(copied.path).update(LOCK, lambda _: b'{"token": "other"}')
            yield outcome

    with monkeypatch.context() as patch:
        patch.setattr(Executor, "run", run_and_lose)
        code, output = run(copied, copied.path, "--replace", "timm/vit-a")
    assert code == 2
    assert "this run has lost the store: another run has taken it over" in output
    assert (copied.path / LOCK).read_bytes() == b'{"token": "other"}'
    (copied.path / LOCK).unlink()
    assert verify(copied.path).is_whole
    assert run(copied, copied.path)[0] == 0
    assert arrays_of(copied.path) == arrays_of(zoo.path)
