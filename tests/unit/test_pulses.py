"""Where processes stand, and what is made of it: who is to blame."""

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

from lanes.faults.pulses import Pulse, in_words, read_pulse, write_pulse
from lanes.faults.telling import Teller


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
    (tmp_path / "6").write_text('{"rank": 0}, "extra"')
    assert read_pulse(tmp_path, 6) is None, "who looks must not end of it"


def test_two_threads_tell_at_the_same_time(tmp_path: Path) -> None:
    """The one that tells once a second, and training, which tells when it begins."""
    teller = Teller(lambda told: write_pulse(tmp_path, told), 0)
    stop = threading.Event()

    def go_on(where: str) -> None:
        while not stop.is_set():
            teller.at(where)
            teller.tell()

    threads = [threading.Thread(target=go_on, args=("x" * length,)) for length in (1, 5000)]
    for thread in threads:
        thread.start()
    try:
        while read_pulse(tmp_path, os.getpid()) is None:
            time.sleep(0.01)
        for _ in range(2000):
            json.loads((tmp_path / str(os.getpid())).read_text())
    finally:
        stop.set()
        for thread in threads:
            thread.join()


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
