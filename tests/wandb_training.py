"""A small training that logs to Weights & Biases, as a script: ``wandb_training.py RUN_ID MODE DISTURBANCE TIMEOUT_S``.

It trains twice from one seed, without logging and with it, and prints both as one line of JSON after the word DONE. At
half time of the second training it is disturbed: "kill" kills wandb's own process; "fault" prints HALF and waits for a
line on stdin; "none" does nothing.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lanes.training import LanesLogger, wandb_logger

NUM_STEPS = 40
PICTURE = "filters/lane0/conv1"
STEP_S = 0.05  # beyond the microseconds that the network takes: the uploads shall go on beside the training


class Network(LightningModule):
    """Draws from every generator that logging could disturb."""

    def __init__(self) -> None:
        super().__init__()
        head = [nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(8 * 6 * 6, 4)]
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3), *head)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        drawn = torch.randn(()) + np.random.rand() + random.random()
        loss = nn.functional.cross_entropy(self.net(images + drawn), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Watch(Callback):
    """Logs a picture every step and takes the time of each step, logging included."""

    def __init__(self, disturb: Callable[[], None] | None, pause_s: float) -> None:
        self.disturb, self.pause_s = disturb, pause_s
        self.losses: list[str] = []
        self.steps_s: list[float] = []
        self.start: float | None = None
        self.end = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._end_step()
        if batch_idx == NUM_STEPS // 2 and self.disturb:
            self.disturb()
        time.sleep(self.pause_s)
        self.start = used_s()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].item().hex())
        logger: Any = trainer.logger
        logger.log_picture(PICTURE, picture(batch_idx), batch_idx, f"step {batch_idx}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_step()
        self.end = time.monotonic()

    def _end_step(self) -> None:  # Lightning logs the scalars after on_train_batch_end
        if self.start is not None:
            self.steps_s.append(used_s() - self.start)
        self.start = None


def picture(step: int) -> Image.Image:
    """A picture that says which step it is of."""
    return Image.new("RGB", (20, 10), (step, 1, 2))


def used_s() -> float:
    """A clock that stands still while this thread could run and gets no core: others' load is not wandb's doing."""
    waited = Path("/proc/thread-self/schedstat")
    return time.monotonic() - (int(waited.read_text().split()[1]) / 1e9 if waited.exists() else 0.0)


def train(logger: LanesLogger, disturb: Callable[[], None] | None, pause_s: float) -> dict[str, Any]:
    """Train one epoch; all that could differ between two trainings, and the times."""
    seed_everything(7)
    watch = Watch(disturb, pause_s)
    data = TensorDataset(torch.randn(2 * NUM_STEPS, 3, 8, 8), torch.randint(4, (2 * NUM_STEPS,)))
    trainer = Trainer(
        **{"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 1, "logger": logger, "callbacks": [watch]},
        **{"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False},
    )
    trainer.fit(Network(), DataLoader(data, batch_size=2, shuffle=True))
    drawn = [torch.rand(()).item(), np.random.rand(), random.random()]
    return {"losses": watch.losses, "drawn": drawn, "steps_s": watch.steps_s, "end": watch.end}


def kill_wandb(mode: str) -> None:
    """Kill wandb's process when it has written the half; or at once, when it has written nothing."""
    if mode != "offline":
        time.sleep(1.5)
    tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
    pids = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    (core,) = [pid for pid in pids if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(core, signal.SIGKILL)


def ask_for_the_fault() -> None:
    print("HALF", flush=True)
    sys.stdin.readline()


def main(run_id: str, mode: str, disturbance: str, timeout_s: str) -> None:
    wandb_logger.INIT_TIMEOUT_S = wandb_logger.FINISH_TIMEOUT_S = int(timeout_s)
    disturb = {"kill": lambda: kill_wandb(mode), "fault": ask_for_the_fault, "none": None}[disturbance]
    plain = train(LanesLogger(save_dir="runs", mode="disabled"), None, 0)
    logger = LanesLogger(save_dir="runs", mode=mode, run_id=run_id)
    logged = train(logger, disturb, STEP_S)
    folders = [str(folder) for folder in logger.run_folders]
    print("DONE", json.dumps({"plain": plain, "logged": logged, "folders": folders}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
