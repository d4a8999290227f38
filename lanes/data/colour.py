"""AlexNet's colour noise: the principal components of the training pixels, added in random amounts to whole images.

The random numbers are drawn on the CPU, wherever the images are, as kornia's augmentations do: one seed gives the same
augmentation on any device, and no GPU waits for another's numbers. ``lanes.seed_replica`` decides that stream too.

Legend: N images, C channels, H W height and width in pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ColorNoise(nn.Module):
    """Add to each image one random colour, distributed as the training pixels are, and shrink its contrast to make up.

    Each image gets ``std * sum_i(z_i * s_i * p_i)``, the same for all its pixels: p_i are the principal components of
    the training pixels' colours, s_i the standard deviations along them and z_i standard normal numbers. So the colour
    has covariance ``std**2 * covariance``. The images around their mean are then divided by ``1 + std``, which keeps
    the scale of what the network reads near that of evaluation. Nothing is clamped to 0..1: clamping would change hues,
    and the result only feeds a network.

    The paper's text (Krizhevsky et al. 2012, section 4.1) multiplies by the eigenvalue s_i**2 instead. That depends on
    the unit of the pixels (in 0..255 it is 255 times as strong as in 0..1) and the text names none; its authors'
    program multiplies by standard deviations (cuda-convnet2, convdata.py, ``ColorNoiseMakerThread``), and divides by
    ``1 + std``, of which the text does not speak. This follows the program.

    Args:
        std: The noise's standard deviation as a share of the training pixels'; 0.1 in the paper.
        covariance: Of the training pixels' channels, ``[C, C]``, in units of 0..1; by default it is measured.
        mean: Of the training pixels' channels, ``[C]``, in units of 0..1; by default it is measured.

    Raises:
        ValueError: ``std`` is negative, or ``covariance`` and ``mean`` are no statistics of the same channels.
    """

    def __init__(
        self,
        std: float = 0.1,
        covariance: Sequence[Sequence[float]] | None = None,
        mean: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if std < 0:
            raise ValueError(f"std={std} must not be negative; 0.1 is the paper's, 0 adds no noise")
        self.std = std
        self._given = (mean, covariance)
        self._mean: Tensor | None = None
        self._root: Tensor | None = None
        if mean is not None and covariance is not None:
            self.measure(torch.as_tensor(mean), torch.as_tensor(covariance))

    def measure(self, mean: Tensor, covariance: Tensor) -> None:
        """Take the statistics of the training pixels, save those given to the constructor.

        Args:
            mean: Per channel, in units of 0..1, ``[C]``.
            covariance: Of the channels, in units of 0..1, ``[C, C]``.

        Raises:
            ValueError: They are no statistics of the same channels.
        """
        mean, covariance = (
            torch.as_tensor(measured if given is None else given, dtype=torch.float64, device="cpu")
            for measured, given in zip((mean, covariance), self._given, strict=True)
        )
        root = square_root(covariance)
        if mean.shape != covariance.shape[:1]:
            raise ValueError(
                f"a mean of shape {tuple(mean.shape)} and a covariance of shape {tuple(covariance.shape)} are not of "
                "the same channels; give one number and one row per channel"
            )
        self._mean, self._root = mean.float(), root.float()

    def forward(self, images: Tensor) -> Tensor:
        """Add the noise.

        Args:
            images: Floating point, 0..1, ``[N, C, H, W]``.

        Returns:
            A new tensor, ``[N, C, H, W]``.

        Raises:
            ValueError: The statistics are not known, or of another number of channels.
        """
        if self._mean is None or self._root is None:
            raise ValueError(
                "ColorNoise does not know the training pixels yet; call measure(mean, covariance), or give it both"
            )
        if images.shape[1] != len(self._mean):
            raise ValueError(
                f"ColorNoise knows pixels of {len(self._mean)} channels, these images have {images.shape[1]}; give it "
                "the statistics of these"
            )
        noise = self.std * torch.randn(len(images), len(self._mean), dtype=torch.float32) @ self._root
        # mean + (images - mean + noise) / (1 + std), in two passes over the pixels
        shift = (noise + self.std * self._mean).to(images.device, images.dtype)
        return (images + shift[:, :, None, None]).div_(1 + self.std)

    def extra_repr(self) -> str:
        """Show the arguments, for the data card."""
        return f"std={self.std}"


def square_root(covariance: Tensor) -> Tensor:
    """Find the symmetric R with R @ R = covariance: standard normal numbers times R have that covariance.

    The sum over principal components p_i of z_i * s_i * p_i has the same distribution, but the sign of a p_i, and all
    of them where two s_i are equal, are the linear algebra library's choice: processes with different libraries would
    see different images. R is unique.

    Args:
        covariance: ``[C, C]``, float64.

    Returns:
        R, ``[C, C]``.

    Raises:
        ValueError: It is no covariance: not square, not finite, not symmetric, or with a negative eigenvalue.
    """
    if covariance.dim() != 2 or covariance.shape[0] != covariance.shape[1] or not covariance.isfinite().all():
        raise ValueError(f"a covariance is a square table of finite numbers, got {covariance.tolist()}")
    rounding = 1e-6 * covariance.abs().max().item()
    if not torch.allclose(covariance, covariance.T, rtol=0, atol=rounding):
        raise ValueError(f"a covariance is symmetric, got {covariance.tolist()}")
    variances, components = torch.linalg.eigh(covariance)
    if variances.min() < -rounding:  # grey images stored as colour have rank 1, and so zeros that rounding moves
        raise ValueError(
            f"a covariance has no negative eigenvalue, this one has {variances.min():.3g}; check its signs"
        )
    return components * variances.clamp(min=0).sqrt() @ components.T
