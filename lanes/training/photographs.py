"""The default data: patches of ten colour photographs that come inside the wheels of scikit-image and scikit-learn.

The class of a patch is the photograph that it was cut from. Nothing is downloaded: the files are read from where the
packages are installed, without importing the packages (whose own loaders may fetch from the network).

**The split.** A grid of 112-pixel cells lies over each photograph; the cell at (row, column) is held out if
``(3 row + column) % 4 == 0``. That shifts by one column per row, so held-out cells form diagonals and never whole
columns. (Remainders 0, 2 and 3 hold out 62 whole cells, 1 holds out 58; 0 is the first.) Validation patches lie inside
whole held-out cells; training patches touch no held-out cell, whole or partial. No pixel is shared. The split is the
same for every seed; accuracies under another remainder differ by several points and must not be compared.

**Choices.** One of the two motorcycle views only (both would be one scene). Of the retina only the central 896 pixels,
inside its disc: the black surround says nothing about it. Hubble's sky is kept whole: specks of light on black are what
it looks like.

Legend: N patches, S = image_size in pixels; boxes are (left, top, right, bottom) in pixels, right and bottom excluded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lanes.data import augment
from lanes.data.statistics import Statistics, from_moments
from lanes.training.image_data import ImageData, at_least

CELL = 112  # pixels
MIN_SIDE, MAX_SIDE = 48, CELL  # pixels; a validation patch has to fit into one cell
HELD_OUT_EVERY, HELD_OUT_INDEX = 4, 0
RETINA_DISC = (257, 257, 1153, 1153)
DrawBoxes = Callable[[int, int, int, np.random.Generator], NDArray[np.int64]]


@dataclass(frozen=True)
class Photograph:
    """A photograph in an installed package; ``region`` is the box of it that is used (None: all)."""

    name: str
    package: str
    file: str
    region: tuple[int, int, int, int] | None = None

    def path(self) -> Path:
        """Return where the file is installed; raise if the package, or the file in it, is missing."""
        remedy = 'pip install "lanes[photographs]"'
        spec = find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"the photograph {self.name!r} is in package {self.package!r}: run {remedy}")
        path = Path(spec.submodule_search_locations[0]) / self.file
        if not path.is_file():
            missing = f"the photograph {self.name!r} ({self.file}) is missing from the package {self.package!r}"
            raise FileNotFoundError(f"{missing}: install it from its wheel: {remedy} --force-reinstall")
        return path

    def load(self) -> Image.Image:
        """Return the used region as an RGB picture."""
        with Image.open(self.path()) as picture:
            return picture.convert("RGB").crop(self.region or (0, 0, *picture.size))


PHOTOGRAPHS = (
    Photograph("astronaut", "skimage", "data/astronaut.png"),
    Photograph("cat", "skimage", "data/chelsea.png"),
    Photograph("coffee", "skimage", "data/coffee.png"),
    Photograph("galaxies", "skimage", "data/hubble_deep_field.jpg"),
    Photograph("tissue", "skimage", "data/ihc.png"),
    Photograph("motorcycle", "skimage", "data/motorcycle_left.png"),
    Photograph("retina", "skimage", "data/retina.jpg", RETINA_DISC),
    Photograph("rocket", "skimage", "data/rocket.jpg"),
    Photograph("temple", "sklearn", "datasets/images/china.jpg"),
    Photograph("dahlia", "sklearn", "datasets/images/flower.jpg"),
)


def held_out_cells(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Return the boxes of the held-out cells, whole and partial, of a picture of this size in pixels."""
    return [
        (CELL * col, CELL * row, min(CELL * (col + 1), width), min(CELL * (row + 1), height))
        for row in range(-(-height // CELL))
        for col in range(-(-width // CELL))
        if (3 * row + col) % HELD_OUT_EVERY == HELD_OUT_INDEX
    ]


def training_boxes(width: int, height: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw square boxes of random side and place that touch no held-out cell.

    Sides are uniform in ``MIN_SIDE..MAX_SIDE`` before boxes that touch one are rejected. Returns ``[count, 4]``.
    """
    mask = np.zeros((height, width), dtype=np.int64)
    for cell in held_out_cells(width, height):
        mask[cell[1] : cell[3], cell[0] : cell[2]] = 1
    integral = np.pad(mask.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    kept = np.empty((0, 4), dtype=np.int64)
    while len(kept) < count:
        side = rng.integers(MIN_SIDE, MAX_SIDE, size=4 * count + 64, endpoint=True)
        left = rng.integers(0, width - side, endpoint=True)
        top = rng.integers(0, height - side, endpoint=True)
        right, bottom = left + side, top + side
        touched = integral[bottom, right] - integral[top, right] - integral[bottom, left] + integral[top, left]
        kept = np.concatenate([kept, np.stack([left, top, right, bottom], axis=1)[touched == 0]])
    return kept[:count]


def validation_boxes(width: int, height: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw square boxes of random side and place, each inside one whole held-out cell.

    Sides are uniform in ``MIN_SIDE..MAX_SIDE``, and so are cells. Returns ``[count, 4]``.
    """
    whole = np.array([box for box in held_out_cells(width, height) if box[2] - box[0] == box[3] - box[1] == CELL])
    assert len(whole), f"a photograph of {width} x {height} pixels has no whole held-out cell"
    side = rng.integers(MIN_SIDE, MAX_SIDE, size=count, endpoint=True)
    corner = whole[rng.integers(len(whole), size=count), :2] + rng.integers(0, CELL - side[:, None] + 1, (count, 2))
    return np.concatenate([corner, corner + side[:, None]], axis=1)


class Patches(Dataset[tuple[Tensor, Tensor]]):
    """Patches held in memory; a batch is one indexing operation (``__getitems__``), not N of them.

    Attributes:
        images: uint8, ``[N, 3, S, S]``.
        labels: int64, ``[N]``; label i is ``i % num_classes``, so that any run of patches is balanced.
        boxes: int64, ``[N, 4]``: where in its photograph's used region each patch was cut.
    """

    def __init__(
        self, pictures: list[Image.Image], draw_boxes: DrawBoxes, *, count: int, image_size: int, seed: list[int]
    ) -> None:
        labels = np.arange(count) % len(pictures)
        boxes = np.empty((count, 4), dtype=np.int64)
        images = np.empty((count, 3, image_size, image_size), dtype=np.uint8)
        for label, picture in enumerate(pictures):
            mine = np.flatnonzero(labels == label)
            boxes[mine] = draw_boxes(*picture.size, len(mine), np.random.default_rng([*seed, label]))
            for index in mine:
                # Cut first: resize(box=...) would let the antialiasing filter read beyond the box, over the split.
                patch = picture.crop(tuple(boxes[index].tolist()))
                patch = patch.resize((image_size, image_size), Image.Resampling.BILINEAR)
                images[index] = np.asarray(patch).transpose(2, 0, 1)
        self.images = torch.from_numpy(images)
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.boxes = torch.from_numpy(boxes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.images[indices], self.labels[indices]


def _measure(pictures: list[Image.Image]) -> Statistics:
    """Return mean and covariance of the training pixels' colours.

    Of all pixels outside of held-out cells, every photograph counting the same: they depend neither on the seed nor on
    how many patches are cut, so that a checkpoint is evaluated as it was trained.
    """
    mean, second = np.zeros(3), np.zeros((3, 3))
    for picture in pictures:
        pixels = np.asarray(picture, dtype=np.float64) / 255
        kept = np.ones(pixels.shape[:2], dtype=bool)
        for left, top, right, bottom in held_out_cells(*picture.size):
            kept[top:bottom, left:right] = False
        colors = pixels[kept]
        mean += colors.mean(0) / len(pictures)
        second += colors.T @ colors / len(colors) / len(pictures)
    return from_moments(mean, second)


class Photographs(ImageData):
    """Tell ten photographs apart by patches of random place and scale.

    Batches leave the loaders as (uint8 images ``[N, 3, S, S]``, int64 labels ``[N]``) and are normalised, and in
    training augmented, on the device. All patches are made once, from the seed alone: every process has the same.

    Args:
        batch_size: Images per replica per step (the lane devices of a replica all read the same images).
        image_size: Height and width of a patch in pixels, after scaling from 48..112 pixels of the photograph.
        num_train: Number of training patches; classes are balanced to within one.
        num_val: Number of validation patches; likewise.
        seed: Of the patches, not of the split.
        num_workers: Loader processes; 0 is best for patches that are in memory already.

    Raises:
        ValueError: A number is out of range.
        ModuleNotFoundError, FileNotFoundError: A photograph is not installed.
    """

    num_classes = len(PHOTOGRAPHS)
    class_names = tuple(photograph.name for photograph in PHOTOGRAPHS)

    def __init__(
        self,
        batch_size: int = 64,
        *,
        image_size: int = 64,
        num_train: int = 12288,
        num_val: int = 2048,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            batch_size,
            image_shape=(3, image_size, image_size),
            augment=[augment.random_flip, augment.random_brightness_contrast],
            num_workers=num_workers,
        )
        at_least(max(batch_size, self.num_classes), num_train=num_train)  # one full batch, every class
        at_least(self.num_classes, num_val=num_val)
        at_least(0, seed=seed)
        for photograph in PHOTOGRAPHS:
            photograph.path()  # what is missing should be said now, not after the processes have started
        self.num_train, self.num_val, self.seed = num_train, num_val, seed

    @cached_property
    def _data(self) -> tuple[Patches, Patches, Statistics]:
        pictures = [photograph.load() for photograph in PHOTOGRAPHS]
        size = self.image_shape[1]
        train = Patches(pictures, training_boxes, count=self.num_train, image_size=size, seed=[self.seed, 0])
        val = Patches(pictures, validation_boxes, count=self.num_val, image_size=size, seed=[self.seed, 1])
        return train, val, _measure(pictures)

    def setup(self, stage: str | None = None) -> None:
        """Cut all patches and measure the training pixels; once, whatever the stage. What needs them calls it too."""
        _ = self._data

    @property
    def train_set(self) -> Patches:
        """The training patches."""
        return self._data[0]

    @property
    def val_set(self) -> Patches:
        """The validation patches, all from held-out cells."""
        return self._data[1]

    @property
    def statistics(self) -> Statistics:
        """Of the training pixels."""
        return self._data[2]

    def data_card(self) -> str:
        """Return what the data are, in a few lines of plain text."""
        size = self.image_shape[1]
        return f"""Photographs: {self.num_classes} classes ({", ".join(self.class_names)})
  task:  which photograph is this patch from? chance is {1 / self.num_classes:.0%}
  size:  {size} x {size} RGB, scaled from squares of {MIN_SIDE}..{MAX_SIDE} pixels
  train: {self.num_train} patches; val: {self.num_val} (also test and predict); seed {self.seed}
  split: every {HELD_OUT_EVERY}th {CELL}-pixel cell of a photograph is held out; no pixel is shared
  files: bundled with scikit-image and scikit-learn; no download"""
