"""The supervisor: exit codes, who is named, nobody left behind, signals passed on, a new start."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from lanes.faults import supervisor
from lanes.faults.pulses import HUNG
from lanes.faults.standing import Standing
from lanes.faults.supervisor import supervise


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "MERCY_S", 1.0)
    monkeypatch.delenv("LANES_PULSES", raising=False)


def python(text: str) -> list[str]:
    return [sys.executable, "-c", f"import os, signal, sys, time\nrank = int(os.environ['RANK'])\n{text}"]


def none_left() -> bool:
    return not [child for child in psutil.Process().children() if "RANK" in _environment(child)]


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def test_all_is_well(tmp_path: Path) -> None:
    write = f"open(os.path.join({str(tmp_path)!r}, str(rank)), 'w').write(os.environ['WORLD_SIZE'])"
    assert supervise(python(write), 3) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys("012", "3")


def test_a_process_that_fails(capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    assert supervise(python("sys.exit('this is why') if rank == 1 else time.sleep(60)"), 2) == 1
    assert time.monotonic() - began < 30
    assert none_left()
    assert capfd.readouterr().err.splitlines()[0] == "this is why"


def test_a_process_that_is_killed_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    """Also by those who then die of it, and where the others do not listen to anything gentle."""
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    die = "time.sleep(0.5)\nos.kill(os.getpid(), signal.SIGKILL) if rank == 2 else time.sleep(60)"
    assert supervise(python(deaf + die), 3) == 128 + signal.SIGKILL
    assert none_left()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("lanes: error: rank 2 (process ")
    assert "was ended by SIGKILL" in line


def test_other_children_have_nothing_to_do_with_it(capfd: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        die = deaf + "time.sleep(1)\nos.kill(os.getpid(), signal.SIGKILL) if rank else time.sleep(60)"
        assert supervise(python(die), 2) == 128 + signal.SIGKILL
        assert other.poll() is None
        other.kill()
    assert "rank 1 (process " in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_are_passed_on_and_time_is_given(tmp_path: Path, number: int) -> None:
    """A process that saves for longer than the others are given after a death."""
    text = f"""
def save(number, frame):
    time.sleep(2.5)
    open(os.path.join({str(tmp_path)!r}, str(rank)), 'w').write(str(number))
    sys.exit(128 + number if rank == 0 else 0)
signal.signal({int(number)}, save)
open(os.path.join({str(tmp_path)!r}, f"ready{{rank}}"), 'w')
time.sleep(60)
"""
    threading.Thread(target=_send, args=(number, lambda: len(list(tmp_path.glob("ready*"))) == 2)).start()
    assert supervise(python(text), 2) == 128 + number
    assert {(tmp_path / name).read_text() for name in "01"} == {str(int(number))}
    assert none_left()


def _send(number: int, when: Callable[[], bool]) -> None:
    while not when():
        time.sleep(0.05)
    os.kill(os.getpid(), number)


def test_a_second_interrupt_ends_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = f"""
signal.signal(signal.SIGINT, lambda *_: open(os.path.join({str(tmp_path)!r}, f"heard{{rank}}"), 'w'))
open(os.path.join({str(tmp_path)!r}, f"ready{{rank}}"), 'w')
for _ in range(600): time.sleep(0.1)
"""

    def interrupt_twice() -> None:
        _send(signal.SIGINT, lambda: len(list(tmp_path.glob("ready*"))) == 2)
        _send(signal.SIGINT, lambda: len(list(tmp_path.glob("heard*"))) == 2)

    threading.Thread(target=interrupt_twice).start()
    assert supervise(python(text), 2) == 128 + signal.SIGINT
    assert "a second SIGINT has ended it at once" in capfd.readouterr().err
    assert none_left()


def test_one_that_is_stopped_when_the_others_have_ended(capfd: pytest.CaptureFixture[str]) -> None:
    """Also before it has told anything; nobody is left to wait for it but the supervisor."""
    assert supervise(python("os.kill(os.getpid(), signal.SIGSTOP) if rank == 1 else None"), 2, patience_s=3) == HUNG
    assert none_left()
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith("lanes: error: training does not get on: rank 1 (process ")
    assert said[0].endswith(") tells nothing any more: stopped, or gone")
    assert len(said) == 2
    assert said[1].startswith("  rank 1 (process ")


def test_a_look_that_fails_is_not_the_last(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """It is said, once, and a hang is still seen."""
    look, fails = Standing.look, iter([True, True])

    def fail(*args: object, **keys: object) -> str | None:
        if next(fails, False):
            raise OSError("cannot be read now")
        return look(*args, **keys)

    monkeypatch.setattr(Standing, "look", fail)
    assert supervise(python("os.kill(os.getpid(), signal.SIGSTOP) if rank == 1 else None"), 2, patience_s=3) == HUNG
    assert none_left()
    said = capfd.readouterr().err
    assert said.count("OSError: cannot be read now") == 1
    assert "training does not get on: rank 1 (process " in said


TELLING = """
from lanes.faults.telling import supervised, tell_supervisor
tell_supervisor(gets_on=False)
teller = supervised()
teller.place, teller.patience_s = (0, rank), 3
"""


def test_one_that_is_stopped_among_others_that_wait(capfd: pytest.CaptureFixture[str]) -> None:
    stop = "teller.at('there')\nteller.tell()\nos.kill(os.getpid(), signal.SIGSTOP) if rank == 2 else time.sleep(60)"
    assert supervise(python(TELLING + stop), 3, patience_s=60) == HUNG
    assert none_left()
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith("lanes: error: training does not get on: rank 2 (lane device 2 of replica 0, process ")
    assert said[0].endswith("tells nothing any more: stopped, or gone")
    assert [line[:9] for line in said[1:]] == ["  rank 0 ", "  rank 1 ", "  rank 2 "]
    assert all("stands after 0 steps at: there, for " in line for line in said[1:])


def test_one_that_keeps_the_others_waiting(capfd: pytest.CaptureFixture[str]) -> None:
    wait = "teller.at('there')\nif rank != 1: teller.at('further on')\ntime.sleep(60)"
    assert supervise(python(TELLING + wait), 3, patience_s=60) == HUNG
    assert ") keeps the others waiting" in capfd.readouterr().err.splitlines()[0].partition("rank 1 (")[2]


def test_who_tells_anything_may_take_long(capfd: pytest.CaptureFixture[str]) -> None:
    assert supervise(python(TELLING + "teller.at('the end', gets_on=True)\ntime.sleep(5)"), 2, patience_s=3) == 0
    assert capfd.readouterr().err == ""


def test_a_signal_is_not_waited_with_for_one_that_is_stopped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = f"""
signal.signal(signal.SIGTERM, lambda *_: None)
open(os.path.join({str(tmp_path)!r}, f"ready{{rank}}"), 'w')
os.kill(os.getpid(), signal.SIGSTOP) if rank == 0 else None
for _ in range(600): time.sleep(0.1)
"""
    threading.Thread(target=_send, args=(signal.SIGTERM, lambda: len(list(tmp_path.glob("ready*"))) == 2)).start()
    assert supervise(python(TELLING.replace(", 3", ", 60") + text), 2, patience_s=60) == HUNG
    assert "does not get on: rank 0 (" in capfd.readouterr().err


def test_all_are_started_again(tmp_path: Path) -> None:
    text = f"""
place = os.path.join({str(tmp_path)!r}, f"{{rank}}-{{os.environ['TORCHELASTIC_RESTART_COUNT']}}")
open(place, 'w')
if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':
    os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(60)
"""
    assert supervise(python(text), 2, restarts=1) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"0-0", "1-0", "0-1", "1-1"}


def test_none_is_started_again_for_long_once_a_signal_has_come(tmp_path: Path) -> None:
    """It came while processes loaded, and ended them: whoever sent it wants the end."""
    text = f"""
open(os.path.join({str(tmp_path)!r}, f"ready{{rank}}-{{os.environ['TORCHELASTIC_RESTART_COUNT']}}"), 'w')
time.sleep(30)
open(os.path.join({str(tmp_path)!r}, 'trained'), 'w')
"""
    threading.Thread(target=_send, args=(signal.SIGTERM, lambda: len(list(tmp_path.glob("ready*"))) == 2)).start()
    assert supervise(python(text), 2, restarts=2) == 128 + signal.SIGTERM
    assert not (tmp_path / "trained").exists()
    assert none_left()


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in supervisor.PASSED_ON]
    supervise(python(""), 1)
    assert [signal.getsignal(number) for number in supervisor.PASSED_ON] == before


def test_its_own_death_leaves_nobody(tmp_path: Path) -> None:
    text = f"""
from lanes.faults.orphans import end_with_supervisor
end_with_supervisor()
open(os.path.join({str(tmp_path)!r}, str(os.getpid())), 'w')
time.sleep(60)
"""
    script = f"from lanes.faults.supervisor import supervise\nsupervise({python(text)!r}, 2)"
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.1)
        process.kill()
    deadline = time.monotonic() + 20
    pids = [int(path.name) for path in tmp_path.iterdir()]
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(psutil.pid_exists(pid) for pid in pids)
