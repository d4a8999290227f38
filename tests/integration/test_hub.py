"""The same files through a hub name, a Parquet path and an image folder; the hub is a stand-in with its HTTP API.

The client is the real one (``datasets`` and ``huggingface_hub``), in a process of its own with its own cache.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pytest
import torch

from lanes.training import Images
from tests.images import write_folder, write_parquet
from tests.integration.command import ROOT

REPO, COMMIT = "somebody/patches", "5" * 40
SMALL = {"count": 40, "size": (20, 16), "classes": 4, "val_count": 12}

# What is run beside the stand-in: the first batch of each source goes to a file, what fails is printed. The client
# would wait longer and longer between its attempts; not here.
CLIENT = """
import time
time.sleep = lambda seconds: None
import sys, numpy as np, torch
from lanes.training import Images
target, *sources = sys.argv[1:]
for source in sources:
    data = Images(source, 8, image_size=16, cache_dir=target)
    try:
        data.prepare_data()
    except ValueError as error:
        print(error)
        continue
    torch.manual_seed(0)
    images, labels = next(iter(data.train_dataloader()))
    np.savez(f"{target}/batch.npz", images=images, labels=labels)
    print(data.data_card())
"""


class _Hub(BaseHTTPRequestHandler):
    """Answers what the client asks of one data set repository; anything else is not found."""

    protocol_version = "HTTP/1.1"
    folder: Path
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        path = unquote(urlsplit(self.path).path)
        api, files = f"/api/datasets/{REPO}", f"/datasets/{REPO}/resolve/"
        if path.startswith(files):
            self._file(path.removeprefix(files).partition("/")[2])
        elif path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            siblings = [{"rfilename": entry["path"]} for entry in self._tree()]
            self._json({"id": REPO, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0})
        elif path.startswith(f"{api}/tree/{COMMIT}"):
            self._json(self._tree(path.removeprefix(f"{api}/tree/{COMMIT}").strip("/")))
        elif path.startswith(f"{api}/paths-info/{COMMIT}"):
            wanted = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()).get("paths", [])
            self._json([entry for entry in self._tree() if entry["path"] in wanted])
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output clean."""

    def _tree(self, below: str = "") -> list[dict[str, object]]:
        files = sorted(path for path in (self.folder / below).rglob("*") if path.is_file())
        return [
            {"type": "file", "path": str(f.relative_to(self.folder)), "size": f.stat().st_size, "oid": _oid(f)}
            for f in files
        ]

    def _file(self, name: str) -> None:
        file = self.folder / name
        if not file.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        self._send(200, file.read_bytes(), {"ETag": f'"{_oid(file)}"', "X-Repo-Commit": COMMIT})

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def hub(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub that holds ``folder`` as REPO, and what it is asked."""
    asked: list[str] = []
    handler = type("Hub", (_Hub,), {"folder": folder, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def client(folder: Path, endpoint: str, *sources: str) -> str:
    """Run CLIENT with an empty home of the hub's client in ``folder``; its output."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "LANES_"))}
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(folder), *sources],
        cwd=ROOT,
        env=kept | settings | {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_XET": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def first_batch(source: Path, cache: Path) -> tuple[torch.Tensor, torch.Tensor]:
    data = Images(str(source), 8, image_size=16, cache_dir=str(cache))
    data.prepare_data()
    torch.manual_seed(0)
    images, labels = next(iter(data.train_dataloader()))
    return images, labels


@pytest.fixture
def hf_home(tmp_path, monkeypatch):
    """Keep the tables that ``datasets`` writes out of the user's cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "tables")


@pytest.mark.usefixtures("hf_home")
def test_hub_parquet_and_folder_give_the_same_first_batch(tmp_path):
    parquet, folder = write_parquet(tmp_path / "parquet", **SMALL), write_folder(tmp_path / "folder", **SMALL)
    (parquet / "README.md").write_text("---\nlicense: cc0-1.0\n---\n# Patches\n")
    with hub(parquet) as (endpoint, asked):
        said = client(tmp_path, endpoint, REPO, "somebody/nothing").splitlines()
    assert any("resolve" in line and "train-00000" in line for line in asked), asked
    assert f"  source: {REPO}" in said
    assert any("40 of 'train'" in line for line in said)
    assert said[-1].startswith("Dataset 'somebody/nothing' doesn't exist on the Hub or cannot be accessed.")
    assert "set source to the path of a local copy" in said[-1]

    batch = np.load(tmp_path / "batch.npz")
    assert batch["images"].shape == (8, 3, 16, 16)
    assert len(set(batch["labels"].tolist())) > 1
    for source in (parquet, folder):
        images, labels = first_batch(source, tmp_path / "lanes")
        assert torch.equal(images, torch.from_numpy(batch["images"])), source
        assert torch.equal(labels, torch.from_numpy(batch["labels"])), source


def test_a_hub_name_without_network_is_one_line_with_the_way_out(tmp_path):
    said = client(tmp_path, "http://127.0.0.1:9", REPO).splitlines()  # nobody listens there
    assert len(said) == 1
    assert said[0].startswith(f"the hub cannot be reached for {REPO!r}: ")
    assert said[0].endswith("set source to the path of a local copy (a folder of Parquet files or of images)")
