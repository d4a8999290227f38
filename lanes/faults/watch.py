"""Where every process stands, told once a second; when none gets on, who is to blame, and the end.

A thread in each process tells the others by a folder or a store (no collective), and looks whether its own training
gets on. A process that is stopped or gone tells nothing; one that hangs elsewhere than the others tells where. So the
others also learn who has died where nobody watches over all of them (torchrun, srun). Kept out: processes that one
supervisor has started (supervisor.py).
"""

import json
import os
import re
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lanes.faults.agreement import Agreement
from lanes.faults.pulses import HUNG, PULSES, Pulse, in_words, read_pulses, write_pulse
from lanes.mesh import DATA_AXIS, LANE_AXIS, axis

BEAT_S = 1.0
MUTE_S = 3.0  # a process that tells nothing for so long is stopped, gone, or its machine is
STUCK_S = 2.0  # after a signal or a lost connection: so long without getting on, and the others are looked at


class Watch(Callback):
    """End all processes when training has not got on for a while, and say where each of them stands.

    Where a signal has come, or a connection is lost, a process that is gone or stopped ends them at once.

    Args:
        timeout_s: how long a batch, a validation batch or a checkpoint may take.
        start_timeout_s: the same until the first step is made: compilation, caches.
    """

    def __init__(self, timeout_s: float = 300, start_timeout_s: float = 1800) -> None:
        least = 10.0
        for name, value in (("timeout_s", timeout_s), ("start_timeout_s", start_timeout_s)):
            if not value > least:
                raise ValueError(f"Watch: {name}={value} must be more than {least:.0f} seconds")
        self.timeout_s, self.start_timeout_s = timeout_s, start_timeout_s
        self._stands = ("start", 0, time.monotonic())
        self._step, self._made_one, self._told = 0, False, 0
        self._thread: threading.Thread | None = None
        self._end = threading.Event()
        self._hooks: list[Any] = []
        self.here = ""  # which process this is, in words, once training begins
        self.who_ended: str | None = None  # in words, once an exchange has failed by that

    # ---- On the training's thread

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start watching."""
        mesh: Any = pl_module.device_mesh
        self._places = axis(mesh, DATA_AXIS).index, axis(mesh, LANE_AXIS).index
        self._world, self._rank = trainer.world_size, trainer.global_rank
        module: Any = pl_module
        if not module.compile_backend:  # a hook would break the compiled network into pieces
            layers = {name: module.net.get_submodule(name) for name in module.placed_by.crossings}
            self._hooks = [layer.register_forward_pre_hook(self._at_layer(name)) for name, layer in layers.items()]
        default: Any = dist.distributed_c10d._get_default_store()
        self._store = default.clone()  # a connection of its own: the trainer's may be waited at
        self._store.set_timeout(timedelta(seconds=2))
        self._folder = Path(os.environ[PULSES]) if PULSES in os.environ else None
        self._agreement = next((c for c in trainer.callbacks if isinstance(c, Agreement)), None)  # type: ignore[attr-defined]
        self._at("start")
        self.here = self._pulse().name
        self._tell()  # before anybody goes on: a process may be killed within its first second
        everyone: list[Any] = [None] * self._world
        dist.all_gather_object(everyone, self._pulse())
        self._processes, self._pids = [pulse.name for pulse in everyone], [pulse.pid for pulse in everyone]
        self._end.clear()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop watching."""
        self._end.set()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop watching; if an exchange has failed and no supervisor will, find out who has ended."""
        if self._thread is None:
            return
        self._end.set()
        self._thread.join()
        if self._folder is None and connection_lost(exception) and (gone := self._mute()):
            self.who_ended = self._ended(gone)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Training gets on."""
        self._step = trainer.global_step
        self._at("forward")

    def on_before_backward(self, trainer: Trainer, *_: Any) -> None:
        """Training gets on."""
        self._at("backward")

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        """Training gets on."""
        self._at("optimizer")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Training gets on."""
        self._step, self._made_one = trainer.global_step, True
        self._at("after the batch, before the next")

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Training gets on."""
        self._at("validation")

    def _at_layer(self, name: str) -> Any:
        def note(module: nn.Module, args: Any) -> None:
            what = "validation" if self._stands[0].startswith("validation") else "forward"
            self._at(f"{what}, crossing at {name}")

        return note

    def _at(self, where: str) -> None:
        self._stands = where, self._stands[1] + 1, time.monotonic()  # one object: the other thread reads it whole

    # ---- On the thread that watches

    def _watch(self) -> None:
        while not self._end.wait(BEAT_S):
            marks, stood_s = self._stands[1], self._tell()
            if stood_s > (self.timeout_s if self._made_one else self.start_timeout_s):
                mute = self._mute()  # meanwhile the others tell that they stand still, too
                everyone = self._everyone() | {self._rank: self._pulse()}
                self._leave(in_words(everyone, self._processes, mute), HUNG, mute)
            signalled = self._agreement is not None and self._agreement.signal
            if signalled and stood_s > STUCK_S and (mute := self._mute()) and self._stands[1] == marks:
                self._leave(self._ended(mute), 1, mute)

    def _tell(self) -> float:
        """Tell where this process stands; for how long it has stood there."""
        self._told += 1
        pulse = self._pulse()
        if self._folder is not None:
            write_pulse(self._folder, pulse)
        else:
            with suppress(RuntimeError):  # whoever holds the store has ended or hangs
                self._store.set(f"pulse {self._rank}", json.dumps(asdict(pulse)))
        return pulse.stood_s

    def _pulse(self) -> Pulse:
        where, marks, since = self._stands
        place = self._rank, socket.gethostname(), os.getpid(), *self._places
        return Pulse(*place, self._step, where, marks, time.monotonic() - since, self._told)

    def _mute(self) -> list[int]:
        """The ranks that tell nothing any more: by how often they have told, since clocks differ."""
        before = {rank: pulse.told for rank, pulse in self._everyone().items()}
        if not before:  # nobody holds the store any more: the first process does, unless torchrun's agent
            return [0] if self._rank else []
        for _ in range(round(MUTE_S / BEAT_S)):
            time.sleep(BEAT_S)
            self._tell()
        after = {rank: pulse.told for rank, pulse in self._everyone().items()}
        return [rank for rank in range(self._world) if rank != self._rank and after.get(rank) == before.get(rank)]

    def _everyone(self) -> dict[int, Pulse]:
        if self._folder is not None:
            return read_pulses(self._folder, self._pids)
        pulses = {}
        for rank in range(self._world):
            with suppress(RuntimeError):  # it has never told anything, or nobody holds the store any more
                pulses[rank] = Pulse(**json.loads(self._store.get(f"pulse {rank}")))
        return pulses

    def _ended(self, ranks: list[int]) -> str:
        pulses = self._everyone()
        names = [self._processes[rank] + (f", {pulses[rank].at}," if rank in pulses else "") for rank in ranks]
        return f"{' and '.join(names)} tells nothing any more; why, it says above, unless it was killed or stopped"

    def _leave(self, words: str, code: int, mute: list[int]) -> None:
        """The first process that can speak says why; all that can leave."""
        if self._rank == min(rank for rank in range(self._world) if rank not in mute):
            print(f"lanes: error: {words}", file=sys.stderr, flush=True)
        else:
            time.sleep(2 * BEAT_S)  # else its words may be cut off
        os._exit(code)


def connection_lost(error: BaseException) -> bool:
    """Whether an exchange has failed, most probably since another process has ended."""
    lost = re.search("Connection (closed|reset) by peer|Broken pipe|[Ss]ocket closed", str(error))
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and lost is not None)
