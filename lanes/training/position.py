"""Going on inside an epoch: loaders and loops that begin where a training stopped, also with other replicas.

What Lightning's loops do about it is mended here; all of it is tested, hook by hook, in test_resuming.py.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops.evaluation_loop import RestartStage
from torch.utils.data import DataLoader, Sampler


class _Begun(Sampler[Any]):
    """Leaves out what was read before, the first time; put in front of a sampler's own class."""

    skip: int

    def __iter__(self) -> Iterator[Any]:
        skip, self.skip = self.skip, 0
        return islice(super().__iter__(), skip, None)  # of the class behind


def begin_at(loader: DataLoader[Any], batches: int) -> bool:
    """Have a loader's next iterator begin after a number of batches, which are not read; its length stays.

    Returns:
        False if the loader has no sampler (an iterable data set), so that only its owner can do that.
    """
    sampler: Any = loader.batch_sampler if loader.batch_size is None else loader.sampler
    if sampler is None or not isinstance(sampler, Sampler) or type(sampler).__name__ == "_InfiniteConstantSampler":
        return False
    kind = type(sampler)
    if not issubclass(kind, _Begun):  # a loader's samplers cannot be replaced, and each may be of any kind
        sampler.__class__ = type(kind.__name__, (_Begun, kind), {})
    begun: Any = sampler
    begun.skip = batches * (loader.batch_size or 1)
    return True


def rescaled(loops: dict[str, Any], before: int, now: int) -> None:
    """Where in its epoch a training stands, in batches of another number of replicas; changes Lightning's state.

    As many images were read; batches of all replicas together are larger or smaller.
    """
    current = loops["fit_loop"]["epoch_loop.batch_progress"]["current"]
    for word, count in current.items():
        current[word] = count * before // now


def validation_follows(trainer: Trainer) -> bool:
    """Whether a checkpoint is being written at the end of a batch after which there is a validation."""
    loop: Any = trainer.fit_loop
    progress = loop.epoch_loop.batch_progress.current
    inside = trainer.training and progress.completed < progress.processed  # Lightning counts it after its callbacks
    return inside and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def to_validation(loops: dict[str, Any]) -> None:
    """Let a training go on with the validation that followed, which Lightning would leave out; changes its state."""
    for counts in ("total", "current"):
        progress = loops["fit_loop"]["epoch_loop.batch_progress"][counts]
        progress["completed"] = progress["processed"]


def mend_restart(fit_loop: Any, *, validate: bool) -> None:
    """Mend what Lightning's loops take a restart for, once they have; before the first epoch begins.

    Args:
        fit_loop: Lightning's.
        validate: begin with a validation, all of it.
    """
    if validate:
        val_loop = fit_loop.epoch_loop.val_loop
        val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
        val_loop.restarting = False  # not in its middle
    epochs = fit_loop.epoch_progress.current
    if fit_loop.restarted_mid_epoch and epochs.started == epochs.processed:
        # It has counted the epoch's end just now, and would neither count nor announce the beginning of the next.
        fit_loop.reset_restart_stage()
