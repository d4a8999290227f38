"""Keeps the last checkpoint, so that whatever ends a training costs little of it.

Lightning's ``save_last`` keeps the last *best*. Kept out: the best ones (Lightning's ModelCheckpoint), how checkpoints
are written (lanes.checkpoint).
"""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_warn

NAME = "last.ckpt"


class LastCheckpoint(Checkpoint):
    """Write ``last.ckpt`` at the end of every epoch, before every validation, and within long epochs.

    Before a validation: it may take long, and a signal in it has nothing to save then.

    Args:
        folder: where it lies.
        every_n_steps: how often within an epoch, in steps of the optimizer; 0: not.

    Raises:
        ValueError: every_n_steps is negative.
    """

    def __init__(self, folder: str | Path, every_n_steps: int = 1000) -> None:
        if every_n_steps < 0:
            raise ValueError(f"last_every_n_steps={every_n_steps} must be at least 1, or 0 for the ends of epochs only")
        self.path, self.every_n_steps = Path(folder) / NAME, every_n_steps
        self._saved_at: int | None = None

    def saved_at(self, step: int) -> bool:
        """Whether this training has written it at a step of the optimizer, with nothing accumulated since."""
        return self._saved_at == step

    def save(self, trainer: Trainer) -> None:
        """Write it now; all processes must call this together."""
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved_at = trainer.global_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on the checkpoint that training went on from is one of the run's own, and may be replaced.

        Lightning would keep it for ever: of a run that goes on again and again, one more each time.
        """
        if trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve() == self.path.resolve():
            self._saved_at = trainer.global_step  # for a validation with which it goes on
        if trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve().parent == self.path.resolve().parent:
            trainer.ckpt_path = None
        batches, accumulated = trainer.val_check_batch, trainer.accumulate_grad_batches
        assert batches is not None
        if batches < trainer.num_training_batches and batches % accumulated:  # the last batch always makes one
            rank_zero_warn(
                f"validation after every {batches} batches comes between the {accumulated} that make a step: what goes "
                "on from a best checkpoint of such a moment makes a step of fewer; let trainer.val_check_interval be a "
                "multiple of trainer.accumulate_grad_batches"
            )

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save, if a step was made here and the time has come."""
        loop: Any = trainer.fit_loop
        step = trainer.global_step
        if loop.epoch_loop._should_accumulate() or not step or self._saved_at == step:
            return
        due = self.every_n_steps and step % self.every_n_steps == 0
        if due or loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save: after validation, so that what goes on from here need not repeat it."""
        self.save(trainer)
