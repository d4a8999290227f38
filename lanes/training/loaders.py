"""Loaders as replicas need them: which samples each of them reads, with which random stream, and from where on.

Kept out: how a loader is made to begin in its middle (position.py).
"""

import warnings
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, DistributedSampler

from lanes.training.position import begin_at


def fit_to_replicas(loader: DataLoader[Any], trainer: Trainer, *, seed: int) -> None:
    """Let training drop what does not divide over the replicas, and evaluation see every sample once.

    Args:
        loader: changed; Lightning has given it its distributed sampler.
        trainer: which tells whether it trains, and where training stands.
        seed: the replica's.
    """
    if loader.generator is None:
        # An iterator draws its workers' seed as it begins, which a resumed epoch does before the replica's stream is
        # started, and others after it: masks and augmentation would not be those of the undisturbed training.
        loader.generator = torch.Generator().manual_seed(seed)
    if isinstance(loader.sampler, DistributedSampler):
        _cover(loader.sampler, training=trainer.training)
    if trainer.training:
        _go_on(loader, trainer.fit_loop)


def _cover(sampler: DistributedSampler[Any], *, training: bool) -> None:
    """Set how a distributed sampler treats a number of samples that replicas do not divide.

    By default it repeats samples, which would count them twice in evaluation.
    """
    total = len(sampler.dataset)  # type: ignore[arg-type]
    sampler.drop_last = training
    if training:
        sampler.num_samples = total // sampler.num_replicas
        sampler.total_size = sampler.num_samples * sampler.num_replicas
    else:
        sampler.num_samples = len(range(sampler.rank, total, sampler.num_replicas))
        sampler.total_size = total


def _go_on(loader: DataLoader[Any], fit_loop: Any) -> None:
    """Let a loader begin where training stands. Its workers read ahead before the trainer tells the epoch."""
    epoch = fit_loop.epoch_progress.current
    done = fit_loop.epoch_loop.batch_progress.current.ready
    inside = fit_loop.restarting and epoch.started > epoch.processed  # the epoch's end has not come to pass
    finished = inside and done >= len(loader)
    if isinstance(loader.sampler, DistributedSampler):
        loader.sampler.set_epoch(epoch.processed + finished)
    if inside and 0 < done < len(loader) and begin_at(loader, done):
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")  # it is
