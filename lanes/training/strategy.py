"""Lightning's strategy for lanes: processes, mesh, samplers over replicas, checkpoints.

Everything else is Lightning's ``ModelParallelStrategy``. Clipping needs no code here: parameters are DTensors, so
``gradient_clip_val`` is one norm over all lanes.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lanes.checkpoint import BackgroundWriter, extra_sets, load_checkpoint, newest_whole, take_snapshot
from lanes.faults.equal_weights import check_equal
from lanes.faults.same_everywhere import check_same
from lanes.mesh import (
    DATA_AXIS,
    Axis,
    axis,
    check_lane_devices,
    init_mesh,
    replica_seed,
    seed_replica,
)
from lanes.network.group import start_group
from lanes.network.meeting import check_place, place_of
from lanes.placement import average_statistics
from lanes.training.layout import choose_lane_devices
from lanes.training.loaders import fit_to_replicas
from lanes.training.position import mend_restart, rescaled, to_validation, validation_follows
from lanes.training.wandb_logger import LanesLogger


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


class LaneStrategy(ModelParallelStrategy):
    """Train in lanes: ``trainer.devices`` x ``trainer.num_nodes`` processes, as replicas x lane devices.

    Args:
        lane_devices: D, the devices over which one replica's lanes are spread; "auto": the most on one node over which
            the network can be placed. The processes divided by D are the replicas.
        process_group_backend: "gloo", "nccl"; by default the device's own.
        rendezvous_timeout_s: how long processes wait for one another at the start.
        across_nodes: allow more lane devices than a node has; at every crossing they talk over the network.
    """

    def __init__(
        self,
        lane_devices: int | Literal["auto"] = "auto",
        process_group_backend: str | None = None,
        rendezvous_timeout_s: float = 300,
        *,
        across_nodes: bool = False,
    ) -> None:
        super().__init__(process_group_backend=process_group_backend)
        if not rendezvous_timeout_s > 0:
            raise ValueError(f"rendezvous_timeout_s={rendezvous_timeout_s} must be more than 0 seconds, e.g. 300")
        self.rendezvous_timeout_s = rendezvous_timeout_s
        if lane_devices != "auto":
            check_lane_devices(lane_devices)
        self.lane_devices, self.across_nodes = lane_devices, across_nodes
        self.about: dict[str, Any] = {}  # facts for the manifests of checkpoints
        self.goes_on_from: int | None = None  # steps of the checkpoint that this process has found
        self.when_written: Callable[[int], None] = lambda step: None  # of each checkpoint, on the first process
        self._writer: BackgroundWriter | None = None  # on the first process
        self._validates_first = False  # going on from where a validation was due

    @property
    def data_axis(self) -> Axis:
        """This process's place among the replicas."""
        return axis(self.device_mesh, DATA_AXIS)

    def setup_environment(self) -> None:
        """Start the processes' group and make the mesh."""
        assert self.accelerator is not None
        if not dist.is_initialized():
            self.accelerator.setup_device(self.root_device)
            self.set_world_ranks()
            environment, backend = self.cluster_environment, self._get_process_group_backend()
            waits: Any = {"rendezvous_timeout_s": self.rendezvous_timeout_s, "timeout": self._timeout}
            start_group(environment, backend, self.root_device, **waits)
        self._setup_distributed()
        # Of a disk that nodes share, one may see less than another.
        found = {"steps of the checkpoint to go on from": self.goes_on_from}
        check_same({**self.about.get("config", {}), **found}, device=self.root_device)
        assert self.lightning_module is not None
        if self.root_device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            # Processes that each take every core wait for one another.
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // self.num_processes))
        module: Any = self.lightning_module
        lane_devices = choose_lane_devices(
            module, self.lane_devices, self.num_processes, self.num_nodes, across_nodes=self.across_nodes
        )
        self._device_mesh = init_mesh(lane_devices, device_type=self.root_device.type)
        module._device_mesh = self._device_mesh

    def check_network(self) -> None:
        """Find out what this process can by itself of the network that it is to use.

        Raises:
            MeetingError: names the value and the way out.
        """
        check_place(place_of(self.cluster_environment), self._get_process_group_backend())

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Samples are divided among replicas; the lane devices of a replica read the same."""
        return {"num_replicas": self.data_axis.size, "rank": self.data_axis.index}

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """Start the random stream of the replica's step, before augmentation draws from it.

        Each step has its own: it draws the same whatever ran before it in this process, so that a training that goes on
        from a checkpoint anywhere in an epoch needs no generator's state, and evaluations disturb nothing.
        """
        trainer = self._module.trainer
        if trainer.training:
            step = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            seed_replica(self.device_mesh, _seed(), trainer.current_epoch, step)
        return super().batch_to_device(batch, device, dataloader_idx)

    def process_dataloader(self, dataloader: object) -> object:
        """Divide a loader's samples over the replicas, and let it begin where training stands."""
        if isinstance(dataloader, DataLoader):
            fit_to_replicas(dataloader, self._module.trainer, seed=replica_seed(_seed(), self.data_axis.index))
        return dataloader

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Over the replicas; the lane devices of a replica hold the same value."""
        return super().reduce(tensor, group=self.data_axis.group, reduce_op=reduce_op)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Whether all processes (or any) decided so; counted over all of them, lane devices too."""
        votes = super().reduce(torch.tensor(int(decision), device=self.root_device), reduce_op="sum")
        return int(votes) == self.world_size if all else int(votes) > 0

    def on_train_start(self) -> None:
        """The trainer knows by now where it goes on."""
        mend_restart(self._module.trainer.fit_loop, validate=self._validates_first)
        self._validates_first = False

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
        """Have a checkpoint folder written in the plain model's names and shapes.

        While the trainer runs it goes on meanwhile, and a checkpoint that cannot be written is warned of; otherwise the
        checkpoint is there when this returns.

        Raises:
            UnlikeError: processes do not hold equal weights; on all of them, before anything is written.
            OSError: the trainer does not run, and the checkpoint could not be written; on every process.
        """
        if storage_options is not None:
            raise TypeError("LaneStrategy writes folders, not streams: it takes no storage_options")
        average_statistics(self._net, self.device_mesh)
        state = {k: v for k, v in checkpoint.items() if k not in ("state_dict", "optimizer_states")}
        state["hyper_parameters"] = {k: repr(v) for k, v in state.get("hyper_parameters", {}).items()}
        state["replicas"] = self.data_axis.size
        state["validation_follows"] = validation_follows(self._module.trainer)
        optimizers = self.optimizers if "optimizer_states" in checkpoint else []
        extra = {keeper.checkpoint_set: keeper.checkpoint_tensors(self._module) for keeper in self._keepers}
        folder, step = Path(filepath).parent, self._module.trainer.global_step
        check_equal(
            self._net, optimizers, extra, mesh=self.device_mesh, step=step, newest=partial(self.newest_whole, folder)
        )
        about = {"wandb_run_id": self._wandb_run_id, **self.about}
        snapshot = take_snapshot(self._net, optimizers, state, extra=extra, about=about)
        if self.is_global_zero:
            self._writer = self._writer or BackgroundWriter()
            self._writer.save(Path(filepath), snapshot, partial(self.when_written, step))
        if self._module.trainer.state.status != TrainerStatus.RUNNING:
            failure = self.broadcast(self.written())
            if failure:
                raise OSError(failure)

    def remove_checkpoint(self, filepath: str | Path) -> None:
        """Have a checkpoint removed, once all that were to be written are whole."""
        if self._writer is not None:
            self._writer.remove(Path(filepath))
        else:
            super().remove_checkpoint(filepath)

    def teardown(self) -> None:
        """Wait until every checkpoint is on the disk."""
        self.written()
        super().teardown()

    def written(self) -> str | None:
        """Wait for all checkpoints; why the newest could not be written, or None."""
        if self._writer is None:
            return None
        self._writer.wait()
        return self._writer.failure

    def newest_whole(self, folder: Path) -> tuple[Path | None, list[str]]:
        """The newest whole checkpoint in a folder, and what is wrong with newer ones; all processes must call it."""
        self.written()
        return self.broadcast(newest_whole(folder) if self.is_global_zero else (None, []))

    def read_tensors(self, path: str | Path) -> None:
        """Overwrite all tensors of the training that runs by a checkpoint's; rates and counts go on."""
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        settings = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        self._read(path, self.optimizers)
        for group, own in zip(groups, settings, strict=True):
            group.update(own)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint folder into the network on this mesh, and into the optimizers when training goes on."""
        training = self._module.trainer.state.fn == TrainerFn.FITTING
        self.written()
        self.barrier()
        path = self.broadcast(checkpoint_path)
        state = self._read(path, self.optimizers if training else [])
        if training and "global_step" not in state:
            raise ValueError(
                f"{path} was not written by a training that can go on; start from its weights by model.init_from"
            )
        before, now = state.get("replicas", self.data_axis.size), self.data_axis.size
        if training and before != now:
            rescaled(state["loops"], before, now)
        self._validates_first = training and state.get("validation_follows", False)
        if self._validates_first:
            to_validation(state["loops"])
        if training:  # loaders were made to count their batches; they are made again where the epoch stands
            self._module.trainer.fit_loop._combined_loader = None
            # And callbacks would save this step once more, one batch on.
            for callback in self._module.trainer.checkpoint_callbacks:
                callback._last_global_step_saved = state["global_step"]  # type: ignore[attr-defined]
        # Trainers read the version before anything else; lanes.save_checkpoint of a plain loop does not know it.
        return {"pytorch-lightning_version": lightning.__version__, "state_dict": {}, **state}

    def _read(self, path: str | Path, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
        """Overwrite the network, optimizers, and what callbacks keep; return the rest of a checkpoint."""
        found = extra_sets(path)
        keepers = {keeper.checkpoint_set: keeper for keeper in self._keepers}
        extra = {name: keeper.checkpoint_tensors(self._module) for name, keeper in keepers.items() if name in found}
        state = load_checkpoint(path, self._net, optimizers, extra=extra)
        for name, keeper in keepers.items():
            keeper.checkpoint_loaded(self._module, found=name in found)
        return state

    @property
    def _module(self) -> LightningModule:
        assert self.lightning_module is not None
        return self.lightning_module

    @property
    def _wandb_run_id(self) -> str | None:
        """So that a training that goes on from the checkpoint can log into the same run."""
        loggers = [logger for logger in self._module.trainer.loggers if isinstance(logger, LanesLogger)]
        return str(loggers[0].version) if loggers and loggers[0].version else None

    @property
    def _keepers(self) -> list[TensorKeeper]:
        return [callback for callback in self._module.trainer.callbacks if isinstance(callback, TensorKeeper)]  # type: ignore[attr-defined]

    @property
    def _net(self) -> nn.Module:
        """The placed network: the plain model's names are those below it."""
        net = getattr(self._module, "net", self._module)
        assert isinstance(net, nn.Module)
        return net


def _seed() -> int:
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
