"""Runs the plain model and the placed one on the same batch.

The specification of R replicas: the plain model on each replica's part of the batch with that replica's random stream
and its own batch-norm statistics, gradients averaged. Every process computes all of it by itself: what is tested is
not used for the test, but for the exchange of the errors at the end.

Shapes: N images per replica, R replicas, D lane devices.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from lanes.checking.errors import GROUPS, Errors, See, Tensors, rows_of, tapped
from lanes.checking.everyone import from_everyone
from lanes.checking.report import CheckReport, Finding
from lanes.mesh import DATA_AXIS, LANE_AXIS, DeviceMesh, axis, replica_seed
from lanes.placement import average_statistics, place
from lanes.planning import plan
from lanes.plans import Plan
from lanes.rules.kinds import DROPOUTS

Batch = tuple[Tensor, Tensor]


def _sgd(net: nn.Module) -> Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def _as_given(images: Tensor, labels: Tensor) -> Batch:
    return images, labels


def check(  # noqa: PLR0913
    build_net: Callable[[], nn.Module],
    images: Tensor,
    labels: Tensor,
    mesh: DeviceMesh,
    *,
    optimizer: Callable[[nn.Module], Optimizer] = _sgd,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    prepare: Callable[[Tensor, Tensor], Batch] = _as_given,
    placing: Callable[[nn.Module, DeviceMesh], Plan] | None = None,
    seed: int = 0,
) -> CheckReport:
    """Compare the placed model with the plain one: weights, outputs, gradients and one optimizer step, in float64.

    All processes of the mesh must call it alike.

    Args:
        build_net: makes the plain network, from torch's default generator.
        images: of all replicas, [R N, ...], alike on all processes.
        labels: [R N, ...].
        mesh: from :func:`lanes.init_mesh`.
        optimizer: makes the optimizer of a network, placed or plain.
        loss: of (outputs, targets), the mean over the images.
        prepare: what one replica does to its part of the batch first (augmentation), from its random stream.
        placing: plans and places a plain network, and returns the plan; by default as :func:`lanes.plan` chooses.
        seed: of the weights and of the replicas' random streams.

    Raises:
        ValueError: the batch does not divide over the replicas; synchronised batch norm together with dropout, whose
            masks no plain model draws alike for the whole batch.
    """
    subject = _Subject(build_net, images, labels, mesh, optimizer, loss, prepare, seed)
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if mesh.device_type == "cuda" else []):
        placed = subject.build()
        placed_by = (placing or subject.plan_and_place)(placed, mesh)
        subject.find_rounds(placed)
        reference = Tensors()
        noise, own = Errors(reference), Errors(reference, placed_by, mesh)
        plain = subject.build().to(mesh.device_type)
        reference.groups["weights before"] = {name: p.detach() for name, p in plain.named_parameters()}
        for errors, net in ((noise, plain), (own, placed)):
            subject.see_parameters(net, "weights before", errors.see)
        reference.forget("weights before")
        subject.run_plain(plain, reference.keep)
        del plain, net  # as large as all that is compared
        subject.run_plain(subject.build().to(mesh.device_type), noise.see, nudge=2**-52)
        subject.run_placed(placed, placed_by, own.see)
    names = [(group, name) for group in GROUPS for name in reference.groups.get(group, {})]
    table = [[errors.found.get(key, math.inf) for key in names] for errors in (own, noise)]
    everyones = from_everyone(torch.tensor(table, dtype=torch.float64, device=mesh.device_type), mesh).cpu()
    groups: dict[str, list[Finding]] = {}
    for k, (group, name) in enumerate(names):
        finding = Finding(name, everyones[:, :, 0, k], float(everyones[:, :, 1, k].max()))
        groups.setdefault(group, []).append(finding)
    return CheckReport(groups, *everyones.shape[:2])


@dataclass
class _Subject:
    """What is checked: the same network and batch for every run."""

    build_net: Callable[[], nn.Module]
    images: Tensor
    labels: Tensor
    mesh: DeviceMesh
    optimizer: Callable[[nn.Module], Optimizer]
    loss: Callable[[Tensor, Tensor], Tensor]
    prepare: Callable[[Tensor, Tensor], Batch]
    seed: int
    rounds: list[list[int]] = field(default_factory=list)  # replicas whose parts the plain model reads together

    def __post_init__(self) -> None:
        self.lane, self.data = axis(self.mesh, LANE_AXIS), axis(self.mesh, DATA_AXIS)
        if not len(self.images) or len(self.images) % self.data.size:
            raise ValueError(
                f"{len(self.images)} images do not divide over {self.data.size} replicas; give as many to each"
            )

    def build(self) -> nn.Module:
        """The plain network in float64, the same every time."""
        torch.manual_seed(self.seed)
        return self.build_net().double()

    def batch(self, replica: int) -> Batch:
        """What a replica reads; leaves its random stream where the network goes on to draw from it."""
        torch.manual_seed(replica_seed(self.seed, replica))
        part = slice(*(len(self.images) // self.data.size * r for r in (replica, replica + 1)))
        images, targets = self.prepare(self.images[part], self.labels[part])
        return images.double(), targets.double() if targets.is_floating_point() else targets

    def plan_and_place(self, net: nn.Module, mesh: DeviceMesh) -> Plan:
        chosen = plan(net, self.batch(0)[0][:2], lane_devices=self.lane.size)
        place(net, chosen, mesh)
        return chosen

    def find_rounds(self, placed: nn.Module) -> None:
        """Replicas that share batch-norm statistics equal the plain model on the whole batch, else on each part."""
        replicas = list(range(self.data.size))
        shared = len(replicas) > 1 and any(getattr(module, "sync", False) for module in placed.modules())
        if shared and any(isinstance(m, tuple(DROPOUTS)) and getattr(m, "p", 0) for m in placed.modules()):
            raise ValueError(
                "a network with synchronised batch norm and dropout cannot be checked on several replicas, which draw "
                "masks of their own; check it on one replica, or without dropout"
            )
        self.rounds = [replicas] if shared else [[replica] for replica in replicas]

    def run_plain(self, net: nn.Module, see: See, nudge: float = 0.0) -> None:
        """The specification; its images moved by ``nudge``, relatively."""
        initial = {name: buffer.clone() for name, buffer in net.named_buffers()}
        sums = {name: torch.zeros_like(buffer, dtype=torch.float64) for name, buffer in initial.items()}
        for together in self.rounds:
            batches = [self.batch(replica) for replica in together]
            for name, buffer in net.named_buffers():
                buffer.copy_(initial[name])
            images, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
            with tapped(net, rows_of(self.data.index, together, see)):
                outputs = net(images * (1 + nudge))
                self.loss(outputs, targets).backward()
            for name, buffer in net.named_buffers():
                sums[name] += buffer
        for parameter in net.parameters():
            if parameter.grad is not None:
                parameter.grad /= len(self.rounds)
        self._step(net, see)
        for name, total in sums.items():
            see("statistics", name, total / len(self.rounds))

    def run_placed(self, net: nn.Module, placed_by: Plan, see: See) -> None:
        """The same on this process's mesh."""
        images, targets = self.batch(self.data.index)
        with tapped(net, see):
            self.loss(net(images), targets).backward()
        self._step(net, see)
        average_statistics(net, self.mesh)
        for name, buffer in net.named_buffers():
            see("statistics", name, buffer.double())

    def _step(self, net: nn.Module, see: See) -> None:
        for name, parameter in reversed(list(net.named_parameters())):  # as backward comes to them
            if parameter.grad is not None:
                see("gradients", name, parameter.grad)
        self.optimizer(net).step()
        net.zero_grad()
        self.see_parameters(net, "parameters", see)

    @staticmethod
    def see_parameters(net: nn.Module, group: str, see: See) -> None:
        """Show all parameters as they are now."""
        for name, parameter in net.named_parameters():
            see(group, name, parameter)
