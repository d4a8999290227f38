"""Augmentation: what the random operations do to pixels, and that the replica's random stream decides all of it.

kornia's augmentations are used as they are; what training in lanes needs of them is tested here like of ours.
"""

import random
from collections.abc import Callable

import numpy
import pytest
import torch
from kornia.augmentation import RandomCrop, RandomHorizontalFlip, RandomResizedCrop
from torch import Tensor, nn

from lanes.data import augment
from lanes.data.colour import ColorNoise
from lanes.data.mixing import CutMix, MixUp

COVARIANCE = [[0.06, 0.05, 0.04], [0.05, 0.06, 0.05], [0.04, 0.05, 0.07]]
# Everything that training may do to a batch; tests/distributed/test_augment.py runs the same on real processes.
AUGMENTATIONS: dict[str, Callable[[], Callable[..., Tensor | tuple[Tensor, Tensor]]]] = {
    "random_flip": lambda: augment.random_flip,
    "random_brightness_contrast": lambda: augment.random_brightness_contrast,
    "ColorNoise": lambda: ColorNoise(0.1, COVARIANCE, [0.5, 0.5, 0.4]),
    "RandomCrop": lambda: RandomCrop((16, 16), padding=2),
    "RandomResizedCrop": lambda: RandomResizedCrop((16, 16), scale=(0.3, 1.0)),
    "RandomHorizontalFlip": RandomHorizontalFlip,
    "all": lambda: nn.Sequential(
        RandomCrop((20, 20), padding=4),
        RandomResizedCrop((16, 16)),
        RandomHorizontalFlip(),
        AUGMENTATIONS["ColorNoise"](),
    ),
    "MixUp": MixUp,
    "CutMix": CutMix,
}
MIXING = ("MixUp", "CutMix")


def augmented(augmentation: Callable[..., Tensor | tuple[Tensor, Tensor]], images: Tensor) -> tuple[Tensor, ...]:
    """Call it as training does: images, and targets where labels are mixed."""
    if isinstance(augmentation, (MixUp, CutMix)):
        return augmentation(images, torch.arange(len(images)) % 10, 10)
    return (augmentation(images),)


def _batch(count: int, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=_generator(9))


def _from(seed: int, augmentation: Callable[..., Tensor | tuple[Tensor, Tensor]], images: Tensor) -> tuple[Tensor, ...]:
    """What comes out, and where the stream stands afterwards."""
    torch.manual_seed(seed)
    return (*augmented(augmentation, images), torch.get_rng_state())


def _same(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_default_stream_decides_everything(name):
    images = _batch(8)
    fresh = _from(1, AUGMENTATIONS[name](), images)
    used = AUGMENTATIONS[name]()
    for count in (3, 8, 1):  # another history: other batches, drawn from elsewhere in the stream
        augmented(used, _batch(count))
    random.seed(5)
    numpy.random.seed(5)
    others = random.getstate(), numpy.random.get_state()[1].tolist()
    assert _same(fresh, _from(1, used, images))
    assert others == (random.getstate(), numpy.random.get_state()[1].tolist())
    different = _from(2, used, images)
    assert not torch.equal(fresh[0], different[0])
    assert not torch.equal(fresh[-1], torch.Generator().manual_seed(1).get_state())  # it drew from the default stream
    assert torch.equal(images, _batch(8))  # the batch itself is left alone


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_how_much_is_drawn_depends_on_the_batch_size_alone(name):
    augmentation = AUGMENTATIONS[name]()
    streams = [_from(1, augmentation, images)[-1] for images in (_batch(8), _batch(8) ** 2, _batch(8, size=24))]
    assert torch.equal(streams[0], streams[1])
    assert torch.equal(streams[0], streams[2])


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("count", [1, 8])
def test_the_network_gets_finite_float32_images_without_a_graph(name, count):
    augmentation = AUGMENTATIONS[name]()
    for result in augmented(augmentation, _batch(count)):
        assert result.dtype == torch.float32
        assert result.isfinite().all()
        assert not result.requires_grad
        assert len(result) == count
    assert augmented(augmentation, _batch(count))[0].shape == (count, 3, 16, 16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if not name.startswith("random_")])
def test_modules_draw_on_the_cpu_wherever_the_images_are(name):
    on_cpu = _from(1, AUGMENTATIONS[name](), _batch(8))
    torch.manual_seed(1)
    before = torch.cuda.get_rng_state()
    augmentation = AUGMENTATIONS[name]()
    images = _batch(8).cuda()
    results = augmentation(images, (torch.arange(8) % 10).cuda(), 10) if name in MIXING else (augmentation(images),)
    for ours, theirs in zip(results, on_cpu, strict=False):
        assert torch.allclose(ours.cpu(), theirs, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), on_cpu[-1])
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_a_padded_crop_is_a_slice_of_the_padded_image_at_any_place():
    images = _batch(400, size=8)
    torch.manual_seed(0)
    crops = RandomCrop((8, 8), padding=2)(images)
    padded = nn.functional.pad(images, (2, 2, 2, 2))
    found = torch.zeros(5, 5, dtype=torch.long)
    for top in range(5):
        for left in range(5):
            found[top, left] = (crops == padded[:, :, top : top + 8, left : left + 8]).flatten(1).all(1).sum()
    assert found.sum() == 400  # bit for bit, each at one place
    assert found.min() >= 3  # 16 expected
    assert found.max() <= 36


def test_kornia_crops_are_within_the_image_and_flips_are_flips():
    ramp = torch.linspace(0, 1, 32).expand(64, 3, 32, 32)
    torch.manual_seed(0)
    crops = RandomResizedCrop((16, 16), scale=(0.3, 1.0))(ramp)
    assert crops.min() >= 0
    assert crops.max() <= 1
    widths = crops[:, 0, 0, -1] - crops[:, 0, 0, 0]
    assert (crops.diff(dim=-1) > 0).all()
    assert 0.4 < widths.min() < 0.6  # sqrt(0.3 * 3 / 4) = 0.47 of the width at the least
    flips = RandomHorizontalFlip()(ramp)
    mirrored = (flips == ramp.flip(-1)).flatten(1).all(1)
    assert torch.equal(~mirrored, (flips == ramp).flatten(1).all(1))
    assert 16 < int(mirrored.sum()) < 48


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
