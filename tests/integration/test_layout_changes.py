"""One training of 4 lanes on 1x1, 1x2, 1x4, 2x2 and 2x1 devices (replicas x lane devices), one after another.

At every change the network, its statistics and the optimizer hold bit for bit what the layout before wrote. While there
is one replica the loss curve is that of a training that stayed on one device, but for the order of floating-point
sums: it is worth an ulp, 2e-16 in float64 and 1e-7 in float32, and training amplifies it. In float64 1e-11 allows for a
factor of ten thousand. In float32 the bound stands above what one ulp of every pixel does to a training on one device,
and far below what not learning at all does.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lanes.training import Classifier
from tests.integration.test_replicas import Recorder, make_trainer, mixed, photos
from tests.integration.test_resuming import same_tensors
from tests.parity import whole
from tests.ranks import Ranks

BATCH, BATCHES, EPOCHS = 6, 8, 3  # images of a replica's batch; batches of an epoch on one replica
# Processes, lane devices, and the step before which the layout changes: inside the first, second and third epoch.
LAYOUTS = {"1x1": (1, 1, 4), "1x2": (2, 2, 12), "1x4": (4, 4, 18), "2x2": (4, 2, 20), "2x1": (2, 1, 21)}
ALONE = 18  # steps on one replica
RATES = {"SGD": 0.01, "AdamW": 0.001}
BOUNDS = {torch.float64: 1e-11, torch.float32: 1e-4}
Answer = dict[str, Any]


class Holds(Callback):
    """What the network and the optimizer hold when training begins, whole."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        net: Any = pl_module.net
        self.tensors = {name: whole(tensor) for name, tensor in net.state_dict().items()}
        state = trainer.optimizers[0].state
        self.momenta = {
            f"{name}.{key}": whole(value)
            for name, parameter in net.named_parameters()
            for key, value in state[parameter].items()
            if isinstance(value, Tensor)
        }


def optimizer_of(kind: str, rate: float) -> Callable[[Any], torch.optim.Optimizer]:
    if kind == "SGD":
        return partial(torch.optim.SGD, lr=rate, momentum=0.9, weight_decay=5e-4)
    return partial(torch.optim.AdamW, lr=rate)


def train(
    lane_devices: int,
    kind: str,
    dtype: torch.dtype,
    options: dict[str, Any],
    folder: str | None = None,
    resume: str | None = None,
    *changes: float,
) -> Answer:
    """Train up to some step; ``changes``: factors of the pixels and of the rate."""
    nudge, rate = changes or (1.0, 1.0)
    recorder, holds = Recorder(), Holds()
    callbacks: list[Callback] = [recorder, holds]
    if folder:
        callbacks.append(ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1))
    torch.set_default_dtype(dtype)  # the example from which the plan is read, and the network
    try:
        images, labels = photos(BATCHES * BATCH).tensors
        data = TensorDataset(images.to(dtype) * nudge, labels)
        module = Classifier(mixed, image_shape=(3, 16, 16), optimizer=optimizer_of(kind, RATES[kind] * rate))
        trainer = make_trainer(
            lane_devices, max_epochs=EPOCHS, enable_checkpointing=folder is not None, callbacks=callbacks, **options
        )
        trainer.fit(module, DataLoader(data, BATCH, shuffle=True), ckpt_path=resume)
    finally:
        torch.set_default_dtype(torch.float32)
    held = {"tensors": holds.tensors, "momenta": holds.momenta}
    return {"batches": recorder.batches, "losses": recorder.losses, "steps": trainer.global_step, **held}


@pytest.fixture(scope="module", params=[(k, d) for k in RATES for d in BOUNDS], ids=lambda p: f"{p[0]}-{p[1]}")
def recipe(request: pytest.FixtureRequest) -> tuple[str, torch.dtype]:
    return request.param


@pytest.fixture(scope="module")
def undisturbed(ranks: Ranks, recipe: tuple[str, torch.dtype]) -> Answer:
    answer: Answer = ranks(train, 1, 1, *recipe, {})[0]
    return answer


def deviation(curve: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(curve[:ALONE], other[:ALONE], strict=True))


def test_the_bound_lies_between_rounding_and_learning(
    ranks: Ranks, measured: Callable[[str], None], recipe: tuple[str, torch.dtype], undisturbed: Answer
) -> None:
    kind, dtype = recipe
    ulp = 1 + torch.finfo(dtype).eps
    rounding = deviation(ranks(train, 1, 1, *recipe, {}, None, None, ulp, 1.0)[0]["losses"], undisturbed["losses"])
    learning = deviation(ranks(train, 1, 1, *recipe, {}, None, None, 1.0, 0.0)[0]["losses"], undisturbed["losses"])
    measured(f"{ALONE} steps, {kind}, {dtype}   one ulp deviates by {rounding:.1e}, no learning by {learning:.1e}")
    assert 0 < rounding <= BOUNDS[dtype]
    assert learning >= 10 * BOUNDS[dtype]


def test_one_training_on_five_layouts(
    ranks: Ranks, measured: Callable[[str], None], tmp_path: Path, recipe: tuple[str, torch.dtype], undisturbed: Answer
) -> None:
    resume, began, curve = None, 0, []
    batches = iter(undisturbed["batches"])
    for layout, (world, lane_devices, until) in LAYOUTS.items():
        folder = tmp_path / layout
        answers = ranks(train, world, lane_devices, *recipe, {"max_steps": until}, str(folder), resume)
        replicas = [answers[rank] for rank in range(0, world, lane_devices)]
        for answer in answers:
            assert answer["steps"] == until
            assert len(answer["losses"]) == until - began
            if resume:
                same_tensors(answer["tensors"], load_file(f"{resume}/model.safetensors"))
                same_tensors(answer["momenta"], load_file(f"{resume}/optimizer.safetensors"))
        for read in zip(*(replica["batches"] for replica in replicas), strict=True):
            expected = [next(batches) for _ in replicas]  # as many of one replica alone, and in their order
            for ours, theirs in zip(zip(*read, strict=True), zip(*expected, strict=True), strict=True):
                assert torch.equal(torch.stack(ours, 1).flatten(0, 1), torch.cat(theirs)), layout
        if len(replicas) == 1:
            curve += answers[0]["losses"]
        resume, began = str(folder / f"step={until}.ckpt"), until
    assert next(batches, None) is None, "every image of every epoch was read"
    found = deviation(curve, undisturbed["losses"])
    kind, dtype = recipe
    measured(
        f"{ALONE} steps, {kind}, {dtype}, on 1x1, 1x2, 1x4 against 1x1   {found:.1e}   (bound {BOUNDS[dtype]:.0e})"
    )
    assert found <= BOUNDS[dtype]
    assert torch.tensor(curve).isfinite().all()
