"""When a training begins, on its first process: its run is held, and a job notes its start.

Kept out: what is checked before (command_line.py), what a job writes down (lanes.jobs).
"""

import os
import socket
from pathlib import Path

from filelock import FileLock
from lightning.pytorch import Trainer

from lanes.faults.supervisor import RESTARTED
from lanes.jobs.attempts import Attempt
from lanes.jobs.job import this_job
from lanes.training.run_folders import hold
from lanes.training.strategy import LaneStrategy
from lanes.training.wandb_logger import LanesLogger
from lanes.training.which_run import steps_of

HELD_S = 10  # a process that was killed may have left others behind (loaders'), which end soon
HELD_AGAIN_S = 120  # what was started again waits longer: a node that SLURM has given up may not know it yet


def begin(trainer: Trainer, ckpt_path: str | None) -> tuple[FileLock, Attempt | None]:
    """Hold the run; in a job, note the start.

    Args:
        trainer: whose folder is the run's.
        ckpt_path: the checkpoint from which it goes on, if there is one.

    Returns:
        What holds the run as long as it is not released, and what a job's end is told to.

    Raises:
        ValueError: another process trains it.
    """
    folder, job = Path(trainer.default_root_dir), this_job()
    again = job.restarts > 0 if job else os.environ.get(RESTARTED, "0") != "0"
    who = f"job {job.id}" if job else f"process {os.getpid()} on {socket.gethostname()}"
    held = hold(folder, who, wait_s=HELD_AGAIN_S if again else HELD_S)
    if job is None:
        return held, None
    logger = trainer.logger
    wandb_run_id = str(logger.version) if isinstance(logger, LanesLogger) else None
    attempt = Attempt(folder, job, steps_of(ckpt_path) or 0, wandb_run_id)
    assert isinstance(trainer.strategy, LaneStrategy)
    trainer.strategy.when_written = attempt.got_on
    return held, attempt
