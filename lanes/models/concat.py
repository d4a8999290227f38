"""Concatenation of channels as a layer of its own.

What is here: `Concat`, so that a plan and `print(model)` show where branches of a network are joined. What is kept
out: devices. Concatenated laned tensors are laned in an order of their own: their channels have to move, and that is
a crossing.

Shapes: N batch, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Concat(nn.Module):
    """Joins tensors along their channels, in the order in which they are given.

    Shape:
        [N, C1, ...], [N, C2, ...], ... -> [N, C1 + C2 + ..., ...].

    Raises:
        ValueError: in forward, if it is given no tensors, or a list of tensors in place of tensors.
    """

    def forward(self, *tensors: Tensor) -> Tensor:
        """Joins one or more tensors [N, Ci, ...] -> [N, sum of Ci, ...]."""
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                raise ValueError(
                    f"Concat: expected tensors, got a {type(tensor).__name__}; "
                    "call it with one argument for each tensor, e.g. concat(*branches)"
                )
        if not tensors:
            raise ValueError("Concat: expected one or more tensors, got none")
        return torch.cat(tensors, 1)
