"""Where processes stand, and what is made of it: who is to blame."""

from dataclasses import replace
from pathlib import Path

from lanes.faults.pulses import Pulse, in_words, read_pulse, write_pulse


def pulse(rank: int, marks: int = 10) -> Pulse:
    return Pulse(rank, "node", 100 + rank, rank // 2, rank % 2, 7, "backward", marks, 12.0, 3)


NAMES = {rank: pulse(rank).name for rank in range(4)}


def words(*pulses: Pulse, mute: tuple[int, ...] = ()) -> str:
    return in_words({one.rank: one for one in pulses}, NAMES, mute)


def test_a_pulse_is_written_and_read(tmp_path: Path) -> None:
    write_pulse(tmp_path, pulse(1))
    write_pulse(tmp_path, replace(pulse(1), told=4))
    write_pulse(tmp_path, pulse(2))
    assert read_pulse(tmp_path, 101) == replace(pulse(1), told=4)
    assert read_pulse(tmp_path, 5) is None


def test_who_is_silent_is_to_blame() -> None:
    said = words(*map(pulse, range(4)), mute=(3,)).splitlines()
    assert said[0] == (
        "training does not get on: rank 3 (lane device 1 of replica 1, process 103 on node) tells nothing any more: "
        "stopped, or gone"
    )
    assert said[4] == (
        "  rank 3 (lane device 1 of replica 1, process 103 on node) stands after 7 steps at: backward, for 12 s"
    )


def test_who_is_silent_and_unknown_is_named_all_the_same() -> None:
    assert f"{NAMES[0]} and {NAMES[2]} tell nothing any more" in words(pulse(1), pulse(3), mute=(0, 2))


def test_who_is_behind_is_to_blame() -> None:
    said = words(pulse(0, 12), pulse(1, 11), pulse(2, 12), pulse(3, 12))
    assert f"{NAMES[1]} keeps the others waiting" in said


def test_nobody_is_to_blame() -> None:
    assert "all processes stand at the same place" in words(*map(pulse, range(4)))
