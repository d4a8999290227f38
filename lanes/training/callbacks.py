"""What people watch: data and plan before step 1, filters of every lane, predictions on disk."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lanes.analysis.filters import filter_grids
from lanes.layers import local
from lanes.mesh import LANE_AXIS, axis
from lanes.training.health import Health
from lanes.training.rates import MIB, Rates
from lanes.training.wandb_logger import LanesLogger

__all__ = ["FilterPictures", "Health", "PlanReport", "PredictionWriter", "Rates"]


class PlanReport(Callback):
    """Show the data, the mesh, the plan and the sizes before anything is computed."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print them on the first process."""
        mesh: Any = pl_module.device_mesh
        replicas, lane_devices = mesh.shape
        parts = [(p, local(p)) for p in pl_module.parameters()]
        whole = sum(p.numel() * p.element_size() for p, _ in parts)
        own = sum(part.numel() * part.element_size() for _, part in parts if part is not None)
        card = getattr(getattr(trainer, "datamodule", None), "data_card", None)
        if card is not None:
            rank_zero_info(card())
        rank_zero_info(
            f"mesh: {replicas} replica{'s' if replicas > 1 else ''} x {lane_devices} lane device"
            f"{'s' if lane_devices > 1 else ''} on {mesh.device_type}\n{pl_module.placed_by}\n"
            f"weights: {whole / MIB:.1f} MiB in all, {own / MIB:.1f} MiB on each device"
        )


class FilterPictures(Callback):
    """Each epoch, one picture per lane of the filters of a first layer, all lanes on one scale.

    Args:
        layer: the layer's name in the network; it must read an image of 1 or 3 channels.
        every_n_epochs: how often.
    """

    def __init__(self, layer: str = "conv1", every_n_epochs: int = 1) -> None:
        self.layer, self.every_n_epochs = layer, every_n_epochs

    def check(self, net: nn.Module) -> None:
        """Find the layer before training, not after an epoch.

        Raises:
            ValueError: the network has no such layer; names those it has.
        """
        self._layer_of(net)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Picture what training starts from."""
        if trainer.global_step == 0:
            self._picture(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Picture what the epoch made of it."""
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._picture(trainer, pl_module)

    def _layer_of(self, net: nn.Module) -> nn.Module:
        layers = [name for name, module in net.named_modules() if isinstance(getattr(module, "weight", None), Tensor)]
        if self.layer not in layers:
            raise ValueError(f"FilterPictures: the network has no layer {self.layer!r}; it has {', '.join(layers)}")
        return net.get_submodule(self.layer)

    def _picture(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weight: Any = self._layer_of(pl_module.net).weight  # type: ignore[arg-type]
        weight = weight.full_tensor() if isinstance(weight, DTensor) else weight  # all processes take part
        if not trainer.is_global_zero:
            return
        lanes = getattr(pl_module.net, "lanes", axis(pl_module.device_mesh, LANE_AXIS).size)  # type: ignore[arg-type]
        folder = Path(trainer.default_root_dir) / "filters"
        folder.mkdir(parents=True, exist_ok=True)
        for lane, picture in enumerate(filter_grids(weight.detach().float().cpu(), lanes, name=self.layer)):
            picture.save(folder / f"filters-{self.layer}-lane{lane}-step{trainer.global_step:06d}.png")
            for logger in trainer.loggers:
                if isinstance(logger, LanesLogger):
                    caption = f"{self.layer}, lane {lane}, epoch {trainer.current_epoch}"
                    logger.log_picture(f"filters/lane{lane}/{self.layer}", picture, trainer.global_step, caption)


class PredictionWriter(BasePredictionWriter):
    """Write predictions to predictions-<replica>.csv in the run's folder: index, label, five classes, probabilities."""

    def __init__(self) -> None:
        super().__init__("batch")

    def path(self, trainer: Trainer) -> Path:
        """The file of this process's replica."""
        replica: Any = trainer.strategy
        return Path(trainer.default_root_dir) / f"predictions-{replica.data_axis.index}.csv"

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew: files of an earlier prediction, on more replicas perhaps, would be taken for this one's."""
        if trainer.is_global_zero:
            for earlier in self.path(trainer).parent.glob("predictions-*.csv"):
                earlier.unlink()
        trainer.strategy.barrier()
        if self._writes(pl_module):
            self.path(trainer).parent.mkdir(parents=True, exist_ok=True)
            self.path(trainer).write_text("index,label,classes,probabilities\n")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append one batch; the first lane device of each replica writes."""
        if not self._writes(pl_module):
            return
        rows = zip(
            batch_indices,
            prediction["labels"].tolist(),
            prediction["classes"],
            prediction["probabilities"],
            strict=True,
        )
        with self.path(trainer).open("a", newline="") as file:
            writer = csv.writer(file)
            for index, label, classes, probabilities in rows:
                shown = " ".join(f"{p:.4f}" for p in probabilities.tolist())
                writer.writerow([index, label, " ".join(map(str, classes.tolist())), shown])

    @staticmethod
    def _writes(pl_module: LightningModule) -> bool:
        return axis(pl_module.device_mesh, LANE_AXIS).index == 0  # type: ignore[arg-type]
