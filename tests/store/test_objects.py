"""Stores at URLs: an S3 server on this machine, and the memory of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from processes import PATIENCE
from rich.console import Console
from zoo import Zoo, inside

from pipeline.cli import main
from pipeline.errors import InputError, StoreError
from pipeline.report.write import default_folder
from pipeline.store import open_store
from pipeline.store.io.lease import holder, lease
from pipeline.store.io.location import LOCK, locate
from pipeline.store.io.objects import _MAX_CLIENTS, _client
from pipeline.store.verify import verify
from pipeline.store.writer import StoreWriter
from pipeline.workflow import RunReport, load_workflow, run_workflow
from pipeline.workflow.log import read_runs

BUCKET = "s3://consilience-test"
SMALL = ("models={ids: [timm/vit-a, timm/vit-b]}", "compare.measures={cka: {}}")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Address of an S3 server, with one bucket; the environment names it."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_: object) -> None: ...

    application, one_at_a_time = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def serve(environ: Any, start_response: Any) -> list[bytes]:
        # moto looks at the ETag, and then writes: its own threads lose one of forty updates
        with one_at_a_time:
            return list(application(environ, start_response))

    server = make_server("127.0.0.1", 0, serve, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("NO_PROXY", "127.0.0.1")
        bucket = urllib.request.Request(f"{url}/{BUCKET.removeprefix('s3://')}", method="PUT")
        urllib.request.urlopen(bucket, timeout=PATIENCE).close()
        yield url
    server.shutdown()
    thread.join()
    server.server_close()


def contents(root: zarr.Group) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(found[...])
        for name, found in root.members(max_depth=None)
        if isinstance(found, zarr.Array)
    }


def run(zoo: Zoo, store: str, *settings: str) -> RunReport:
    with inside(zoo.folder), open(os.devnull, "w") as nowhere:
        spec, _ = load_workflow("workflow.yaml", settings=settings, store=store)
        return run_workflow(spec, cluster=zoo.cluster, console=Console(file=nowhere))


# the lock, which is empty now, cannot be removed there: Zarr wonders what it is
@pytest.mark.filterwarnings("ignore:Object at consilience.lock")
def test_run__on_s3_with_processes_equals_one_on_disk(copied: Zoo, s3: str) -> None:
    url = f"{BUCKET}/some/where/zoo.zarr"
    report = run(replace(copied, cluster=None), url, *SMALL)  # two worker processes
    assert report.failures == {}
    assert run(copied, "disk.zarr", *SMALL).failures == {}
    (log,) = read_runs(url)
    assert (log.outcome, len(log.tasks)) == ("done", sum(report.tasks.values()))
    disk = open_store(copied.folder / "disk.zarr")
    on_s3, on_disk = contents(open_store(url).root), contents(disk.root)
    assert on_s3.keys() == on_disk.keys()
    for name, values in on_disk.items():
        if not name.endswith("weights_mtime_ns"):
            if values.dtype.kind == "f":  # other threads of arithmetic round otherwise
                np.testing.assert_allclose(on_s3[name], values, rtol=1e-5, atol=1e-7, err_msg=name)
            else:
                np.testing.assert_array_equal(on_s3[name], values, err_msg=name)
    assert holder(url) is None
    again = run(copied, url, *SMALL)
    assert set(again.tasks.values()) == {0}
    store = open_store(url)
    with inside(copied.folder):
        assert default_folder(store, "x").resolve() == (copied.folder / "zoo.report").resolve()
    lazy = store.activations("timm/vit-a", layer="blocks.1", checkpoint="step0")
    local = disk.activations("timm/vit-a", layer="blocks.1", checkpoint="step0")
    np.testing.assert_array_equal(lazy.values, local.values)
    damage_one_chunk(url, lazy.attrs["representation"])
    for command, code in (("info", 0), ("ls", 0), ("verify", 1)):
        result = CliRunner().invoke(main, ["store", command, url])
        assert result.exit_code == code, result.output
    assert "timm/vit-a@step0#image/blocks.1, rows 0:597: a chunk is damaged" in result.output
    assert verify(url, repair=True).repaired
    mended = run(copied, url, *SMALL)
    assert (mended.tasks["extract"], mended.tasks["compare"]) == (1, 0)
    np.testing.assert_array_equal(
        open_store(url).activations(lazy.attrs["representation"]).values, local.values
    )


def damage_one_chunk(url: str, representation: str) -> None:
    location = locate(url)
    tower = next(e for e in open_store(url).encoders() if representation.startswith(e.id))
    key = f"{tower.path}/blocks.1/c/{['step0', 'step10'].index(tower.checkpoint)}/0/0"

    def flipped(record: object) -> bytes:
        content = bytearray(record.content)  # type: ignore[attr-defined]
        content[50] ^= 1
        return bytes(content)

    location.update(key, flipped)


def test_lease__on_s3(s3: str) -> None:
    url = f"{BUCKET}/lease.zarr"
    with lease(url, beat=0.1) as mine:
        with pytest.raises(StoreError, match=r"s3://.*lease\.zarr is in use by process"):
            lease(url).__enter__()
        time.sleep(0.5)
        mine.check()
    assert holder(url) is None
    with lease(url):
        pass


CONTEST = """
import sys
from pipeline.errors import StoreError
from pipeline.store.io.lease import lease
for n in range(int(sys.argv[2])):
    print(n, flush=True)
    sys.stdin.readline()
    try:
        with lease(f"{sys.argv[1]}/{n}"):
            print("held", flush=True)
            sys.stdin.readline()
    except StoreError as error:
        print("refused" if "in use by" in str(error) else error, flush=True)
        sys.stdin.readline()
"""


def test_lease__of_many_processes_one_has_it_on_s3(s3: str) -> None:
    url, rounds = f"{BUCKET}/contest", 30
    for n in range(0, rounds, 2):  # every other one is that of a host that fell silent
        with lease(f"{url}/{n}", stale=1e9):
            record = locate(f"{url}/{n}").read(LOCK)
        assert record is not None
        old = json.dumps(json.loads(record.content) | {"host": "node17", "heartbeat": 1.0}).encode()
        locate(f"{url}/{n}").update(LOCK, lambda _, old=old: old)  # type: ignore[misc]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CONTEST, url, str(rounds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    outcomes = []
    try:
        for n in range(rounds):
            for step in (str(n), None):
                said = [p.stdout.readline().strip() for p in processes if p.stdout]
                if step is None:
                    outcomes.append(sorted(said))
                else:
                    assert said == [step] * 3
                for process in processes:
                    assert process.stdin is not None
                    process.stdin.write("\n")
                    process.stdin.flush()
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert outcomes == [["held", "refused", "refused"]] * rounds


def test_update__of_many_threads_none_is_lost(s3: str) -> None:
    location = locate(f"{BUCKET}/counter")

    def count() -> None:
        for _ in range(10):
            location.update("n", lambda r: str(int(r.content if r else b"0") + 1).encode())

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record = location.read("n")
    assert record is not None
    assert record.content == b"40"


def test_locate__more_urls_than_clients_are_kept(s3: str) -> None:
    urls = [f"{BUCKET}/client-{n}.zarr" for n in range(_MAX_CLIENTS + 1)]
    opened = StoreWriter(urls[0], create=True)
    first = _client(urls[0])
    locations = [locate(url) for url in urls]
    for n, location in enumerate(locations):
        location.update("n", lambda _, n=n: str(n).encode())  # type: ignore[misc]
    assert _client.cache_info().currsize == _MAX_CLIENTS
    assert opened.sets == open_store(urls[0]).sets == []
    assert _client(urls[0]) is not first  # which was evicted
    for n, location in enumerate(locations):
        for each in (location, locate(urls[n])):
            record = each.read("n")
            assert record is not None
            assert record.content == str(n).encode()


def test_locate__stores_in_memory_are_never_dropped() -> None:
    urls = [f"memory://tests/kept-{n}" for n in range(2 * _MAX_CLIENTS)]
    for url in urls:
        locate(url).update("n", lambda _, url=url: url.encode())  # type: ignore[misc]
    for url in urls:
        record = locate(url).read("n")
        assert record is not None
        assert record.content == url.encode()


def test_open_store__bucket_that_is_not_there(s3: str) -> None:
    with pytest.raises(StoreError, match=r"s3://no-bucket/a\.zarr cannot be reached: .*bucket's"):
        open_store("s3://no-bucket/a.zarr")
    with pytest.raises(InputError, match=rf"there is no store at {BUCKET}/none\.zarr\. `cons"):
        open_store(f"{BUCKET}/none.zarr")


def test_open_store__server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    started = time.monotonic()
    result = CliRunner().invoke(main, ["store", "info", "s3://silent/a.zarr"])
    assert result.exit_code == 2, result.output
    assert "s3://silent/a.zarr cannot be reached: " in result.output
    assert time.monotonic() - started < 300


def test_locate__unknown_scheme() -> None:
    with pytest.raises(InputError, match=r"ftp://x: stores are folders, or URLs that begin with"):
        locate("ftp://x")


def test_locate__file_url(tmp_path: Path) -> None:
    assert locate(f"file://{tmp_path}") == locate(tmp_path)


def test_run__in_memory(copied: Zoo, zoo: Zoo) -> None:
    url = "memory://tests/zoo.zarr"
    assert run(copied, url, *SMALL).failures == {}  # the worker is in this process
    value = open_store(url).activations("timm/vit-b", layer="blocks.0", checkpoint="step10")
    expected = zoo.store().activations("timm/vit-b", layer="blocks.0", checkpoint="step10")
    np.testing.assert_array_equal(value.values, expected.values)
    assert set(run(copied, url, *SMALL).tasks.values()) == {0}
    assert verify(url).is_whole


def test_run__in_memory_with_other_processes(copied: Zoo) -> None:
    url = "memory://tests/refused.zarr"
    with pytest.raises(InputError, match="is the memory of one process, but the workers are"):
        run(replace(copied, cluster=None), url)
    assert locate(url).is_empty()


def test_without_obstore(zoo: Zoo) -> None:
    text = (
        "import sys; sys.modules['obstore'] = sys.modules['obstore.store'] = None\n"
        "from pipeline.cli import main; main(['store', 'info', 's3://b/a.zarr'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 2
    assert "pip install 'consilience[s3]'" in done.stderr
    assert "Traceback" not in done.stderr
