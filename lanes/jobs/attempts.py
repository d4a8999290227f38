"""A run's record of the jobs that have trained it, and whether a job is worth another start.

A job that fails is started again: nodes break. But one that fails the same way twice, and has not come further in
between, would do so for ever. Kept out: who starts it again (slurm/after.sh), by what this writes down (verdict.py).
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lanes.jobs import early
from lanes.jobs.job import Job
from lanes.jobs.verdict import AGAIN, COMPLETE, judge, refuse, refuse_unless_said

RECORD = "jobs.jsonl"  # in a run's folder: a line for every start, and one for every end of which somebody could tell
SILENT = "a process ended, and nobody could say why"
ANY_WAY = 3  # failures without progress after which a job is given up, even if each was another


@dataclass
class Attempt:
    """One start of a job, on its first process.

    Args:
        folder: of the run.
        job: of which this is a start.
        step: of the checkpoint from which it goes on; 0 if from none.
        wandb_run_id: of the run on Weights & Biases, which the next start takes up.
    """

    folder: Path
    job: Job
    step: int
    wandb_run_id: str | None = None

    def __post_init__(self) -> None:
        """Note the start, and what shall be done if nobody can say anything more."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._before = self._failures()
        self._got_on = False
        self._note(began=_now(), wandb_run_id=self.wandb_run_id, nodes=self.job.num_nodes)
        self._judge_failure(SILENT, refuse_unless_said)
        early.last_words(lambda signal: self._note(ended=_now(), early=signal))

    def got_on(self, step: int) -> None:
        """A checkpoint of a later step was saved."""
        if step > self.step and not self._got_on:
            self._got_on = True
            judge(AGAIN)

    def stopped(self, why: str, step: int, *, again: bool) -> None:
        """All processes have agreed on the end, and saved."""
        self._note(ended=_now(), why=why, at=step)
        if again:
            judge(AGAIN)
        else:
            refuse(f"{why} has ended it")

    def failed(self, way: str, step: int) -> None:
        """It has failed, in a way that has a name."""
        self._note(ended=_now(), failed=way, at=step)
        self._judge_failure(way)

    def completed(self, step: int) -> None:
        """There is nothing left to train."""
        self._note(ended=_now(), why=COMPLETE, at=step)
        judge(COMPLETE)

    def _judge_failure(self, way: str, refuse: Callable[[str], None] = refuse) -> None:
        ways = [way, *self._before]
        if self._got_on or not self._before:
            judge(AGAIN)
        elif ways[1] == way:
            refuse(f"it has failed twice the same way without getting beyond step {self.step}: {way}")
        elif len(ways) >= ANY_WAY:
            refuse(f"it has failed {len(ways)} times without getting beyond step {self.step}: {'; '.join(ways)}")
        else:
            judge(AGAIN)

    def _failures(self) -> list[str]:
        """How the starts of this job before this one have failed that began where this one begins, newest first."""
        ways: list[str] = []
        starts = [line for line in read(self.folder) if line["job"] == self.job.id]
        end: dict[str, Any] = {}
        for line in reversed(starts):
            if "began" not in line:
                end = line
                continue
            if "early" in end:  # by a signal; whether that was the cause nobody can tell
                end = {}
                continue
            if "why" in end:  # it was stopped, or complete
                break
            ways.append(end.get("failed", SILENT))
            if line["step"] != self.step:  # it came further, and then failed
                break
            end = {}
        return ways

    def _note(self, **facts: Any) -> None:
        facts = {"job": self.job.id, "restart": self.job.restarts, "step": self.step, **facts}
        with suppress(OSError), (self.folder / RECORD).open("a") as record:  # a full disk ends no training
            record.write(json.dumps(facts) + "\n")


def read(folder: Path) -> list[dict[str, Any]]:
    """All lines of a run's record; none if no job has trained it."""
    record = folder / RECORD
    lines: list[dict[str, Any]] = []
    for line in record.read_text().splitlines() if record.is_file() else []:
        with suppress(ValueError):  # a kill has cut it off
            lines.append(json.loads(line))
    return lines


def wandb_run(folder: Path) -> str | None:
    """The run on Weights & Biases of the newest start of which it is known."""
    known = [line["wandb_run_id"] for line in read(folder) if line.get("wandb_run_id")]
    return known[-1] if known else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
