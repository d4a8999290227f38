"""AlexNet as cuda-convnet2 had it: the two-GPU configuration of 2014, whose layers differ from the text of 2012.

What is here: `CudaConvnet2AlexNet`. What is kept out: devices (a lane is a group of channels here), training and its
schedules.

Shapes: N batch, C all channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lanes.models.alexnet import CROSSABLE, check_cross, check_lanes, fully_connected
from lanes.models.arguments import check_counts
from lanes.models.initial_weights import init_normal, without_drawing
from lanes.models.local_response_norm import LocalResponseNorm
from lanes.models.map_response_norm import MapResponseNorm

_CHANNELS = {"conv1": 96, "conv2": 256, "conv3": 384, "conv4": 384, "conv5": 256, "fc6": 4096, "fc7": 4096}
_WEIGHT_STDS = {"conv1": 0.01, "conv2": 0.01, "conv3": 0.03, "conv4": 0.03, "conv5": 0.03}  # fully connected: 0.01
_ONE_BIASES = ("conv2", "conv4", "conv5", "fc6", "fc7")  # the others start at 0


class CudaConvnet2AlexNet(nn.Module):
    """The network of cuda-convnet2's `layers-imagenet-2gpu-model.cfg`, with the names of `AlexNet`'s layers.

    Against `AlexNet`, the text of 2012: conv1 and conv5 are pooled before their ReLU, and conv1 is normalised before it
    too; conv2 is normalised twice, across maps and then inside each (`cnorm2`); conv3 to conv5 start from N(0, 0.03);
    response norm is weaker, because cuda-convnet2's parser divides `scale` by the window (`NormLayerParser` in its
    layer.py): its 1e-4 multiplies the *mean* of squares, the paper's the sum. Parameters, names and shapes are the
    same, so checkpoints of one load into the other.

    Known from the file: where lanes meet, the response norms (size 5, scale 1e-4, pow 0.75, minDiv 2, in each lane),
    the order of conv1's layers, that there is a `cnorm2` of type `rnorm`, initial weights and biases, dropout. Taken
    from the one-GPU file `layers-223-1gpu.cfg`: conv5's ReLU behind the pool, windows and strides. Taken from a
    descendant of the two-GPU file, `face_models` in dicarlolab/archconvnets: cnorm2's place before pool2, its window of
    5 (an argument here), scale 1e-3, pow 0.75 and minDiv 1; that dropout scales in training, as PyTorch's does; and
    that fc8's biases start at 0 (at -7 in the one-GPU file). Assumed: the numbers of kernels are those of the paper.

    Done otherwise: conv1 pads the image by 2 pixels on all sides, where cuda-convnet2 pads nothing and lets the last
    windows fall 3 pixels over the right and lower edge; both make maps of 55x55 from 224 pixels.

    The configuration was made for pixels of 0 to 255 less their mean, not divided by a deviation
    (`ImageDataProvider` in convdata.py). With pixels of unit variance the response norms see squares some
    thousand times smaller and do little but divide by a constant.

    Args:
        num_classes: number of logits.
        lanes: number of channel groups; 1 is the dense control.
        cross: layers, of conv2 to conv5, fc6 and fc7, that read all lanes; the others stay in their lane.
        dropout: probability with which an output of fc6 and fc7 is dropped.
        map_window: height and width in pixels of cnorm2's window, odd.
        in_channels: channels of the image: 3 for colour, 1 for grey.

    Attributes:
        lanes: number of channel groups.
        image_shape: (C, H, W) of the images that it reads.

    Shape:
        [N, in_channels, 224, 224] -> [N, num_classes].

    Raises:
        ValueError: lanes do not divide the channels of some layer, cross names an unknown layer, map_window is even,
            or num_classes, in_channels or dropout is out of range.

    Source: github.com/akrizhevsky/cuda-convnet2, folder layers/, layer.py and convdata.py;
    github.com/dicarlolab/archconvnets, archconvnets/convnet2/layers/face_models/layers-face-model-allimagenet-2gpu.cfg.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        lanes: int = 2,
        *,
        cross: Sequence[str] = ("conv3", "fc6", "fc7"),
        dropout: float = 0.5,
        map_window: int = 5,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels)
        check_lanes(_CHANNELS, lanes)
        check_cross(cross)
        self.lanes = lanes
        self.image_shape = (in_channels, 224, 224)
        groups = {name: 1 if name in cross else lanes for name in CROSSABLE}
        with without_drawing():
            layers = {
                **_convolutions(in_channels, lanes, groups, map_window),
                **_fully_connected(num_classes, groups, dropout),
            }
        for name, layer in layers.items():
            self.add_module(name, layer)
            self.init_layer(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies images [N, C, 224, 224] -> logits [N, num_classes]: the layers one after the other."""
        for layer in self.children():
            x = layer(x)
        return x

    def init_layer(self, name: str, layer: nn.Module) -> None:
        """Sets the initial parameters of one layer, drawing from its device's default generator; as `AlexNet`'s.

        Args:
            name: name of the layer in this network, e.g. "conv2".
            layer: the layer; its parameters have the shapes of this network's layer of that name.
        """
        init_normal(layer, std=_WEIGHT_STDS.get(name, 0.01), bias=float(name in _ONE_BIASES))


def _convolutions(in_channels: int, lanes: int, groups: dict[str, int], map_window: int) -> dict[str, nn.Module]:
    return {
        "conv1": nn.Conv2d(in_channels, 96, 11, stride=4, padding=2),
        "norm1": _response_norm(lanes),
        "pool1": nn.MaxPool2d(3, stride=2),
        "relu1": nn.ReLU(inplace=True),
        "conv2": nn.Conv2d(96, 256, 5, padding=2, groups=groups["conv2"]),
        "relu2": nn.ReLU(inplace=True),
        "norm2": _response_norm(lanes),
        "cnorm2": MapResponseNorm(map_window, alpha=1e-3, beta=0.75, k=1.0),
        "pool2": nn.MaxPool2d(3, stride=2),
        "conv3": nn.Conv2d(256, 384, 3, padding=1, groups=groups["conv3"]),
        "relu3": nn.ReLU(inplace=True),
        "conv4": nn.Conv2d(384, 384, 3, padding=1, groups=groups["conv4"]),
        "relu4": nn.ReLU(inplace=True),
        "conv5": nn.Conv2d(384, 256, 3, padding=1, groups=groups["conv5"]),
        "pool5": nn.MaxPool2d(3, stride=2),
        "relu5": nn.ReLU(inplace=True),
    }


def _fully_connected(num_classes: int, groups: dict[str, int], dropout: float) -> dict[str, nn.Module]:
    return {
        "flatten": nn.Flatten(1),
        "fc6": fully_connected(256 * 6 * 6, 4096, groups["fc6"]),
        "relu6": nn.ReLU(inplace=True),
        "drop6": nn.Dropout(dropout),
        "fc7": fully_connected(4096, 4096, groups["fc7"]),
        "relu7": nn.ReLU(inplace=True),
        "drop7": nn.Dropout(dropout),
        "fc8": nn.Linear(4096, num_classes),
    }


def _response_norm(lanes: int) -> LocalResponseNorm:
    return LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0, lanes=lanes)
