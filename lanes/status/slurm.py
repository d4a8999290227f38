"""A user's jobs, as squeue and scontrol tell of them; nothing is asked of sacct, which many sites do not have.

Kept out: tables (command.py).
"""

import getpass
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

ANSWER_S = 10
MOST = 60  # jobs that are asked about one by one
OVER = (
    "COMPLETED",
    "CANCELLED",
    "FAILED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "BOOT_FAIL",
    "DEADLINE",
    "OUT_OF_MEMORY",
)
_FIELD = re.compile(r"(?:^|\s)([A-Z][\w/:]*)=(.*?)(?=\s+[A-Z][\w/:]*=|\s*$)")
_TIME = re.compile(r"(?:(\d+)-)?(\d+):(\d+):(\d+)")


@dataclass(frozen=True)
class Job:
    """A job, or one task of an array.

    Attributes:
        id: "123"; "123_4" for task 4 of an array; "123_5-9" for tasks that have not begun.
        name: its name.
        state: PENDING, RUNNING, ...
        reason: why it is pending, or has ended.
        left_s: seconds until its time limit; None if it has none, or does not run.
        folder: in which it was submitted.
        log: of its output.
        restarts: how often it was started again.
    """

    id: str
    name: str
    state: str
    reason: str
    left_s: float | None
    folder: str
    log: str
    restarts: int

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in OVER


def has_slurm() -> bool:
    """Whether there is a cluster to ask."""
    return shutil.which("squeue") is not None and shutil.which("scontrol") is not None


def jobs(asked: Sequence[str] = ()) -> tuple[list[Job], str | None]:
    """The jobs that are asked for, or all of this user's that the cluster still knows; and what is wrong, in words."""
    if asked:
        ids = [*dict.fromkeys(number.partition("_")[0] for number in asked)]
    else:
        mine = ("squeue", "--noheader", "--states=all", "--format=%F %T", "--user", getpass.getuser())
        answer, wrong = _ask(*mine)
        if wrong:
            return [], wrong
        states = [line.split() for line in answer.splitlines()]
        ids = [*dict.fromkeys(number for number, _ in sorted(states, key=lambda job: (job[1] in OVER, -int(job[0]))))]
    left_out = f"{len(ids) - MOST} older jobs are left out, which can be named" if len(ids) > MOST else None
    found: list[Job] = []
    for number in ids[:MOST]:
        answer, wrong = _ask("scontrol", "--oneliner", "show", "job", number)
        if not wrong:
            found += parse(answer)
        elif "Invalid job id" not in wrong:
            return found, wrong
    return [job for job in found if not asked or _is_one_of(job, asked)], left_out


def _is_one_of(job: Job, asked: Sequence[str]) -> bool:
    return any(job.id == number or job.id.startswith(f"{number}_") for number in asked)


def _ask(*command: str) -> tuple[str, str | None]:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as mistake:
        return "", f"{command[0]} does not answer: {mistake}"
    if answer.returncode:
        return "", f"{command[0]}: {' '.join(answer.stderr.split()) or f'exit code {answer.returncode}'}"
    return answer.stdout, None


def parse(answer: str) -> list[Job]:
    """Read ``scontrol --oneliner show job``: a job a line, of any version's fields."""
    return [_job(dict(reversed(_FIELD.findall(line)))) for line in answer.splitlines() if line.startswith("JobId=")]


def _job(fields: dict[str, str]) -> Job:
    number, task = fields.get("ArrayJobId", fields["JobId"]), fields.get("ArrayTaskId", "").partition("%")[0]
    reason, begun = fields.get("Reason", "None"), not task or task.isdigit()  # else a record of many tasks
    limit, ran = seconds(fields.get("TimeLimit", "")), seconds(fields.get("RunTime", ""))
    runs = fields.get("JobState") == "RUNNING"
    return Job(
        id=f"{number}_{task}" if task else number,
        name=fields.get("JobName", ""),
        state=fields.get("JobState", "UNKNOWN"),
        reason="" if reason == "None" else reason,
        left_s=max(0, limit - ran) if runs and limit is not None and ran is not None else None,
        folder=fields.get("WorkDir", ""),
        log=_expanded(fields.get("StdOut", ""), fields, number, task) if begun else "",
        restarts=int(fields.get("Restarts", "0")),
    )


def _expanded(path: str, fields: dict[str, str], number: str, task: str) -> str:
    """Newer versions show the pattern of the file's name instead of it."""
    known = {
        "j": fields["JobId"],
        "A": fields.get("ArrayJobId", fields["JobId"]),
        "a": task or "",
        "x": fields["JobName"],
    }
    return re.sub(r"%(\w)", lambda found: known.get(found[1], found[0]), path)


def seconds(duration: str) -> int | None:
    """Of a duration as SLURM writes it, such as 1-02:03:04; None of UNLIMITED and the like."""
    found = _TIME.fullmatch(duration)
    if found is None:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest
