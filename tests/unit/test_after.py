"""What slurm/after.sh does with a verdict, for every state in which SLURM may have the job by then."""

import os
import subprocess
from pathlib import Path

import pytest

AFTER = Path(__file__).parents[2] / "slurm" / "after.sh"
SCONTROL = """#!/bin/sh
if [ "$1" = requeue ]; then echo "$2" >"$(dirname "$0")/requeued"; else echo "JobId=7 $FACTS EndTime=now"; fi
"""
RUNNING = "JobState=RUNNING Reason=None Requeue=1 Restarts=2"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scontrol").write_text(SCONTROL)
    (tmp_path / "scontrol").chmod(0o755)
    return tmp_path


def after(folder: Path, verdict: str, facts: str = RUNNING, requeue: str = "self", **more: str) -> tuple[bool, str]:
    """Whether the job was put back into the queue, and what was said."""
    (folder / "7.2").write_text(f"{verdict}\n")
    told = {"LANES_VERDICT": str(folder / "7.2"), "LANES_REQUEUE": requeue, "FACTS": facts}
    told |= {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2", "PATH": f"{folder}:{os.environ['PATH']}", **more}
    done = subprocess.run([AFTER], env=told, capture_output=True, text=True, check=True)
    return (folder / "requeued").exists(), done.stderr


def test_a_job_that_can_go_on(folder: Path) -> None:
    assert after(folder, "again") == (True, "lanes: job 7 goes back into the queue, and then on\n")


def test_a_task_of_an_array(folder: Path) -> None:
    """Alone: the number of its last task is also that of the whole array."""
    assert after(folder, "again", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="3")[0]
    assert (folder / "requeued").read_text() == "7_3\n"


def test_a_job_whose_time_was_up(folder: Path) -> None:
    assert after(folder, "again", "JobState=COMPLETING Reason=TimeLimit Restarts=2")[0]


@pytest.mark.parametrize(
    "facts",
    [
        "JobState=COMPLETING Reason=None Restarts=2",  # by scancel
        "JobState=PENDING Reason=BeginTime Restarts=3",
        "JobState=RUNNING Reason=None Restarts=3",  # SLURM has started it again already: somewhere else
        "",
    ],
)
def test_a_job_that_is_cancelled_or_back_already(folder: Path, facts: str) -> None:
    requeued, said = after(folder, "again", facts)
    assert not requeued
    assert "into the queue by SLURM" in said or "it was cancelled" in said


def test_a_job_that_is_complete(folder: Path) -> None:
    (folder / "7.1").write_text("again\n")
    assert after(folder, "complete") == (False, "")
    assert not list(folder.glob("7.*"))


def test_a_job_that_is_given_up(folder: Path) -> None:
    assert after(folder, "no: SIGINT has ended it") == (
        False,
        "lanes: job 7 is not started again: SIGINT has ended it\n",
    )


def test_a_job_that_is_given_up_unless_somebody_says_more(folder: Path) -> None:
    assert after(folder, "unsaid: it has failed twice")[1].endswith("is not started again: it has failed twice\n")


@pytest.mark.parametrize(
    ("before", "verdict", "again"),
    [
        (["again", "again"], "unsaid", True),  # once may be bad luck
        (["unsaid", "again"], "unsaid", True),
        (["again", "early"], "unsaid", True),
        (["again", "unsaid"], "unsaid", False),
        (["early", "early"], "unsaid", False),
        (["unsaid", "early"], "unsaid", False),
        (["again", "early"], "early", True),  # the process itself counts those (lanes.jobs.verdict)
    ],
)
def test_a_job_that_never_came_to_say_anything(folder: Path, before: list[str], verdict: str, again: bool) -> None:
    for start, said in enumerate(before):
        (folder / f"7.{start}").write_text(f"{said}\n")
    requeued, words = after(folder, verdict)
    assert requeued == again
    assert again or "it has ended again before training began; why, if anybody could tell, is said above" in words


def test_a_job_that_is_not_to_be_put_back(folder: Path) -> None:
    requeued, words = after(folder, "again", RUNNING.replace("Requeue=1", "Requeue=0"))
    assert not requeued
    assert "is not to be started again (--no-requeue): by another job with --run" in words


def test_a_site_that_leaves_it_to_slurm(folder: Path) -> None:
    requeued, said = after(folder, "again", requeue="slurm")
    assert not requeued
    assert "whether it is started again is left to SLURM" in said
