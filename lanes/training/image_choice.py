"""Which images a verb looks at: all of a split, in order, or so many of them.

Kept out: making them what the network reads (image_data.py).
"""

from typing import Any

import torch
from torch.utils.data import DataLoader, Subset


def in_order(loader: DataLoader[Any], *, images: int | None = None) -> DataLoader[Any]:
    """A loader of the same images as another, also a training's: every image once, in order.

    Args:
        loader: the other.
        images: only so many of them. They are drawn, once and for all: the first would be of few classes where images
            lie class by class, every so many-th where classes take turns.
    """
    dataset = loader.dataset
    count = len(dataset)  # type: ignore[arg-type]
    if images is not None and images < count:
        drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:images]
        dataset = Subset(dataset, drawn.sort().values.tolist())
    return DataLoader(
        dataset,
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
    )


def check_images(images: int | None, *, replicas: int) -> None:
    """Refuse a number of images that leaves a replica without any.

    Raises:
        ValueError: names the number, and the least.
    """
    if images is not None and images < replicas:
        several = f": each of {replicas} replicas reads its own" if replicas > 1 else ""
        raise ValueError(f"--images {images} is too few: give at least {replicas}{several}")
