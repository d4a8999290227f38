"""``lanes network``: real ranks, one of which is made slow by stopping it most of the time."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.integration.command import ROOT, lanes


def started(folder: Path, *command: object) -> subprocess.Popen[str]:
    """A command with one thread a process, what it says in said.txt."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LANES_", "SLURM_"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (folder / "said.txt").open("w") as out:
        return subprocess.Popen([*map(str, command)], cwd=folder, env=environment, stdout=out, stderr=out, text=True)


def test_all_links_under_torchrun(tmp_path: Path) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", 3, "-m", "lanes")
    process = started(tmp_path, *torchrun, "network", "--accelerator", "cpu", "--csv", "links.csv")
    process.wait(200)
    said = (tmp_path / "said.txt").read_text()
    found = list(csv.DictReader((tmp_path / "links.csv").open()))
    assert {(row["sender"], row["receiver"]) for row in found} == {
        (str(a), str(b)) for a in range(3) for b in range(3) if a != b
    }, said
    assert all(float(row["MiB_per_s"]) > 0 < float(row["latency_us"]) for row in found)
    assert said.count("MiB/s, rank (row) to rank (column)") == 1
    assert re.search(r"inside a node: median [\d,]+ MiB/s \([\d,]+ to [\d,]+\), [\d,]+ us, n = 6", said)
    assert process.returncode == (1 if "slow: rank" in said else 0)


@pytest.mark.timeout(400)
def test_one_rank_has_no_link(tmp_path: Path) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", 1, "-m", "lanes")
    process = started(tmp_path, *torchrun, "network", "--accelerator", "cpu")
    assert process.wait(200) == 0
    assert "one rank has no link to measure; give the job more devices or nodes" in (tmp_path / "said.txt").read_text()


def test_a_slow_rank_is_named(tmp_path: Path) -> None:
    process = started(tmp_path, sys.executable, "-m", "lanes", "network", "--accelerator", "cpu", "--processes", 4)
    slow: psutil.Process | None = None
    deadline = time.monotonic() + 300
    while "measuring every link" not in (tmp_path / "said.txt").read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        with suppress(psutil.Error):
            children = psutil.Process(process.pid).children()
            slow = slow or next((child for child in children if child.environ().get("RANK") == "3"), None)
        time.sleep(0.01)
    assert slow is not None
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(psutil.NoSuchProcess):
            slow.send_signal(signal.SIGSTOP)
            time.sleep(0.06)
            slow.send_signal(signal.SIGCONT)
            time.sleep(0.002)
    said = (tmp_path / "said.txt").read_text()
    assert process.returncode == 1, said
    assert "rank 3 (" in said.split("slow:")[1].splitlines()[0], "the slowest"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--processes", 1], "give at least 2"), (["--csv", "no/links.csv"], "there is no folder no")],
)
def test_mistakes(tmp_path: Path, arguments: list[object], words: str) -> None:
    answer = lanes("network", *arguments, folder=tmp_path)
    assert answer.returncode == 2
    assert words in answer.stderr
    assert answer.stderr.count("error:") == 1
