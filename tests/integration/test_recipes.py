"""Recipes under Lightning, on several layouts, against plain PyTorch loops."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from lightning.pytorch.callbacks import EarlyStopping
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lanes.mesh import DATA_AXIS, axis
from lanes.training import Classifier, DiscreteExponential, Linear, ParameterGroup
from tests.integration.command import lanes
from tests.integration.test_replicas import BOUND, Recorder, make_trainer, mixed, photos
from tests.parity import relative_error, whole
from tests.ranks import Ranks

MESHES = {"1x1": (1, 1), "1x2": (2, 2), "2x1": (2, 1)}  # data x lane: ranks, lane devices
SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=5e-4)
Tensors = dict[str, Tensor]


def without_dropout() -> nn.Module:
    return mixed(dropout=False)


class Small(nn.Module):
    """AlexNet's end in two lanes: overlapping pools and three fully connected layers; no batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, stride=2)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1, groups=2)
        self.pool = nn.MaxPool2d(3, 2)
        self.drop = nn.Dropout(0.5)
        self.fc6 = nn.Linear(32 * 9, 64)
        self.fc7 = nn.Linear(64, 64)
        self.fc8 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x))
        x = torch.flatten(self.pool(torch.relu(self.conv2(x))), 1)
        return self.fc8(self.drop(torch.relu(self.fc7(torch.relu(self.fc6(x))))))


def train(
    lane_devices: int,
    arguments: dict[str, Any],
    data: TensorDataset,
    *,
    net: Callable[[], nn.Module] = without_dropout,
    save: str | None = None,
    resume: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train in batches of 8."""
    recorder = Recorder()
    trainer = make_trainer(lane_devices, callbacks=[recorder], **options)
    module = Classifier(net, image_shape=(3, 16, 16), **{"optimizer": SGD, **arguments})
    trainer.fit(module, DataLoader(data, 8), ckpt_path=resume)
    if save:
        trainer.save_checkpoint(save)
    groups = trainer.optimizers[0].param_groups
    return {
        "parameters": {name: whole(p) for name, p in module.net.named_parameters()},
        "groups": [{k: g[k] for k in ("lr", "initial_lr", "weight_decay", "momentum") if k in g} for g in groups],
        "loss": float(trainer.callback_metrics["train/loss"]),
        "batches": recorder.batches,
    }


def plain_loop(
    batches: list[tuple[Tensor, Tensor]],
    loss_of: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    make: Callable[[nn.Module], torch.optim.Optimizer] = lambda net: SGD(net.parameters()),
    rates: Callable[[int], list[float]] | None = None,
) -> Tensors:
    torch.manual_seed(0)
    net = without_dropout()
    optimizer = make(net)
    for step, (images, targets) in enumerate(batches):
        for group, lr in zip(optimizer.param_groups, rates(step) if rates else [], strict=bool(rates)):
            group["lr"] = lr
        optimizer.zero_grad()
        loss_of(net(images), targets).backward()
        optimizer.step()
    return {name: p.detach() for name, p in net.named_parameters()}


# ---- Losses


def soft(count: int) -> TensorDataset:
    """Labels as mixing makes them: shares of two classes."""
    images, labels = photos(count).tensors
    share = torch.rand(count, 1, generator=torch.Generator().manual_seed(3))
    return TensorDataset(images, share * F.one_hot(labels, 10) + (1 - share) * F.one_hot(labels.flip(0), 10))


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_soft_targets_and_label_smoothing(ranks: Ranks, kind: str) -> None:
    data = {"hard": photos, "soft": soft}[kind](32)

    def by_hand(logits: Tensor, targets: Tensor) -> Tensor:
        shares = targets if targets.dim() == 2 else F.one_hot(targets, 10).float()
        return -((0.9 * shares + 0.01) * logits.log_softmax(-1)).sum(-1).mean()

    answer = ranks(train, 2, 2, {"label_smoothing": 0.1}, data)[0]
    assert relative_error(answer["parameters"], plain_loop(answer["batches"], by_hand)) <= BOUND
    assert relative_error(answer["parameters"], plain_loop(answer["batches"])) > 10 * BOUND, "smoothing must matter"


def evaluate_views(lane_devices: int, data: TensorDataset) -> tuple[dict[str, float], list[dict[str, Tensor]]]:
    module = Classifier(mixed, image_shape=(3, 16, 16))
    loader = DataLoader(data, 8)
    metrics = make_trainer(lane_devices).validate(module, loader, verbose=False)[0]
    return dict(metrics), make_trainer(lane_devices).predict(Classifier(mixed, image_shape=(3, 16, 16)), loader)


def test_ten_views_are_ten_plain_forwards_averaged(ranks: Ranks) -> None:
    generator = torch.Generator().manual_seed(11)
    views, labels = torch.randn(21, 10, 3, 16, 16, generator=generator), photos(21).tensors[1]
    torch.manual_seed(0)
    net = mixed().eval()
    with torch.no_grad():
        mean = torch.stack([net(views[:, v]).softmax(-1) for v in range(10)]).mean(0)
    metrics, predicted = ranks(evaluate_views, 2, 2, TensorDataset(views, labels))[0]
    assert metrics["val/loss"] == pytest.approx(F.nll_loss(mean.log(), labels).item(), rel=1e-5)
    assert metrics["val/top1"] == pytest.approx((mean.argmax(1) == labels).float().mean().item(), abs=1e-6)
    hits = (mean.topk(5).indices == labels[:, None]).any(1)
    assert metrics["val/top5"] == pytest.approx(hits.float().mean().item(), abs=1e-6)
    shown = torch.cat([batch["probabilities"] for batch in predicted])
    assert torch.allclose(shown, mean.topk(5).values, atol=1e-6)


# ---- Parameter groups

GROUPS = [
    ParameterGroup("*.bias", lr_factor=2, weight_decay=0, schedule=DiscreteExponential(25, 2)),
    ParameterGroup(["fc6.*", "fc7.weight"], settings={"momentum": 0.5}),
]
RECIPE = {"parameter_groups": GROUPS, "schedule": Linear(4)}


def test_parameter_groups_and_their_schedules(ranks: Ranks) -> None:
    def make(net: nn.Module) -> torch.optim.Optimizer:
        named = dict(net.named_parameters())
        biases = [n for n in named if n.endswith(".bias")]
        others = ["fc6.weight", "fc7.weight"]
        rest = [n for n in named if n not in (*biases, *others)]
        by_group = [[named[n] for n in names] for names in (rest, biases, others)]
        settings: list[dict[str, Any]] = [{}, {"weight_decay": 0}, {"momentum": 0.5}]
        return SGD([{"params": p, **s} for p, s in zip(by_group, settings, strict=True)])

    def rates(step: int) -> list[float]:
        linear = 0.01 * (1 - step / 4 + step / 4 / 4)
        return [linear, 0.02 if step <= 2 else 0.02 / 25, linear]

    answer = ranks(train, 2, 2, RECIPE, photos(32))[0]
    assert relative_error(answer["parameters"], plain_loop(answer["batches"], make=make, rates=rates)) <= BOUND
    assert [g["initial_lr"] for g in answer["groups"]] == [0.01, 0.02, 0.01]
    assert [g["lr"] for g in answer["groups"]] == pytest.approx([0.0025, 0.0008, 0.0025])
    assert [g["weight_decay"] for g in answer["groups"]] == [5e-4, 0, 5e-4], "the weights' group is the first"


def test_parameter_groups_survive_resuming_on_another_layout(ranks: Ranks, tmp_path: Path) -> None:
    half, data = str(tmp_path / "half.ckpt"), photos(32)
    whole_run = partial(train, net=mixed, max_epochs=2)
    undisturbed = ranks(whole_run, 2, 2, RECIPE, data)[0]
    ranks(partial(train, net=mixed, max_epochs=2, max_steps=4, save=half), 2, 2, RECIPE, data)
    # Saved under the schedule of four steps; resumed under that of eight.
    for world, lane_devices in ((1, 1), (2, 2)):
        resumed = ranks(partial(whole_run, resume=half), world, lane_devices, RECIPE, data)[0]
        assert resumed["groups"] == undisturbed["groups"]
    with pytest.raises(AssertionError, match="3 groups in another order"):
        ranks(partial(whole_run, resume=half), 1, 1, {"schedule": Linear(4)}, data)


def test_resuming_draws_the_masks_of_the_undisturbed_training(ranks: Ranks, tmp_path: Path) -> None:
    half, data = str(tmp_path / "half.ckpt"), photos(32)
    undisturbed = ranks(partial(train, net=mixed, max_epochs=2), 2, 2, {}, data)[0]["parameters"]
    ranks(partial(train, net=mixed, save=half), 2, 2, {}, data)
    for world, lane_devices in ((2, 2), (1, 1)):
        resumed = ranks(partial(train, net=mixed, max_epochs=2, resume=half), world, lane_devices, {}, data)
        assert relative_error(resumed[0]["parameters"], undisturbed) <= BOUND


def test_adamw_with_clipping(ranks: Ranks, measured: Callable[[str], None]) -> None:
    """On two lane devices and on one.

    AdamW divides a gradient by its own size, so a gradient that is nothing but rounding moves its weight by the full
    rate, in either direction: eps is set to what rounding leaves of a clipped gradient.
    """
    adamw = {"optimizer": partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.05, eps=1e-6), **RECIPE}
    adamw["parameter_groups"] = [ParameterGroup("*.bias", lr_factor=2, weight_decay=0)]
    fit = partial(train, gradient_clip_val=0.5)
    one, two = (ranks(fit, world, world, adamw, photos(40))[0]["parameters"] for world in (1, 2))
    error = relative_error(two, one)
    measured(f"Lightning, 1x2 against 1x1, AdamW, clipped: 5 float32 steps   error {error:.1e}")
    assert error <= BOUND
    unclipped = ranks(train, 1, 1, adamw, photos(40))[0]["parameters"]
    assert relative_error(unclipped, one) > 10 * BOUND, "the test must clip"


# ---- Starting from plain weights


def started(lane_devices: int, path: str) -> Tensors:
    module = Classifier(without_dropout, image_shape=(3, 16, 16), init_from=path, init_skip=["head.*"])
    make_trainer(lane_devices).validate(module, DataLoader(photos(8), 8), verbose=False)
    return {name: whole(t) for name, t in module.net.state_dict().items()}


def test_every_layout_starts_from_the_same_weights(ranks: Ranks, tmp_path: Path) -> None:
    torch.manual_seed(9)
    theirs = {n: t for n, t in mixed().state_dict().items() if not n.startswith("head.")}
    theirs["head.weight"] = torch.ones(7, 32)  # of other classes
    save_file(theirs, tmp_path / "theirs.safetensors")
    torch.manual_seed(0)
    fresh = mixed().state_dict()
    for world, lane_devices in MESHES.values():
        for ours in ranks(started, world, lane_devices, str(tmp_path / "theirs.safetensors")):
            for name, tensor in fresh.items():
                expected = tensor if name.startswith("head.") else theirs[name]
                assert torch.equal(ours[name], expected), name


# ---- Compiling


@pytest.mark.parametrize("mesh", ["1x2", "2x1"])
def test_a_compiled_net_trains_as_it_does_uncompiled(ranks: Ranks, mesh: str, tmp_path: Path) -> None:
    world, lane_devices = MESHES[mesh]
    run = partial(train, net=Small)
    eager = ranks(run, world, lane_devices, {}, photos(48))[0]
    compiled = ranks(
        partial(run, save=str(tmp_path / "c")), world, lane_devices, {"compile_backend": "aot_eager"}, photos(48)
    )[0]
    assert relative_error(compiled["parameters"], eager["parameters"]) <= 1e-6
    assert compiled["loss"] == pytest.approx(eager["loss"], rel=1e-6)
    Small().load_state_dict(load_file(tmp_path / "c" / "model.safetensors"))  # names stay


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler")
def test_inductor_draws_the_same_masks_and_learns_in_all_layers(ranks: Ranks) -> None:
    """With its own choice of memory formats torch 2.13's inductor gives conv1 and conv2 no gradient, silently."""
    eager, compiled = (
        ranks(partial(train, net=Small), 2, 2, {"compile_backend": backend}, photos(32))[0]
        for backend in (None, "inductor")
    )
    assert relative_error(compiled["parameters"], eager["parameters"]) <= BOUND


# ---- Stopping early


class OneReplicaIsDone(Classifier):
    """Logs a value that crosses the threshold on one replica only, in its second epoch."""

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        done = axis(self.device_mesh, DATA_AXIS).index == 1 and self.current_epoch == 1
        self.log("own", float(done))


def stop_early(lane_devices: int, stopping: dict[str, Any]) -> tuple[int, int]:
    trainer = make_trainer(lane_devices, max_epochs=6, callbacks=[EarlyStopping(**stopping)])
    module = OneReplicaIsDone(without_dropout, image_shape=(3, 16, 16), optimizer=SGD)
    trainer.fit(module, DataLoader(photos(16), 8), DataLoader(photos(16), 8))
    dist.barrier()
    return trainer.current_epoch, trainer.global_step


@pytest.mark.parametrize(
    "stopping",
    [
        {"monitor": "val/loss", "min_delta": 1e3, "patience": 1},
        {"monitor": "own", "mode": "max", "stopping_threshold": 0.5, "patience": 9},
    ],
    ids=["no better", "one replica says so"],
)
def test_all_stop_at_the_same_epoch(ranks: Ranks, stopping: dict[str, Any]) -> None:
    assert ranks(stop_early, 4, 2, stopping) == [(2, 2)] * 4


# ---- By the command


def test_all_of_it_from_a_file(tmp_path: Path) -> None:
    small = {"class_path": "lanes.models.SmallAlexNet", "init_args": {"num_classes": 10, "lanes": 2}}
    config = {
        "trainer": {
            "accelerator": "cpu",
            "devices": 2,
            "callbacks": [{"class_path": "lanes.training.WeightAverage", "init_args": {"decay": 0.99}}],
        },
        "model": {
            "net": small,
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.02, "momentum": 0.9}},
            "schedule": {"class_path": "lanes.training.DiscreteExponential", "init_args": {"factor": 250, "steps": 4}},
            "parameter_groups": [
                {
                    "match": "*.bias",
                    "lr_factor": 2,
                    "weight_decay": 0,
                    "schedule": {"class_path": "lanes.training.Exponential", "init_args": {"factor": 25}},
                },
                {"match": ["fc6.*", "fc7.*"], "settings": {"momentum": 0.5}},
            ],
            "label_smoothing": 0.1,
            "compile_backend": "aot_eager",
        },
        "data": {"class_path": "lanes.training.Photographs"},
    }
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(config))
    answer = lanes("plan", "-c", "all.yaml", folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "crosses: gather" in answer.stdout
