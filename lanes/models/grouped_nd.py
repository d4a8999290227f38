"""Small grouped networks in one and three dimensions: classifiers of signals and of volumes.

What is here: `SignalNet` and `VolumeNet`, one structure with convolutions of their rank, whose `groups` are those of
Keras' Conv1D and Conv3D (https://keras.io/api/layers/convolution_layers): the channels are split into so many groups,
each with filters of its own. What is kept out: devices.

The structure is ours, for want of a paper that fixes one: a dense layer reads the input, a grouped one follows, in a
dense one of size 1 the groups meet, and after another grouped one the head reads the mean of every map. It has one of
each meeting that the networks in two dimensions have.

Shapes: N batch, C all channels, L samples, D H W voxels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lanes.models.arguments import check_counts
from lanes.models.initial_weights import init_he, initialise, without_drawing

_CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 3: nn.Conv3d}
_NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}
_MAX_POOLS: dict[int, Any] = {1: nn.MaxPool1d, 3: nn.MaxPool3d}
_MEAN_POOLS: dict[int, Any] = {1: nn.AdaptiveAvgPool1d, 3: nn.AdaptiveAvgPool3d}


class _FourConvolutions(nn.Module):
    """The structure that SignalNet and VolumeNet share.

    Attributes:
        image_shape: (C, ...) of the inputs that it reads; other sizes work too, as the head reads means.
    """

    image_shape: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        """Classifies inputs [N, C, ...] -> logits [N, num_classes]."""
        x = self.pool1(self.relu1(self.norm1(self.conv1(x))))
        x = self.pool2(self.relu2(self.norm2(self.conv2(x))))
        x = self.relu3(self.norm3(self.conv3(x)))
        x = self.pool4(self.relu4(self.norm4(self.conv4(x))))
        logits: Tensor = self.fc(self.flatten(x))
        return logits

    def init_layer(self, name: str, layer: nn.Module) -> None:
        """Sets the initial parameters of one layer, drawing from its device's default generator.

        Args:
            name: name of the layer in this network, e.g. "conv2".
            layer: the layer; its parameters have the shapes of this network's layer of that name.
        """
        init_he(layer)

    def _build(
        self, image_shape: tuple[int, ...], *, window: int, channels: int, groups: int, num_classes: int
    ) -> None:
        _check(image_shape, channels=channels, groups=groups, num_classes=num_classes)
        self.image_shape = image_shape
        rank = len(image_shape) - 1
        conv, norm, pool = _CONVOLUTIONS[rank], _NORMS[rank], _MAX_POOLS[rank]
        narrow, middle, wide = channels, 2 * channels, 4 * channels
        with without_drawing():
            self.conv1 = conv(image_shape[0], narrow, window, padding=window // 2, bias=False)
            self.norm1 = norm(narrow)
            self.relu1 = nn.ReLU(inplace=True)
            self.pool1 = pool(2)
            self.conv2 = conv(narrow, middle, window, padding=window // 2, groups=groups, bias=False)
            self.norm2 = norm(middle)
            self.relu2 = nn.ReLU(inplace=True)
            self.pool2 = pool(2)
            self.conv3 = conv(middle, middle, 1, bias=False)
            self.norm3 = norm(middle)
            self.relu3 = nn.ReLU(inplace=True)
            self.conv4 = conv(middle, wide, window, padding=window // 2, groups=groups, bias=False)
            self.norm4 = norm(wide)
            self.relu4 = nn.ReLU(inplace=True)
            self.pool4 = _MEAN_POOLS[rank](1)
            self.flatten = nn.Flatten(1)
            self.fc = nn.Linear(wide, num_classes)
        initialise(self)


class SignalNet(_FourConvolutions):
    """A classifier of signals, e.g. of an electrocardiogram or of sound.

    Args:
        num_classes: number of logits.
        groups: number of channel groups of conv2 and conv4; 1 is the dense control.
        in_channels: channels of the signal, e.g. 12 leads.
        length: samples of the signal.
        channels: of conv1; conv2 and conv3 have twice, conv4 has four times as many.

    Attributes:
        image_shape: (C, L) of the signals that it reads.

    Shape:
        [N, in_channels, length] -> [N, num_classes].

    Raises:
        ValueError: groups do not divide the channels, the signal is shorter than 4 samples, or a number is below 1.
    """

    def __init__(
        self,
        num_classes: int = 10,
        groups: int = 4,
        *,
        in_channels: int = 1,
        length: int = 256,
        channels: int = 32,
    ) -> None:
        super().__init__()
        self._build((in_channels, length), window=7, channels=channels, groups=groups, num_classes=num_classes)


class VolumeNet(_FourConvolutions):
    """A classifier of volumes, e.g. of tomographs.

    Args:
        num_classes: number of logits.
        groups: number of channel groups of conv2 and conv4; 1 is the dense control.
        in_channels: channels of the volume.
        size: depth, height and width of the volume in voxels; 28 is that of MedMNIST's volumes.
        channels: of conv1; conv2 and conv3 have twice, conv4 has four times as many.

    Attributes:
        image_shape: (C, D, H, W) of the volumes that it reads.

    Shape:
        [N, in_channels, size, size, size] -> [N, num_classes].

    Raises:
        ValueError: groups do not divide the channels, the volume is smaller than 4 voxels, or a number is below 1.
    """

    def __init__(
        self,
        num_classes: int = 10,
        groups: int = 4,
        *,
        in_channels: int = 1,
        size: int = 28,
        channels: int = 16,
    ) -> None:
        super().__init__()
        shape = (in_channels, size, size, size)
        self._build(shape, window=3, channels=channels, groups=groups, num_classes=num_classes)


def _check(image_shape: tuple[int, ...], *, channels: int, groups: int, num_classes: int) -> None:
    """Raises ValueError for numbers from which no network can be built."""
    check_counts(num_classes=num_classes, in_channels=image_shape[0], channels=channels, groups=groups)
    if channels % groups:
        usable = [number for number in range(1, channels + 1) if channels % number == 0]
        raise ValueError(f"conv2: {channels} channels do not divide over {groups} groups; use one of {usable}")
    if image_shape[-1] < 4:
        argument = "length" if len(image_shape) == 2 else "size"
        raise ValueError(f"{argument} must be at least 4, which two pools halve to 1, got {image_shape[-1]}")
