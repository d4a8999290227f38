"""Network in Network for CIFAR-10, and its variants with filter groups: the root topology.

What is here: `NetworkInNetwork`. Every convolution with a window (a) is followed by two of 1x1 (b, c) that mix its
channels; the filter groups are in the windows, the 1x1 stay dense: there lanes meet. What is kept out: devices.

Sources: Lin, Chen, Yan, "Network In Network", arXiv 1312.4400 ("the paper"); Ioannou, Robertson, Cipolla, Criminisi,
"Deep Roots", arXiv 1605.06489, of which chapter 4 of Ioannou's thesis is the longer text (github.com/yanii/phd-thesis,
filterbasis.tex, rootdata/nincifar*.csv; "the thesis").

Shapes: N batch, C all channels, H W pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lanes.models.arguments import check_choice, check_counts, did_you_mean
from lanes.models.initial_weights import init_he, init_normal, initialise, without_drawing

_LAYERS = {  # layer -> its channels, its window in pixels
    **{"conv1a": (192, 5), "conv1b": (160, 1), "conv1c": (96, 1)},
    **{"conv2a": (192, 5), "conv2b": (192, 1), "conv2c": (192, 1)},
    **{"conv3a": (192, 3), "conv3b": (192, 1)},  # and conv3c: the classes, 1
}
_POOLS: dict[str, Any] = {"conv1c": nn.MaxPool2d, "conv2c": nn.AvgPool2d}
_ROOTS = (1, 2, 4, 8, 16, 32)


class NetworkInNetwork(nn.Module):
    """Three convolutions with windows, each followed by two of 1x1; the last makes one map per class.

    With the defaults it has the 966,986 parameters and, at 32 pixels, the 222,486,528 multiply-adds of the original
    (the thesis says 222,487,946: it counts each of the 1,418 biases once). `root=8` has 314,954 and 103,342,080 of
    them, 32.6 % and 46.4 %.

    The published numbers fix what the papers leave open: windows of 5, 5 and 3 pixels are padded by 2, 2 and 1, and
    the two pools of 3x3 with stride 2 reach over the edge (Caffe and cuda-convnet round up, hence `ceil_mode`), so that
    maps have 32, 16 and 8 pixels; rounded down, 15 and 7, they would cost 200 million multiply-adds. The first pool
    takes the maximum, the second the mean, as in the authors' Caffe file (gist e56253735ef32c3c296d of mavenlin; its
    layers are in Lasagne/Recipes, modelzoo/cifar10_nin.py). A ReLU follows every convolution, the last one too
    (equation 2 of the paper), then the mean of each class's map.

    Initial weights are He's normal by fan-in with zero biases, as in the thesis, and not the N(0, 0.05) of the Caffe
    file: a convolution of g groups has g times fewer inputs, and only with a deviation that follows from their number
    do all roots start from signals of one size. Tried on CIFAR-10 (root-8 at half the width, 124 steps of 128 images,
    one seed): with N(0, 0.05) the loss stayed at ln 10; with He's 26 % of the test images were told right, with batch
    norm too 51 %.

    Args:
        num_classes: number of logits.
        root: filter groups of conv2a; conv3a has half as many (table 1 of "Deep Roots"). 1 is the original.
        groups: layer name -> filter groups, for other topologies; goes before `root`. The thesis' column-n is
            `{"conv2a": n, "conv3a": n}`, its tree-n `{"conv2a": n, "conv3a": 2 * n}`.
        batch_norm: normalise the output of every convolution but the last, as the thesis did in training (its counts
            of parameters leave that out); it then did without dropout.
        dropout: probability with which an input of conv2a and conv3a is dropped.
        width: factor of the number of channels of all layers but the last.
        in_channels: channels of the image: 3 for colour, 1 for grey.

    Attributes:
        image_shape: (C, H, W) of the images that it reads; other sizes work too, as the last layers take a mean.

    Shape:
        [N, in_channels, 32, 32] -> [N, num_classes].

    Raises:
        ValueError: root is not a power of two up to 32, groups names an unknown layer or a number that does not divide
            its channels, width does not give whole numbers of channels, or another argument is out of range.
    """

    def __init__(
        self,
        num_classes: int = 10,
        root: int = 1,
        *,
        groups: Mapping[str, int] | None = None,
        batch_norm: bool = False,
        dropout: float = 0.5,
        width: float = 1.0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels)
        check_choice("root", root, _ROOTS)
        self.image_shape = (in_channels, 32, 32)
        layers = {**_widened(width), "conv3c": (num_classes, 1)}
        of_groups = {"conv2a": root, "conv3a": max(1, root // 2), **(groups or {})}
        _check_groups(of_groups, {"image": in_channels, **{name: channels for name, (channels, _) in layers.items()}})
        read = in_channels
        with without_drawing():
            for name, (channels, window) in layers.items():
                place = name.removeprefix("conv")
                sizes = (read, channels, window)
                self.add_module(name, nn.Conv2d(*sizes, padding=window // 2, groups=of_groups.get(name, 1)))
                if batch_norm and name != "conv3c":
                    self.add_module(f"norm{place}", nn.BatchNorm2d(channels))
                self.add_module(f"relu{place}", nn.ReLU(inplace=True))
                if name in _POOLS:
                    self.add_module(f"pool{place[0]}", _POOLS[name](3, stride=2, ceil_mode=True))
                    self.add_module(f"drop{place[0]}", nn.Dropout(dropout))
                read = channels
        self.pool3 = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies images [N, C, 32, 32] -> logits [N, num_classes]: the layers one after the other."""
        for layer in self.children():
            x = layer(x)
        return x

    def init_layer(self, name: str, layer: nn.Module) -> None:
        """Sets the initial parameters of one layer, drawing from its device's default generator.

        Args:
            name: name of the layer in this network, e.g. "conv2a".
            layer: the layer; its parameters have the shapes of this network's layer of that name.
        """
        if isinstance(layer, nn.Conv2d):
            init_normal(layer, std=None, bias=0.0)
        else:
            init_he(layer)


def _widened(width: float) -> dict[str, tuple[int, int]]:
    """All layers but the last with `width` times as many channels."""
    if not 0 < width < math.inf:
        raise ValueError(f"width must be a positive number, got {width}")
    layers = {}
    for name, (channels, window) in _LAYERS.items():
        exact = width * channels
        if round(exact) < 1 or not math.isclose(exact, round(exact), rel_tol=1e-9):
            raise ValueError(
                f"{name}: width {width} of {channels} channels is {exact}, not a positive whole number; "
                f"use a multiple of 1/{math.gcd(*(count for count, _ in _LAYERS.values()))}"
            )
        layers[name] = (round(exact), window)
    return layers


def _check_groups(groups: Mapping[str, int], channels: dict[str, int]) -> None:
    """Raises ValueError unless all the names are of layers, and the numbers divide what these read and make.

    Args:
        groups: layer name -> filter groups.
        channels: what the image and, in their order, the layers have.
    """
    read_by = {name: channels[before] for before, name in itertools.pairwise(channels)}
    for name, count in groups.items():
        if name not in read_by:
            raise ValueError(f"groups: no layer {name!r}{did_you_mean(name, read_by)} (there are {', '.join(read_by)})")
        common = math.gcd(read_by[name], channels[name])
        if not isinstance(count, int) or count < 1 or common % count:
            usable = [number for number in range(1, common + 1) if common % number == 0]
            raise ValueError(
                f"{name}: {read_by[name]} -> {channels[name]} channels do not divide over {count} groups; "
                f"use one of {usable}"
            )
