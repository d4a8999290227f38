"""A network that cannot be placed, for the command line."""

import torch
from torch import Tensor, nn


class WithLayerNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, groups=1)
        self.norm = nn.LayerNorm([62, 62])
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.amax(self.norm(self.conv(x)), (2, 3)))
