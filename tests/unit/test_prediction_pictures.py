"""Predictions: the pixels of the images, bars as long as classes are probable, right and wrong not by colour alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from lanes.pictures.predictions import CARD_WIDTH, GAP, OTHER, PICTURE, RIGHT, WRONG, predictions_picture, shortened
from lanes.pictures.sheets import font

NAMES = ("cat", "dog", "a very long name of a class that does not fit into any card", "owl", "ox", "elk")


def drawn(images: torch.Tensor, labels: list[int], classes: list[list[int]], shares: list[list[float]]) -> Image.Image:
    return predictions_picture(images, labels, classes, shares, NAMES)


def cards(picture: Image.Image, count: int) -> list[np.ndarray]:
    """The cards of a single row, without the title."""
    pixels, pitch = np.asarray(picture), CARD_WIDTH + GAP
    first = pixels[:, GAP, :]
    top = next(y for y in range(10, len(first)) if tuple(first[y].tolist()) in (RIGHT, WRONG))
    return [pixels[top : -GAP or None, GAP + n * pitch : GAP + n * pitch + CARD_WIDTH] for n in range(count)]


def test_images_are_shown_pixel_by_pixel() -> None:
    image = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (card,) = cards(drawn(image, [0], [[0, 1]], [[0.9, 0.1]]), 1)
    times, left = PICTURE // 16, (CARD_WIDTH - PICTURE) // 2
    shown = card[8 : 8 + PICTURE, left : left + PICTURE]
    assert np.array_equal(shown[::times, ::times].transpose(2, 0, 1), image[0].numpy())
    assert np.array_equal(shown[times - 1 :: times, times - 1 :: times].transpose(2, 0, 1), image[0].numpy())


def test_floats_are_stretched_and_grey_stays_grey() -> None:
    images = torch.linspace(-3, 5, 64).view(1, 1, 8, 8)
    picture = drawn(images, [0], [[0]], [[1.0]])
    (card,) = cards(picture, 1)
    left = (CARD_WIDTH - PICTURE) // 2
    shown = card[8 : 8 + PICTURE, left : left + PICTURE]
    assert (shown.min(), shown.max()) == (0, 255)
    assert (shown.min(-1) == shown.max(-1)).all()
    assert drawn(torch.zeros(1, 3, 300, 200), [0], [[0]], [[1.0]]).size == picture.size  # large ones fit


def test_right_and_wrong_differ_without_colour() -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    right, wrong = cards(drawn(images, [0, 0], [[0, 1], [1, 0]], [[0.6, 0.4]] * 2), 2)
    assert (right[:, 0] == RIGHT).all()
    assert not (right[:, 1] == RIGHT).all(), "a thin frame"
    assert (wrong[:, 2] == WRONG).all(), "a thick one"
    mark = slice(8, 18)
    shapes = [(card[8 + PICTURE + 6 : 8 + PICTURE + 24, mark] != 255).any(-1) for card in (right, wrong)]
    assert shapes[0].any()
    assert shapes[1].any()
    assert not np.array_equal(*shapes), "a check and a cross"


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_bars_are_as_long_as_probable(share: float) -> None:
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    (card,) = cards(drawn(images, [3], [[0]], [[share]]), 1)
    first = 8 + PICTURE + 6 + 18
    line = card[first + 3]
    filled = np.flatnonzero((line != (239, 240, 241)).any(-1) & (line != 255).any(-1) & (line != WRONG).any(-1))
    whole = CARD_WIDTH - 8 - 48 - (8 + 9 + 6)
    assert len(filled) == pytest.approx(share * whole, abs=2)
    assert (line == OTHER).all(-1).sum() == (2 if share else 0)


def test_long_names_end_in_an_ellipsis() -> None:
    assert shortened("cat", 100, 12) == "cat"
    short = shortened(NAMES[2], 100, 12)
    assert short.endswith("…")
    assert NAMES[2].startswith(short[:-1])
    assert 60 < font(12).getlength(short) <= 100


@pytest.mark.parametrize("count", [1, 4, 5, 9])
def test_any_number_of_images_and_classes(count: int) -> None:
    images = torch.zeros(count, 3, 8, 8, dtype=torch.uint8)
    few = drawn(images, [0] * count, [[0, 1]] * count, [[0.5, 0.5]] * count)
    five = drawn(images, [0] * count, [[0, 1, 2, 3, 4]] * count, [[0.2] * 5] * count)
    assert five.width == few.width <= 1000
    assert five.height - few.height == 3 * 18 * -(-count // 4)


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 8, 8\) are no images"):
        drawn(torch.zeros(1, 2, 8, 8), [0], [[0]], [[1.0]])
