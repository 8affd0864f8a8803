"""A stand-in for the Hub on loopback: the part of its HTTP interface that huggingface_hub's client calls to
make a repo, commit to it and fetch from it. Safetensors go the way of large files, as they do there."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants


class Hub:
    """Repos in memory: `branches[repo][branch]` is a commit, `trees[commit]` its files by path.

    Args of the instance: `token`, which every request to a repo in `private` has to bring; `calls`, the
    requests so far as "METHOD path".
    """

    def __init__(self) -> None:
        self.branches: dict[str, dict[str, str]] = {}
        self.trees: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}  # by sha256
        self.private: set[str] = set()
        self.token = "hf_secret"
        self.calls: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        return self.trees[self.branches[repo][branch]]

    def commit(self, repo: str, branch: str, files: dict[str, bytes]) -> str:
        """A new commit with these files over the branch's; returns its name."""
        tree = {**self.files(repo, branch), **files}
        said = json.dumps(
            [repo, len(self.trees), sorted((p, hashlib.sha1(d).hexdigest()) for p, d in tree.items())]
        )
        name = hashlib.sha1(said.encode()).hexdigest()
        self.trees[name], self.branches[repo][branch] = tree, name
        return name

    def create(self, repo: str, private: bool = False) -> None:
        empty = hashlib.sha1(repo.encode()).hexdigest()
        self.trees[empty], self.branches[repo] = {}, {"main": empty}
        if private:
            self.private.add(repo)

    def find(self, repo: str, revision: str) -> dict[str, bytes] | None:
        revision = self.branches[repo].get(revision, revision)
        return self.trees.get(revision)


def set_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What HF_ENDPOINT does when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )


@contextlib.contextmanager
def served(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Hub]:
    """A Hub, and a client that knows no other: no token, no cache, no Xet (which has a server of its own)."""
    one = Hub()
    set_endpoint(monkeypatch, one.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "none"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield one
    one.close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # an answer is a head and a body: not 40 ms between them

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            given = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
            for name, value in given.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                whole = b""
                while size := int(self.rfile.readline(), 16):
                    whole += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return whole
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _allowed(self, repo: str) -> bool:
            if repo in hub.branches and (
                repo not in hub.private or self.headers.get("Authorization") == f"Bearer {hub.token}"
            ):
                return True
            self._answer(401, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})
            return False

        def _resolve(self) -> None:
            path = urlsplit(self.path).path
            hub.calls.append(f"{self.command} {path}")
            match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            if match is None:
                return self._answer(404)
            repo, revision, file = match[1], unquote(match[2]), unquote(match[3])
            if not self._allowed(repo):
                return None
            tree = hub.find(repo, revision)
            if tree is None:
                return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            commit = hub.branches[repo].get(revision, revision)
            if file not in tree:
                return self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            data = tree[file]
            headers = {"X-Repo-Commit": commit, "ETag": f'"{_oid(data)}"', "Content-Type": "text/plain"}
            if file.endswith(".safetensors"):
                headers["X-Linked-Etag"] = f'"{hashlib.sha256(data).hexdigest()}"'
                headers["X-Linked-Size"] = str(len(data))
            return self._answer(200, data, headers)

        do_GET = do_HEAD = lambda self: self._resolve()

        def do_PUT(self) -> None:
            hub.calls.append(f"PUT {self.path}")
            data, name = self._body(), self.path.rsplit("/", 1)[-1]
            if hashlib.sha256(data).hexdigest() != name:
                return self._answer(400, {"error": "not what was promised"})
            hub.large[name] = data
            return self._answer(200)

        def do_POST(self) -> None:
            path, body = urlsplit(self.path).path, self._body()
            hub.calls.append(f"POST {path}")
            if path == "/api/repos/create":
                return self._create(json.loads(body))
            if path == "/api/validate-yaml":
                return self._validate(json.loads(body)["content"])
            for pattern, act in (
                (r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", self._preupload),
                (r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", self._commit),
                (r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", self._branch),
                (r"/([^/]+/[^/]+)\.git/info/lfs/objects/(batch)", self._batch),
            ):
                if match := re.fullmatch(pattern, path):
                    return self._allowed(match[1]) and act(match[1], unquote(match[2]), body)
            return self._answer(404, {"error": f"no {path}"})

        def _create(self, asked: dict[str, Any]) -> None:
            repo = f"{asked['organization'] or 'me'}/{asked['name']}"
            if repo in hub.branches:
                return self._answer(409, {"url": f"{hub.url}/{repo}", "error": "there is one"})
            hub.create(repo, asked.get("visibility") == "private" or asked.get("private", False))
            return self._answer(200, {"url": f"{hub.url}/{repo}"})

        def _validate(self, content: str) -> None:
            match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
            data = yaml.safe_load(match[1]) if match else None
            if not isinstance(data, dict):
                return self._answer(400, {"errors": [{"message": "no metadata"}], "warnings": []})
            return self._answer(200, {"errors": [], "warnings": []})

        def _preupload(self, repo: str, branch: str, body: bytes) -> None:
            tree = hub.files(repo, branch)
            files = []
            for file in json.loads(body)["files"]:
                name = file["path"]
                mode = "lfs" if name.endswith(".safetensors") else "regular"
                oid = _oid(tree[name]) if name in tree and mode == "regular" else None
                files.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            self._answer(200, {"files": files})

        def _batch(self, repo: str, _: str, body: bytes) -> None:
            objects = []
            for one in json.loads(body)["objects"]:
                there = one["oid"] in hub.large
                upload = {} if there else {"actions": {"upload": {"href": f"{hub.url}/upload/{one['oid']}"}}}
                objects.append({**one, **upload})
            self._answer(200, {"transfer": "basic", "objects": objects})

        def _commit(self, repo: str, branch: str, body: bytes) -> None:
            files = {}
            for line in body.splitlines():
                said = json.loads(line)
                if said["key"] == "file":
                    files[said["value"]["path"]] = base64.b64decode(said["value"]["content"])
                elif said["key"] == "lfsFile":
                    files[said["value"]["path"]] = hub.large[said["value"]["oid"]]
            name = hub.commit(repo, branch, files)
            self._answer(200, {"commitUrl": f"{hub.url}/{repo}/commit/{name}", "commitOid": name})

        def _branch(self, repo: str, branch: str, body: bytes) -> None:
            if branch in hub.branches[repo]:
                return self._answer(409, {"error": "there is one"})
            hub.branches[repo][branch] = hub.branches[repo]["main"]
            return self._answer(200, {})

    return Handler


def _oid(data: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
