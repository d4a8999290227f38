"""``lanes check``: the placed model against the plain one on this mesh, with this config's data and optimizer."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer

from lanes.checking import CheckReport, check
from lanes.mesh import DATA_AXIS, DeviceMesh, axis
from lanes.placement import place
from lanes.plans import Plan
from lanes.training.module import Classifier
from lanes.training.parameter_groups import make_optimizer


def check_placed(trainer: Trainer, module: Classifier, data: LightningDataModule, images: int) -> CheckReport:
    """Start the trainer's processes and check on them; every process that is started comes here again.

    Lightning's own loop is left out: its ``ModelParallelStrategy`` knows no double precision.

    Args:
        trainer: whose strategy starts the processes and makes the mesh.
        module: the network, its placing, loss and optimizer. The rate is the optimizer's own, whatever the schedule.
        data: whose training images are read, and augmented.
        images: of each replica, at most; no more than a batch.
    """
    launcher = trainer.strategy.launcher
    if launcher is None:
        return _on_this_process(trainer, module, data, images)
    report: CheckReport = launcher.launch(_on_this_process, trainer, module, data, images, trainer=trainer)
    return report


def _on_this_process(trainer: Trainer, module: Classifier, data: LightningDataModule, images: int) -> CheckReport:
    trainer.strategy.connect(module)
    trainer.strategy.setup_environment()
    # What data modules ask of the trainer, to know that they should augment.
    data.trainer, trainer.state.fn, trainer.state.stage = trainer, TrainerFn.FITTING, RunningStage.TRAINING
    mesh = module.device_mesh
    assert mesh is not None
    data.prepare_data()
    data.setup("fit")
    batch, labels = _first_images(data, images, axis(mesh, DATA_AXIS).size, module.seed)

    def prepare(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        device = trainer.strategy.root_device
        prepared: tuple[Tensor, Tensor] = data.on_after_batch_transfer((images.to(device), labels.to(device)), 0)
        return prepared

    try:
        return check(
            module.make_net,
            batch,
            labels,
            mesh,
            optimizer=_optimizer_of(module, getattr(trainer, "gradient_clip_val", None), trainer),
            loss=_loss_of(module),
            prepare=prepare,
            placing=_placing_of(module),
            seed=module.seed,
        )
    finally:
        trainer.strategy.teardown()


def _first_images(data: LightningDataModule, wanted: int, replicas: int, seed: int) -> tuple[Tensor, Tensor]:
    """The first images of the loader, as many for each replica, alike on all processes."""
    torch.manual_seed(seed)
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for more, their_labels in data.train_dataloader():
        wanted = min(wanted, len(more))
        images.append(more[:wanted])
        labels.append(their_labels[:wanted])
        if len(images) == replicas:
            return torch.cat(images), torch.cat(labels)
    raise ValueError(
        f"the training data have {len(images)} batches, {replicas} replicas need one each; lower batch_size"
    )


def _placing_of(module: Classifier) -> Callable[[nn.Module, DeviceMesh], Plan]:
    def placing(net: nn.Module, mesh: DeviceMesh) -> Plan:
        plan = module.plan(mesh["lane"].size())
        place(net, plan, mesh, sync_batch_norm=module.sync_batch_norm)
        return plan

    return placing


def _loss_of(module: Classifier) -> Callable[[Tensor, Tensor], Tensor]:
    smoothing = module.label_smoothing
    return lambda outputs, targets: F.cross_entropy(outputs, targets, label_smoothing=smoothing)


def _optimizer_of(module: Classifier, clip: Any, trainer: Trainer) -> Callable[[nn.Module], Optimizer]:
    """Makes the configuration's optimizer, which clips as the trainer does."""

    def make(net: nn.Module) -> Optimizer:
        optimizer = make_optimizer(module.make_optimizer, net, module.parameter_groups)[0]
        if clip:
            by_value = "value" in str(trainer.gradient_clip_algorithm)
            limit: Callable[..., Any] = nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_

            def limit_gradients(*_: object) -> None:
                limit(list(net.parameters()), clip)

            optimizer.register_step_pre_hook(limit_gradients)
        return optimizer

    return make
