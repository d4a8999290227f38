"""The classifier: network, loss, metrics, optimizer and schedule, placed on the strategy's mesh."""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lanes.mesh import DATA_AXIS, LANE_AXIS, axis, check_alike, seed_replica
from lanes.placement import place
from lanes.planning import Plan, plan
from lanes.training.schedules import Schedule

PLANNED_BATCH = 2  # images in the example from which the plan is read; the plan counts per image


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)


class Classifier(LightningModule):
    """Train a plain classification network in lanes.

    Args:
        net: makes the plain network; called on every process, under the same seed.
        image_shape: (channels, height, width) of an image as the network reads it.
        optimizer: makes the optimizer of the parameters; by default SGD, rate 0.01, momentum 0.9, weight decay 5e-4,
            the paper's.
        schedule: of the learning rate, by steps.
        override: layer name -> way of placing it, where the planner's choice is not wanted.
        sync_batch_norm: batch-norm statistics over all replicas.
    """

    net: nn.Module

    def __init__(
        self,
        net: Callable[[], nn.Module],
        *,
        image_shape: tuple[int, int, int] = (3, 224, 224),
        optimizer: OptimizerCallable = _sgd,
        schedule: Schedule | None = None,
        override: dict[str, str] | None = None,
        sync_batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.make_net, self.image_shape = net, tuple(image_shape)
        self.make_optimizer, self.schedule = optimizer, schedule or Schedule()
        self.override_ways, self.sync_batch_norm = override or {}, sync_batch_norm
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        self.placed_by: Plan | None = None
        self._steps_per_epoch: float | None = None
        self._shift = 0  # between the optimizer's steps and the schedule's, after a change of replicas

    def plain_net(self) -> nn.Module:
        """The plain network on the "meta" device: names and shapes, no numbers."""
        with torch.device("meta"):
            return self.make_net()

    def plan(self, lane_devices: int) -> Plan:
        """Plan the network for a number of lane devices, without making a weight.

        Raises:
            PlanError: it cannot be placed exactly.
        """
        net, example = self.plain_net(), torch.empty(PLANNED_BATCH, *self.image_shape, device="meta")
        mixed = "bf16" in str(getattr(self._trainer, "precision", ""))
        dtype = torch.bfloat16 if mixed else None
        return plan(net, example, lane_devices=lane_devices, override=self.override_ways, dtype=dtype)

    @property
    def num_classes(self) -> int:
        """Classes that the network tells apart."""
        return int(self.plain_net()(torch.empty(PLANNED_BATCH, *self.image_shape, device="meta")).shape[-1])

    def configure_model(self) -> None:
        """Build the plain network and place it; a second call does nothing."""
        if self.placed_by is not None:
            return
        if self.device_mesh is None:
            raise RuntimeError("Classifier needs trainer.strategy lanes.training.LaneStrategy")
        self.placed_by = self.plan(axis(self.device_mesh, LANE_AXIS).size)
        torch.manual_seed(self.seed)
        self.net = place(self.make_net(), self.placed_by, self.device_mesh, sync_batch_norm=self.sync_batch_norm)
        replicas = axis(self.device_mesh, DATA_AXIS).group
        classes = self.num_classes
        for stage in ("val", "test"):
            for k in (1, 5):
                top = MulticlassAccuracy(classes, top_k=min(k, classes), average="micro", process_group=replicas)
                self.add_module(f"{stage}_top{k}", top)
            self.add_module(f"{stage}_loss", MeanMetric(process_group=replicas))

    def configure_optimizers(self) -> Any:
        """The optimizer, and its schedule by steps."""
        optimizer = self.make_optimizer(self.net.parameters())
        total, epochs = int(self.trainer.estimated_stepping_batches), self.trainer.max_epochs or -1
        self._steps_per_epoch = total / epochs if epochs > 0 else None
        schedule = LambdaLR(optimizer, lambda step: self.schedule(step + self._shift, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep how many steps make an epoch: another number of replicas makes it in another number of steps."""
        checkpoint["steps_per_epoch"] = self._steps_per_epoch

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on in the schedule where the epochs are, not where the steps of the earlier layout were."""
        before, now = checkpoint.get("steps_per_epoch"), self._steps_per_epoch
        if before and now:
            step = checkpoint["global_step"]
            self._shift = round(step / before * now) - step

    def on_train_epoch_start(self) -> None:
        """Start the replica's random stream of this epoch: masks and augmentation do not depend on what came before."""
        assert self.device_mesh is not None
        seed_replica(self.device_mesh, self.seed, self.current_epoch)

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] -> logits [N, classes]."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy of one batch."""
        images, labels = batch
        if batch_idx == 0:
            assert self.device_mesh is not None
            check_alike(axis(self.device_mesh, LANE_AXIS), batch, "first batch of the epoch")
        loss = F.cross_entropy(self.net(images), labels)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count one batch."""
        self._evaluate("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count one batch."""
        self._evaluate("test", batch)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """The five most probable classes of each image.

        Returns:
            "classes" [N, 5] and "probabilities" [N, 5], most probable first; "labels" [N].
        """
        images, labels = batch
        probabilities = self.net(images).float().softmax(-1)
        top = probabilities.topk(min(5, probabilities.shape[-1]))
        return {"classes": top.indices, "probabilities": top.values, "labels": labels}

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        logits = self.net(images).float()
        loss: Any = self.get_submodule(f"{stage}_loss")
        loss.update(F.cross_entropy(logits, labels), weight=len(labels))
        self.log(f"{stage}/loss", loss)
        for k in (1, 5):
            top: Any = self.get_submodule(f"{stage}_top{k}")
            top.update(logits, labels)
            self.log(f"{stage}/top{k}", top, prog_bar=k == 1)
