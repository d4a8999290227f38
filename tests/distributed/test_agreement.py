"""Signals: all processes end at the same step, with a checkpoint; in a validation with the one of before it."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from lanes.checkpoint.manifest import verify
from lanes.faults.agreement import SIGNALS, Agreement, StoppedError
from lanes.faults.last import LastCheckpoint
from tests.integration.test_going_on_again import Hooks
from tests.integration.test_replicas import classifier, make_trainer, mixed, photos
from tests.ranks import Ranks

Come = tuple[int, int, str, int]  # signal, rank, hook, step: where it comes


class Signals(Callback):
    """Lets a signal come to one rank, in one hook."""

    def __init__(self, come: Come | None) -> None:
        self.come = come

    def _at(self, trainer: Trainer, hook: str) -> None:
        if self.come and self.come[1:] == (trainer.global_rank, hook, trainer.global_step):
            os.kill(os.getpid(), self.come[0])

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        self._at(trainer, "step")

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._at(trainer, "validation")


def train(folder: str, come: Come | None, resume: str | None, lane_devices: int) -> dict[str, Any]:
    """Two epochs of four batches; two or three batches of validation, for replicas have different numbers of them."""
    hooks, last = Hooks(), LastCheckpoint(folder, 0)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    callbacks = [hooks, Signals(come), Agreement(last), last]
    trainer = make_trainer(lane_devices, max_epochs=2, enable_checkpointing=True, callbacks=callbacks)
    replicas = trainer.world_size // lane_devices
    loaders = DataLoader(photos(32 * replicas), 8, shuffle=True), DataLoader(photos(16 * replicas + 1), 8)
    end = None
    try:
        trainer.fit(classifier(partial(mixed)), *loaders, ckpt_path=resume)
    except StoppedError as stopped:
        end = stopped.signal, str(stopped)
    assert {number: signal.getsignal(number) for number in SIGNALS} == before, "signals are given back"
    return {"end": end, "said": hooks.said, "step": trainer.global_step}


@pytest.mark.parametrize(
    ("mesh", "come", "step"),
    [
        ((2, 2), (signal.SIGTERM, 1, "step", 1), 3),
        ((2, 2), (signal.SIGUSR1, 0, "validation", 4), 4),
        ((2, 1), (signal.SIGINT, 1, "step", 5), 7),
        ((2, 1), (signal.SIGTERM, 1, "validation", 4), 4),
    ],
)
def test_a_signal(ranks: Ranks, tmp_path: Path, mesh: tuple[int, int], come: Come, step: int) -> None:
    """In a step it is told at the beginning of the next."""
    world, lane_devices = mesh
    undisturbed = ranks(train, world, str(tmp_path / "undisturbed"), None, None, lane_devices)
    folder = tmp_path / "run"
    for answer in ranks(train, world, str(folder), come, None, lane_devices):
        number, said = answer["end"]
        assert number == come[0]
        assert said == f"{come[0].name} has ended training; it can go on from {folder}/last.ckpt"
        assert answer["step"] == step
    assert verify(folder / "last.ckpt")["step"] == step
    answers = ranks(train, world, str(folder), None, str(folder / "last.ckpt"), lane_devices)
    for answer, theirs in zip(answers, undisturbed, strict=True):
        assert answer["end"] is None
        assert answer["said"] == theirs["said"][-len(answer["said"]) :]
        assert ("validation" in answer["said"][0]) == (come[2] == "validation"), "which is not left out"
