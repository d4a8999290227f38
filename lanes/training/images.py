"""Image data sets of one's own: from the Hugging Face hub, Parquet files, or folders of images."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn

from lanes.data.decoding import CHANNELS, Color, Form, original_sizes
from lanes.data.pixels import Cache, ImageSet, OnBadImage, PixelCache, default_cache_dir
from lanes.data.sources import VAL_SPLITS, Source, Split, hold_out, local_path
from lanes.data.statistics import Statistics
from lanes.training.image_data import ImageData, at_least, figures

SHOWN_CLASSES = 10


class Images(ImageData):
    """Classify the images of a data set.

    Args:
        source: an existing path (a folder of Parquet files named train-*, test-* ..., one Parquet file, or a folder of
            folders SPLIT/CLASS/IMAGE), or a name on the Hugging Face hub, e.g. ``uoft-cs/cifar10``.
        batch_size: images per replica per step.
        image_size: height and width in pixels as the network reads them.
        stored_size: to which images are decoded: the shorter side is scaled to it, then the centre is cut out. By
            default ``image_size``; larger, e.g. 256 for 224, where ``augment`` ends with a crop.
        color: "rgb", or "grey" for one channel.
        image_column: by default the only one of type ``Image``.
        label_column: by default the only one of type ``ClassLabel``, else "label" or the like.
        train_split: in the words of ``datasets``, e.g. ``train[:90%]``; by default "train".
        val_split: by default the first there is of "validation", "valid", "val", "dev", "test".
        test_split: by default "test" if it is labelled, else the same as ``val_split``.
        val_share: hold this share of every class of the training split out for validation, e.g. 0.1, drawn once and for
            all; for data without a split of their own for it.
        config_name: of a hub data set that has several configurations.
        mean: per channel in units of 0..1; by default measured on the training images.
        std: likewise.
        augment: modules on float images 0..1 ``[N, C, H, W]``, in order, in training; kornia's fit.
        mixing: mixes images and labels in training.
        views: of each image in evaluation: 1, the centre, or 10, the paper's.
        num_workers: loader processes; by default one per spare core, 8 at most; with a cache on disk 4 at most, or 0
            without a GPU.
        cache: "auto" keeps decoded images on disk where they fit, "disk" always, "off" decodes them for every batch.
        cache_dir: by default $LANES_CACHE, else "lanes" in the user's cache folder.
        cache_limit_gib: how large "auto" lets one split be.
        on_bad_image: "stop", or "skip" and count.
        num_train: use at most so many training images, evenly spaced: for trials.
        num_val: the same for validation and test.

    Raises:
        ValueError, FileNotFoundError: a setting is wrong; the source itself is opened when it is first needed.
    """

    def __init__(  # noqa: PLR0913  (the constructor is the configuration's schema)
        self,
        source: str,
        batch_size: int = 128,
        *,
        image_size: int,
        stored_size: int | None = None,
        color: Color = "rgb",
        image_column: str | None = None,
        label_column: str | None = None,
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        val_share: float | None = None,
        config_name: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        augment: Sequence[nn.Module] = (),
        mixing: nn.Module | None = None,
        views: Literal[1, 10] = 1,
        num_workers: int | None = None,
        cache: Cache = "auto",
        cache_dir: str | None = None,
        cache_limit_gib: float = 32.0,
        on_bad_image: OnBadImage = "stop",
        num_train: int | None = None,
        num_val: int | None = None,
    ) -> None:
        for name, value, kind in (
            ("color", color, Color),
            ("cache", cache, Cache),
            ("on_bad_image", on_bad_image, OnBadImage),
        ):
            if value not in get_args(kind):
                raise ValueError(f"{name}={value!r} is not known: use {' or '.join(map(repr, get_args(kind)))}")
        shape = (CHANNELS[color], image_size, image_size)
        super().__init__(
            batch_size, image_shape=shape, augment=augment, mixing=mixing, views=views, num_workers=num_workers
        )
        source = str(source)
        path = local_path(source)  # a path that does not exist should be said now
        self.form = Form(image_size if stored_size is None else stored_size, color)
        at_least(image_size, stored_size=self.form.size)
        if views > 1 and self.form.size == image_size:
            raise ValueError(
                f"views={views} are cut out of a larger image: set stored_size above image_size={image_size}, e.g. to "
                f"{image_size * 8 // 7}"
            )
        if val_share is not None and (val_split or not 0 < val_share < 1):
            wrong = f"val_split={val_split!r} is given as well" if val_split else "it must lie between 0 and 1"
            raise ValueError(f"val_share={val_share}: {wrong}")
        at_least(0, cache_limit_gib=cache_limit_gib)
        at_least(1, num_val=1 if num_val is None else num_val)
        at_least(batch_size, num_train=batch_size if num_train is None else num_train)
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != shape[0]:
                raise ValueError(f"{name} has {len(values)} numbers, images in {color} have {shape[0]} channels")
        if std is not None and min(std) <= 0:
            raise ValueError(f"std={list(std)} has a number that is not above 0: images are divided by it")
        self.source, self.given_mean, self.given_std = source, mean, std
        self._columns = {"image_column": image_column, "label_column": label_column, "config_name": config_name}
        self._val_share = val_share
        self._asked = {"train_split": train_split, "val_split": val_split, "test_split": test_split}
        self._limits = {"train_split": num_train, "val_split": num_val, "test_split": num_val}
        folder = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        if path is not None and folder.resolve().is_relative_to(path):
            raise ValueError(f"cache_dir {folder} lies in the source {source!r}: its files would be taken for data")
        self.cache = PixelCache(folder, cache, cache_limit_gib, on_bad_image, getattr(rank_zero_only, "rank", 0) == 0)

    @cached_property
    def _source(self) -> Source:
        return Source(self.source, **self._columns)

    @cached_property
    def _splits(self) -> dict[str, Split]:
        """The three splits by the settings that name them; val and test may be one object."""
        sizes, asked = self._source.sizes, self._asked
        train = self._labelled("train_split", asked["train_split"] or "train")
        if self._val_share is not None:
            train, val = hold_out(train, self._val_share)
            test = self._labelled("test_split", asked["test_split"]) if asked["test_split"] else val
            return {"train": train, "val": val, "test": test}
        val_name = asked["val_split"] or next((name for name in VAL_SPLITS if name in sizes), None)
        if val_name is None:
            raise ValueError(
                f"{self._source.name} has no split for validation (it has {', '.join(sizes)}): set val_share, e.g. to "
                "0.1, or val_split"
            )
        val = self._labelled("val_split", val_name)
        if asked["test_split"]:
            return {"train": train, "val": val, "test": self._labelled("test_split", asked["test_split"])}
        if "test" not in sizes or val_name == "test" or not sizes["test"]:
            return {"train": train, "val": val, "test": val}
        test = self._source.split("test", key="test_split", limit=self._limits["test_split"])
        return {"train": train, "val": val, "test": val if (test.labels < 0).any() else test}

    def _labelled(self, key: str, name: str) -> Split:
        split = self._source.split(name, key=key, limit=self._limits[key])
        if missing := int((split.labels < 0).sum()):
            raise ValueError(
                f"{key}: {missing:,} of {len(split):,} images of split {name!r} of {split.source} have no label; "
                f"use another split (it has {', '.join(self._source.sizes)})"
            )
        return split

    @cached_property
    def _sets(self) -> dict[str, ImageSet]:
        splits = self._splits
        sets = {name: self.cache.open(splits[name], self.form) for name in ("train", "val")}
        sets["test"] = sets["val"] if splits["test"] is splits["val"] else self.cache.open(splits["test"], self.form)
        if len(sets["train"]) < self.batch_size:
            raise ValueError(f"batch_size={self.batch_size} is more than the {len(sets['train'])} training images")
        return sets

    def prepare_data(self) -> None:
        """Open the source, fill the caches, try the augmentations; any number of processes may, one does the work.

        Raises:
            ValueError, FileNotFoundError: what is wrong with the source, an image or the augmentations, in one line.
        """
        _ = self._sets
        self._check_classes()
        if 0 in self.std:
            raise ValueError("all training images are of one colour: there is nothing to tell apart")
        self.check_augmentation(self.form.shape)

    def _check_classes(self) -> None:
        """Refuse classes of which nothing could be learned; a trial on few images may leave some out."""
        counts = torch.bincount(self.train_set.labels, minlength=self.num_classes)
        missing = [name for name, count in zip(self.class_names, counts, strict=True) if not count]
        if missing and self._limits["train_split"] is None:
            more = f" (nor of {len(missing) - 1} others)" if len(missing) > 1 else ""
            raise ValueError(
                f"no training image is of class {missing[0]!r}{more}: folders, and slices such as train[:90%] of a "
                "sorted set, may leave classes out; val_share holds out a share of every class"
            )

    def setup(self, stage: str | None = None) -> None:
        """Open what ``prepare_data`` made; once, whatever the stage."""
        _ = self._sets

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels."""
        return self._source.class_names

    @property
    def train_set(self) -> ImageSet:
        """The training images."""
        return self._sets["train"]

    @property
    def val_set(self) -> ImageSet:
        """The images on which training is measured."""
        return self._sets["val"]

    @property
    def test_set(self) -> ImageSet:
        """Those of the test split, if it is labelled; else the validation images."""
        return self._sets["test"]

    @cached_property
    def statistics(self) -> Statistics:
        """Of at most 10,000 evenly spaced training images as they are stored."""
        return self.cache.statistics(self.train_set)

    @property
    def mean(self) -> tuple[float, ...]:
        """As given, else as in a checkpoint that was loaded, else of the training pixels."""
        return tuple(self.given_mean) if self.given_mean is not None else super().mean

    @property
    def std(self) -> tuple[float, ...]:
        """As given, else as in a checkpoint that was loaded, else of the training pixels."""
        return tuple(self.given_std) if self.given_std is not None else super().std

    def data_card(self) -> str:
        """What the data are, in a few lines of plain text."""
        names, sets = self.class_names, self._sets
        more = f", ... {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
        lines = [
            f"Images: {len(names)} classes ({', '.join(names[:SHOWN_CLASSES])}{more})",
            f"  source: {self._source.name}",
            f"  train:  {self._counts('train')}",
            f"  val:    {self._counts('val')}{' (also test)' if sets['test'] is sets['val'] else ''}",
        ]
        if sets["test"] is not sets["val"]:
            lines.append(f"  test:   {self._counts('test')}")
        elif "test" not in self._splits["val"].name and "test" in self._source.sizes and not self._asked["test_split"]:
            lines.append("          (the split 'test' has no labels)")
        if self._splits["train"].shares(self._splits["val"]):
            lines.append("          (train and val share images: set train_split and val_split apart)")
        own = {name: images for name, images in sets.items() if name != "test" or images is not sets["val"]}
        skipped = {name: len(images.split) - len(images) for name, images in own.items()}
        if any(skipped.values()):
            lines.append(f"  bad:    skipped {', '.join(f'{count} of {name}' for name, count in skipped.items())}")
        how = "measured" if self.given_mean is None else "given"
        mixing = [type(self.mixing).__name__] if self.mixing is not None else []
        changes = [type(change).__name__ for change in self.augment] + mixing
        side = self.image_shape[1]
        return "\n".join(
            [
                *lines,
                f"  size:   {self._original_sizes()}; stored with {self.form.size} x {self.form.size} in "
                f"{self.form.color}, the network reads {side} x {side}",
                f"  colour: mean {figures(self.mean)}, std {figures(self.std)}, {how}",
                f"  change: {', '.join(changes) or 'none'} in training; {self.views} view(s) in evaluation",
                f"  cache:  {self._cached()}",
            ]
        )

    def _counts(self, name: str) -> str:
        images = self._sets[name]
        counts = torch.bincount(images.labels, minlength=self.num_classes)
        return f"{len(images):,} of {images.split.name!r}, {counts.min():,}..{counts.max():,} per class"

    def _original_sizes(self) -> str:
        sizes = np.array(original_sizes(self._splits["train"]))
        if not len(sizes):
            return "of unknown sizes"
        (left, top), (right, bottom) = sizes.min(0), sizes.max(0)
        shown = f"{left} x {top}" if (left, top) == (right, bottom) else f"{left}..{right} x {top}..{bottom}"
        return f"{shown} (of {len(sizes)} looked at)"

    def _cached(self) -> str:
        kept = {images.stored_in for images in self._sets.values() if images.stored_in is not None}
        if not kept:
            return "none; images are decoded for every batch"
        return f"{sum(file.stat().st_size for file in kept) / 2**20:,.0f} MiB in {self.cache.folder}"
