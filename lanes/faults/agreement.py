"""At every step all processes tell one another a few numbers: whether a signal came, and what they read.

So lane devices of a replica that read different batches are found at that step, and a signal that reached any process
ends training on all of them at the same step, with a checkpoint. The exchange runs while the step computes, on the
processors and in a group of its own. Nothing is exchanged or saved inside a signal handler: ranks stand in different
collectives when it comes.
"""

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lanes.mesh import LANE_AXIS, axis, digest

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
LOOKED_AT = 4096  # numbers of each of a batch's tensors that are compared, evenly spread


class StoppedError(RuntimeError):
    """A signal has ended training, after a checkpoint.

    Attributes:
        signal: its number.
    """

    def __init__(self, number: int, checkpoint: Path) -> None:
        super().__init__(f"{signal.Signals(number).name} has ended training; it can go on from {checkpoint}")
        self.signal = number


class UnlikeError(RuntimeError):
    """Lane devices of a replica read different batches; training makes no sense from here on."""


class Agreement(Callback):
    """Compare batches among lane devices, and end training together when a signal has come.

    SIGTERM, SIGUSR1 and SIGINT: a checkpoint is written at the end of the step, and :class:`StoppedError` is raised on
    all processes. A second SIGINT ends the process at once.
    """

    def __init__(self) -> None:
        self._signal = 0
        self._handlers: dict[int, Any] = {}
        self._group: Any = None
        self._asked: tuple[Any, list[Tensor]] | None = None  # what is under way

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the group; take the signals from the trainer, whose handlers exchange and save."""
        self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        self._lane_devices = axis(pl_module.device_mesh, LANE_AXIS).size  # type: ignore[arg-type]
        self._group = dist.new_group(backend="gloo")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Tell the others."""
        told = torch.tensor([self._signal, *_seen(batch)])
        everyone = [torch.empty_like(told) for _ in range(dist.get_world_size())]
        self._asked = dist.all_gather(everyone, told, group=self._group, async_op=True), everyone

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hear the others.

        Raises:
            UnlikeError: lane devices of a replica read different batches; on all processes.
            StoppedError: a signal has come to one of them; on all.
        """
        assert self._asked is not None
        work, answers = self._asked
        work.wait()
        everyone = torch.stack(answers)
        for replica, lane_devices in enumerate(everyone.split(self._lane_devices)):
            unlike = (lane_devices[:, 1:] != lane_devices[0, 1:]).any(1).nonzero().flatten().tolist()
            if unlike:
                rank = replica * self._lane_devices + unlike[0]
                raise UnlikeError(
                    f"step {trainer.global_step}: lane device {unlike[0]} of replica {replica} (rank {rank}) read "
                    "another batch than lane device 0; read data and draw random numbers alike on every process"
                )
        number = int(everyone[:, 0].max())
        if number and trainer.global_step and not trainer.fit_loop.epoch_loop._should_accumulate():
            self._stop(trainer, number)

    def _stop(self, trainer: Trainer, number: int) -> None:
        path = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        rank_zero_info(f"{signal.Signals(number).name} has come: a checkpoint is written to {path}")
        trainer.save_checkpoint(path)
        strategy: Any = trainer.strategy
        strategy.written()
        trainer.strategy.barrier()  # whoever ends first may have the others ended
        raise StoppedError(number, path)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT == self._signal:
            os._exit(128 + number)
        self._signal = number


def _seen(batch: Any) -> list[int]:
    """Two numbers each of images and targets."""
    images, targets = (tensor.detach().flatten() for tensor in batch)
    return [n for flat in (images, targets) for n in digest(flat[:: max(1, len(flat) // LOOKED_AT)])]
