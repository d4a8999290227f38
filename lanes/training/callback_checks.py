"""What callbacks of a configuration ask for that cannot be had, found before processes start."""

from typing import Any

from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lanes.training.callbacks import Health
from lanes.training.first_layer import FirstLayer
from lanes.training.module import Classifier
from lanes.training.results import COUNTERS
from lanes.training.validation_look import ValidationLook
from lanes.words import near

MONITORED = ("val/top1", "val/top5", "val/loss", "train/loss")  # what checkpoints and early stopping may go by


def check_callbacks(
    trainer: Trainer, model: Classifier, data: LightningDataModule, *, lane_devices: int, fits: bool
) -> None:
    """Check each of a trainer's callbacks.

    Args:
        trainer: that has them.
        model: they look at.
        data: they look at.
        lane_devices: of each replica.
        fits: whether the network will be trained.

    Raises:
        ValueError: names the callback, the value and the way out.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, FirstLayer):
            callback.check(model.plain_net())
        if isinstance(callback, ValidationLook) and fits:
            callback.check(model, data, lane_devices=lane_devices, replicas=trainer.world_size // lane_devices)
        if isinstance(callback, EarlyStopping | ModelCheckpoint):
            _check_monitor(callback)
        if isinstance(callback, Health):
            callback.check(trainer)


def _check_monitor(callback: Any) -> None:
    monitor = callback.monitor
    known = (*MONITORED, *COUNTERS) if isinstance(callback, ModelCheckpoint) else MONITORED
    if monitor not in (None, *known):
        raise ValueError(
            f"{type(callback).__name__}: there is no {monitor!r} to monitor{near(str(monitor), known)} "
            f"(there are {', '.join(known)})"
        )
