"""Starts the processes of a node and outlives them: a process that is no rank itself, so that it can say who failed.

The processes are started, and started again, by torch's own elastic agent. This adds what it lacks: signals are passed
on and the processes given time to save; the first to die is named; the others are gone within seconds, also where they
hang in an exchange; all are ended when they do not get on. Kept out: what processes do, and who is to blame for a hang
(standing.py).
"""

import logging
import os
import select
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from lanes.faults.orphans import SUPERVISOR
from lanes.faults.pulses import HUNG, PULSES
from lanes.faults.standing import Standing
from lanes.jobs import early

LOOK_S = 0.5  # looking through all processes takes a few milliseconds; deaths are noted when they happen
MERCY_S = 5.0  # between the first process that dies and the end of the others, which may have something to say
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
AGREED = "agreed"  # a file of the exit code on which all processes have agreed
RESTARTED = "TORCHELASTIC_RESTART_COUNT"  # tells a process how often it was started again


def supervise(command: Sequence[str], processes: int, *, restarts: int = 0, patience_s: float = 1800) -> int:
    """Run a command as several processes of one node, which talk by a port of this machine; return its exit code.

    Each gets the environment of ``torchrun``: RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT.

    Args:
        command: program and arguments.
        processes: how many.
        restarts: how often all are started again after one of them has failed.
        patience_s: how long a process may tell that it stands at the same place, or tell nothing, where it has not said
            how long it may (lanes.faults.telling).
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
    with tempfile.TemporaryDirectory(prefix="lanes-") as folder:
        passed_on: set[int] = set()
        others = _children()  # of this process, which have nothing to do with this

        def ranks() -> set[int]:
            return _children() - others

        deaths = _Deaths(Standing(Path(folder), patience_s), ranks, passed_on)
        with _told(folder), _signals_passed_on(passed_on, ranks), deaths.watched():
            try:
                elastic_launch(config, command[0])(*command[1:])
            except ChildFailedError as failed:
                if signal.SIGKILL in passed_on:
                    return 128 + signal.SIGINT
                first = failed.get_first_failure()[1]
                if deaths.first is None:  # the agent was quicker
                    deaths.say(first.pid, first.exitcode)
                code = deaths.first or first.exitcode
                return code if code >= 0 else 128 - code
        return _agreed_code(Path(folder))


def end_agreed(code: int) -> NoReturn:
    """End this process, as all the others do: with a code, or by telling it the supervisor, lest it start all again.

    Raises:
        SystemExit: always.
    """
    if PULSES not in os.environ:
        raise SystemExit(code)
    (Path(os.environ[PULSES]) / AGREED).write_text(str(code))
    raise SystemExit(0)


def _agreed_code(folder: Path) -> int:
    told = folder / AGREED
    return int(told.read_text()) if told.exists() else 0


class _Deaths:
    """Sees the processes die or hang, says which was the first, and ends those that stay on.

    Attributes:
        first: exit code of the first that died, negative: by this signal; or of those that hang.
    """

    def __init__(self, standing: Standing, children: Callable[[], set[int]], passed_on: Collection[int]) -> None:
        self.first: int | None = None
        self._standing, self._children, self._passed_on = standing, children, passed_on
        self._wakes, self._woken = os.pipe()
        self._known: set[int] = set()
        self._codes: dict[int, int] = {}  # of those that have died, in that order
        self._earlier: set[int] = set()  # of those, who belonged to an earlier start
        self._died_at: float | None = None  # the first of this start
        self._ranks: dict[int, str] = {}  # of a process that has died nobody can tell any more

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While it lasts, look; and whenever a child dies, before the agent has buried it with its exit code."""
        over = threading.Event()
        thread = threading.Thread(target=self._look, args=(over,), daemon=True)
        before = signal.signal(signal.SIGCHLD, self._one_has_died)
        thread.start()
        try:
            yield
        finally:
            signal.signal(signal.SIGCHLD, before)
            over.set()
            os.write(self._woken, b"!")
            thread.join()
            os.close(self._wakes)
            os.close(self._woken)

    def _one_has_died(self, number: int, frame: FrameType | None) -> None:
        self._note()
        os.write(self._woken, b"!")  # no lock: another child's death may interrupt this

    def _wait(self) -> None:
        """Until a child has died, or for a while."""
        if select.select([self._wakes], [], [], LOOK_S)[0]:
            os.read(self._wakes, 1024)

    def _note(self) -> None:
        for pid in self._children() | self._known:
            if code := _exit_code(pid):
                self._codes.setdefault(pid, code)

    def _look(self, over: threading.Event) -> None:
        told = False
        while not over.is_set():
            self._wait()
            try:
                self._look_once()
            except Exception:  # who looked no more would take a hang for training
                if not told:
                    traceback.print_exc()
                told = True

    def _look_once(self) -> None:
        children = self._children()
        again = children - self._known and not self._passed_on  # who sent a signal wants the end: they end at once
        if self._died_at is not None and again:  # the agent has started all again
            self._known.clear()
            self._earlier |= self._codes.keys()
            self._died_at = None
        self._known |= children
        self._ranks |= {pid: rank for pid in children - self._ranks.keys() if (rank := _rank(pid))}
        self._note()
        dead = next((pid for pid in list(self._codes) if pid not in self._earlier), None)
        if dead and self._died_at is None:
            self._died_at, self.first = time.monotonic(), self._codes[dead]
            self.say(dead, self.first)
        if self._died_at is None and self._hang():
            self._died_at, self.first = time.monotonic(), HUNG
        mercy_s = 0 if self.first == HUNG else MERCY_S  # nobody has anything more to say
        if self._died_at is not None and time.monotonic() - self._died_at >= mercy_s:
            for pid in [pid for pid in self._known if _exit_code(pid) is None]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _hang(self) -> bool:
        """Whether those that have not ended do not get on; says why."""
        ranks = {pid: int(rank) for pid, rank in self._ranks.items() if pid in self._known and _exit_code(pid) is None}
        words = self._standing.look(ranks, signalled=bool(self._passed_on)) if ranks else None
        if words is not None:
            print(f"lanes: error: {words}", file=sys.stderr, flush=True)
        return words is not None

    def say(self, pid: int, code: int) -> None:
        """Say who was ended by which signal; a process that ends by itself has said why."""
        if code >= 0:
            return
        name = signal.Signals(-code).name
        if signal.SIGKILL in self._passed_on:
            print("lanes: a second SIGINT has ended it at once", file=sys.stderr)
            return
        if -code in self._passed_on:
            print(f"lanes: {name} has ended it before there was anything to save", file=sys.stderr)
            return
        hint = ", perhaps since memory ran out" if name == "SIGKILL" else ""
        pulse = self._standing.pulse(pid)
        unwatched = f"rank {self._ranks.get(pid, '?')} (process {pid} on {socket.gethostname()})"
        who = f"{pulse.name}, {pulse.at}," if pulse else unwatched
        print(f"lanes: error: {who} was ended by {name}{hint}", file=sys.stderr)


@contextmanager
def _told(folder: str) -> Iterator[None]:
    """The processes inherit who starts them, and where to write their pulses."""
    # Else torch 2.13 lets processes that are started again find the addresses of those that have died in the store.
    own_store = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
    os.environ |= {PULSES: folder, SUPERVISOR: str(os.getpid()), own_store: "1"}
    try:
        yield
    finally:
        for name in (PULSES, SUPERVISOR, own_store):
            os.environ.pop(name)


def _children() -> set[int]:
    with suppress(psutil.Error):
        return {child.pid for child in psutil.Process().children()}
    return set()


def _rank(pid: int) -> str | None:
    with suppress(psutil.Error):
        return psutil.Process(pid).environ().get("RANK")
    return None


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
def _signals_passed_on(passed_on: set[int], children: Callable[[], set[int]]) -> Iterator[None]:
    """The processes decide what to do with a signal, also one that only this process got; a second Ctrl-C ends them."""
    interrupts = 0

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        passed_on.update({number} if interrupts < 2 else {number, signal.SIGKILL})
        for pid in children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if interrupts > 1 else number)

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    early.over()  # in a job
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
