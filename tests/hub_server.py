"""A small Hub on loopback: repositories in memory, commits, LFS uploads, resolve with a redirect to another origin.

It answers the routes that `huggingface_hub`, `datasets` and `transformers` really call for create, upload and load, in
the shapes that those libraries parse. Xet is off (`HF_HUB_DISABLE_XET=1` in the client's environment).
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

TOKEN = "hf_test_token"


@dataclass
class Repo:
    kind: str
    name: str
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=lambda: ["0" * 40])
    history: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})

    @property
    def sha(self) -> str:
        return self.commits[-1]

    def at(self, revision: str) -> dict[str, bytes] | None:
        return self.files if revision in ("main", self.sha) else self.history.get(revision)


class Hub:
    """The server and what it holds. `requests` lists (method, path); `refuse_writes` makes the token read-only."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.refuse_writes = False
        any_method = ["GET", "HEAD", "POST", "PUT", "DELETE"]
        self.app = Starlette(routes=[Route("/{path:path}", self.answer, methods=any_method)])
        config = uvicorn.Config(self.app, host="127.0.0.1", port=0, log_level="error", lifespan="off")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> Hub:
        self.thread.start()
        deadline = time.monotonic() + 20
        while not self.server.started:
            assert time.monotonic() < deadline, "the Hub did not start"
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(10)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def answer(self, request: Request) -> Response:
        path = request.url.path
        self.requests.append((request.method, path))
        if path.startswith("/lfs/"):
            return await self._blob(request, path.removeprefix("/lfs/"))
        if path == "/api/repos/create":
            return await self._create(request)
        if path == "/api/validate-yaml":
            return JSONResponse({"errors": [], "warnings": []})
        if path.startswith("/api/"):
            return await self._api(request, path.removeprefix("/api/").split("/"))
        if path.endswith("/info/lfs/objects/batch"):
            return await self._lfs_batch(request)
        return self._resolve(path.strip("/").split("/"))

    async def _create(self, request: Request) -> Response:
        body = await request.json()
        kind = body.get("type") or "model"
        name = f"{body.get('organization') or 'me'}/{body['name']}"
        if self.refuse_writes:
            return JSONResponse({"error": "You don't have the rights to create a repo"}, 403)
        url = f"{self.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in self.repos:
            return JSONResponse({"error": "You already created this repo", "url": url}, 409)
        private = body.get("visibility") == "private" or bool(body.get("private"))
        self.repos[kind, name] = Repo(kind, name, private)
        return JSONResponse({"url": url})

    async def _api(self, request: Request, parts: list[str]) -> Response:
        if parts[0] == "whoami-v2":
            return JSONResponse({"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": "write"}}})
        if parts[0] not in ("models", "datasets"):
            return JSONResponse({"error": "not found"}, 404)
        repo = self.repos.get((parts[0].removesuffix("s"), "/".join(parts[1:3])))
        if repo is None:
            return JSONResponse({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if repo.private and request.headers.get("authorization") != f"Bearer {TOKEN}":
            return JSONResponse({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
        verb = parts[3] if len(parts) > 3 else "revision"
        if verb == "preupload":
            return self._preupload(await request.json())
        if verb == "commit":
            return self._commit(repo, await request.body())
        revision = parts[4] if len(parts) > 4 else "main"
        files = repo.at(revision)
        if files is None:
            return JSONResponse({"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
        if verb == "revision":
            siblings = [{"rfilename": name} for name in sorted(files)]
            sha = repo.sha if revision == "main" else revision
            info = {"id": repo.name, "_id": "1", "sha": sha, "private": repo.private, "tags": [], "siblings": siblings}
            return JSONResponse({**info, "downloads": 0, "likes": 0, "lastModified": "2026-01-01T00:00:00.000Z"})
        if verb == "tree":
            return self._tree(repo, files, "/".join(parts[5:]), "recursive" in request.url.query)
        if verb == "paths-info":
            form = await request.form()
            wanted = [str(value) for value in form.getlist("paths")]
            return JSONResponse([self._entry(repo, files, name) for name in wanted if name in files])
        return JSONResponse({"error": "not found"}, 404)

    def _preupload(self, body: dict) -> Response:
        def mode(path: str) -> str:
            return "lfs" if path.endswith((".parquet", ".safetensors", ".png")) else "regular"

        files = [{"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False} for f in body["files"]]
        return JSONResponse({"files": files})

    def _commit(self, repo: Repo, body: bytes) -> Response:
        if self.refuse_writes:
            return JSONResponse({"error": "This token is read-only"}, 403)
        lines = [json.loads(line) for line in body.decode().splitlines() if line]
        parent = lines[0]["value"].get("parentCommit")
        if parent is not None and parent != repo.sha:
            return JSONResponse({"error": "A commit has happened since"}, 412)
        repo.history[repo.sha] = dict(repo.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo.files[value["path"]] = self.blobs[value["oid"]]
                repo.lfs.add(value["path"])
            elif line["key"] == "deletedFile":
                del repo.files[value["path"]]
        repo.commits.append(hashlib.sha1(body + repo.sha.encode()).hexdigest())
        repo.history[repo.sha] = dict(repo.files)
        url = f"{self.endpoint}/{'datasets/' if repo.kind == 'dataset' else ''}{repo.name}/commit/{repo.sha}"
        return JSONResponse({"success": True, "commitOid": repo.sha, "commitUrl": url, "hookOutput": ""})

    async def _lfs_batch(self, request: Request) -> Response:
        body = await request.json()
        objects = []
        for item in body["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.blobs:
                entry["actions"] = {"upload": {"href": f"{self.endpoint}/lfs/{item['oid']}", "header": {}}}
            objects.append(entry)
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def _blob(self, request: Request, oid: str) -> Response:
        if request.method == "PUT":
            content = await request.body()
            assert hashlib.sha256(content).hexdigest() == oid
            self.blobs[oid] = content
            return Response(status_code=200)
        return Response(self.blobs[oid], headers={"ETag": f'"{oid}"'})

    def _entry(self, repo: Repo, files: dict[str, bytes], name: str) -> dict:
        content = files[name]
        entry = {"type": "file", "path": name, "size": len(content), "oid": _git_sha1(content)}
        if name in repo.lfs:
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return entry

    def _tree(self, repo: Repo, files: dict[str, bytes], folder: str, recursive: bool) -> Response:
        prefix = f"{folder}/" if folder else ""
        inside = [name for name in sorted(files) if name.startswith(prefix)]
        if folder and not inside:
            return JSONResponse({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        entries: dict[str, dict] = {}
        for name in inside:
            head, _, tail = name.removeprefix(prefix).partition("/")
            if tail:
                path = prefix + head
                entries.setdefault(path, {"type": "directory", "path": path, "size": 0, "oid": "0" * 40})
            if recursive or not tail:
                entries[name] = self._entry(repo, files, name)
        return JSONResponse(list(entries.values()))

    def _resolve(self, parts: list[str]) -> Response:
        kind = "dataset" if parts[0] == "datasets" else "model"
        parts = parts[1:] if kind == "dataset" else parts
        repo = self.repos.get((kind, "/".join(parts[:2])))
        if repo is None or len(parts) < 5 or parts[2] != "resolve":
            return JSONResponse({"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        files = repo.at(parts[3])
        name = "/".join(parts[4:])
        headers = {"X-Repo-Commit": repo.sha if parts[3] == "main" else parts[3]}
        if files is None or name not in files:
            return JSONResponse({"error": "not found"}, 404, headers | {"X-Error-Code": "EntryNotFound"})
        content = files[name]
        if name in repo.lfs:
            oid = hashlib.sha256(content).hexdigest()
            self.blobs[oid] = content
            headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
            return RedirectResponse(f"http://localhost:{self.port}/lfs/{oid}", 302, headers)
        return Response(content, headers=headers | {"ETag": f'"{_git_sha1(content)}"'})


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
