"""Crops at fixed places: equal to slices by hand, also where borders are odd."""

import pytest
import torch

from lanes.data.views import center_crop, ten_views


def _images(height: int, width: int) -> torch.Tensor:
    """Every pixel another number."""
    return torch.arange(2 * 3 * height * width).view(2, 3, height, width)


def test_center_crop_is_the_middle():
    images = _images(8, 12)
    assert torch.equal(center_crop(images, 4), images[:, :, 2:6, 4:8])
    assert torch.equal(center_crop(images, 8), images[:, :, :, 2:10])
    assert torch.equal(center_crop(images[0, 0], 4), images[0, 0, 2:6, 4:8])


def test_an_odd_border_is_wider_at_the_bottom_and_right():
    images = _images(7, 9)
    assert torch.equal(center_crop(images, 4), images[:, :, 1:5, 2:6])
    assert torch.equal(ten_views(images, 4)[:, 4], images[:, :, 1:5, 2:6])


def test_ten_views_are_five_crops_and_their_mirror_images():
    images = _images(256, 300).to(torch.int32)
    views = ten_views(images, 224)
    assert views.shape == (2, 10, 3, 224, 224)
    assert views.dtype == torch.int32
    for index, (top, left) in enumerate([(0, 0), (0, 76), (32, 0), (32, 76), (16, 38)]):
        crop = images[:, :, top : top + 224, left : left + 224]
        assert torch.equal(views[:, index], crop)
        assert torch.equal(views[:, index + 5], crop.flip(3))


def test_corners_reach_the_last_pixel_also_with_odd_borders():
    images = _images(7, 6)
    bottom_right = ten_views(images, 4)[:, 3]
    assert torch.equal(bottom_right[:, :, -1, -1], images[:, :, -1, -1])


def test_crops_of_the_whole_image_are_the_image():
    images = _images(6, 6)
    assert torch.equal(center_crop(images, 6), images)
    views = ten_views(images, 6)
    assert all(torch.equal(views[:, index], images) for index in range(5))
    assert all(torch.equal(views[:, index], images.flip(-1)) for index in range(5, 10))


@pytest.mark.parametrize("crop", [center_crop, ten_views])
@pytest.mark.parametrize("size", [0, -3, 7])
def test_a_crop_that_does_not_fit_is_refused(crop, size):
    with pytest.raises(ValueError, match=f"a crop of {size} x {size} pixels does not fit images of 6 x 9; .* 1 to 6"):
        crop(_images(6, 9), size)
