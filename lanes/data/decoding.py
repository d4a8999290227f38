"""From the bytes of an image file to pixels of one size.

Legend: C channels (3 or 1), S stored_size in pixels.
"""

from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lanes.data.sources import Split

Color = Literal["rgb", "grey"]
MODES = {"rgb": "RGB", "grey": "L"}
CHANNELS = {"rgb": 3, "grey": 1}


class BadImageError(ValueError):
    """An image that cannot be decoded; says which file and row."""


@dataclass(frozen=True)
class Form:
    """What stored images look like: S x S pixels, in colour or grey."""

    size: int
    color: Color = "rgb"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, S, S)."""
        return CHANNELS[self.color], self.size, self.size

    @property
    def num_bytes(self) -> int:
        """Of one image."""
        return int(np.prod(self.shape))


def decode(image: Image.Image, form: Form) -> NDArray[np.uint8]:
    """Bring an opened image to its stored form.

    As in section 2 of the AlexNet paper: "we first rescaled the image such that the shorter side was of length 256, and
    then cropped out the central 256 x 256 patch from the resulting image". Scaling is bilinear with antialiasing; an
    image whose shorter side has the length already is not touched. A camera's note of how it was held is followed.

    Returns:
        uint8 ``[C, S, S]``.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits; convert() would cut values off at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    image = image.convert(MODES[form.color])
    width, height = image.size
    if min(width, height) != form.size:
        scale = form.size / min(width, height)
        width, height = max(form.size, round(width * scale)), max(form.size, round(height * scale))
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if (width, height) != (form.size, form.size):
        left, top = (width - form.size) // 2, (height - form.size) // 2
        image = image.crop((left, top, left + form.size, top + form.size))
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def decode_row(split: Split, index: int, row: dict[str, Any], form: Form) -> NDArray[np.uint8]:
    """Decode one image of a split, ``[C, S, S]``.

    Raises:
        BadImageError: it is corrupt, truncated or missing.
    """
    data, path = row["bytes"], row["path"]
    try:
        with Image.open(BytesIO(data) if data is not None else path) as image:
            return decode(image, form)
    except Exception as error:  # Pillow's formats raise OSError, SyntaxError, ValueError, struct.error, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        if "cannot identify image file" in reason:
            reason = "its bytes are of no image format" if data or data is None else "it has no bytes"
        raise BadImageError(
            f"bad image: {split.where(index, path)}: {reason}; repair it, or set on_bad_image to skip"
        ) from None


def original_sizes(split: Split, sample: int = 200) -> list[tuple[int, int]]:
    """(width, height) of some evenly spaced images, from their headers alone; unreadable ones are left out."""
    count = min(sample, len(split))
    sizes = []
    for row in split.read(np.arange(count) * len(split) // count):
        try:
            with Image.open(BytesIO(row["bytes"]) if row["bytes"] is not None else row["path"]) as image:
                sizes.append(image.size)
        except Exception:  # whatever is wrong with it, decode_row says
            continue
    return sizes
