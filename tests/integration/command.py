"""Runs the real command ``lanes`` in a process of its own."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lanes.cli import main

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "photographs.yaml"


def lanes(*arguments: object, folder: Path, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """``python -m lanes ARGUMENTS`` in ``folder``; never more than one thread a process, never an account."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "LANES_", "SLURM_"))}
    environment |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, "-m", "lanes", *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    """Run ``lanes ARGUMENTS`` in this process; it must end with code 2 after one line of error, which is returned."""
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Lightning logs to the stream of the test before
    with pytest.raises(SystemExit) as end:
        main(arguments)
    answer = capfd.readouterr()
    errors = [line for line in answer.err.splitlines() if "error:" in line]
    assert end.value.code == 2, answer.err
    assert len(errors) == 1, answer.err
    assert "Traceback" not in answer.err + answer.out
    return errors[0]


SMALL = (  # a run of seconds on few images
    *("--data.init_args.num_train", 128, "--data.init_args.num_val", 40, "--data.init_args.batch_size", 16),
    *("--trainer.max_epochs", 1, "--trainer.log_every_n_steps", 1),
)
CSV = ("--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", "log")
