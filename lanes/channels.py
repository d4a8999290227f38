"""Channels that are here: how they lie in memory, and putting them in another order without sending any.

Shapes: N batch, C all channels of the tensor, ``...`` any spatial dimensions.

Kept out: what passes between devices (crossing.py), which order is owed where (ordering.py).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def channels_last(x: Tensor) -> bool:
    """Whether the channels of ``x`` [N, C, ...] are innermost in memory."""
    return x.dim() > 2 and x.stride(1) == 1 and x.shape[2:].numel() > 1


def empty_stored_like(x: Tensor, channels: int) -> Tensor:
    """An uninitialised [N, channels, ...] whose dimensions lie in memory in the order of ``x`` [N, C, ...]."""
    shape = (x.shape[0], channels, *x.shape[2:])
    order = (0, *range(2, x.dim()), 1) if channels_last(x) else tuple(range(x.dim()))
    return torch.empty_permuted(shape, order, dtype=x.dtype, device=x.device)


def channel_dim(x: Tensor) -> int:
    """The place of the channel dimension in memory order."""
    return x.dim() - 1 if channels_last(x) else 1


def inverse(source: Sequence[int]) -> list[int]:
    """The order that undoes another."""
    return sorted(range(len(source)), key=source.__getitem__)


def reordered(x: Tensor, source: Sequence[int]) -> Tensor:
    """Re-order channels of [N, C, ...] that are all here: channel ``j`` of the result is channel ``source[j]``.

    What a dense layer that has gathered all channels does in place of a `crossing.shuffle`.
    """
    reordered_x: Tensor = _Reordered.apply(x, tuple(source))
    return reordered_x


class _Reordered(Function):
    """Channels in another order: autograd's own backward adds each gradient where its channel was, which is slow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: tuple[int, ...]) -> Tensor:
        ctx.source = source
        out = empty_stored_like(x, len(source))
        dim = channel_dim(x)
        selected(x.movedim(1, dim), dim, source, out=out.movedim(1, dim))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return reordered(grads[0], inverse(ctx.source)), None


def selected(stored: Tensor, dim: int, channels: tuple[int, ...], out: Tensor | None = None) -> Tensor:
    """Channels, dimension ``dim``, of a tensor in memory order; innermost ones are several times as fast by gather."""
    index = _indices(channels, stored.device)
    if dim < stored.dim() - 1:
        return torch.index_select(stored, dim, index, out=out)
    return torch.gather(stored, dim, index.expand(*stored.shape[:-1], -1), out=out)


def kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which remembers its results; not while torch.compile traces it, which keeps what it has traced."""
    remembering = functools.lru_cache(maxsize=1024)(function)

    @functools.wraps(function)
    def either(*args: Any) -> Any:
        return function(*args) if torch.compiler.is_compiling() else remembering(*args)

    return either


@kept
def _indices(channels: tuple[int, ...], device: torch.device) -> Tensor:
    """Made once: a list as index would be copied to the device, and waited for, at every use."""
    with torch.inference_mode(False):  # so that what an evaluation made serves training too
        return torch.tensor(channels, dtype=torch.int64, device=device)
