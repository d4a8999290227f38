"""AlexNet's colour noise: its covariance, its scale, and what it refuses."""

import pytest
import torch
from torch import Tensor

from lanes.data.colour import ColorNoise, square_root

MEAN = [0.48, 0.46, 0.41]
COVARIANCE = [[0.078, 0.069, 0.061], [0.069, 0.075, 0.071], [0.061, 0.071, 0.081]]


def _noise_of(noisy: Tensor, images: Tensor, std: float, mean: list[float]) -> Tensor:
    """Undo the scaling around the mean; what is left is each image's noise, alike on all its pixels: ``[N, C]``."""
    centre = torch.tensor(mean, dtype=images.dtype)[:, None, None]
    noise = (noisy - centre) * (1 + std) - (images - centre)
    assert torch.allclose(noise, noise.mean((2, 3), keepdim=True).expand_as(noise), atol=1e-5)
    return noise.mean((2, 3))


@pytest.mark.parametrize("std", [0.1, 0.4])
def test_the_noise_has_the_covariance_of_the_pixels(std):
    number = 200_000
    torch.manual_seed(0)
    images = torch.rand(number, 3, 1, 2, dtype=torch.float64)
    noise = _noise_of(ColorNoise(std, COVARIANCE, MEAN)(images), images, std, MEAN)
    expected = std**2 * torch.tensor(COVARIANCE, dtype=torch.float64)
    deviations = expected.diagonal().sqrt()
    # The standard error of a covariance of N normal pairs is at most sqrt(2 / N) = 0.32 % of their deviations' product.
    error = (noise.T.cov() - expected) / torch.outer(deviations, deviations)
    assert error.abs().max() < 5 * (2 / number) ** 0.5
    assert (noise.mean(0) / deviations).abs().max() < 5 / number**0.5
    # The paper's text, eigenvalues in place of their roots, is another noise altogether.
    by_eigenvalue = (
        std**2 * torch.tensor(COVARIANCE, dtype=torch.float64) @ torch.tensor(COVARIANCE, dtype=torch.float64)
    )
    assert noise.T.cov().trace() > 3 * by_eigenvalue.trace()


def test_the_noise_lies_along_the_principal_components():
    """Independent along each, with the standard deviation of the pixels along it: as the authors' program draws it."""
    torch.manual_seed(0)
    images = torch.zeros(100_000, 3, 1, 1, dtype=torch.float64)
    noise = _noise_of(ColorNoise(0.1, COVARIANCE, MEAN)(images), images, 0.1, MEAN)
    variances, components = torch.linalg.eigh(torch.tensor(COVARIANCE, dtype=torch.float64))
    along = noise @ components / (0.1 * variances.sqrt())
    assert (along.T.cov() - torch.eye(3)).abs().max() < 5 * (2 / 100_000) ** 0.5
    kurtosis = ((along**4).mean(0) / (along**2).mean(0) ** 2 - 3).abs().max()
    assert kurtosis < 5 * (24 / 100_000) ** 0.5  # normal


def test_every_pixel_of_an_image_gets_the_same_and_every_image_another():
    torch.manual_seed(0)
    images = torch.rand(8, 3, 5, 6)
    noise = _noise_of(ColorNoise(0.1, COVARIANCE, MEAN)(images), images, 0.1, MEAN)
    assert noise.unique(dim=0).shape == (8, 3)


def test_the_scale_of_training_images_stays_near_that_of_evaluation():
    """As the program does it: centred data over 1 + std. Without it the deviation would grow."""
    torch.manual_seed(0)
    mean, covariance = [0.5], [[1 / 12]]
    images = torch.rand(20_000, 1, 4, 4)
    noisy = ColorNoise(0.4, covariance, mean)(images)
    assert noisy.mean() == pytest.approx(0.5, abs=0.005)
    assert noisy.var() == pytest.approx((1 + 0.4**2) / 1.4**2 / 12, rel=0.02)


def test_grey_images():
    torch.manual_seed(0)
    images = torch.rand(50_000, 1, 2, 2, dtype=torch.float64)
    noise = _noise_of(ColorNoise(0.1, [[0.09]], [0.3])(images), images, 0.1, [0.3])
    assert noise.std() == pytest.approx(0.1 * 0.3, rel=5 * (0.5 / 50_000) ** 0.5)


def test_grey_images_stored_as_colour_stay_grey():
    torch.manual_seed(0)
    grey = torch.rand(16, 1, 4, 4).expand(-1, 3, -1, -1)
    noisy = ColorNoise(0.1, [[0.08] * 3] * 3, [0.5] * 3)(grey)
    assert torch.allclose(noisy, noisy[:, :1].expand_as(noisy), atol=1e-5)
    assert not torch.allclose(noisy, grey, atol=0.01)


def test_no_noise_changes_nothing():
    images = torch.rand(4, 3, 2, 2)
    assert torch.allclose(ColorNoise(0.0, COVARIANCE, MEAN)(images), images)


def test_statistics_are_measured_or_given():
    images = torch.rand(4, 3, 2, 2)
    given, measured, half = ColorNoise(0.1, COVARIANCE, MEAN), ColorNoise(0.1), ColorNoise(0.1, COVARIANCE)
    for noise in (measured, half):
        with pytest.raises(ValueError, match="does not know the training pixels yet; call measure"):
            noise(images)
    measured.measure(torch.tensor(MEAN), torch.tensor(COVARIANCE))
    half.measure(torch.tensor(MEAN), torch.eye(3))  # what was given stays
    given.measure(torch.zeros(3), torch.eye(3))
    results = []
    for noise in (given, measured, half):
        torch.manual_seed(0)
        results.append(noise(images))
    assert torch.allclose(results[0], results[1], atol=1e-6)
    assert torch.allclose(results[0], results[2], atol=1e-6)


def test_one_root_whatever_the_signs_of_the_components():
    """Equal eigenvalues leave the components open; the root must not depend on the library's choice."""
    assert torch.allclose(square_root(4 * torch.eye(3, dtype=torch.float64)), 2 * torch.eye(3, dtype=torch.float64))
    covariance = torch.tensor(COVARIANCE, dtype=torch.float64)
    root = square_root(covariance)
    assert torch.allclose(root @ root, covariance, atol=1e-12)
    assert torch.equal(root, root.T) or torch.allclose(root, root.T, atol=1e-15)
    assert (torch.linalg.eigvalsh(root) > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"std": -0.1}, "std=-0.1 must not be negative"),
        ({"covariance": [[1.0, 0.0]], "mean": [0.5]}, "square table of finite numbers"),
        ({"covariance": [0.1, 0.1], "mean": [0.5, 0.5]}, "square table of finite numbers"),
        ({"covariance": [[float("nan")]], "mean": [0.5]}, "square table of finite numbers"),
        ({"covariance": [[0.1, 0.05], [0.0, 0.1]], "mean": [0.5, 0.5]}, "symmetric"),
        ({"covariance": [[0.1, 0.2], [0.2, 0.1]], "mean": [0.5, 0.5]}, "negative eigenvalue, this one has -0.1"),
        ({"covariance": COVARIANCE, "mean": [0.5]}, r"a mean of shape \(1,\) and a covariance of shape \(3, 3\)"),
    ],
)
def test_what_is_no_statistics_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ColorNoise(**arguments)


def test_images_of_other_channels_are_refused():
    with pytest.raises(ValueError, match="knows pixels of 3 channels, these images have 1"):
        ColorNoise(0.1, COVARIANCE, MEAN)(torch.rand(2, 1, 4, 4))


def test_it_shows_its_strength():
    assert repr(ColorNoise(0.2)) == "ColorNoise(std=0.2)"
