"""Images on several processes: one cache, made once; the lane devices of a replica read and augment the same images."""

from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
import torch.distributed as dist
from kornia.augmentation import RandomCrop, RandomHorizontalFlip
from torch import Tensor

from lanes.data import pixels
from lanes.training import Images
from tests.images import write_parquet
from tests.ranks import Ranks

COUNT, VAL_COUNT = 60, 20


def first_batch(folder: Path, cache: str) -> tuple[Tensor, Tensor, int]:
    """What the network reads first on this process, and how many images this process decoded."""
    decoded, decode_row, tables = [], pixels.decode_row, datasets.config.HF_DATASETS_CACHE

    def counted(*arguments):
        decoded.append(1)
        return decode_row(*arguments)

    augment = [RandomCrop((16, 16), padding=2), RandomHorizontalFlip()]
    settings = {"cache": cache, "cache_dir": str(folder / "cache"), "num_workers": 0}
    data = Images(str(folder / "set"), 12, image_size=16, augment=augment, **settings)
    torch.manual_seed(7)
    pixels.decode_row, datasets.config.HF_DATASETS_CACHE = counted, folder / "tables"
    try:
        dist.barrier()  # all want the cache at once
        data.prepare_data()
        made = len(decoded)
        data.trainer = SimpleNamespace(training=True, num_devices=2)
        batch = next(iter(data.train_dataloader()))
    finally:
        pixels.decode_row, datasets.config.HF_DATASETS_CACHE = decode_row, tables
    return *data.on_after_batch_transfer(batch, 0), made


@pytest.mark.parametrize("cache", ["disk", "off"])
def test_one_cache_and_the_same_batches(ranks: Ranks, tmp_path: Path, cache: str) -> None:
    write_parquet(tmp_path / "set", count=COUNT, size=24, classes=3, val_count=VAL_COUNT)
    (images, labels, made), (others, other_labels, other_made) = ranks(first_batch, 2, tmp_path, cache)
    assert images.shape == (12, 3, 16, 16)
    assert torch.equal(images, others)
    assert torch.equal(labels, other_labels)
    assert made + other_made == (COUNT + VAL_COUNT if cache == "disk" else COUNT)  # "off": for the statistics, once
