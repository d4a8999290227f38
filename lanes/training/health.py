"""The health of a run: how large weights and updates of every lane are, and that loss and gradients are finite.

Kept out: what is done when they are not (non_finite.py).
"""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lanes.analysis.health import LaneWeights
from lanes.checking import from_everyone
from lanes.layers import local
from lanes.mesh import LANE_AXIS, axis
from lanes.training.non_finite import NonFiniteError, Policy, Remedy

__all__ = ["Health", "NonFiniteError"]


class Health(Callback):
    """Log mean |w|, mean |dw| and their ratio per layer and lane; see to it that loss and gradients are finite.

    dw is how far one optimizer step moved the weights, measured at the logging steps only. When the loss or a gradient
    is not finite, all processes together

    - "stop": they raise :class:`NonFiniteError`. On a CPU the bad step is never made: the weights stay as they were. On
      a GPU nobody waits for the device between logging steps, so that the end comes at the next one (or before
      validation), and names the first bad step.
    - "skip": the step is not made, with all the batches that it accumulates: weights, optimizer and batch norm's
      statistics stay as they were before it. It counts nevertheless, for schedules and averages.
    - "roll_back": weights, optimizer, statistics and averaged weights of the run's newest whole checkpoint are taken
      again, and training goes on with the batches that follow; steps and schedules go on counting.

    The last two look at every step, for which a GPU is waited for at every step.

    Args:
        every_n_steps: how often to log; by default trainer.log_every_n_steps, else a multiple of it.
        on_non_finite: "stop", "skip" or "roll_back".
        max_in_a_row: so many steps one after another may be skipped; then training stops.
        max_roll_backs: so often training may go back; then it stops.

    Raises:
        ValueError: a value is not possible, or every_n_steps is no multiple of trainer.log_every_n_steps.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        on_non_finite: Policy = "stop",
        *,
        max_in_a_row: int = 10,
        max_roll_backs: int = 3,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"Health: every_n_steps={every_n_steps} must be at least 1")
        self.every_n_steps = every_n_steps
        self._remedy = Remedy(on_non_finite, max_in_a_row=max_in_a_row, max_roll_backs=max_roll_backs)
        self._weights: LaneWeights | None = None
        self._before: list[Tensor] | None = None
        self._values: dict[str, float] = {}
        self._bad: Tensor | None = None  # [first bad step (0: none), was the loss finite, the loss]: on the device

    def check(self, trainer: Trainer) -> None:
        """Compare the steps at which this logs with those at which the trainer does.

        Raises:
            ValueError: every_n_steps is no multiple of trainer.log_every_n_steps.
        """
        logged = getattr(trainer, "log_every_n_steps", 50)
        self.every = self.every_n_steps or logged
        if logged and self.every % logged:
            raise ValueError(
                f"Health: every_n_steps={self.every} is no multiple of trainer.log_every_n_steps={logged}, at which "
                "values are written; use a multiple of it, or leave every_n_steps out"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers."""
        self.check(trainer)
        module: Any = pl_module
        self._weights = LaneWeights(module.net, module.placed_by, axis(module.device_mesh, LANE_AXIS))
        self._parameters = list(pl_module.parameters())  # looking for them takes as long as looking at them
        self._bad = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64, device=pl_module.device)
        self._before, self._values = None, {}
        # A GPU would be waited for at every step.
        self._looks_at_once = pl_module.device.type == "cpu" or self._remedy.policy != "stop"

    def state_dict(self) -> dict[str, Any]:
        """What was skipped so far."""
        return {**self._remedy.counts, "in_a_row": self._remedy.in_a_row} if self._remedy.counts else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._remedy.counts |= {name: state_dict[name] for name in self._remedy.counts if name in state_dict}
        self._remedy.in_a_row = state_dict.get("in_a_row", 0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep what the forward changes, at the first of the batches that make a step."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._remedy.keep_buffers(pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note whether the loss is finite, without asking the device for it."""
        self._note(trainer.global_step + 1, loss.detach(), 1.0)

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """The gradients before clipping: are they finite; at a logging step also how large, and where the weights are.

        With a loss scaler (16-mixed) gradients may overflow now and then: it leaves out that step by itself.
        """
        assert self._weights is not None
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        gradients = [local(p.grad) for p in self._parameters if p.grad is not None]
        if gradients and not scaled:
            # Twenty times as fast as the infinity norm on a CPU; unlike the 2-norm it does not overflow.
            bounds = [bound for g in gradients if g is not None for bound in g.aminmax()]
            self._note(trainer.global_step + 1, torch.stack(bounds).abs().max(), 0.0)
        due = bool(self.every) and (trainer.global_step + 1) % self.every == 0
        bad = self._bad_step(trainer, pl_module) if due or self._looks_at_once else None
        if bad:
            self._remedy.apply(trainer, pl_module, *bad)
            self._bad = torch.zeros_like(self._bad)  # type: ignore[arg-type]
        else:
            self._remedy.in_a_row = 0
        self._values = dict(self._remedy.counts) if due else {}
        if due and not bad:
            means = self._weights.gradient_mean_abs().tolist()
            names = [f"{block}/gradient_mean_abs" for block in self._weights.blocks]
            self._values |= dict(zip(names, means, strict=True))
            self._values["gradient_norm"] = float(self._weights.gradient_norm())
            self._before = self._weights.snapshot()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, if this was a logging step."""
        if self._before is not None:
            assert self._weights is not None
            self._values |= self._weights.measure(self._before)
            self._before = None
        pl_module.log_dict({f"health/{name}": float(value) for name, value in self._values.items()})
        self._values = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not evaluate, nor keep, what is no number; it may be in the middle of the batches that make a step."""
        if not trainer.sanity_checking and (bad := self._bad_step(trainer, pl_module)):
            if self._remedy.policy == "stop":
                self._remedy.apply(trainer, pl_module, *bad)
            self._remedy.restore_buffers(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same where there is no validation."""
        self.on_validation_start(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """The same before it is written."""
        self.on_validation_start(trainer, pl_module)

    def _note(self, step: int, value: Tensor, is_loss: float) -> None:
        """Keep the first step at which a value was not finite."""
        assert self._bad is not None
        now = torch.stack(
            [*(torch.full_like(value, n, dtype=torch.float64) for n in (step, 1 - is_loss)), value.double()]
        )
        self._bad = torch.where((self._bad[0] == 0) & ~value.isfinite(), now, self._bad)

    def _bad_step(self, trainer: Trainer, pl_module: LightningModule) -> tuple[int, str] | None:
        """Agree with all processes on the first bad step and on what was not finite; None if all was."""
        if self._bad is None:
            return None
        module: Any = pl_module
        notes = from_everyone(self._bad.nan_to_num(), module.device_mesh)  # [replicas, lane devices, 3]
        bad = notes[..., 0] > 0
        if not bad.any():
            return None
        step = int(notes[..., 0][bad].min())
        losses = (bad & (notes[..., 0] == step) & (notes[..., 1] == 0)).any(1)  # of which replicas
        what = f"the loss{_of_replica(losses)} is not finite" if losses.any() else "a gradient is not finite"
        return step, what + (self._where(module) if step == trainer.global_step + 1 else "")

    def _where(self, module: Any) -> str:
        """The layer and lane that backward came to first, of those whose gradient is not finite on any replica."""
        assert self._weights is not None
        wrong = (~self._weights.gradient_mean_abs().isfinite()).double()
        replicas = from_everyone(wrong, module.device_mesh).sum(1) > 0  # [replicas, blocks]
        bad = [place for place, anywhere in enumerate(replicas.any(0).tolist()) if anywhere]
        if not bad:
            return ""
        blocks = self._weights.blocks
        layer = blocks[bad[-1]].split("/")[0]
        first = next(place for place in bad if blocks[place].split("/")[0] == layer)
        block = blocks[first].replace("/lane", ", lane ")
        return f", in backward order first the gradient of {block}{_of_replica(replicas[:, first])}"


def _of_replica(which: Tensor) -> str:
    """The first of some replicas, in words; of all of them nothing."""
    return "" if which.all() else f" of replica {which.nonzero()[0].item()}"
