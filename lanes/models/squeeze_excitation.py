"""Squeeze and excitation: every channel is weighed by what all channels hold on average.

What is here: `SqueezeExcitation`, of layers that a plan knows. What is kept out: devices.

Shapes: N batch, C channels, H W pixels.
"""

from __future__ import annotations

from torch import Tensor, nn

from lanes.models.arguments import check_counts


class SqueezeExcitation(nn.Module):
    """Multiplies every channel by a number between 0 and 1 that two dense layers make of the means of all channels.

    y = x * sigmoid(fc2(relu(fc1(mean of x over H, W))))

    The dense layers are 1x1 convolutions with biases; layers have the names of torchvision's, so weights carry over.

    Args:
        channels: C.
        squeezed: channels between the two dense layers; the paper has C / 16.

    Shape:
        [N, C, H, W] -> [N, C, H, W].

    Raises:
        ValueError: channels or squeezed is not a whole number of at least 1.

    Source: Hu, Shen, Albanie, Sun, Wu, "Squeeze-and-Excitation Networks", arXiv 1709.01507, section 3.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        check_counts("SqueezeExcitation", channels=channels, squeezed=squeezed)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.activation = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.scale_activation = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Weighs the channels of x [N, C, H, W] -> [N, C, H, W]."""
        squeezed = self.activation(self.fc1(self.avgpool(x)))
        factors: Tensor = self.scale_activation(self.fc2(squeezed))
        return x * factors
