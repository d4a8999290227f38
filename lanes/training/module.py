"""The classifier: network, loss, metrics, optimizer and schedule, placed on the strategy's mesh."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lanes.mesh import DATA_AXIS, LANE_AXIS, axis, check_alike
from lanes.placement import place
from lanes.planning import plan
from lanes.plans import Plan
from lanes.training.finetuning import check_weights, load_weights
from lanes.training.parameter_groups import ParameterGroup, make_optimizer
from lanes.training.schedules import Schedule
from lanes.words import near

# Its own random numbers would give other masks, depending on how lanes are spread. And where it chooses memory formats
# itself, torch 2.13 on CPUs forgets that overlapping max pools add up their gradients in place: it reads the zeros from
# before, and layers in front of the pool get no gradient at all.
_INDUCTOR = {"fallback_random": True, "layout_optimization": False}
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
        parameter_groups: parameters with a learning rate, weight decay or schedule of their own.
        label_smoothing: share of a training target that is spread over all classes.
        init_from: a ``.safetensors`` file in the plain network's names and shapes, or a checkpoint folder (of it the
            averaged weights, if there are any), whose weights training starts from; a checkpoint that is resumed
            replaces them.
        init_skip: patterns of parameter names, e.g. ``fc8.*``, that keep their fresh initialisation.
        override: layer name -> way of placing it, where the planner's choice is not wanted.
        sync_batch_norm: batch-norm statistics over all replicas.
        channels_last: store images and weights with channels innermost: most convolutions are faster so on GPUs in half
            precision, and grouped and depthwise ones on CPUs.
        compile_backend: compile the placed network by this backend of ``torch.compile``, e.g. "inductor", "aot_eager".

    Shape:
        Training: images [N, C, H, W]; labels int64 [N], or shares of classes [N, classes].
        Evaluation: images [N, C, H, W], or views of them [N, V, C, H, W], over which probabilities are averaged;
        labels int64 [N].
    """

    net: nn.Module

    def __init__(  # noqa: PLR0913 (the keys of a configuration, each by itself)
        self,
        net: Callable[[], nn.Module],
        *,
        image_shape: tuple[int, int, int] = (3, 224, 224),
        optimizer: OptimizerCallable = _sgd,
        schedule: Schedule | None = None,
        parameter_groups: list[ParameterGroup] | None = None,
        label_smoothing: float = 0.0,
        init_from: str | Path | None = None,
        init_skip: list[str] | None = None,
        override: dict[str, str] | None = None,
        sync_batch_norm: bool = False,
        channels_last: bool = False,
        compile_backend: str | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must be from 0 to below 1, e.g. 0.1")
        if channels_last and len(image_shape) != 3:
            raise ValueError(f"channels_last=true is for images [C, H, W], not for {list(image_shape)}; leave it out")
        if init_skip and not init_from:
            raise ValueError(f"init_skip={init_skip} has no meaning without init_from")
        if compile_backend is not None:
            _check_backend(compile_backend)
        self.make_net, self.image_shape = net, tuple(image_shape)
        self.make_optimizer, self.schedule = optimizer, schedule or Schedule()
        self.parameter_groups, self.label_smoothing = parameter_groups or [], label_smoothing
        self.init_from, self.init_skip = init_from, init_skip or []
        self.override_ways, self.sync_batch_norm = override or {}, sync_batch_norm
        self.compile_backend = compile_backend
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        self.placed_by: Plan | None = None
        self.validated_at_step: int | None = None  # where training stood at the last validation
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

    def check(self) -> None:
        """Check what can be checked of the recipe without a weight, before processes start.

        Raises:
            FileNotFoundError: there is no file ``init_from``.
            ValueError: a parameter group matches nothing, the optimizer refuses a setting, or the file does not fit the
                network.
        """
        make_optimizer(self.make_optimizer, self.plain_net(), self.parameter_groups)
        self.check_init()

    def check_init(self) -> None:
        """Check that the weights of ``init_from``, if given, fit the network, and are whole.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: names the first tensor that does not fit, and the way out.
        """
        if self.init_from:
            check_weights(self.plain_net(), self.init_from, self.init_skip)

    def configure_model(self) -> None:
        """Build the plain network, place and compile it; a second call does nothing."""
        if self.placed_by is not None:
            return
        if self.device_mesh is None:
            raise RuntimeError("Classifier needs trainer.strategy lanes.training.LaneStrategy")
        self.placed_by = self.plan(axis(self.device_mesh, LANE_AXIS).size)
        torch.manual_seed(self.seed)
        net = self.make_net()
        if self.init_from:
            load_weights(net, self.init_from, self.init_skip)
        net.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.net = place(net, self.placed_by, self.device_mesh, sync_batch_norm=self.sync_batch_norm)
        if self.compile_backend:
            options = _INDUCTOR if self.compile_backend == "inductor" else None
            self.net.compile(backend=self.compile_backend, options=options)  # in place: names stay
        replicas = axis(self.device_mesh, DATA_AXIS).group
        classes = self.num_classes
        for stage in ("val", "test"):
            for k in (1, 5):
                top = MulticlassAccuracy(classes, top_k=min(k, classes), average="micro", process_group=replicas)
                self.add_module(f"{stage}_top{k}", top)
            self.add_module(f"{stage}_loss", MeanMetric(process_group=replicas))

    def configure_optimizers(self) -> Any:
        """The optimizer, and the schedules of its groups by steps."""
        optimizer, own = make_optimizer(self.make_optimizer, self.net, self.parameter_groups)
        total, epochs = int(self.trainer.estimated_stepping_batches), self.trainer.max_epochs or -1
        self._steps_per_epoch = total / epochs if epochs > 0 else None

        def by_step(schedule: Schedule) -> Callable[[int], float]:
            return lambda step: schedule(step + self._shift, total)

        schedule = LambdaLR(optimizer, [by_step(of_group or self.schedule) for of_group in own])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep how many steps make an epoch: another number of replicas makes it in another number of steps."""
        checkpoint["steps_per_epoch"], checkpoint["schedule_shift"] = self._steps_per_epoch, self._shift

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on in the schedule where the epochs are, not where the steps of the earlier layout were."""
        before, now = checkpoint.get("steps_per_epoch"), self._steps_per_epoch
        if before and now:
            step = checkpoint["global_step"]
            scheduled = step + checkpoint.get("schedule_shift", 0)  # it may have been resumed on another layout itself
            self._shift = round(scheduled / before * now) - step

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] -> logits [N, classes]."""
        logits: Tensor = self.net(images.contiguous(memory_format=self.memory_format))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy of one batch."""
        images, targets = batch
        if batch_idx == 0:
            assert self.device_mesh is not None
            check_alike(axis(self.device_mesh, LANE_AXIS), batch, "first batch of the epoch")
        loss = F.cross_entropy(self(images), targets, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count one batch."""
        self._evaluate("val", batch)

    def on_validation_epoch_end(self) -> None:
        """Note of which step the figures are."""
        self.validated_at_step = self.trainer.global_step

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count one batch."""
        self._evaluate("test", batch)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """The five most probable classes of each image.

        Returns:
            "classes" [N, 5] and "probabilities" [N, 5], most probable first; "labels" [N].
        """
        images, labels = batch
        probabilities = self._log_probabilities(images).exp()
        top = probabilities.topk(min(5, probabilities.shape[-1]))
        return {"classes": top.indices, "probabilities": top.values, "labels": labels}

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        log_probabilities = self._log_probabilities(images)
        loss: Any = self.get_submodule(f"{stage}_loss")
        loss.update(F.nll_loss(log_probabilities, labels), weight=len(labels))
        self.log(f"{stage}/loss", loss)
        for k in (1, 5):
            top: Any = self.get_submodule(f"{stage}_top{k}")
            top.update(log_probabilities, labels)
            self.log(f"{stage}/top{k}", top, prog_bar=k == 1)

    def _log_probabilities(self, images: Tensor) -> Tensor:
        """[N, C, H, W] or views [N, V, C, H, W] -> [N, classes]: the logarithm of the softmax, or of its mean."""
        if images.dim() == len(self.image_shape) + 1:
            return F.log_softmax(self(images).float(), -1)
        each = F.log_softmax(self(images.flatten(0, 1)).float(), -1).unflatten(0, images.shape[:2])
        return each.logsumexp(1) - math.log(each.shape[1])


def _check_backend(name: str) -> None:
    backends = torch.compiler.list_backends(exclude_tags=())
    if name not in backends:
        raise ValueError(
            f"compile_backend: there is no {name!r}{near(name, backends)} (there are {', '.join(backends)})"
        )
