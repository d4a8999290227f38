"""Whether the processes that a supervisor has started get on; if not, who keeps the others waiting.

Every process tells where it stands by a file (telling.py). A process that tells nothing any more does not get on, nor
does one that stands at the same place for longer than it may. Kept out: what is done about it (supervisor.py), and
processes without a supervisor (watch.py).
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lanes.faults.pulses import Pulse, in_words, read_pulse

MUTE_S = 10.0  # tells nothing any more, surely: a busy machine silences processes for a moment, too
AWAY_S = 5.0  # who did not look for so long was stopped itself, perhaps with all others: nobody is to blame for that


@dataclass
class _Seen:
    """What is known of a process, and since when by the clock of the one who looks."""

    pulse: Pulse | None
    told_at: float
    got_on_at: float


class Standing:
    """Looks at processes now and then.

    Args:
        folder: where they write their pulses.
        patience_s: how long a process may stand where it has not said how long it may.
    """

    def __init__(self, folder: Path, patience_s: float) -> None:
        self._folder, self._patience_s = folder, patience_s
        self._seen: dict[int, _Seen] = {}
        self._looked_at = time.monotonic()

    def pulse(self, pid: int) -> Pulse | None:
        """The last of a process."""
        return read_pulse(self._folder, pid)

    def look(self, ranks: Mapping[int, int], *, signalled: bool) -> str | None:
        """Why training does not get on, in words; None if it does, or may yet.

        Args:
            ranks: of the processes that have not ended, by their process id.
            signalled: a signal to end has come: a process that tells nothing is waited for no longer than MUTE_S.
        """
        now = time.monotonic()
        if now - self._looked_at > AWAY_S:
            self._seen = {}
        self._looked_at = now
        self._seen = {pid: self._look_at(pid, now) for pid in ranks}
        everyone = self._seen.values()
        stuck = [seen for seen in everyone if now - seen.got_on_at > self._patience(seen)]
        mute_s = min([MUTE_S, *(self._patience(seen) / 2 for seen in stuck)])
        mute = [pid for pid, seen in self._seen.items() if now - seen.told_at > mute_s]
        signalled |= any(seen.pulse is not None and seen.pulse.signal for seen in everyone)
        waits_in_vain = signalled and any(not self._ends(self._seen[pid]) for pid in mute)
        if not stuck and not waits_in_vain:
            return None
        pulses = {ranks[pid]: seen.pulse for pid, seen in self._seen.items() if seen.pulse is not None}
        unknown = {rank: f"rank {rank} (process {pid})" for pid, rank in ranks.items()}
        names = unknown | {rank: pulse.name for rank, pulse in pulses.items()}
        return in_words(pulses, names, [ranks[pid] for pid in mute])

    def _look_at(self, pid: int, now: float) -> _Seen:
        pulse, before = self.pulse(pid), self._seen.get(pid)
        if before is None:
            return _Seen(pulse, now, now)
        old = before.pulse
        told = pulse is not None and (old is None or pulse.told != old.told)
        got_on = pulse is not None and (old is None or pulse.marks != old.marks or (told and pulse.gets_on))
        return _Seen(pulse, now if told else before.told_at, now if got_on else before.got_on_at)

    @staticmethod
    def _ends(seen: _Seen) -> bool:
        """Whether it is on its way out, on which it tells nothing any more in the end."""
        return seen.pulse is not None and seen.pulse.gets_on

    def _patience(self, seen: _Seen) -> float:
        known = seen.pulse.patience_s if seen.pulse is not None else None
        return self._patience_s if known is None else known
