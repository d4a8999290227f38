"""``lanes status``: what SLURM says, recorded from a real cluster of version 22.05, and what trainings tell."""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from lanes.status import command
from lanes.status.command import gathered, state
from lanes.status.progress import Progress, find_runs, last_checkpoint, read_progress, who_tells, write_progress
from lanes.status.slurm import Job, jobs, parse, seconds

RECORDED = Path(__file__).parents[1] / "recorded"
DAY_S = 24 * 3600


@pytest.fixture
def recorded() -> dict[str, Job]:
    return {job.id: job for job in parse((RECORDED / "scontrol_22_05.txt").read_text())}


def progress(run: Path, **changes: object) -> Progress:
    """Of a training in this process."""
    own = Progress(
        run=str(run),
        doing="training",
        step=120,
        epoch=1,
        time=time.time(),
        checkpoints=str(run / "checkpoints"),
        steps=480,
        steps_per_s=2.0,
        loss=0.5,
        **{**who_tells(), "job": None},  # type: ignore[arg-type]
    )
    run.mkdir(parents=True, exist_ok=True)
    return replace(own, **changes)  # type: ignore[arg-type]


def test_jobs_of_22_05(recorded: dict[str, Job]) -> None:
    assert [*recorded] == ["2227", "2228", "2229", "2230_2-4", "2230_1", "2230_0", "2231", "2232", "2233"]
    short = recorded["2227"]
    assert (short.name, short.state, short.over, short.left_s) == ("short one", "COMPLETED", True, None)
    assert short.log == "/home/ada/lanes/slurm-2227.out"
    assert (recorded["2228"].state, recorded["2228"].reason) == ("FAILED", "NonZeroExitCode")
    assert (recorded["2229"].state, recorded["2229"].restarts) == ("COMPLETING", 1)
    assert recorded["2230_1"].left_s == 30 * 60 - 5
    assert recorded["2230_1"].log == "/home/ada/lanes/slurm-2230_1.out"
    assert (recorded["2230_2-4"].reason, recorded["2230_2-4"].log) == ("JobArrayTaskLimit", "")
    assert (recorded["2231"].reason, recorded["2231"].left_s) == ("Dependency", None)
    assert recorded["2233"].state == "CANCELLED"


def test_jobs_of_newer_versions() -> None:
    """Of fields that were published, not recorded here: ReqTRES, AllocTRES, a pattern for StdOut, a folder's space."""
    (job,) = parse((RECORDED / "scontrol_newer.txt").read_text())
    assert (job.id, job.state, job.restarts, job.left_s) == ("4700_3", "RUNNING", 2, DAY_S - 8)
    assert job.folder == "/home/ada/my lanes"
    assert job.log == "/home/ada/my lanes/sweep-4700_3.out"


@pytest.mark.parametrize(
    ("written", "wanted"), [("00:10:05", 605), ("1-02:03:04", 93784), ("UNLIMITED", None), ("Partition_Limit", None)]
)
def test_durations(written: str, wanted: int | None) -> None:
    assert seconds(written) == wanted


def slurm_of(folder: Path, monkeypatch: pytest.MonkeyPatch, squeue: str, scontrol: str) -> None:
    """Programs of these names that answer so, before all others."""
    for name, does in (("squeue", squeue), ("scontrol", scontrol)):
        (folder / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_users_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = f'grep -e "^JobId=$4 " -e "ArrayJobId=$4 " {RECORDED / "scontrol_22_05.txt"}'
    slurm_of(tmp_path, monkeypatch, "printf '2227 RUNNING\n2230 PENDING\n2230 RUNNING\n2231 COMPLETED\n'", answers)
    found, wrong = jobs()
    assert wrong is None
    assert sorted(job.id for job in found) == ["2227", "2230_0", "2230_1", "2230_2-4", "2231"]
    assert [job.id for job in jobs(["2230_1"])[0]] == ["2230_1"]
    assert {job.id for job in jobs(["2230"])[0]} == {"2230_0", "2230_1", "2230_2-4"}


def test_of_very_many_jobs_those_that_live_and_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lanes.status.slurm.MOST", 2)
    answers = f'grep -e "^JobId=$4 " -e "ArrayJobId=$4 " {RECORDED / "scontrol_22_05.txt"}'
    slurm_of(tmp_path, monkeypatch, "printf '2231 COMPLETED\n2230 COMPLETED\n2227 RUNNING\n'", answers)
    found, wrong = jobs()
    assert {job.id for job in found} == {"2227", "2231"}
    assert wrong == "1 older jobs are left out, which can be named"


def test_a_cluster_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm_of(tmp_path, monkeypatch, "echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1", "exit 1")
    assert jobs() == ([], "squeue: slurm_load_jobs error: Unable to contact")


def test_a_job_that_the_cluster_has_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm_of(tmp_path, monkeypatch, "", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert jobs(["12"]) == ([], None)


def test_a_job_and_its_training(tmp_path: Path, recorded: dict[str, Job]) -> None:
    """Also of a job that was started again in another folder: the newest counts."""
    for number, job, age in ((1, "2230_1", 50), (2, "2230_1", 0), (3, None, 0), (4, "17", 0)):
        run = tmp_path / "photographs" / str(number)
        write_progress(progress(run, job=job, time=time.time() - age))
    seen = gathered([*recorded.values()], [tmp_path], [])
    found = {one.job.id: one.progress for one in seen if one.job}
    assert found["2230_1"] is not None
    assert Path(found["2230_1"].run).name == "2"
    assert found["2230_0"] is None
    assert [Path(one.progress.run).name for one in seen if one.job is None and one.progress] == ["1", "3", "4"]
    only = gathered([recorded["2230_1"]], [tmp_path], ["2230_1"])
    assert [one.job.id for one in only if one.job] == ["2230_1"]


def test_states_of_jobs(tmp_path: Path, recorded: dict[str, Job]) -> None:
    training = progress(tmp_path)
    assert state(recorded["2232"], None) == "pending: Resources"
    assert state(replace(recorded["2232"], restarts=1), training) == "pending: Resources, has begun 2 times"
    assert state(recorded["2230_1"], None) == "running"
    assert state(recorded["2230_1"], training) == "training"
    assert state(recorded["2230_1"], replace(training, time=time.time() - 600)).startswith(
        "training, silent for 10 min"
    )
    assert state(recorded["2227"], training) == "completed, but its training was not"
    assert state(recorded["2227"], replace(training, doing="complete")) == "completed"
    assert state(recorded["2228"], replace(training, doing="failed: KeyError")) == "failed: KeyError"
    assert state(replace(recorded["2228"], state="TIMEOUT"), training) == "timeout"


def test_a_training_that_was_killed(tmp_path: Path) -> None:
    """It is told apart from one that runs, and from another process that has its number now."""
    assert state(None, progress(tmp_path)) == "training"
    assert state(None, progress(tmp_path, doing="stopped by SIGTERM")) == "stopped by SIGTERM"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        theirs = progress(tmp_path, pid=other.pid, pid_since=psutil.Process(other.pid).create_time())
        assert state(None, theirs) == "training"
        assert state(None, replace(theirs, pid_since=theirs.pid_since - 100)) == "killed while training"
        other.kill()
        other.wait()
        assert state(None, theirs) == "killed while training"
    elsewhere = progress(tmp_path, host="another", time=time.time() - 3 * DAY_S)
    assert state(None, elsewhere) == "training, silent for 3 d 0 h on another"


def test_the_file_is_whole_or_not_there(tmp_path: Path) -> None:
    told = progress(tmp_path / "1")
    write_progress(told)
    assert read_progress(tmp_path / "1") == told
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["progress.json"]
    (tmp_path / "1" / "progress.json").write_text('{"step": 3')
    assert read_progress(tmp_path / "1") is None
    write_progress(replace(told, run=str(tmp_path / "nowhere")))  # a folder that was taken away, a full disk
    assert [*find_runs(tmp_path)] == []


def test_the_last_checkpoint(tmp_path: Path) -> None:
    told = progress(tmp_path)
    assert last_checkpoint(told) is None
    for name, step, age in (("last.ckpt", 40, 60), ("epoch=1.ckpt", 32, 100), ("half.ckpt", None, 0)):
        manifest = tmp_path / "checkpoints" / name / "manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.write_text(json.dumps({"step": step}) if step else "{")
        os.utime(manifest, (time.time() - age, time.time() - age))
    found = last_checkpoint(told)
    assert found is not None
    assert found[0] == 40


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "has_slurm", lambda: False)
    write_progress(progress(tmp_path / "runs" / "photographs" / "1", log=str(tmp_path / "said.txt")))
    command.run([])
    head, _, row = capsys.readouterr().out.splitlines()
    assert head.split() == list(command.HEAD)
    assert row.split() == (
        "- photographs-1 training 120 of 480 (25%) 2 steps/s 3 min - none 0.5000 runs/photographs/1 said.txt".split()
    )
    with pytest.raises(SystemExit) as end:
        command.run(["12"])
    assert end.value.code == 1
    assert "there is no job 12" in capsys.readouterr().err


def test_it_imports_nothing_heavy() -> None:
    look = (
        "import sys, lanes.status.command; print(sorted({'torch', 'numpy', 'lightning', 'wandb'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_who_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    assert (who_tells()["job"], who_tells()["host"]) == ("17", socket.gethostname())
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "15")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert who_tells()["job"] == "15_3"
