"""What is done when the loss or a gradient is not finite: stop, leave the step out, or go back to a checkpoint.

Everything here is done by all processes together. Kept out: finding it, and agreeing on it (health.py).
"""

import logging
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lanes.checkpoint import read_manifest
from lanes.faults.last import LastCheckpoint
from lanes.layers import local
from lanes.words import near

log = logging.getLogger(__name__)
Policy = Literal["stop", "skip", "roll_back"]


class NonFiniteError(RuntimeError):
    """The loss or a gradient is not finite; training makes no sense from here on."""


class Remedy:
    """What is done about a step that cannot be made.

    Args:
        policy: "stop", "skip" or "roll_back".
        max_in_a_row: so many steps one after another may be skipped.
        max_roll_backs: so often training may go back.

    Attributes:
        counts: what was done so far, by the name under which it is logged; empty if the policy is to stop.

    Raises:
        ValueError: there is no such policy, or a number is not possible.
    """

    def __init__(self, policy: Policy, *, max_in_a_row: int, max_roll_backs: int) -> None:
        if policy not in get_args(Policy):
            raise ValueError(
                f"Health: there is no on_non_finite={policy!r}{near(str(policy), get_args(Policy))} (there are "
                f"{', '.join(get_args(Policy))})"
            )
        for name, value in (("max_in_a_row", max_in_a_row), ("max_roll_backs", max_roll_backs)):
            if value < 1:
                raise ValueError(f"Health: {name}={value} must be at least 1; to stop at once: on_non_finite: stop")
        self.policy = policy
        self._max_in_a_row, self._max_roll_backs = max_in_a_row, max_roll_backs
        self.counts = {"skip": {"skipped_steps": 0}, "roll_back": {"roll_backs": 0}}.get(policy, {})
        self.in_a_row = 0
        self._buffers: dict[str, Tensor] = {}

    def keep_buffers(self, pl_module: LightningModule) -> None:
        """Before a step: a bad one spoils batch norm's running statistics on its way forward."""
        if self.policy != "stop":
            self._buffers = {name: part.clone() for name, part in _own_buffers(pl_module).items()}

    def restore_buffers(self, pl_module: LightningModule) -> None:
        """As they were before the step."""
        for name, part in _own_buffers(pl_module).items():
            part.copy_(self._buffers[name])

    def apply(self, trainer: Trainer, pl_module: LightningModule, step: int, what: str) -> None:
        """Do it; the optimizer, which comes next, finds no gradients and so leaves everything as it is.

        Args:
            trainer: whose step this is.
            pl_module: whose network.
            step: the first that was bad.
            what: is not finite, and where.

        Raises:
            NonFiniteError: by the policy, or since it came too often, or since there is no checkpoint to go back to.
        """
        if self.policy == "stop":
            raise _stopped(trainer, step, what)
        for parameter in pl_module.parameters():
            parameter.grad = None
        if self.policy == "skip":
            self._skip(trainer, pl_module, step, what)
        else:
            self._roll_back(trainer, step, what)

    def _skip(self, trainer: Trainer, pl_module: LightningModule, step: int, what: str) -> None:
        if self.in_a_row == self._max_in_a_row:
            so_often = f"after {self.in_a_row} skipped steps one after another (max_in_a_row)"
            raise _stopped(trainer, step, f"{what}, {so_often}")
        self.in_a_row += 1
        self.counts["skipped_steps"] += 1
        self.restore_buffers(pl_module)
        if trainer.is_global_zero:
            log.warning("step %d: %s; the step is skipped (%d so far)", step, what, self.counts["skipped_steps"])

    def _roll_back(self, trainer: Trainer, step: int, what: str) -> None:
        if self.counts["roll_backs"] == self._max_roll_backs:
            so_often = f"after going back {self._max_roll_backs} times (max_roll_backs)"
            raise _stopped(trainer, step, f"{what}, {so_often}")
        path, from_step = _checkpoint(trainer, step, what)
        self.counts["roll_backs"] += 1
        strategy: Any = trainer.strategy
        strategy.read_tensors(path)
        if trainer.is_global_zero:
            log.warning(
                "step %d: %s; training goes back to the weights of step %d (%s) and on with the batches that follow "
                "(time %d of at most %d)",
                *(step, what, from_step, path, self.counts["roll_backs"], self._max_roll_backs),
            )


def _checkpoint(trainer: Trainer, step: int, what: str) -> tuple[Path, int]:
    """The newest whole one that this training has written, and of which step it is."""
    strategy: Any = trainer.strategy
    found: list[tuple[int, Path]] = []
    wrong: list[str] = []
    keepers = trainer.checkpoint_callbacks
    folders = {Path(keeper.dirpath) for keeper in keepers if isinstance(keeper, ModelCheckpoint) and keeper.dirpath}
    for folder in sorted(folders | {keeper.path.parent for keeper in keepers if isinstance(keeper, LastCheckpoint)}):
        path, problems = strategy.newest_whole(folder)
        wrong += problems
        if path is not None:
            found.append((read_manifest(path).get("step") or 0, path))
    from_step, path = max(found, default=(step, None))
    if path is None or from_step >= step:  # of another training in the same folder
        none = "; ".join(["there is no checkpoint of this training to go back to", *wrong])
        raise _stopped(trainer, step, f"{what}, and {none}")
    return path, from_step


def _stopped(trainer: Trainer, step: int, what: str) -> NonFiniteError:
    rate, clip = trainer.optimizers[0].param_groups[0]["lr"], trainer.gradient_clip_val
    return NonFiniteError(
        f"training stopped at step {step}: {what}; lower the learning rate (now {rate:.3g}) or clip "
        f"gradients{' at less' if clip else ''} (trainer.gradient_clip_val, now {clip})"
    )


@torch.no_grad()
def _own_buffers(pl_module: LightningModule) -> dict[str, Tensor]:
    """This process's part of the network's buffers, on the network's own memory."""
    net: Any = pl_module.net
    parts = {name: local(buffer) for name, buffer in net.named_buffers()}
    return {name: part for name, part in parts.items() if part is not None}
