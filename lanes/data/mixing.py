"""Mixing: each training image is joined with a partner from its batch, and its target is their classes by share.

Written here, and not with kornia.augmentation: its RandomMixUpV2 draws shares uniformly (the paper's Beta(alpha, alpha)
is most of the method), its RandomCutMixV2 places boxes inside the image only (the paper lets the border cut them, so
corners are cut less often) and takes about ten times as long.

The random numbers are drawn on the CPU, wherever the images are, as kornia's augmentations do: one seed gives the same
mixture on any device, and no GPU waits for another's numbers. ``lanes.seed_replica`` decides that stream too.

Legend: N images, C channels, H W height and width in pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Beta


class MixUp(nn.Module):
    """Blend each image with its partner: ``share * image + (1 - share) * partner`` (Zhang et al. 2018, section 2).

    Each image has a share of its own, from Beta(alpha, alpha).

    Args:
        alpha: Small: most images stay nearly pure; 1: all shares alike. 0.1 to 0.4 in the paper for ImageNet.

    Raises:
        ValueError: ``alpha`` is not positive.
    """

    def __init__(self, alpha: float = 0.2) -> None:
        super().__init__()
        _check_alpha(alpha)
        self.alpha = alpha

    def forward(self, images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: Floating point, ``[N, C, H, W]``.
            labels: int64, ``[N]``.
            num_classes: K.

        Returns:
            Images, ``[N, C, H, W]``, and targets that sum to 1, ``[N, K]``, of their dtype.
        """
        share, partner = _draw_share(len(images), self.alpha).to(images), _draw_partner(images)
        mixed = torch.lerp(images[partner], images, share[:, None, None, None])
        return mixed, _targets(labels, partner, share, num_classes)

    def extra_repr(self) -> str:
        """Show the arguments, for the data card."""
        return f"alpha={self.alpha}"


class CutMix(nn.Module):
    """Replace a box of each image by the same box of its partner (Yun et al. 2019, section 3.1).

    Each image has a box of its own: of the image's shape, its area 1 - Beta(alpha, alpha) of the image's, its middle
    anywhere; what lies outside of the image is lost. The target goes by the pixels that were really replaced.

    Args:
        alpha: 1, as in the paper: all areas alike; smaller: more boxes that are nearly nothing or nearly everything.

    Raises:
        ValueError: ``alpha`` is not positive.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        _check_alpha(alpha)
        self.alpha = alpha

    def forward(self, images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: Floating point, ``[N, C, H, W]``.
            labels: int64, ``[N]``.
            num_classes: K.

        Returns:
            Images, ``[N, C, H, W]``, and targets that sum to 1, ``[N, K]``, of their dtype.
        """
        number, (height, width) = len(images), images.shape[-2:]
        side = (1 - _draw_share(number, self.alpha)).sqrt()
        rows, columns = (_draw_interval(extent, side).to(images.device) for extent in (height, width))
        partner = _draw_partner(images)
        replaced = rows[:, None, :, None] & columns[:, None, None, :]
        share = 1 - rows.sum(1) * columns.sum(1) / (height * width)
        targets = _targets(labels, partner, share.to(images.dtype), num_classes)
        return torch.where(replaced, images[partner], images), targets

    def extra_repr(self) -> str:
        """Show the arguments, for the data card."""
        return f"alpha={self.alpha}"


def _check_alpha(alpha: float) -> None:
    if not alpha > 0:
        raise ValueError(
            f"alpha={alpha} must be positive: shares follow Beta(alpha, alpha); to mix nothing, leave it out"
        )


def _draw_share(number: int, alpha: float) -> Tensor:
    """Draw how much of each image stays, float32, ``[N]``."""
    parameter = torch.tensor(alpha, dtype=torch.float32)  # whatever the default dtype: there is no Beta in bfloat16
    return Beta(parameter, parameter).sample((number,))


def _draw_partner(images: Tensor) -> Tensor:
    """Draw a permutation of the batch, int64, ``[N]``; an image may be its own partner."""
    return torch.randperm(len(images)).to(images.device)


def _draw_interval(extent: int, side: Tensor) -> Tensor:
    """Draw the pixels of one axis that boxes cover.

    Args:
        extent: The image's pixels along the axis.
        side: The boxes' sides as shares of it, ``[N]``.

    Returns:
        bool, ``[N, extent]``.
    """
    length = (side * extent).long()
    start = (torch.rand(len(side), dtype=torch.float32) * extent).long() - length // 2
    pixel = torch.arange(extent)
    return (pixel >= start[:, None]) & (pixel < (start + length)[:, None])


def _targets(labels: Tensor, partner: Tensor, share: Tensor, num_classes: int) -> Tensor:
    """Give each image's class its share and its partner's class the rest, ``[N, K]``."""
    own = F.one_hot(labels, num_classes).to(share.dtype)
    return torch.lerp(own[partner], own, share[:, None])
