"""MobileNet, versions 1 and 2: networks of depthwise convolutions, the finest grouping, and dense 1x1 convolutions.

What is here: `MobileNetV1` and `MobileNetV2`, for ImageNet and, with fewer strides, for small images. What is kept out:
devices (a plan cuts the channels of the depthwise layers into lanes), training.

Sources: Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", arXiv
1704.04861, "the first paper"; Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv
1801.04381, "the second paper"; their authors' code in github.com/tensorflow/models, research/slim/nets.

Shapes: N batch, C channels, H W pixels.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from lanes.models.arguments import check_choice, check_counts, check_reaches
from lanes.models.initial_weights import init_he, initialise, without_drawing

_V1_BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)
"""Output channels and stride of every block: the first paper's Table 1, whose last stride of 2 is a slip: maps stay 7x7
there, and the authors' code has 1."""

_V2_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion t, output channels c, number n and first stride s of the blocks: the second paper's Table 2."""


class MobileNetV1(nn.Module):
    """Thirteen depthwise separable blocks; 4,231,976 parameters, published as 4.2 million.

    A block is a 3x3 convolution of every channel by itself and a dense 1x1 convolution, each with batch norm and ReLU
    (section 3.1 and Fig. 3 of the first paper).

    For images of 32 pixels, `total_stride=16` gives the first convolution stride 1 and leaves the rest: the usual form
    for CIFAR (github.com/kuangliu/pytorch-cifar, models/mobilenet.py).

    Args:
        num_classes: number of logits.
        width_multiplier: the paper's alpha, factor of the channels of every layer; published are 0.25, 0.5, 0.75 and
            1; others are rounded as MobileNetV2's.
        in_channels: channels of the image.
        dropout: probability with which an input of the classifier is dropped; the paper names none, the code has this.
        image_size: height and width of the images in pixels; published are 128, 160, 192 and 224.
        total_stride: pixels of the image, across, for one of the last map: 32 as published; for 16, 8, 4, 2 or 1 the
            first layers with stride 2 have stride 1 instead.

    Attributes:
        image_shape: (C, H, W) of the images that it reads.

    Shape:
        [N, in_channels, image_size, image_size] -> [N, num_classes].

    Raises:
        ValueError: an argument is out of range.

    Source: arXiv 1704.04861, Table 1 and section 3.3; initial weights as ResNet's (`init_he`).
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        width_multiplier: float = 1.0,
        in_channels: int = 3,
        dropout: float = 0.001,
        image_size: int = 224,
        total_stride: int = 32,
    ) -> None:
        super().__init__()
        _check(num_classes, in_channels, width_multiplier, image_size, total_stride)
        self.image_shape = (in_channels, image_size, image_size)
        stem_stride, *strides = _fewer_strides([2, *(stride for _, stride in _V1_BLOCKS)], total_stride)
        widths = [_whole_channels(channels * width_multiplier) for channels in (32, *(c for c, _ in _V1_BLOCKS))]
        with without_drawing():
            self.stem = _conv_norm(in_channels, widths[0], 3, stride=stem_stride)
            self.blocks = nn.Sequential(
                *(_separable(*sizes) for sizes in zip(widths[:-1], widths[1:], strides, strict=True))
            )
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.flatten = nn.Flatten(1)
            self.dropout = nn.Dropout(dropout)
            self.fc = nn.Linear(widths[-1], num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies images [N, C, H, W] -> logits [N, num_classes]."""
        x = self.blocks(self.stem(x))
        x = self.dropout(self.flatten(self.avgpool(x)))
        logits: Tensor = self.fc(x)
        return logits

    def init_layer(self, name: str, layer: nn.Module) -> None:
        """Sets the initial parameters of one layer, drawing from its device's default generator (`init_he`)."""
        init_he(layer)


class MobileNetV2(nn.Module):
    """Seventeen inverted residual blocks; 3,504,872 parameters as published, with the names of torchvision's.

    For images of 32 pixels, `total_stride=8` gives the first convolution and the first block of 24 channels stride 1:
    the usual form for CIFAR (github.com/kuangliu/pytorch-cifar, models/mobilenetv2.py).

    Args:
        num_classes: number of logits.
        width_multiplier: factor of the channels between blocks, which are rounded to multiples of 8; published are
            0.35, 0.5, 0.75, 1, 1.3 and 1.4. Below 1 the last convolution keeps its 1280 (section 6.1).
        in_channels: channels of the image.
        dropout: probability with which an input of the classifier is dropped; the code's.
        image_size: height and width of the images in pixels; published are 96, 128, 160, 192 and 224.
        total_stride: as MobileNetV1's.

    Attributes:
        image_shape: (C, H, W) of the images that it reads.

    Shape:
        [N, in_channels, image_size, image_size] -> [N, num_classes].

    Raises:
        ValueError: an argument is out of range.

    Source: arXiv 1801.04381, Tables 1 and 2; names and initial weights as torchvision's `mobilenet_v2`.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        width_multiplier: float = 1.0,
        in_channels: int = 3,
        dropout: float = 0.2,
        image_size: int = 224,
        total_stride: int = 32,
    ) -> None:
        super().__init__()
        _check(num_classes, in_channels, width_multiplier, image_size, total_stride)
        self.image_shape = (in_channels, image_size, image_size)
        blocks = [(t, c, s if i == 0 else 1) for t, c, n, s in _V2_STAGES for i in range(n)]
        stem_stride, *strides = _fewer_strides([2, *(stride for _, _, stride in blocks)], total_stride)
        width = _whole_channels(32 * width_multiplier)
        last = _whole_channels(1280 * max(1.0, width_multiplier))
        with without_drawing():
            features: list[nn.Module] = [_conv_norm(in_channels, width, 3, stride=stem_stride, relu=nn.ReLU6)]
            for (expansion, channels, _), stride in zip(blocks, strides, strict=True):
                made = _whole_channels(channels * width_multiplier)
                features.append(_InvertedResidual(width, made, expansion=expansion, stride=stride))
                width = made
            features.append(_conv_norm(width, last, 1, relu=nn.ReLU6))
            self.features = nn.Sequential(*features)
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.flatten = nn.Flatten(1)
            self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies images [N, C, H, W] -> logits [N, num_classes]."""
        logits: Tensor = self.classifier(self.flatten(self.avgpool(self.features(x))))
        return logits

    def init_layer(self, name: str, layer: nn.Module) -> None:
        """Sets the initial parameters of one layer, drawing from its device's default generator (`init_he`)."""
        init_he(layer)


class _InvertedResidual(nn.Module):
    """Expands channels, convolves each by itself, projects to few; no ReLU there: the bottleneck is linear.

    Source: the second paper, section 3.3 and Table 1; a sum where input and output have one shape.
    """

    def __init__(self, in_channels: int, out_channels: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.sums = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            *([_conv_norm(in_channels, hidden, 1, relu=nn.ReLU6)] if expansion > 1 else []),
            _conv_norm(hidden, hidden, 3, stride=stride, groups=hidden, relu=nn.ReLU6),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [N, in_channels, H, W] -> [N, out_channels, H / stride, W / stride]."""
        y: Tensor = self.conv(x)
        return x + y if self.sums else y


def _separable(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """A depthwise separable convolution of version 1."""
    depthwise = _conv_norm(in_channels, in_channels, 3, stride=stride, groups=in_channels)
    pointwise = _conv_norm(in_channels, out_channels, 1)
    return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=pointwise))


def _conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    groups: int = 1,
    relu: type[nn.ReLU | nn.ReLU6] = nn.ReLU,
) -> nn.Sequential:
    """A convolution padded to keep the map's size (but for stride), batch norm and ReLU."""
    padding = kernel_size // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        relu(inplace=True),
    )


def _whole_channels(exact: float) -> int:
    """The nearest multiple of 8, of at least 8, that takes off no more than a tenth: `make_divisible` of the code."""
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


def _fewer_strides(published: Sequence[int], total_stride: int) -> list[int]:
    """The strides with as many of the first set to 1 as make their product total_stride."""
    strides = list(published)
    while math.prod(strides) > total_stride:
        strides[strides.index(2)] = 1
    return strides


def _check(num_classes: int, in_channels: int, width_multiplier: float, image_size: int, total_stride: int) -> None:
    """Raises ValueError for arguments out of range."""
    check_counts(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    if not 0 < width_multiplier < math.inf:
        raise ValueError(f"width_multiplier must be a positive number, e.g. 0.5, got {width_multiplier}")
    check_choice("total_stride", total_stride, (1, 2, 4, 8, 16, 32))
    check_reaches(image_size, total_stride)
