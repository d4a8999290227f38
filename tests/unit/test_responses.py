"""Measures of responses: made responses and made filters with known answers, gratings, and what must not matter."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lanes.analysis.gratings import Gratings, OrientationSelectivity
from lanes.analysis.recording import recorded
from lanes.analysis.responses import ClassSelectivity, ColourSelectivity, turned_grey
from tests.unit.test_selectivity import apart, blob, coloured, grating


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def exactly(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


# Colour selectivity


def colour_selectivity(
    filters: Tensor, images: Tensor, *, num_images: int = 10, batch: int = 8, normalised: bool = False
) -> Tensor:
    mean, std = ((0.4, 0.5, 0.6), (0.3, 0.2, 0.1)) if normalised else (None, None)
    measure = ColourSelectivity(len(filters), num_images=num_images)
    for part in images.split(batch):
        measure.update(F.conv2d(part, filters), F.conv2d(turned_grey(part, mean=mean, std=std), filters))
    return measure.compute()


def test_colour_of_made_filters() -> None:
    pattern = grating(5, 30, 0.25, width=1.5)
    filters = torch.stack([coloured(pattern, name) for name in ("intensity", "red-green", "blue-yellow")])
    found = colour_selectivity(filters, drawn(20, 3, 9, 9))
    torch.testing.assert_close(found, torch.tensor([0, 1, 1], dtype=torch.float64), rtol=0, atol=1e-12)


def test_colour_of_red_on_red_images() -> None:
    """The red filter answers 1 to red light, and 1/3 to its grey: the index is 2/3."""
    red = torch.zeros(4, 3, 5, 5, dtype=torch.float64)
    red[:, 0] = torch.arange(1, 5, dtype=torch.float64)[:, None, None]
    found = colour_selectivity(coloured(torch.ones(1, 1, dtype=torch.float64), "red")[None], red)
    torch.testing.assert_close(found, exactly(2 / 3))


def test_colour_by_hand() -> None:
    """The two largest of three images, grey at the place of the largest, negative grey as zero."""
    colour = torch.tensor([[[1.0, 4.0], [0.5, 0.0]], [[6.0, 2.0], [-1.0, -2.0]], [[0.0, 3.0], [-3.0, -1.0]]])
    grey = torch.tensor([[[9.0, 1.0], [0.1, 7.0]], [[2.0, 9.0], [5.0, 5.0]], [[9.0, 9.0], [9.0, 9.0]]])
    measure = ColourSelectivity(2, num_images=2)
    measure.update(colour, grey)
    expected = torch.tensor([1 - (1 + 2) / (4 + 6), 1 - 0.1 / 0.5], dtype=torch.float64)
    torch.testing.assert_close(measure.compute(), expected, rtol=1e-7, atol=0)
    linear = measure_of_one(colour[:, :1, 0], grey[:, :1, 0])  # a linear layer's: [N, c]
    torch.testing.assert_close(linear, exactly(1 - (9 + 2) / (1 + 6)))


def measure_of_one(colour: Tensor, grey: Tensor) -> Tensor:
    measure = ColourSelectivity(1)
    measure.update(colour, grey)
    return measure.compute()


def test_colour_of_a_channel_that_nothing_excites() -> None:
    assert measure_of_one(-torch.ones(3, 1, 2, 2), torch.ones(3, 1, 2, 2)).isnan()


@pytest.mark.parametrize("batch", [1, 3, 20])
def test_batches_do_not_matter(batch: int) -> None:
    filters, images = drawn(4, 3, 3, 3, seed=1), drawn(20, 3, 9, 9)
    together = colour_selectivity(filters, images, num_images=5, batch=20, normalised=True)
    torch.testing.assert_close(
        colour_selectivity(filters, images, num_images=5, batch=batch, normalised=True), together, rtol=0, atol=1e-12
    )
    apart_ = torch.cat([colour_selectivity(part, images, num_images=5, normalised=True) for part in filters.split(2)])
    torch.testing.assert_close(apart_, together, rtol=0, atol=1e-12)
    assert not torch.allclose(colour_selectivity(filters, images, num_images=20, normalised=True), together)


def test_of_equal_responses_the_first_count() -> None:
    measure = ColourSelectivity(1, num_images=2)
    for grey in (1.0, 0.0, 0.5):
        measure.update(torch.full((1, 1), 2.0, dtype=torch.bfloat16), torch.full((1, 1), grey, dtype=torch.bfloat16))
    assert measure.compute() == 1 - 1 / 4


def test_turned_grey() -> None:
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, std = torch.tensor([0.4, 0.5, 0.6]).double(), torch.tensor([0.3, 0.2, 0.1]).double()
    normal = (images - mean[:, None, None]) / std[:, None, None]
    back = turned_grey(normal, mean=mean.tolist(), std=std.tolist()) * std[:, None, None] + mean[:, None, None]
    torch.testing.assert_close(back, images.mean(1, keepdim=True).expand_as(back))
    torch.testing.assert_close(turned_grey(back), back)
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4\) have no colours to lose: give \[N, 3, H, W\]"):
        turned_grey(images[:, :1])


# Class selectivity


def class_selectivity(responses: Tensor, labels: list[int], num_classes: int = 3) -> Tensor:
    measure = ClassSelectivity(responses.shape[1], num_classes=num_classes)
    for part, named in zip(responses.split(2), torch.tensor(labels).split(2), strict=True):
        measure.update(part, named)
    return measure.compute()


def test_classes_by_hand() -> None:
    responses = torch.tensor([[5.0, 2.0, 0.0], [7.0, 2.0, 4.0], [1.0, 2.0, 0.0], [3.0, 2.0, -9.0]])  # classes 0 0 1 2
    found = class_selectivity(responses, [0, 0, 1, 2])
    torch.testing.assert_close(found, torch.tensor([(6 - 2) / (6 + 2), 0.0, 1.0], dtype=torch.float64))


def test_classes_over_places_and_without_what_is_negative() -> None:
    maps = torch.tensor([[4.0, -9.0], [1.0, 1.0]])[:, None]  # means 2 and 1
    torch.testing.assert_close(class_selectivity(maps, [2, 0]), exactly(1 / 3))


def test_classes_that_were_not_seen_do_not_count() -> None:
    responses = torch.tensor([[3.0], [1.0]])
    torch.testing.assert_close(class_selectivity(responses, [4, 9], num_classes=10), exactly(0.5))
    assert class_selectivity(responses, [4, 4], num_classes=10).isnan(), "one class alone says nothing"
    assert class_selectivity(-responses, [4, 9], num_classes=10).isnan(), "nothing excites it"


def test_classes_of_any_split_of_channels() -> None:
    responses, labels = drawn(12, 8, 3, 3), [0, 1, 2] * 4
    parts = [class_selectivity(part, labels) for part in responses.split(2, 1)]
    torch.testing.assert_close(torch.cat(parts), class_selectivity(responses, labels), rtol=0, atol=1e-12)


# Gratings and orientation selectivity


def test_gratings_are_what_they_say() -> None:
    gratings = Gratings((48, 64), orientations=4, frequencies=(1 / 8, 1 / 4), phases=2)
    batches = list(gratings.batches(5))
    images, orientation = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    assert images.shape == (len(gratings), 3, 48, 64) == (16, 3, 48, 64)
    assert orientation.tolist() == [index // 4 for index in range(16)]
    assert (images == images[:, :1]).all()
    assert 0.9 < images.max() <= 1
    torch.testing.assert_close(images[0::2], -images[1::2], rtol=0, atol=1e-6)  # half a cycle later
    assert images[:, :, [0, -1]].abs().max() == 0, "nothing ends at the edge"
    assert images[:, :, :, [0, -1]].abs().max() == 0
    spectrum = torch.fft.fft2(images[:, 0]).abs()[:, :, :33]
    for index, peak in enumerate(spectrum.flatten(1).argmax(1).tolist()):
        down, right = (peak // 33 + 24) % 48 - 24, peak % 33
        frequency = (1 / 8, 1 / 4)[index // 2 % 2]
        assert abs(math.hypot(down / 48, right / 64) - frequency) < 1 / 48
        bars = math.degrees(math.atan2(-down / 48, right / 64)) + 90
        assert apart(exactly(bars), 45.0 * (index // 4)) < 5


@pytest.mark.parametrize("axis", ["red_green", "blue_yellow"])
def test_gratings_of_colour_have_one_intensity(axis: str) -> None:
    ((images, _),) = Gratings((16, 16), axis=axis, orientations=3, frequencies=(0.2,), phases=1).batches(3)
    assert images.abs().max() > 1
    assert images.sum(1).abs().max() < 1e-6
    ((grey, _),) = Gratings((16, 16), channels=1, orientations=3, frequencies=(0.2,), phases=1).batches(3)
    assert grey.shape == (3, 1, 16, 16)


def orientations_of(filters: Tensor, axis: str = "intensity", relu: Callable[[Tensor], Tensor] = F.relu) -> tuple:
    measure = OrientationSelectivity(len(filters), orientations=12)
    for images, orientation in Gratings((32, 32), channels=filters.shape[1], axis=axis).batches(60):
        measure.update(relu(F.conv2d(images.double(), filters, padding=3)), orientation)
    return measure.compute()


@pytest.mark.parametrize(("colour", "axis"), [("intensity", "intensity"), ("red-green", "red_green")])
def test_orientation_of_made_filters(colour: str, axis: str) -> None:
    angles = torch.arange(0, 180, 20, dtype=torch.float64)  # most lie between those of the gratings
    gabors = torch.stack([coloured(grating(7, angle, 0.25, width=2), colour) for angle in angles.tolist()])
    selectivity, degrees = orientations_of(gabors, axis)
    assert apart(degrees, angles).max() < 3
    assert selectivity.min() > 0.5
    round_ = orientations_of(coloured(blob(7, 1.2), colour)[None], axis).selectivity
    assert round_ < 0.02


def test_a_convolution_and_its_relu_measure_alike() -> None:
    filters = drawn(4, 1, 7, 7)
    for ours, theirs in zip(orientations_of(filters), orientations_of(filters, relu=lambda x: x), strict=True):
        assert torch.equal(ours, theirs)


def test_gratings_in_any_order_and_channels_that_do_not_answer() -> None:
    responses, orientation = drawn(12, 3, 2, 2).abs(), torch.arange(12) % 4
    responses[:, 2] *= -1
    results = []
    for order in (torch.arange(12), torch.arange(12).flip(0)):
        measure = OrientationSelectivity(3, orientations=4)
        for part in order.split(5):
            measure.update(responses[part], orientation[part])
        results.append(measure.compute())
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
    assert results[0].selectivity.isnan().tolist() == results[0].degrees.isnan().tolist() == [False, False, True]


def test_orientation_by_hand() -> None:
    measure = OrientationSelectivity(2, orientations=4)  # 0, 45, 90, 135 degrees
    measure.update(torch.tensor([[1.0, 2.0], [3.0, 2.0], [1.0, 2.0], [1.0, 2.0]]), torch.arange(4))
    selectivity, degrees = measure.compute()
    torch.testing.assert_close(selectivity, torch.tensor([2 / 6, 0.0]).double(), rtol=0, atol=1e-7)
    assert apart(degrees[0], 45) < 1e-9
    assert degrees[1].isnan()


# Recording


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.again, self.relu = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.again(self.again(self.relu(self.conv(x))))
        return y


def test_recorded_is_what_a_layer_made_of_the_last_batch() -> None:
    net = Twice()
    with recorded(net, ["conv", "relu"]) as made:
        for images in drawn(2, 1, 3, 5, 5).float():
            net(images)
            expected = F.conv2d(images, net.conv.weight, net.conv.bias)
            assert torch.equal(made["conv"], expected), "before the ReLU works in place"
            assert torch.equal(made["relu"], expected.relu())
            assert not made["conv"].requires_grad
        with torch.no_grad():
            net(images + 1)
        assert not torch.equal(made["conv"], expected)
    made.clear()
    net(images)
    assert not made


def test_layers_that_cannot_be_recorded() -> None:
    net = Twice()
    with recorded(net, ["again"]), pytest.raises(ValueError, match="again runs several times in one forward"):
        net(torch.zeros(1, 3, 5, 5))
    with pytest.raises(ValueError, match=r"no layer 'conv1'; did you mean 'conv'.*; it has conv, again, relu"):
        recorded(Twice(), ["conv1"]).__enter__()


# Refusals


def refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ColourSelectivity(4, num_images=0), "num_images=0 must be at least 1"),
        (lambda: ColourSelectivity(4).update(torch.ones(2, 8, 3, 3), torch.ones(2, 8, 3, 3)), "none of 4 channels"),
        (lambda: ColourSelectivity(4).update(torch.ones(2, 4), torch.ones(3, 4)), r"\(2, 4\) and \(3, 4\)"),
        (lambda: ColourSelectivity(4).update(*[torch.ones(2, 4).long()] * 2), "torch.int64 responses"),
        (lambda: ClassSelectivity(4, num_classes=1), "num_classes=1"),
        (lambda: ClassSelectivity(4, num_classes=3).update(torch.ones(2, 4), torch.tensor([0, 3])), "classes 0 to 2"),
        (lambda: ClassSelectivity(4, num_classes=3).update(torch.ones(2, 4), torch.zeros(2, 3)), "one whole number"),
        (lambda: OrientationSelectivity(4).update(torch.ones(2, 4), torch.tensor([0, 12])), "Gratings.batches"),
        (lambda: Gratings((8, 8), axis="red-green"), "did you mean 'red_green'"),
        (lambda: Gratings((8, 8), channels=1, axis="red_green"), "no red_green gratings of 1 channels"),
        (lambda: Gratings((8, 8), orientations=2), "at least 3"),
        (lambda: Gratings((8, 8), frequencies=(0.6,)), "at most 0.5 cycles per pixel"),
        (lambda: Gratings((8, 8), phases=0), "must be positive"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], object], message: str) -> None:
    refused(make, message)
