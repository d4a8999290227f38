"""At every step all processes tell one another a few numbers: whether a signal came, and what they read.

So lane devices of a replica that read different batches are found at that step, and a signal that reached any process
ends training on all of them at the same step, with a checkpoint. The exchange runs while the step computes, on the
processors and in a group of its own. Nothing is exchanged or saved inside a signal handler: ranks stand in different
collectives when it comes.
"""

import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lanes.faults.last import LastCheckpoint
from lanes.jobs import early
from lanes.mesh import LANE_AXIS, axis, digest

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
LOOKED_AT = 4096  # numbers of each of a batch's tensors that are compared, evenly spread
SAME_S = 0.5  # Ctrl-C may reach a process twice, by its terminal and by its supervisor


class StoppedError(RuntimeError):
    """A signal has ended training.

    Attributes:
        signal: its number.
        failure: why the checkpoint could not be written; None if it is on the disk.
    """

    def __init__(self, number: int, checkpoint: Path, failure: str | None = None) -> None:
        rest = failure or f"it can go on from {checkpoint}"
        super().__init__(f"{signal.Signals(number).name} has ended training; {rest}")
        self.signal, self.failure = number, failure


class UnlikeError(RuntimeError):
    """Processes that must hold the same do not; training makes no sense from here on."""


class Agreement(Checkpoint):  # which the trainer calls after all others: their state of the step is complete
    """Compare batches among lane devices, and end training together when a signal has come.

    SIGTERM, SIGUSR1 and SIGINT: a checkpoint is written at the end of the step, and :class:`StoppedError` is raised on
    all processes; in a validation at the end of its batch, with the checkpoint of before it. A second SIGINT ends the
    process at once.

    Args:
        last: what keeps the last checkpoint.
    """

    def __init__(self, last: LastCheckpoint) -> None:
        self.last = last
        self.signal = 0  # that has come to this process
        self._came = 0.0
        self._handlers: dict[int, Any] = {}
        self._group: Any = None
        self._asked: tuple[Any, list[Tensor]] | None = None  # what is under way
        self._common = 0  # validation batches that every replica has

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the group; take the signals from the trainer, whose handlers exchange and save."""
        self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        early.over()
        self._lane_devices = axis(pl_module.device_mesh, LANE_AXIS).size  # type: ignore[arg-type]
        self._group = dist.new_group(backend="gloo")
        # The trainer asks at every step, blocking, whether a SIGTERM has come to its handler, which it never does now.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back, before the trainer does."""
        self._give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The same."""
        self._give_back()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Tell the others."""
        self._tell(self.signal, *_seen(batch))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Hear the others, before what was read gets into the weights.

        Raises:
            UnlikeError: lane devices of a replica read different batches; on all processes.
        """
        everyone = self._heard()
        for replica, lane_devices in enumerate(everyone.split(self._lane_devices)):
            unlike = (lane_devices[:, 1:] != lane_devices[0, 1:]).any(1).nonzero().flatten().tolist()
            if unlike:
                rank = replica * self._lane_devices + unlike[0]
                raise UnlikeError(
                    f"step {trainer.global_step + 1}: lane device {unlike[0]} of replica {replica} (rank {rank}) read "
                    "another batch than lane device 0; read data and draw random numbers alike on every process"
                )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End training, if a signal has come.

        Raises:
            StoppedError: a signal has come to one of the processes; on all.
        """
        number = int(self._heard()[:, 0].max())
        if number and trainer.global_step and not trainer.fit_loop.epoch_loop._should_accumulate():
            rank_zero_info(f"{signal.Signals(number).name} has come: a checkpoint is written to {self.last.path}")
            self.last.save(trainer)
            self._stop(trainer, number)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out how many batches all have: replicas may differ by one."""
        if self._group is not None:
            common = torch.tensor(sum(int(n) for n in trainer.num_val_batches))
            dist.all_reduce(common, dist.ReduceOp.MIN, group=self._group)
            self._common = int(common)

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Tell the others."""
        if self._common:
            self._tell(self.signal)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Hear the others.

        Raises:
            StoppedError: a signal has come to one of them, and nothing is lost by stopping here; on all.
        """
        if self._common:
            self._common -= 1
            number = int(self._heard().max())
            if number and self.last.saved_at(trainer.global_step):
                self._stop(trainer, number)

    def _tell(self, *numbers: int) -> None:
        told = torch.tensor(numbers)
        everyone = [torch.empty_like(told) for _ in range(dist.get_world_size())]
        self._asked = dist.all_gather(everyone, told, group=self._group, async_op=True), everyone

    def _heard(self) -> Tensor:
        """What every process told, [processes, numbers]."""
        assert self._asked is not None
        work, answers = self._asked
        work.wait()
        return torch.stack(answers)

    def _give_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _stop(self, trainer: Trainer, number: int) -> None:
        strategy: Any = trainer.strategy
        failure = strategy.broadcast(strategy.written())  # whoever ends first may have the others ended
        raise StoppedError(number, self.last.path, failure)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT == self.signal and now - self._came > SAME_S:
            os._exit(128 + number)
        self.signal, self._came = number, now


def _seen(batch: Any) -> list[int]:
    """Two numbers each of images and targets."""
    images, targets = (tensor.detach().flatten() for tensor in batch)
    return [n for flat in (images, targets) for n in digest(flat[:: max(1, len(flat) // LOOKED_AT)])]
