"""How strongly the channels of neighbouring layers go together, looked at while training: inside lanes and across them.

What it costs, each time and on every process, is mostly the sums of products, in float64: images x pixels x the square
of the number of channels, pair by pair; then the forward of the images. Eigenvectors and drawing are little.

Kept out: measuring (analysis/covariance.py) and drawing (pictures/squares.py).
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lanes.analysis.covariance import block_ratio, layer_covariances
from lanes.analysis.recording import evaluating, recorded
from lanes.mesh import LANE_AXIS, axis
from lanes.pictures.squares import ratio_in_words, square_picture, square_scale
from lanes.plans import Plan
from lanes.training.module import PLANNED_BATCH, Classifier
from lanes.training.validation_look import ValidationLook, show
from lanes.ways import LANED
from lanes.words import near

Pair = tuple[str, str]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
MAX_PAIRS, MAX_CHANNELS = 3, 1024  # of pairs that nobody has named; both layers' channels together
CHUNK = 16  # images of a forward: all maps of a layer are held whole, on every process


class LayerSquares(ValidationLook):
    """Each epoch, for pairs of layers, a picture of the whitened covariance of their channels, and its block ratio.

    Logs ``corr/{first}-{second}``, the picture, and ``corr/{first}-{second}/ratio``: the mean magnitude inside the
    lanes' blocks over that across lanes, if there are several lanes; dots in names become underscores. Pictures are
    also written to the run's folder ``squares/``. All pictures of a pair are on one scale, whatever the step and run.
    Few images put noise on all of the square alike, so that the ratio lies nearer to 1 than of many: compare ratios of
    equal numbers.

    Args:
        pairs: names of two layers each; take convolutions, before the nonlinearity. By default the last three pairs of
            convolutions of which the second reads what the first makes, each lane device some channels of both, 1024
            together at most: the deeper the layers the more lanes differ, and the smaller are the maps.
        images: validation images, over all replicas.
        every_n_epochs: how often.

    Raises:
        ValueError: an argument cannot be used; and, before training, if there is no such layer, or images are too few.
    """

    def __init__(self, pairs: list[tuple[str, str]] | None = None, images: int = 64, every_n_epochs: int = 1) -> None:
        super().__init__(images, every_n_epochs)
        if pairs is not None and (not pairs or any(isinstance(pair, str) or len(pair) != 2 for pair in pairs)):
            raise ValueError(f"LayerSquares: pairs={pairs!r} must name two layers each, such as [[conv2, conv3]]")
        self.pairs = None if pairs is None else [(first, second) for first, second in pairs]
        self._pairs: list[Pair] = []
        self._shapes: dict[str, torch.Size] = {}  # [C, ...] of what each of their layers makes of an image
        self._images = 0  # that are looked at

    def prepare(self, module: Classifier, plan: Plan, *, images: int, replicas: int) -> None:
        """Find the pairs, and whether so many images are enough for them."""
        net = module.plain_net()
        lanes = _lanes_of(net, plan.lane_devices)
        self._pairs = self.pairs if self.pairs is not None else adjacent_convolutions(net, plan, lanes)
        if not self._pairs:
            raise ValueError(
                "LayerSquares: the network has no two convolutions, one reading the other, over which lanes are "
                f"spread; name pairs of its layers ({', '.join(plan.layers)})"
            )
        if images < replicas:
            raise ValueError(f"LayerSquares: {images} images for {replicas} replicas; give each of them one at least")
        self._shapes, self._images = _shapes(net, module.image_shape, self._pairs, plan), images
        for pair in self._pairs:
            _check_pair({name: self._shapes[name] for name in pair}, lanes=lanes, images=images)

    def places(self, drawn: list[int], replica: int, replicas: int) -> list[int]:
        """Every replica reads its own."""
        return drawn[replica::replicas]

    def look(self, trainer: Trainer, module: Classifier) -> None:
        """Measure on all processes, draw and log on the first."""
        mesh, plan, views = module.device_mesh, module.placed_by, 1
        assert mesh is not None

        def batches() -> Iterator[Tensor]:
            nonlocal views
            for part in zip(*(tensor.split(CHUNK) for tensor in self.stored), strict=True):
                images = self.read(trainer, part)[0]
                if images.dim() > 1 + len(module.image_shape):  # several views of each image
                    views = images.shape[1]
                    images = images.flatten(0, 1)
                yield images

        squares = layer_covariances(module.net, self._pairs, batches(), plan=plan, mesh=mesh)
        if trainer.is_global_zero:
            lanes = _lanes_of(module.net, axis(mesh, LANE_AXIS).size)
            for pair in self._pairs:
                self._log(trainer, pair, squares[pair]["whitened"], lanes, self._images * views)

    def _log(self, trainer: Trainer, pair: Pair, square: Tensor, lanes: int, images: int) -> None:
        pixels = max(_pixels(self._shapes[name]) for name in pair)
        scale = square_scale((square.shape[0], square.shape[1]), "whitened")
        picture = square_picture(square, pair, lanes, images=images, samples=images * pixels, scale=scale)
        name = "-".join(pair).replace(".", "_")  # wandb reads a dot as nesting
        words = f", {ratio_in_words(square, lanes)}" if lanes > 1 else ""
        caption = f"{pair[0]} and {pair[1]}, whitened covariance{words}, epoch {trainer.current_epoch}"
        show(trainer, f"corr/{name}", picture, f"squares/squares-{name}", caption)
        if lanes > 1:
            for logger in trainer.loggers:
                logger.log_metrics({f"corr/{name}/ratio": block_ratio(square, lanes)}, step=trainer.global_step)


def adjacent_convolutions(net: nn.Module, plan: Plan, lanes: int) -> list[Pair]:
    """The last pairs of convolutions of which the second reads what the first makes, as far as numbers tell.

    Args:
        net: the plain network.
        plan: its plan; layers of which every device makes all channels are left out.
        lanes: of the network; they divide the channels of both.
    """
    modules = dict(net.named_modules())
    found = [
        (name, modules[name])
        for name, layer in plan.layers.items()
        if layer.output == LANED and isinstance(modules[name], CONVOLUTIONS)
    ]
    pairs = []
    for (first, before), (second, after) in pairwise(found):
        made, reads, makes = before.out_channels, after.in_channels, after.out_channels
        if made == reads and made + makes <= MAX_CHANNELS and not (made % lanes or makes % lanes):
            pairs.append((first, second))
    return pairs[-MAX_PAIRS:]


def _lanes_of(net: nn.Module, lane_devices: int) -> int:
    """Of networks that do not say how many lanes they have, lane devices are lanes."""
    lanes = getattr(net, "lanes", lane_devices)
    return lanes if isinstance(lanes, int) else lane_devices


def _pixels(shape: torch.Size) -> int:
    return math.prod(shape[1:])


def _shapes(net: nn.Module, image_shape: tuple[int, ...], pairs: list[Pair], plan: Plan) -> dict[str, torch.Size]:
    """[C, ...] of what the layers make of an image, of a network on the "meta" device."""
    names = sorted({name for pair in pairs for name in pair})
    for name in names:
        if name not in plan.layers:
            raise ValueError(
                f"LayerSquares: the network runs no layer {name!r}{near(name, plan.layers)}; it has "
                f"{', '.join(plan.layers)}"
            )
    with evaluating(net), torch.no_grad(), recorded(net, names) as made:
        net(torch.empty(PLANNED_BATCH, *image_shape, device="meta"))
    if silent := [name for name in names if name not in made]:
        raise ValueError(f"LayerSquares: {silent[0]} does not run in evaluation mode; name a layer that runs once")
    return {name: made[name].shape[1:] for name in names}


def _check_pair(shapes: dict[str, torch.Size], *, lanes: int, images: int) -> None:
    """Refuse a pair that cannot be compared, or of which so few images would make a square of noise."""
    both, channels = " and ".join(shapes), sum(shape[0] for shape in shapes.values())
    for name, shape in shapes.items():
        if shape[0] % lanes:
            raise ValueError(
                f"LayerSquares: {lanes} lanes do not divide the {shape[0]} channels of {name}; name others"
            )
    if len({len(shape) for shape in shapes.values()} - {1}) > 1:
        maps = " and ".join(str(list(shape)) for shape in shapes.values())
        raise ValueError(f"LayerSquares: {both} make maps {maps}, unlike in dimensions; name others")
    pixels = min(map(_pixels, shapes.values()))  # a smaller map is enlarged, which adds nothing new
    if images * pixels <= channels:
        raise ValueError(
            f"LayerSquares: {images} images of {pixels} pixels in the smaller map are too few for the {channels} "
            f"channels of {both}; give more than {channels // pixels} images, better ten times as many"
        )
