"""The report live: what the server on 127.0.0.1 answers, to whom, and when it reads a run again."""

import json
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from lanes.cli import main
from lanes.report import serving
from lanes.report.reading import Run
from tests.report_runs import Parsed, a_run, log_file, two_runs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[serving.Server]:
    """A live page of one run; reading it is counted in ``server.times``."""
    log_file(tmp_path, "first", "1")
    times: list[list[Path]] = []

    def read(logs: list[Path]) -> Run:
        times.append(logs)
        return a_run(tmp_path)

    monkeypatch.setattr(serving, "read_run", read)
    with serving.Server(serving.LiveRuns([tmp_path])) as made:
        made.times = times  # type: ignore[attr-defined]
        thread = threading.Thread(target=made.serve_forever, args=(0.05,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def get(url: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    request = urllib.request.Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.read(), dict(refusal.headers)


def test_the_server_has_page_data_and_pictures(server: serving.Server, tmp_path: Path) -> None:
    assert server.server_address[0] == "127.0.0.1"
    status, body, headers = get(server.url)
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert json.loads(Parsed(body.decode()).scripts[0])["live"] is True
    data = json.loads(get(f"{server.url}data.json")[1])
    assert len(data["sources"]) == 2
    status, body, headers = get(server.url + data["sources"][1])
    assert (status, headers["Content-Type"]) == (200, "image/png")
    assert body == (tmp_path / "first-1.png").read_bytes()


def test_a_run_is_read_again_only_when_it_has_grown(server: serving.Server, tmp_path: Path) -> None:
    times: list[list[Path]] = server.times  # type: ignore[attr-defined]
    tag = get(f"{server.url}data.json")[2]["ETag"]
    assert get(f"{server.url}data.json", If_None_Match=tag)[0] == 304
    assert len(times) == 1
    (log,) = tmp_path.glob("wandb/*/run-first.wandb")
    log.write_bytes(b"more")
    assert get(f"{server.url}data.json")[0] == 200
    assert len(times) == 2
    resumed = log_file(tmp_path, "first", "2")
    get(f"{server.url}data.json")
    assert times[2] == [log, resumed]


@pytest.mark.parametrize("path", ["etc/passwd", "pictures/../pyproject.toml", "pictures/none", "data.json?x"])
def test_the_server_has_nothing_else(server: serving.Server, path: str) -> None:
    assert get(f"{server.url}{path}")[0] == 404


def test_the_server_answers_no_other_names(server: serving.Server) -> None:
    assert get(server.url, Host="example.com")[0] == 403
    assert get(server.url, Host=f"localhost:{server.server_port}")[0] == 200


def test_trouble_with_a_run_is_told_to_the_page(server: serving.Server, tmp_path: Path) -> None:
    for log in tmp_path.glob("wandb/*/*.wandb"):
        log.unlink()
    status, body, _ = get(f"{server.url}data.json")
    assert status == 503
    assert body.decode().startswith("no run in")


def test_a_taken_port_is_refused_in_one_line(
    server: serving.Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path), "--serve", "--port", str(server.server_port)])
    assert f"--port {server.server_port} cannot be used (Address already in use)" in capfd.readouterr().err


def test_ctrl_c_ends_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    logged = two_runs(tmp_path_factory)
    # A shell has its background jobs, this test perhaps among them, ignore Ctrl-C; a terminal's jobs do not.
    start = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from lanes.cli import main; "
    command = [sys.executable, "-c", f"{start} main(sys.argv[1:])", "report", str(logged / "2"), "--serve"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[0]
        assert json.loads(get(f"{url}data.json")[1])["runs"][0]["id"] == "run2"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, error) == (0, "")
