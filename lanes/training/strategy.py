"""Lightning's strategy for lanes: processes, mesh, samplers over replicas, checkpoints.

Everything else is Lightning's ``ModelParallelStrategy``. Clipping needs no code here: parameters are DTensors, so
``gradient_clip_val`` is one norm over all lanes.
"""

import os
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import lightning
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from lanes.checkpoint import extra_sets, load_checkpoint, save_checkpoint
from lanes.mesh import (
    DATA_AXIS,
    Axis,
    axis,
    check_lane_devices,
    check_layout,
    divisors,
    init_mesh,
    one_of,
    replica_seed,
)
from lanes.placement import average_statistics
from lanes.plans import Plan
from lanes.tracing import PlanError


class Plannable(Protocol):
    """What the strategy asks of a LightningModule that leaves the layout to it."""

    def plan(self, lane_devices: int) -> Plan:
        """Plan the module's network for a number of lane devices."""


@runtime_checkable
class TensorKeeper(Protocol):
    """What the strategy asks of a callback that keeps tensors in checkpoints, beside the network's.

    Attributes:
        checkpoint_set: the name of the set of tensors, and of its file.
    """

    checkpoint_set: str

    def checkpoint_tensors(self, pl_module: LightningModule) -> dict[str, Tensor]:
        """The tensors, to be written or overwritten."""

    def checkpoint_loaded(self, pl_module: LightningModule, *, found: bool) -> None:
        """A checkpoint was read: the network, and the tensors too if they were found in it."""


def choose_lane_devices(module: Plannable, wanted: int | Literal["auto"], per_node: int, num_nodes: int) -> int:
    """The number of lane devices: as asked for, or the most on one node over which the network's lanes divide.

    Raises:
        ValueError: the number does not divide the devices, or the network does not divide over it (PlanError).
    """
    if wanted != "auto":
        check_layout(wanted, per_node * num_nodes)
        module.plan(wanted)
        return wanted
    for lane_devices in reversed(divisors(per_node)):
        try:
            module.plan(lane_devices)
        except PlanError:
            if lane_devices == 1:
                raise
            continue
        if lane_devices == 1 and per_node > 1:
            rank_zero_warn(
                f"the network's lanes do not divide over {one_of(divisors(per_node)[1:])} lane devices: every device "
                "trains a whole replica"
            )
        return lane_devices
    raise AssertionError("1 divides everything")


class LaneStrategy(ModelParallelStrategy):
    """Train in lanes: ``trainer.devices`` x ``trainer.num_nodes`` processes, as replicas x lane devices.

    Args:
        lane_devices: D, the devices over which one replica's lanes are spread; "auto": the most on one node over which
            the network can be placed. The processes divided by D are the replicas.
        process_group_backend: "gloo", "nccl"; by default the device's own.
    """

    def __init__(self, lane_devices: int | Literal["auto"] = "auto", process_group_backend: str | None = None) -> None:
        super().__init__(process_group_backend=process_group_backend)
        if lane_devices != "auto":
            check_lane_devices(lane_devices)
        self.lane_devices = lane_devices

    @property
    def data_axis(self) -> Axis:
        """This process's place among the replicas."""
        return axis(self.device_mesh, DATA_AXIS)

    def setup_environment(self) -> None:
        """Start the processes' group and make the mesh."""
        self._setup_distributed()
        assert self.lightning_module is not None
        if self.root_device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            # Processes that each take every core wait for one another.
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // self.num_processes))
        module: Any = self.lightning_module
        lane_devices = choose_lane_devices(module, self.lane_devices, self.num_processes, self.num_nodes)
        self._device_mesh = init_mesh(lane_devices, device_type=self.root_device.type)
        module._device_mesh = self._device_mesh

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Samples are divided among replicas; the lane devices of a replica read the same."""
        return {"num_replicas": self.data_axis.size, "rank": self.data_axis.index}

    def process_dataloader(self, dataloader: object) -> object:
        """Let training drop what does not divide over the replicas, and evaluation see every sample once."""
        sampler = dataloader.sampler if isinstance(dataloader, DataLoader) else None
        if isinstance(dataloader, DataLoader) and dataloader.generator is None:
            # An iterator draws its workers' seed as it begins, which a resumed epoch does before the replica's stream
            # is started, and others after it: masks and augmentation would not be those of the undisturbed training.
            seed = replica_seed(torch.initial_seed(), self.data_axis.index)
            dataloader.generator = torch.Generator().manual_seed(seed)
        if isinstance(sampler, DistributedSampler):
            module: Any = self.lightning_module
            _cover(sampler, training=module.trainer.training)
        return dataloader

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Over the replicas; the lane devices of a replica hold the same value."""
        return super().reduce(tensor, group=self.data_axis.group, reduce_op=reduce_op)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Whether all processes (or any) decided so; counted over all of them, lane devices too."""
        votes = super().reduce(torch.tensor(int(decision), device=self.root_device), reduce_op="sum")
        return int(votes) == self.world_size if all else int(votes) > 0

    def on_validation_start(self) -> None:
        """Evaluate with the same batch-norm statistics on every replica."""
        average_statistics(self._net, self.device_mesh)

    def on_test_start(self) -> None:
        """The same."""
        average_statistics(self._net, self.device_mesh)

    def on_predict_start(self) -> None:
        """The same."""
        average_statistics(self._net, self.device_mesh)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: checkpoints are written from the devices' own parts (save_checkpoint)."""
        return {}

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Nothing: see lightning_module_state_dict."""
        return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint folder in the plain model's names and shapes (lanes.checkpoint)."""
        if storage_options is not None:
            raise TypeError("LaneStrategy writes folders, not streams: it takes no storage_options")
        average_statistics(self._net, self.device_mesh)
        state = {k: v for k, v in checkpoint.items() if k not in ("state_dict", "optimizer_states")}
        state["hyper_parameters"] = {k: repr(v) for k, v in state.get("hyper_parameters", {}).items()}
        optimizers = self.optimizers if "optimizer_states" in checkpoint else []
        extra = {keeper.checkpoint_set: keeper.checkpoint_tensors(self._module) for keeper in self._keepers}
        save_checkpoint(self.broadcast(filepath), self._net, optimizers, state, extra=extra)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint folder into the network on this mesh, and into the optimizers when training goes on."""
        training = self._module.trainer.state.fn == TrainerFn.FITTING
        path = self.broadcast(checkpoint_path)
        found = extra_sets(path)
        keepers = {keeper.checkpoint_set: keeper for keeper in self._keepers}
        extra = {name: keeper.checkpoint_tensors(self._module) for name, keeper in keepers.items() if name in found}
        state = load_checkpoint(path, self._net, self.optimizers if training else [], extra=extra)
        for name, keeper in keepers.items():
            keeper.checkpoint_loaded(self._module, found=name in found)
        if training and "global_step" not in state:
            raise ValueError(
                f"{path} was not written by a training that can go on; start from its weights by model.init_from"
            )
        # Trainers read the version before anything else; lanes.save_checkpoint of a plain loop does not know it.
        return {"pytorch-lightning_version": lightning.__version__, "state_dict": {}, **state}

    @property
    def _module(self) -> LightningModule:
        assert self.lightning_module is not None
        return self.lightning_module

    @property
    def _keepers(self) -> list[TensorKeeper]:
        return [callback for callback in self._module.trainer.callbacks if isinstance(callback, TensorKeeper)]  # type: ignore[attr-defined]

    @property
    def _net(self) -> nn.Module:
        """The placed network: the plain model's names are those below it."""
        net = getattr(self._module, "net", self._module)
        assert isinstance(net, nn.Module)
        return net


def _cover(sampler: DistributedSampler[Tensor], *, training: bool) -> None:
    """Set how a distributed sampler treats a number of samples that replicas do not divide.

    By default it repeats samples, which would count them twice in evaluation.
    """
    total = len(sampler.dataset)  # type: ignore[arg-type]
    sampler.drop_last = training
    if training:
        sampler.num_samples = total // sampler.num_replicas
        sampler.total_size = sampler.num_samples * sampler.num_replicas
    else:
        sampler.num_samples = len(range(sampler.rank, total, sampler.num_replicas))
        sampler.total_size = total
