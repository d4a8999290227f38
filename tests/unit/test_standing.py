"""Whether processes get on, judged by what they tell, on a clock of the test's own."""

from dataclasses import replace
from pathlib import Path

import pytest

from lanes.faults import standing
from lanes.faults.pulses import Pulse, write_pulse
from lanes.faults.standing import AWAY_S, Standing

RANKS = {100: 0, 101: 1}
BEFORE = "training does not get on: "


class Clock:
    """Seconds that pass when told to."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Machine:
    """Two processes that tell where they stand, and who looks at them once a second."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.folder, self.clock = folder, clock
        self.standing = Standing(folder, patience_s=60)
        self.pulses = [Pulse(rank, "node", pid, 0, rank, 7, "backward", 5, 0.0, 1, 10.0) for pid, rank in RANKS.items()]

    def change(self, rank: int, **values: object) -> None:
        self.pulses[rank] = replace(self.pulses[rank], **values)  # type: ignore[arg-type]

    def passes(self, seconds: int, *, telling: tuple[int, ...] = (0, 1), signalled: bool = False) -> str | None:
        """Time; the first verdict in it."""
        for _ in range(seconds):
            self.clock.now += 1
            for rank in telling:
                self.change(rank, told=self.pulses[rank].told + 1)
                write_pulse(self.folder, self.pulses[rank])
            if words := self.standing.look(RANKS, signalled=signalled):
                return words.splitlines()[0]
        return None


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    clock = Clock()
    monkeypatch.setattr(standing, "time", clock)
    return Machine(tmp_path, clock)


def test_who_gets_on_is_left_alone(machine: Machine) -> None:
    for marks in range(20):
        for rank in (0, 1):
            machine.change(rank, marks=marks)
        assert machine.passes(9) is None


def test_who_tells_nothing(machine: Machine) -> None:
    assert machine.passes(3) is None
    assert machine.passes(8, telling=(0,)) is None
    assert (
        machine.passes(4, telling=(0,)) == f"{BEFORE}{machine.pulses[1].name} tells nothing any more: stopped, or gone"
    )


def test_who_is_silent_for_a_moment_on_a_busy_machine_is_not_to_blame(machine: Machine) -> None:
    machine.passes(2)
    assert machine.passes(5, telling=(0,)) is None
    assert machine.passes(5, telling=()) == f"{BEFORE}{machine.pulses[1].name} tells nothing any more: stopped, or gone"


def test_who_is_behind(machine: Machine) -> None:
    machine.change(0, marks=6)
    assert machine.passes(20) == f"{BEFORE}{machine.pulses[1].name} keeps the others waiting"


def test_who_may_take_as_long_as_it_tells_anything(machine: Machine) -> None:
    for rank in (0, 1):
        machine.change(rank, gets_on=True)
    assert machine.passes(100) is None
    assert "tells nothing any more" in (machine.passes(20, telling=(0,)) or "")


def test_who_has_said_nothing_yet_may_take_longer(machine: Machine) -> None:
    for rank in (0, 1):
        machine.change(rank, patience_s=None)
    assert machine.passes(59) is None
    assert machine.passes(3) is not None


def test_who_was_stopped_late_in_a_long_patience_is_named(machine: Machine) -> None:
    for rank in (0, 1):
        machine.change(rank, patience_s=None)
    assert machine.passes(45) is None
    assert (
        machine.passes(20, telling=(0,)) == f"{BEFORE}{machine.pulses[1].name} tells nothing any more: stopped, or gone"
    )


def test_who_has_never_told_anything_is_named_by_its_number(machine: Machine) -> None:
    machine.change(0, patience_s=None)
    assert machine.passes(70, telling=(0,)) == f"{BEFORE}rank 1 (process 101) tells nothing any more: stopped, or gone"


def test_after_a_signal_nobody_waits_for_who_is_silent(machine: Machine) -> None:
    for rank in (0, 1):
        machine.change(rank, patience_s=300.0)
    assert machine.passes(20, signalled=True) is None
    assert machine.passes(9, telling=(0,), signalled=True) is None
    assert "tells nothing any more" in (machine.passes(3, telling=(0,), signalled=True) or "")


def test_a_signal_that_came_to_a_process_itself(machine: Machine) -> None:
    for rank in (0, 1):
        machine.change(rank, patience_s=300.0, signal=15 * (1 - rank))
    assert machine.passes(20) is None
    assert "tells nothing any more" in (machine.passes(12, telling=(0,)) or "")


def test_after_a_signal_who_is_on_its_way_out_may_be_silent(machine: Machine) -> None:
    for rank in (0, 1):
        machine.change(rank, patience_s=300.0, where="the end", gets_on=True)
    machine.passes(2)
    assert machine.passes(100, telling=(), signalled=True) is None
    assert machine.passes(300, telling=(), signalled=True) is not None


def test_who_was_stopped_with_all_others_blames_nobody(machine: Machine) -> None:
    """As when a machine sleeps, and who looks wakes up first."""
    machine.passes(9)
    machine.clock.now += AWAY_S
    assert machine.passes(3, telling=()) is None
    for rank in (0, 1):
        machine.change(rank, marks=6)
    assert machine.passes(9) is None


def test_those_before_a_restart_have_no_say(machine: Machine) -> None:
    machine.passes(9)
    write_pulse(machine.folder, replace(machine.pulses[0], pid=99, rank=1, marks=1))
    assert machine.passes(3) is not None
    for pid in RANKS:
        write_pulse(machine.folder, replace(machine.pulses[0], pid=pid + 10, marks=1))
    assert machine.standing.look({pid + 10: rank for pid, rank in RANKS.items()}, signalled=False) is None
