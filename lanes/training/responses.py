"""Measures a network on every image that is predicted, and on gratings (``lanes responses``).

Kept out: the measures (analysis/network_measures.py), files (responses_files.py) and words (responses_words.py).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lanes.analysis.channel_measures import NotFiniteError
from lanes.analysis.gratings import Gratings
from lanes.analysis.lane_tests import lane_tests
from lanes.analysis.network_measures import Asked, NetworkMeasures
from lanes.training.health import NonFiniteError
from lanes.training.responses_files import Findings, write_findings
from lanes.training.responses_words import in_words

TESTED = ("colour_selectivity", "class_selectivity", "orientation_selectivity", "preferred_frequency")
COLOURS = (1, 3)  # channels of images that can be measured: grey, RGB


class ResponseMeasures(Callback):
    """Measures layers while a trainer predicts; its first process writes what was found.

    Args:
        layers: in the order in which they run.
        laned: those of them whose channels belong to lanes: compared lane by lane, and silenced.
        lanes: how many there are.
        folder: where to; files of an earlier call are removed.
        about: what was measured, for the files' headers: checkpoint, split.
    """

    def __init__(
        self, layers: Sequence[str], *, laned: Sequence[str], lanes: int, folder: Path, about: Mapping[str, str]
    ) -> None:
        self.layers, self.laned, self.lanes = tuple(layers), tuple(laned), lanes
        self.folder, self.about = Path(folder), dict(about)
        self.words = ""  # what was found, on the first process

    def check(self, image_shape: Sequence[int], data: Any) -> None:
        """Look at the images before they are read.

        Raises:
            ValueError: they are no pictures, the data do not tell how they are normalised, or the folder is a file.
        """
        if len(image_shape) != 3 or image_shape[0] not in COLOURS:
            raise ValueError(
                f"images {list(image_shape)} cannot be measured by colour and gratings: the network must read "
                "[3 or 1, H, W]"
            )
        # Of the class first: asked of the data, a property would read the images.
        known = all(hasattr(type(data), name) or hasattr(data, name) for name in ("mean", "std"))
        if image_shape[0] == 3 and not known:
            raise ValueError(
                f"{type(data).__name__} has no mean and std, by which images are turned grey; give it both (as "
                "lanes.training.Images has)"
            )
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"--out {self.folder} is a file; name a folder")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew, with the checkpoint's weights and its way to normalise images."""
        module: Any = pl_module
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        net: nn.Module = module.net
        self._batch_size = int(getattr(data, "batch_size", 32))
        asked = Asked(
            self.layers,
            num_classes=module.num_classes,
            lanes=self.lanes,
            silenced=self.laned if self.lanes > 1 else (),
            gratings=Gratings(tuple(module.image_shape[1:]), channels=module.image_shape[0]),
            normal=(data.mean, data.std) if module.image_shape[0] == 3 else None,
        )
        # Run as in evaluation: the module knows the memory format.
        self._measures = NetworkMeasures(net, asked, forward=module, plan=module.placed_by, mesh=module.device_mesh)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look at a batch."""
        with trainer.precision_plugin.forward_context():
            self._measures.see_images(*batch)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at gratings; gather, write and tell what was found.

        Raises:
            NonFiniteError: there is nothing to measure.
        """
        with trainer.precision_plugin.forward_context():
            self._measures.see_gratings(self._batch_size, device=pl_module.device)
        try:
            measured = self._measures.compute()
        except NotFiniteError as end:
            raise NonFiniteError(str(end)) from None
        if not trainer.is_global_zero:
            return
        values = {layer: {name: getattr(measured.channels[layer], name) for name in TESTED} for layer in self.laned}
        tests = lane_tests(values, self.lanes) if self.lanes > 1 else []
        names = tuple(getattr(trainer.datamodule, "class_names", ()))  # type: ignore[attr-defined]
        findings = Findings(measured, tests, self.laned, self.lanes, names)
        write_findings(findings, self.folder, self.about)
        self.words = in_words(findings)
