"""Local response normalisation inside each channel's map, among neighbouring pixels.

What is here: `MapResponseNorm`, cuda-convnet2's layer type `rnorm`. It treats every channel alone and is written with
operations that a plan knows, so it runs in any lane as it is. What is kept out: devices.

Shapes: N batch, C channels, H W pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lanes.models.local_response_norm import at_least_float32


class MapResponseNorm(nn.Module):
    """Divides each activation by a power of the mean square of its neighbours in the map of its channel.

    y[h, w] = x[h, w] / (k + alpha / size^2 * sum of x[i, j]^2 over |i - h|, |j - w| <= (size - 1) / 2) ^ beta

    where pixels outside the map count as zeros, and the sum is divided by size^2 there too.

    Args:
        size: height and width in pixels of the window, which is centred at the pixel.
        alpha: factor of the mean of squares; cuda-convnet2's `scale`, which its parser divides by size^2 before it
            multiplies the sum.
        beta: exponent; cuda-convnet2's `pow`.
        k: constant added before the power is taken; cuda-convnet2's `minDiv`.

    Shape:
        [N, C, H, W] -> [N, C, H, W], in the dtype of the input. Half precision is computed in float32.

    Raises:
        ValueError: size is not an odd whole number; in forward, if the input is not [N, C, H, W].

    Source: github.com/akrizhevsky/cuda-convnet2, LayerParams.md on branch wiki, "Local response normalization layer
    (same map)"; `NormLayerParser` in layer.py.
    """

    def __init__(self, size: int, alpha: float = 1e-3, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        if not isinstance(size, int) or size < 1 or size % 2 == 0:
            raise ValueError(f"MapResponseNorm: size must be an odd whole number of at least 1, got {size!r}")
        self.size = size
        self.alpha = alpha
        self.beta = beta
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x [N, C, H, W] -> [N, C, H, W]."""
        if x.dim() != 4:
            raise ValueError(f"MapResponseNorm: expected [N, C, H, W], got {x.dim()} dims")
        wide = at_least_float32(x)
        mean_square = F.avg_pool2d(wide.square(), self.size, stride=1, padding=self.size // 2)
        y: Tensor = wide * (self.k + self.alpha * mean_square).pow(-self.beta)
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        """The constructor's arguments, for `print(model)`."""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
