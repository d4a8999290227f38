"""What shall become of a job when its processes have ended, written down before they do: nobody can tell afterwards.

One line in a file that slurm/job.sh names and slurm/after.sh reads, who alone talks to SLURM: in a container there are
no commands of SLURM. Kept out: what decides it (attempts.py).
"""

import os
import socket
from contextlib import suppress
from pathlib import Path

VERDICT = "LANES_VERDICT"  # names the file
AGAIN, COMPLETE = "again", "complete"
EARLY = "early"  # a signal came before there was anything to save: again, but not for ever
UNSAID = "unsaid"  # what slurm/job.sh writes before processes are started
IN_A_ROW = 3  # starts that come to nothing, whatever ends them
NO, UNLESS_SAID = "no: ", "unsaid: "  # not again, for the reason that follows; the latter if nobody says anything more


def judge(verdict: str) -> None:
    """Write the verdict down; nowhere if this is no job. It takes the place of the one before, whole."""
    if file := os.environ.get(VERDICT):
        partial = Path(f"{file}.{socket.gethostname()}-{os.getpid()}")
        with suppress(OSError):  # a full disk: then nothing was said, and the job starts again once
            partial.write_text(f"{verdict}\n")
            partial.replace(file)


def refuse(reason: str) -> None:
    """The job is not to be started again, for this reason."""
    judge(_line(NO, reason))


def refuse_unless_said(reason: str) -> None:
    """It is not, if this process or another does not live to say what has become of it."""
    judge(_line(UNLESS_SAID, reason))


def ended_early() -> bool:
    """A signal ends this process before there is anything to save; whether the job may start again.

    What another process has refused stands: srun ends those that still load, by SIGTERM, when one has failed.
    """
    this = Path(os.environ.get(VERDICT, ""))
    if _said(this).startswith(NO):
        return False
    start = int(this.suffix.removeprefix(".") or 0)  # JOB.START
    before = [_said(this.with_suffix(f".{start - earlier}")) for earlier in range(1, IN_A_ROW)]
    if set(before) <= {EARLY, UNSAID}:
        refuse(
            f"{IN_A_ROW} times running it was ended before training began, this time by a signal; is its time limit "
            "long enough, or did a process fail above?"
        )
        return False
    judge(EARLY)
    return True


def _said(file: Path) -> str:
    with suppress(OSError):
        return file.read_text().strip()
    return ""


def _line(kind: str, reason: str) -> str:
    return kind + " ".join(reason.split())
