"""What all pictures share: small pictures laid on a grid, a title above, a bar of colours, one font, one ground.

Kept out: what is drawn.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

TITLE_SIZE, TITLE_MARGIN = 14, 4  # pixels
TITLE_MIN_WIDTH = 190  # pixels; a narrower picture gets a canvas of this width and a title of several lines
GROUND, TEXT = 255, (40, 40, 40)

# Colours for numbers, by piecewise linear interpolation. Lightness falls from end to end (of the second from the middle
# to both ends), so that they can be told apart without seeing hues; blue and red are told apart by all.
LIGHT_TO_DARK = ((240, 244, 250), (158, 188, 222), (58, 117, 181), (8, 39, 97))
BLUE_WHITE_RED = ((10, 50, 130), (85, 140, 205), (255, 255, 255), (220, 100, 80), (130, 5, 35))

Colours = Sequence[tuple[int, int, int]]


def grid_columns(count: int) -> int:
    """Return the number of columns: near-square, at least as wide as high, and of these the one with fewest blanks."""
    least = math.ceil(math.sqrt(count))
    return min(range(least, math.ceil(1.5 * least) + 1), key=lambda columns: (-count % columns, columns))


def grid(pictures: NDArray[np.uint8], gap: int, *, ground: int = GROUND) -> NDArray[np.uint8]:
    """Lay pictures ``[n, h, w, 3]`` row by row on a grid with lines of ``gap`` pixels between and around them."""
    count, height, width, _ = pictures.shape
    columns = grid_columns(count)
    rows = -(-count // columns)
    sheet = np.full((rows * columns, height + gap, width + gap, 3), ground, dtype=np.uint8)
    sheet[:count, gap:, gap:] = pictures
    sheet = sheet.reshape(rows, columns, height + gap, width + gap, 3).swapaxes(1, 2)
    sheet = sheet.reshape(rows * (height + gap), columns * (width + gap), 3)
    return np.pad(sheet, ((0, gap), (0, gap), (0, 0)), constant_values=ground)


def titled(picture: Image.Image, facts: Sequence[str], *, longest: str = "") -> Image.Image:
    """Put a title above a picture, in as many lines as the width asks for.

    Args:
        picture: RGB.
        facts: the title's parts, joined by dots; a line is broken between two of them.
        longest: the longest first part of all pictures that stand side by side, so that they break alike.
    """
    widest = max(map(font().getlength, [longest, *facts]))
    width = max(picture.width, TITLE_MIN_WIDTH, math.ceil(widest) + 2 * TITLE_MARGIN)
    lines = [max(longest, facts[0], key=font().getlength)]
    for fact in facts[1:]:
        longer = f"{lines[-1]} · {fact}"
        if font().getlength(longer) + 2 * TITLE_MARGIN <= width:
            lines[-1] = longer
        else:
            lines.append(fact)
    lines[0] = lines[0].replace(longest or facts[0], facts[0], 1)
    line_height = TITLE_SIZE + 5
    top = TITLE_MARGIN + line_height * len(lines)
    sheet = Image.new("RGB", (width, top + picture.height), (GROUND,) * 3)
    sheet.paste(picture, (0, top))
    pen = ImageDraw.Draw(sheet)
    for index, line in enumerate(lines):
        pen.text((TITLE_MARGIN, 3 + line_height * index), line, fill=TEXT, font=font())
    return sheet


@lru_cache(maxsize=4)
def font(size: int = TITLE_SIZE) -> ImageFont.FreeTypeFont:
    """The one font; the one that Pillow carries."""
    loaded = ImageFont.load_default(size=size)
    assert isinstance(loaded, ImageFont.FreeTypeFont)  # of a Pillow built with FreeType, as its wheels are
    return loaded


def coloured(values: NDArray[np.floating], colours: Colours) -> NDArray[np.uint8]:
    """Numbers 0 to 1 [...] as the colours evenly between, [..., 3]; what lies beyond takes those of the ends."""
    stops = np.linspace(0, 1, len(colours))
    bands = [np.interp(values, stops, band) for band in zip(*colours, strict=True)]
    return np.stack(bands, axis=-1).round().astype(np.uint8)


def colour_bar(colours: Colours, labels: Sequence[str], width: int = 180) -> Image.Image:
    """A lying bar of the colours with labels below: the first at its left end, the last at its right, others between.

    Args:
        colours: from the least to the largest number.
        labels: two or more.
        width: of the bar, in pixels; the picture is wider by what the labels need beyond its ends.
    """
    height, lettering = 10, font(TITLE_SIZE - 2)
    sides = [math.ceil(lettering.getlength(label) / 2) + TITLE_MARGIN for label in (labels[0], labels[-1])]
    sheet = Image.new("RGB", (sum(sides) + width, height + TITLE_SIZE + 2 * TITLE_MARGIN), (GROUND,) * 3)
    pixels = np.tile(coloured(np.linspace(0, 1, width), colours), (height, 1, 1))
    sheet.paste(Image.fromarray(pixels), (sides[0], TITLE_MARGIN))
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((sides[0], TITLE_MARGIN, sides[0] + width - 1, TITLE_MARGIN + height - 1), outline=(150, 150, 150))
    for index, label in enumerate(labels):
        place = sides[0] + (width - 1) * index / (len(labels) - 1)
        pen.text((place, TITLE_MARGIN + height + 1), label, fill=TEXT, font=lettering, anchor="ma")
    return sheet


def stacked(pictures: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """Pictures below one another, at the left."""
    height = sum(picture.height + gap for picture in pictures) - gap
    sheet = Image.new("RGB", (max(picture.width for picture in pictures), height), (GROUND,) * 3)
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height + gap
    return sheet


def beside(pictures: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """Pictures beside one another, their feet on one line."""
    height = max(picture.height for picture in pictures)
    sheet = Image.new("RGB", (sum(picture.width + gap for picture in pictures) - gap, height), (GROUND,) * 3)
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, height - picture.height))
        left += picture.width + gap
    return sheet
