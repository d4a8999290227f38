"""Starts the processes of a node and outlives them: a process that is no rank itself, so that it can say who failed.

The processes are started, and started again, by torch's own elastic agent. This adds what it lacks: signals are passed
on and the processes given time to save; the first to die is named; the others are gone within seconds, also where they
hang in an exchange. Kept out: what processes do, and hangs (watch.py).
"""

import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import psutil
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

LOOK_S = 0.05
MERCY_S = 5.0  # between the first process that dies and the end of the others, which may have something to say
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
RESTARTED = "TORCHELASTIC_RESTART_COUNT"  # tells a process how often it was started again


def supervise(command: Sequence[str], processes: int, *, restarts: int = 0) -> int:
    """Run a command as several processes of one node, which talk by a port of this machine; return its exit code.

    Each gets the environment of ``torchrun``: RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT.

    Args:
        command: program and arguments.
        processes: how many.
        restarts: how often all are started again after one of them has failed.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we say it in fewer words
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=restarts,
        monitor_interval=0.2,
        signals_to_handle="SIGHUP,SIGQUIT",
    )
    deaths = _Deaths()
    with _signals_passed_on(), deaths.watched():
        try:
            elastic_launch(config, command[0])(*command[1:])
        except ChildFailedError as failed:
            return deaths.told(failed)
    return 0


class _Deaths:
    """Sees the processes die, and ends those that stay on."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}  # process id -> local rank
        self._first: tuple[int, int, int] | None = None  # local rank, process id, exit code (negative: signal)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While it lasts, look."""
        over = threading.Event()
        thread = threading.Thread(target=self._look, args=(over,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def told(self, failed: ChildFailedError) -> int:
        """Say who was first, and return the exit code."""
        rank, failure = failed.get_first_failure()
        rank, pid, code = self._first or (rank, failure.pid, failure.exitcode)  # the agent may have been quicker
        if code >= 0:
            return code
        name = signal.Signals(-code).name
        hint = ", perhaps since memory ran out" if name == "SIGKILL" else ""
        print(f"lanes: error: rank {rank} (process {pid}) was ended by {name}{hint}", file=sys.stderr)
        return 128 - code

    def _look(self, over: threading.Event) -> None:
        died_at = None
        while not over.wait(LOOK_S):
            for pid in _children():
                if self._known.get(pid, -1) < 0:
                    self._known[pid] = _local_rank(pid)
            codes = {pid: _exit_code(pid) for pid in self._known}
            for pid, code in codes.items():
                if code and died_at is None:
                    died_at, self._first = time.monotonic(), (self._known[pid], pid, code)
                if code is None and died_at is not None and time.monotonic() - died_at > MERCY_S:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


def _local_rank(pid: int) -> int:
    with suppress(psutil.Error):
        return int(psutil.Process(pid).environ().get("LOCAL_RANK", -1))
    return -1  # it has just been made


def _children() -> set[int]:
    with suppress(psutil.Error):
        return {child.pid for child in psutil.Process().children()}
    return set()


def _exit_code(pid: int) -> int | None:
    """Of a child that has ended, negative if by a signal; None while it lives. Leaves it to the agent to be buried."""
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0  # buried already
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


@contextmanager
def _signals_passed_on() -> Iterator[None]:
    """The processes decide what to do with a signal, also one that only this process got; a second Ctrl-C ends them."""
    interrupts = 0

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        for pid in _children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if interrupts > 1 else number)

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
