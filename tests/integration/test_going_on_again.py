"""A training that goes on from any checkpoint, and again from what it writes then: hook by hook the undisturbed one.

Lightning leaves out a validation that was due where the checkpoint was written, and counts an epoch less after it.
"""

import shutil
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from lanes.faults.last import LastCheckpoint
from tests.integration.test_replicas import classifier, make_trainer, mixed, photos
from tests.ranks import Ranks

CASES: dict[str, dict[str, Any]] = {
    "validating at epochs' ends": {},
    "inside epochs, too": {"val_check_interval": 2},
    "every second epoch": {"check_val_every_n_epoch": 2},
    "never": {"limit_val_batches": 0},
    "accumulating": {"accumulate_grad_batches": 2},
}


class Hooks(Callback):
    """What happened, with its numbers."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.said.append(f"epoch {trainer.current_epoch} begins")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.said.append(f"epoch {trainer.current_epoch} ends")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = trainer.fit_loop.epoch_loop.val_loop.batch_progress.current.completed
        loss = trainer.callback_metrics["val/loss"].item()
        self.said.append(f"after {trainer.global_step} steps validation of {batches} batches: {loss!r}")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        self.said.append(f"batch {args[1]}, {trainer.global_step} steps: {outputs['loss'].item()!r}")


class Kept(LastCheckpoint):
    """Every one, under a name of its own."""

    def save(self, trainer: Trainer) -> None:
        super().save(trainer)
        trainer.strategy.written()  # type: ignore[attr-defined]
        number = len(list(self.path.parent.iterdir()))
        shutil.copytree(self.path, self.path.parent / f"{number:02}.ckpt")


def train(folder: str, resume: str | None, options: dict[str, Any]) -> list[str]:
    """Three epochs of four batches; checkpoints every second step."""
    hooks = Hooks()
    trainer = make_trainer(1, max_epochs=3, enable_checkpointing=True, callbacks=[hooks, Kept(folder, 2)], **options)
    loaders = DataLoader(photos(32), 8, shuffle=True), DataLoader(photos(10), 8)
    trainer.fit(classifier(partial(mixed)), *loaders, ckpt_path=resume)
    return hooks.said


@pytest.mark.parametrize("case", CASES)
def test_hook_by_hook(ranks: Ranks, tmp_path: Path, case: str) -> None:
    (undisturbed,) = ranks(train, 1, str(tmp_path / "undisturbed"), None, CASES[case])

    def goes_on(checkpoint: Path, folder: Path) -> list[Path]:
        (said,) = ranks(train, 1, str(folder), str(checkpoint), CASES[case])
        assert said == undisturbed[len(undisturbed) - len(said) :], f"from {checkpoint}"
        return sorted(folder.glob("[0-9]*.ckpt"))

    checkpoints = sorted((tmp_path / "undisturbed").glob("[0-9]*.ckpt"))
    assert len(checkpoints) >= 3
    for checkpoint in checkpoints[1:-1:2]:  # of an epoch's end that was validated, and that was not
        written = goes_on(checkpoint, tmp_path / checkpoint.stem)
        for again in written[:2]:
            goes_on(again, tmp_path / f"{checkpoint.stem} {again.stem}")


def warned(folder: str, options: dict[str, Any]) -> list[str]:
    """What is said before training of batches that are lost."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        train(folder, None, options)
    return [str(warning.message) for warning in found if "makes a step of fewer" in str(warning.message)]


def test_a_validation_between_the_batches_of_a_step(ranks: Ranks, tmp_path: Path) -> None:
    between = {"accumulate_grad_batches": 2, "val_check_interval": 3}
    (said,) = ranks(warned, 1, str(tmp_path / "between"), between)
    assert len(said) == 1
    assert "after every 3 batches comes between the 2 that make a step" in said[0]
    (said,) = ranks(warned, 1, str(tmp_path / "end"), {"accumulate_grad_batches": 3})  # the last batch makes a step
    assert not said
