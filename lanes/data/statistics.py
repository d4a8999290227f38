"""Mean and covariance of colours, over the pixels of images."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

MEASURED = 10_000  # images at most: a mean of 10,000 images is known to about a thousandth
ROUNDING = 1e-12  # what rounding leaves of the covariance of pixels of 0..1 that do not vary
CHUNK = 16  # images at once: 16 x 3 x 256 x 256 float64 are 25 MiB


class Batches(Protocol):
    """What gives many images in one call."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Statistics:
    """Of pixels in units of 0..1, per channel: mean ``[C]`` and covariance ``[C, C]``."""

    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation per channel."""
        return tuple(float(row[i]) ** 0.5 for i, row in enumerate(self.covariance))


def from_moments(mean: NDArray[np.float64], second: NDArray[np.float64]) -> Statistics:
    """From the means of the colours x ``[C]`` and of the products x x^T ``[C, C]``."""
    covariance = second - np.outer(mean, mean)
    covariance[np.abs(covariance) < ROUNDING] = 0  # of one colour, even below 0
    return Statistics(tuple(mean.tolist()), tuple(map(tuple, covariance.tolist())))


def measure(images: Batches) -> Statistics:
    """Measure at most ``MEASURED`` evenly spaced images.

    Sums of bytes and of their products are whole numbers below 2^53, hence exact in float64 in any order: every process
    and every number of threads finds the same figures.
    """
    count = min(MEASURED, len(images))
    chosen = (np.arange(count) * len(images) // count).tolist()
    chunks = [chosen[start : start + CHUNK] for start in range(0, count, CHUNK)]

    def sums(indices: list[int]) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
        pixels = images.__getitems__(indices)[0].transpose(0, 1).flatten(1).numpy().astype(np.float64)
        return pixels.shape[1], pixels.sum(1), pixels @ pixels.T

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        numbers, first, second = zip(*pool.map(sums, chunks), strict=True)
    total = sum(numbers)
    return from_moments(np.sum(first, axis=0) / total / 255, np.sum(second, axis=0) / total / 255**2)
