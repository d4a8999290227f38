"""A fully connected layer whose lanes do not meet.

What is here: `GroupedLinear`, as a grouped 1x1 convolution, so that whatever knows grouped convolutions (a plan, an
exporter, a kernel) knows it too. What is kept out: devices.

Shapes: N batch, F features.
"""

from __future__ import annotations

from torch import Tensor, nn


class GroupedLinear(nn.Conv1d):
    """Fully connected inside each of `groups` contiguous blocks of features: a block-diagonal `nn.Linear`.

    A one-dimensional grouped convolution over a single position; the parameters have a convolution's shapes, weight
    [out_features, in_features / groups, 1] and bias [out_features], and its default initialisation.

    Args:
        in_features: features of the input.
        out_features: features of the output.
        groups: number of blocks; output block i sees input block i only.
        bias: whether to add a bias.

    Shape:
        [N, in_features] -> [N, out_features].

    Raises:
        ValueError: groups does not divide in_features and out_features; in forward, if the input is not [N, F].
    """

    def __init__(self, in_features: int, out_features: int, groups: int, bias: bool = True) -> None:
        if groups < 1 or in_features % groups or out_features % groups:
            raise ValueError(
                f"GroupedLinear: {in_features} -> {out_features} features do not divide over {groups} groups; "
                "use a number of groups that divides both"
            )
        super().__init__(in_features, out_features, kernel_size=1, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [N, in_features] -> [N, out_features]."""
        if x.dim() != 2:
            raise ValueError(f"GroupedLinear: expected [N, {self.in_channels}], got shape {list(x.shape)}")
        return self._conv_forward(x.unsqueeze(-1), self.weight, self.bias).squeeze(-1)
