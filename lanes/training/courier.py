"""Work handed over to one thread, so that training does not wait for it.

Here: the thread, and what happens when more is handed over than it can do. Kept out: what the work is.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

MAX_WAITING = 10_000
PATIENCE_S = 0.3


class Courier:
    """One thread that does what it is given, in order; the interpreter does not exit before it is done."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "courier")
        self._num_given = self._num_begun = 0  # counted by one thread each
        self._stuck_at = -1

    def ask(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Have `work` done; the future tells its result, or raises what it raised."""
        return self._executor.submit(work, *arguments)

    def give(self, work: Callable[..., Any], *arguments: Any) -> bool:
        """Have `work` done, whatever comes of it.

        With `MAX_WAITING` pieces of work before it this waits for the thread, but 0.3 s at most, and not again before
        the thread has got on: a thread that hangs must cost neither time nor memory.

        Returns:
            False if it will not be done.
        """
        if not self._has_room():
            return False
        self._num_given += 1
        self._executor.submit(self._begin, work, arguments)
        return True

    def close(self) -> None:
        """Take nothing more; what was given is done all the same."""
        self._executor.shutdown(wait=False)

    def _has_room(self) -> bool:
        end = time.monotonic() + PATIENCE_S
        while self._num_given - self._num_begun >= MAX_WAITING:
            if self._stuck_at == self._num_begun:
                return False
            if time.monotonic() > end:
                self._stuck_at = self._num_begun
            time.sleep(0.001)
        return True

    def _begin(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._num_begun += 1
        work(*arguments)
