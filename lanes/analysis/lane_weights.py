"""Which of a layer's weights join a lane to itself and which to other lanes, and how large they are.

A layer is looked at as a matrix of kernels: one for each output channel (row) and each input channel it reads (column).
Lane i owns the i-th block of the rows and the i-th block of the columns. Kept out: pictures.

Legend: K output channels, C input channels, of all lanes; h w (or one, three, no) dimensions of the kernel.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OwnLaneShare:
    """How much a lane listens to itself.

    Attributes:
        lane: which.
        share: of the squared weights of its output channels, the part that reads its own input channels; 0 to 1, NaN
            if all are zero.
        chance: the share of equal weights: C_own / C where each channel reads all, 1 where it reads its lane only.
    """

    lane: int
    share: float
    chance: float


def own_lane_share(weight: Tensor, lanes: int, *, groups: int = 1) -> list[OwnLaneShare]:
    """How much of each lane's squared weight reads the lane's own channels.

    Args:
        weight: [K, C / groups, ...] of a convolution or [K, C] of a linear layer, of all lanes, floating point. Of a
            linear layer behind `nn.Flatten` C counts features; lanes divide them as they do the channels.
        lanes: how many there are.
        groups: of the layer.

    Returns:
        One for each lane, in order.

    Raises:
        ValueError: lanes or groups do not divide the channels, or a weight is not finite.
    """
    norms = kernel_norms(weight, groups=groups)
    squares, counts = by_lanes(norms.square(), lanes), by_lanes(norms.isnan().logical_not(), lanes)
    # The part outside is summed by itself, so that a lane which reads no other has a share of exactly 1.
    shares, chances = ((own := sums.diagonal()) / (own + (sums - own.diag()).sum(1)) for sums in (squares, counts))
    return [OwnLaneShare(*found) for found in zip(range(lanes), shares.tolist(), chances.tolist(), strict=True)]


def by_lanes(values: Tensor, lanes: int) -> Tensor:
    """The sums of [K, C] over what each lane reads of each lane, [lanes to, lanes from], float64; NaN counts as 0.

    Raises:
        ValueError: lanes do not divide both.
    """
    _check_lanes(values, lanes)
    blocks = values.unflatten(1, (lanes, -1)).unflatten(0, (lanes, -1))
    return blocks.nansum((1, 3), dtype=torch.float64)


def kernel_norms(weight: Tensor, *, groups: int = 1) -> Tensor:
    """The 2-norm of every kernel, [K, C], NaN where the groups leave no weight.

    Args:
        weight: [K, C / groups, ...], finite, floating point.
        groups: of the layer.

    Raises:
        ValueError: the weight is none, or not finite, or groups do not divide its channels.
    """
    if weight.dim() < 2 or not weight.is_floating_point() or weight.numel() == 0:
        raise ValueError(
            f"{weight.dtype} of shape {tuple(weight.shape)} is no layer's weight: give [K, C / groups, ...], of a "
            "convolution or linear layer, floating point"
        )
    if groups < 1 or len(weight) % groups:
        raise ValueError(f"{len(weight)} output channels do not divide over groups={groups}: give the layer's groups")
    if not weight.isfinite().all():
        bad = weight.numel() - int(weight.isfinite().sum())
        raise ValueError(
            f"{bad} of {weight.numel()} weights are not finite: training has diverged, lower the step size"
        )
    weight = weight.detach() if weight.dtype == torch.float64 else weight.detach().float()
    one = weight[0, 0].numel() == 1
    norms = weight.flatten(1).abs() if one else torch.linalg.vector_norm(weight.flatten(2), dim=2)
    if groups == 1:
        return norms
    blocks = norms.unflatten(0, (groups, -1))  # [groups, K / groups, C / groups]
    whole = norms.new_full((groups, blocks.shape[1], groups, blocks.shape[2]), torch.nan)
    index = torch.arange(groups, device=norms.device)
    whole[index, :, index] = blocks
    return whole.flatten(2).flatten(0, 1)


def own_lane(norms: Tensor, lanes: int) -> Tensor:
    """Which kernels read their own lane's channels: bool [K, C], whether there is a weight or not.

    Raises:
        ValueError: lanes do not divide both.
    """
    _check_lanes(norms, lanes)
    row, column = (torch.arange(size, device=norms.device) // (size // lanes) for size in norms.shape)
    return row[:, None] == column


def _check_lanes(norms: Tensor, lanes: int) -> None:
    rows, columns = norms.shape
    if lanes < 1 or rows % lanes or columns % lanes:
        raise ValueError(
            f"{rows} output and {columns} input channels do not both divide over lanes={lanes}: give the model's "
            "number of lanes, and a layer inside of it (images and classes belong to no lane)"
        )
