"""A small Hugging Face hub on this machine: repositories with commits, served as the real one does.

It answers what `huggingface_hub` asks when it reads: which commit a revision is, which files there
are, and their bytes.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

Kind = Literal["models", "datasets"]


class Hub:
    """Repositories in a folder, `KIND/NAME/COMMIT/FILE`, and a server of them.

    Attributes
    ----------
    url
        What `HF_ENDPOINT` has to be.
    requests
        Method and path of every request.
    gated
        Names of repositories whose files nobody may read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[str] = []
        self.gated: set[str] = set()
        self._refs: dict[tuple[Kind, str], dict[str, str]] = {}

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """Return the variables with which a process uses this hub, and a cache of its own."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def commit(
        self,
        name: str,
        files: Mapping[str, bytes],
        *,
        kind: Kind = "models",
        tag: str | None = None,
    ) -> str:
        """Make these files the main branch of a repository, and return the commit's hash."""
        refs = self._refs.setdefault((kind, name), {})
        digest = hashlib.sha1(refs.get("main", "").encode())
        for path, content in sorted(files.items()):
            digest.update(f"{path} {len(content)} ".encode() + content)
        commit = digest.hexdigest()
        for path, content in files.items():
            file = self.folder / kind / name / commit / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        refs["main"] = refs[commit] = commit
        if tag is not None:
            refs[tag] = commit
        return commit

    def find(self, kind: Kind, path: str) -> tuple[str, str] | None:
        """Return the repository that a path begins with, and the rest of the path."""
        for known, name in self._refs:
            if known == kind and (path + "/").startswith(name + "/"):
                return name, path[len(name) + 1 :]
        return None

    def resolve(self, kind: Kind, name: str, revision: str) -> str | None:
        return self._refs[kind, name].get(revision)

    def files(self, kind: Kind, name: str, commit: str) -> dict[str, Path]:
        root = self.folder / kind / name / commit
        return {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*")) if p.is_file()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {self.path}")
        path = unquote(urlsplit(self.path).path).strip("/")
        if path.startswith("api/"):
            self._api(path.removeprefix("api/"), body)
        else:
            kind: Kind = "datasets" if path.startswith("datasets/") else "models"
            self._file(kind, path.removeprefix("datasets/"))

    def _api(self, path: str, body: bytes) -> None:
        kind, _, rest = path.partition("/")
        found = self.hub.find(kind, rest) if kind in ("models", "datasets") else None  # type: ignore[arg-type]
        if found is None:
            return self._fault("RepoNotFound", "Repository not found")
        name, rest = found
        what, _, rest = rest.partition("/")
        # a revision may be written with its slash escaped, or in parts
        revision, _, below = rest.partition("/") if what else ("main", "", "")
        commit = self.hub.resolve(kind, name, revision)  # type: ignore[arg-type]
        if commit is None:
            return self._fault("RevisionNotFound", f"Invalid rev id: {revision}")
        files = self.hub.files(kind, name, commit)  # type: ignore[arg-type]
        if what in ("", "revision"):
            return self._json(
                {
                    "id": name,
                    "sha": commit,
                    "private": False,
                    "gated": "manual" if name in self.hub.gated else False,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                    "siblings": [{"rfilename": path} for path in files],
                }
            )
        if what == "tree":
            query = parse_qs(urlsplit(self.path).query)
            recursive = query.get("recursive", ["false"])[0].lower() == "true"
            return self._json(_tree(files, below, recursive))
        if what == "paths-info":
            given = body.decode()
            wanted = json.loads(given) if given.startswith("{") else parse_qs(given)
            entries = {e["path"]: e for e in _tree(files, "", recursive=True)}
            return self._json([entries[p] for p in wanted["paths"] if p in entries])
        return self._fault("EntryNotFound", f"no route {what}")

    def _file(self, kind: Kind, path: str) -> None:
        found = self.hub.find(kind, path)
        if found is None:
            return self._fault("RepoNotFound", "Repository not found", 401)
        name, rest = found
        _, revision, file = rest.split("/", 2)
        commit = self.hub.resolve(kind, name, revision)
        if commit is None:
            return self._fault("RevisionNotFound", f"Invalid rev id: {revision}")
        if name in self.hub.gated:
            return self._fault("GatedRepo", f"Access to {kind} {name} is restricted.", 403)
        known = self.hub.files(kind, name, commit)
        if file not in known:
            return self._fault(
                "EntryNotFound", "Entry not found", headers={"X-Repo-Commit": commit}
            )
        content = known[file].read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        wanted = self.headers.get("Range")
        if wanted is None:
            return self._send(200, content, headers)
        start, _, end = wanted.removeprefix("bytes=").partition("-")
        first, last = int(start or 0), int(end or len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self._send(206, content[first : last + 1], headers)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fault(
        self, code: str, message: str, status: int = 404, headers: Mapping[str, str] | None = None
    ) -> None:
        self._send(
            status,
            json.dumps({"error": message}).encode(),
            {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})},
        )

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _tree(files: Mapping[str, Path], below: str, recursive: bool) -> list[dict[str, Any]]:
    """Return files and folders below a folder, as the hub lists them."""
    found: dict[str, dict[str, Any]] = {}
    for path, file in files.items():
        if below and not path.startswith(below + "/"):
            continue
        parts = path.split("/")
        for depth in range(below.count("/") + 1 + bool(below), len(parts)):
            folder = "/".join(parts[:depth])
            found[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
        oid = hashlib.sha1(file.read_bytes()).hexdigest()
        found[path] = {"type": "file", "path": path, "oid": oid, "size": file.stat().st_size}
    direct = 0 if not below else below.count("/") + 1
    return [e for p, e in found.items() if recursive or p.count("/") == direct]
