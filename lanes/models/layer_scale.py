"""Layer scale: a learned factor for every channel of a residual branch.

What is here: `LayerScale`. What is kept out: devices.

Shapes: N batch, C channels, ... any number of further dims.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lanes.models.arguments import check_counts


class LayerScale(nn.Module):
    """Multiplies every channel by a learned factor, which starts near zero: a deep network starts as the identity.

    Args:
        num_channels: C.
        initial: value at which all factors start.

    Shape:
        [N, C, ...] -> [N, C, ...]. Half precision with float32 factors (autocast) gives float32, as PyTorch's
        promotion has it: factors of 1e-6 would leave half precision little to say.

    Raises:
        ValueError: num_channels is not a whole number of at least 1; in forward, if the input is not [N, C, ...].

    Source: Touvron et al., "Going deeper with Image Transformers" (CaiT), arXiv 2103.17239, section 2; with 1e-6 and
    channels in ConvNeXt, arXiv 2201.03545, appendix A.
    """

    def __init__(self, num_channels: int, initial: float = 1e-6) -> None:
        super().__init__()
        check_counts("LayerScale", num_channels=num_channels)
        self.num_channels = num_channels
        self.initial = initial
        self.weight = nn.Parameter(torch.empty(num_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets all factors to `initial`."""
        nn.init.constant_(self.weight, self.initial)

    def forward(self, x: Tensor) -> Tensor:
        """Scales x [N, C, ...] -> [N, C, ...]."""
        if x.dim() < 2 or x.shape[1] != self.num_channels:
            raise ValueError(f"LayerScale: expected [N, {self.num_channels}, ...], got shape {list(x.shape)}")
        return x * self.weight.view(-1, *(1,) * (x.dim() - 2))

    def extra_repr(self) -> str:
        """The constructor's arguments, for `print(model)`."""
        return f"{self.num_channels}, initial={self.initial}"
