"""A job's signal that comes while processes still load, or wait for one another: nothing to save, and nothing lost.

A process that waits inside a library runs no handler of Python's. So the kernel writes the signal into a pipe, and a
thread reads it, writes it down for slurm/after.sh, which starts the job again, and ends the process. Kept out: signals
while training runs (lanes.faults.agreement), which ``over`` leaves to it.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable

from lanes.jobs.verdict import VERDICT, ended_early

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_over = threading.Event()
_last_words: list[Callable[[str], None]] = []


def look_out() -> None:
    """From now on, until it is over, end this process by such a signal; does nothing outside of a job."""
    if VERDICT not in os.environ:
        return
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)
    threading.Thread(target=_wait, args=(reads,), name="early", daemon=True).start()


def last_words(say: Callable[[str], None]) -> None:
    """Have this called with the signal's name before the process ends by it."""
    _last_words.append(say)


def over() -> None:
    """Signals have found somebody else who minds them."""
    _over.set()


def _wait(reads: int) -> None:
    while True:
        for number in os.read(reads, 64):
            if number in SIGNALS and not _over.is_set():
                again = ended_early()
                name = signal.Signals(number).name
                for say in _last_words:
                    say(name)
                print(f"lanes: {name} has ended it before there was anything to save", file=sys.stderr, flush=True)
                os._exit(128 + number if again else 2)  # by which SLURM may decide, too
