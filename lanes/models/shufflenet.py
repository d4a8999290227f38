"""ShuffleNet, version 1: grouped 1x1 convolutions, and a shuffle of channels by which the groups meet.

What is here: `ShuffleNetV1`, for ImageNet and, with fewer strides, for small images. What is kept out: devices (a plan
cuts the groups into lanes; the shuffle is what crosses), training.

Source: Zhang, Zhou, Lin, Sun, "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices",
arXiv 1707.01083; "the paper" below. The authors' code: github.com/megvii-model/ShuffleNet-Series, ShuffleNetV1.

Shapes: N batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from lanes.models.arguments import check_choice, check_counts, check_reaches
from lanes.models.concat import Concat
from lanes.models.initial_weights import init_he, initialise, without_drawing

_STAGE2_CHANNELS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
"""Groups -> output channels of stage 2 (Table 1); each further stage has twice the channels of the one before."""

_STEM_CHANNELS = {0.25: 12, 0.5: 12, 1.0: 24, 1.5: 24, 2.0: 48}
"""Scale -> output channels of the first convolution: those of the authors' code, which scales them by halves and whole
numbers only. It has no 0.25; with 12 that comes to the 13 M multiply-adds of Table 2 (13.2 to
14.0 M for 1 to 4 groups, 15.7 M for 8), with 6 to 11 M."""

_REPEATS = (4, 8, 4)
"""Units of stages 2 to 4; the first of each has stride 2."""


class ShuffleNetV1(nn.Module):
    """The network of Table 1 of the paper, with or without its shuffles.

    Convolutions and the classifier do 143, 141, 137, 134 and 138 M multiply-adds at 224 pixels with 1, 2, 3, 4 and 8
    groups; the paper says 143, 140, 137, 133 and 137. The first 1x1 convolution of stage 2 is dense, as its input has
    few channels.

    Where the authors' code and the paper's Fig. 2 differ, this is the figure: channels are shuffled before the
    depthwise convolution (in the code behind it), and the ReLU of a unit with stride 2 comes after the concatenation.
    A unit's bottleneck has a quarter of its output channels, rounded up to a multiple of the groups; at scales 1 and 2
    there is nothing to round. The first convolution has some channels more where the groups would not divide what
    stage 2 adds to them: 16 in place of 12 with 8 groups at scale 0.5, as in the code.

    For images of 32 pixels, `total_stride=8` gives the first convolution stride 1 and leaves out the max pool: the
    usual form for CIFAR (github.com/kuangliu/pytorch-cifar, models/shufflenet.py, whose first kernels are 1x1).

    Args:
        num_classes: number of logits.
        groups: g, of every 1x1 convolution but the first: 1, 2, 3, 4 or 8.
        scale: s of "ShuffleNet s x", factor of the channels: 0.25, 0.5, 1, 1.5 or 2.
        shuffle: whether channels are shuffled. False is the paper's control (section 4.1.2): groups then meet where
            stage 2 begins, where concatenation moves their borders, and in the classifier.
        in_channels: channels of the image.
        image_size: height and width of the images in pixels.
        total_stride: pixels of the image, across, for one of the last map: 32; 16 for a first convolution of stride 1;
            8 for that and no max pool.

    Attributes:
        image_shape: (C, H, W) of the images that it reads.

    Shape:
        [N, in_channels, image_size, image_size] -> [N, num_classes].

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        groups: int = 4,
        scale: float = 1.0,
        shuffle: bool = True,
        in_channels: int = 3,
        image_size: int = 224,
        total_stride: int = 32,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
        check_choice("groups", groups, _STAGE2_CHANNELS)
        check_choice("scale", scale, _STEM_CHANNELS)
        check_choice("total_stride", total_stride, (8, 16, 32))
        check_reaches(image_size, total_stride)
        self.image_shape = (in_channels, image_size, image_size)
        widths = [int(scale * _STAGE2_CHANNELS[groups] * 2**stage) for stage in range(len(_REPEATS))]
        stem = _STEM_CHANNELS[scale]
        stem += (widths[0] - stem) % groups
        with without_drawing():
            self.stem = nn.Sequential(
                nn.Conv2d(in_channels, stem, 3, stride=2 if total_stride == 32 else 1, padding=1, bias=False),
                nn.BatchNorm2d(stem),
                nn.ReLU(inplace=True),
            )
            self.maxpool = nn.Identity() if total_stride == 8 else nn.MaxPool2d(3, stride=2, padding=1)
            self.stage2 = _stage(stem, widths[0], repeats=_REPEATS[0], groups=groups, shuffle=shuffle, first_groups=1)
            self.stage3 = _stage(*widths[:2], repeats=_REPEATS[1], groups=groups, shuffle=shuffle, first_groups=groups)
            self.stage4 = _stage(*widths[1:], repeats=_REPEATS[2], groups=groups, shuffle=shuffle, first_groups=groups)
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.flatten = nn.Flatten(1)
            self.fc = nn.Linear(widths[-1], num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies images [N, C, H, W] -> logits [N, num_classes]."""
        x = self.maxpool(self.stem(x))
        x = self.stage4(self.stage3(self.stage2(x)))
        logits: Tensor = self.fc(self.flatten(self.avgpool(x)))
        return logits

    def init_layer(self, name: str, layer: nn.Module) -> None:
        """Sets the initial parameters of one layer, drawing from its device's default generator (`init_he`)."""
        init_he(layer)


class _Unit(nn.Module):
    """Adds a branch to its input: Fig. 2(b) of the paper, and without shuffle Fig. 2(a) with grouped 1x1."""

    def __init__(self, channels: int, *, groups: int, shuffle: bool) -> None:
        super().__init__()
        self.branch = _branch(channels, channels, channels, stride=1, groups=(groups, groups), shuffle=shuffle)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [N, C, H, W] -> [N, C, H, W]."""
        y: Tensor = self.relu(x + self.branch(x))
        return y


class _StridedUnit(nn.Module):
    """Halves the map and joins the branch to the averaged input: Fig. 2(c) of the paper."""

    def __init__(self, in_channels: int, out_channels: int, *, first_groups: int, groups: int, shuffle: bool) -> None:
        super().__init__()
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1)
        self.branch = _branch(
            in_channels,
            out_channels,
            out_channels - in_channels,
            stride=2,
            groups=(first_groups, groups),
            shuffle=shuffle,
        )
        self.concat = Concat()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [N, in_channels, H, W] -> [N, out_channels, H / 2, W / 2]."""
        y: Tensor = self.relu(self.concat(self.shortcut(x), self.branch(x)))
        return y


def _stage(
    in_channels: int, out_channels: int, *, repeats: int, first_groups: int, groups: int, shuffle: bool
) -> nn.Sequential:
    """A strided unit and `repeats - 1` others; first_groups are those of the very first 1x1 convolution."""
    first = _StridedUnit(in_channels, out_channels, first_groups=first_groups, groups=groups, shuffle=shuffle)
    return nn.Sequential(first, *(_Unit(out_channels, groups=groups, shuffle=shuffle) for _ in range(repeats - 1)))


def _branch(
    in_channels: int, unit_channels: int, out_channels: int, *, stride: int, groups: tuple[int, int], shuffle: bool
) -> nn.Sequential:
    """1x1 to the bottleneck, shuffle, 3x3 of every channel by itself, 1x1; ReLU after the first only (section 3.2).

    Args:
        in_channels: channels of the unit's input.
        unit_channels: channels of the unit's output, of which the bottleneck has a quarter.
        out_channels: channels of the branch.
        stride: of the 3x3 convolution.
        groups: of the first and of the second 1x1 convolution; the shuffle takes the second's.
        shuffle: whether there is one.
    """
    bottleneck = -(-unit_channels // (4 * groups[1])) * groups[1]
    shuffles = OrderedDict(shuffle=nn.ChannelShuffle(groups[1])) if shuffle and groups[1] > 1 else {}
    return nn.Sequential(
        OrderedDict(
            reduce=nn.Conv2d(in_channels, bottleneck, 1, groups=groups[0], bias=False),
            norm1=nn.BatchNorm2d(bottleneck),
            relu=nn.ReLU(inplace=True),
            **shuffles,
            depthwise=nn.Conv2d(bottleneck, bottleneck, 3, stride, 1, groups=bottleneck, bias=False),
            norm2=nn.BatchNorm2d(bottleneck),
            expand=nn.Conv2d(bottleneck, out_channels, 1, groups=groups[1], bias=False),
            norm3=nn.BatchNorm2d(out_channels),
        )
    )
