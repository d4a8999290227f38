"""The bottleneck block of ResNet and ResNeXt, in the three forms that compute the same.

What is here: `Bottleneck`, and `carry_weights`, which takes what one form has learned to another. What is kept out: the
networks (resnet.py), devices.

Source: Xie, Girshick, Dollár, Tu, He, "Aggregated Residual Transformations for Deep Neural Networks", arXiv 1611.05431;
"ResNeXt" below.

Shapes: N batch, C all channels, H W pixels; P channels of the 3x3 in all paths together, g groups, or paths.
"""

from __future__ import annotations

import functools
import operator
import re
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lanes.models.arguments import check_choice, check_counts
from lanes.models.concat import Concat

_TRANSFORM = ("conv1", "bn1", "relu1", "conv2", "bn2", "relu2")
_PATH_LAYERS = {"grouped": (), "concat": _TRANSFORM, "sum": (*_TRANSFORM, "conv3")}  # which a path has for itself


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution beside a shortcut; batch norm behind each, ReLU between them and at the end.

    The 3x3 has g groups. Three forms compute this (ResNeXt, Fig. 3); `carry_weights` takes weights between them:

    - "grouped", Fig. 3(c): three convolutions, the 3x3 with `groups=g`. This is the form for lanes.
    - "concat", Fig. 3(b), split-transform-concatenate: g paths of a 1x1 and a 3x3 of P / g channels each, concatenated
      and read by one 1x1. A grouped convolution is this by definition.
    - "sum", Fig. 3(a), split-transform-sum: g paths of a 1x1, a 3x3 and a 1x1, added. A 1x1 that reads concatenated
      channels is the sum of 1x1s that read a part each.

    Batch norm treats every channel alone: bn1 and bn2 of P channels are those of the paths side by side. bn3 cannot be
    divided so, because each path would be scaled by its own deviation instead of the sum's. In form "sum" it stands
    behind the sum, once for all paths, as ResNeXt has it (section 4: after aggregating, before the shortcut is added).

    Layers have torchvision's names, those of a path "paths.3.conv1" for instance. Convolutions have no biases.

    Args:
        in_channels: C of the input.
        width: P.
        out_channels: C of the output.
        groups: g, ResNeXt's cardinality.
        stride: of the block. If it is not 1, or if C changes, the shortcut is a 1x1 convolution of that stride and a
            batch norm (`downsample`; "option B" of ResNet, arXiv 1512.03385), else the input itself.
        strided: the convolution that has the stride: "conv2", the 3x3, as in ResNeXt's published code and in
            torchvision, or "conv1", the first 1x1, as in ResNet of 2015.
        form: "grouped", "concat" or "sum".

    Shape:
        [N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)].

    Raises:
        ValueError: groups do not divide width, a count is not a whole number of at least 1, or form or strided is
            none of those above.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        *,
        groups: int = 1,
        stride: int = 1,
        strided: str = "conv2",
        form: str = "grouped",
    ) -> None:
        super().__init__()
        check_counts(in_channels=in_channels, width=width, out_channels=out_channels, groups=groups, stride=stride)
        check_choice("strided", strided, ("conv2", "conv1"))
        check_choice("form", form, _PATH_LAYERS)
        if width % groups:
            raise ValueError(
                f"a 3x3 of {width} channels does not divide into {groups} groups; "
                f"use a number of groups that divides {width}, or another width"
            )
        self.form = form
        strides = (stride, 1) if strided == "conv1" else (1, stride)
        if form == "grouped":
            layers = _transform(in_channels, width, groups, strides)
            self.conv1, self.bn1, self.relu1, self.conv2, self.bn2, self.relu2 = layers
        else:
            transforms = (_transform(in_channels, width // groups, 1, strides) for _ in range(groups))
            self.paths = nn.ModuleList(nn.Sequential(OrderedDict(zip(_TRANSFORM, t, strict=True))) for t in transforms)
        if form == "concat":
            self.concat = Concat()
        if form == "sum":
            for path in self.paths:
                path.add_module("conv3", nn.Conv2d(width // groups, out_channels, 1, bias=False))
        else:
            self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu3 = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [N, in_channels, H, W] -> [N, out_channels, H / stride, W / stride], rounded up."""
        if self.form == "grouped":
            y = self.relu1(self.bn1(self.conv1(x)))
            y = self.conv3(self.relu2(self.bn2(self.conv2(y))))
        elif self.form == "concat":
            y = self.conv3(self.concat(*(path(x) for path in self.paths)))
        else:
            y = functools.reduce(operator.add, (path(x) for path in self.paths))
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu3(self.bn3(y) + shortcut)
        return out


def grouped_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of blocks of any form, in the names and shapes of form "grouped".

    Args:
        tensors: parameters, their gradients, or a whole state dict, of a block or of a network with such blocks, with
            the paths' tensors in the order of the paths.

    Returns:
        The tensors of the paths side by side, along the channels that the paths divide, and the others as they are.
    """
    found: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        found.setdefault(re.sub(r"\bpaths\.\d+\.", "", name), []).append(tensor)
    return {
        name: parts[0] if parts[0].dim() == 0 else torch.cat(parts, _path_dim(name)) for name, parts in found.items()
    }


def carry_weights(source: nn.Module, target: nn.Module) -> None:
    """Copies parameters and batch norms' statistics from one form into another; both then compute the same.

    Args:
        source: a `Bottleneck`, or a network of them, of any form.
        target: the same with blocks of any form; its tensors are overwritten.

    Raises:
        ValueError: the two differ in more than the form.
    """
    carried, wanted = grouped_tensors(source.state_dict()), grouped_tensors(target.state_dict())
    for name in {**carried, **wanted}:
        shapes = [list(side[name].shape) if name in side else "missing" for side in (carried, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{name} is {shapes[0]} in the source and {shapes[1]} in the target; "
                "carry weights between networks that differ in the form only"
            )
    state: dict[str, Tensor] = {}
    blocks = {name: block for name, block in target.named_modules() if isinstance(block, Bottleneck)}
    for name, tensor in carried.items():
        owner, _, kind = name.rpartition(".")
        prefix, _, layer = owner.rpartition(".")
        block = blocks.get(prefix)
        if block is None or layer not in _PATH_LAYERS[block.form]:
            state[name] = tensor
            continue
        count = len(block.paths)
        parts = [tensor] * count if tensor.dim() == 0 else tensor.chunk(count, _path_dim(name))
        start = f"{prefix}." if prefix else ""
        state |= {f"{start}paths.{index}.{layer}.{kind}": part for index, part in enumerate(parts)}
    target.load_state_dict(state)


def _transform(
    in_channels: int, width: int, groups: int, strides: tuple[int, int]
) -> tuple[nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
    """The 1x1 and the 3x3, each with batch norm and ReLU: of the whole block, or of one path."""
    return (
        nn.Conv2d(in_channels, width, 1, stride=strides[0], bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, stride=strides[1], padding=1, groups=groups, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """What the shortcut needs where the shape changes."""
    if stride == 1 and in_channels == out_channels:
        return None
    projection = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(projection, nn.BatchNorm2d(out_channels))


def _path_dim(name: str) -> int:
    """Along which dimension the paths' parts of a tensor lie side by side: input channels of conv3, else output."""
    return 1 if name.endswith("conv3.weight") else 0
