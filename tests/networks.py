"""Small networks that bring every kind of placed layer together, in 1, 2 and 3 dimensions."""

from functools import partial

import torch
from torch import Tensor, nn

from lanes.models import AlexNet, GroupedLinear, LocalResponseNorm, SmallAlexNet


class Mixed(nn.Module):
    """Every placed layer: grouped and dense convolutions, batch norm, response norm, dropouts, linear layers, glue."""

    def __init__(self, dims: int = 2, lanes: int = 4, classes: int = 10) -> None:
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
        norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
        channel_dropout = {1: nn.Dropout1d, 2: nn.Dropout2d, 3: nn.Dropout3d}[dims]
        pool = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}[dims]
        self.average = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[dims](2)
        self.conv1 = conv(3, 16, 3, padding=1, bias=False)  # before batch norm a bias has no gradient but noise
        self.bn1 = norm(16)
        self.pool = pool(2)
        self.conv2 = conv(16, 32, 3, padding=1, groups=lanes)  # stays
        self.lrn2 = LocalResponseNorm(5, 5e-4, 0.75, 2.0, lanes=lanes)
        self.wide = conv(32, 16, 3, padding=1, bias=False)  # dense, crosses at its output
        self.bn3 = norm(16, affine=False)
        self.skip = conv(16, 16, 1, stride=2)  # dense, strided 1x1
        self.drop3 = channel_dropout(0.3)
        self.conv4 = conv(16, 16, 3, padding=1, groups=lanes)
        self.fc5 = nn.Linear(16 * 2**dims, 32, bias=False)
        self.bn5 = nn.BatchNorm1d(32)
        self.drop5 = nn.Dropout(0.5)
        self.fc6 = GroupedLinear(32, 64, lanes)
        self.fc7 = nn.Linear(64, 32, bias=False)
        self.head = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        x = self.lrn2(torch.tanh(self.conv2(x)))
        x = self.bn3(self.wide(x))
        x = self.drop3(self.skip(x))
        x = x + torch.relu(self.conv4(x))
        x = torch.flatten(self.average(x), 1)
        x = self.drop5(torch.relu(self.bn5(self.fc5(x))))
        x = torch.relu(self.fc7(torch.relu(self.fc6(x))))
        return self.head(x)


class Normed(nn.Module):
    """Batch norms and no dropout: what is equal on the whole batch when replicas share their statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, groups=4, bias=False)
        self.bn2 = nn.BatchNorm2d(32, affine=False)
        self.conv3 = nn.Conv2d(32, 16, 3, stride=2, bias=False)
        self.bn3 = nn.BatchNorm2d(16, momentum=None)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.head(self.pool(torch.relu(self.bn3(self.conv3(x)))).flatten(1))


normed = Normed
mixed_1d = partial(Mixed, 1)
mixed_2d = partial(Mixed, 2)
mixed_3d = partial(Mixed, 3)
small_alexnet = partial(SmallAlexNet, num_classes=10, lanes=4)
small_alexnet_talking = partial(
    SmallAlexNet, num_classes=10, lanes=4, cross=("conv2", "conv3", "conv4", "conv5", "fc6", "fc7")
)
small_alexnet_apart = partial(SmallAlexNet, num_classes=10, lanes=4, cross=())
alexnet = partial(AlexNet, num_classes=10, lanes=2)
