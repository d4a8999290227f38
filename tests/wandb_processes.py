"""Processes of their own for what has to do with wandb, which keeps its state per process.

Each has its own home folder, no account, no proxy and no terminal, and ends with all that it started.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HANGS_S = 240  # far beyond what any of them takes, also on a busy machine


def start(arguments: list[Any], home: Path, **environment: str) -> subprocess.Popen[str]:
    """``python ARGUMENTS`` in the folder ``home``, with pipes to all its streams."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "SLURM_", "NETRC"))}
    kept = {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")}
    home.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=home,
        env=kept | {"HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end_group(process: subprocess.Popen[str]) -> None:
    """End what a test started and what that started: they share a process group of their own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def run(arguments: list[Any], home: Path, **environment: str) -> tuple[str, str]:
    """The same, to its end, which must be a good one: what it wrote to stdout and to stderr."""
    process = start(arguments, home, **environment)
    try:
        out, words = process.communicate("", timeout=HANGS_S)  # whoever asks something gets no answer
    finally:
        end_group(process)
    assert process.returncode == 0, out + words
    return out, words


def read_run(folder: Path, home: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """History rows and configuration of a run on disk, read by the command that comes with wandb."""
    command = ["-m", "wandb", "leet", "inspect", "--json", folder]
    out, _ = run(command, home, WANDB_ERROR_REPORTING="false")
    records = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    configs = [record["config"] for record in records if record["type"] == "config"]
    return history, {key: value for config in configs for key, value in config.get("update", {}).items()}
