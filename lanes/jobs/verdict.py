"""What shall become of a job when its processes have ended, written down before they do: nobody can tell afterwards.

One line in a file that slurm/job.sh names and slurm/after.sh reads, who alone talks to SLURM: in a container there are
no commands of SLURM. Kept out: what decides it (attempts.py).
"""

import os
import socket
from contextlib import suppress
from pathlib import Path

VERDICT = "LANES_VERDICT"  # names the file
AGAIN, COMPLETE = "again", "complete"  # else "no: REASON"


def judge(verdict: str) -> None:
    """Write the verdict down; nowhere if this is no job. It takes the place of the one before, whole."""
    if file := os.environ.get(VERDICT):
        partial = Path(f"{file}.{socket.gethostname()}-{os.getpid()}")
        with suppress(OSError):  # a full disk: then nothing was said, and the job starts again once
            partial.write_text(f"{verdict}\n")
            partial.replace(file)


def refuse(reason: str) -> None:
    """The job is not to be started again, for this reason."""
    judge(f"no: {' '.join(reason.split())}")
