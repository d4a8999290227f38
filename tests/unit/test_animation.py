"""The film of filters: which frames in which order, what is where on them, and how long they stay."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lanes.pictures.animation import (
    FRAME_MS,
    GAP,
    LAST_MS,
    find_frames,
    picture_name,
    take_frames,
    thinned,
    write_animation,
)

SIZE = 60, 40
COLOURS = {0: (200, 30, 30), 448: (30, 160, 30), 1_000_000: (30, 30, 200)}


def pictures(folder: Path, layer: str = "conv1", lanes: int = 2, steps: tuple[int, ...] = tuple(COLOURS)) -> Path:
    """Lane 0 is of the step's colour, lane 1 of the darker half of it, and so on."""
    folder.mkdir(exist_ok=True)
    for step in steps:
        for lane in range(lanes):
            colour = tuple(band // (lane + 1) for band in COLOURS.get(step, (step % 256, 0, 0)))
            Image.new("RGB", SIZE, colour).save(folder / picture_name(layer, lane, step))
    return folder


def frames(path: Path) -> list[tuple[Image.Image, int]]:
    """The frames of a film as a viewer shows them, and how long."""
    with Image.open(path) as film:
        shown = []
        for index in range(film.n_frames):
            film.seek(index)
            shown.append((film.convert("RGB"), film.info["duration"]))
        assert film.info["loop"] == 0, "it begins again"
    return shown


def close(pixel: object, colour: tuple[int, ...]) -> bool:
    return bool(np.abs(np.subtract(pixel, colour)).max() <= 8)  # 256 colours


def test_frames_are_in_order_of_steps_with_the_lanes_side_by_side(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "filters")
    assert write_animation(folder, "conv1", tmp_path / "film.gif")
    film = frames(tmp_path / "film.gif")
    assert len(film) == len(COLOURS)
    for (frame, _), colour in zip(film, COLOURS.values(), strict=True):
        right, middle = SIZE[0] + GAP + SIZE[0] // 2, frame.height - SIZE[1] // 2
        assert close(frame.getpixel((SIZE[0] // 2, middle)), colour)
        assert close(frame.getpixel((right, middle)), tuple(band // 2 for band in colour))
        assert close(frame.getpixel((SIZE[0] + GAP // 2, middle)), (255, 255, 255))
    assert [duration for _, duration in film] == [FRAME_MS[1], FRAME_MS[1], LAST_MS]


def test_every_frame_tells_its_step(tmp_path: Path) -> None:
    folder = tmp_path / "filters"
    folder.mkdir()
    for step in (0, 448):  # the same picture, so that only the words differ
        Image.new("RGB", SIZE, (9, 99, 9)).save(folder / picture_name("conv1", 0, step))
    assert write_animation(folder, "conv1", tmp_path / "film.gif")
    (first, _), (second, _) = frames(tmp_path / "film.gif")
    differ = np.argwhere((np.asarray(first) != np.asarray(second)).any(-1))
    assert len(differ)
    assert differ[:, 0].max() < first.height - SIZE[1]


def test_filters_stay_where_they_are_when_a_title_grows(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "filters", lanes=1, steps=(0,))
    taller = Image.new("RGB", (SIZE[0], SIZE[1] + 19), (255, 255, 255))
    taller.paste((0, 90, 90), (0, 19, *taller.size))
    taller.save(folder / picture_name("conv1", 0, 448))
    assert write_animation(folder, "conv1", tmp_path / "film.gif")
    (first, _), (second, _) = frames(tmp_path / "film.gif")
    top = first.height - SIZE[1]
    assert close(first.getpixel((5, top)), COLOURS[0])
    assert close(second.getpixel((5, top)), (0, 90, 90))
    assert close(second.getpixel((5, top - 1)), (255, 255, 255))


def test_only_whole_steps_of_the_layer_are_shown(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "filters", "features.0")
    pictures(folder, "featuresx0", steps=(7, 8))  # "." is no wildcard
    (folder / picture_name("features.0", 1, 448)).unlink()
    (folder / "filters-features.0-lane0-step000009.partial").write_bytes(b"")
    assert list(find_frames(folder, "features.0")) == [0, 1_000_000]
    assert [path.name for path in find_frames(folder, "features.0")[0]] == [
        "filters-features.0-lane0-step000000.png",
        "filters-features.0-lane1-step000000.png",
    ]


def test_lane_ten_comes_after_lane_nine(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "filters", lanes=11, steps=(0,))
    assert find_frames(folder, "conv1")[0] == [folder / picture_name("conv1", lane, 0) for lane in range(11)]


def test_many_lanes_stand_in_rows(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "filters", lanes=32, steps=(0, 448))
    assert write_animation(folder, "conv1", tmp_path / "film.gif")
    frame = frames(tmp_path / "film.gif")[0][0]
    columns = (1000 + GAP) // (SIZE[0] + GAP)
    rows = -(-32 // columns)
    assert frame.width == columns * (SIZE[0] + GAP) - GAP <= 1000
    row, column = divmod(31, columns)
    place = column * (SIZE[0] + GAP) + 5, frame.height - (rows - row) * (SIZE[1] + GAP) + GAP + 5
    assert close(frame.getpixel(place), tuple(band // 32 for band in COLOURS[0]))


def test_long_trainings_are_thinned_evenly_and_keep_both_ends(tmp_path: Path) -> None:
    assert thinned(range(0, 1001), 5) == [0, 250, 500, 750, 1000]
    assert thinned([3, 4, 9], 5) == [3, 4, 9]
    folder = pictures(tmp_path / "filters", lanes=1, steps=tuple(range(0, 250, 10)))
    assert write_animation(folder, "conv1", tmp_path / "film.gif", limit=4)
    shown = [frame.getpixel((5, frame.height - 5))[0] for frame, _ in frames(tmp_path / "film.gif")]
    assert shown == pytest.approx([COLOURS[0][0], 80, 160, 240], abs=8)


def test_steps_of_another_course_are_left_out(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "filters")
    assert write_animation(folder, "conv1", tmp_path / "film.gif", steps={0, 448})
    assert len(frames(tmp_path / "film.gif")) == 2


def test_fewer_than_two_steps_are_no_film(tmp_path: Path) -> None:
    assert not write_animation(tmp_path / "nowhere", "conv1", tmp_path / "film.gif")
    folder = pictures(tmp_path / "filters", steps=(0,))
    assert not write_animation(folder, "conv1", tmp_path / "film.gif")
    assert not (tmp_path / "film.gif").exists()
    with pytest.raises(ValueError, match="limit=1 frames are no film"):
        write_animation(folder, "conv1", tmp_path / "film.gif", limit=1)


def test_frames_of_an_earlier_run_are_taken_up_to_a_step(tmp_path: Path) -> None:
    source, target = pictures(tmp_path / "1"), tmp_path / "2"
    assert take_frames(source, target, "conv1", 448) == {0, 448}
    assert list(find_frames(target, "conv1")) == [0, 448]
    assert take_frames(target, target, "conv1", 0) == {0}
    assert take_frames(tmp_path / "nowhere", target, "conv1", 448) == set()
