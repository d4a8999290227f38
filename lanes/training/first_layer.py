"""The filters of a first layer, looked at while training: pictures of every lane, and numbers on what each has become.

Kept out: how filters are drawn and measured (analysis/).
"""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lanes.analysis.lane_statistics import lane_labels
from lanes.analysis.specialisation import in_words, specialisation
from lanes.mesh import LANE_AXIS, axis
from lanes.pictures.animation import picture_name, take_frames, write_animation
from lanes.pictures.distributions import specialisation_picture
from lanes.pictures.filters import Scale, View, check_look, filter_grids
from lanes.training.validation_look import show
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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what training starts from; a checkpoint that it goes on from has been read."""
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
    """Each epoch, one picture per lane of the filters of a first layer; at the end of training, a film of them.

    The pictures lie in the run's folder below filters/, the film beside it: filters-LAYER.gif. A training that is
    resumed takes over the pictures of the run that it goes on from, up to the step where it does. The film is not
    logged: wandb would keep its first frame.

    Args:
        layer: the layer's name in the network; it must read an image of 1 or 3 channels.
        every_n_epochs: how often.
        view: "rgb", "grey" or "opponent"; see `filter_grids`.
        scale: "layer", all lanes on one scale, or "filter", each filter on its own.

    Raises:
        ValueError: an argument cannot be used; the message says what can.
    """

    def __init__(
        self, layer: str = "conv1", every_n_epochs: int = 1, view: View = "rgb", scale: Scale = "layer"
    ) -> None:
        super().__init__(layer, every_n_epochs)
        check_look(view, scale, owner=f"{type(self).__name__}: ")
        self.view, self.scale = view, scale
        self._steps: set[int] = set()

    def look(self, trainer: Trainer, weight: Tensor, lanes: int) -> None:
        """Write the pictures into the run's folder, and log them."""
        folder, step = Path(trainer.default_root_dir) / "filters", trainer.global_step
        folder.mkdir(parents=True, exist_ok=True)
        for lane, picture in enumerate(filter_grids(weight, lanes, name=self.layer, view=self.view, scale=self.scale)):
            path = folder / picture_name(self.layer, lane, step)
            picture.save(partial := path.with_suffix(".partial"), format="PNG")
            partial.replace(path)  # whole or not at all: the film of a run that was killed and resumed reads it
            for logger in trainer.loggers:
                if isinstance(logger, LanesLogger):
                    caption = f"{self.layer}, lane {lane}, epoch {trainer.current_epoch}"
                    logger.log_picture(f"filters/lane{lane}/{self.layer}", picture, step, caption)
        self._steps.add(step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the earlier pictures of a training that is resumed."""
        super().on_train_start(trainer, pl_module)
        if trainer.global_step == 0 or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / "filters"
        self._steps |= take_frames(folder, folder, self.layer, trainer.global_step)
        if trainer.ckpt_path:
            parent = Path(trainer.ckpt_path).parent
            run = parent.parent if parent.name == "checkpoints" else parent
            self._steps |= take_frames(run / "filters", folder, self.layer, trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the film."""
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        try:
            write_animation(folder / "filters", self.layer, folder / f"filters-{self.layer}.gif", steps=self._steps)
        except OSError as error:  # a full disk, perhaps: the training has not failed by it
            rank_zero_warn(f"no film of the filters of {self.layer}: {error}")


class Specialisation(FirstLayer):
    """Each epoch, what the filters of each lane have become, as numbers, and whether lanes differ by more than chance.

    Logs ``spec/lane{i}/{measure}``, the mean over a lane's filters, and of several lanes ``spec/effect/{measure}`` and
    ``spec/p/{measure}`` (`lanes.analysis.specialisation`); at the end of training one sentence. A picture of how the
    measures are distributed in each lane is ``spec/distributions``, and in the run's folder ``specialisation/``.

    Args:
        layer: the layer's name in the network; it must read an image of 1 or 3 channels.
        every_n_epochs: how often.
    """

    def __init__(self, layer: str = "conv1", every_n_epochs: int = 1) -> None:
        super().__init__(layer, every_n_epochs)
        self._found: dict[str, float] = {}

    def look(self, trainer: Trainer, weight: Tensor, lanes: int) -> None:
        """Log the numbers, and draw where they come from."""
        self._found = specialisation(weight, lanes)
        numbers = {f"spec/{key}": number for key, number in self._found.items()}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=trainer.global_step)
        picture = specialisation_picture(weight, lanes, self._found, layer=self.layer)
        caption = f"{self.layer}, measures of its filters in each lane, epoch {trainer.current_epoch}"
        show(trainer, "spec/distributions", picture, f"specialisation/distributions-{self.layer}", caption)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say in words what the last look has found."""
        if not self._found or "lane1/dead" not in self._found:
            return
        words = in_words(self._found, self.layer)
        print(f"\n{words}")
        for logger in trainer.loggers:
            if isinstance(logger, LanesLogger):
                logger.log_metrics({"spec/words": words}, step=trainer.global_step)  # type: ignore[dict-item]
