"""AlexNet: the eight-layer network that was cut into two lanes, one per GPU, that met at three layers only.

What is here: `AlexNet` with the published sizes, and `SmallAlexNet`, the same structure for images of 28 to 64 pixels.
What is kept out: devices (a lane is a group of channels here; where it runs is a plan's business), training.

Source: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012;
"the paper" below.

Shapes: N batch, C all channels, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from lanes.models.arguments import check_counts, did_you_mean
from lanes.models.grouped_linear import GroupedLinear
from lanes.models.initial_weights import init_normal, without_drawing
from lanes.models.local_response_norm import LocalResponseNorm

CROSSABLE = ("conv2", "conv3", "conv4", "conv5", "fc6", "fc7")
"""Layers that may join the lanes; conv1 reads the whole image and fc8 makes the logits from all lanes in any case."""


@dataclass(frozen=True)
class _Sizes:
    """What distinguishes one network of this structure from another.

    Attributes:
        in_channels: channels of the image.
        image_size: height and width of the image in pixels.
        conv1_window: kernel size, stride and padding of conv1 in pixels.
        channels: output channels of every layer but fc8, in the order of the layers.
        weight_stds: standard deviation of a layer's initial weights; sqrt(2 / fan_in) of a layer that is not named.
        one_biases: layers whose biases start at 1, the others' at 0.
    """

    in_channels: int
    image_size: int
    conv1_window: tuple[int, int, int]
    channels: dict[str, int]
    weight_stds: dict[str, float]
    one_biases: Collection[str]

    @property
    def map_size(self) -> int:
        """Height and width of the maps after pool5: conv1, then three pools of 3x3 with stride 2."""
        kernel, stride, padding = self.conv1_window
        side = (self.image_size + 2 * padding - kernel) // stride + 1
        for _ in range(3):
            side = (side - 3) // 2 + 1
        return side

    def widened(self, width: float) -> _Sizes:
        """The same with `width` times the kernels in conv1 to conv4."""
        if not 0 < width < math.inf:
            raise ValueError(f"width must be a positive number, got {width}")
        channels = dict(self.channels)
        for name in ("conv1", "conv2", "conv3", "conv4"):
            exact = width * channels[name]
            if round(exact) < 1 or not math.isclose(exact, round(exact), rel_tol=1e-9):
                step = math.gcd(*list(self.channels.values())[:4])
                raise ValueError(
                    f"{name}: width {width} of {channels[name]} kernels is {exact}, not a positive whole number; "
                    f"use a multiple of 1/{step}"
                )
            channels[name] = round(exact)
        return replace(self, channels=channels)


class _EightLayers(nn.Module):
    """The structure that AlexNet and SmallAlexNet share: five convolutions, three fully connected layers.

    Attributes:
        lanes: number of channel groups.
        image_shape: (C, H, W) of the images that it reads.
    """

    lanes: int
    image_shape: tuple[int, int, int]

    def forward(self, x: Tensor) -> Tensor:
        """Classifies images [N, C, H, W] -> logits [N, num_classes]."""
        x = self.pool1(self.norm1(self.relu1(self.conv1(x))))
        x = self.pool2(self.norm2(self.relu2(self.conv2(x))))
        x = self.relu3(self.conv3(x))
        x = self.relu4(self.conv4(x))
        x = self.pool5(self.relu5(self.conv5(x)))
        x = self.flatten(x)
        x = self.drop6(self.relu6(self.fc6(x)))
        x = self.drop7(self.relu7(self.fc7(x)))
        logits: Tensor = self.fc8(x)
        return logits

    def init_layer(self, name: str, layer: nn.Module) -> None:
        """Sets the initial parameters of one layer, drawing from its device's default generator.

        The constructor calls this for every layer in the order of `named_children` and draws nothing else. So a
        network built on the meta device and then, in that order, given memory and initialised layer by layer has the
        weights that the same seed gives to a network built at once.

        Args:
            name: name of the layer in this network, e.g. "conv2".
            layer: the layer; its parameters have the shapes of this network's layer of that name.
        """
        init_normal(layer, std=self._sizes.weight_stds.get(name), bias=float(name in self._sizes.one_biases))

    def _build(self, sizes: _Sizes, *, num_classes: int, lanes: int, cross: Sequence[str], dropout: float) -> None:
        check_counts(num_classes=num_classes, in_channels=sizes.in_channels)
        check_lanes(sizes.channels, lanes)
        check_cross(cross)
        self.lanes = lanes
        self.image_shape = (sizes.in_channels, sizes.image_size, sizes.image_size)
        self._sizes = sizes
        groups = {name: 1 if name in cross else lanes for name in CROSSABLE}
        with without_drawing():
            self._build_convolutions(sizes, groups)
            self._build_fully_connected(sizes, groups, num_classes=num_classes, dropout=dropout)
        for name, layer in self.named_children():
            self.init_layer(name, layer)

    def _build_convolutions(self, sizes: _Sizes, groups: dict[str, int]) -> None:
        channels = sizes.channels
        self.conv1 = nn.Conv2d(sizes.in_channels, channels["conv1"], *sizes.conv1_window)
        self.relu1 = nn.ReLU(inplace=True)
        self.norm1 = self._local_response_norm()
        self.pool1 = nn.MaxPool2d(3, stride=2)
        self.conv2 = nn.Conv2d(channels["conv1"], channels["conv2"], 5, padding=2, groups=groups["conv2"])
        self.relu2 = nn.ReLU(inplace=True)
        self.norm2 = self._local_response_norm()
        self.pool2 = nn.MaxPool2d(3, stride=2)
        self.conv3 = nn.Conv2d(channels["conv2"], channels["conv3"], 3, padding=1, groups=groups["conv3"])
        self.relu3 = nn.ReLU(inplace=True)
        self.conv4 = nn.Conv2d(channels["conv3"], channels["conv4"], 3, padding=1, groups=groups["conv4"])
        self.relu4 = nn.ReLU(inplace=True)
        self.conv5 = nn.Conv2d(channels["conv4"], channels["conv5"], 3, padding=1, groups=groups["conv5"])
        self.relu5 = nn.ReLU(inplace=True)
        self.pool5 = nn.MaxPool2d(3, stride=2)

    def _build_fully_connected(
        self, sizes: _Sizes, groups: dict[str, int], *, num_classes: int, dropout: float
    ) -> None:
        channels = sizes.channels
        self.flatten = nn.Flatten(1)
        self.fc6 = fully_connected(channels["conv5"] * sizes.map_size**2, channels["fc6"], groups["fc6"])
        self.relu6 = nn.ReLU(inplace=True)
        self.drop6 = nn.Dropout(dropout)
        self.fc7 = fully_connected(channels["fc6"], channels["fc7"], groups["fc7"])
        self.relu7 = nn.ReLU(inplace=True)
        self.drop7 = nn.Dropout(dropout)
        self.fc8 = nn.Linear(channels["fc7"], num_classes)

    def _local_response_norm(self) -> LocalResponseNorm:
        # The paper's alpha = 1e-4 multiplies the sum over n = 5 channels, PyTorch's and ours the mean (section 3.3).
        return LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0, lanes=self.lanes)


class AlexNet(_EightLayers):
    """The network of section 3 of the paper.

    With two lanes and the default crossings it has the 60,965,224 parameters of the two-GPU network; with `lanes=1`
    the 62,378,344 of the same network without lanes. conv1 pads the image by 2 pixels: the paper says 224 pixels and
    draws maps of 55x55, but windows of 11x11 with stride 4 fill those from 227 pixels; of the 228 that padding gives
    they read 227.

    Dropout acts on the outputs of fc6 and fc7 ("the first two fully-connected layers", section 4.2). Initial weights
    are N(0, 0.01); the biases of conv2, conv4, conv5, fc6 and fc7 start at 1, the others at 0 (section 5).

    Args:
        num_classes: number of logits.
        lanes: number of channel groups; 1 is the dense control.
        cross: layers, of conv2 to conv5, fc6 and fc7, that read all lanes; the others stay in their lane.
        dropout: probability with which an output of fc6 and fc7 is dropped.
        width: factor of the number of kernels in conv1 to conv4. `lanes=1, width=0.5` is the paper's control of "one
            GPU with half as many kernels"; like there, conv5 and the fully connected layers keep their size, so that
            both nets have about as many parameters (footnote 2 of section 3.2).
        in_channels: channels of the image: 3 for colour, 1 for grey.

    Shape:
        [N, in_channels, 224, 224] -> [N, num_classes].

    Raises:
        ValueError: lanes do not divide the channels of some layer, cross names an unknown layer, width does not give
            whole numbers of kernels, or num_classes, in_channels or dropout is out of range.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        lanes: int = 2,
        *,
        cross: Sequence[str] = ("conv3", "fc6", "fc7"),
        dropout: float = 0.5,
        width: float = 1.0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        sizes = _Sizes(
            in_channels=in_channels,
            image_size=224,
            conv1_window=(11, 4, 2),
            channels={"conv1": 96, "conv2": 256, "conv3": 384, "conv4": 384, "conv5": 256, "fc6": 4096, "fc7": 4096},
            weight_stds=dict.fromkeys(("conv1", *CROSSABLE, "fc8"), 0.01),
            one_biases=("conv2", "conv4", "conv5", "fc6", "fc7"),
        )
        self._build(sizes.widened(width), num_classes=num_classes, lanes=lanes, cross=cross, dropout=dropout)


class SmallAlexNet(_EightLayers):
    """AlexNet's structure for images of 28 to 64 pixels; trains in minutes on a processor.

    conv1 has 7x7 windows, with stride 1 below 48 pixels and stride 2 from there on. The channels divide over 1, 2, 4,
    8 and 16 lanes. The arguments and errors are those of `AlexNet`, which see, and:

    Args:
        num_classes: number of logits.
        lanes: number of channel groups; 1 is the dense control.
        cross: layers that read all lanes.
        dropout: probability with which an output of fc6 and fc7 is dropped.
        image_size: height and width of the images in pixels, 28 (Fashion-MNIST) to 64.
        width: factor of the number of kernels in conv1 to conv4.
        in_channels: channels of the image: 3 for colour, 1 for grey.

    Shape:
        [N, in_channels, image_size, image_size] -> [N, num_classes].

    Raises:
        ValueError: as AlexNet, or image_size is not between 28 and 64.
    """

    def __init__(
        self,
        num_classes: int = 10,
        lanes: int = 2,
        *,
        cross: Sequence[str] = ("conv3", "fc6", "fc7"),
        dropout: float = 0.5,
        image_size: int = 64,
        width: float = 1.0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if not 28 <= image_size <= 64:
            raise ValueError(f"image_size must be from 28 to 64 pixels, got {image_size}")
        # The paper's N(0, 0.01) suits the paper's sizes: with fan-ins of some hundreds instead of some thousands the
        # signal would shrink five- to tenfold at each layer, and biases of 1 would drown what is left. Hence He's
        # normal (arXiv 1502.01852, section 2.2), which holds at any size, and zeros. conv1 keeps the paper's: with
        # weights that start near zero, what one sees in its filters after a minute is what they learned.
        sizes = _Sizes(
            in_channels=in_channels,
            image_size=image_size,
            conv1_window=(7, 1 if image_size < 48 else 2, 3),
            channels={"conv1": 48, "conv2": 96, "conv3": 128, "conv4": 128, "conv5": 96, "fc6": 256, "fc7": 256},
            weight_stds={"conv1": 0.01},
            one_biases=(),
        )
        self._build(sizes.widened(width), num_classes=num_classes, lanes=lanes, cross=cross, dropout=dropout)


def fully_connected(in_features: int, out_features: int, groups: int) -> nn.Module:
    """A linear layer; of several groups, one whose groups do not meet."""
    return nn.Linear(in_features, out_features) if groups == 1 else GroupedLinear(in_features, out_features, groups)


def check_lanes(channels: dict[str, int], lanes: int) -> None:
    """Raises ValueError unless lanes is a number that divides the channels of every layer."""
    common = math.gcd(*channels.values())
    usable = [count for count in range(1, common + 1) if common % count == 0]
    if not isinstance(lanes, int) or lanes < 1:
        raise ValueError(f"lanes must be a whole number of at least 1, got {lanes!r}; use one of {usable}")
    for name, count in channels.items():
        if count % lanes:
            raise ValueError(f"{name}: {count} channels do not divide over {lanes} lanes; use one of {usable}")


def check_cross(cross: Sequence[str]) -> None:
    """Raises ValueError unless all the names are of CROSSABLE layers."""
    if isinstance(cross, str):
        raise ValueError(f"cross must be a list of layer names, got the single string {cross!r}")
    for name in cross:
        if name not in CROSSABLE:
            hint = did_you_mean(name, CROSSABLE)
            raise ValueError(f"cross: no layer {name!r} that may cross{hint} (allowed: {', '.join(CROSSABLE)})")
