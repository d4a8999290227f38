"""The page live on 127.0.0.1 while training goes on: reads the runs again when they have grown.

Only this machine is answered, only GET, and only under the server's own names, so that no other page in the same
browser can read it. Kept out: what the page looks like, and when to stop (Ctrl-C).
"""

import hashlib
import threading
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lanes.report.page import as_json, content, kind, live_source, page
from lanes.report.reading import Picture, Run, find_logs, read_run

Stamp = tuple[tuple[Path, int, int], ...]  # of a run's log files: name, size, time of the last change


class LiveRuns:
    """Runs that may grow; a run is read again only when one of its files has changed.

    Args:
        places: as for `lanes.report.reading.find_logs`.

    Raises:
        ValueError: there is no run, or it cannot be read.
    """

    def __init__(self, places: Sequence[str | Path]) -> None:
        self._places = list(places)
        self._read: dict[str, tuple[Stamp, Run]] = {}
        self._lock = threading.Lock()  # two open pages must not read twice
        self.now()

    def now(self) -> list[Run]:
        """The runs as they are now.

        Raises:
            ValueError: there is no run, or it cannot be read.
        """
        with self._lock:
            for run_id, logs in find_logs(self._places).items():
                stamp = tuple((log, log.stat().st_size, log.stat().st_mtime_ns) for log in logs)
                if run_id not in self._read or self._read[run_id][0] != stamp:
                    self._read[run_id] = stamp, read_run(logs)
            return [run for _, run in self._read.values()]

    def picture(self, digest: str) -> Picture | None:
        """The picture with this digest, of those already read."""
        runs = [run for _, run in self._read.values()]
        pictures = (p for run in runs for steps in run.pictures.values() for p in steps.values())
        return next((p for p in pictures if p.digest == digest), None)


class Server(ThreadingHTTPServer):
    """Serves the page of some runs on 127.0.0.1.

    Args:
        runs: what to show.
        port: which port; 0 lets the system choose.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, runs: LiveRuns, *, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.runs = runs

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        """Answer for the page, its data and its pictures."""
        port = self.server.server_port
        if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            self.send_error(HTTPStatus.FORBIDDEN, "only as 127.0.0.1 or localhost")
            return
        try:
            if self.path == "/":
                self._answer(page(self.server.runs.now(), live=True).encode(), "text/html; charset=utf-8")
            elif self.path == "/data.json":
                self._answer(self._data(), "application/json")
            elif (picture := self.server.runs.picture(self.path.removeprefix("/pictures/"))) is not None:
                data = picture.path.read_bytes()
                self._answer(data, f"image/{kind(data)}", cache="max-age=86400, immutable")
            else:
                self.send_error(HTTPStatus.NOT_FOUND)
        except (ValueError, OSError) as mistake:
            self._answer(str(mistake).encode(), "text/plain; charset=utf-8", status=HTTPStatus.SERVICE_UNAVAILABLE)

    def _data(self) -> bytes:
        shown: dict[str, Any] = content(self.server.runs.now(), live_source)
        return as_json(shown | {"live": True}).encode()

    def _answer(self, body: bytes, type_: str, *, cache: str = "no-cache", status: HTTPStatus = HTTPStatus.OK) -> None:
        tag = f'"{hashlib.sha256(body).hexdigest()}"'
        if self.headers.get("If-None-Match") == tag:
            self.send_response(HTTPStatus.NOT_MODIFIED)
            self.send_header("ETag", tag)
            self.end_headers()
            return
        self.send_response(status)
        for name, value in {
            "Content-Type": type_,
            "Content-Length": str(len(body)),
            "Cache-Control": cache,
            "ETag": tag,
            "X-Content-Type-Options": "nosniff",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a page that asks every few seconds would fill the terminal."""
