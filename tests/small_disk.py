"""A disk of a given size that one command has to itself: it ends with the command, whatever becomes of the test."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def on_small_disk(
    command: list[object], folder: Path, *, size: str, options: str = "rw", then: str = "true", timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a command in ``folder``, where it alone sees an empty disk.

    Args:
        command: program and arguments.
        folder: made if need be.
        size: as ``mount -t tmpfs -o size=`` takes it.
        options: "ro": nothing can be written there.
        then: what a shell does in the folder afterwards, while the disk is there.
        timeout_s: time-out.

    Skips the test where no disk can be mounted: that needs Linux, and root or user namespaces.
    """
    folder.mkdir(exist_ok=True)
    apart = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    mount = f'mount -t tmpfs -o size={size},{options} tmpfs "$0" && cd "$0"'
    try:
        able = subprocess.run([*apart, "sh", "-c", mount, folder], capture_output=True, text=True, check=False)
    except FileNotFoundError as missing:
        pytest.skip(f"no small disk can be mounted here: {missing}")
    if able.returncode:
        pytest.skip(f"no small disk can be mounted here: {able.stderr.strip()}")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "LANES_", "SLURM_"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "120", "PYTHONDONTWRITEBYTECODE": "1"}
    script = f'{mount} && {{ "$@"; code=$?; {then}; exit $code; }}'
    return subprocess.run(
        [*apart, "sh", "-c", script, folder, *map(str, command)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
