"""Pictures of first-layer filters, one grid per lane, all on one scale: numbers in, pictures out.

Knows nothing of training or plotting libraries. Filters stay in their stored order: a lane is a contiguous block of
output channels. Give the whole weight (of a placed model: the full tensor).

Legend: K filters over all lanes, h w their height and width in weights.
"""

import numpy as np
from PIL import Image
from torch import Tensor

from lanes.pictures.sheets import grid, titled

FILTER_WIDTH = 54  # pixels on screen, about
PERCENTILE = 99.5
ZERO = 128


def filter_scale(weight: Tensor) -> float:
    """Return the weight shown as full colour: the 99.5th percentile of abs(weight) over the whole layer.

    Not the maximum: trained filters are heavy-tailed, and a few extreme weights would turn all other filters grey.
    Weights beyond the scale saturate. A layer of zeros has scale 1.
    """
    sizes = weight.detach().abs().float().cpu().numpy().ravel()
    # An element and not an interpolation between two, so that small layers have a scale that occurs in them.
    return float(np.percentile(sizes, PERCENTILE, method="higher")) or 1.0


def filter_grids(weight: Tensor, lanes: int, upscale: int | None = None, *, name: str = "conv1") -> list[Image.Image]:
    """Draw a first layer's filters as one titled RGB grid per lane.

    Args:
        weight: ``[K, 3, h, w]`` (colour) or ``[K, 1, h, w]`` (grey); floating point, any device.
        lanes: Number of lanes; lane i owns filters ``i * K / lanes`` up to ``(i + 1) * K / lanes``.
        upscale: Pixels on screen per weight; by default such that a filter is about 54 pixels wide.
        name: Name of the layer, for the title.

    Returns:
        One picture per lane, all of one size. Weight 0 is mid-grey, + or - the scale is the channel's brightest or
        darkest, and the scale is common to all lanes (see `filter_scale`).

    Raises:
        ValueError: The weight is not a finite first layer of images, or does not divide over the lanes.
    """
    _check(weight, lanes, upscale)
    height, width = weight.shape[2:]
    upscale = upscale or max(1, round(FILTER_WIDTH / width))
    count = len(weight) // lanes
    scale = filter_scale(weight)
    values = weight.detach().float().cpu().numpy().transpose(0, 2, 3, 1)
    pixels = (ZERO + 127 * np.clip(values / scale, -1, 1)).round().astype(np.uint8)
    pixels = np.broadcast_to(pixels, (*pixels.shape[:3], 3)).repeat(upscale, axis=1).repeat(upscale, axis=2)
    facts = [name, f"{count} filters {height}x{width}", f"scale ±{scale:.2g}"]
    sheets = [Image.fromarray(grid(block, separator_width(upscale))) for block in np.split(pixels, lanes)]
    longest = f"lane {lanes - 1}"
    return [titled(sheet, [f"lane {lane}", *facts], longest=longest) for lane, sheet in enumerate(sheets)]


def separator_width(upscale: int) -> int:
    """Return the width in pixels of the lines between filters: one weight, but never a bar of more than 4 pixels."""
    return min(upscale, 4)


def _check(weight: Tensor, lanes: int, upscale: int | None) -> None:
    shape = tuple(weight.shape)
    if weight.dim() != 4:
        raise ValueError(
            f"filters of shape {shape} are no pictures: give the weight of a 2-d convolution, [K, 3, h, w]"
        )
    if weight.shape[1] not in (1, 3):
        raise ValueError(
            f"filters of shape {shape} read {weight.shape[1]} channels, which have no colour: "
            "only a first layer on RGB (3) or grey (1) images can be drawn"
        )
    if lanes < 1 or weight.shape[0] < 1 or weight.shape[0] % lanes:
        raise ValueError(
            f"{weight.shape[0]} filters do not divide over lanes={lanes}: give the model's number of lanes"
        )
    if upscale is not None and upscale < 1:
        raise ValueError(f"upscale={upscale} must be 1 or more pixels per weight")
    if not weight.isfinite().all():
        bad = weight.numel() - int(weight.isfinite().sum())
        raise ValueError(
            f"{bad} of {weight.numel()} weights are not finite: training has diverged, lower the step size"
        )
