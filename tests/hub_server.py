"""A Hub on loopback that the released `huggingface_hub`, `hf_xet`, `datasets` and `transformers` talk to.

It answers the routes that they call for create, upload, load, tag and collect, with the real one's shapes, paging,
redirects to another origin and error codes. `cut`, `fail` and `before_commit` make it misbehave.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import uvicorn
import yaml
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from tests.hub_repos import LARGE, CommitError, File, Repo, Tree, apply_commit, xet_hashes

TOKEN, READ_TOKEN = "hf_test_token", "hf_read_token"
LICENSES = {"mit", "apache-2.0", "cc-by-4.0", "cc-by-nc-4.0", "llama3", "other"}
PAGE = 1000


@dataclass
class Fault:
    """The next `times` requests that match get this status instead of an answer."""

    pattern: str
    status: int
    times: int = 1
    headers: dict[str, str] | None = None


class Hub:
    """The server and what it holds. `requests` lists what was asked, `METHOD path`."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.collections: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.cut_after: int | None = None  # requests that still get an answer; then the line is dead
        self.cut_once: int | None = None  # requests until one line is cut; the next requests get their answers
        self.cut_late = False  # the request at which the line dies is carried out, only its answer is lost
        self.before_commit: Callable[[Repo], None] | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="hub-"))
        config = uvicorn.Config(self, host="127.0.0.1", port=0, log_level="critical", lifespan="off")
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
        self.server.should_exit = self.server.force_exit = True  # clients keep their connections open
        self.thread.join(10)
        shutil.rmtree(self.folder)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def reset(self) -> None:
        """Forgets everything but uploaded large files."""
        for kept in (self.repos, self.collections, self.requests, self.faults):
            kept.clear()
        self.cut_after, self.cut_once, self.cut_late, self.before_commit = None, None, False, None

    def dataset(self, name: str = "me/data") -> Repo:
        return self.repos["dataset", name]

    def model(self, name: str = "me/router") -> Repo:
        return self.repos["model", name]

    def add(self, kind: str, name: str, **options: Any) -> Repo:
        self.repos[kind, name] = Repo(kind, name, options.pop("private", True), **options)
        return self.repos[kind, name]

    def fail(self, pattern: str, status: int, times: int = 1, headers: dict[str, str] | None = None) -> None:
        self.faults.append(Fault(pattern, status, times, headers))

    def content(self, file: File) -> bytes:
        return file.content if file.content is not None else self._blob_path(file.sha256).read_bytes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. A dead line is a connection that is closed without a word."""
        request = Request(scope, receive)
        segments = [unquote(part) for part in scope["raw_path"].decode().split("?")[0].strip("/").split("/")]
        dead = self.cut_after is not None and self.cut_after <= 0
        if self.cut_after is not None:
            self.cut_after -= 1
        if self.cut_once is not None:
            dead = dead or self.cut_once == 0
            self.cut_once -= 1
        late = dead and self.cut_late
        self.cut_late = self.cut_late and not dead
        if dead and not late:
            await _hang_up(send)
            return
        self.requests.append(f"{request.method} /{'/'.join(segments)}")
        response = self._fault(self.requests[-1]) or await self._answer(request, segments)
        if late:
            await _hang_up(send)
            return
        await response(scope, receive, send)

    def _fault(self, asked: str) -> Response | None:
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.pattern, asked):
                fault.times -= 1
                return JSONResponse({"error": "injected"}, fault.status, fault.headers)
        return None

    async def _answer(self, request: Request, path: list[str]) -> Response:
        if path[0] in ("lfs", "blob"):
            return await self._large(request, path[1])
        if path[0] == "api":
            return await self._api(request, path[1:])
        if path[-4:] == ["info", "lfs", "objects", "batch"]:
            return await self._lfs_batch(request)
        return self._resolve(request, path)

    async def _api(self, request: Request, path: list[str]) -> Response:
        if path[0] == "whoami-v2":
            return self._whoami(request)
        if path[0] == "validate-yaml":
            return _validate_yaml(await request.json())
        if path[0] == "collections":
            return await self._collection(request, path[1:])
        if path[0] == "repos":
            return await self._create(request)
        repo = self.repos.get((path[0].removesuffix("s"), "/".join(path[1:3])))
        if repo is None or not self._may_read(request, repo):
            return _error(404 if self._role(request) else 401, "Repository not found", "RepoNotFound")
        verb, rest = (path[3], path[4:]) if len(path) > 3 else ("revision", ["main"])
        if verb == "auth-check":
            return self._auth_check(request, repo, rest)
        writes = verb in ("commit", "preupload", "branch", "tag", "xet-write-token")
        if writes and self._role(request) != "write":
            return _error(403, "You have read access but not the required permissions for this operation")
        if verb == "preupload":
            return self._preupload(repo, rest[0], await request.json())
        if verb == "commit":
            return await self._commit(request, repo, rest[0])
        if verb in ("branch", "tag"):
            return await self._mark(request, repo, verb, rest[0])
        if verb.startswith("xet-"):
            return self._xet_token()
        if verb == "refs":
            return _refs(repo)
        return await self._read(request, repo, verb, rest)

    async def _read(self, request: Request, repo: Repo, verb: str, rest: list[str]) -> Response:
        commit = repo.resolve(rest[0])
        if commit is None:
            return _error(404, f"Invalid rev id: {rest[0]}", "RevisionNotFound")
        tree = repo.trees[commit]
        if verb == "revision":
            siblings = [{"rfilename": name} for name in sorted(tree)]
            about = {"id": repo.name, "_id": "1", "sha": commit, "private": repo.private, "gated": repo.gated}
            when = {"lastModified": "2026-01-01T00:00:00.000Z", "downloads": 0, "likes": 0, "tags": []}
            return JSONResponse(about | when | {"siblings": siblings})
        if verb == "tree":
            return self._tree(request, tree, "/".join(rest[1:]))
        if verb == "paths-info":
            form = await request.form()
            wanted = [str(value) for value in form.getlist("paths")]
            return JSONResponse([self._entry(name, tree[name]) for name in wanted if name in tree])
        if verb == "commits":
            log = [{"id": c, "title": m, "authors": [], "date": "2026-01-01T00:00:00.000Z"} for c, _, m in repo.log]
            return JSONResponse(log[::-1])
        return _error(404, "not found")

    def _role(self, request: Request) -> str | None:
        sent = request.headers.get("authorization", "").removeprefix("Bearer ")
        return {TOKEN: "write", READ_TOKEN: "read"}.get(sent)

    def _may_read(self, request: Request, repo: Repo) -> bool:
        return not repo.private or self._role(request) is not None

    def _whoami(self, request: Request) -> Response:
        role = self._role(request)
        if role is None:
            return _error(401, "Invalid credentials in Authorization header")
        access = {"displayName": "test", "role": role}
        who = {"type": "user", "name": "me", "fullname": "Me", "orgs": [{"type": "org", "name": "my-org"}]}
        return JSONResponse(who | {"auth": {"type": "access_token", "accessToken": access}})

    def _auth_check(self, request: Request, repo: Repo, rest: list[str]) -> Response:
        if rest == ["write"] and self._role(request) != "write":
            return _error(403, "You have read access but not the required permissions for this operation")
        if repo.gated:
            return _error(403, "Access to this repository is restricted", "GatedRepo")
        return JSONResponse({})

    async def _create(self, request: Request) -> Response:
        body = await request.json()
        kind = body.get("type") or "model"
        name = f"{body.get('organization') or 'me'}/{body['name']}"
        if self._role(request) != "write":
            return _error(403, "You don't have the rights to create a repo")
        url = f"{self.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in self.repos:
            return JSONResponse({"error": "You already created this repo", "url": url}, 409)
        private = body.get("visibility") == "private" or bool(body.get("private"))
        self.add(kind, name, private=private)
        return JSONResponse({"url": url})

    def _preupload(self, repo: Repo, revision: str, body: dict[str, Any]) -> Response:
        if revision not in repo.branches:
            return _error(404, "Revision not found", "RevisionNotFound")
        tree = repo.trees[repo.branches[revision]]
        files = []
        for item in body["files"]:
            path = item["path"]
            mode = "lfs" if path.endswith(LARGE) or item["size"] > 10_000_000 else "regular"
            answer = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            if path in tree:
                answer["oid"] = tree[path].sha256 or tree[path].oid
            files.append(answer)
        return JSONResponse({"files": files})

    async def _commit(self, request: Request, repo: Repo, revision: str) -> Response:
        lines = [json.loads(line) for line in (await request.body()).splitlines() if line]
        if self.before_commit is not None:
            self.before_commit(repo)
        pull_request = request.query_params.get("create_pr") == "1"
        try:
            commit, where = apply_commit(repo, revision, lines, pull_request, self._is_there)
        except CommitError as error:
            return _error(error.status, error.message, error.code)
        page = f"{self.endpoint}/{'datasets/' if repo.kind == 'dataset' else ''}{repo.name}"
        answer = {"success": True, "commitOid": commit, "commitUrl": f"{page}/commit/{commit}", "hookOutput": ""}
        if pull_request:
            answer["pullRequestUrl"] = f"{page}/discussions/{where.removeprefix('refs/pr/')}"
        return JSONResponse(answer)

    async def _mark(self, request: Request, repo: Repo, verb: str, name: str) -> Response:
        known = repo.branches if verb == "branch" else repo.tags
        if request.method == "DELETE":
            return JSONResponse({}) if known.pop(name, None) else _error(404, "no such ref", "RevisionNotFound")
        body = await request.json()
        name, start = (name, body.get("startingPoint", "main")) if verb == "branch" else (body["tag"], name)
        if name in known:
            return _error(409, f"Reference already exists: {name}")
        if name.startswith("refs/"):
            return _error(400, f"Invalid reference for a {verb}: {name}")
        commit = repo.resolve(start)
        if commit is None:
            return _error(404, f"Invalid rev id: {start}", "RevisionNotFound")
        known[name] = commit
        return JSONResponse({})

    async def _collection(self, request: Request, path: list[str]) -> Response:
        if self._role(request) != "write":
            return _error(403, "read-only")
        if not path:
            body = await request.json()
            title = body["title"].lower().replace(" ", "-")
            slug = f"{body['namespace']}/{title}-{hashlib.sha1(title.encode()).hexdigest()[:24]}"
            if slug in self.collections:
                return JSONResponse({"error": "exists", "slug": slug}, 409)
            about = {"slug": slug, "title": body["title"], "owner": {"name": "me"}, "items": [], "position": 0}
            more = {"lastUpdated": "2026-01-01T00:00:00.000Z", "private": body["private"], "theme": "", "upvotes": 0}
            self.collections[slug] = about | more
            return JSONResponse(self.collections[slug])
        collection = self.collections.get("/".join(path[:2]))
        if collection is None:
            return _error(404, "no such collection")
        if request.method == "POST":
            item = (await request.json())["item"]
            if any((known["id"], known["type"]) == (item["id"], item["type"]) for known in collection["items"]):
                return _error(409, "already there")
            collection["items"].append(item | {"_id": str(len(collection["items"])), "position": 0})
        return JSONResponse(collection)

    def _tree(self, request: Request, tree: Tree, folder: str) -> Response:
        prefix = f"{folder}/" if folder else ""
        inside = [name for name in sorted(tree) if name.startswith(prefix)]
        if not inside:
            return _error(404, "not found", "EntryNotFound")
        recursive = request.query_params.get("recursive", "").lower() == "true"
        entries: dict[str, dict[str, Any]] = {}
        for name in inside:
            parts = name.removeprefix(prefix).split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                path = prefix + "/".join(parts[:depth])
                entries.setdefault(path, {"type": "directory", "path": path, "size": 0, "oid": "0" * 40})
            if recursive or len(parts) == 1:
                entries[name] = self._entry(name, tree[name])
        start = int(request.query_params.get("cursor", "0"))
        page = list(entries.values())[start : start + PAGE]
        headers = {}
        if start + PAGE < len(entries):
            following = request.url.include_query_params(cursor=start + PAGE)
            headers["Link"] = f'<{following}>; rel="next"'
        return JSONResponse(page, headers=headers)

    def _entry(self, path: str, file: File) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": file.length, "oid": file.oid}
        if file.content is None:
            entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
            if file.sha256 in (hashes := xet_hashes(self.folder / "xet")):
                entry["xetHash"] = hashes[file.sha256]
        return entry

    def _resolve(self, request: Request, path: list[str]) -> Response:
        kind = "dataset" if path[0] == "datasets" else "model"
        path = path[1:] if kind == "dataset" else path
        repo = self.repos.get((kind, "/".join(path[:2])))
        if repo is None or len(path) < 5 or path[2] != "resolve" or not self._may_read(request, repo):
            return _error(404 if self._role(request) else 401, "Repository not found", "RepoNotFound")
        commit, name = repo.resolve(path[3]), "/".join(path[4:])
        if commit is None:
            return _error(404, "no such revision", "RevisionNotFound")
        if repo.gated:
            return _error(403, "Access to this repository is restricted", "GatedRepo")
        headers = {"X-Repo-Commit": commit}
        file = repo.trees[commit].get(name)
        if file is None:
            return _error(404, "Entry not found", "EntryNotFound", headers)
        if file.content is not None:
            return Response(file.content, headers=headers | {"ETag": f'"{file.oid}"'})
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        xet = xet_hashes(self.folder / "xet").get(file.sha256)
        if xet is not None:
            token = f"{self.endpoint}/api/{kind}s/{repo.name}/xet-read-token/{commit}"
            headers |= {"X-Xet-Hash": xet, "Link": f'<{token}>; rel="xet-auth"'}
        return RedirectResponse(f"http://localhost:{self.port}/lfs/{file.sha256}", 302, headers)

    async def _lfs_batch(self, request: Request) -> Response:
        body = await request.json()
        if self._role(request) != "write":
            return _error(403, "read-only")
        objects = []
        for item in body["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if not self._is_there(item["oid"]):
                place = {"href": f"http://localhost:{self.port}/lfs/{item['oid']}", "header": {}}
                check = {"href": f"{self.endpoint}/blob/{item['oid']}", "header": {}}
                entry["actions"] = {"upload": place, "verify": check}
            objects.append(entry)
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def _large(self, request: Request, sha256: str) -> Response:
        path = self._blob_path(sha256)
        if request.method == "POST":
            return JSONResponse({}) if path.is_file() else _error(404, "not uploaded")
        if request.method != "PUT":
            if not path.is_file():
                await asyncio.to_thread(self._from_xet, sha256, path)
            return FileResponse(path, headers={"ETag": f'"{sha256}"'})
        state, part = hashlib.sha256(), path.with_suffix(f".{time.monotonic_ns()}")
        with open(part, "wb") as file:
            async for block in request.stream():
                state.update(block)
                file.write(block)
        if state.hexdigest() != sha256:
            return _error(400, "the content is not what was announced")
        part.rename(path)
        return Response(status_code=200)

    def _blob_path(self, sha256: str) -> Path:
        (self.folder / "blobs").mkdir(exist_ok=True)
        return self.folder / "blobs" / sha256

    def _is_there(self, sha256: str) -> bool:
        return self._blob_path(sha256).is_file() or sha256 in xet_hashes(self.folder / "xet")

    def _xet_token(self) -> Response:
        url, expires = f"local://{self.folder / 'xet'}", int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "x", "X-Xet-Token-Expiration": str(expires)}
        return JSONResponse({"casUrl": url, "accessToken": "x", "exp": expires}, headers=headers)

    def _from_xet(self, sha256: str, path: Path) -> None:
        """For clients that ask over HTTP for a file that came by Xet."""
        import hf_xet

        url = f"local://{self.folder / 'xet'}"
        info = hf_xet.XetFileInfo(xet_hashes(self.folder / "xet")[sha256], None)
        group = hf_xet.XetSession().new_file_download_group(
            endpoint=url, token="x", token_expiry_unix_secs=int(time.time()) + 3600
        )
        with group as downloads:
            downloads.start_download_file(info, str(path))


def _error(status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None) -> Response:
    extra = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return JSONResponse({"error": message}, status, (headers or {}) | extra)


def _refs(repo: Repo) -> Response:
    def entry(name: str, commit: str, folder: str) -> dict[str, Any]:
        return {"name": name, "ref": f"{folder}/{name}", "targetCommit": commit}

    branches = [entry(n, c, "refs/heads") for n, c in repo.branches.items() if not n.startswith("refs/")]
    tags = [entry(name, commit, "refs/tags") for name, commit in repo.tags.items()]
    return JSONResponse({"branches": branches, "tags": tags, "converts": []})


def _validate_yaml(body: dict[str, Any]) -> Response:
    """The checks of the real one that our metadata could fail."""
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---", body["content"], re.DOTALL)
    try:
        data = yaml.safe_load(match.group(1)) if match else {}
    except yaml.YAMLError as error:
        return JSONResponse({"errors": [{"message": f"not valid YAML: {error}"}], "warnings": []}, 400)
    errors = []
    if data.get("license") not in {None, *LICENSES}:
        errors.append({"message": f'"license" must be one of {sorted(LICENSES)}'})
    for language in data.get("language") or []:
        if re.fullmatch(r"[a-z]{2,3}", language) is None:
            errors.append({"message": '"language" must be ISO 639-1, 639-2 or 639-3 codes'})
    if not all(isinstance(tag, str) for tag in data.get("tags") or []):
        errors.append({"message": '"tags" must be strings'})
    for model in data.get("model-index") or []:
        for result in model["results"]:
            if not {"task", "dataset", "metrics"} <= set(result):
                errors.append({"message": '"model-index" results need task, dataset and metrics'})
    return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)


async def _hang_up(send: Any) -> None:
    """Closes the connection; uvicorn keeps its transport on the object that `send` is bound to."""
    send.__self__.transport.abort()
    for _ in range(20):
        await asyncio.sleep(0)
