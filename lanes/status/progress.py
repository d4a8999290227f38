"""How far a training is, in a file of its run's folder, which the training writes and ``lanes status`` reads.

Kept out: when it is written (lanes.training.progress_file), tables (command.py).
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

PROGRESS = "progress.json"
DEEP = 4  # folders below which runs are looked for: runs/NAME/NUMBER, and a study's folder above
UNDER_WAY = ("starting", "training", "validating", "writing")


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        run: its folder.
        doing: one of UNDER_WAY; else "complete", or how it ended, in words.
        step: the optimizer's steps that it has made.
        epoch: of the data, from 0.
        host, pid, pid_since: the process that tells, and when that began (of two with one number).
        time: when it told so; seconds since 1970.
        checkpoints: the folder of its checkpoints.
        steps: how many there will be; None if nobody knows.
        steps_per_s: of the last minutes, with validations and checkpoints among them.
        loss: of the last batch, on the first replica.
        job: of SLURM: "123", or "123_4" for task 4 of an array.
        log: where it writes what it says, if that is a file.
    """

    run: str
    doing: str
    step: int
    epoch: int
    host: str
    pid: int
    pid_since: float
    time: float
    checkpoints: str
    steps: int | None = None
    steps_per_s: float | None = None
    loss: float | None = None
    job: str | None = None
    log: str | None = None

    @property
    def left_s(self) -> float | None:
        """Seconds to its end, as it goes."""
        if not self.steps or not self.steps_per_s or self.doing not in UNDER_WAY:
            return None
        return max(0, self.steps - self.step) / self.steps_per_s

    def lives(self) -> bool | None:
        """Whether the process is there; None if that cannot be seen from this host."""
        if self.host != socket.gethostname():
            return None
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.pid_since) < 2 and process.status() != psutil.STATUS_ZOMBIE
        return False


def who_tells() -> dict[str, object]:
    """What a process tells of itself: host, pid, job, log."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pid_since": psutil.Process().create_time(),
        "job": _job(),
        "log": _log(),
    }


def _job() -> str | None:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def _log() -> str | None:
    with suppress(OSError):
        told = Path("/proc/self/fd/1").readlink()
        return str(told) if told.is_file() else None
    return None


def write_progress(progress: Progress) -> None:
    """Put it in the run's folder, whole or not at all; a full disk is none's concern."""
    folder = Path(progress.run)
    with suppress(OSError):
        partial = folder / f".{PROGRESS}.{progress.pid}"
        partial.write_text(json.dumps(asdict(progress)))
        partial.replace(folder / PROGRESS)


def read_progress(folder: Path) -> Progress | None:
    """Of a run; None if it has told nothing, or another version of this has."""
    try:
        told = json.loads((folder / PROGRESS).read_text())
        return Progress(**{**told, "run": str(folder)})  # the folder may have been moved, or be mounted elsewhere
    except (OSError, ValueError, TypeError):
        return None


def find_runs(root: Path) -> Iterator[Progress]:
    """Of all runs in a folder, the newest told last."""
    found = [read_progress(Path(folder)) for folder in _with_progress(str(root), DEEP)]
    yield from sorted((progress for progress in found if progress), key=lambda progress: progress.time)


def _with_progress(folder: str, deep: int) -> Iterator[str]:
    """Folders that hold such a file; a run's own folders, which may have many files, are not looked into."""
    with suppress(OSError), os.scandir(folder) as entries:
        inside = list(entries)
        names = {entry.name for entry in inside}
        if PROGRESS in names:
            yield folder
        elif deep and "checkpoints" not in names:  # else it is a run that has told nothing
            for entry in inside:
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                    yield from _with_progress(entry.path, deep - 1)


def last_checkpoint(progress: Progress) -> tuple[int, float] | None:
    """Step and time of the newest checkpoint; None if there is none."""
    folder = Path(progress.checkpoints)
    if not folder.is_dir():  # mounted elsewhere
        folder = Path(progress.run) / "checkpoints"
    found = []
    for manifest in folder.glob("*/manifest.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            found.append((manifest.stat().st_mtime, int(json.loads(manifest.read_text())["step"])))
    return (max(found)[1], max(found)[0]) if found else None


def silent_s(progress: Progress) -> float:
    """For how long it has told nothing."""
    return max(0.0, time.time() - progress.time)
