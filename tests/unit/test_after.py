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


def test_a_job_that_never_came_to_say_anything(folder: Path) -> None:
    """Once may be bad luck."""
    (folder / "7.1").write_text("again\n")
    assert after(folder, "unsaid")[0]
    (folder / "requeued").unlink()
    (folder / "7.1").write_text("unsaid\n")
    requeued, said = after(folder, "unsaid")
    assert not requeued
    assert "it has ended twice before training began, and nobody could say why" in said


def test_a_site_that_leaves_it_to_slurm(folder: Path) -> None:
    requeued, said = after(folder, "again", requeue="slurm")
    assert not requeued
    assert "whether it is started again is left to SLURM" in said
