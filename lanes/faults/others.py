"""Processes that no supervisor has started (torchrun, srun) watch one another.

They tell one another where they stand by a store (no collective). Who has stood at one place for too long looks where
the others stand, says who is to blame, and ends; so do all others. Kept out: one node with a supervisor (standing.py).
"""

import json
import os
import socket
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import Any

import psutil
import torch.distributed as dist

from lanes.faults.bounded_store import BoundedStore
from lanes.faults.pulses import HUNG, Pulse, in_words
from lanes.faults.telling import BEAT_S, Teller

MUTE_S = 3.0  # a process that tells nothing for so long is stopped, gone, or its machine is
STUCK_S = 2.0  # after a signal: so long without getting on, and the others are looked at
STORE_S = 2.0  # for an answer of the store
SAID = "who is to blame was said"  # a key of the store


class Others:
    """Looks after the other processes; all of them must make one.

    Args:
        rank: of this process.
        world: how many there are.
    """

    def __init__(self, rank: int, world: int) -> None:
        self._rank, self._world = rank, world
        default: Any = dist.distributed_c10d._get_default_store()
        store = default.clone()  # a connection of its own: the trainer's may be waited at
        store.set_timeout(timedelta(seconds=STORE_S))
        self._store = BoundedStore(store, 2 * STORE_S)
        self.teller = Teller(self._write, rank, look=self._look)
        self._first: dict[int, Pulse] = {}

    def start(self) -> None:
        """Look from now on; all processes must call it together."""
        everyone: list[Any] = [None] * self._world
        dist.all_gather_object(everyone, self.teller.pulse())
        self._first = dict(enumerate(everyone))
        self.teller.start()

    def stop(self) -> None:
        """Look no more."""
        self.teller.stop()

    def who_ended(self) -> str | None:
        """Which of them tell nothing any more, in words."""
        gone = self._mute()
        return self._ended(gone) if gone else None

    def _write(self, pulse: Pulse) -> None:
        with suppress(RuntimeError):  # whoever holds the store has ended or hangs
            self._store.ask(lambda store: store.set(f"pulse {self._rank}", json.dumps(asdict(pulse))))

    def _look(self) -> None:
        marks = self.teller.stands[1]
        pulse = self.teller.pulse()
        if pulse.patience_s is not None and pulse.stood_s > pulse.patience_s:
            mute = self._mute()  # meanwhile the others tell that they stand still, too
            everyone = self._everyone() | {self._rank: self.teller.pulse()}
            names = {rank: pulse.name for rank, pulse in self._first.items()}
            self._leave(in_words(everyone, names, mute), HUNG, mute)
        if pulse.signal and pulse.stood_s > STUCK_S and (mute := self._mute()) and self.teller.stands[1] == marks:
            self._leave(self._ended(mute), 1, mute)

    def _mute(self) -> list[int]:
        """The ranks that tell nothing any more: by how often they have told, since clocks differ."""
        before = {rank: pulse.told for rank, pulse in self._everyone().items()}
        if not before:  # nobody holds the store any more: the first process does, unless torchrun's agent
            return [0] if self._rank else []
        for _ in range(round(MUTE_S / BEAT_S)):
            time.sleep(BEAT_S)
            self.teller.tell()
        after = {rank: pulse.told for rank, pulse in self._everyone().items()}
        return [rank for rank in range(self._world) if rank != self._rank and after.get(rank) == before.get(rank)]

    def _everyone(self) -> dict[int, Pulse]:
        pulses = {}
        for rank in range(self._world):
            with suppress(RuntimeError):  # it has never told anything, or nobody holds the store any more
                pulses[rank] = Pulse(**json.loads(self._store.ask(partial(_get, f"pulse {rank}"))))
        return pulses

    def _ended(self, ranks: list[int]) -> str:
        pulses = self._everyone()
        names = [self._first[rank].name + (f", {pulses[rank].at}," if rank in pulses else "") for rank in ranks]
        return f"{' and '.join(names)} tells nothing any more; why, it says above, unless it was killed or stopped"

    def _leave(self, words: str, code: int, mute: list[int]) -> None:
        """The first that comes here says why; all leave."""
        if self._is_first(mute):
            print(f"lanes: error: {words}", file=sys.stderr, flush=True)
        else:
            time.sleep(2 * BEAT_S)  # else its words may be cut off
        for rank in mute:
            _end_here(self._first[rank])
        os._exit(code)

    def _is_first(self, mute: list[int]) -> bool:
        try:
            return int(self._store.ask(lambda store: store.add(SAID, 1))) == 1
        except RuntimeError:  # nobody holds the store any more
            return self._rank == min(rank for rank in range(self._world) if rank not in mute)


def _get(key: str, store: Any) -> Any:
    return store.get(key)


def _end_here(pulse: Pulse) -> None:
    """End a process of this host: one that is stopped does not hear its launcher, who waits for it half a minute."""
    if pulse.host == socket.gethostname():
        with suppress(psutil.Error):
            process = psutil.Process(pulse.pid)
            if process.cmdline() == psutil.Process().cmdline():  # and not another that has got its number
                process.kill()
