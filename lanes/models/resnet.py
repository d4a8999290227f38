"""ResNet, ResNeXt and root networks: residual networks of bottleneck blocks, whose 3x3s are cut into groups.

What is here: `ResNet` for ImageNet and `CifarResNeXt` for images of 32 pixels. What is kept out: the block
(bottleneck.py), devices, training.

Sources:
    ResNet: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", arXiv 1512.03385.
    ResNeXt: Xie, Girshick, Dollár, Tu, He, "Aggregated Residual Transformations for Deep Neural Networks", arXiv
        1611.05431, and the authors' code, github.com/facebookresearch/ResNeXt, models/resnext.lua.
    Roots: Ioannou, Robertson, Cipolla, Criminisi, "Deep Roots: Improving CNN Efficiency with Hierarchical Filter
        Groups", arXiv 1605.06489.

Shapes: N batch, C all channels, H W pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lanes.models.arguments import check_choice, check_counts
from lanes.models.bottleneck import Bottleneck
from lanes.models.initial_weights import init_he, initialise, without_drawing

EQUAL_COST_WIDTHS = {1: 64, 2: 40, 4: 24, 8: 14, 32: 4}
"""Cardinality -> base width at which networks cost about the same (ResNeXt, Tables 2 and 3).

All of ResNet-50 have 25.0 to 25.6 M parameters and 4.09 to 4.27 G multiply-adds (4.4 % apart). A stem of s channels in
place of 64 wants s / 64 of the width: `CifarResNeXt(depth=11, stem_channels=12)` with cardinality 1, 2, 4, 8 and base
width 12, 7.5, 4.5, 2.625 has 11.54, 11.54, 11.66, 11.38 M multiply-adds (2.4 % apart), with depth 20, stem 16 and base
width 16, 10, 6, 3.5 it has 33.7, 34.1, 34.5, 34.1 M (2.2 % apart).
"""

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # depth -> blocks of each stage


class ResNet(nn.Module):
    """The network of ResNet's Table 1 for 224-pixel images, and what ResNeXt and roots made of it.

    A stem of 7x7 with stride 2 and a max pool, four stages of bottlenecks with 256, 512, 1024 and 2048 output
    channels, of which all but the first halve the map, a mean over the map and a linear layer.

    - ResNet-50: the defaults. 25,557,032 parameters, 4.09 G multiply-adds; with `strided="conv1"`, as in 2015, 3.86 G.
    - ResNeXt-50 32x4d: `cardinality=32, base_width=4`. 25,028,904 parameters; see also `EQUAL_COST_WIDTHS`.
    - Root-16: `root=16, strided="conv1"`. 16, 8, 4 and 2 groups in the 3x3s of the four stages; 27 % fewer parameters
      and 37 % fewer multiply-adds than ResNet-50 of 2015. The original used root 2, 4, 8, 16, 32 and 64.

    Layers have torchvision's names: its state dicts of ResNet and ResNeXt load in form "grouped". Weights start from
    He's normal by fan-out, those of the linear layer from N(0, 0.01) (Goyal et al., arXiv 1706.02677, section 5.1). In
    forms "concat" and "sum" the fan-out is that of one path, as in ResNeXt's code; to start from what another form
    starts from, use `carry_weights`.

    Args:
        num_classes: number of logits.
        depth: 50, 101 or 152 layers.
        cardinality: groups of every 3x3; 1 is ResNet.
        base_width: channels of one group in the first stage; twice as many in each further stage. Fractions are
            rounded down in every stage, as in ResNeXt's code and torchvision.
        root: groups of the 3x3s in the first stage; half as many in each further stage, at least 1. Instead of
            cardinality.
        strided: the convolution of a block that has its stride: "conv2" or "conv1"; see `Bottleneck`.
        form: of the blocks: "grouped", "concat" or "sum"; see `Bottleneck`.
        in_channels: channels of the image: 3 for colour, 1 for grey.

    Attributes:
        image_shape: (C, H, W) of the images for which it was made.

    Shape:
        [N, in_channels, H, W] -> [N, num_classes]; any H and W will do, as the head takes the mean over the map.

    Raises:
        ValueError: depth, strided or form is none of those above, cardinality and root are both given, groups do not
            divide the channels of some stage, or a number is out of range.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        depth: int = 50,
        cardinality: int = 1,
        base_width: float = 64,
        root: int = 1,
        strided: str = "conv2",
        form: str = "grouped",
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels, cardinality=cardinality, root=root)
        check_choice("depth", depth, _BLOCKS)
        if cardinality != 1 and root != 1:
            raise ValueError(f"cardinality {cardinality} and root {root} both set the groups; leave one of them at 1")
        self.image_shape = (in_channels, 224, 224)
        with without_drawing():
            self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(64)
            self.relu = nn.ReLU(inplace=True)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
            stages = [
                _stage(
                    64 if stage == 0 else 128 * 2**stage,
                    stage_width(cardinality, base_width, stage),
                    256 * 2**stage,
                    blocks=blocks,
                    groups=cardinality if root == 1 else max(root // 2**stage, 1),
                    stride=1 if stage == 0 else 2,
                    strided=strided,
                    form=form,
                )
                for stage, blocks in enumerate(_BLOCKS[depth])
            ]
            self.layer1, self.layer2, self.layer3, self.layer4 = stages
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(2048, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies images [N, in_channels, H, W] -> logits [N, num_classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits

    def init_layer(self, name: str, layer: nn.Module) -> None:
        """Sets the initial parameters of one layer, drawing from its device's default generator.

        Args:
            name: qualified name of the layer, e.g. "layer1.0.conv2"; all of a kind start alike.
            layer: the layer; its parameters have the shapes of this network's layer of that name.
        """
        init_he(layer)


class CifarResNeXt(nn.Module):
    """The network of ResNeXt's section 5.3 for images of 32 pixels, and narrower ones of the same shape.

    A stem of 3x3, three stages of (depth - 2) / 9 bottlenecks with 4, 8 and 16 times the stem's output channels, of
    which all but the first halve the map, a mean over the map and a linear layer. ResNeXt-29 8x64d, the default, has
    34,426,698 parameters and 5.39 G multiply-adds, 16x64d 68,155,210 and 10.7 G (Table 7: 34.4 M and 68.1 M).

    The paper's results on CIFAR were made with pre-activated blocks. This is the authors' code, which has the blocks
    of ImageNet, and whose notes call them better. The stride is on the 3x3.

    For processors: see `EQUAL_COST_WIDTHS`, and `depth=11, stem_channels=16, cardinality=8, base_width=4` with 24.4 M
    multiply-adds, whose channels and groups divide over 1, 2, 4 and 8 lane devices.

    Args:
        num_classes: number of logits.
        depth: 9n + 2 layers for n blocks in each stage: 11, 20, 29, ...
        cardinality: groups of every 3x3.
        base_width: channels of one group in the first stage; twice as many in each further stage. Fractions are
            rounded down in every stage, as in ResNeXt's code.
        stem_channels: output channels of the stem; 64 in the paper.
        form: of the blocks: "grouped", "concat" or "sum"; see `Bottleneck`.
        in_channels: channels of the image: 3 for colour, 1 for grey.

    Attributes:
        image_shape: (C, H, W) of the images for which it was made.

    Shape:
        [N, in_channels, H, W] -> [N, num_classes]; any H and W will do, as the head takes the mean over the map.

    Raises:
        ValueError: depth is not 9n + 2, form is none of those above, or a number is out of range.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        depth: int = 29,
        cardinality: int = 8,
        base_width: float = 64,
        stem_channels: int = 64,
        form: str = "grouped",
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        check_counts(
            num_classes=num_classes, in_channels=in_channels, cardinality=cardinality, stem_channels=stem_channels
        )
        if depth < 11 or (depth - 2) % 9:
            raise ValueError(f"depth must be 9n + 2 for n blocks in each stage, got {depth}; use 11, 20, 29 or more")
        self.image_shape = (in_channels, 32, 32)
        with without_drawing():
            self.conv1 = nn.Conv2d(in_channels, stem_channels, 3, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(stem_channels)
            self.relu = nn.ReLU(inplace=True)
            self.layer1, self.layer2, self.layer3 = [
                _stage(
                    stem_channels if stage == 0 else 2 * stem_channels * 2**stage,
                    stage_width(cardinality, base_width, stage),
                    4 * stem_channels * 2**stage,
                    blocks=(depth - 2) // 9,
                    groups=cardinality,
                    stride=1 if stage == 0 else 2,
                    strided="conv2",
                    form=form,
                )
                for stage in range(3)
            ]
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(16 * stem_channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies images [N, in_channels, H, W] -> logits [N, num_classes]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits

    def init_layer(self, name: str, layer: nn.Module) -> None:
        """Sets the initial parameters of one layer; as `ResNet`'s."""
        init_he(layer)


def stage_width(cardinality: int, base_width: float, stage: int) -> int:
    """Channels of the 3x3s of a stage, in all groups together; the first stage is 0.

    Raises:
        ValueError: base_width is not a number of at least 1.
    """
    if not 1 <= base_width < math.inf:
        raise ValueError(f"base_width must be a number of at least 1, got {base_width}")
    return cardinality * math.floor(base_width * 2**stage)


def _stage(
    in_channels: int,
    width: int,
    out_channels: int,
    *,
    blocks: int,
    groups: int,
    stride: int,
    strided: str,
    form: str,
) -> nn.Sequential:
    """Bottlenecks in a row; the first one changes channels and, by its stride, the map."""
    first = Bottleneck(in_channels, width, out_channels, groups=groups, stride=stride, strided=strided, form=form)
    rest = [Bottleneck(out_channels, width, out_channels, groups=groups, form=form) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)
