"""Layer normalisation over the channels of every pixel.

What is here: `ChannelLayerNorm`, equal to `torch.nn.LayerNorm` over the channels, which stand in dimension 1 and not in
the last one. It needs no permuted copy of its input, and its statistics are two means over dimension 1, which is what
has to cross if channels are spread. What is kept out: devices.

Shapes: N batch, C channels, ... any number of further dims; a pixel is one place of these.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lanes.models.arguments import check_counts
from lanes.models.local_response_norm import at_least_float32


class ChannelLayerNorm(nn.Module):
    """Normalises every pixel by mean and variance of its channels.

    y = (x - mean) / sqrt(variance + eps) * weight + bias

    where mean and variance (divided by C) are of the C channels of one pixel of one image.

    Args:
        num_channels: C.
        eps: added to the variance.
        affine: whether there are weight and bias, both [C].

    Shape:
        [N, C, ...] -> [N, C, ...], in the dtype of the input. Half precision is computed in float32.

    Raises:
        ValueError: num_channels is not a whole number of at least 1; in forward, if the input is not [N, C, ...].

    Source: Ba, Kiros, Hinton, arXiv 1607.06450, section 3; `LayerNorm` with data_format "channels_first" in the code of
    Liu et al., "A ConvNet for the 2020s", arXiv 2201.03545.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, num_channels: int, eps: float = 1e-6, affine: bool = True) -> None:
        super().__init__()
        check_counts("ChannelLayerNorm", num_channels=num_channels)
        self.num_channels = num_channels
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(num_channels)) if affine else None
        self.bias = nn.Parameter(torch.empty(num_channels)) if affine else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets weight to 1 and bias to 0."""
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x [N, C, ...] -> [N, C, ...]."""
        if x.dim() < 2 or x.shape[1] != self.num_channels:
            raise ValueError(f"ChannelLayerNorm: expected [N, {self.num_channels}, ...], got shape {list(x.shape)}")
        wide = at_least_float32(x)
        centred = wide - wide.mean(1, keepdim=True)
        variance = centred.square().mean(1, keepdim=True)
        y = centred * (variance + self.eps).rsqrt()
        if self.weight is not None and self.bias is not None:
            per_channel = (-1, *(1,) * (x.dim() - 2))
            y = y * self.weight.view(per_channel) + self.bias.view(per_channel)
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        """The constructor's arguments, for `print(model)`."""
        return f"{self.num_channels}, eps={self.eps}, affine={self.weight is not None}"
