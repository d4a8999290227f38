"""Operations between layers that a user could write, by a name that says what they do (random_author.py draws them)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def _as_map(gate: Tensor, like: Tensor) -> Tensor:
    return gate[(..., *[None] * (like.dim() - 2))]


def _places(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


# Operations between layers, by a name that says what they do.
SAFE: dict[str, Callable[..., Tensor]] = {
    "torch.relu(x)": torch.relu,
    "x.tanh()": Tensor.tanh,
    "F.silu(x)": F.silu,
    "x * x": lambda x: x * x,
    "x.sigmoid() * x": lambda x: x.sigmoid() * x,
    "0.5 - x.clamp(-1, 1)": lambda x: 0.5 - x.clamp(-1, 1),
    "torch.maximum(x, -x)": lambda x: torch.maximum(x, -x),
    "x / (x.abs() + 1)": lambda x: x / (x.abs() + 1),
}
INPLACE: dict[str, Callable[..., Tensor]] = {
    "x.relu_()": lambda x: x.relu_(),
    "x.mul_(0.5)": lambda x: x.mul_(0.5),
    "F.leaky_relu(x, inplace=True)": lambda x: F.leaky_relu(x, inplace=True),
}
JOINS: dict[str, Callable[..., Tensor]] = {
    "x + y": lambda x, y: x + y,
    "x.add(y, alpha=0.5)": lambda x, y: x.add(y, alpha=0.5),
    "x * y.sigmoid()": lambda x, y: x * y.sigmoid(),
    "torch.minimum(x, y)": torch.minimum,
}
CATS: dict[str, Callable[..., Tensor]] = {
    "torch.cat(xs, 1)": lambda *xs: torch.cat(xs, 1),
    "torch.cat(xs, dim=1 - x.dim())": lambda *xs: torch.cat(xs, dim=1 - xs[0].dim()),
    "torch.concat(tensors=xs, dim=1)": lambda *xs: torch.concat(tensors=xs, dim=1),
}
GATES: dict[str, Callable[..., Tensor]] = {
    "x * gate[..., None]": lambda x, gate: x * _as_map(gate, x),
    "x * (1 + gate.unsqueeze(-1))": lambda x, gate: x * (1 + _unsqueezed(gate, x)),
}
SHRINKS: dict[str, Callable[..., Tensor]] = {
    "x[:, :, ::2]": lambda x: x[:, :, ::2],
    "x[..., 1:]": lambda x: x[..., 1:],
    "x.flatten(1, 2)": lambda x: x.flatten(1, 2),
    "x.flatten(2)": lambda x: x.flatten(2),
    "x.amax(-1)": lambda x: x.amax(-1),
    "x.unsqueeze(-1)": lambda x: x.unsqueeze(-1),
}
FLATS: dict[str, Callable[..., Tensor]] = {
    "x.mean(places)": lambda x: x.mean(_places(x)),
    "x.sum(places)": lambda x: x.sum(_places(x)) * 0.1,
    "x.flatten(1)": lambda x: x.flatten(1),
    "x.reshape(x.size(0), -1)": lambda x: x.reshape(x.size(0), -1),
    "x.contiguous().view(x.shape[0], -1)": lambda x: x.contiguous().view(x.shape[0], -1),
}
# What lane devices cannot do on their own channels; C stays.
UNSAFE: dict[str, Callable[..., Tensor]] = {
    "softmax": lambda x: x.softmax(1),
    "chunk": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "roll": lambda x: x.roll(1, 1),
    "flip": lambda x: x.flip(1),
    "mean": lambda x: x - x.mean(1, keepdim=True),
    "channel count": lambda x: x / x.shape[1],
    "local_response_norm": lambda x: F.local_response_norm(x, 3) if x.dim() > 2 else x.cumsum(1),
}
OPERATIONS = SAFE | INPLACE | JOINS | CATS | GATES | SHRINKS | FLATS | UNSAFE


def _unsqueezed(gate: Tensor, like: Tensor) -> Tensor:
    while gate.dim() < like.dim():
        gate = gate.unsqueeze(-1)
    return gate


@dataclass(frozen=True)
class Statement:
    """A line of a network's forward: a layer or an operation, on tensors by name."""

    target: str
    operation: str
    sources: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.target} = {self.operation}  on  {', '.join(self.sources)}"
