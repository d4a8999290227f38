"""A callback that gives tests time."""

import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

HURRY = "hurry"  # a file that ends it


class Slow(Callback):
    """Every step takes a while, until somebody says so."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if not Path(HURRY).exists():
            time.sleep(0.6)
