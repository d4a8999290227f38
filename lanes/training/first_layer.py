"""The filters of a first layer, looked at while training: pictures of every lane, and numbers on what each has become.

Kept out: how filters are drawn and measured (analysis/).
"""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lanes.analysis.lane_statistics import lane_labels
from lanes.analysis.specialisation import in_words, specialisation
from lanes.mesh import LANE_AXIS, axis
from lanes.pictures.filters import filter_grids
from lanes.training.wandb_logger import LanesLogger
from lanes.words import near


class FirstLayer(Callback):
    """Looks at the whole weight of a first layer, on the first process, before training and after epochs."""

    def __init__(self, layer: str = "conv1", every_n_epochs: int = 1) -> None:
        if not isinstance(every_n_epochs, int) or every_n_epochs < 1:
            raise ValueError(f"{type(self).__name__}: every_n_epochs={every_n_epochs!r} must be at least 1")
        self.layer, self.every_n_epochs = layer, every_n_epochs

    def look(self, trainer: Trainer, weight: Tensor, lanes: int) -> None:
        """Called on the first process with all filters, float32 on the CPU, and the number of lanes."""
        raise NotImplementedError

    def check(self, net: nn.Module) -> None:
        """Find the layer before training, not after an epoch.

        Raises:
            ValueError: the network has no such layer, it is no first layer, or lanes do not divide its filters.
        """
        lanes = getattr(net, "lanes", 1)  # of other networks the layout decides, into which their channels divide
        lane_labels(len(self._weight_of(net)), int(lanes))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what training starts from."""
        if trainer.global_step == 0:
            self._gather(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what the epoch made of it."""
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._gather(trainer, pl_module)

    def _weight_of(self, net: nn.Module) -> Tensor:
        weights: dict[str, Tensor] = {}
        for name, module in net.named_modules():
            if isinstance(weight := getattr(module, "weight", None), Tensor):
                weights[name] = weight
        if self.layer not in weights:
            raise ValueError(
                f"{type(self).__name__}: the network has no layer {self.layer!r}{near(self.layer, weights)}; "
                f"it has {', '.join(weights)}"
            )
        weight = weights[self.layer]
        if weight.dim() != 4 or weight.shape[1] not in (1, 3):
            raise ValueError(
                f"{type(self).__name__}: {self.layer} has weights {list(weight.shape)}; name the layer that reads the "
                "images, of 1 or 3 channels"
            )
        return weight

    def _gather(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weight: Any = self._weight_of(pl_module.net)  # type: ignore[arg-type]
        weight = weight.full_tensor() if isinstance(weight, DTensor) else weight  # all processes take part
        if trainer.is_global_zero:
            lanes = getattr(pl_module.net, "lanes", axis(pl_module.device_mesh, LANE_AXIS).size)  # type: ignore[arg-type]
            self.look(trainer, weight.detach().float().cpu(), lanes)


class FilterPictures(FirstLayer):
    """Each epoch, one picture per lane of the filters of a first layer, all lanes on one scale.

    Args:
        layer: the layer's name in the network; it must read an image of 1 or 3 channels.
        every_n_epochs: how often.
    """

    def look(self, trainer: Trainer, weight: Tensor, lanes: int) -> None:
        """Write the pictures into the run's folder, and log them."""
        folder = Path(trainer.default_root_dir) / "filters"
        folder.mkdir(parents=True, exist_ok=True)
        for lane, picture in enumerate(filter_grids(weight, lanes, name=self.layer)):
            picture.save(folder / f"filters-{self.layer}-lane{lane}-step{trainer.global_step:06d}.png")
            for logger in trainer.loggers:
                if isinstance(logger, LanesLogger):
                    caption = f"{self.layer}, lane {lane}, epoch {trainer.current_epoch}"
                    logger.log_picture(f"filters/lane{lane}/{self.layer}", picture, trainer.global_step, caption)


class Specialisation(FirstLayer):
    """Each epoch, what the filters of each lane have become, as numbers, and whether lanes differ by more than chance.

    Logs ``spec/lane{i}/{measure}``, the mean over a lane's filters, and of several lanes ``spec/effect/{measure}`` and
    ``spec/p/{measure}`` (`lanes.analysis.specialisation`); at the end of training one sentence.

    Args:
        layer: the layer's name in the network; it must read an image of 1 or 3 channels.
        every_n_epochs: how often.
    """

    def __init__(self, layer: str = "conv1", every_n_epochs: int = 1) -> None:
        super().__init__(layer, every_n_epochs)
        self._found: dict[str, float] = {}

    def look(self, trainer: Trainer, weight: Tensor, lanes: int) -> None:
        """Log the numbers."""
        self._found = specialisation(weight, lanes)
        numbers = {f"spec/{key}": number for key, number in self._found.items()}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say in words what the last look has found."""
        if not self._found or "lane1/dead" not in self._found:
            return
        words = in_words(self._found, self.layer)
        print(f"\n{words}")
        for logger in trainer.loggers:
            if isinstance(logger, LanesLogger):
                logger.log_metrics({"spec/words": words}, step=trainer.global_step)  # type: ignore[dict-item]
