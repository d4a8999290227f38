"""Pictures of first-layer filters, one per lane: in colour, in grey, or on opponent axes; numbers in, pictures out.

Knows nothing of training or plotting libraries. Filters stay in their stored order: a lane is a contiguous block of
output channels. Give the whole weight (of a placed model: the full tensor). Layers that read more than colours are
drawn in kernels.py.

Legend: K filters over all lanes, h w their height and width in weights, P panels of a picture.
"""

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from lanes.analysis.selectivity import opponent_axes
from lanes.pictures.sheets import (
    GROUND,
    TEXT,
    TITLE_MARGIN,
    Colours,
    colour_bar,
    coloured,
    font,
    grid,
    stacked,
    titled,
)
from lanes.words import near

FILTER_WIDTH = 54  # pixels on screen, about
PERCENTILE = 99.5
ZERO = 128
PANEL_GAP, BAR_WIDTH, BAR_LEFT = 8, 80, 90  # pixels

View = Literal["rgb", "grey", "opponent"]
Scale = Literal["layer", "filter"]

# In the order of selectivity.OPPONENT_AXES: its name, what the most negative and what the most positive look like. One
# end is dark and one is light, so that the sign can be seen without telling red from green.
OPPONENT_PANELS: tuple[tuple[str, Colours], ...] = (
    ("black-white", ((0, 0, 0), (128, 128, 128), (255, 255, 255))),
    ("red-green", ((70, 235, 130), (128, 128, 128), (160, 0, 40))),
    ("blue-yellow", ((240, 225, 0), (128, 128, 128), (35, 35, 210))),
)
Numbers = NDArray[np.floating]


def filter_scale(weight: Tensor) -> float:
    """Return the weight shown as full colour: the 99.5th percentile of abs(weight) over the whole layer.

    Not the maximum: trained filters are heavy-tailed, and a few extreme weights would turn all other filters grey.
    Weights beyond the scale saturate. A layer of zeros has scale 1.
    """
    return _percentile(weight.detach().float().cpu().numpy())


def filter_grids(
    weight: Tensor,
    lanes: int,
    upscale: int | None = None,
    *,
    name: str = "conv1",
    view: View = "rgb",
    scale: Scale = "layer",
) -> list[Image.Image]:
    """Draw a first layer's filters as one titled RGB picture per lane.

    Args:
        weight: ``[K, 3, h, w]`` (colour) or ``[K, 1, h, w]`` (grey); floating point, any device.
        lanes: Number of lanes; lane i owns filters ``i * K / lanes`` up to ``(i + 1) * K / lanes``.
        upscale: Pixels on screen per weight; by default such that a filter is about 54 pixels wide.
        name: Name of the layer, for the title.
        view: "rgb", the weights as colours. "grey", without colour: at each place the mean of the three, as
            `responses.turned_grey` does with images. "opponent", three panels below one another with the part of the
            filter on each of `selectivity.opponent_axes`, as length of a vector in RGB: black-white, red-green (red is
            positive, and darker), blue-yellow (blue is positive, and darker).
        scale: "layer", one scale for all lanes, filters and panels (see `filter_scale`, of what is shown). "filter",
            each filter on the largest of what is shown of it: compare shapes, not strengths.

    Returns:
        One picture per lane, all of one size. 0 is mid-grey, + or - the scale is the brightest or darkest.

    Raises:
        ValueError: The weight is not a finite first layer of images, or does not divide over the lanes; there is no
            such view or scale.
    """
    check_look(view, scale)
    _check(weight, lanes, upscale)
    height, width = weight.shape[2:]
    upscale = upscale or max(1, round(FILTER_WIDTH / width))
    count = len(weight) // lanes
    shown = _shown(weight, view)
    largest = _percentile(shown) if scale == "layer" else np.abs(shown).max(axis=(1, 2, 3, 4), keepdims=True)
    values = np.clip(shown / np.where(largest == 0, 1, largest), -1, 1)
    how = f"scale ±{largest:.2g}" if scale == "layer" else "each on its own scale"
    facts = [name, f"{count} filters {height}x{width}", *([] if view == "rgb" else [view]), how]
    pixels = _pixels(values, view).repeat(upscale, axis=2).repeat(upscale, axis=3)
    sheets = []
    for block in np.split(pixels, lanes):
        panels = [Image.fromarray(grid(block[:, panel], separator_width(upscale))) for panel in range(block.shape[1])]
        if view == "opponent":
            ends = (f"-{largest:.2g}", "0", f"+{largest:.2g}") if scale == "layer" else ("-", "0", "+")
            panels = [_with_bar(panel, *axis, ends) for panel, axis in zip(panels, OPPONENT_PANELS, strict=True)]
        sheets.append(stacked(panels, gap=PANEL_GAP))
    longest = f"lane {lanes - 1}"
    return [titled(sheet, [f"lane {lane}", *facts], longest=longest) for lane, sheet in enumerate(sheets)]


def check_look(view: str, scale: str, *, owner: str = "") -> None:
    """Refuse what `filter_grids` cannot draw.

    Args:
        view: of it.
        scale: of it.
        owner: with what the message begins.

    Raises:
        ValueError: names the value and the choices.
    """
    for what, value, choices in (("view", view, get_args(View)), ("scale", scale, get_args(Scale))):
        if value not in choices:
            hint = near(value, choices) if isinstance(value, str) else ""
            raise ValueError(f"{owner}{what}={value!r} is not one of {', '.join(map(repr, choices))}{hint}")


def _shown(weight: Tensor, view: View) -> Numbers:
    """What is drawn of the weights, [K, P, h, w, 3 colours or 1 number]."""
    values = weight.detach().float().cpu().numpy().transpose(0, 2, 3, 1)
    if view == "rgb":
        return values[:, None]
    if view == "grey":
        return values.mean(-1, keepdims=True)[:, None]
    colours = np.broadcast_to(values, (*values.shape[:3], 3))
    # In float64, so that grey filters have no colour at all, and not a rounding's.
    return np.moveaxis(colours @ opponent_axes().numpy().T, -1, 1)[..., None].astype(np.float32)


def _pixels(values: Numbers, view: View) -> NDArray[np.uint8]:
    """Numbers -1 to 1 [K, P, h, w, 3 or 1] to colours [K, P, h, w, 3]."""
    if view != "opponent":
        pixels = (ZERO + 127 * values).round().astype(np.uint8)
        return np.broadcast_to(pixels, (*pixels.shape[:4], 3))
    panels = zip(values[..., 0].swapaxes(0, 1), OPPONENT_PANELS, strict=True)
    return np.stack([coloured((panel + 1) / 2, colours) for panel, (_, colours) in panels], axis=1)


def _with_bar(panel: Image.Image, name: str, colours: Colours, ends: tuple[str, str, str]) -> Image.Image:
    """A panel with the name of its axis and its colours above."""
    bar = colour_bar(colours, ends, width=BAR_WIDTH)
    head = Image.new("RGB", (max(panel.width, BAR_LEFT + bar.width), bar.height), (GROUND,) * 3)
    ImageDraw.Draw(head).text((TITLE_MARGIN, 1), name, fill=TEXT, font=font())
    head.paste(bar, (BAR_LEFT, 0))
    return stacked([head, panel])


def _percentile(shown: NDArray[Any]) -> float:
    # An element and not an interpolation between two, so that small layers have a scale that occurs in them.
    return float(np.percentile(np.abs(shown).ravel(), PERCENTILE, method="higher")) or 1.0


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
