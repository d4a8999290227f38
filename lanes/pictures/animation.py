"""Filters over time: the pictures of one layer that training has left, step by step, as one animated GIF.

A GIF, since everything plays it: browsers, a README on GitHub, image viewers, slides, mail; and `wandb.Video` takes the
file as it is (`wandb.Image` keeps the first frame only, of any format). An APNG would keep all colours, but many
viewers show it as a still. The 256 colours of a GIF are chosen once for all frames, so that nothing flickers.

Kept out: what the pictures show, and when to make a film of them.
"""

import math
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from lanes.pictures.sheets import GROUND, TEXT, TITLE_MARGIN, TITLE_SIZE, font

MAX_FRAMES = 100  # of which AlexNet's filters take 5 to 12 MB
MAX_WIDTH = 1000  # pixels; more lanes than fit stand in several rows
GAP = 12  # pixels between lanes
FILM_MS, FRAME_MS, LAST_MS = 10_000, (80, 700), 2000  # of all frames together, about; of one; of the last
PALETTE_FRAMES = 8

Frames = dict[int, list[Path]]


def picture_name(layer: str, lane: int, step: int) -> str:
    """The file name of the picture of a layer's filters in one lane at a global step."""
    return f"filters-{layer}-lane{lane}-step{step:06d}.png"


def find_frames(folder: Path, layer: str) -> Frames:
    """The pictures of a layer in a folder, lane by lane at each step, in order; steps that lack a lane are left out."""
    pattern = re.compile(rf"filters-{re.escape(layer)}-lane(\d+)-step(\d{{6,}})\.png")
    found: dict[int, dict[int, Path]] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := pattern.fullmatch(path.name):
            found.setdefault(int(match[2]), {})[int(match[1])] = path
    lanes = 1 + max((lane for pictures in found.values() for lane in pictures), default=-1)
    whole = {step: pictures for step, pictures in sorted(found.items()) if len(pictures) == lanes}
    return {step: [pictures[lane] for lane in range(lanes)] for step, pictures in whole.items()}


def take_frames(source: Path, folder: Path, layer: str, until: int) -> set[int]:
    """Copy the pictures of a layer up to a step from one folder to another, where they replace those of their names.

    Args:
        source: may be `folder` itself, or not exist.
        folder: made if it is needed.
        layer: of which.
        until: the last step.

    Returns:
        Their steps.
    """
    frames = {step: pictures for step, pictures in find_frames(source, layer).items() if step <= until}
    if frames and source.resolve() != folder.resolve():
        folder.mkdir(parents=True, exist_ok=True)
        for picture in chain.from_iterable(frames.values()):
            shutil.copyfile(picture, folder / picture.name)
    return set(frames)


def write_animation(
    folder: Path, layer: str, path: Path, *, steps: Collection[int] | None = None, limit: int = MAX_FRAMES
) -> bool:
    """Make a film of the pictures `picture_name` in a folder, lanes side by side, the step written on each frame.

    Args:
        folder: of the pictures.
        layer: of which.
        path: of the GIF; one that is there is replaced.
        steps: only of these; None: of all.
        limit: frames at most, 2 or more; of more steps evenly many are left out, never the first or the last.

    Returns:
        Whether there is a film: of fewer than two steps none is made.

    Raises:
        ValueError: limit is less than 2.
    """
    if limit < 2:
        raise ValueError(f"limit={limit} frames are no film: give 2 or more")
    frames = {s: paths for s, paths in find_frames(folder, layer).items() if steps is None or s in steps}
    if len(frames) < 2:
        return False
    kept = thinned(list(frames), limit)
    sizes = [_size(picture) for step in kept for picture in frames[step]]
    size = max(width for width, _ in sizes), max(height for _, height in sizes)
    words = [f"{layer} · step {step} of {kept[-1]}" for step in kept]
    least = math.ceil(max(map(font().getlength, words))) + 2 * TITLE_MARGIN

    def drawn(chosen: Sequence[int]) -> Iterator[Image.Image]:
        return (_frame(frames[step], size, words[kept.index(step)], least) for step in chosen)

    palette = _palette(list(drawn(thinned(kept, PALETTE_FRAMES))))
    first, *others = (image.quantize(palette=palette, dither=Image.Dither.NONE) for image in drawn(kept))
    each = min(max(FILM_MS // len(kept), FRAME_MS[0]), FRAME_MS[1])
    duration = [each] * (len(kept) - 1) + [LAST_MS]
    first.save(path, save_all=True, append_images=others, duration=duration, loop=0, optimize=False)
    return True


def thinned(steps: Sequence[int], limit: int) -> list[int]:
    """At most `limit` of the steps, evenly chosen by their place, with the first and the last."""
    places = np.linspace(0, len(steps) - 1, min(limit, len(steps))).round().astype(int)
    return [steps[place] for place in places]


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def _frame(pictures: Sequence[Path], size: tuple[int, int], words: str, least: int) -> Image.Image:
    """The lanes' pictures side by side below a line of words; all frames of one width, `least` or more."""
    columns = max(1, min(len(pictures), (MAX_WIDTH + GAP) // (size[0] + GAP)))
    rows = -(-len(pictures) // columns)
    top = TITLE_SIZE + 3 * TITLE_MARGIN
    width = max(columns * (size[0] + GAP) - GAP, least)
    sheet = Image.new("RGB", (width, top + rows * (size[1] + GAP) - GAP), (GROUND,) * 3)
    ImageDraw.Draw(sheet).text((TITLE_MARGIN, TITLE_MARGIN), words, fill=TEXT, font=font())
    for index, path in enumerate(pictures):
        row, column = divmod(index, columns)
        with Image.open(path) as picture:
            # Foot on foot: a title that needs a line more must not push the filters down.
            foot = top + row * (size[1] + GAP) + size[1]
            sheet.paste(picture.convert("RGB"), (column * (size[0] + GAP), foot - picture.height))
    return sheet


def _palette(frames: Sequence[Image.Image]) -> Image.Image:
    """256 colours for all frames, chosen from some of them."""
    strip = Image.fromarray(np.concatenate([np.asarray(frame) for frame in frames]))
    # Median cut would make the extremes milder, which are few and what one looks at: a blob's black centre brown.
    return strip.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=4, dither=Image.Dither.NONE)
