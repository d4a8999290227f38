"""Checkpoints inside epochs, and of every N steps: when they are due, bounded, whole, and exact to go on from."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lanes.checkpoint import newest_whole
from lanes.checkpoint.manifest import verify
from lanes.faults.last import LastCheckpoint
from lanes.training.results import fit_results
from tests.integration.test_replicas import Recorder, classifier, make_trainer, mixed, photos
from tests.integration.test_resuming import BATCH, BATCHES, EPOCHS, Answer, finished, same_end
from tests.ranks import Ranks


class Dies(Callback):
    """Ends training, as a kill would, before a step."""

    def __init__(self, before_step: int) -> None:
        self.before_step = before_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.before_step:
            raise RuntimeError("killed")


def note_saves(trainer: Trainer) -> list[tuple[str, int, int | None]]:
    """What will be saved: name, step, and at which step was validated last."""
    saves: list[tuple[str, int, int | None]] = []
    save = trainer.strategy.save_checkpoint

    def noted(checkpoint: dict[str, Any], filepath: str, storage_options: Any = None) -> None:
        validated: Any = trainer.lightning_module.validated_at_step
        saves.append((Path(filepath).name, checkpoint["global_step"], validated))
        save(checkpoint, filepath, storage_options)

    trainer.strategy.save_checkpoint = noted  # type: ignore[method-assign]
    return saves


def train(
    lane_devices: int,
    folder: str,
    every_n_steps: int,
    options: dict[str, Any],
    resume: str | None = None,
    dies_before: int = -1,
) -> Answer:
    """Two epochs of four batches: the best and the last checkpoint, and the three newest of every step."""
    recorder = Recorder()
    best = ModelCheckpoint(folder, "best-{step}", monitor="val/loss")
    newest = ModelCheckpoint(folder, "{step}", monitor="step", mode="max", save_top_k=3, every_n_train_steps=1)
    callbacks = [recorder, Dies(dies_before), best, newest, LastCheckpoint(folder, every_n_steps)]
    options = {"max_epochs": EPOCHS, "default_root_dir": folder, **options}
    trainer = make_trainer(lane_devices, enable_checkpointing=True, callbacks=callbacks, **options)
    module, saves = classifier(partial(mixed)), note_saves(trainer)
    loaders = DataLoader(photos(BATCHES * BATCH), BATCH, shuffle=True), DataLoader(photos(10), 8)
    if dies_before >= 0:
        with pytest.raises(RuntimeError, match="killed"):
            trainer.fit(module, *loaders, ckpt_path=resume)
        return {"saves": saves}
    trainer.fit(module, *loaders, ckpt_path=resume)
    return {"saves": saves, "said": fit_results(trainer), **finished(trainer, module, recorder)}


# Of every save the step, and the step that was validated last: what a validation takes is not lost before it has ended.
CASES: dict[str, tuple[int, dict[str, Any], list[tuple[int, int | None]]]] = {
    "inside epochs and at their ends": (3, {}, [(3, None), (4, None), (4, 4), (6, 4), (8, 4), (8, 8)]),
    "a step that is both": (2, {}, [(2, None), (4, None), (4, 4), (6, 4), (8, 4), (8, 8)]),
    "at the ends alone": (0, {}, [(4, None), (4, 4), (8, 4), (8, 8)]),
    "at validations too": (2, {"val_check_interval": 2}, [(2, None), (4, 2), (4, 4), (6, 4), (8, 6), (8, 8)]),
    "no validation": (3, {"limit_val_batches": 0}, [(3, None), (4, None), (6, None), (8, None)]),
    "accumulating": (1, {"accumulate_grad_batches": 2}, [(1, None), (2, None), (2, 2), (3, 2), (4, 2), (4, 4)]),
}


@pytest.mark.parametrize("case", CASES)
def test_every_step_that_is_due_is_saved(ranks: Ranks, tmp_path: Path, case: str) -> None:
    every, options, expected = CASES[case]
    (answer,) = ranks(train, 1, 1, str(tmp_path), every, options)
    assert [(step, validated) for name, step, validated in answer["saves"] if name == "last.ckpt"] == expected


def test_exactly_the_newest_stay_beside_best_and_last(ranks: Ranks, tmp_path: Path) -> None:
    answer = ranks(train, 2, 2, str(tmp_path), 3, {})[0]
    best = {name for name, *_ in answer["saves"] if name.startswith("best")}
    kept = {path.name for path in tmp_path.iterdir()}
    assert {"step=6.ckpt", "step=7.ckpt", "step=8.ckpt", "last.ckpt"} == kept - best
    assert len(kept & best) == 1
    for path in tmp_path.iterdir():
        verify(path)
    said = answer["said"].splitlines()
    assert f"last checkpoint: {tmp_path}/last.ckpt" in said
    assert f"also kept:       {tmp_path}/step=8.ckpt  (the newest of 3 that are kept)" in said
    assert f"best checkpoint: {tmp_path}/{next(iter(kept & best))}  (loss " in answer["said"]


@pytest.mark.parametrize("lane_devices", [1, 2])
def test_a_training_that_died_inside_an_epoch_goes_on_bit_by_bit(
    ranks: Ranks, tmp_path: Path, lane_devices: int
) -> None:
    undisturbed = ranks(train, lane_devices, lane_devices, str(tmp_path / "undisturbed"), 3, {})
    run = tmp_path / "run"
    ranks(train, lane_devices, lane_devices, str(run), 3, {}, None, 7)
    last = run / "last.ckpt"
    assert json.loads((last / "manifest.json").read_text())["step"] == 6
    resumed = ranks(train, lane_devices, lane_devices, str(run), 3, {}, str(last))
    for ours, theirs in zip(resumed, undisturbed, strict=True):
        assert len(ours["batches"]) == 2
        same_end(ours, theirs)
        assert [step for name, step, _ in ours["saves"] if name == "last.ckpt"] == [8, 8]
    assert newest_whole(run) == (last, []), "of one step the one that was written last"


def test_what_was_gone_on_from_is_replaced_in_its_turn(ranks: Ranks, tmp_path: Path) -> None:
    """Else a run that goes on again and again keeps one more each time."""
    ranks(train, 1, 1, str(tmp_path), 0, {}, None, 4)
    ranks(train, 1, 1, str(tmp_path), 0, {}, str(tmp_path / "step=4.ckpt"))
    assert {path.name for path in tmp_path.glob("step=*")} == {"step=6.ckpt", "step=7.ckpt", "step=8.ckpt"}


def test_a_number_of_steps_is_not_negative(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="last_every_n_steps=-1 must be at least 1, or 0"):
        LastCheckpoint(tmp_path, -1)
