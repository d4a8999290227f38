"""The health of a run: how large weights and updates of every lane are, and that loss and gradients are finite."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lanes.analysis.health import LaneWeights
from lanes.checking import from_everyone
from lanes.layers import local
from lanes.mesh import LANE_AXIS, axis


class NonFiniteError(RuntimeError):
    """The loss or a gradient is not finite; training makes no sense from here on."""


class Health(Callback):
    """Log mean |w|, mean |dw| and their ratio per layer and lane; stop all processes when a number is not finite.

    dw is how far one optimizer step moved the weights, measured at the logging steps only. On a CPU a step whose loss
    or gradient is not finite is never made: the weights stay as they were. On a GPU nobody waits for the device between
    logging steps, so that the end comes at the next one (or before validation), and names the first bad step.

    Args:
        every_n_steps: how often to log; by default trainer.log_every_n_steps, else a multiple of it.
        stop_on_non_finite: raise :class:`NonFiniteError` on all processes together.

    Raises:
        ValueError: every_n_steps is no multiple of trainer.log_every_n_steps.
    """

    def __init__(self, every_n_steps: int | None = None, stop_on_non_finite: bool = True) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"Health: every_n_steps={every_n_steps} must be at least 1")
        self.every_n_steps, self.stop_on_non_finite = every_n_steps, stop_on_non_finite
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
        self._bad = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64, device=pl_module.device)
        self._before, self._values = None, {}
        self._looks_at_once = pl_module.device.type == "cpu"  # a GPU would be waited for at every step

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note whether the loss is finite, without asking the device for it."""
        self._note(trainer.global_step + 1, loss.detach(), 1.0)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """The gradients before clipping: are they finite; at a logging step also how large, and where the weights are.

        With a loss scaler (16-mixed) gradients may overflow now and then: it leaves out that step by itself.
        """
        assert self._weights is not None
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        gradients = [local(p.grad) for p in pl_module.parameters() if p.grad is not None]
        if gradients and not scaled:
            # Twenty times as fast as the infinity norm on a CPU; unlike the 2-norm it does not overflow.
            bounds = [bound for g in gradients if g is not None for bound in g.aminmax()]
            self._note(trainer.global_step + 1, torch.stack(bounds).abs().max(), 0.0)
        due = bool(self.every) and (trainer.global_step + 1) % self.every == 0
        if due or self._looks_at_once:
            self._stop_if_bad(trainer, pl_module)
        if due:
            means = self._weights.gradient_mean_abs().tolist()
            names = [f"{block}/gradient_mean_abs" for block in self._weights.blocks]
            self._values = dict(zip(names, means, strict=True)) | {
                "gradient_norm": float(self._weights.gradient_norm())
            }
            self._before = self._weights.snapshot()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, if this was a logging step."""
        if self._before is not None:
            assert self._weights is not None
            values = self._values | self._weights.measure(self._before)
            self._before = None
            pl_module.log_dict({f"health/{name}": value for name, value in values.items()})

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not evaluate, nor keep, weights that are not numbers."""
        if not trainer.sanity_checking:
            self._stop_if_bad(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same where there is no validation."""
        self._stop_if_bad(trainer, pl_module)

    def _note(self, step: int, value: Tensor, is_loss: float) -> None:
        """Keep the first step at which a value was not finite."""
        assert self._bad is not None
        now = torch.stack(
            [*(torch.full_like(value, n, dtype=torch.float64) for n in (step, 1 - is_loss)), value.double()]
        )
        self._bad = torch.where((self._bad[0] == 0) & ~value.isfinite(), now, self._bad)

    def _stop_if_bad(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Agree with all processes; all of them raise, or none.

        Raises:
            NonFiniteError: names the step, the layer and lane where that can be told, and the way out.
        """
        if not self.stop_on_non_finite or self._bad is None:
            return
        module: Any = pl_module
        notes = from_everyone(self._bad.nan_to_num(), module.device_mesh).flatten(0, 1)  # [processes, 3]
        bad = notes[notes[:, 0] > 0]
        if not len(bad):
            return
        step = int(bad[:, 0].min())
        loss_is_bad = bool((bad[bad[:, 0] == step][:, 1] == 0).any())
        what = "the loss is not finite" if loss_is_bad else "a gradient is not finite"
        where = self._where() if step == trainer.global_step + 1 else ""
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        clip = trainer.gradient_clip_val
        raise NonFiniteError(
            f"training stopped at step {step}: {what}{where}; lower the learning rate (now {rate:.3g}) or clip "
            f"gradients{' at less' if clip else ''} (trainer.gradient_clip_val, now {clip})"
        )

    def _where(self) -> str:
        """The layer and lane that backward came to first, of those whose gradient is not finite."""
        assert self._weights is not None
        finite = self._weights.gradient_mean_abs().isfinite().tolist()
        bad = [block for block, ok in zip(self._weights.blocks, finite, strict=True) if not ok]
        if not bad:
            return ""
        layer = bad[-1].split("/")[0]
        first = next(block for block in bad if block.split("/")[0] == layer)
        return f", in backward order first the gradient of {first.replace('/lane', ', lane ')}"
