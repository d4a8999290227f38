"""What all data modules of images share: loaders of bytes, and what happens to a batch on the device.

Legend: N images, C channels, S height and width in pixels as the network reads them, H W those that are stored.
"""

import copy
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lanes.data import augment
from lanes.data.statistics import Statistics
from lanes.data.views import center_crop, ten_views

Augmentation = Callable[[Tensor], Tensor]


def at_least(least: float, **values: float) -> None:
    """Refuse numbers that are too small."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name}={value} is too small: use {least} or more")


def _as_loaded(batch: Any) -> Any:
    return batch  # __getitems__ has collated already


class ImageData(LightningDataModule):
    """Batches leave the loaders as (uint8 images ``[N, C, H, W]``, int64 labels ``[N]``).

    On the device they become float 0..1, are augmented and mixed (training) or cropped (evaluation), and normalised.
    All random numbers are drawn from torch's default generator, which is alike on all lane devices of a replica.

    Args:
        batch_size: images per replica per step (the lane devices of a replica all read the same images).
        image_shape: (C, S, S) as the network reads them.
        augment: called in order on float images 0..1, in training. One with a method ``measure(mean, covariance)`` is
            told the statistics of the training pixels once, before its first use.
        mixing: (images, labels, num_classes) -> (images, targets float ``[N, num_classes]``), in training.
        views: of each image in evaluation: 1, the centre crop, or the paper's 10.
        num_workers: loader processes; None: one per spare core, 8 at most; where images lie ready 4 at most, or 0 if
            there is no GPU that would wait for copies.
    """

    def __init__(
        self,
        batch_size: int,
        *,
        image_shape: tuple[int, int, int],
        augment: Sequence[Augmentation] = (),
        mixing: nn.Module | None = None,
        views: int = 1,
        num_workers: int | None = None,
    ) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size)
        at_least(8, image_size=image_shape[1])
        at_least(0, num_workers=num_workers or 0)
        if views not in (1, 10):
            raise ValueError(f"views={views} is not known: use 1 (the centre) or 10 (corners and centre, mirrored)")
        self.batch_size, self.num_workers, self.views = batch_size, num_workers, views
        self.image_shape: tuple[int, int, int] = image_shape
        self.augment, self.mixing = list(augment), mixing
        self._told = False  # whether the augmentations know the statistics
        self._of_checkpoint: dict[str, tuple[float, ...]] = {}  # mean and std with which its network was trained
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}  # mean and std [C, 1, 1] on a device

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels."""
        raise NotImplementedError

    @property
    def train_set(self) -> Dataset[tuple[Tensor, Tensor]]:
        """The training images; ``__getitems__(indices)`` gives a batch."""
        raise NotImplementedError

    @property
    def val_set(self) -> Dataset[tuple[Tensor, Tensor]]:
        """The images on which training is measured."""
        raise NotImplementedError

    @property
    def test_set(self) -> Dataset[tuple[Tensor, Tensor]]:
        """The images of the final measure, and of predictions; those of ``val_set`` where there are no others."""
        return self.val_set

    @property
    def statistics(self) -> Statistics:
        """Of the training pixels."""
        raise NotImplementedError

    @property
    def mean(self) -> tuple[float, ...]:
        """What is subtracted from each channel, in units of 0..1."""
        return self._of_checkpoint["mean"] if self._of_checkpoint else self.statistics.mean

    @property
    def std(self) -> tuple[float, ...]:
        """What each channel is divided by, in units of 0..1."""
        return self._of_checkpoint["std"] if self._of_checkpoint else self.statistics.std

    def data_card(self) -> str:
        """What the data are, in a few lines of plain text."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """How images are normalised, for checkpoints."""
        return {"mean": list(self.mean), "std": list(self.std)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Normalise as the checkpoint's network was trained: other images, measured again, would give other figures."""
        measured = self.mean, self.std
        self._of_checkpoint = {name: tuple(state_dict[name]) for name in ("mean", "std")}
        self._on = {}
        if not all(map(torch.allclose, map(torch.tensor, measured), map(torch.tensor, (self.mean, self.std)))):
            rank_zero_info(
                f"images are normalised as in the checkpoint, mean {figures(self.mean)}, std {figures(self.std)}; "
                f"measured here: mean {figures(measured[0])}, std {figures(measured[1])}"
            )

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Shuffled full batches; an ordinary loader, whose sampler a strategy can replace."""
        return self._loader(self.train_set, training=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Every image once, in order."""
        return self._loader(self.val_set, training=False)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Every image once, in order."""
        return self._loader(self.test_set, training=False)

    predict_dataloader = test_dataloader

    def _loader(self, images: Dataset[tuple[Tensor, Tensor]], *, training: bool) -> DataLoader[tuple[Tensor, Tensor]]:
        num_workers = self._num_workers(images)
        return DataLoader(
            images,
            batch_size=self.batch_size,
            shuffle=training,
            drop_last=training,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_as_loaded,
        )

    def _num_workers(self, images: Dataset[tuple[Tensor, Tensor]]) -> int:
        if self.num_workers is not None:
            return self.num_workers
        processes = self.trainer.num_devices if self.trainer is not None else 1
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        spare = max(1, cores // processes - 1)
        if getattr(images, "stored_in", True) is None:  # they have to be decoded
            return min(spare, 8)
        # A CPU that computes gains nothing from a process that copies; a GPU would wait for the copies.
        return min(spare, 4) if torch.cuda.is_available() else 0

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Make a batch what the network reads, on the device.

        Returns:
            training: images ``[N, C, S, S]``, targets int64 ``[N]``, or float ``[N, num_classes]`` if they are mixed.
            evaluation: images ``[N, C, S, S]``, or ``[N, 10, C, S, S]`` with ten views; labels int64 ``[N]``.
        """
        images, labels = batch
        mean, std = self._normal(images.device)
        training = self.trainer is not None and self.trainer.training
        if not training and self.views == 1:
            images = center_crop(images, self.image_shape[1])  # of bytes: nothing is made float to be cut off
        images = augment.to_unit(images)
        if training:
            self._tell_statistics()
            for change in self.augment:
                images = change(images)
            if self.mixing is not None:
                images, labels = self.mixing(images, labels, self.num_classes)
        elif self.views == 10:
            images = ten_views(images, self.image_shape[1])
        return augment.normalize(images, mean, std), labels

    def _normal(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and std on a device, ``[C, 1, 1]`` each.

        The augmentations stay where they are: moved to a GPU, kornia's would draw their random numbers there, and the
        images would depend on the kind of device.
        """
        if device not in self._on:
            mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (self.mean, self.std))
            self._on = {device: (mean, std)}
        return self._on[device]

    def _tell_statistics(self) -> None:
        if self._told:
            return
        for change in self.augment:
            tell = getattr(change, "measure", None)
            if tell is not None:
                tell(torch.tensor(self.statistics.mean), torch.tensor(self.statistics.covariance))
        self._told = True

    def check_augmentation(self, stored_shape: tuple[int, int, int]) -> None:
        """Try the augmentations on two images of zeros, and refuse what the network could not read.

        Raises:
            ValueError: names what the images become, and the way out.
        """
        self._tell_statistics()
        shape: tuple[int, ...] = stored_shape
        trace = []
        images, labels = torch.zeros(2, *stored_shape), torch.zeros(2, dtype=torch.int64)
        with torch.random.fork_rng(devices=[]):
            for change in copy.deepcopy(self.augment):
                images, name = change(images), getattr(change, "__name__", type(change).__name__)
                shape = tuple(images.shape[1:])
                trace.append(f"{name} to {_size(shape)}")
            if shape != self.image_shape:
                steps = f" ({', '.join(trace)})" if trace else ""
                side = self.image_shape[1]
                raise ValueError(
                    f"training images are stored with {_size(stored_shape)} and leave the augmentations with "
                    f"{_size(shape)}{steps}, the network reads {_size(self.image_shape)}: add e.g. "
                    f"kornia.augmentation.RandomCrop with size [{side}, {side}] to augment, or change stored_size"
                )
            if self.mixing is not None:
                targets = copy.deepcopy(self.mixing)(images, labels, self.num_classes)[1]
                if targets.shape != (2, self.num_classes):
                    raise ValueError(
                        f"mixing gives targets of shape {tuple(targets.shape)} for 2 images; expected [2, "
                        f"{self.num_classes}]"
                    )


def figures(values: Sequence[float]) -> str:
    """Numbers per channel, in words."""
    return " ".join(f"{value:.3f}" for value in values)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
