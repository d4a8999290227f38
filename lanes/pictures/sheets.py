"""What all pictures share: small pictures laid on a grid, a title above, one font, one ground.

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


def grid_columns(count: int) -> int:
    """Return the number of columns: near-square, at least as wide as high, and of these the one with fewest blanks."""
    least = math.ceil(math.sqrt(count))
    return min(range(least, math.ceil(1.5 * least) + 1), key=lambda columns: (-count % columns, columns))


def grid(pictures: NDArray[np.uint8], gap: int) -> NDArray[np.uint8]:
    """Lay pictures ``[n, h, w, 3]`` row by row on a grid with lines of ``gap`` pixels between and around them."""
    count, height, width, _ = pictures.shape
    columns = grid_columns(count)
    rows = -(-count // columns)
    sheet = np.full((rows * columns, height + gap, width + gap, 3), GROUND, dtype=np.uint8)
    sheet[:count, gap:, gap:] = pictures
    sheet = sheet.reshape(rows, columns, height + gap, width + gap, 3).swapaxes(1, 2)
    sheet = sheet.reshape(rows * (height + gap), columns * (width + gap), 3)
    return np.pad(sheet, ((0, gap), (0, gap), (0, 0)), constant_values=GROUND)


def titled(picture: Image.Image, facts: Sequence[str], *, longest: str = "") -> Image.Image:
    """Put a title above a picture, in as many lines as the width asks for.

    Args:
        picture: RGB.
        facts: the title's parts, joined by dots; a line is broken between two of them.
        longest: the longest first part of all pictures that stand side by side, so that they break alike.
    """
    width = max(picture.width, TITLE_MIN_WIDTH)
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
