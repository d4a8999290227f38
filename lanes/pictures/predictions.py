"""Pictures of what a network says to a few images: each with its true class and the most probable ones, as bars.

Right and wrong are told by a check or a cross, a thin or a thick frame, and only then by colour.

Legend: N images, C channels (3 or 1), H W pixels, K classes shown of each image.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from lanes.pictures.palette import Colour, lighter
from lanes.pictures.sheets import GROUND, TEXT, TITLE_SIZE, font, titled

COLUMNS, CARD_WIDTH, PICTURE, GAP, PADDING = 4, 232, 128, 8, 8  # pixels, but for the first
LINE, TEXT_SIZE, NUMBER_WIDTH, MARK = 18, 12, 48, 9  # pixels
RIGHT: Colour = (0, 120, 86)
WRONG: Colour = (196, 64, 0)
OTHER: Colour = (120, 128, 138)
EMPTY: Colour = (239, 240, 241)


def predictions_picture(
    images: Tensor,
    labels: Sequence[int],
    classes: Sequence[Sequence[int]],
    probabilities: Sequence[Sequence[float]],
    names: Sequence[str],
    *,
    facts: Sequence[str] = (),
) -> Image.Image:
    """Draw a card for every image.

    Args:
        images: [N, C, H, W], uint8; or floating point, and then each is stretched from its least to its largest number,
            which the title says.
        labels: [N], the true class of each.
        classes: [N, K], the most probable ones, most probable first.
        probabilities: [N, K], of these.
        names: of all classes.
        facts: for the title, before how many of the images are right.

    Raises:
        ValueError: these are no images in colour or grey.
    """
    if images.dim() != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(f"{tuple(images.shape)} are no images: give [N, C, H, W] with 3 channels or 1")
    right = [row[0] == label for row, label in zip(classes, labels, strict=True)]
    cards = [
        _card(_shown(image), names, label, list(zip(*answer, strict=True)))
        for image, label, *answer in zip(images, labels, classes, probabilities, strict=True)
    ]
    columns, (width, height) = min(COLUMNS, len(cards)), cards[0].size
    rows = -(-len(cards) // columns)
    sheet = Image.new("RGB", (GAP + columns * (width + GAP), GAP + rows * (height + GAP)), (GROUND,) * 3)
    for place, card in enumerate(cards):
        row, column = divmod(place, columns)
        sheet.paste(card, (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    stretched = [] if str(images.dtype) == "torch.uint8" else ["colours stretched to each image's range"]
    return titled(sheet, [*facts, f"{sum(right)} of {len(right)} right", *stretched])


def _shown(image: Tensor) -> Image.Image:
    """[C, H, W] as a picture of a card: small ones enlarged by a whole number, so that their pixels stay square."""
    values = image.detach().cpu()
    if values.is_floating_point():
        low, high = (float(x) for x in values.aminmax())
        values = ((values.double() - low) / ((high - low) or 1) * 255).round()
    pixels = values.expand(3, -1, -1).permute(1, 2, 0).numpy().astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    larger = max(picture.size)
    if larger <= PICTURE:
        return picture.resize([side * (PICTURE // larger) for side in picture.size], Image.Resampling.NEAREST)
    return picture.resize([max(1, side * PICTURE // larger) for side in picture.size], Image.Resampling.BOX)


def _card(picture: Image.Image, names: Sequence[str], label: int, answers: Sequence[tuple[int, float]]) -> Image.Image:
    """One image, its class, and a bar for each answer."""
    right = answers[0][0] == label
    head = PADDING + PICTURE + 6
    card = Image.new("RGB", (CARD_WIDTH, head + LINE * (1 + len(answers)) + PADDING), (GROUND,) * 3)
    pen = ImageDraw.Draw(card)
    pen.rectangle((0, 0, card.width - 1, card.height - 1), outline=RIGHT if right else WRONG, width=1 if right else 3)
    card.paste(picture, ((CARD_WIDTH - picture.width) // 2, PADDING + (PICTURE - picture.height) // 2))
    room = CARD_WIDTH - 2 * PADDING - MARK - 6
    middle = head + LINE // 2
    _mark(pen, (PADDING, middle), right=right)
    name = shortened(f"truth: {names[label]}", room, TITLE_SIZE)
    pen.text((PADDING + MARK + 6, middle), name, fill=TEXT, font=font(), anchor="lm")
    for place, (answer, probability) in enumerate(answers):
        _bar(pen, head + LINE * (1 + place), names[answer], probability, is_true=answer == label)
    return card


def _bar(pen: ImageDraw.ImageDraw, top: int, name: str, probability: float, *, is_true: bool) -> None:
    """One class, as long as it is probable; the true class has a dark bar, a check and a line under its name."""
    left, right = PADDING + MARK + 6, CARD_WIDTH - PADDING - NUMBER_WIDTH
    colour = RIGHT if is_true else OTHER
    pen.rectangle((left, top + 2, right, top + LINE - 3), fill=EMPTY)
    length = round((right - left) * min(max(probability, 0.0), 1.0))
    if length:
        pen.rectangle((left, top + 2, left + length, top + LINE - 3), fill=lighter(colour, 0.45 if is_true else 0.6))
        pen.rectangle((left, top + 2, left + 1, top + LINE - 3), fill=colour)
    middle = top + LINE / 2 - 1
    said = shortened(name, right - left - 8, TEXT_SIZE)
    pen.text((left + 5, middle), said, fill=TEXT, font=font(TEXT_SIZE), anchor="lm")
    pen.text((CARD_WIDTH - PADDING, middle), f"{probability:.1%}", fill=TEXT, font=font(TEXT_SIZE), anchor="rm")
    if is_true:
        _mark(pen, (PADDING, top + LINE // 2 - 1), right=True)
        end = left + 5 + font(TEXT_SIZE).getlength(said)
        pen.line((left + 5, top + LINE - 4, end, top + LINE - 4), fill=TEXT)


def _mark(pen: ImageDraw.ImageDraw, place: tuple[int, int], *, right: bool) -> None:
    """A check or a cross; the font has neither."""
    (x, y), half = place, MARK // 2
    if right:
        pen.line([(x, y), (x + half - 1, y + half), (x + MARK, y - half)], fill=RIGHT, width=2)
    else:
        pen.line((x, y - half, x + MARK - 1, y + half), fill=WRONG, width=2)
        pen.line((x, y + half, x + MARK - 1, y - half), fill=WRONG, width=2)


def shortened(text: str, width: float, size: int) -> str:
    """The text, or as much of its beginning as fits in so many pixels, and an ellipsis."""
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"
