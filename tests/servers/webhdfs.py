"""A server that speaks WebHDFS over a local folder: the operations of Hadoop's REST API that a file system needs.

https://hadoop.apache.org/docs/stable/hadoop-project-dist/hadoop-hdfs/WebHDFS.html: as in Hadoop, the name node answers
OPEN, CREATE and APPEND with a redirect to a data node, which here is the same server.
"""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

PREFIX = "/webhdfs/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and content in one packet: two would wait for each other's acknowledgement
    root: Path

    def handle_operation(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self._local(unquote(url.path).removeprefix(PREFIX))
        operation = query["op"].upper()
        if operation in ("OPEN", "CREATE", "APPEND") and "datanode" not in query:
            host, port = self.server.server_address
            location = f"http://{host}:{port}{url.path}?{url.query}&datanode=true"
            return self._answer(307, b"", {"Location": location})
        try:
            getattr(self, f"_{operation.lower()}")(path, query, body)
        except FileNotFoundError as error:
            problem = {"exception": "FileNotFoundException", "javaClassName": "x", "message": str(error)}
            self._json({"RemoteException": problem}, status=404)

    do_GET = do_PUT = do_POST = do_DELETE = handle_operation  # noqa: N815 - the names that http.server calls

    def log_message(self, *args) -> None:
        pass

    def _local(self, path: str) -> Path:
        local = (self.root / path.lstrip("/")).resolve()
        assert local.is_relative_to(self.root), path
        return local

    def _getfilestatus(self, path: Path, query, body) -> None:
        self._json({"FileStatus": self._status(path, "")})

    def _liststatus(self, path: Path, query, body) -> None:
        if path.is_file():
            entries = [self._status(path, "")]
        else:
            entries = [self._status(entry, entry.name) for entry in sorted(path.iterdir())]
        self._json({"FileStatuses": {"FileStatus": entries}})

    def _getfilechecksum(self, path: Path, query, body) -> None:
        stat = path.stat()
        self._json({"FileChecksum": {"algorithm": "mtime", "bytes": f"{stat.st_mtime_ns}-{stat.st_size}"}})

    def _open(self, path: Path, query, body) -> None:
        with path.open("rb") as file:
            file.seek(int(query.get("offset", 0)))
            self._answer(200, file.read(int(query.get("length", -1))))

    def _create(self, path: Path, query, body) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        self._answer(201, b"")

    def _append(self, path: Path, query, body) -> None:
        with path.open("ab") as file:
            file.write(body)
        self._answer(200, b"")

    def _mkdirs(self, path: Path, query, body) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._json({"boolean": True})

    def _rename(self, path: Path, query, body) -> None:
        path.rename(self._local(query["destination"]))
        self._json({"boolean": True})

    def _delete(self, path: Path, query, body) -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._json({"boolean": True})

    def _status(self, path: Path, suffix: str) -> dict:
        stat = path.stat()
        return {
            "pathSuffix": suffix,
            "type": "DIRECTORY" if path.is_dir() else "FILE",
            "length": 0 if path.is_dir() else stat.st_size,
            "modificationTime": int(stat.st_mtime * 1000),
        }

    def _json(self, value: dict, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def serve(root: Path) -> ThreadingHTTPServer:
    """Start a server on a free port of loopback; `server_address` of the result says where."""
    handler = type("Handler", (_Handler,), {"root": root.resolve()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
