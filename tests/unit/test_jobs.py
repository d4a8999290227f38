"""Jobs of SLURM without SLURM: what a process is told, when a job is given up, runs that have names, sweeps."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lanes.faults.agreement import StoppedError
from lanes.jobs.attempts import RECORD, SILENT, Attempt, read, wandb_run
from lanes.jobs.job import Job, this_job
from lanes.jobs.verdict import VERDICT
from lanes.mesh import divisors
from lanes.training import commands
from lanes.training.layout import choose_lane_devices
from lanes.training.run_folders import check_name, hold, last_run

TOLD = {"SLURM_JOB_ID": "123", "SLURM_PROCID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_RESTART_COUNT": "3"}


def test_what_srun_tells() -> None:
    job = this_job(TOLD)
    assert job == Job("123", restarts=3, num_nodes=2, tasks_per_node=4, rank=1)
    assert job.run == "slurm-123"
    task = this_job({**TOLD, "SLURM_ARRAY_JOB_ID": "120", "SLURM_ARRAY_TASK_ID": "2", "SLURM_STEP_TASKS_PER_NODE": "1"})
    assert task is not None
    assert (task.run, task.num_nodes, task.tasks_per_node) == ("slurm-120_2", 1, 1)


@pytest.mark.parametrize(
    "told", [{}, {**TOLD, "SLURM_JOB_NAME": "interactive"}, {**TOLD, "TORCHELASTIC_RUN_ID": "1"}, {"SLURM_JOB_ID": "1"}]
)
def test_no_job(told: dict[str, str]) -> None:
    assert this_job(told) is None


def test_nodes_that_differ() -> None:
    with pytest.raises(ValueError, match=r"different numbers of tasks \(2,1\); give --ntasks-per-node"):
        this_job({**TOLD, "SLURM_STEP_TASKS_PER_NODE": "2,1"})


class Starts:
    """A job that is started again and again; what becomes of it each time."""

    def __init__(self, folder: Path, verdict: Path) -> None:
        self.folder, self._verdict, self._restarts = folder, verdict, 0

    def start(self, step: int) -> Attempt:
        self._restarts += 1
        return Attempt(self.folder, Job("7", self._restarts, 1, 1, 0), step, "abc")

    @property
    def verdict(self) -> str:
        return self._verdict.read_text().strip()


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Starts:
    monkeypatch.setenv(VERDICT, str(tmp_path / "verdict"))
    return Starts(tmp_path / "run", tmp_path / "verdict")


def test_a_job_that_fails_twice_the_same_way_is_given_up(starts: Starts) -> None:
    starts.start(step=0).failed("KeyError", 3)
    assert starts.verdict == "again"
    starts.start(step=0).failed("KeyError", 3)
    assert starts.verdict == "no: it has failed twice the same way without getting beyond step 0: KeyError"


def test_a_job_that_is_killed_twice_is_given_up(starts: Starts) -> None:
    """Nobody can write anything down then, so it has been before."""
    starts.start(step=8)
    assert starts.verdict == "again"
    starts.start(step=8)
    assert starts.verdict == f"unsaid: it has failed twice the same way without getting beyond step 8: {SILENT}"


def test_a_job_that_gets_on_is_not_given_up(starts: Starts) -> None:
    for step in (0, 4, 8):
        starts.start(step).got_on(step + 4)
        assert starts.verdict == "again"
    starts.start(step=12)
    assert starts.verdict.startswith("unsaid: "), "the one before was killed at the same checkpoint"
    starts.start(step=12).got_on(12)
    assert starts.verdict.startswith("unsaid: "), "the checkpoint that it came from is none of its own"


def test_a_job_that_fails_in_ever_other_ways_is_given_up_too(starts: Starts) -> None:
    starts.start(step=0).failed("KeyError", 0)
    starts.start(step=0).failed("ValueError", 0)
    assert starts.verdict == "again"
    starts.start(step=0).failed("OSError", 0)
    assert starts.verdict == "no: it has failed 3 times without getting beyond step 0: OSError; ValueError; KeyError"


def test_signals_are_no_failures(starts: Starts) -> None:
    for _ in range(4):
        starts.start(step=0).stopped("SIGTERM", 0, again=True)
        assert starts.verdict == "again"
    starts.start(step=0).stopped("SIGINT", 0, again=False)
    assert starts.verdict == "no: SIGINT has ended it"
    starts.start(step=0).completed(9)
    assert starts.verdict == "complete"


def test_what_ends_early_is_neither_failure_nor_progress(starts: Starts) -> None:
    """srun ends the first process by a signal, too, where another has failed."""
    starts.start(step=0).failed("KeyError", 3)
    starts.start(step=0)
    with (starts.folder / RECORD).open("a") as record:
        record.write('{"job": "7", "restart": 2, "step": 0, "ended": "now", "early": "SIGTERM"}\n')
    starts.start(step=0).failed("KeyError", 3)
    assert starts.verdict == "no: it has failed twice the same way without getting beyond step 0: KeyError"


def test_a_disk_that_stays_full_is_a_failure(starts: Starts) -> None:
    """A signal comes, and the checkpoint cannot be written: a training that would be started again for ever."""
    for expected in ("again", "no: it has failed twice the same way without getting beyond step 0: StoppedError"):
        cli = SimpleNamespace(attempt=starts.start(step=0), trainer=SimpleNamespace(global_step=9))
        commands._note_in_job(cli, StoppedError(signal.SIGUSR1, Path("last.ckpt"), "no space left"))
        assert starts.verdict == expected


@pytest.mark.parametrize(("restarts", "verdict"), [("0", "no: it would make the same mistake"), ("5", "unsaid")])
def test_what_has_trained_before_has_no_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarts: str, verdict: str
) -> None:
    """But a node may, on which an interface is down."""
    (tmp_path / "verdict").write_text("unsaid")
    for name, value in {**TOLD, "SLURM_RESTART_COUNT": restarts, VERDICT: str(tmp_path / "verdict")}.items():
        monkeypatch.setenv(name, value)
    commands._note_in_job(SimpleNamespace(attempt=None, checked=False), ValueError("ib0 is down"))
    assert (tmp_path / "verdict").read_text().startswith(verdict)


def test_the_record_of_another_job_does_not_count(starts: Starts) -> None:
    Attempt(starts.folder, Job("6", 0, 1, 1, 0), 0)
    starts.start(step=0)
    assert starts.verdict == "again"


def test_a_record_that_a_kill_has_cut_off(starts: Starts) -> None:
    starts.start(step=0)
    with (starts.folder / RECORD).open("a") as record:
        record.write('{"job": "7", "rest')
    assert [line["step"] for line in read(starts.folder)] == [0]
    assert wandb_run(starts.folder) == "abc"


@pytest.mark.parametrize(
    ("number", "starts", "after", "code"),
    [
        (signal.SIGTERM, ["unsaid"], "early\n", 143),
        (signal.SIGUSR1, ["again", "early", "unsaid: it has failed twice"], "early\n", 138),
        (signal.SIGTERM, ["no: another process has found a mistake"], "no: another process has found a mistake", 2),
        (signal.SIGUSR1, ["early", "unsaid", "unsaid"], "no: 3 times running it was ended before training began", 2),
    ],
)
def test_a_signal_while_loading(
    tmp_path: Path, number: signal.Signals, starts: list[str], after: str, code: int
) -> None:
    """Also where the process waits inside a library, which runs no handler of Python's."""
    for start, verdict in enumerate(starts):
        (tmp_path / f"7.{start}").write_text(verdict)
    file = tmp_path / f"7.{len(starts) - 1}"
    loads = (
        "from lanes.jobs.early import look_out; look_out(); print(flush=True); import ctypes; libc = ctypes.CDLL(None)"
    )
    waits = "libc.poll(0, 0, 30000);" * 2  # what a signal interrupts once
    environment = {**os.environ, VERDICT: str(file)}
    with subprocess.Popen(
        [sys.executable, "-c", f"{loads}; {waits}"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        time.sleep(0.2)
        process.send_signal(number)
        assert process.wait(10) == code
        assert f"{number.name} has ended it before there was anything to save" in process.stderr.read()
    assert file.read_text().startswith(after)


SAVES = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), pathlib.Path("saved").touch(), sys.exit(0)))
pathlib.Path("up").touch()
time.sleep(60)
"""
SUPERVISES = """
import sys
from lanes.jobs.early import look_out
look_out()
from lanes.faults.supervisor import supervise
supervise([sys.executable, "-c", sys.argv[1]], 1)
"""


def test_a_supervisor_lives_until_its_processes_have_saved(tmp_path: Path) -> None:
    """In a job whose script starts one, a study's."""
    environment = {**os.environ, VERDICT: str(tmp_path / "verdict")}
    with subprocess.Popen([sys.executable, "-c", SUPERVISES, SAVES], cwd=tmp_path, env=environment) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "up").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("name", ["7", "", "a/b", "..", "-x", "a b"])
def test_names_that_runs_cannot_have(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a run's name: use letters"):
        check_name(name)


def test_a_run_is_held_once(tmp_path: Path) -> None:
    held = hold(tmp_path / "run", "job 1")
    with pytest.raises(ValueError, match="is being trained by job 1; wait for its end"):
        hold(tmp_path / "run", "job 2")
    held.release()
    hold(tmp_path / "run", "job 2").release()


def test_named_runs_have_no_part_in_numbers(tmp_path: Path) -> None:
    for name in ("2", "slurm-9", "lanes=2"):
        (tmp_path / name).mkdir()
    assert last_run(tmp_path) == tmp_path / "2"


class Net:
    def plan(self, lane_devices: int) -> object:
        return object()


def test_more_lane_devices_than_a_node_has() -> None:
    module: object = Net()
    with pytest.raises(
        ValueError, match=r"8 lane devices are more than a node has, which is 4.*use 1, 2 or 4, or more"
    ):
        choose_lane_devices(module, 8, 4, 2)
    assert choose_lane_devices(module, 8, 4, 2, across_nodes=True) == 8
    assert choose_lane_devices(module, 4, 4, 2) == 4
    assert choose_lane_devices(module, "auto", 4, 2) == divisors(4)[-1]
    with pytest.raises(ValueError, match="16 lane devices do not divide 8 devices"):
        choose_lane_devices(module, 16, 4, 2)
