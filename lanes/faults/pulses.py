"""Where a process stands, told to others: by a folder on one machine that has a supervisor, else by a store.

Kept out: who tells it, and what is made of it (watch.py, supervisor.py).
"""

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

PULSES = "LANES_PULSES"  # a folder on this machine, into which each process writes its own, for a supervisor
HUNG = 4  # exit code


@dataclass(frozen=True)
class Pulse:
    """Where a process stands.

    Attributes:
        rank: of all processes.
        host, pid: where it runs.
        replica, lane_device: its place on the mesh; None until it is known.
        step: the optimizer's steps that it has made.
        where: what it was about to do.
        marks: how many such places it has come to; alike on processes that stand at the same.
        stood_s: for how long it has stood there.
        told: how often it has told so.
        patience_s: how long it may stand there; None: that is not known yet.
        gets_on: it gets on as long as it tells anything at all: nobody knows how long it may take there.
        signal: a signal that has come to it and will end training; 0: none.
    """

    rank: int
    host: str
    pid: int
    replica: int | None
    lane_device: int | None
    step: int
    where: str
    marks: int
    stood_s: float
    told: int
    patience_s: float | None = None
    gets_on: bool = False
    signal: int = 0

    @property
    def name(self) -> str:
        """Which process it is, in words."""
        place = "" if self.replica is None else f"lane device {self.lane_device} of replica {self.replica}, "
        return f"rank {self.rank} ({place}process {self.pid} on {self.host})"

    @property
    def at(self) -> str:
        """Where it stands, in words."""
        return f"at: {self.where}" if self.replica is None else f"after {self.step} steps at: {self.where}"

    def __str__(self) -> str:
        return f"{self.name} stands {self.at}, for {self.stood_s:.0f} s"


def write_pulse(folder: Path, pulse: Pulse) -> None:
    """Write a pulse into a folder, where :func:`read_pulse` finds it by the process; a full disk is none's concern."""
    with suppress(OSError):
        partial = folder / f".{pulse.pid}"
        partial.write_text(json.dumps(asdict(pulse)))
        partial.replace(folder / str(pulse.pid))


def read_pulse(folder: Path, pid: int) -> Pulse | None:
    """The last pulse of a process; None if it never had one, or it cannot be read: who looks must not end of that."""
    try:
        return Pulse(**json.loads((folder / str(pid)).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def in_words(pulses: Mapping[int, Pulse], names: Mapping[int, str], mute: Collection[int]) -> str:
    """Who keeps the others waiting, in a line, and where each process stands, in one each.

    Args:
        pulses: the last that is known of processes, by rank.
        names: of all processes that have not ended, by rank.
        mute: the ranks that tell nothing any more, or never have.
    """
    behind = min((pulse.marks for pulse in pulses.values()), default=0)
    last = [pulse.name for pulse in pulses.values() if pulse.marks == behind]
    if mute:
        silent = [names[rank] for rank in sorted(mute)]
        why = f"{' and '.join(silent)} {'tell' if len(silent) > 1 else 'tells'} nothing any more: stopped, or gone"
    elif len(last) < len(names):
        why = f"{' and '.join(last)} {'keep' if len(last) > 1 else 'keeps'} the others waiting"
    else:
        why = "all processes stand at the same place: an exchange does not end, or all of them wait for something else"
    stand = [f"  {pulses[rank] if rank in pulses else names[rank]}" for rank in sorted(names)]
    return "\n".join([f"training does not get on: {why}", *stand])
