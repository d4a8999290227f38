"""A training that goes on from any checkpoint, also inside an epoch, ends with the weights of one never stopped."""

import multiprocessing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from lanes.training import Classifier, Photographs, WarmupCosine
from tests.integration.test_replicas import Recorder, classifier, make_trainer, mixed, photos
from tests.parity import whole
from tests.ranks import Ranks

MESHES = {"1x1": (1, 1), "1x2": (2, 2), "2x1": (2, 1)}
EPOCHS, BATCHES, BATCH = 2, 4, 8
Answer = dict[str, Any]


def train(
    lane_devices: int, replicas: int, folder: str, resume: str | None = None, options: dict[str, Any] | None = None
) -> Answer:
    """Two epochs of four batches, dropout on; a checkpoint at every step, and validation inside the epochs."""
    recorder = Recorder()
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = make_trainer(
        lane_devices, max_epochs=EPOCHS, enable_checkpointing=True, callbacks=[recorder, keep], **(options or {})
    )
    module = classifier(partial(mixed))
    images, others = photos(BATCHES * BATCH * replicas), photos(10)
    trainer.fit(module, DataLoader(images, BATCH, shuffle=True), DataLoader(others, 8), ckpt_path=resume)
    return finished(trainer, module, recorder)


def finished(trainer: Any, module: Classifier, recorder: Recorder) -> Answer:
    tensors = {name: whole(t) for name, t in module.net.state_dict().items()}
    state = trainer.optimizers[0].state
    momenta = {
        f"{name}.{key}": whole(value)
        for name, p in module.net.named_parameters()
        for key, value in state[p].items()
        if isinstance(value, Tensor)
    }
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    return {"batches": recorder.batches, "tensors": tensors, "momenta": momenta, "metrics": metrics}


def same_tensors(ours: Any, theirs: Any) -> None:
    names = ours if isinstance(ours, dict) else range(len(ours))
    assert len(ours) == len(theirs)
    for name in names:
        assert torch.equal(ours[name], theirs[name]), name


def same_end(resumed: Answer, undisturbed: Answer) -> None:
    """Bit by bit; and no batch read twice or left out."""
    for ours, theirs in zip(resumed["batches"], undisturbed["batches"][-len(resumed["batches"]) :], strict=True):
        same_tensors(ours, theirs)
    same_tensors(resumed["tensors"], undisturbed["tensors"])
    same_tensors(resumed["momenta"], undisturbed["momenta"])
    assert resumed["metrics"] == undisturbed["metrics"]


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("how", ["validating twice an epoch", "accumulating"])
def test_from_every_step(ranks: Ranks, tmp_path: Path, mesh: str, how: str) -> None:
    world, lane_devices = MESHES[mesh]
    options = {"val_check_interval": 2} if how.startswith("validating") else {"accumulate_grad_batches": 2}
    batches_of_a_step = options.get("accumulate_grad_batches", 1)
    replicas = world // lane_devices
    undisturbed = ranks(train, world, lane_devices, replicas, str(tmp_path), None, options)
    steps = EPOCHS * BATCHES // batches_of_a_step
    assert len(undisturbed[0]["batches"]) == EPOCHS * BATCHES
    for step in range(1, steps):
        path, elsewhere = tmp_path / f"step={step}.ckpt", tmp_path / f"from {step}"
        resumed = ranks(train, world, lane_devices, replicas, str(elsewhere), str(path), options)
        for ours, theirs in zip(resumed, undisturbed, strict=True):
            assert len(ours["batches"]) == EPOCHS * BATCHES - step * batches_of_a_step, f"from step {step}"
            same_end(ours, theirs)


def test_another_lane_layout_reads_the_same(ranks: Ranks, tmp_path: Path) -> None:
    undisturbed = ranks(train, 1, 1, 1, str(tmp_path))[0]
    for answer in ranks(train, 2, 2, 1, str(tmp_path / "on two"), str(tmp_path / "step=3.ckpt")):
        assert len(answer["batches"]) == EPOCHS * BATCHES - 3
        for ours, theirs in zip(answer["batches"], undisturbed["batches"][3:], strict=True):
            same_tensors(ours, theirs)
        for name, tensor in answer["tensors"].items():
            torch.testing.assert_close(tensor, undisturbed["tensors"][name], rtol=1e-3, atol=2e-4, msg=name)


def test_other_replicas_go_on_where_the_images_are(ranks: Ranks, tmp_path: Path) -> None:
    """After 2 of 4 batches of two replicas each come 4 of 8 batches of one; each image is read once in the epoch."""
    options = {"max_steps": 2}
    first = ranks(train, 2, 1, 2, str(tmp_path), None, options)
    second = ranks(train, 1, 1, 2, str(tmp_path / "on one"), str(tmp_path / "step=2.ckpt"), {})[0]
    read = [label for answer in first for _, labels in answer["batches"] for label in labels.tolist()]
    rest = list(second["batches"][: BATCHES * 2 - 4])
    images = torch.cat([images for answer in first for images, _ in answer["batches"]] + [images for images, _ in rest])
    assert len(read) == 2 * 2 * BATCH
    assert len(images) == len(torch.unique(images.flatten(1), dim=0)) == BATCHES * BATCH * 2


def train_photographs(data: type[Photographs], workers: int, folder: str, resume: str | None = None) -> Answer:
    """Augmentation, schedule, clipping and workers, on real images."""
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # may have workers
    recorder = Recorder()
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = make_trainer(
        1, max_epochs=2, enable_checkpointing=True, callbacks=[recorder, keep], gradient_clip_val=0.5
    )
    optimizer = partial(torch.optim.AdamW, lr=1e-3)
    module = Classifier(_small, image_shape=(3, 64, 64), optimizer=optimizer, schedule=WarmupCosine())
    images = data(8, num_train=32, num_val=10, num_workers=workers)
    trainer.fit(module, datamodule=images, ckpt_path=resume)
    return finished(trainer, module, recorder)


def _small() -> torch.nn.Module:
    from lanes.models import SmallAlexNet  # noqa: PLC0415

    return SmallAlexNet(10, 2)


@pytest.mark.parametrize("workers", [0, 1])
def test_photographs(ranks: Ranks, tmp_path: Path, workers: int) -> None:
    undisturbed = ranks(train_photographs, 1, Photographs, workers, str(tmp_path))[0]
    for step in (3, 4, 6):
        path = tmp_path / f"step={step}.ckpt"
        resumed = ranks(train_photographs, 1, Photographs, workers, str(tmp_path / str(step)), str(path))[0]
        assert len(resumed["batches"]) == 8 - step
        same_end(resumed, undisturbed)
