"""What the network says to a few validation images, looked at while training.

Kept out: drawing (pictures/predictions.py).
"""

from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lanes.data.views import center_crop
from lanes.pictures.predictions import predictions_picture
from lanes.plans import Plan
from lanes.training.module import Classifier
from lanes.training.validation_look import ValidationLook, show


class SamplePredictions(ValidationLook):
    """Each epoch, one picture of a few validation images, always the same, with their five most probable classes.

    Logs ``predictions``; the picture is also written to the run's folder ``predictions/``. The classes and their
    probabilities are those of ``lanes predict``.

    Args:
        images: how many.
        every_n_epochs: how often.

    Raises:
        ValueError: an argument cannot be used; and, before training, if the network does not read images in colour or
            grey.
    """

    def __init__(self, images: int = 8, every_n_epochs: int = 1) -> None:
        super().__init__(images, every_n_epochs)
        self._num_classes = 0

    def prepare(self, module: Classifier, plan: Plan, *, images: int, replicas: int) -> None:
        """See whether these are images."""
        shape = module.image_shape
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise ValueError(
                f"SamplePredictions: the network reads {list(shape)}, which is no image in colour or grey, [3 or 1, "
                "height, width]; leave this callback out"
            )
        self._num_classes = module.num_classes

    def places(self, drawn: list[int], replica: int, replicas: int) -> list[int]:
        """Every replica reads all: one of them would have to tell the first what it has found."""
        return drawn

    def look(self, trainer: Trainer, module: Classifier) -> None:
        """Predict on all processes, draw and log on the first."""
        found = module.predict_step(self.read(trainer, self.stored), 0)
        if not trainer.is_global_zero:
            return
        images, labels = self.stored
        names = _class_names(trainer, self._num_classes)
        picture = predictions_picture(
            _as_read(images, module.image_shape),
            labels.tolist(),
            found["classes"].tolist(),
            found["probabilities"].tolist(),
            names,
            facts=[
                f"{len(labels)} validation images",
                f"the {found['classes'].shape[1]} most probable classes of each",
            ],
        )
        right = int((found["classes"][:, 0].cpu() == labels.cpu()).sum())
        caption = f"{right} of {len(labels)} validation images right, epoch {trainer.current_epoch}"
        show(trainer, "predictions", picture, "predictions/predictions", caption)


def _as_read(stored: Tensor, image_shape: Sequence[int]) -> Tensor:
    """What is cut out of the stored images; those of foreign data as they are, which need not hold bytes."""
    return center_crop(stored, image_shape[1]) if stored.dtype == torch.uint8 else stored


def _class_names(trainer: Trainer, count: int) -> Sequence[str]:
    names: Sequence[str] | None = getattr(getattr(trainer, "datamodule", None), "class_names", None)
    return names if names is not None and len(names) == count else [f"class {index}" for index in range(count)]
