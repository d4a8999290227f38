"""A stand-in for the Weights & Biases server that the real client talks to, healthy or sick.

Here: as much of its GraphQL, file stream and uploads as opening, resuming, logging, finishing and syncing a run take,
on a free port of 127.0.0.1. A run keeps its history by line number, as the real server does: a client that begins again
at line 0 of a run that it should have continued writes over what was there, and a test sees it.

Kept out: artifacts, tables, sweeps, users and permissions. What is asked beyond the above is answered with an error and
kept in `unknown`, so that a newer client is noticed.
"""

import gzip
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

FAULTS = ("hang", "500", "429", "403", "html", "refuse")
LOGIN_PAGE = b"<!doctype html><html><body>Please log in to the guest network</body></html>"


@dataclass
class Run:
    """What arrived of one run."""

    config: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)  # by line number
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None  # of the last finish

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The history in the order of its lines."""
        return [self.history[line] for line in sorted(self.history)]


class WandbServer:
    """The stand-in, listening while it is entered; `fault` names what ails it and may change at any time.

    Faults: "hang" takes a request and never answers; "500", "429" and "403" answer every request with that status;
    "html" answers 200 with a page, as a captive network does; "refuse" closes the port and every connection.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.unknown: list[str] = []
        self.num_requests = 0
        self._fault: str | None = None
        self._lock = threading.Lock()
        self._recovered = threading.Event()  # lets the requests go that hang
        self._http = _Http(self)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        # A short poll, or else closing takes half a second.
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.fault = "refuse"

    @property
    def fault(self) -> str | None:
        return self._fault

    @fault.setter
    def fault(self, fault: str | None) -> None:
        assert fault is None or fault in FAULTS
        assert self._fault != "refuse" or fault == "refuse", "the port is closed for good"
        if fault == "refuse" != self._fault:
            self._http.stop()
        self._fault = fault
        if fault == "hang":
            self._recovered.clear()
        else:
            self._recovered.set()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes] | None:
        """Status and body of the answer; None for none at all."""
        with self._lock:
            self.num_requests += 1
        if self._fault == "hang":
            self._recovered.wait()
            return None
        if self._fault == "refuse":
            return None
        if self._fault == "html":
            return 200, LOGIN_PAGE
        if self._fault is not None:
            return int(self._fault), b'{"errors": [{"message": "injected"}]}'
        with self._lock:
            try:
                return 200, json.dumps(self._serve(method, path, body)).encode()
            except _Unknown as unknown:
                self.unknown.append(str(unknown))
                return 404, b'{"errors": [{"message": "this stand-in does not know that"}]}'

    def _serve(self, method: str, path: str, body: bytes) -> dict[str, Any]:
        parts = [unquote(part) for part in urlsplit(path).path.strip("/").split("/")]
        if (method, parts) == ("POST", ["graphql"]):
            request = json.loads(body)
            return {"data": self._graphql(request["query"], request.get("variables") or {})}
        if method == "POST" and parts[0] == "files" and parts[-1] == "file_stream":
            self._stream(self.runs[parts[-2]], json.loads(body))
            return {"exitcode": None, "limits": {}}
        if method == "PUT" and parts[0] == "upload":
            self.runs[parts[1]].files["/".join(parts[2:])] = body
            return {}
        if path.startswith("/sdk/otel/"):  # the client's statistics about itself
            return {}
        raise _Unknown(f"{method} {path}")

    def _graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        # The client asks what the schema has, and takes the oldest way when it has nothing.
        if types := re.findall(r"(\w+)\s*:\s*__type", query):
            return {name: {"fields": [], "inputFields": [], "args": []} for name in types}
        verbs: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "upsertBucket": self._upsert,
            "RunResumeStatus": self._resume_status,
            "createRunFiles": self._create_files,
            "RunStoppedStatus": lambda _: {"project": {"run": {"stopped": False}}},
            "viewer": lambda _: {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}"}},
            "organization": lambda _: {"entity": {"organization": None}},
            "serverInfo": lambda _: {"serverInfo": {"features": []}},
        }
        for word, verb in verbs.items():
            if re.search(rf"\b{word}\b", query):
                return verb(variables)
        raise _Unknown(query.strip())

    def _upsert(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = asked.get("name") or asked["id"].removeprefix("id-")
        inserted = name not in self.runs
        run = self.runs.setdefault(name, Run())
        if asked.get("config"):
            run.config |= json.loads(asked["config"])
        owner = {"id": "p", "name": asked.get("project") or "lanes", "entity": {"id": "e", "name": "me"}}
        bucket = {"id": f"id-{name}", "name": name, "displayName": asked.get("displayName") or name}
        bucket |= {"description": None, "sweepName": None, "config": json.dumps(run.config), "project": owner}
        return {"upsertBucket": {"bucket": bucket | {"historyLineCount": len(run.history)}, "inserted": inserted}}

    def _resume_status(self, asked: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(asked["name"])
        bucket = run and {
            "name": asked["name"],
            "displayName": asked["name"],
            "historyLineCount": max(run.history, default=-1) + 1,
            "historyTail": json.dumps([json.dumps(row) for row in run.rows[-1:]]),
            "summaryMetrics": json.dumps(run.summary),
            "config": json.dumps(run.config),
            **{"logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]", "tags": [], "notes": None},
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": {"id": "p", "name": asked.get("project"), "entity": {"name": "me"}, "bucket": bucket}}

    def _create_files(self, asked: dict[str, Any]) -> dict[str, Any]:
        base = f"{self.url}/upload/{quote(asked['run'])}"
        files = [{"name": name, "uploadUrl": f"{base}/{quote(name)}"} for name in asked["files"]]
        return {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}

    def _stream(self, run: Run, sent: dict[str, Any]) -> None:
        for name, part in (sent.get("files") or {}).items():
            lines = [json.loads(line) for line in part["content"] if name.startswith("wandb-")]
            if name == "wandb-history.jsonl":
                run.history |= enumerate(lines, start=part["offset"])
            if name == "wandb-summary.json" and lines:
                run.summary = lines[-1]
        if sent.get("complete"):
            run.exit_code = sent.get("exitcode")


class _Unknown(Exception):
    """A request that this stand-in does not know."""


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, wandb: WandbServer) -> None:
        self.wandb = wandb
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                self._connections.discard(connection)  # it was closed already

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open, as with the real server
    server: _Http

    def do_GET(self) -> None:
        body = self._body()
        answer = self.server.wandb.answer(self.command, self.path, body)
        if answer is None:
            self.close_connection = True
            return
        self.send_response(answer[0])
        self.send_header("Content-Type", "text/html" if answer[1] is LOGIN_PAGE else "application/json")
        self.send_header("Content-Length", str(len(answer[1])))
        self.end_headers()
        self.wfile.write(answer[1])

    do_POST = do_PUT = do_GET

    def _body(self) -> bytes:
        body = b"".join(self._chunks()) if self.headers.get("Transfer-Encoding") == "chunked" else self._whole()
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _whole(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _chunks(self) -> Any:
        while length := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()

    def log_message(self, *_: object) -> None:
        """Nothing: the test says what was asked."""
