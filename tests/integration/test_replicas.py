"""Several replicas under Lightning: the plain model on each replica's part, gradients averaged, nothing seen twice.

Lightning runs in the test's own processes (``ranks``) by a cluster environment that takes them as they are. What a
replica read is recorded, so that the reference does not guess how samplers divide it.
"""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import ClusterEnvironment
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lanes
from lanes.layers import local
from lanes.mesh import DATA_AXIS, LANE_AXIS, axis, replica_seed
from lanes.models import SmallAlexNet
from lanes.training import Classifier, LaneStrategy
from tests import networks
from tests.parity import make_optimizer, relative_error, stream, whole
from tests.ranks import Ranks

MESHES = {"2x1": (2, 1), "2x2": (4, 2)}  # data x lane: ranks, lane devices
# Five steps in float32. Rounding differs by 6e-8 relative per operation, adds up to about 1e-6 in a gradient, and batch
# norm over few images multiplies it; a gradient that is not averaged, or a mask of another stream, is off by 1e-2.
BOUND = 2e-4


class RunningProcesses(ClusterEnvironment):
    """The processes of the initialised group, for Lightning."""

    creates_processes_externally = True
    main_address = "localhost"
    main_port = 0

    @staticmethod
    def detect() -> bool:
        return True

    def world_size(self) -> int:
        return dist.get_world_size()

    def global_rank(self) -> int:
        return dist.get_rank()

    def local_rank(self) -> int:
        return dist.get_rank()

    def node_rank(self) -> int:
        return 0

    def set_world_size(self, size: int) -> None:
        pass

    def set_global_rank(self, rank: int) -> None:
        pass


class Recorder(Callback):
    """What this process read and lost in training, step by step."""

    def __init__(self) -> None:
        self.batches: list[tuple[Tensor, Tensor]] = []
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batches.append((batch[0].clone(), batch[1].clone()))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].item())


def make_trainer(lane_devices: int, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=dist.get_world_size(),
        strategy=LaneStrategy(lane_devices),
        plugins=[RunningProcesses()],
        **{
            "logger": False,
            "max_epochs": 1,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            **options,
        },
    )


def mixed(*, dropout: bool = True, frozen: tuple[str, ...] = ()) -> nn.Module:
    net = networks.Mixed(2, 4)
    for name, module in net.named_modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d) and not dropout:
            module.p = 0.0
        if name in frozen:
            module.requires_grad_(False)
    return net


def photos(count: int, size: int = 16) -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(count, 3, size, size, generator=generator)
    return TensorDataset(images, torch.randint(0, 10, (count,), generator=generator))


def classifier(net: Callable[[], nn.Module], size: int = 16) -> Classifier:
    optimizer = partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=5e-4)
    return Classifier(net, image_shape=(3, size, size), optimizer=optimizer)


def fit(
    lane_devices: int,
    net: Callable[[], nn.Module],
    images: TensorDataset,
    options: dict[str, Any],
    *,
    batch: int = 8,
    save: str | None = None,
    size: int = 16,
) -> dict[str, Any]:
    """Train on this process's mesh; returns what this process saw and holds."""
    recorder = Recorder()
    trainer, module = make_trainer(lane_devices, callbacks=[recorder], **options), classifier(net, size)
    trainer.fit(module, DataLoader(images, batch, shuffle=True))
    if save is not None:
        trainer.save_checkpoint(save)
    mesh = module.device_mesh
    return {
        "replica": axis(mesh, DATA_AXIS).index,
        "lane_index": axis(mesh, LANE_AXIS).index,
        "batches": recorder.batches,
        "losses": recorder.losses,
        "logged": float(trainer.callback_metrics["train/loss"]),
        "steps": trainer.global_step,
        "own": {name: local(t).clone() for name, t in module.net.state_dict().items()},
        "parameters": {name: whole(p) for name, p in module.net.named_parameters()},
    }


def reference(
    net: Callable[[], nn.Module], answers: list[dict[str, Any]], *, clip: float | None = None, epoch: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[float]]:
    """Plain models, one per replica, on what the replicas read: weights, mean statistics, gradient norms."""
    read = {a["replica"]: a["batches"] for a in answers}
    torch.manual_seed(0)
    nets = [net()]
    nets += [copy.deepcopy(nets[0]) for _ in range(len(read) - 1)]
    optimizer = make_optimizer(nets[0], 0.01)
    norms = []
    for step in range(len(read[0])):
        for replica, plain in enumerate(nets):
            plain.zero_grad()
            images, labels = read[replica][step]
            start = torch.Generator().manual_seed(replica_seed(0, replica, epoch, step))
            with stream({"rng": start.get_state()}):
                F.cross_entropy(plain(images), labels).backward()
        for same in zip(*(plain.parameters() for plain in nets), strict=True):
            if same[0].grad is not None:
                same[0].grad = torch.stack([p.grad for p in same]).mean(0)
        norms.append(torch.nn.utils.clip_grad_norm_(nets[0].parameters(), clip or 1e9).item())
        optimizer.step()
        for plain in nets[1:]:
            for ours, theirs in zip(plain.parameters(), nets[0].parameters(), strict=True):
                ours.data.copy_(theirs.data)
    buffers = {
        name: torch.stack([dict(plain.named_buffers())[name].double() for plain in nets]).mean(0).float()
        for name, _ in nets[0].named_buffers()
    }
    return {name: p.detach() for name, p in nets[0].named_parameters()}, buffers, norms


def check_alike(answers: list[dict[str, Any]], *, statistics: bool = False) -> None:
    """Replicas hold the same weights, bit by bit; lane devices of a replica read the same."""
    for one in answers:
        for other in answers:
            if one["lane_index"] == other["lane_index"]:
                for name, tensor in one["own"].items():
                    if statistics or "running" not in name:
                        assert torch.equal(tensor, other["own"][name]), f"{name} differs between replicas"
            if one["replica"] == other["replica"]:
                pairs = zip(one["batches"], other["batches"], strict=True)
                assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("mesh", MESHES)
def test_replicas_equal_the_averaged_plain_model(
    ranks: Ranks, measured: Callable[[str], None], mesh: str, clip: float | None
) -> None:
    world, lane_devices = MESHES[mesh]
    options = {"gradient_clip_val": clip}
    answers = ranks(fit, world, lane_devices, mixed, photos(80), options)
    assert [a["steps"] for a in answers] == [5] * world
    check_alike(answers)
    expected, _, norms = reference(mixed, answers, clip=clip)
    if clip:
        assert min(norms) > clip, "the test must clip"
    error = relative_error(answers[0]["parameters"], expected)
    measured(f"Lightning, {mesh}, {'clipped' if clip else 'not clipped'}: 5 float32 steps   error {error:.1e}")
    assert error <= BOUND
    last = {a["replica"]: a["losses"][-1] for a in answers}
    assert answers[0]["logged"] == pytest.approx(sum(last.values()) / len(last), rel=1e-5), "mean over replicas"


def small(dropout: float = 0.0) -> nn.Module:
    return SmallAlexNet(10, 4, dropout=dropout, image_size=32)


@pytest.mark.parametrize("mesh", MESHES)
def test_accumulation(ranks: Ranks, measured: Callable[[str], None], mesh: str) -> None:
    world, lane_devices = MESHES[mesh]
    data = photos(48, 32)
    once = ranks(partial(fit, batch=8, size=32), world, lane_devices, small, data, {})
    often = ranks(partial(fit, batch=4, size=32), world, lane_devices, small, data, {"accumulate_grad_batches": 2})
    assert once[0]["steps"] == often[0]["steps"] == 3
    check_alike(often)
    error = relative_error(often[0]["parameters"], once[0]["parameters"])
    measured(f"Lightning, {mesh}, accumulating 2 batches against one of twice the size   error {error:.1e}")
    assert error <= 1e-5  # sums in another order, three steps, no batch norm


def test_statistics_are_averaged(ranks: Ranks, tmp_path: Path) -> None:
    """Own statistics while training, the same on every replica in evaluation and in the checkpoint."""
    path = tmp_path / "some.ckpt"
    answers = ranks(partial(fit, save=str(path)), 4, 2, mixed, photos(80), {})
    check_alike(answers, statistics=True)
    parameters, buffers, _ = reference(mixed, answers)
    saved = load_file(path / "model.safetensors")
    floating = [name for name in buffers if "running" in name]
    assert relative_error({n: saved[n] for n in floating}, {n: buffers[n] for n in floating}) <= BOUND
    assert relative_error({n: saved[n] for n in parameters}, parameters) <= BOUND
    for name, tensor in saved.items():
        if "num_batches" in name:
            assert tensor.item() == 5
    mixed().load_state_dict(saved)  # plain names, plain shapes


def trained_then_validated(path: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    seen: dict[str, Tensor] = {}

    class Look(Callback):
        def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            seen.update({n: local(b).clone() for n, b in pl_module.net.named_buffers() if "running" in n})

    trainer, module = make_trainer(1, callbacks=[Look()]), classifier(mixed)
    trainer.fit(module, DataLoader(photos(32), 8, shuffle=True), DataLoader(photos(41), 8))
    trainer.save_checkpoint(path)
    return seen, {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_statistics_in_evaluation(ranks: Ranks, tmp_path: Path) -> None:
    (first, metrics), (second, _) = ranks(trained_then_validated, 2, str(tmp_path / "some.ckpt"))
    assert first
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    expected = counts(tmp_path / "some.ckpt", photos(41))
    assert metrics["val/top1"] == pytest.approx(expected[0] / 41, abs=1e-6)
    assert metrics["val/loss"] == pytest.approx(expected[2], rel=1e-5)


def counts(path: Path | None, data: TensorDataset) -> tuple[int, int, float]:
    """The plain model's number of hits among one and five, and its mean loss."""
    torch.manual_seed(0)
    net = mixed()
    if path is not None:
        net.load_state_dict(load_file(path / "model.safetensors"))
    images, labels = data.tensors
    with torch.no_grad():
        logits = net.eval()(images)
    hits = logits.topk(5).indices == labels[:, None]
    return int(hits[:, 0].sum()), int(hits.sum()), F.cross_entropy(logits, labels).item()


LOADERS: dict[str, dict[str, Any]] = {
    "in order": {},
    "shuffled": {"shuffle": True},
    "by a sampler of its own": {"sampler": list(range(41))},
}


def evaluate(lane_devices: int, verb: str, batch: int, loader: str, options: dict[str, Any]) -> dict[str, float]:
    trainer, module = make_trainer(lane_devices, **options), classifier(mixed)
    evaluated = getattr(trainer, verb)(module, DataLoader(photos(41), batch, **LOADERS[loader]), verbose=False)
    return dict(evaluated[0])


@pytest.mark.parametrize(
    ("mesh", "verb", "batch", "loader"),
    [
        ("2x1", "validate", 8, "in order"),
        ("2x1", "test", 10, "in order"),  # 21 images are three batches, 20 are two
        ("2x2", "validate", 10, "in order"),
        ("2x1", "validate", 8, "shuffled"),
        ("2x1", "validate", 8, "by a sampler of its own"),
    ],
)
def test_every_sample_counts_once(ranks: Ranks, mesh: str, verb: str, batch: int, loader: str) -> None:
    world, lane_devices = MESHES[mesh]
    top1, top5, loss = counts(None, photos(41))
    stage = {"validate": "val", "test": "test"}[verb]
    for said in ranks(evaluate, world, lane_devices, verb, batch, loader, {}):
        assert said[f"{stage}/top1"] * 41 == pytest.approx(top1, abs=1e-4)
        assert said[f"{stage}/top5"] * 41 == pytest.approx(top5, abs=1e-4)
        assert said[f"{stage}/loss"] == pytest.approx(loss, rel=1e-5)


def fit_twice_unevenly(lane_devices: int) -> dict[str, Any]:
    return fit(lane_devices, mixed, photos(41), {"max_epochs": 2})


@pytest.mark.parametrize("mesh", MESHES)
def test_an_uneven_rest_is_dropped(ranks: Ranks, mesh: str) -> None:
    world, lane_devices = MESHES[mesh]
    answers = ranks(fit_twice_unevenly, world, lane_devices)
    check_alike(answers)
    for answer in answers:
        assert [len(labels) for _, labels in answer["batches"]] == [8, 8, 4] * 2, "20 of 41 images to each replica"
    for epoch in (slice(0, 3), slice(3, 6)):
        read = {a["replica"]: torch.cat([images for images, _ in a["batches"][epoch]]) for a in answers}
        images = torch.cat(list(read.values())).flatten(1)
        assert len(images.unique(dim=0)) == len(images) == 40, "no image twice"


def test_bf16(ranks: Ranks, measured: Callable[[str], None]) -> None:
    options = {"precision": "bf16-mixed"}
    half = ranks(partial(fit, size=32), 4, 2, small, photos(64, 32), options)
    full = ranks(partial(fit, size=32), 4, 2, small, photos(64, 32), {})
    check_alike(half)
    assert all(tensor.dtype == torch.float32 for tensor in half[0]["parameters"].values())
    differences = [abs(a - b) for a, b in zip(half[0]["losses"], full[0]["losses"], strict=True)]
    measured(f"Lightning, 2x2, bf16-mixed: loss differs from float32's by {max(differences):.1e}")
    assert max(differences) < 0.05  # 8 bits of mantissa: 4e-3 relative, of a loss of 2.3, through eight layers
    assert max(differences) > 0, "not in bfloat16 at all?"


@pytest.mark.parametrize("mesh", MESHES)
def test_a_frozen_layer(ranks: Ranks, mesh: str) -> None:
    world, lane_devices = MESHES[mesh]
    net = partial(mixed, frozen=("conv2", "wide", "fc6"))
    answers = ranks(fit, world, lane_devices, net, photos(48), {})
    check_alike(answers)
    expected, _, _ = reference(net, answers)
    torch.manual_seed(0)
    start = dict(net().named_parameters())
    assert torch.equal(answers[0]["parameters"]["wide.weight"], start["wide.weight"])
    assert not torch.equal(answers[0]["parameters"]["conv1.weight"], start["conv1.weight"])
    assert relative_error(answers[0]["parameters"], expected) <= BOUND


# Without Lightning: what people do to a model that is placed already.


def copied(net: nn.Module, plain: nn.Module) -> tuple[nn.Module, nn.Module]:
    return copy.deepcopy(net), plain


def moved(net: nn.Module, plain: nn.Module) -> tuple[nn.Module, nn.Module]:
    return net.to("cpu"), plain


def widened(net: nn.Module, plain: nn.Module) -> tuple[nn.Module, nn.Module]:
    return net.to(torch.float64).to("cpu", torch.float32), plain


def loaded(net: nn.Module, plain: nn.Module) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(5)
    other = mixed(dropout=False)
    net.load_state_dict(other.state_dict())
    return net, other


def loaded_assigning(net: nn.Module, plain: nn.Module) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(5)
    other = mixed(dropout=False)
    net.load_state_dict(other.state_dict(), assign=True)
    return net, other


def loaded_from_a_copy(net: nn.Module, plain: nn.Module) -> tuple[nn.Module, nn.Module]:
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    net.load_state_dict(twin.state_dict())
    return net, plain


def step_after(change: Callable[..., Any], lane_devices: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of the placed model, and of the plain one on all images, averaged over the replicas' parts."""
    mesh = lanes.init_mesh(lane_devices)
    torch.manual_seed(0)
    net = mixed(dropout=False)
    plain = copy.deepcopy(net)
    images, labels = photos(16).tensors
    lanes.place(net, lanes.plan(net, images[:2], lane_devices=lane_devices), mesh)
    net, plain = change(net, plain)
    data = axis(mesh, DATA_AXIS)
    F.cross_entropy(net(images.chunk(data.size)[data.index]), labels.chunk(data.size)[data.index]).backward()
    for part, targets in zip(images.chunk(data.size), labels.chunk(data.size), strict=True):
        (F.cross_entropy(plain(part), targets) / data.size).backward()
    ours, theirs = ({n: whole(p.grad) for n, p in model.named_parameters()} for model in (net, plain))
    return ours, theirs


@pytest.mark.parametrize("change", [copied, moved, widened, loaded, loaded_assigning, loaded_from_a_copy])
@pytest.mark.parametrize("mesh", MESHES)
def test_a_placed_model_goes_on_averaging(ranks: Ranks, mesh: str, change: Callable[..., Any]) -> None:
    world, lane_devices = MESHES[mesh]
    for placed, plain in ranks(step_after, world, change, lane_devices):
        assert relative_error(placed, plain) <= BOUND
