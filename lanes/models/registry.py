"""The networks that have a name: from "alexnet" to "volume_net".

What is here: `ENTRIES`, which says what each name stands for, and `build`, which makes it. What is kept out: the
networks themselves (a file each), and how configurations write a name (named.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lanes.models.alexnet import AlexNet, SmallAlexNet
from lanes.models.arguments import did_you_mean
from lanes.models.cuda_convnet2 import CudaConvnet2AlexNet
from lanes.models.grouped_nd import SignalNet, VolumeNet
from lanes.models.mobilenet import MobileNetV1, MobileNetV2
from lanes.models.nin import NetworkInNetwork
from lanes.models.resnet import EQUAL_COST_WIDTHS, CifarResNeXt, ResNet
from lanes.models.shufflenet import ShuffleNetV1

_ALEXNET = "Krizhevsky et al., NIPS 2012"
_MOBILENET_V1 = "Howard et al., arXiv 1704.04861"
_MOBILENET_V2 = "Sandler et al., arXiv 1801.04381"
_NIN = "Lin et al., arXiv 1312.4400"
_RESNET = "He et al., arXiv 1512.03385"
_RESNEXT = "Xie et al., arXiv 1611.05431"
_ROOTS = "Ioannou et al., arXiv 1605.06489"
_SHUFFLENET = "Zhang et al., arXiv 1707.01083"


@dataclass(frozen=True)
class Entry:
    """What a name stands for.

    Attributes:
        factory: the network's class.
        about: what it is, in one line.
        source: of the architecture: paper, or whose configuration.
        fixed: arguments by which it differs from the class's defaults.
    """

    factory: Callable[..., nn.Module]
    about: str
    source: str
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        """Every argument of the constructor, with the value that it has under this name."""
        parameters = inspect.signature(self.factory).parameters.values()
        return {parameter.name: parameter.default for parameter in parameters} | dict(self.fixed)


def _alexnets() -> dict[str, Entry]:
    return {
        "alexnet": Entry(AlexNet, "AlexNet in two lanes that meet at conv3, fc6 and fc7", _ALEXNET),
        "alexnet_dense": Entry(AlexNet, "AlexNet without lanes", _ALEXNET, {"lanes": 1}),
        "cuda_convnet2_alexnet": Entry(
            CudaConvnet2AlexNet,
            "AlexNet of cuda-convnet2's two-GPU configuration",
            "github.com/akrizhevsky/cuda-convnet2, layers-imagenet-2gpu-model.cfg",
        ),
        "small_alexnet": Entry(SmallAlexNet, "AlexNet's structure for images of 64 pixels", _ALEXNET),
        "small_alexnet_cifar": Entry(
            SmallAlexNet, "AlexNet's structure for images of 32 pixels", _ALEXNET, {"image_size": 32}
        ),
    }


def _nins() -> dict[str, Entry]:
    small: dict[str, Any] = {"width": 0.5, "batch_norm": True, "dropout": 0.0}
    roots = {
        f"nin_root{root}": Entry(
            NetworkInNetwork, f"NIN with {root} filter groups, then {root // 2}", _ROOTS, {"root": root}
        )
        for root in (2, 4, 8, 16)
    }
    return {
        "nin": Entry(NetworkInNetwork, "Network in Network for CIFAR-10", _NIN),
        **roots,
        "nin_cifar": Entry(NetworkInNetwork, "NIN of half the width, with batch norm", _ROOTS, small),
        "nin_root8_cifar": Entry(
            NetworkInNetwork, "NIN root-8 of half the width, with batch norm", _ROOTS, {"root": 8, **small}
        ),
    }


def _resnets() -> dict[str, Entry]:
    of_2015 = {"strided": "conv1"}
    return {
        "resnet50": Entry(ResNet, "ResNet-50, stride in the 3x3s", _RESNET),
        "resnet101": Entry(ResNet, "ResNet-101, stride in the 3x3s", _RESNET, {"depth": 101}),
        "resnet50_2015": Entry(ResNet, "ResNet-50, stride in the first 1x1s", _RESNET, of_2015),
        "resnet50_root16": Entry(
            ResNet, "ResNet-50 of 2015 with 16, 8, 4, 2 groups by stage", _ROOTS, {"root": 16, **of_2015}
        ),
        "resnet50_root64": Entry(
            ResNet, "ResNet-50 of 2015 with 64, 32, 16, 8 groups by stage", _ROOTS, {"root": 64, **of_2015}
        ),
    }


def _resnexts() -> dict[str, Entry]:
    entries = {
        f"resnext50_{groups}x{width}d": Entry(
            ResNet,
            f"ResNeXt-50, {groups} groups {width} wide" if groups > 1 else "ResNeXt-50 of one group: resnet50",
            _RESNEXT,
            {"cardinality": groups, "base_width": width},
        )
        for groups, width in EQUAL_COST_WIDTHS.items()
    }
    large = {"depth": 101, "cardinality": 32, "base_width": 4}
    entries["resnext101_32x4d"] = Entry(ResNet, "ResNeXt-101, 32 groups 4 wide", _RESNEXT, large)
    entries["resnext29_8x64d_cifar"] = Entry(CifarResNeXt, "ResNeXt-29 of the paper for CIFAR", _RESNEXT)
    entries["resnext11_8x4d_cifar"] = Entry(
        CifarResNeXt,
        "ResNeXt-11 with a stem of 16 channels",
        _RESNEXT,
        {"depth": 11, "cardinality": 8, "base_width": 4, "stem_channels": 16},
    )
    for groups, width in ((1, 16), (2, 10), (4, 6), (8, 3.5)):  # of equal cost, as EQUAL_COST_WIDTHS says
        entries[f"resnext20_{groups}x{width}d_cifar"] = Entry(
            CifarResNeXt,
            f"ResNeXt-20 with a stem of 16 channels, {groups} group{'s' if groups > 1 else ''} {width} wide",
            _RESNEXT,
            {"depth": 20, "cardinality": groups, "base_width": width, "stem_channels": 16},
        )
    return entries


def _mobile_networks() -> dict[str, Entry]:
    small: dict[str, Any] = {"num_classes": 10, "image_size": 32}
    shufflenets = {
        f"shufflenet_v1_g{groups}{suffix}": Entry(
            ShuffleNetV1, f"ShuffleNet V1, {groups} group{'s' if groups > 1 else ''}{about}", _SHUFFLENET, fixed
        )
        for suffix, about, arguments in (
            ("", "", {}),
            ("_cifar", ", of half the channels", {"scale": 0.5, "total_stride": 8, **small}),
        )
        for groups in (1, 2, 3, 4, 8)
        for fixed in ({"groups": groups, **arguments},)
    }
    return {
        "mobilenet_v1": Entry(MobileNetV1, "MobileNet V1", _MOBILENET_V1),
        "mobilenet_v1_cifar": Entry(
            MobileNetV1,
            "MobileNet V1 of 3/4 of the channels, stem without stride",
            _MOBILENET_V1,
            {"width_multiplier": 0.75, "total_stride": 16, **small},
        ),
        "mobilenet_v2": Entry(MobileNetV2, "MobileNet V2", _MOBILENET_V2),
        "mobilenet_v2_cifar": Entry(
            MobileNetV2,
            "MobileNet V2 of half the channels, two strides fewer",
            _MOBILENET_V2,
            {"width_multiplier": 0.5, "total_stride": 8, **small},
        ),
        **shufflenets,
    }


ENTRIES: dict[str, Entry] = {
    **_alexnets(),
    **_nins(),
    **_resnets(),
    **_resnexts(),
    **_mobile_networks(),
    "signal_net": Entry(SignalNet, "small network of signals, 4 groups", "Keras' Conv1D(groups=...)"),
    "volume_net": Entry(VolumeNet, "small network of volumes, 4 groups", "Keras' Conv3D(groups=...)"),
}
"""Name -> what it stands for, by architecture. Names that end in `_cifar` are for images of 32 pixels, and but for
ResNeXt-29 small enough for processors."""


def names() -> list[str]:
    """The names that `build` knows, by architecture."""
    return list(ENTRIES)


def entry(name: str) -> Entry:
    """What a name stands for.

    Raises:
        ValueError: there is no such name; says which is near.
    """
    if name not in ENTRIES:
        beginning = [known for known in ENTRIES if known.startswith(str(name).lower())]
        hint = f"; there are {', '.join(beginning)}" if beginning else did_you_mean(str(name).lower(), ENTRIES)
        raise ValueError(f"there is no network {name!r}{hint} (lanes models lists them)")
    return ENTRIES[name]


def build(name: str, **arguments: Any) -> nn.Module:
    """Builds the network of that name.

    Args:
        name: one of `names()`.
        **arguments: of its constructor, in place of what the name stands for or of the constructor's defaults.

    Raises:
        ValueError: there is no such name, the network has no such argument, or its constructor refuses a value.
    """
    found = entry(name)
    possible = found.arguments
    for argument in arguments:
        if argument not in possible:
            hint = did_you_mean(argument, possible)
            raise ValueError(f"{name} has no argument {argument!r}{hint} (it has {', '.join(possible)})")
    return found.factory(**{**found.fixed, **arguments})
