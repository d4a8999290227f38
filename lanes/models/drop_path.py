"""Stochastic depth: in training, a residual branch is left out for some images.

What is here: `DropPath`. What is kept out: devices; the residual sum, which is the network's.

Shapes: N batch, ... any dims.
"""

from __future__ import annotations

from torch import Tensor, nn


class DropPath(nn.Module):
    """Drops whole images of a residual branch with probability p, and scales the others by 1 / (1 - p).

    Done in training only; in evaluation, and with p = 0, it is the identity and draws nothing. It draws one number per
    image from the default generator of the input's device, at shape [N, 1, ...] and in the dtype of the input, alike
    for all channels. Torchvision's `StochasticDepth` (mode "row") draws the same numbers; PyTorch itself has no such
    layer.

    Args:
        p: probability with which an image's branch is dropped.

    Shape:
        [N, ...] -> [N, ...], in the dtype of the input.

    Raises:
        ValueError: p is not in [0, 1); in forward, if the input has no dims.

    Source: Huang et al., "Deep Networks with Stochastic Depth", arXiv 1603.09382, section 3 (there by batch and scaled
    in evaluation); by image and scaled in training, timm's `DropPath`.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"DropPath: p must be at least 0 and less than 1, got {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Drops images of x [N, ...] -> [N, ...]."""
        if x.dim() < 1:
            raise ValueError("DropPath: expected [N, ...], got a single number")
        if not self.training or self.p == 0:
            return x
        keep = 1 - self.p
        factors = x.new_empty(len(x), *(1,) * (x.dim() - 1)).bernoulli_(keep).div_(keep)
        return x * factors

    def extra_repr(self) -> str:
        """The constructor's argument, for `print(model)`."""
        return f"p={self.p}"
