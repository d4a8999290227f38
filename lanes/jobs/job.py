"""The job of SLURM in which this process runs, as srun tells it.

Kept out: what is trained in it (lanes.training), whether it starts again (attempts.py).
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """A job of SLURM, or one task of an array of jobs.

    Attributes:
        id: "123", or "123_4" for task 4 of an array.
        restarts: how often SLURM has started it again.
        num_nodes: on how many nodes it runs.
        tasks_per_node: processes, and so devices, on each.
        rank: which of them this process is, of all.
    """

    id: str
    restarts: int
    num_nodes: int
    tasks_per_node: int
    rank: int

    @property
    def run(self) -> str:
        """The name of the run that it trains, unless it was told another: its own, however often it starts."""
        return f"slurm-{self.id}"


def this_job(environment: Mapping[str, str] = os.environ) -> Job | None:
    """The job in which srun has started this process; None elsewhere, in an interactive job, and under torchrun.

    Raises:
        ValueError: nodes have different numbers of tasks.
    """
    started = "SLURM_JOB_ID" in environment and "SLURM_STEP_TASKS_PER_NODE" in environment
    interactive = environment.get("SLURM_JOB_NAME") in ("bash", "interactive")  # as Lightning decides it
    if not started or interactive or "TORCHELASTIC_RUN_ID" in environment:
        return None
    told = environment["SLURM_STEP_TASKS_PER_NODE"]  # "2", "2(x3)" for three nodes, "2,1" where they differ
    alike = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", told)
    if alike is None:
        raise ValueError(f"nodes of the job have different numbers of tasks ({told}); give --ntasks-per-node to sbatch")
    return Job(
        job_id(environment),
        int(environment.get("SLURM_RESTART_COUNT", "0")),
        int(alike[2] or 1),
        int(alike[1]),
        int(environment["SLURM_PROCID"]),
    )


def job_id(environment: Mapping[str, str] = os.environ) -> str:
    """The job's number; a task of an array has its array's number and its own."""
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment["SLURM_JOB_ID"]
