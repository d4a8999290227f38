"""What people watch: data and plan before step 1, predictions on disk; filters, health, rates from their own files."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info

from lanes.layers import local
from lanes.mesh import LANE_AXIS, axis
from lanes.training.first_layer import FilterPictures, Specialisation
from lanes.training.health import Health
from lanes.training.rates import MIB, Rates

__all__ = ["FilterPictures", "Health", "PlanReport", "PredictionWriter", "Rates", "Specialisation"]


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
