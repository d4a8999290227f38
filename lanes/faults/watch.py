"""Where every process stands, told once a second; when none gets on, who is to blame, and the end.

A thread in each process tells the others by a store (TCP, no collective), and looks whether its own training gets on. A
process that is stopped or gone tells nothing; one that hangs elsewhere than the others tells where. Kept out: processes
that end by themselves (supervisor.py, torchrun, srun).
"""

import json
import os
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

from lanes.faults.pulses import HUNG, PULSES, SILENT_S, Pulse, in_words, silent, write_pulse
from lanes.mesh import DATA_AXIS, LANE_AXIS, axis

BEAT_S = 1.0


class Watch(Callback):
    """End all processes when training has not got on for a while, and say where each of them stands.

    Args:
        timeout_s: how long a batch, a validation batch or a checkpoint may take.
        start_timeout_s: the same until the first step is made: compilation, caches.
    """

    def __init__(self, timeout_s: float = 300, start_timeout_s: float = 1800) -> None:
        for name, value in (("timeout_s", timeout_s), ("start_timeout_s", start_timeout_s)):
            if not value > 2 * SILENT_S:
                raise ValueError(f"Watch: {name}={value} must be more than {2 * SILENT_S:.0f} seconds")
        self.timeout_s, self.start_timeout_s = timeout_s, start_timeout_s
        self._stands = ("start", 0, time.monotonic())
        self._step, self._made_one = 0, False
        self._end: threading.Event | None = None
        self._hooks: list[Any] = []

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
        self._end = threading.Event()
        self._at("start")
        threading.Thread(target=self._watch, args=(self._end,), name="watch", daemon=True).start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop watching."""
        if self._end is not None:
            self._end.set()
        for hook in self._hooks:
            hook.remove()
        self._end, self._hooks = None, []

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

    def _watch(self, end: threading.Event) -> None:
        while not end.wait(BEAT_S):
            pulse = self._pulse()
            with suppress(RuntimeError):  # the process that holds the store has ended: this one hears of it elsewhere
                self._store.set(f"pulse {self._rank}", json.dumps(asdict(pulse)))
            if PULSES in os.environ:
                write_pulse(Path(os.environ[PULSES]), pulse)
            if pulse.stood_s > (self.timeout_s if self._made_one else self.start_timeout_s):
                self._give_up()

    def _pulse(self) -> Pulse:
        where, marks, since = self._stands
        place = self._rank, socket.gethostname(), os.getpid(), *self._places
        return Pulse(*place, self._step, where, marks, time.monotonic() - since, time.time())

    def _give_up(self) -> None:
        time.sleep(2 * BEAT_S)  # let the others tell that they stand still, too
        pulses = self._everyone()
        speaks = min(pulse.rank for pulse in pulses.values() if not silent(pulse))
        if speaks == self._rank:
            print(f"lanes: error: {in_words(pulses, self._world)}", file=sys.stderr, flush=True)
        else:
            time.sleep(BEAT_S)  # else its words may be cut off
        os._exit(HUNG)

    def _everyone(self) -> dict[int, Pulse]:
        pulses = {}
        for rank in range(self._world):
            with suppress(RuntimeError):  # it has never told anything, or nobody holds the store any more
                pulses[rank] = Pulse(**json.loads(self._store.get(f"pulse {rank}")))
        return pulses | {self._rank: self._pulse()}
