"""Writes what a layer makes of every image, whole whatever the layout, for use elsewhere (``lanes features``)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from safetensors.torch import save_file
from torch import Tensor, nn

from lanes.analysis.recording import whole_layer
from lanes.mesh import DATA_AXIS, LANE_AXIS, axis
from lanes.plans import Plan
from lanes.training.layer_choice import check_layer

PART_BYTES = 256 * 2**20


class FeatureWriter(BasePredictionWriter):
    """Write a layer's outputs for all images that are predicted, as the plain model would make them.

    Files ``features-LAYER-replicaR-PART.safetensors``, each of at most 256 MiB (or of one image): "features"
    [N, C, ...] ([N, 10, C, ...] with ten views) in float32; "labels" and "index" [N], the image's place in the data.
    Every replica writes those of its own images.

    Args:
        layer: any layer in the plan.
        folder: where to; files of an earlier run of this layer are removed.
        about: further words for the files' headers.
        part_bytes: how large a file may be.
    """

    def __init__(
        self, layer: str, folder: Path, *, about: dict[str, str] | None = None, part_bytes: int = PART_BYTES
    ) -> None:
        super().__init__("batch")
        self.layer, self.folder, self.part_bytes = layer, Path(folder), part_bytes
        self.about = {**(about or {}), "layer": layer}
        self._runs = 0  # of the layer since the last batch
        self._seen: list[Tensor] = []  # its outputs
        self._kept: list[dict[str, Tensor]] = []  # not yet written
        self._parts = 0

    @property
    def pattern(self) -> str:
        """The files' names, as a shell would find them."""
        return f"features-{self.layer}-replica*.safetensors"

    def check(self, plan: Plan) -> None:
        """Find the layer before anything is computed.

        Raises:
            ValueError: the network has no such layer; names those it has.
        """
        check_layer(self.layer, plan)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the layer, and begin anew."""
        module: Any = pl_module
        self.check(module.placed_by)
        lane, data = (axis(module.device_mesh, name) for name in (LANE_AXIS, DATA_AXIS))
        self._writes, self._replica = lane.index == 0, data.index

        def look(layer: nn.Module, args: object, output: Tensor) -> None:
            self._runs += 1
            whole = whole_layer(output, self.layer, module.placed_by, lane)
            if self._writes:  # a copy: the next layer may work in place
                self._seen.append(whole.detach().to("cpu", torch.float32, copy=True).contiguous())

        self._hook = module.net.get_submodule(self.layer).register_forward_hook(look)
        self._parts = 0
        if trainer.is_global_zero:
            for earlier in self.folder.glob(self.pattern):
                earlier.unlink()
            self.folder.mkdir(parents=True, exist_ok=True)
        trainer.strategy.barrier()

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keep one batch; write what fills a file."""
        seen, self._seen, runs, self._runs = self._seen, [], self._runs, 0
        if runs != 1:  # on all processes alike
            raise ValueError(f"{self.layer} runs {runs} times in one forward; which output is meant is not clear")
        if not self._writes:
            return
        labels, features = prediction["labels"].cpu(), seen[0]
        if len(features) != len(labels):  # several views of each image
            features = features.unflatten(0, (len(labels), -1))
        assert batch_indices is not None
        self._kept.append({"features": features, "labels": labels, "index": torch.tensor(list(batch_indices))})
        rows = max(1, self.part_bytes // (features[0].nbytes + labels[0].nbytes + 8))
        while sum(len(part["labels"]) for part in self._kept) >= rows:
            self._write(rows)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is left."""
        self._hook.remove()
        if self._kept:
            self._write(sum(len(part["labels"]) for part in self._kept))

    def _write(self, rows: int) -> None:
        """Write the first rows of what is kept, and keep the rest."""
        whole = {key: torch.cat([part[key] for part in self._kept]) for key in self._kept[0]}
        name = f"features-{self.layer}-replica{self._replica}-{self._parts:05d}.safetensors"
        partial = self.folder / f".{name}.partial"
        save_file({key: tensor[:rows].contiguous() for key, tensor in whole.items()}, partial, metadata=self.about)
        partial.rename(self.folder / name)
        self._parts += 1
        rest = {key: tensor[rows:].clone() for key, tensor in whole.items()}
        self._kept = [rest] if len(rest["labels"]) else []
