"""Crops at fixed places, for evaluation: the centre, and the paper's ten views (section 4.1).

Legend: N images, C channels, H W height and width in pixels, S side of a crop in pixels.
"""

import torch
from torch import Tensor


def center_crop(images: Tensor, size: int) -> Tensor:
    """Cut out the middle. Where the border is odd, the crop lies half a pixel to the top and left of the middle.

    Args:
        images: ``[..., H, W]``, any dtype.
        size: S.

    Returns:
        ``[..., S, S]``, a view of ``images``.

    Raises:
        ValueError: S is not in 1..min(H, W).
    """
    _check_fits(images, size)
    height, width = images.shape[-2:]
    return _crop(images, (height - size) // 2, (width - size) // 2, size)


def ten_views(images: Tensor, size: int) -> Tensor:
    """Cut out the four corners and the middle, and mirror each left to right.

    The order is top left, top right, bottom left, bottom right, middle (as ``center_crop``), then their mirror images.

    Args:
        images: ``[N, C, H, W]``, any dtype.
        size: S.

    Returns:
        A new tensor, ``[N, 10, C, S, S]``.

    Raises:
        ValueError: S is not in 1..min(H, W).
    """
    _check_fits(images, size)
    bottom, right = (side - size for side in images.shape[-2:])
    views = [_crop(images, top, left, size) for top in (0, bottom) for left in (0, right)]
    views.append(center_crop(images, size))
    return torch.stack([*views, *(view.flip(-1) for view in views)], dim=1)


def _crop(images: Tensor, top: int, left: int, size: int) -> Tensor:
    return images[..., top : top + size, left : left + size]


def _check_fits(images: Tensor, size: int) -> None:
    height, width = images.shape[-2:]
    if not 1 <= size <= min(height, width):
        raise ValueError(
            f"a crop of {size} x {size} pixels does not fit images of {height} x {width}; use a size of "
            f"1 to {min(height, width)}, or larger images"
        )
