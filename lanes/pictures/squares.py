"""Pictures of how two layers' channels go together: squares of `lanes.analysis.covariance`, with the lanes' borders.

Rows are the first layer's channels, columns the second's; the darker, the stronger. As Ioannou draws them ("Structural
Priors in Deep Neural Networks", Cambridge 2017, "Inter-Layer Covariance"), but for the borders and the light ground.

Kept out: how squares are measured, and when.
"""

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from lanes.analysis.covariance import block_ratio
from lanes.pictures.palette import lane_colour
from lanes.pictures.sheets import GROUND, LIGHT_TO_DARK, TEXT, colour_bar, coloured, font, stacked, titled

Kind = Literal["whitened", "correlation"]
KINDS: dict[Kind, str] = {"whitened": "whitened covariance", "correlation": "correlation"}
WIDTH = 400  # pixels of the square, about; few channels are enlarged by a whole number
LARGEST = 800  # pixels, at most; of more channels each pixel is the mean over several
PERCENTILE = 99.5
STRIP = 5  # pixels of colour beside each lane
LABEL = 12  # size of the font
MARGIN = 2 * (LABEL + 4) + STRIP + 2  # pixels above and left of the square


def square_scale(channels: tuple[int, int], kind: Kind) -> float:
    """A scale that fits a square of this size whatever the network has learned: for pictures that are compared.

    Of a correlation it is 1. The singular values of a whitened square are correlations too, at most 1, so that the root
    mean square over its elements is at most 1 / sqrt(C), C the larger of both numbers of channels. Three times that is
    the scale: what nothing but chance spreads over a square of the largest size would pass it in 0.3 % of elements.

    Args:
        channels: C1 and C2.
        kind: of the square.
    """
    return 1.0 if kind == "correlation" else min(1.0, 3 / math.sqrt(max(channels)))


def square_picture(
    square: Tensor,
    layers: tuple[str, str],
    lanes: int,
    *,
    kind: Kind = "whitened",
    images: int,
    samples: int,
    scale: float | None = None,
) -> Image.Image:
    """Draw one square with the borders of the lanes, a scale and what it says in words.

    Args:
        square: [C1, C2], magnitudes from 0 to 1.
        layers: names of both.
        lanes: how many there are; lane i owns the i-th of so many equal parts of rows and columns. Of one lane there
            are no borders, and nothing to compare.
        kind: what the magnitudes are.
        images: on how many it was measured.
        samples: pixels of all of them.
        scale: the magnitude of the darkest colour; by default the 99.5th percentile of this square. Give `square_scale`
            to compare pictures.

    Raises:
        ValueError: this is no finite square of magnitudes, or lanes do not divide it.
    """
    _check(square, lanes, scale)
    values = square.detach().abs().double().cpu()
    if scale is None:
        scale = float(np.percentile(values.numpy(), PERCENTILE, method="higher")) or 1.0
    pixels, merged = _fitted(values, lanes)
    facts = [f"{layers[0]} (rows) and {layers[1]} (columns)", KINDS[kind], f"{images:,} images, {samples:,} pixels"]
    if lanes > 1:
        facts.append(ratio_in_words(values, lanes))
    if merged > 1:
        facts.append(f"each point is the mean of {merged} x {merged} channels")
    more = " and more" if values.max() > scale else ""
    bar = colour_bar(LIGHT_TO_DARK, ["0", f"{scale / 2:.2g}", f"{scale:.2g}{more}"])
    return titled(stacked([_bordered(coloured(pixels / scale, LIGHT_TO_DARK), lanes, layers), bar], gap=6), facts)


def ratio_in_words(square: Tensor, lanes: int) -> str:
    """The block ratio, for titles and captions: "in-lane / cross-lane 1.45x"."""
    ratio = block_ratio(square, lanes)
    if math.isnan(ratio):
        return "nothing varies together"
    return "nothing across lanes" if math.isinf(ratio) else f"in-lane / cross-lane {ratio:.2f}x"


def _check(square: Tensor, lanes: int, scale: float | None) -> None:
    if square.dim() != 2 or not square.numel() or lanes < 1 or any(size % lanes for size in square.shape):
        raise ValueError(f"a square {tuple(square.shape)} does not divide over lanes={lanes}: give the model's lanes")
    if not square.isfinite().all():
        raise ValueError("the square holds numbers that are not finite: training has diverged, lower the step size")
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"scale={scale} must be a positive magnitude, such as 1")


def _fitted(values: Tensor, lanes: int) -> tuple[NDArray[np.float64], int]:
    """Enlarged by a whole number, or averaged over so many channels, which divide a lane's; and how many these are."""
    larger, common = max(values.shape), math.gcd(*values.shape) // lanes
    merged = next((n for n in range(1, common + 1) if common % n == 0 and larger / n <= LARGEST), common)
    if merged > 1:
        values = torch.nn.functional.avg_pool2d(values[None], merged)[0]
    times = max(1, round(WIDTH / max(values.shape)))
    return values.numpy().repeat(times, 0).repeat(times, 1), merged


def _bordered(pixels: NDArray[np.uint8], lanes: int, layers: tuple[str, str]) -> Image.Image:
    """The square between its labels: lines stand between the lanes' channels, not on them."""
    gap = 0 if lanes == 1 else 1 if lanes > 8 else 2
    size = [length + gap * (lanes - 1) for length in pixels.shape[:2]]
    places = [np.arange(length) + gap * (np.arange(length) * lanes // length) for length in pixels.shape[:2]]
    sheet = np.full((*size, 3), TEXT, dtype=np.uint8)
    sheet[np.ix_(*places)] = pixels
    body = Image.new("RGB", (MARGIN + size[1] + 6, MARGIN + size[0]), (GROUND,) * 3)
    body.paste(Image.fromarray(sheet), (MARGIN, MARGIN))
    body.paste(_labels(size[1], layers[1], list(range(lanes))), (MARGIN, 0))
    body.paste(_labels(size[0], layers[0], list(reversed(range(lanes)))).rotate(90, expand=True), (0, MARGIN))
    return body


def _labels(length: int, layer: str, order: list[int]) -> Image.Image:
    """The layer's name, and under it its lanes from left to right."""
    sheet = Image.new("RGB", (length, MARGIN), (GROUND,) * 3)
    pen, each = ImageDraw.Draw(sheet), length / len(order)
    pen.text((length / 2, LABEL / 2 + 1), layer, fill=TEXT, font=font(LABEL), anchor="mm")
    if len(order) == 1:
        return sheet
    short = any(font(LABEL).getlength(f"lane {lane}") + 4 > each for lane in order)
    every = max(1, math.ceil((font(LABEL).getlength(str(max(order))) + 4) / each))
    for place, lane in enumerate(order):
        left, right = round(place * each), round((place + 1) * each) - 1
        pen.rectangle((left, MARGIN - STRIP - 2, right, MARGIN - 3), fill=lane_colour(lane))
        if lane % every == 0:
            name = str(lane) if short else f"lane {lane}"
            middle = (place + 0.5) * each
            pen.text((middle, MARGIN - STRIP - LABEL / 2 - 4), name, fill=TEXT, font=font(LABEL), anchor="mm")
    return sheet
