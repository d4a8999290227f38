"""Augmentation: what the random operations do to pixels, and that a generator's state decides all of it."""

import pytest
import torch

from lanes.data import augment


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(count: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8, generator=_generator(9), dtype=torch.float64)


def test_to_unit_maps_the_ends_exactly_and_refuses_what_is_scaled_already():
    unit = augment.to_unit(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert unit.tolist() == [0.0, pytest.approx(0.2), 1.0]
    assert unit.dtype == torch.float32
    with pytest.raises(ValueError, match=r"expects uint8 .* got torch.float32"):
        augment.to_unit(unit)


def test_normalize_leaves_mean_zero_and_deviation_one():
    images = _images()
    mean, std = (f((0, 2, 3))[:, None, None] for f in (images.mean, images.std))
    normal = augment.normalize(images, mean, std)
    assert torch.allclose(normal.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(normal.std((0, 2, 3)), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("operation", [augment.random_flip, augment.random_brightness_contrast])
def test_the_generator_decides_everything(operation):
    images, before = _images(), _images()
    first, again = operation(images, generator=_generator(1)), operation(images, generator=_generator(1))
    assert torch.equal(first, again)
    assert not torch.equal(first, operation(images, generator=_generator(2)))
    assert torch.equal(images, before)  # the batch itself is left alone
    torch.manual_seed(1)
    assert torch.equal(first, operation(images))  # by default: the device's own generator


@pytest.mark.parametrize("operation", [augment.random_flip, augment.random_brightness_contrast])
def test_random_numbers_depend_on_the_batch_size_alone(operation):
    small, large = _generator(), _generator()
    operation(_images(), generator=small)
    operation(torch.rand(64, 1, 20, 30, dtype=torch.float64), generator=large)
    assert torch.equal(small.get_state(), large.get_state())


def test_a_flip_is_a_flip_of_about_half_the_images():
    images = _images(1000)
    flipped = augment.random_flip(images, generator=_generator())
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    kept = (flipped == images).flatten(1).all(1)
    assert torch.equal(mirrored, ~kept)
    assert 430 < int(mirrored.sum()) < 570  # 4.4 standard deviations


def test_brightness_moves_the_mean_and_only_within_its_range():
    images = _images(1000)
    changed = augment.random_brightness_contrast(images, brightness=0.3, contrast=0.0, generator=_generator())
    gain = changed.mean((1, 2, 3)) / images.mean((1, 2, 3))
    assert torch.allclose(changed, images * gain[:, None, None, None])
    assert 0.7 <= gain.min() < 0.72
    assert 1.28 < gain.max() <= 1.3


def test_contrast_keeps_the_mean_and_moves_the_deviation_within_its_range():
    images = _images(1000)
    changed = augment.random_brightness_contrast(images, brightness=0.0, contrast=0.3, generator=_generator())
    assert torch.allclose(changed.mean((1, 2, 3)), images.mean((1, 2, 3)))
    spread = changed.std((1, 2, 3)) / images.std((1, 2, 3))
    assert spread.min() >= 0.7 - 1e-9
    assert spread.max() <= 1.3 + 1e-9
    assert spread.max() - spread.min() > 0.5


def test_hue_is_left_alone():
    images = _images()
    changed = augment.random_brightness_contrast(images, brightness=0.5, contrast=0.5, generator=_generator())

    def hue(x: torch.Tensor) -> torch.Tensor:  # the angle around the grey axis
        red, green, blue = x.unbind(1)
        return torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue)

    assert torch.allclose(hue(images), hue(changed))


@pytest.mark.parametrize("wrong", [{"brightness": -0.1}, {"contrast": 1.5}])
def test_ranges_are_checked(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value} must lie in 0..1"):
        augment.random_brightness_contrast(_images(), **wrong)
