"""Small networks for the crossings that deep networks need: shared gathers, re-ordered channels, norms, factors."""

import torch
from torch import Tensor, nn

from lanes.models import ChannelLayerNorm, Concat, DropPath, LayerScale, SqueezeExcitation


class GatherOnce(nn.Module):
    """Blocks whose input several dense layers read: at all places, at strided ones, or at both."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        # Narrow input: gathered once, at all places, of which the shortcut reads every other.
        self.a1 = nn.Conv2d(8, 16, 1, bias=False)
        self.a2 = nn.Conv2d(16, 32, 3, 2, padding=1, groups=4, bias=False)
        self.a_short = nn.Conv2d(8, 32, 1, 2, bias=False)
        # Wide input, both strided: gathered once, thinned out first.
        self.b1 = nn.Conv2d(32, 64, 1, 2, bias=False)
        self.b_short = nn.Conv2d(32, 64, 1, 2, bias=False)
        # Wide input to a narrow layer and a strided wide one: each for itself.
        self.c1 = nn.Conv2d(64, 8, 1, bias=False)
        self.c2 = nn.Conv2d(8, 64, 3, 2, padding=1, bias=False)
        self.c_short = nn.Conv2d(64, 64, 1, 2, bias=False)
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(self.a2(torch.relu(self.a1(x))) + self.a_short(x))
        x = torch.relu(self.b1(x) + self.b_short(x))
        x = torch.relu(self.c2(torch.tanh(self.c1(x))) + self.c_short(x))
        return self.head(x.mean((2, 3)))


class Reordered(nn.Module):
    """Shuffles and concatenations, by themselves, in a row, and in front of every kind of layer."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.shuffle1 = nn.ChannelShuffle(4)
        self.conv1 = nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.join = Concat()  # of 16 and 24 channels; the residual sum behind it wants the plain order
        self.conv2 = nn.Conv2d(40, 40, 3, padding=1, groups=8, bias=False)
        self.bn2 = nn.BatchNorm2d(40)
        self.join3, self.shuffle3, self.again3 = Concat(), nn.ChannelShuffle(5), nn.ChannelShuffle(2)  # merged
        self.depthwise = nn.Conv2d(80, 80, 3, groups=80, bias=False)
        self.drop = nn.Dropout(0.3)
        self.pool = nn.MaxPool2d(2)
        self.narrow = nn.Conv2d(120, 16, 1)  # sums its outputs: the shuffle comes first
        self.wide = nn.Conv2d(56, 64, 1, bias=False)  # gathers: the order is free
        self.pointwise = nn.Conv2d(64, 96, 1, 2, groups=4, bias=False)  # grouped, strided, on shuffled channels
        self.shuffle4 = nn.ChannelShuffle(3)
        self.flat = nn.Flatten(1)
        self.head = nn.Linear((96 + 64) * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = self.join(x, self.conv1(self.shuffle1(x)))
        x = torch.relu(x + self.bn2(self.conv2(x)))
        y = self.depthwise(self.again3(torch.relu(self.shuffle3(self.join3(x, x)))))
        y = self.pool(self.drop(torch.cat([y, x[:, :, 1:-1, 1:-1]], 1)))  # two parts before a dropout
        z = self.narrow(torch.tanh(y))
        y = self.wide(torch.cat((x[..., ::2, ::2][..., :-1, :-1], z), dim=1))
        y = torch.cat([self.shuffle4(self.pointwise(y)), y[..., ::2, ::2]], 1)
        return self.head(self.flat(nn.functional.adaptive_avg_pool2d(y, 2)))


class Norms(nn.Module):
    """Norms over channels, of one device and of several, in two and in no spatial dimensions."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 3, padding=1)
        self.within = nn.GroupNorm(4, 24)
        self.conv2 = nn.Conv2d(24, 24, 3, padding=1, groups=4)
        self.across = nn.GroupNorm(3, 24)
        self.conv3 = nn.Conv2d(24, 24, 3, 2, padding=1, groups=4)
        self.all = nn.GroupNorm(1, 24, affine=False)
        self.pixel = ChannelLayerNorm(24)
        self.conv4 = nn.Conv2d(24, 24, 1, groups=8)
        self.image = nn.LayerNorm([24, 8, 8])
        self.bare = ChannelLayerNorm(24, affine=False)
        self.vector = nn.LayerNorm(24)
        self.fc = nn.Linear(24, 32)
        self.last = nn.LayerNorm(32, bias=False)
        self.head = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.within(self.conv1(x)))
        x = torch.relu(self.across(self.conv2(x)))
        x = x[..., ::2, ::2] + self.pixel(self.all(self.conv3(x)))
        x = self.bare(x + self.image(self.conv4(x)))
        x = self.vector((x * x).mean((2, 3)))
        return self.head(self.last(torch.relu(self.fc(x))))


class Factors(nn.Module):
    """A slope for all channels and one for each, layer scale, drop path, squeeze-and-excitation in two spellings."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.shared = nn.PReLU()
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.each = nn.PReLU(16)
        self.scale = LayerScale(16, initial=0.5)
        self.path = DropPath(0.5)
        self.excite = SqueezeExcitation(16, 4)
        self.squeeze, self.expand = nn.Linear(16, 8), nn.Linear(8, 16)
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.conv1(x))
        x = x + self.path(self.scale(self.each(self.conv2(x))))
        x = self.excite(x)
        gate = torch.sigmoid(self.expand(torch.relu(self.squeeze(x.mean((2, 3))))))
        x = self.shared(x * gate[:, :, None, None]) + x * gate.unsqueeze(2).unsqueeze(-1)
        return self.head(x.mean((2, 3)))


class _TwoBranches(nn.Module):
    """A trunk of 8 channels that two dense layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 8, 3, padding=1)
        self.first, self.second = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 16, 1)
        self.head = nn.Linear(16, 10)


class GateWithoutGradient(_TwoBranches):
    """The reader that runs first has no gradient: what it gathers must not serve the other."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.trunk(x))
        with torch.no_grad():
            gate = self.first(x).sigmoid()
        return self.head((self.second(x) * gate).mean((2, 3)))


class InPlaceBehindShuffle(nn.Module):
    """Works in place on what a shuffle returns, and reads what the shuffle read once more."""

    def __init__(self, groups: int = 4) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.shuffle, self.relu = nn.ChannelShuffle(groups), nn.ReLU(inplace=True)
        self.dense, self.grouped = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1, groups=4)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        y = self.dense(self.relu(self.shuffle(x))) + x
        return self.head((y + self.grouped(self.relu(self.shuffle(y)))).mean((2, 3)))


NETWORKS = {"gather once": GatherOnce, "re-ordered": Reordered, "norms": Norms, "factors": Factors}
