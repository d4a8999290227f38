"""Where this process stands, told once a second by a thread of its own: to a supervisor, or to the other processes.

A process that a supervisor has started tells from its first moments to its last, so that one that hangs while it loads
its libraries, or that never ends, is found as well. Imports next to nothing: it begins before that. Kept out: what is
made of it (standing.py, watch.py).
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from lanes.faults.pulses import PULSES, Pulse, write_pulse

BEAT_S = 1.0


class Teller:
    """Where this process stands.

    Args:
        write: takes it where others read it.
        rank: of all processes.
        look: is called after every word, on the thread that tells.

    Attributes:
        place: replica and lane device, once they are known.
        step: the optimizer's steps that were made.
        signal_came: which signal, that will end training; 0: none.
        patience_s: how long it may stand where it stands; None: nobody has said yet.
        stands: where, how many places it has come to before, since when on this process's clock, and whether it gets on
            as long as it tells anything at all.
    """

    def __init__(self, write: Callable[[Pulse], None], rank: int, *, look: Callable[[], None] | None = None) -> None:
        self._write, self._rank, self._look = write, rank, look
        self.place: tuple[int, int] | None = None
        self.step = 0
        self.signal_came: Callable[[], int] = lambda: 0
        self.patience_s: float | None = None
        self.stands = ("starting", 0, time.monotonic(), False)  # one object: the other thread reads it whole
        self._told = 0
        self._one_at_a_time = threading.Lock()  # this thread and the one that tells would write into one another's word
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def at(self, where: str, *, gets_on: bool = False) -> None:
        """It has come to another place.

        Args:
            where: which.
            gets_on: it counts as getting on as long as it tells anything at all.
        """
        self.stands = where, self.stands[1] + 1, time.monotonic(), gets_on

    def pulse(self) -> Pulse:
        """Where it stands now."""
        where, marks, since, gets_on = self.stands
        replica, lane_device = self.place or (None, None)
        return Pulse(
            rank=self._rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            replica=replica,
            lane_device=lane_device,
            step=self.step,
            where=where,
            marks=marks,
            stood_s=time.monotonic() - since,
            told=self._told,
            patience_s=self.patience_s,
            gets_on=gets_on,
            signal=self.signal_came(),
        )

    def tell(self) -> None:
        """Tell it now."""
        with self._one_at_a_time:
            self._told += 1
            self._write(self.pulse())

    def start(self) -> None:
        """Tell it once a second from now on."""
        self.tell()
        self._over.clear()
        self._thread = threading.Thread(target=self._go_on, name="teller", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Be silent."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _go_on(self) -> None:
        while not self._over.wait(BEAT_S):
            self.tell()
            if self._look is not None:
                self._look()


_supervised: Teller | None = None  # as there is one process, and one supervisor


def tell_supervisor(*, gets_on: bool) -> None:
    """Have this process tell its supervisor that it lives, if it has one; to be called first of all.

    Args:
        gets_on: nobody will say when it gets on, so that telling must do.
    """
    global _supervised  # noqa: PLW0603
    if PULSES not in os.environ or _supervised is not None:
        return
    folder = Path(os.environ[PULSES])
    _supervised = Teller(lambda pulse: write_pulse(folder, pulse), int(os.environ["RANK"]))
    _supervised.at("starting", gets_on=gets_on)
    _supervised.start()


def supervised() -> Teller | None:
    """What tells this process's supervisor where it stands; None without one."""
    return _supervised
