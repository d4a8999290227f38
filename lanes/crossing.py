"""Every byte that passes between lane devices, and between replicas in backward: forward/backward pairs.

Shapes (local to one lane device, per process): N batch, C all channels, D lane devices, c = C/D own channels, ``...``
any spatial dimensions. A *laned* tensor is [N, c, ...]: the own channels. A *whole* tensor is [N, C, ...], alike on all
lane devices. Dimension 1 is the channel dimension always; vectors [N, C] are maps without spatial dimensions.

What the backward of an exchange does depends on who uses its result, so exchanges of the same forward that differ in
backward have different names, and no function takes a flag. S in the docstrings is the bytes of the whole tensor in
the data type that is sent; "bytes" is what one device sends. Results have the memory format of the input
(channels-last stays so), and collectives write only to tensors allocated here.

Kept out: which layer crosses where (planning.py), the arithmetic in between (layers/), counting (traffic.py).
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from lanes.channels import channel_dim, empty_stored_like, inverse, kept, reordered, selected
from lanes.mesh import Axis

Exchange = Callable[[Tensor, Axis], Tensor]

# torch 2.13 renamed both and deprecates the old names; 2.11 has only those.
_all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter_single = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


# Collectives want dense tensors in memory order: ``movedim(1, dim)`` is such a view. What a Function returns must not
# be a view, or an in-place layer behind it would be refused: so results are allocated whole and written through one.


def _all_gather(x: Tensor, lane: Axis) -> Tensor:
    """[N, c, ...] -> [N, C, ...]."""
    dim = channel_dim(x)
    stored = x.movedim(1, dim).contiguous()
    parts = stored.new_empty((lane.size, *stored.shape))
    _all_gather_single(parts.flatten(0, 1), stored, group=lane.group)
    whole = empty_stored_like(x, x.shape[1] * lane.size)
    torch.cat(parts.unbind(), dim, out=whole.movedim(1, dim))
    return whole


def _reduce_scatter(x: Tensor, lane: Axis) -> Tensor:
    """[N, C, ...], different on each device -> [N, c, ...], the own channels of the sum."""
    dim = channel_dim(x)
    parts = torch.stack(x.movedim(1, dim).chunk(lane.size, dim))
    own = empty_stored_like(x, x.shape[1] // lane.size)
    _reduce_scatter_single(own.movedim(1, dim), parts.flatten(0, 1), group=lane.group)
    return own


def _all_reduce(x: Tensor, axis: Axis) -> Tensor:
    """[...], different on each device -> [...], the sum."""
    if x.dim() < 2:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=axis.group)
        return total
    total = empty_stored_like(x, x.shape[1])
    stored = total.movedim(1, channel_dim(x))
    dist.all_reduce(stored.copy_(x.movedim(1, channel_dim(x))), group=axis.group)
    return total


class _Exchange(Function):
    """An exchange and what its gradient does: two functions of a tensor and an axis, named in one place each below."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, along: Axis, here: Exchange, back: Exchange) -> Tensor:
        ctx.along, ctx.back = along, back
        return here(x, along)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.back(grads[0], ctx.along), None, None, None


def _as_is(x: Tensor, along: Axis) -> Tensor:
    return x.view_as(x)


def _own_channels(x: Tensor, lane: Axis) -> Tensor:
    return x[:, lane.own(x.shape[1])].clone()


def _own(x: Tensor, lane: Axis) -> Tensor:
    """The own channels of a tensor that is alike on all lane devices; the adjoint of ``leave``."""
    return _exchange(x, lane, _own_channels, leave)


def _mean(x: Tensor, data: Axis) -> Tensor:
    return sum(x, data) / data.size


def _exchange(x: Tensor, along: Axis, here: Exchange, back: Exchange) -> Tensor:
    if along.size == 1:
        return x  # nobody to talk to: no copies
    result: Tensor = _Exchange.apply(x, along, here, back)
    return result


def gather(x: Tensor, lane: Axis) -> Tensor:
    """Laned to whole, for work whose *outputs* are split over lane devices (a dense layer's own output channels).

    Forward: all-gather of channels. Backward: reduce-scatter, since every device used all channels for its own ends.
    In: [N, c, ...]. Out: [N, C, ...]. Bytes: S (D - 1) / D forward, the same backward.
    Source: Megatron-LM's sequence-parallel g, https://arxiv.org/abs/2205.05198 section 4.2.2, on channels.
    """
    return _exchange(x, lane, _all_gather, scatter_sum)


def scatter_sum(x: Tensor, lane: Axis) -> Tensor:
    """Partial sums of all channels to the own channels of the sum (a dense layer whose *inputs* are split).

    Forward: reduce-scatter. Backward: all-gather. In: [N, C, ...]. Out: [N, c, ...].
    Bytes: S (D - 1) / D forward, the same backward.
    Source: Megatron-LM's g-bar, https://arxiv.org/abs/2205.05198 section 4.2.2, on channels.
    """
    return _exchange(x, lane, _reduce_scatter, gather)


def enter(x: Tensor, lane: Axis) -> Tensor:
    """A whole tensor read by every lane, which uses it for its own ends (the image).

    Forward: identity. Backward: all-reduce; not reached where ``x`` needs no gradient. In and out: [N, C, ...].
    Bytes: 0 forward, 2 S (D - 1) / D backward. Source: Megatron-LM's f, https://arxiv.org/abs/1909.08053 section 3.
    """
    return _exchange(x, lane, _as_is, leave_sum)


def leave_sum(x: Tensor, lane: Axis) -> Tensor:
    """Partial sums to the whole sum, used alike on every lane device (the logits).

    Forward: all-reduce. Backward: identity: the loss is computed on every lane device but counts once.
    In and out: [N, C, ...]. Bytes: 2 S (D - 1) / D forward, 0 backward.
    Source: Megatron-LM's g, https://arxiv.org/abs/1909.08053 section 3.
    """
    return _exchange(x, lane, _all_reduce, enter)


def leave(x: Tensor, lane: Axis) -> Tensor:
    """Laned to whole, used alike on every lane device (features wanted whole by replicated work).

    Forward: all-gather of channels. Backward: the own slice. In: [N, c, ...]. Out: [N, C, ...].
    Bytes: S (D - 1) / D forward, 0 backward.
    """
    return _exchange(x, lane, _all_gather, _own)


def sum(x: Tensor, lane: Axis) -> Tensor:
    """Statistics over all channels (or all replicas) that each device uses for its own ends.

    Forward: all-reduce. Backward: all-reduce. In and out: any shape. Bytes: 2 S (D - 1) / D, the same backward.
    """
    return _exchange(x, lane, _all_reduce, sum)


def replicated(weight: Tensor, data: Axis) -> Tensor:
    """A weight of which every replica holds a copy, as each replica uses it.

    Forward: identity. Backward: all-reduce over the *data* axis, divided by its size: the gradient is averaged where it
    arises, so frozen layers cost nothing, several backward passes accumulate averages, and no hook can get lost.
    In and out: any shape. Bytes: 0 forward, 2 S (R - 1) / R backward over R replicas, what DDP sends.
    """
    return _exchange(weight, data, _as_is, _mean)


def shuffle(x: Tensor, source: Sequence[int], lane: Axis) -> Tensor:
    """Re-order all C channels across lane devices: channel ``j`` of the result is channel ``source[j]``.

    Forward: all-to-all in which only channels that change device are sent. Backward: the inverse all-to-all.
    In and out: [N, c, ...]. Bytes: exactly those of the own channels that another device needs.
    Source: channel shuffle, ShuffleNet, https://arxiv.org/abs/1707.01083 section 3.1.

    Raises:
        ValueError: if ``source`` is not a permutation of the C channels.
    """
    if sorted(source) != list(range(x.shape[1] * lane.size)):
        raise ValueError(f"source must be a permutation of the {x.shape[1] * lane.size} channels, got {list(source)}")
    if lane.size == 1:
        return reordered(x, source)
    there = functools.partial(_all_to_all, tuple(source))
    return _exchange(x, lane, there, functools.partial(_shuffle_back, tuple(source)))


def _shuffle_back(source: Sequence[int], x: Tensor, lane: Axis) -> Tensor:
    """The inverse of :func:`shuffle` with the same ``source``."""
    return shuffle(x, inverse(source), lane)


@dataclass(frozen=True)
class _Routes:
    """Who sends what in an all-to-all, for one device: positions among its own channels, in the order of the devices.

    Attributes:
        leaves: own channels that are sent, to device 0 first.
        takes: for each own channel of the result its place among the own channels and, after them, those received.
        sent: how many go to each device.
        received: how many come from each.
        arriving: how many come in all.
        any: whether any device sends anything.
    """

    leaves: tuple[int, ...]
    takes: tuple[int, ...]
    sent: list[int]
    received: list[int]
    arriving: int
    any: bool


@kept
def _routes(source: tuple[int, ...], size: int, index: int) -> _Routes:
    own = len(source) // size
    sends = [[c - index * own for c in source[d * own : (d + 1) * own] if c // own == index] for d in range(size)]
    sends[index] = []
    mine = source[index * own : (index + 1) * own]
    arrives = [[c for c in mine if c // own == d and d != index] for d in range(size)]
    place = {c: own + position for position, c in enumerate(c for channels in arrives for c in channels)}
    return _Routes(
        leaves=tuple(c for channels in sends for c in channels),
        takes=tuple(place.get(c, c - index * own) for c in mine),
        sent=[len(channels) for channels in sends],
        received=[len(channels) for channels in arrives],
        arriving=len(place),
        any=any(c // own != j // own for j, c in enumerate(source)),
    )


def _all_to_all(source: tuple[int, ...], x: Tensor, lane: Axis) -> Tensor:
    """[N, c, ...] -> [N, c, ...] re-ordered; the channels that stay are copied, not sent."""
    routes = _routes(source, lane.size, lane.index)
    dim = channel_dim(x)
    stored = x.movedim(1, dim)
    if routes.any:
        stored = torch.cat([stored, *_exchanged(stored, dim, routes, lane)], dim)
    out = empty_stored_like(x, x.shape[1])
    selected(stored, dim, routes.takes, out=out.movedim(1, dim))
    return out


def _exchanged(stored: Tensor, dim: int, routes: _Routes, lane: Axis) -> list[Tensor]:
    """The channels received, a tensor from each device that sends some, in the memory order of ``stored``."""
    each = stored.numel() // stored.shape[dim]
    leaving = selected(stored, dim, routes.leaves).split(routes.sent, dim)
    outgoing = torch.cat([part.flatten() for part in leaving])
    incoming = stored.new_empty(each * routes.arriving)
    received, sent = ([each * count for count in counts] for counts in (routes.received, routes.sent))
    dist.all_to_all_single(incoming, outgoing, received, sent, group=lane.group)
    counts = [count for count in routes.received if count]
    parts = incoming.split([each * count for count in counts])
    shapes = ((*stored.shape[:dim], count, *stored.shape[dim + 1 :]) for count in counts)
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
