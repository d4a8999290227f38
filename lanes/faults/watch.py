"""Where training stands, told once a second, so that who keeps the others waiting can be found.

Processes that one supervisor has started tell it, and it judges (standing.py); under torchrun and srun they tell one
another (others.py). Kept out: what is told, and how (telling.py).
"""

import re
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lanes.faults.agreement import Agreement
from lanes.faults.others import Others
from lanes.faults.telling import Teller, supervised
from lanes.mesh import DATA_AXIS, LANE_AXIS, axis


class Watch(Callback):
    """End all processes when training has not got on for a while, and say where each of them stands.

    Where a signal has come, or a connection is lost, a process that is gone or stopped ends them at once.

    Args:
        timeout_s: how long a batch, a validation batch or a checkpoint may take.
        start_timeout_s: the same until the first step is made: compilation, caches.
    """

    def __init__(self, timeout_s: float = 300, start_timeout_s: float = 1800) -> None:
        least = 10.0
        for name, value in (("timeout_s", timeout_s), ("start_timeout_s", start_timeout_s)):
            if not value > least:
                raise ValueError(f"Watch: {name}={value} must be more than {least:.0f} seconds")
        self.timeout_s, self.start_timeout_s = timeout_s, start_timeout_s
        self._teller: Teller | None = None
        self._others: Others | None = None  # who has no supervisor looks after the others
        self._hooks: list[Any] = []
        self.here = ""  # which process this is, in words, once training begins
        self.who_ended: str | None = None  # in words, once an exchange has failed by that

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell from now on where training stands."""
        mesh: Any = pl_module.device_mesh
        module: Any = pl_module
        if not module.compile_backend:  # a hook would break the compiled network into pieces
            layers = {name: module.net.get_submodule(name) for name in module.placed_by.crossings}
            self._hooks = [layer.register_forward_pre_hook(self._at_layer(name)) for name, layer in layers.items()]
        agreement = next((c for c in trainer.callbacks if isinstance(c, Agreement)), None)  # type: ignore[attr-defined]
        teller = supervised()
        if teller is None:
            self._others = Others(trainer.global_rank, trainer.world_size)
            teller = self._others.teller
        if agreement is not None:
            teller.signal_came = lambda: agreement.signal
        teller.place = axis(mesh, DATA_AXIS).index, axis(mesh, LANE_AXIS).index
        teller.step, teller.patience_s = trainer.global_step, self.start_timeout_s
        teller.at("start")
        self.here = teller.pulse().name
        teller.tell()  # before anybody goes on: a process may be killed within its first second
        self._teller = teller
        if self._others is not None:
            self._others.start()
        else:
            dist.barrier()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Training is over."""
        self._over()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The same; if an exchange has failed and no supervisor will, find out who has ended."""
        others = self._others
        self._over()
        if others is not None and connection_lost(exception):
            self.who_ended = others.who_ended()

    def _over(self) -> None:
        """What comes now may take as long as it likes, as long as the process tells anything."""
        if self._teller is not None:
            self._teller.patience_s = self.timeout_s
            self._teller.at("the end", gets_on=True)
        if self._others is not None:
            self._others.stop()
        self._teller = self._others = None

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Training gets on."""
        self._at("forward", trainer)

    def on_before_backward(self, trainer: Trainer, *_: Any) -> None:
        """Training gets on."""
        self._at("backward", trainer)

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        """Training gets on."""
        self._at("optimizer", trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Training gets on; from the first step on it must do so sooner."""
        if self._teller is not None:
            self._teller.patience_s = self.timeout_s
        self._at("after the batch, before the next", trainer)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Training gets on."""
        self._at("validation", trainer)

    def _at_layer(self, name: str) -> Any:
        def note(module: nn.Module, args: Any) -> None:
            if self._teller is not None:
                what = "validation" if self._teller.stands[0].startswith("validation") else "forward"
                self._teller.at(f"{what}, crossing at {name}")

        return note

    def _at(self, where: str, trainer: Trainer) -> None:
        if self._teller is not None:
            self._teller.step = trainer.global_step
            self._teller.at(where)


def connection_lost(error: BaseException) -> bool:
    """Whether an exchange has failed, most probably since another process has ended."""
    lost = re.search("Connection (closed|reset) by peer|Broken pipe|[Ss]ocket closed", str(error))
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and lost is not None)
