"""Measures of filters: made filters with known answers, and what must not matter."""

import math

import pytest
import torch
from torch import Tensor

from lanes.analysis.selectivity import FilterMeasures, filter_measures, opponent_axes, spectral_energy

COLOURS = {
    "intensity": (1.0, 1.0, 1.0),
    "red-green": (1.0, -1.0, 0.0),
    "blue-yellow": (-1.0, -1.0, 2.0),
    "red": (1.0, 0.0, 0.0),
}


def around(size: int, row: float = 0.0, column: float = 0.0) -> tuple[Tensor, Tensor]:
    """Upwards and to the right, of every pixel, from a place that is so many pixels below and right of the middle."""
    steps = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    return -(steps - row)[:, None].expand(size, size), (steps - column)[None].expand(size, size)


def grating(size: int, degrees: float, frequency: float, *, phase: float = 0.5, width: float = math.inf) -> Tensor:
    """Bars along (cos, sin) of an angle, as one sees them, under a Gaussian of ``width`` pixels, [h, w]."""
    up, right = around(size)
    along = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    beside = along[0] * up - along[1] * right
    envelope = torch.exp(-(up**2 + right**2) / (2 * width**2))
    return envelope * torch.cos(2 * math.pi * frequency * beside + phase)


def blob(size: int, width: float, row: float = 0.0, column: float = 0.0) -> Tensor:
    up, right = around(size, row, column)
    return torch.exp(-(up**2 + right**2) / (2 * width**2))


def coloured(pattern: Tensor, colour: str) -> Tensor:
    """[h, w] -> [3, h, w]."""
    return torch.tensor(COLOURS[colour], dtype=torch.float64)[:, None, None] * pattern


def noise(count: int, channels: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(count, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def apart(ours: Tensor, theirs: Tensor | float) -> Tensor:
    """How far orientations are apart, in degrees; 179 and 0 are neighbours."""
    return ((ours - theirs + 90) % 180 - 90).abs()


def check_equal(ours: FilterMeasures, theirs: FilterMeasures, tolerance: float = 1e-12) -> None:
    for name, values in vars(ours).items():
        torch.testing.assert_close(values, getattr(theirs, name), rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize(
    ("rows", "degrees"),
    [
        ([[1, 1, 1], [0, 0, 0], [-1, -1, -1]], 0),
        ([[-1, -1, 2], [-1, 2, -1], [2, -1, -1]], 45),
        ([[1, 0, -1], [1, 0, -1], [1, 0, -1]], 90),
        ([[2, -1, -1], [-1, 2, -1], [-1, -1, 2]], 135),
    ],
    ids=["lies", "rises to the right", "stands", "falls to the right"],
)
def test_the_convention_of_orientation_is_that_of_the_eye(rows: list[list[int]], degrees: int) -> None:
    measures = filter_measures(torch.tensor(rows, dtype=torch.float32)[None, None])
    assert apart(measures.orientation_degrees, degrees).item() < 1e-9
    assert 0 <= measures.orientation_degrees.item() < 180
    assert measures.orientation_selectivity.item() > 0.4


@pytest.mark.parametrize(("size", "frequency"), [(7, 0.25), (7, 0.33), (11, 0.16), (11, 0.3)])
@pytest.mark.parametrize(("width", "near"), [(0.25, 0.05), (math.inf, 0.15)], ids=["Gabor", "pure grating"])
def test_gratings(size: int, frequency: float, width: float, near: float) -> None:
    """(What a pure grating is cut out by, a square with sharp edges, adds frequencies of its own.)"""
    angles = torch.arange(0, 180, 15, dtype=torch.float64).repeat_interleave(3)
    phases = (0.0, 0.8, math.pi / 2) * 12
    drawn = [grating(size, a, frequency, phase=p, width=width * size) for a, p in zip(angles, phases, strict=True)]
    measures = filter_measures(torch.stack([coloured(pattern, "intensity") for pattern in drawn]))
    assert apart(measures.orientation_degrees, angles).max() < 2.5
    assert measures.orientation_selectivity.min() > 0.7
    torch.testing.assert_close(measures.frequency, torch.full((36,), frequency).double(), rtol=near, atol=0)
    assert measures.colour_selectivity.max() < 1e-12


@pytest.mark.parametrize("colour", ["red-green", "blue-yellow", "red"])
def test_gratings_of_colour_are_as_oriented_as_grey_ones(colour: str) -> None:
    patterns = [grating(7, angle, 0.25, width=2) for angle in range(0, 180, 30)]
    grey, chromatic = (
        filter_measures(torch.stack([coloured(pattern, name) for pattern in patterns]))
        for name in ("intensity", colour)
    )
    for name in ("orientation_selectivity", "orientation_degrees", "frequency"):
        torch.testing.assert_close(getattr(chromatic, name), getattr(grey, name), rtol=0, atol=1e-9)
    share = torch.full((6,), 2 / 3 if colour == "red" else 1.0, dtype=torch.float64)  # red is 1/3 intensity
    torch.testing.assert_close(chromatic.colour_selectivity, share, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [3, 7, 11])
def test_blobs_of_colour(size: int) -> None:
    up = blob(size, size / 5)
    measures = filter_measures(torch.stack([coloured(up, name) for name in COLOURS] + [torch.ones(3, size, size)]))
    expected = torch.tensor([0, 1, 1, 2 / 3, 0], dtype=torch.float64)
    torch.testing.assert_close(measures.colour_selectivity, expected, rtol=0, atol=1e-12)
    assert measures.orientation_selectivity.max() < 1e-9
    assert measures.orientation_degrees.isnan().all(), "it prefers none"


@pytest.mark.parametrize("place", [(1.5, 0.0), (0.0, -1.5), (1.5, 1.5)])
def test_blobs_that_are_not_in_the_middle_are_no_edges(place: tuple[float, float]) -> None:
    measures = filter_measures(coloured(blob(7, 1.2, *place), "red-green")[None])
    assert measures.orientation_selectivity.item() < 0.15


def test_a_known_share_of_colour() -> None:
    shares = torch.linspace(0, 1, 11, dtype=torch.float64)
    grey, chromatic = opponent_axes()[0], opponent_axes()[1:].sum(0) / math.sqrt(2)
    pattern = blob(5, 1.0)
    filters = torch.stack(
        [(math.sqrt(1 - s) * grey + math.sqrt(s) * chromatic)[:, None, None] * pattern for s in shares]
    )
    torch.testing.assert_close(filter_measures(filters).colour_selectivity, shares, rtol=0, atol=1e-12)
    torch.testing.assert_close(opponent_axes() @ opponent_axes().T, torch.eye(3, dtype=torch.float64))


def test_filters_of_grey_images_have_no_colour() -> None:
    filters = noise(6, 1, 5)
    grey, colour = filter_measures(filters), filter_measures(filters.expand(-1, 3, -1, -1))
    assert (grey.colour_selectivity == 0).all()
    assert colour.colour_selectivity.max() < 1e-12
    for name in ("orientation_selectivity", "orientation_degrees", "frequency"):
        torch.testing.assert_close(getattr(colour, name), getattr(grey, name), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("size", "mean"), [(3, 0.193), (7, 0.101), (11, 0.066)])
def test_white_noise(size: int, mean: float) -> None:
    """No more selective than so few numbers must be, for no orientation more than for others, two thirds chromatic."""
    measures = filter_measures(noise(1000, 3, size))
    assert abs(measures.orientation_selectivity.mean().item() - mean) < 0.008
    assert abs(measures.colour_selectivity.mean().item() - 2 / 3) < 0.02
    angles = torch.deg2rad(measures.orientation_degrees)
    # Unbiased, such a mean of 1000 is beyond 0.1 once in 20,000 draws. That squares have four sides shows at 3 x 3.
    for harmonic, most in ((2, 0.1), (4, 0.2 if size == 3 else 0.1), (8, 0.1)):
        assert torch.polar(torch.ones_like(angles), harmonic * angles).mean().abs() < most


def test_as_by_a_zero_padded_fft() -> None:
    filters, size, padded = noise(20, 3, 7), 7, 512
    energy = torch.fft.fft2(filters, (padded, padded)).abs().square().sum(1)
    steps = torch.fft.fftfreq(padded, dtype=torch.float64)
    radius = torch.hypot(steps[:, None], steps)
    bars = torch.atan2(-steps[:, None], steps) + math.pi / 2
    energy = energy * ((radius >= 0.5 / size) & (radius <= 0.5))
    total = energy.sum((1, 2))
    mean = (energy * torch.polar(torch.ones_like(bars), 2 * bars)).sum((1, 2)) / total
    measures = filter_measures(filters)
    torch.testing.assert_close(measures.orientation_selectivity, mean.abs(), rtol=0, atol=1e-3)
    assert apart(measures.orientation_degrees, torch.rad2deg(mean.angle()) / 2).max() < 0.5
    torch.testing.assert_close(measures.frequency, (energy * radius).sum((1, 2)) / total, rtol=0, atol=1e-3)


def test_a_turned_filter_is_turned() -> None:
    filters = noise(20, 3, 7)
    straight, turned = filter_measures(filters), filter_measures(filters.rot90(1, (2, 3)))  # counter-clockwise
    assert apart(turned.orientation_degrees, straight.orientation_degrees + 90).max() < 1e-9
    torch.testing.assert_close(turned.orientation_selectivity, straight.orientation_selectivity, rtol=0, atol=1e-12)
    mirrored = filter_measures(filters.flip(3))
    assert apart(mirrored.orientation_degrees, -straight.orientation_degrees).max() < 1e-9


@pytest.mark.parametrize("scale", [1e-200, 1e-30, -1.0, 1e200])
def test_scale_does_not_matter(scale: float) -> None:
    filters = noise(8, 3, 5)
    small, plain = filter_measures(filters * scale), filter_measures(filters)
    torch.testing.assert_close(small.norm / abs(scale), plain.norm, rtol=1e-12, atol=0)
    check_equal(FilterMeasures(plain.norm, *list(vars(small).values())[1:]), plain)
    torch.testing.assert_close(plain.norm, torch.linalg.vector_norm(filters, dim=(1, 2, 3)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("parts", [2, 4, 12])
def test_each_filter_is_measured_by_itself(parts: int) -> None:
    filters = noise(12, 3, 7)
    split = [vars(filter_measures(part)) for part in filters.chunk(parts)]
    whole = filter_measures(filters)
    check_equal(FilterMeasures(**{name: torch.cat([part[name] for part in split]) for name in vars(whole)}), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_precision_is_measured_in_float64(dtype: torch.dtype) -> None:
    weight = torch.nn.Parameter(noise(4, 3, 5).to(dtype).contiguous(memory_format=torch.channels_last))
    measures = filter_measures(weight)
    assert all(values.dtype == torch.float64 and not values.requires_grad for values in vars(measures).values())
    check_equal(measures, filter_measures(weight.detach().double()))


def test_dead_filters() -> None:
    filters = noise(6, 3, 5)
    filters[1] = 0
    filters[4] *= 1e-3
    measures = filter_measures(filters)
    assert measures.norm[1] == 0
    for name, values in vars(measures).items():
        assert values[1].isnan() or name == "norm"
        assert values[[0, 2, 3, 4, 5]].isfinite().all()
    assert measures.dead().tolist() == [False, True, False, False, True, False]
    assert measures.dead(fraction=1e-4).tolist() == [False, True, False, False, False, False]
    without = measures.without_dead()
    assert without.colour_selectivity.isnan().tolist() == measures.dead().tolist()
    assert torch.equal(without.norm, measures.norm)
    assert filter_measures(torch.zeros(3, 1, 3, 3)).dead().all()


def test_filters_of_one_pixel_have_a_colour_only() -> None:
    measures = filter_measures(torch.stack([coloured(torch.ones(1, 1), name) for name in COLOURS]))
    expected = torch.tensor([0, 1, 1, 2 / 3], dtype=torch.float64)
    torch.testing.assert_close(measures.colour_selectivity, expected, rtol=0, atol=1e-12)
    for name in ("orientation_selectivity", "orientation_degrees", "frequency"):
        assert getattr(measures, name).isnan().all()


def test_filters_that_are_not_square() -> None:
    measures = filter_measures(grating(9, 90, 0.3)[3:6][None, None])  # 3 x 9: bars that stand
    assert apart(measures.orientation_degrees, 90).item() < 1e-9
    energy, frequencies = spectral_energy(noise(2, 3, 9)[:, :, :2])
    assert energy.shape == (2, 36, 36)
    assert 0.5 / 9 < frequencies.min() < frequencies.max() < 0.5


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(4, 3, 3), r"\(4, 3, 3\) is no set of filters: give the weight of a 2-d convolution"),
        (torch.zeros(4, 3, 3, 3, dtype=torch.int8), "torch.int8"),
        (torch.zeros(0, 3, 3, 3), "no set of filters"),
        (torch.zeros(4, 48, 3, 3), r"read 48 channels, which have no colour: .*lanes.analysis.responses"),
        (torch.full((4, 3, 1, 1), float("nan")), "12 of 12 weights are not finite"),
    ],
)
def test_what_cannot_be_measured_is_refused(weight: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        filter_measures(weight)
