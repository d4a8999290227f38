"""The training tells how far it is, in a file of its run's folder: for ``lanes status``.

Kept out: what is in it (lanes.status.progress).
"""

import signal
import time
from collections import deque
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lanes.faults.agreement import StoppedError
from lanes.faults.last import LastCheckpoint
from lanes.status.progress import Progress, who_tells, write_progress

EVERY_S = 5.0
REMEMBERED = 60  # writes, over which the rate is taken: five minutes


class ProgressFile(Callback):
    """Write the file on the first process, every few seconds; what is read from the device for it is one number."""

    def __init__(self) -> None:
        self._told = 0.0  # when, monotonic
        self._stood: deque[tuple[float, int]] = deque(maxlen=REMEMBERED)  # when, at which step
        self._who: dict[str, Any] = {}
        self._steps: int | None = None
        self._loss: float | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that it begins."""
        self._who = who_tells() if trainer.is_global_zero else {}
        self._stood.clear()
        self._tell(trainer, "starting")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Now it is known how many steps there will be."""
        steps = trainer.estimated_stepping_batches
        self._steps = int(steps) if steps not in (float("inf"), -1) else None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell, if it is time to."""
        if self._is_due() or (self._who and not self._stood):  # from the end of the first, which is warm-up
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            self._loss = None if loss is None else float(loss)
            self._stood.append((time.monotonic(), trainer.global_step))
            self._tell(trainer, "training")

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Tell that it still does something, if it is time to."""
        if self._is_due() and not trainer.sanity_checking:
            self._tell(trainer, "validating")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that it is complete."""
        self._tell(trainer, "complete")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say by what it has ended."""
        if isinstance(exception, StoppedError):
            self._tell(trainer, f"stopped by {signal.Signals(exception.signal).name}")
        else:
            self._tell(trainer, f"failed: {type(exception).__name__}")

    def _is_due(self) -> bool:
        return bool(self._who) and time.monotonic() - self._told > EVERY_S

    def _rate(self) -> float | None:
        if len(self._stood) < 2 or self._stood[-1][0] == self._stood[0][0]:
            return None
        (since, first), (until, last) = self._stood[0], self._stood[-1]
        return (last - first) / (until - since)

    def _tell(self, trainer: Trainer, doing: str) -> None:
        if not self._who:
            return
        self._told = time.monotonic()
        checkpoints = next((c.path.parent for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)), "")
        progress = Progress(
            run=str(trainer.default_root_dir),
            doing=doing,
            step=trainer.global_step,
            epoch=trainer.current_epoch,
            time=time.time(),
            checkpoints=str(Path(checkpoints).absolute()),
            steps=self._steps,
            steps_per_s=self._rate(),
            loss=self._loss,
            **self._who,
        )
        write_progress(progress)
