"""Augmentation of image batches: pure functions on tensors, on whatever device the batch is.

All random numbers come from one generator, by default the device's own (the replica's random stream), and how many are
drawn depends on the batch size alone: lane devices that share a stream and a batch see the same augmented batch.

The bundled photographs are augmented with these; for other data, a configuration names modules: those of
kornia.augmentation, ``ColorNoise`` (colour.py), ``MixUp`` and ``CutMix`` (mixing.py).

Hue is left alone on purpose: the colours that a lane's filters learn are what people look at.

Legend: N images, C channels, H W height and width in pixels.
"""

import torch
from torch import Generator, Tensor


def to_unit(images: Tensor) -> Tensor:
    """Bring uint8 images of 0..255 to float32 of 0..1.

    Args:
        images: uint8, ``[N, C, H, W]``.

    Returns:
        float32, ``[N, C, H, W]``.

    Raises:
        ValueError: The images are not uint8; scaling them again would be a silent mistake.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"to_unit expects uint8 images of 0..255, got {images.dtype}; pass the batch as it was loaded")
    return images.float() / 255


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Subtract each channel's mean and divide by its standard deviation.

    Args:
        images: Floating point, ``[N, C, H, W]``.
        mean: Per channel, in the units of ``images``, broadcastable: ``[C, 1, 1]``.
        std: Like ``mean``.

    Returns:
        ``[N, C, H, W]``.
    """
    return (images - mean) / std


def random_flip(images: Tensor, *, generator: Generator | None = None) -> Tensor:
    """Mirror each image left to right with probability one half.

    Args:
        images: ``[N, C, H, W]``, any dtype.
        generator: Where the N random numbers come from; by default the device's own generator.

    Returns:
        A new tensor, ``[N, C, H, W]``.
    """
    mirrored = torch.rand(len(images), device=images.device, generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def random_brightness_contrast(
    images: Tensor, *, brightness: float = 0.2, contrast: float = 0.2, generator: Generator | None = None
) -> Tensor:
    """Scale the brightness of each image, and its contrast around its own mean.

    One factor and one offset per image, shared by its channels, which leaves every pixel's hue as it was. The result is
    not clamped to 0..1: clamping would change hues, and it only feeds a network.

    Args:
        images: Floating point, 0..1, ``[N, C, H, W]``.
        brightness: The mean of an image is multiplied by a factor drawn from ``1 - brightness .. 1 + brightness``.
        contrast: Deviations from the mean are multiplied by that factor and one from ``1 - contrast .. 1 + contrast``.
        generator: Where the 2N random numbers come from; by default the device's own generator.

    Returns:
        ``[N, C, H, W]``.

    Raises:
        ValueError: A range is outside 0..1.
    """
    for name, value in (("brightness", brightness), ("contrast", contrast)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} must lie in 0..1: factors are drawn from 1 - {name} .. 1 + {name}")
    draws = torch.rand(2, len(images), 1, 1, 1, device=images.device, dtype=images.dtype, generator=generator) * 2 - 1
    gain, spread = 1 + brightness * draws[0], 1 + contrast * draws[1]
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return gain * (mean + spread * (images - mean))
