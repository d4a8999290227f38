"""How fast a run is and what it waits for: images/s, step time, data wait, memory, bytes between lanes."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import psutil
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

MIB = 2**20

# Lightning brackets these with profiler.start and .stop, whatever the profiler: the loop's call of the loader's
# ``next``, and the data module's work on the device behind it.
FETCH, AUGMENT = "train_dataloader_next", "on_after_batch_transfer"


class _Stopwatch:
    """Adds up how long a profiler's actions take, by the last word of their names."""

    def __init__(self, profiler: Any) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._started: dict[str, float] = {}
        self._profiler = profiler
        self._around(profiler, "start", self._start)
        self._around(profiler, "stop", self._stop)

    def remove(self) -> None:
        """Leave the profiler as it was."""
        del self._profiler.start, self._profiler.stop

    @staticmethod
    def _around(profiler: Any, name: str, listen: Callable[[str], None]) -> None:
        its_own = getattr(profiler, name)

        def heard(action: str) -> None:
            listen(action.rsplit(".", 1)[-1])
            its_own(action)

        setattr(profiler, name, heard)  # of this object, not of its class

    def _start(self, action: str) -> None:
        if action in (FETCH, AUGMENT):
            self._started[action] = time.perf_counter()

    def _stop(self, action: str) -> None:
        if action in self._started:
            self.seconds[action] += time.perf_counter() - self._started.pop(action)


class Rates(Callback):
    """Images per second over all replicas, step time, data wait, memory, learning rate, bytes sent between lanes.

    The first step of an epoch is warm-up (loader processes start, kernels are chosen) and counts for none of them.
    The data wait is how long the loop waits for the loader's next batch; copying to the device and augmentation are not
    in it. Memory is of this process: the most that was allocated on a GPU; on a CPU all that is resident.
    """

    def __init__(self) -> None:
        self._watch: _Stopwatch | None = None
        self._since: float | None = None
        self._steps = self._images = 0
        self._logged_step = 0
        self._windows: list[tuple[float, float]] = []  # images/s, share of data wait
        self._peak_MiB = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen to the loop."""
        if stage == "fit":
            self._watch = _Stopwatch(trainer.profiler)  # type: ignore[attr-defined]
            self._since, self._windows, self._logged_step = None, [], trainer.global_step

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen no longer."""
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation and pictures between epochs are not part of a step."""
        self._since = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count; log at the trainer's rate."""
        if self._since is None:
            self._begin(trainer)
            return
        module: Any = pl_module
        replicas = module.device_mesh.shape[0]
        self._images += _count(batch) * replicas
        every = getattr(trainer, "log_every_n_steps", 50)
        if not every or trainer.global_step % every or trainer.global_step == self._logged_step:
            return
        self._logged_step = trainer.global_step
        values = self._end(trainer, pl_module)
        values |= {
            "crossing/sent_MiB": module.placed_by.sent_bytes * values.pop("images") / replicas / MIB,
            "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
        }
        pl_module.log("images_per_s", values.pop("images_per_s"), prog_bar=True)
        pl_module.log_dict(values)
        self._begin(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation within an epoch is not part of a step; what came before it counts."""
        if self._since is not None and trainer.global_step > self._steps:
            self._end(trainer, pl_module)
        self._since = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same where there is no validation."""
        self.on_validation_start(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how it went."""
        if self._windows:
            images, waits = zip(*self._windows, strict=True)
            rank_zero_info(
                f"rates: median {statistics.median(images):.4g} images/s, data wait "
                f"{statistics.median(waits):.1%} of a step, peak memory {self._peak_MiB:,.0f} MiB per process"
            )

    def _begin(self, trainer: Trainer) -> None:
        assert self._watch is not None
        self._since, self._steps, self._images = time.perf_counter(), trainer.global_step, 0
        self._watch.seconds.clear()

    def _end(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """The rates since ``_begin``; "images" are those of one step over all replicas."""
        assert self._watch is not None
        assert self._since is not None
        seconds, steps = time.perf_counter() - self._since, trainer.global_step - self._steps
        waited = self._watch.seconds[FETCH]
        memory = _memory_MiB(pl_module.device)
        self._peak_MiB = max(self._peak_MiB, memory)
        self._windows.append((self._images / seconds, waited / seconds))
        values = {
            "images": self._images / steps,
            "images_per_s": self._images / seconds,
            "step_time_s": seconds / steps,
            "data_wait_s": waited / steps,
            "data_wait_share": waited / seconds,
            "memory_MiB": memory,
        }
        if pl_module.device.type == "cpu":  # elsewhere it is only started in that time
            values["augmentation_s"] = self._watch.seconds[AUGMENT] / steps
        return values


def _count(batch: Any) -> int:
    """Images in a batch."""
    first = batch[0] if isinstance(batch, list | tuple) else batch
    return len(first) if isinstance(first, Tensor) else 0


def _memory_MiB(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    return float(psutil.Process().memory_info().rss) / MIB
