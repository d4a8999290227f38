"""Where a user of the cluster sits: a folder with the very files of slurm/ and configs/, and a site of its own."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file

from lanes.jobs.attempts import read
from tests.slurm.cluster import Cluster, wait_for

ROOT = Path(__file__).parents[2]
CONFIG = "configs/photographs.yaml"
RUNS = "runs/photographs"
KEYS = (  # a training of seconds
    *("--data.init_args.num_train", 256, "--data.init_args.num_val", 40, "--data.init_args.batch_size", 8),
    *("--trainer.limit_val_batches", 1, "--trainer.callbacks", "[]", "--report", "false"),
    *("--trainer.enable_progress_bar", "false", "--watch.timeout_s", 30, "--last_every_n_steps", 4),
)
SITE = f"""
SITE_VENV={ROOT}/.venv
export WANDB_MODE=offline PYTHONPATH={ROOT} OMP_NUM_THREADS=1
"""
ONE_MACHINE = f"""{SITE}
SITE_INTERFACE=lo
export MASTER_ADDR=127.0.0.1   # both nodes are this machine, which does not know their names
"""
START_S = 300  # the longest that a start may take on a busy machine


class Desk:
    """A folder from which jobs are submitted to a cluster.

    Args:
        cluster: that runs.
        folder: empty.
        site: its settings.
    """

    def __init__(self, cluster: Cluster, folder: Path, site: str = ONE_MACHINE) -> None:
        self.cluster, self.folder = cluster, folder
        (folder / "slurm").mkdir()
        for name in ("configs", "scripts", *(f"slurm/{path.name}" for path in (ROOT / "slurm").iterdir())):
            if name != "slurm/site.sh":
                (folder / name).symlink_to(ROOT / name)
        (folder / "slurm" / "site.sh").write_text(site)

    def submit(self, script: str, *words: object, options: tuple[object, ...] = (), **environment: str) -> str:
        """``sbatch OPTIONS slurm/SCRIPT WORDS``; the job's number."""
        command = ("sbatch", "--parsable", *options, f"slurm/{script}", *words)
        return self.cluster.run(*command, cwd=self.folder, **environment)

    def train(self, *keys: object, options: tuple[object, ...] = (), **environment: str) -> str:
        """Submit a short training; the job's number."""
        return self.submit("train.sbatch", CONFIG, *KEYS, *keys, options=options, **environment)

    def said(self, job: str) -> str:
        """What a job has said until now, over all its starts."""
        log = self.folder / f"slurm-{job}.out"
        return log.read_text() if log.exists() else ""

    def state(self, job: str) -> str:
        """COMPLETED, FAILED, PENDING, ..."""
        return self.cluster.job(job)["JobState"]

    def ended(self, job: str, within_s: float = 600) -> str:
        """Wait for a job's end; its state then."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        wait_for(lambda: self.state(job) in over, within_s, said=lambda: self.said(job))
        return self.state(job)

    def run_of(self, job: str) -> Path:
        """The folder of a job's run."""
        return self.folder / RUNS / f"slurm-{job}"

    @contextmanager
    def goes_on(self, job: str) -> Iterator[None]:
        """Wait, once the block has disturbed a job, until it has started again and saved."""
        run = self.run_of(job)
        before = max(line["restart"] for line in read(run))
        yield
        started = lambda: any(line["restart"] > before for line in read(run))  # noqa: E731
        wait_for(started, START_S, said=lambda: self.said(job))
        self.saves(run)

    def time_is_up_soon(self, job: str) -> None:
        """Shorten a job's time limit to the next full minute of its own."""
        hours, minutes, _ = self.cluster.job(job)["RunTime"].split(":")
        self.cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * int(hours) + int(minutes) + 1}")

    def saves(self, run: Path) -> None:
        """Wait for a new checkpoint of a run."""
        manifest = run / "checkpoints" / "last.ckpt" / "manifest.json"
        before = manifest.stat().st_mtime_ns if manifest.exists() else 0
        newer = lambda: manifest.exists() and manifest.stat().st_mtime_ns > before  # noqa: E731
        wait_for(newer, START_S, said=lambda: "\n".join(path.read_text() for path in self.folder.glob("slurm-*.out")))

    def kill(self, job: str, rank: int) -> None:
        """Kill a rank of a job as the kernel does when memory has run out."""
        os.kill(self.cluster.rank(job, rank), signal.SIGKILL)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Of a run's last checkpoint."""
    return load_file(run / "checkpoints" / "last.ckpt" / "model.safetensors")


def equal(one: Path, other: Path) -> bool:
    """Whether two runs have ended with the same weights, bit for bit."""
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
