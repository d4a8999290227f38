"""An exponential moving average of the weights, kept beside them on every layout.

Lightning's own ``WeightAveraging`` does not do here: it keeps a deep copy of the whole module, metrics and all, and
writes the average into ``checkpoint["state_dict"]``, which LaneStrategy leaves empty, because checkpoints are written
from the devices' own parts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lanes.layers import local
from lanes.placement import average_statistics


class WeightAverage(Callback):
    """Average the weights over the steps of the training, and evaluate the average.

    After each optimizer step: average = decay * average + (1 - decay) * weights, for parameters and for buffers of
    floating point (batch norm's running statistics). Validation, test and prediction use the average; training goes on
    with the weights themselves. Checkpoints hold both: ``model.safetensors`` the weights, ``average.safetensors`` the
    average, in the plain model's names and shapes.

    Args:
        decay: how much of the average a step keeps; it reaches back over about 1 / (1 - decay) steps.
        warmup: keep less in the beginning, the t-th step (1 + t) / (10 + t) if that is less than ``decay``, so that a
            short training's average does not remember what the weights were before it.

    Source: Polyak and Juditsky 1992, https://doi.org/10.1137/0330046; the warm-up is that of TensorFlow's
    ``tf.train.ExponentialMovingAverage`` (``num_updates``).

    Raises:
        ValueError: decay is not from 0 to below 1; or, when training starts, the weights have less than 32 bits.
    """

    checkpoint_set = "average"

    def __init__(self, decay: float = 0.999, *, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"WeightAverage: decay={decay} must be from 0 to below 1, e.g. 0.999")
        self.decay, self.warmup = decay, warmup
        self._net: nn.Module | None = None
        self._average: dict[str, Tensor] = {}  # by name, this process's own part
        self._updates = 0
        self._step = 0  # of the optimizer, when the average was last updated
        self._in_use = False  # then the network holds the average, and _average the weights

    # Training

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the weights; those of a checkpoint come later, and its average with them."""
        if self._net is not pl_module.net:
            self._start(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from the step at which training goes on."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average, if the optimizer has made a step."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self._updates += 1
        decay = min(self.decay, (1 + self._updates) / (10 + self._updates)) if self.warmup else self.decay
        update: Any = get_ema_multi_avg_fn(decay)
        update(list(self._average.values()), list(_own_parts(pl_module).values()), None)

    # Evaluation. Epoch hooks, since the strategy averages the weights' own statistics just before them, and checkpoints
    # are written after them.

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the network."""
        self._use(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back."""
        self._put_back(pl_module)

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the weights back, so that what is saved on the way out is what training was at."""
        self._put_back(pl_module)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """How many steps the average is made of; the average itself is a file of its own."""
        return {"updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting from there."""
        self._updates = state_dict["updates"]

    def checkpoint_tensors(self, pl_module: LightningModule) -> dict[str, Tensor]:
        """The average, laid out as the network is, on the memory of this callback; all processes must call it.

        Raises:
            RuntimeError: the network holds the average just now.
        """
        if self._in_use:
            raise RuntimeError("a checkpoint cannot be written while the averaged weights are being evaluated")
        if self._net is not pl_module.net:
            self._start(pl_module)
        with self._used(pl_module):  # so that its statistics are those of all replicas
            pass
        tensors = dict(_net_of(pl_module).state_dict())
        for name, part in self._average.items():
            whole = tensors[name]
            tensors[name] = part
            if isinstance(whole, DTensor):
                tensors[name] = DTensor.from_local(part, whole.device_mesh, whole.placements, run_check=False)
        return tensors

    def checkpoint_loaded(self, pl_module: LightningModule, *, found: bool) -> None:
        """Start from the checkpoint's weights, if it has no average."""
        if not found:
            rank_zero_info("WeightAverage: the checkpoint holds no average; it starts from the checkpoint's weights")
            self._start(pl_module)

    def _start(self, pl_module: LightningModule) -> None:
        self._net, self._updates = _net_of(pl_module), 0
        self._average = {name: part.clone() for name, part in _own_parts(pl_module).items()}
        for name, part in self._average.items():
            if part.dtype.itemsize < 4:
                raise ValueError(
                    f"WeightAverage: {name} is in {str(part.dtype).removeprefix('torch.')}, in which a step is too "
                    "small to move an average; keep weights in float32 (trainer.precision bf16-mixed), or leave it out"
                )

    @contextmanager
    def _used(self, pl_module: LightningModule) -> Iterator[None]:
        self._use(pl_module)
        yield
        self._put_back(pl_module)

    def _use(self, pl_module: LightningModule) -> None:
        if self._net is pl_module.net and not self._in_use:
            self._swap(pl_module)
            average_statistics(_net_of(pl_module), pl_module.device_mesh)  # type: ignore[arg-type]

    def _put_back(self, pl_module: LightningModule) -> None:
        if self._in_use:
            self._swap(pl_module)

    @torch.no_grad()
    def _swap(self, pl_module: LightningModule) -> None:
        """Exchange the numbers, one tensor at a time: exact, and without a third copy of the network."""
        for name, part in _own_parts(pl_module).items():
            kept = part.clone()
            part.copy_(self._average[name])
            self._average[name].copy_(kept)
        self._in_use = not self._in_use


def _net_of(pl_module: LightningModule) -> nn.Module:
    net = pl_module.net
    assert isinstance(net, nn.Module)
    return net


def _own_parts(pl_module: LightningModule) -> dict[str, Tensor]:
    """What is averaged, by the plain model's names: this process's parts, on the network's own memory."""
    parts = {name: local(tensor) for name, tensor in _net_of(pl_module).state_dict().items()}
    return {name: part for name, part in parts.items() if part is not None and part.is_floating_point()}
