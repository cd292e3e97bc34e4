"""A small Hugging Face hub on this machine, with a store of large files, and faults to order.

    with serving() as hub:
        hub.put("owner/name", "unet/config.json", b"{}")
        hub.address      # for HF_ENDPOINT

As the hub does, it answers `/owner/name/resolve/main/FILE` with the digests of its files, sends
whoever wants a large one to its store, which is another host, and gives parts of files. It takes a
commit of small files, which lie under COMMIT and main then. Whatever lies under `/plain/` is a
plain web server's. `log` has every request.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = 1000  # bytes from which on a file lies in the store
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Request:
    """What was asked, of whom."""

    host: str
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Fault:
    """What goes wrong with one file."""

    status: int = 0
    after: int = -1  # bytes after which the connection breaks
    times: int = 1000  # that it breaks
    html: bool = False
    ranges: bool = True  # whether parts are given
    instead: bytes | None = None  # what is sent in the file's place
    tag: str = ""  # a plain server's ETag


@dataclass
class Hub:
    """Files by the path of their address, what goes wrong, and what was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    log: list[Request] = field(default_factory=list)
    port: int = 0
    store_port: int = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def plain(self) -> str:
        """The address of a plain web server's folder."""
        return f"{self.address}/plain/"

    def put(self, repository: str, name: str, data: bytes, fault: Fault | None = None) -> None:
        """A file of a repository, or of the plain web server where that is ''."""
        whole = f"/{repository}/resolve/{{}}/{name}" if repository else f"/plain/{name}"
        # A branch and its commit have the same files.
        for path in {whole.format("main"), whole.format(COMMIT)}:
            self.files[path] = data
            if fault:
                self.faults[path] = fault

    def asked(self, method: str = "GET") -> list[str]:
        """Paths that were asked for."""
        return [request.path for request in self.log if request.method == method]


class HubServer(ThreadingHTTPServer):
    """A port of a hub; tests break its connections, which is no error to be told."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = hub

    def handle_error(self, request, client_address) -> None:
        pass


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub and its store, each on a port of its own, until the block ends."""
    hub = Hub()
    servers = [HubServer(hub) for _ in range(2)]
    hub.port, hub.store_port = (server.server_address[1] for server in servers)
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request, answered from its server's hub."""

    server: "HubServer"
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        hub, body = self.server.hub, self.rfile.read(int(self.headers["Content-Length"]))
        hub.log.append(Request(self.headers["Host"], self.command, self.path, dict(self.headers)))
        api, _, what = self.path.rpartition("/main")[0].rpartition("/")
        said: dict[str, Any] = {"errors": [], "warnings": []}
        if self.path.endswith("/create"):
            made = json.loads(body)
            said = {"url": f"{hub.address}/{made['organization']}/{made['name']}"}
        elif what == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            said = {"files": [{"path": path, **modes} for path in paths]}
        elif what == "commit":
            for entry in map(json.loads, body.splitlines()):
                if entry["key"] == "file":
                    data = base64.b64decode(entry["value"]["content"])
                    hub.put(api.removeprefix("/api/models/"), entry["value"]["path"], data)
            place = self.path.removeprefix("/api/models").removesuffix("/main")
            said = {"commitUrl": f"{hub.address}{place}/{COMMIT}", "commitOid": COMMIT}
        answer = json.dumps(said).encode()
        self.head(200, {"Content-Type": "application/json", "Content-Length": str(len(answer))})
        self.wfile.write(answer)

    def answer(self) -> None:
        hub, host = self.server.hub, self.headers["Host"]
        hub.log.append(Request(host, self.command, self.path, dict(self.headers)))
        path = self.path.removeprefix("/store")
        data, fault = hub.files.get(path), hub.faults.get(path, Fault())
        if data is None or fault.status:
            repository = path.partition("/resolve/")[0]
            known = any(file.startswith(f"{repository}/resolve/") for file in hub.files)
            why = {"X-Error-Code": "EntryNotFound" if known else "RepoNotFound"}
            why = {} if fault.status or path.startswith("/plain/") else why
            self.head(fault.status or 404, {"Content-Length": "0"} | why)
            return
        stored = len(data) >= LARGE and not path.startswith("/plain/")
        if stored and not self.path.startswith("/store"):
            digest = hashlib.sha256(data).hexdigest()
            place = f"http://localhost:{hub.store_port}/store{path}"
            linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{digest}"'}
            headers = {"X-Repo-Commit": COMMIT, "Location": place, "Content-Length": "0"}
            self.head(302, headers | linked)
            return
        self.give(path, data, fault)

    def give(self, path: str, data: bytes, fault: Fault) -> None:
        sent = data if fault.instead is None else fault.instead
        headers = {"Content-Type": "text/html" if fault.html else "application/octet-stream"}
        if not path.startswith("/plain/"):
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            headers |= {"ETag": f'"{blob}"', "X-Repo-Commit": COMMIT}
        elif fault.tag:
            headers["ETag"] = f'"{fault.tag}"'
        status, first = 200, 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range", headers.get("ETag")) == headers.get("ETag")
        if wanted and fault.ranges and same:
            status, first = 206, int(wanted[1])
            headers["Content-Range"] = f"bytes {first}-{len(sent) - 1}/{len(sent)}"
            if first >= len(sent):
                self.head(416, {"Content-Length": "0"})
                return
        rest = sent[first:]
        self.head(status, headers | {"Content-Length": str(len(rest))})
        if self.command == "HEAD":
            return
        if 0 <= fault.after < len(rest) and fault.times > 0:
            fault.times -= 1
            rest = rest[: fault.after]
            self.close_connection = True
        self.wfile.write(rest)

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
