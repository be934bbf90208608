"""A server that speaks the part of the Hub's HTTP API that publishing and downloading use.

Repositories with a line of commits, tags, large files by their SHA-256 (Git LFS), small ones in the commit itself, all
in memory. The paths and fields are those that `huggingface_hub` 2 calls in `hf_api`, `_commit_api` and `lfs`. It has
no Xet storage: the client must run with HF_HUB_DISABLE_XET, or it would ask for that.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_" + "t" * 34
LARGE = (".safetensors", ".parquet", ".png")


@dataclass
class HubRepository:
    """Commits are snapshots, name to content, oldest first; the first is the empty one of the creation."""

    private: bool
    sdk: str | None = None
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.add({".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")

    def add(self, files: dict[str, bytes], message: str) -> str:
        sha = hashlib.sha1(f"{id(self)} {len(self.commits)}".encode()).hexdigest()
        self.commits.append((sha, files))
        self.messages.append(message)
        return sha

    @property
    def head(self) -> str:
        return self.commits[-1][0]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        sha = self.head if revision == "main" else self.tags.get(revision, revision)
        return dict(self.commits)[sha]


class HubServer(ThreadingHTTPServer):
    """The Hub.

    Attributes:
        repositories: `"models/alice/assistant"` to the repository.
        uploaded: Names of the requests that changed something, in their order.
        objects: Large files by their SHA-256.
        breaks_after: How many more large files it takes, before it breaks off; None for any number.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, HubRepository] = {}
        self.uploaded: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.breaks_after: int | None = None
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self.server_address)


class _RefusedError(Exception):
    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: HubServer

    def handle_request(self) -> None:
        self.url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(self.url.query).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(self.url.path)
        try:
            for method, pattern, handler in _ROUTES:
                if method == self.command and (match := re.fullmatch(pattern, path)):
                    if not path.startswith("/lfs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                        raise _RefusedError(401, "Invalid username or password.")
                    with self.server.lock:
                        return handler(self, **match.groupdict())
            raise _RefusedError(404, f"no such route: {self.command} {path}")
        except _RefusedError as error:
            self._json(
                {"error": str(error)}, error.status, {"X-Error-Code": error.code, "X-Error-Message": str(error)}
            )

    do_GET = do_PUT = do_POST = do_HEAD = handle_request  # noqa: N815 - the names that http.server calls

    def log_message(self, *args) -> None:
        pass

    def _whoami(self) -> None:
        self._json({"name": "alice", "type": "user", "orgs": []})

    def _create(self) -> None:
        asked = json.loads(self.body)
        if asked["organization"] not in (None, "alice"):
            raise _RefusedError(403, f"You don't have the rights to create a repo in {asked['organization']}")
        kind, repo_id = asked.get("type", "model"), f"alice/{asked['name']}"
        if f"{kind}s/{repo_id}" in self.server.repositories:
            raise _RefusedError(409, "You already created this repo")
        private = asked.get("visibility") == "private"
        self.server.repositories[f"{kind}s/{repo_id}"] = HubRepository(private, asked.get("sdk"))
        self.server.uploaded.append(f"create {repo_id}")
        prefix = "" if kind == "model" else f"{kind}s/"
        self._json({"url": f"{self.server.url}/{prefix}{repo_id}", "name": repo_id})

    def _validate(self) -> None:
        header = re.match(r"---\n(.*?)\n---", json.loads(self.body)["content"], re.DOTALL)
        try:
            valid = header is not None and isinstance(yaml.safe_load(header[1]), dict)
        except yaml.YAMLError:
            valid = False
        errors = [] if valid else [{"message": "Invalid YAML header"}]
        self._json({"errors": errors, "warnings": []}, 200 if valid else 400)

    def _info(self, kind: str, repo_id: str, revision: str = "main") -> None:
        repository = self._repository(kind, repo_id)
        siblings = [{"rfilename": name} for name in repository.files(revision)]
        info = {"id": repo_id, "sha": repository.tags.get(revision, repository.head), "private": repository.private}
        self._json(info | {"siblings": siblings, "tags": [], "likes": 0, "downloads": 0})

    def _refs(self, kind: str, repo_id: str) -> None:
        repository = self._repository(kind, repo_id)
        tags = [
            {"name": name, "ref": f"refs/tags/{name}", "targetCommit": sha} for name, sha in repository.tags.items()
        ]
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repository.head}
        self._json({"branches": [main], "converts": [], "tags": tags})

    def _tree(self, kind: str, repo_id: str, revision: str) -> None:
        assert self.query["recursive"].lower() == "true"
        files = self._repository(kind, repo_id).files(revision)
        self._json([self._entry(name, content) for name, content in sorted(files.items())])

    def _preupload(self, kind: str, repo_id: str, revision: str) -> None:
        files = self._repository(kind, repo_id).files(revision)
        modes = []
        for file in json.loads(self.body)["files"]:
            content = files.get(file["path"])
            modes.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": None if content is None else self._digest(file["path"], content),
                }
            )
        self._json({"files": modes})

    def _batch(self, prefix: str, repo_id: str) -> None:
        self._repository(f"{prefix or 'models/'}"[:-1], repo_id)
        answers = []
        for asked in json.loads(self.body)["objects"]:
            actions = {"upload": {"href": f"{self.server.url}/lfs/{asked['oid']}"}}
            known = asked["oid"] in self.server.objects
            answers.append(asked | ({} if known else {"actions": actions}))
        self._json({"transfer": "basic", "objects": answers})

    def _put(self, oid: str) -> None:
        if self.server.breaks_after == 0:
            raise _RefusedError(400, "RequestTimeout")  # what S3 says where a connection breaks off
        if self.server.breaks_after is not None:
            self.server.breaks_after -= 1
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.objects[oid] = self.body
        self.server.uploaded.append(f"put {oid}")
        self._answer(200, b"")

    def _commit(self, kind: str, repo_id: str, revision: str) -> None:
        repository = self._repository(kind, repo_id)
        header, *operations = (json.loads(line) for line in self.body.splitlines())
        if header["value"].get("parentCommit") not in (None, repository.head):
            raise _RefusedError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.files(revision))
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "deletedFile":
                del files[value["path"]]
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.server.objects:
                    raise _RefusedError(400, f"{value['path']}: its content was not uploaded")
                files[value["path"]] = self.server.objects[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        sha = repository.add(files, header["value"]["summary"])
        self.server.uploaded.append(f"commit {repo_id}")
        self._json({"commitUrl": f"{self.server.url}/{repo_id}/commit/{sha}", "commitOid": sha})

    def _tag(self, kind: str, repo_id: str, revision: str) -> None:
        repository, name = self._repository(kind, repo_id), json.loads(self.body)["tag"]
        if name in repository.tags:
            raise _RefusedError(409, f"Tag {name} exists")
        repository.tags[name] = repository.head if revision == "main" else revision
        self.server.uploaded.append(f"tag {repo_id} {name}")
        self._json({})

    def _resolve(self, prefix: str | None, repo_id: str, revision: str, name: str) -> None:
        repository = self._repository((prefix or "models/")[:-1], repo_id)
        content = repository.files(revision).get(name)
        if content is None:
            raise _RefusedError(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": repository.tags.get(revision, repository.head)}
        self._answer(200, content, headers | {"ETag": f'"{self._digest(name, content)}"'})

    def _repository(self, kind: str, repo_id: str) -> HubRepository:
        repository = self.server.repositories.get(f"{kind}/{repo_id}")
        if repository is None:
            raise _RefusedError(404, "Repository not found", "RepoNotFound")
        return repository

    def _digest(self, name: str, content: bytes) -> str:
        if name.endswith(LARGE):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()

    def _entry(self, name: str, content: bytes) -> dict:
        entry = {"type": "file", "path": name, "size": len(content), "oid": self._digest(name, content)}
        if name.endswith(LARGE):
            entry["lfs"] = {"oid": entry["oid"], "size": len(content), "pointerSize": 134}
        return entry

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ((headers or {}) | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


_KIND = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo_id>[^/]+/[^/]+)"
_REVISION = r"/(?P<revision>[^/]+)"
_PAGE = r"/(?P<prefix>datasets/|spaces/)?(?P<repo_id>[^/]+/[^/]+)"
_ROUTES = [
    ("GET", "/api/whoami-v2", _Handler._whoami),
    ("POST", "/api/repos/create", _Handler._create),
    ("POST", "/api/validate-yaml", _Handler._validate),
    ("GET", _KIND, _Handler._info),
    ("GET", f"{_KIND}/revision{_REVISION}", _Handler._info),
    ("GET", f"{_KIND}/refs", _Handler._refs),
    ("GET", f"{_KIND}/tree{_REVISION}", _Handler._tree),
    ("POST", f"{_KIND}/preupload{_REVISION}", _Handler._preupload),
    ("POST", f"{_KIND}/commit{_REVISION}", _Handler._commit),
    ("POST", f"{_KIND}/tag{_REVISION}", _Handler._tag),
    ("POST", rf"{_PAGE}\.git/info/lfs/objects/batch", _Handler._batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _Handler._put),
    ("GET", rf"{_PAGE}/resolve{_REVISION}/(?P<name>.+)", _Handler._resolve),
    ("HEAD", rf"{_PAGE}/resolve{_REVISION}/(?P<name>.+)", _Handler._resolve),
]


def serve() -> HubServer:
    """Start a Hub on a free port of loopback."""
    server = HubServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
