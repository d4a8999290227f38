"""Looking at the network while training, through a few fixed validation images: when, at which images, and where to.

A look sees the network as validation does: it comes at the first batch of a validation, when averaged weights and
statistics are in place. It disturbs nothing: its images are drawn by a generator of its own, read past the loaders,
and global generators are put back.

Kept out: what is looked for (layer_squares.py, sample_predictions.py), and first layers, which need no images
(first_layer.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from lanes.analysis.recording import evaluating
from lanes.mesh import DATA_AXIS, axis
from lanes.plans import Plan
from lanes.training.image_data import ImageData
from lanes.training.module import Classifier
from lanes.training.wandb_logger import LanesLogger

Batch = tuple[Tensor, Tensor]


class ValidationLook(Callback):
    """Looks before training and at the first validation of every n-th epoch; all processes take part.

    Without validation (no validation data, ``limit_val_batches=0``) it says so once and does nothing.

    Args:
        images: how many, at most as many as there are; which is drawn once and for all, whatever the seed.
        every_n_epochs: how often.

    Raises:
        ValueError: one of them is no whole number of at least 1.
    """

    def __init__(self, images: int, every_n_epochs: int) -> None:
        for name, value in (("images", images), ("every_n_epochs", every_n_epochs)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{type(self).__name__}: {name}={value!r} must be a whole number of at least 1")
        self.images, self.every_n_epochs = images, every_n_epochs
        self._looked_in: int | None = None  # the epoch of the last look
        self._stored: Batch | None = None

    def prepare(self, module: Classifier, plan: Plan, *, images: int, replicas: int) -> None:
        """Find what is to be looked at, from names and shapes alone.

        Args:
            module: of the network.
            plan: of the network.
            images: that will be looked at, by all replicas together.
            replicas: how many there are.

        Raises:
            ValueError: names what cannot be looked at, and the way out.
        """
        raise NotImplementedError

    def places(self, drawn: list[int], replica: int, replicas: int) -> list[int]:
        """Those of the drawn images that a replica reads."""
        raise NotImplementedError

    def look(self, trainer: Trainer, module: Classifier) -> None:
        """Called on all processes, in evaluation mode and without gradients; `stored` has this replica's images."""
        raise NotImplementedError

    def check(self, module: Classifier, data: LightningDataModule, *, lane_devices: int, replicas: int) -> None:
        """Find mistakes before processes start. How many images foreign data have is known when training starts.

        Raises:
            ValueError: as :meth:`prepare`.
        """
        there_are = len(data.val_set) if isinstance(data, ImageData) else self.images  # type: ignore[arg-type]
        self.prepare(module, module.plan(lane_devices), images=min(self.images, there_are), replicas=replicas)

    @property
    def stored(self) -> Batch:
        """This replica's images and labels as the data set holds them."""
        assert self._stored is not None
        return self._stored

    def read(self, trainer: Trainer, stored: Batch) -> Batch:
        """Images and labels as the network reads them in evaluation, on its device."""
        stage = trainer.state.stage
        trainer.validating = True  # data modules ask for it, to know how to prepare images
        try:
            batch: Any = trainer.precision_plugin.convert_input(stored)
            batch = trainer.lightning_module._on_before_batch_transfer(batch)  # as Lightning's own loop does
            images, labels = trainer.strategy.batch_to_device(batch)
        finally:
            trainer.state.stage = stage
        return images, labels

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._looked_in = self._stored = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what training starts from."""
        if not trainer.enable_validation:
            rank_zero_info(f"{type(self).__name__}: there is no validation, so there are no images to look at")
        elif trainer.global_step == 0 and trainer.val_dataloaders is not None:
            self._look(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Look at the network that is being validated."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        due = (trainer.current_epoch + 1) % self.every_n_epochs == 0 and self._looked_in != trainer.current_epoch
        if fitting and due and batch_idx == 0:
            self._looked_in = trainer.current_epoch
            self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        module: Any = trainer.lightning_module
        with isolate_rng(), torch.no_grad(), evaluating(module.net), _uncompiled(module):
            if self._stored is None:
                self._stored = self._drawn(trainer, module)
            with trainer.precision_plugin.val_step_context():
                self.look(trainer, module)

    def _drawn(self, trainer: Trainer, module: Classifier) -> Batch:
        loader: Any = trainer.val_dataloaders
        loader = loader[0] if isinstance(loader, list | tuple) and loader else loader
        if not isinstance(loader, DataLoader) or not hasattr(loader.dataset, "__len__"):
            raise ValueError(
                f"{type(self).__name__}: validation reads {type(loader).__name__}, of which no images can be chosen; "
                "give a DataLoader of a data set with a length, or leave this callback out"
            )
        assert module.device_mesh is not None
        assert module.placed_by is not None
        replica = axis(module.device_mesh, DATA_AXIS)
        labels = loader.dataset.labels if isinstance(trainer.datamodule, ImageData) else None  # type: ignore[attr-defined]
        drawn = drawn_images(len(loader.dataset), self.images, labels)
        self.prepare(module, module.placed_by, images=len(drawn), replicas=replica.size)
        return _taken(loader, self.places(drawn, replica.index, replica.size))


def show(trainer: Trainer, key: str, picture: Image.Image, name: str, caption: str) -> None:
    """Write a picture into the run's folder as ``{name}-step{step}.png``, and log it, if Weights & Biases is in use."""
    path = Path(trainer.default_root_dir) / f"{name}-step{trainer.global_step:06d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    for logger in trainer.loggers:
        if isinstance(logger, LanesLogger):
            logger.log_picture(key, picture, trainer.global_step, caption)


def drawn_images(there_are: int, wanted: int, labels: Tensor | None = None) -> list[int]:
    """Which of so many images are looked at, ascending; all, if no more are there.

    They are drawn, by a fixed seed: the first would be of few classes where images lie class by class, and so would be
    every so many-th where classes take turns.

    Args:
        there_are: images of the data set.
        wanted: how many of them.
        labels: [there_are], their classes, if these are known; then of each class as many, to within one.
    """
    order = torch.randperm(there_are, generator=torch.Generator().manual_seed(0))
    if labels is not None:
        by_class = labels[order].argsort(stable=True)
        sizes = labels.unique(return_counts=True)[1]
        turns = torch.empty(there_are, dtype=torch.int64)
        turns[by_class] = torch.cat([torch.arange(size) for size in sizes.tolist()])
        order = order[turns.argsort(stable=True)]
    return sorted(order[:wanted].tolist())


def _taken(loader: DataLoader[Any], places: Sequence[int]) -> Batch:
    """A batch of the loader's data set, without an iterator, which would draw from the global generator."""
    dataset: Any = loader.dataset
    rows = dataset.__getitems__(places) if hasattr(dataset, "__getitems__") else [dataset[i] for i in places]
    images, labels = loader.collate_fn(rows)
    return images, labels


@contextmanager
def _uncompiled(module: Classifier) -> Iterator[None]:
    """A compiled network would be compiled anew for the looks' batches, and not run the hooks that look."""
    with torch.compiler.set_stance("force_eager") if module.compile_backend else nullcontext():
        yield
