"""Before a training: can its folders be written to, and is there room for its checkpoints?

Kept out: what becomes of a training whose disk fills up later (lanes.checkpoint keeps the last good one and says so).
"""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lanes.training.module import Classifier
from lanes.training.parameter_groups import make_optimizer
from lanes.training.strategy import TensorKeeper

KEPT = 3  # the best, the last, and the one that is being written before it takes the place of either
MIB = 2**20


def check_room(trainer: Trainer, model: Classifier, checkpoints: Path) -> None:
    """Check that a run's folders can be made and written to, and that its checkpoints will fit; leaves nothing there.

    Warns if the first checkpoint fits, but not those that are kept beside it.

    Args:
        trainer: of the run, whose folder need not exist yet.
        model: what is trained.
        checkpoints: the folder of its checkpoints, likewise.

    Raises:
        OSError: a folder cannot be written to, or not even one checkpoint fits.
    """
    for folder, key in (
        (Path(trainer.default_root_dir), "--trainer.default_root_dir"),
        (checkpoints, "--checkpoint.dirpath"),
    ):
        try:
            with tempfile.TemporaryFile(dir=_existing(folder)):  # asked of the disk: os.access knows modes, not shares
                pass
        except OSError as mistake:
            raise OSError(
                f"nothing can be written to {folder}: {mistake.strerror}; give another folder by {key}, or change that"
            ) from mistake
    averages = sum(isinstance(callback, TensorKeeper) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    size = checkpoint_bytes(model, averages=averages)
    free = shutil.disk_usage(_existing(checkpoints)).free
    told = f"a checkpoint takes about {size / MIB:.1f} MiB, and {checkpoints} has {free / MIB:.1f} MiB free"
    if free < size:
        raise OSError(f"no room for checkpoints: {told}; make some, or give another folder by --checkpoint.dirpath")
    goes_on = checkpoints.is_dir() and any(checkpoints.iterdir())
    if not goes_on and free < KEPT * size:
        rank_zero_warn(f"there is little room for checkpoints: {told}, not enough for the best, the last and the next")


def checkpoint_bytes(model: Classifier, *, averages: int = 0) -> int:
    """About how large a checkpoint will be: weights, buffers, what the optimizer keeps, and averages of the weights."""
    net = model.plain_net()
    optimizer, _ = make_optimizer(model.make_optimizer, net, model.parameter_groups)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    with suppress(RuntimeError, TypeError):  # it needs numbers, or a closure: then its tensors are not counted
        optimizer.step()  # on "meta": it makes its tensors, and computes nothing
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    weights = sum(tensor.nbytes for tensor in net.state_dict().values())
    return (1 + averages) * weights + sum(tensor.nbytes for tensor in kept)


def _existing(folder: Path) -> Path:
    """A folder, or the nearest above it that is there."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())
