"""What a placed model must equal, and how equality is measured (design: "What a mesh must equal").

One replica: the plain model on the whole batch. R replicas: the plain model run on each replica's part of the batch
with that replica's random stream and its own batch-norm statistics, gradients averaged. All in float64.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import lanes
from lanes.mesh import DATA_AXIS, axis, replica_seed

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train."""

    steps: int = 10
    clip: float = 0.5
    lr: float = 0.01


@dataclass
class Outcome:
    """What is compared, by group and name."""

    groups: dict[str, Tensors] = field(default_factory=dict)

    def errors_against(self, other: "Outcome") -> dict[str, float]:
        """The largest relative error of each group."""
        assert self.groups.keys() == other.groups.keys()
        return {group: relative_error(tensors, other.groups[group]) for group, tensors in self.groups.items()}


def relative_error(ours: Tensors, theirs: Tensors) -> float:
    """max|a - b| / max(max|b|, 1e-6 x the largest of all such tensors), the largest over all tensors."""
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    largest = max(t.abs().max().item() for t in theirs.values())
    worst = 0.0
    for name, b in theirs.items():
        assert ours[name].shape == b.shape, name
        assert ours[name].isfinite().all(), name
        worst = max(worst, (ours[name] - b).abs().max().item() / max(b.abs().max().item(), 1e-6 * largest))
    return worst


@contextmanager
def stream(state: dict[str, Tensor]) -> Iterator[None]:
    """Draw from a random stream of its own, kept in ``state``."""
    outside = torch.get_rng_state()
    torch.set_rng_state(state["rng"])
    yield
    state["rng"] = torch.get_rng_state()
    torch.set_rng_state(outside)


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def _gradients(net: nn.Module) -> Tensors:
    return {name: whole(p.grad) for name, p in net.named_parameters() if p.grad is not None}


def make_optimizer(net: nn.Module, lr: float) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)


def loss_of(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels)


def run_plain(build: Callable[[], nn.Module], images: Tensor, labels: Tensor, replicas: int, recipe: Recipe) -> Outcome:
    """The specification: plain models, one per replica, with shared weights."""
    torch.manual_seed(0)
    nets = [build().double()]
    nets += [copy.deepcopy(nets[0]) for _ in range(replicas - 1)]
    optimizer = make_optimizer(nets[0], recipe.lr)
    streams: list[dict[str, Tensor]] = []
    for replica in range(replicas):
        streams.append({"rng": torch.Generator().manual_seed(replica_seed(1, replica)).get_state()})
    outcome = Outcome()
    for step in range(recipe.steps):
        read = [part.clone().requires_grad_() for part in images.chunk(replicas)]
        outputs = []
        for net, state, part, targets in zip(nets, streams, read, labels.chunk(replicas), strict=True):
            net.zero_grad()
            with stream(state):
                outputs.append(net(part))
            loss_of(outputs[-1], targets).backward()
        for parameters in zip(*(net.parameters() for net in nets), strict=True):
            grads = [p.grad for p in parameters if p.grad is not None]  # none of what runs under no_grad
            parameters[0].grad = torch.stack(grads).mean(0) if grads else None
        if step == 0:
            outcome.groups["outputs"] = {str(r): whole(o) for r, o in enumerate(outputs)}
            outcome.groups["input gradients"] = {str(r): whole(x.grad) for r, x in enumerate(read)}
            outcome.groups["gradients"] = _gradients(nets[0])
        torch.nn.utils.clip_grad_norm_(nets[0].parameters(), recipe.clip)
        optimizer.step()
        for net in nets[1:]:
            for ours, theirs in zip(net.parameters(), nets[0].parameters(), strict=True):
                ours.data.copy_(theirs.data)
    outcome.groups["parameters"] = {n: whole(p) for n, p in nets[0].named_parameters()}
    buffers = {
        n: torch.stack([dict(net.named_buffers())[n].double() for net in nets]).mean(0)
        for n, _ in nets[0].named_buffers()
    }
    if buffers:
        outcome.groups["statistics"] = buffers
    return outcome


def run_placed(
    build: Callable[[], nn.Module],
    images: Tensor,
    labels: Tensor,
    lane_devices: int,
    recipe: Recipe,
    *,
    override: dict[str, str] | None = None,
    sync_batch_norm: bool = False,
) -> Outcome:
    """The same on this process's mesh."""
    mesh = lanes.init_mesh(lane_devices)
    data = axis(mesh, DATA_AXIS)
    torch.manual_seed(0)
    net = build().double()
    plan = lanes.plan(net, images[:2].clone().requires_grad_(), lane_devices=lane_devices, override=override)
    lanes.place(net, plan, mesh, sync_batch_norm=sync_batch_norm)
    optimizer = make_optimizer(net, recipe.lr)
    lanes.seed_replica(mesh, 1)
    outcome = Outcome()
    part, targets = images.chunk(data.size)[data.index], labels.chunk(data.size)[data.index]
    for step in range(recipe.steps):
        read = part.clone().requires_grad_()
        outputs = net(read)
        optimizer.zero_grad()
        loss_of(outputs, targets).backward()
        if step == 0:
            outcome.groups["outputs"] = of_replicas(outputs, data)
            outcome.groups["input gradients"] = of_replicas(read.grad, data)
            outcome.groups["gradients"] = _gradients(net)
        torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
        optimizer.step()
    lanes.average_statistics(net, mesh)
    outcome.groups["parameters"] = {n: whole(p) for n, p in net.named_parameters()}
    buffers = {n: whole(b).double() for n, b in net.named_buffers()}
    if buffers:
        outcome.groups["statistics"] = buffers
    return outcome


def of_replicas(tensor: Tensor, data: "lanes.mesh.Axis") -> Tensors:
    parts = [torch.empty_like(tensor) for _ in range(data.size)]
    torch.distributed.all_gather(parts, tensor.detach().contiguous(), group=data.group)
    return {str(replica): part for replica, part in enumerate(parts)}


def drawn(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Images and labels, the same every time."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(shape, dtype=torch.float64, generator=generator)
    return images, torch.randint(0, 10, (shape[0],), generator=generator)


def run_plain_twice(
    build: Callable[[], nn.Module], images: Tensor, labels: Tensor, replicas: int, recipe: Recipe
) -> tuple[Outcome, Outcome]:
    """The specification, and again on images one ulp away: what rounding alone makes of it."""
    nudged = images * (1 + 2**-52)
    return run_plain(build, images, labels, replicas, recipe), run_plain(build, nudged, labels, replicas, recipe)


def compare(
    build: Callable[[], nn.Module],
    shape: tuple[int, ...],
    lane_devices: int,
    recipe: Recipe = Recipe(),
    override: dict[str, str] | None = None,
    channels_last: bool = False,
) -> tuple[dict[str, float], dict[str, float]]:
    """Errors of the placed model against the plain one, and of the plain one against itself, one ulp of input apart."""
    images, labels = drawn(shape)
    if channels_last:
        images = images.to(memory_format=torch.channels_last)
    placed = run_placed(build, images, labels, lane_devices, recipe, override=override)
    if torch.distributed.get_rank() != 0:
        return {}, {}
    replicas = torch.distributed.get_world_size() // lane_devices
    plain, nudged = run_plain_twice(build, images, labels, replicas, recipe)
    return placed.errors_against(plain), nudged.errors_against(plain)


def compare_synchronised(
    build: Callable[[], nn.Module], shape: tuple[int, ...], lane_devices: int
) -> tuple[dict[str, float], dict[str, float]]:
    """The same for replicas that share batch-norm statistics, against one plain model on the whole batch."""
    images, labels = drawn(shape)
    placed = run_placed(build, images, labels, lane_devices, Recipe(), sync_batch_norm=True)
    if torch.distributed.get_rank() != 0:
        return {}, {}
    placed.groups["outputs"] = {"0": torch.cat(list(placed.groups["outputs"].values()))}
    plain, nudged = run_plain_twice(build, images, labels, 1, Recipe())
    for outcome in (placed, plain, nudged):
        del outcome.groups["input gradients"]  # of the mean over a replica's part here, over the whole batch there
    return placed.errors_against(plain), nudged.errors_against(plain)
