"""The average of the weights: by hand, on every layout, in and out of evaluations and checkpoints."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from lanes.checkpoint import extra_sets
from lanes.layers import local
from lanes.training import Classifier, WeightAverage
from tests.integration.test_replicas import BOUND, make_trainer, mixed, photos
from tests.parity import relative_error, whole
from tests.ranks import Ranks

MESHES = {"1x1": (1, 1), "1x2": (2, 2), "2x1": (2, 1)}  # data x lane: ranks, lane devices
Tensors = dict[str, Tensor]


class Watch(Callback):
    """The weights that this process holds, before training and after each step, and in each validation."""

    def __init__(self) -> None:
        self.steps: list[Tensors] = []
        self.validated: list[Tensors] = []
        self.resumed: Tensors = {}

    @staticmethod
    def own(pl_module: LightningModule) -> Tensors:
        return {name: local(t).clone() for name, t in pl_module.net.state_dict().items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps.append(self.own(pl_module))
        averages = [callback for callback in trainer.callbacks if isinstance(callback, WeightAverage)]
        if averages:
            self.resumed = {name: whole(t) for name, t in averages[0].checkpoint_tensors(pl_module).items()}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps.append(self.own(pl_module))

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0:
            self.validated.append({name: whole(t) for name, t in pl_module.net.state_dict().items()})


def classifier() -> Classifier:
    optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4)
    return Classifier(mixed, image_shape=(3, 16, 16), optimizer=optimizer)


def loaders() -> tuple[DataLoader, DataLoader]:
    return DataLoader(photos(32), 8), DataLoader(photos(24), 8)


def fit(
    lane_devices: int, average: dict[str, Any] | None, path: str, resume: str | None = None, **options: Any
) -> dict[str, Any]:
    """Train two epochs, validated each, and save."""
    watch = Watch()
    callbacks = [watch, *([WeightAverage(**average)] if average is not None else [])]
    trainer = make_trainer(lane_devices, callbacks=callbacks, **{"max_epochs": 2, **options})
    module = classifier()
    trainer.fit(module, *loaders(), ckpt_path=resume)
    trainer.save_checkpoint(path)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {"steps": watch.steps, "validated": watch.validated, "resumed": watch.resumed, "metrics": metrics}


def averaged(steps: list[Tensors], decays: list[float]) -> Tensors:
    """The definition."""
    average = {name: t.double() for name, t in steps[0].items() if t.is_floating_point()}
    for after, decay in zip(steps[1:], decays, strict=True):
        average = {name: decay * t + (1 - decay) * after[name].double() for name, t in average.items()}
    return average


def joined(answers: list[dict[str, Any]], lane_devices: int, decays: list[float]) -> Tensors:
    """The definition on the processes' parts, put together: replicas averaged, lane devices side by side."""
    plain = mixed().state_dict()
    parts = [averaged(answer["steps"], decays) for answer in answers]
    together = {}
    for name, mean in parts[0].items():
        if lane_devices == 1:
            together[name] = torch.stack([part[name] for part in parts]).mean(0)
            continue
        split = next((d for d, size in enumerate(mean.shape) if size != plain[name].shape[d]), None)
        together[name] = mean if split is None else torch.cat([part[name] for part in parts], split)
    return together


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("mesh", ["1x2", "2x1"])
def test_the_average_is_the_definitions(ranks: Ranks, tmp_path: Path, mesh: str, warmup: bool) -> None:
    world, lane_devices = MESHES[mesh]
    path = tmp_path / "last.ckpt"
    answers = ranks(fit, world, lane_devices, {"decay": 0.8, "warmup": warmup}, str(path))
    steps = 8 if world == lane_devices else 4
    assert len(answers[0]["steps"]) == steps + 1
    decays = [min(0.8, (2 + t) / (11 + t)) if warmup else 0.8 for t in range(steps)]
    expected = joined(answers, lane_devices, decays)
    saved = load_file(path / "average.safetensors")
    floats = {name: t.double() for name, t in saved.items() if t.is_floating_point()}
    assert relative_error(floats, expected) <= 1e-6, "rounding of one float32 lerp per step"
    raw = load_file(path / "model.safetensors")
    assert saved.keys() == raw.keys()
    assert relative_error(floats, {n: raw[n].double() for n in floats}) > 1e-2, "far from the weights themselves"
    assert extra_sets(path) == ["average"]
    net = mixed()
    net.load_state_dict(saved)  # plain names, plain shapes
    images, labels = photos(24).tensors
    with torch.no_grad():
        logits = net.eval()(images)
    assert answers[0]["metrics"]["val/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert answers[0]["metrics"]["val/top1"] == pytest.approx(
        (logits.argmax(1) == labels).float().mean().item(), abs=1e-6
    )
    for name, tensor in answers[0]["validated"][-1].items():
        assert torch.equal(tensor, saved[name]), f"{name} was not the average's in the last validation"


@pytest.mark.parametrize("mesh", ["1x2", "2x1"])
def test_training_does_not_notice(ranks: Ranks, tmp_path: Path, mesh: str) -> None:
    """Weights and statistics after every step, validations in between, bit by bit."""
    world, lane_devices = MESHES[mesh]
    with_average = ranks(fit, world, lane_devices, {"decay": 0.5}, str(tmp_path / "one"))
    without = ranks(fit, world, lane_devices, None, str(tmp_path / "two"))
    for ours, theirs in zip(with_average, without, strict=True):
        for step, (a, b) in enumerate(zip(ours["steps"], theirs["steps"], strict=True)):
            assert all(torch.equal(a[name], b[name]) for name in b), f"step {step}"
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert extra_sets(tmp_path / "two") == []


def test_resuming_on_any_layout(ranks: Ranks, tmp_path: Path) -> None:
    """The average comes back exactly, and goes on as if undisturbed."""
    half, end = str(tmp_path / "half.ckpt"), tmp_path / "end.ckpt"
    average = {"decay": 0.9}  # with warm-up: the count of updates must come back, too
    ranks(partial(fit, max_epochs=1), 2, 2, average, half)
    ranks(fit, 2, 2, average, str(tmp_path / "undisturbed.ckpt"))
    saved = load_file(tmp_path / "half.ckpt" / "average.safetensors")
    for world, lane_devices in MESHES.values():
        for answer in ranks(fit, world, lane_devices, average, str(end), half):
            assert answer["resumed"].keys() == saved.keys()
            assert all(torch.equal(answer["resumed"][name], tensor) for name, tensor in saved.items())
        if world == lane_devices:  # two replicas make other steps
            ours, theirs = (load_file(path / "average.safetensors") for path in (end, tmp_path / "undisturbed.ckpt"))
            assert relative_error(ours, theirs) <= BOUND


def evaluate(lane_devices: int, verb: str, path: str, *, average: bool) -> Any:
    trainer = make_trainer(lane_devices, callbacks=[WeightAverage()] if average else [])
    if verb == "predict":
        return trainer.predict(classifier(), loaders()[1], ckpt_path=path)[0]["probabilities"]
    return trainer.validate(classifier(), loaders()[1], ckpt_path=path, verbose=False)[0]["val/loss"]


def test_evaluating_a_checkpoint(ranks: Ranks, tmp_path: Path) -> None:
    """With the callback the average, without it the weights."""
    path = tmp_path / "last.ckpt"
    ranks(fit, 2, 2, {"decay": 0.8}, str(path))
    images, labels = photos(24).tensors
    for average, file in ((True, "average.safetensors"), (False, "model.safetensors")):
        net = mixed()
        net.load_state_dict(load_file(path / file))
        with torch.no_grad():
            logits = net.eval()(images)
        for world, lane_devices in ((1, 1), (2, 2)):
            loss = ranks(partial(evaluate, average=average), world, lane_devices, "validate", str(path))[0]
            assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        shown = ranks(partial(evaluate, average=average), 1, 1, "predict", str(path))[0]
        assert torch.allclose(shown, logits[:8].softmax(-1).topk(5).values, atol=1e-5)


def test_a_checkpoint_without_an_average(ranks: Ranks, tmp_path: Path) -> None:
    path = tmp_path / "without.ckpt"
    ranks(partial(fit, max_epochs=1), 2, 2, None, str(path))
    weights = load_file(path / "model.safetensors")
    answer = ranks(fit, 2, 2, {}, str(tmp_path / "next.ckpt"), str(path))[0]
    assert all(torch.equal(answer["resumed"][name], tensor) for name, tensor in weights.items())
    ours, theirs = (
        ranks(partial(evaluate, average=average), 1, 1, "validate", str(path))[0] for average in (True, False)
    )
    assert ours == theirs


class FailIn(Callback):
    """Saves in the middle of a validation, which is refused."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.path)


def fail_in_validation(path: str) -> tuple[str, Tensors, Tensors]:
    watch = Watch()
    trainer, module = make_trainer(1, callbacks=[WeightAverage(0.5), watch, FailIn(path)]), classifier()
    with pytest.raises(RuntimeError) as error:
        trainer.fit(module, *loaders())
    return str(error.value), watch.steps[-1], Watch.own(module)


def test_an_evaluation_that_fails_puts_the_weights_back(ranks: Ranks, tmp_path: Path) -> None:
    message, before, after = ranks(fail_in_validation, 1, str(tmp_path / "never.ckpt"))[0]
    assert "while the averaged weights are being evaluated" in message
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not (tmp_path / "never.ckpt").exists()


def accumulate(path: str) -> int:
    average = WeightAverage(0.5)
    trainer = make_trainer(1, callbacks=[average], accumulate_grad_batches=2)
    trainer.fit(classifier(), *loaders())
    return average.state_dict()["updates"]


def refuse_half(_: str) -> str:
    trainer = make_trainer(1, callbacks=[WeightAverage()], precision="bf16-true")
    with pytest.raises(ValueError, match="WeightAverage") as error:
        trainer.fit(classifier(), *loaders())
    return str(error.value)


@pytest.mark.parametrize(("function", "expected"), [(accumulate, 2), (refuse_half, "is in bfloat16")])
def test_steps_not_batches_and_no_half_precision(
    ranks: Ranks, tmp_path: Path, function: Callable[[str], Any], expected: Any
) -> None:
    answer = ranks(function, 1, str(tmp_path))[0]
    assert expected in answer if isinstance(expected, str) else answer == expected


@pytest.mark.parametrize("decay", [1.0, -0.1, 1.5])
def test_bad_decay(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"decay={decay} must be from 0 to below 1"):
        WeightAverage(decay)
