"""Local response normalisation inside each lane.

What is here: `LocalResponseNorm`, equal to `torch.nn.LocalResponseNorm` inside each of `lanes` contiguous blocks of
channels. PyTorch's own knows no lanes (its window reaches over the border between two lanes) and, built from padding
and three-dimensional average pooling, is slow; this one has its own backward. What is kept out: devices.

Shapes: N batch, C all channels, ... no, one, two or three spatial dims; inside, [N, lanes, C/lanes, ...].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lanes.models.arguments import check_counts


class LocalResponseNorm(nn.Module):
    """Divides each activation by a power of the mean square of its neighbours among the channels of its lane.

    y[c] = x[c] / (k + alpha / size * sum of x[j]^2 over c - size // 2 <= j <= c + (size - 1) // 2) ^ beta

    where channels outside the lane of c count as zeros. `lanes=1` is `torch.nn.LocalResponseNorm`.

    Args:
        size: number of neighbouring channels in the window, the channel itself included.
        alpha: factor of the *mean* of squares (PyTorch's convention). The AlexNet paper's multiplies the *sum*: its
            alpha=1e-4 with n=5 is alpha=5e-4 here.
        beta: exponent.
        k: constant added before the power is taken.
        lanes: number of contiguous channel blocks that do not see each other.

    Shape:
        [N, C, ...] -> [N, C, ...] with up to three spatial dims, in the dtype and memory format of the input. Half
        precision is computed in float32. Not differentiable twice: a second backward raises a RuntimeError.

    Raises:
        ValueError: size or lanes is not a whole number of at least 1; in forward, if lanes does not divide C or the
            input has fewer than two or more than five dims.

    Source: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks",
    NIPS 2012, section 3.3.
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, lanes: int = 1) -> None:
        super().__init__()
        check_counts("LocalResponseNorm", size=size, lanes=lanes)
        self.size = size
        self.alpha = alpha
        self.beta = beta
        self.k = k
        self.lanes = lanes

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x [N, C, ...] -> [N, C, ...]."""
        if not 2 <= x.dim() <= 5:
            raise ValueError(f"LocalResponseNorm: expected [N, C] with 0 to 3 spatial dims, got shape {list(x.shape)}")
        if x.shape[1] % self.lanes:
            raise ValueError(
                f"LocalResponseNorm: {x.shape[1]} channels do not divide over {self.lanes} lanes; "
                "use a number of lanes that divides the channels"
            )
        y: Tensor = _LaneResponseNorm.apply(x, self.size, self.alpha, self.beta, self.k, self.lanes)
        return y

    def extra_repr(self) -> str:
        """The constructor's arguments, for `print(model)`."""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}, lanes={self.lanes}"


class _LaneResponseNorm(torch.autograd.Function):
    """The arithmetic of LocalResponseNorm, with its derivative written out.

    With d = k + alpha / size * S(x^2), S the window sum over channels and S^T its mirror image:

    forward   y = x d^-beta
    backward  dx = g d^-beta - 2 alpha beta / size * x S^T(g x d^(-beta - 1))

    Three tensors are kept for backward, x, d and d^-beta: taking the power again is the slowest step.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, alpha: float, beta: float, k: float, lanes: int) -> Tensor:
        wide = at_least_float32(x)
        base = _window_sum(wide * wide, before=size // 2, after=(size - 1) // 2, lanes=lanes)
        base.mul_(alpha / size).add_(k)
        power = base.pow(-beta)
        ctx.save_for_backward(x, base, power)
        ctx.constants = (size, alpha, beta, lanes)
        return (power * wide).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        x, base, power = ctx.saved_tensors
        size, alpha, beta, lanes = ctx.constants
        wide = at_least_float32(x)
        dx = power * at_least_float32(grad)
        sums = _window_sum((dx * wide).div_(base), before=(size - 1) // 2, after=size // 2, lanes=lanes)
        dx.addcmul_(wide, sums, value=-2 * alpha * beta / size)
        return dx.to(x.dtype), None, None, None, None, None


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor itself, or in float32 if it is in half precision, whose squares overflow or lose too much."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _window_sum(terms: Tensor, *, before: int, after: int, lanes: int) -> Tensor:
    """Sums each channel, up to `before` channels below it and up to `after` above it, inside its lane; a new tensor.

    Shifted slices rather than differences of a cumulative sum, which cancel. terms is [N, C, ...] and dense: to split
    its channel dim into [lanes, C/lanes] is a view in any memory format.
    """
    total = terms.clone()
    channels = terms.shape[1] // lanes
    laned_total, laned_terms = (tensor.unflatten(1, (lanes, channels)) for tensor in (total, terms))
    for step in range(1, min(before, channels - 1) + 1):
        laned_total[:, :, step:].add_(laned_terms[:, :, : channels - step])
    for step in range(1, min(after, channels - 1) + 1):
        laned_total[:, :, : channels - step].add_(laned_terms[:, :, step:])
    return total
