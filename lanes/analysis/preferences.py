"""What the channels of a layer prefer, beside how selective they are: a class, a spatial frequency.

Kept out: selectivity itself (responses.py, gratings.py).

Legend: N images, c channels of a layer that this process holds.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lanes.analysis.responses import ClassSelectivity, Responses
from lanes.mesh import Axis


class FrequencyPreference(Responses):
    """The spatial frequency to which a channel answers most, of those of the gratings that it was shown.

    The response to a frequency is the largest over orientations, phases and places, as in
    `gratings.OrientationSelectivity`; of equal responses the lowest frequency counts.

    Args:
        num_channels: c, the channels of the responses; on several lane devices the own ones.
        frequencies: in cycles per pixel.
        data: this process's place among the replicas, whose images count together; None: each process by itself.
    """

    strongest: Tensor  # [frequencies, c]

    def __init__(self, num_channels: int, *, frequencies: Sequence[float], data: Axis | None = None) -> None:
        super().__init__(num_channels, data)
        self.frequencies = tuple(frequencies)
        nothing = torch.zeros(len(self.frequencies), num_channels, dtype=torch.float64)
        self.add_state("strongest", nothing, dist_reduce_fx="max")

    def update(self, responses: Tensor, frequency: int) -> None:
        """Look at a batch of gratings of one frequency.

        Args:
            responses: [N, c, ...].
            frequency: its index.

        Raises:
            ValueError: another number of channels, or no index of a frequency.
        """
        if not 0 <= frequency < len(self.frequencies):
            raise ValueError(f"frequency {frequency} is no index of the {len(self.frequencies)} frequencies")
        here = torch.zeros_like(self.strongest)
        here[frequency] = self.maps(responses).amax((0, 2))
        self.strongest = self.strongest.maximum(here)

    def compute(self) -> Tensor:
        """Cycles per pixel, float64 [c]; NaN of channels that no grating excites."""
        cycles = self.strongest.new_tensor(self.frequencies)
        return cycles[self.strongest.argmax(0)].where(self.strongest.amax(0) > 0, math.nan)


class ClassPreference(NamedTuple):
    """What :func:`preferred_class` tells; float64 [c] each.

    Attributes:
        favourite: the class with the largest mean response, of equal ones the first; NaN of channels that nothing
            excites.
        strength: the mean response to all images; 0 of channels that nothing excites: they are dead.
    """

    favourite: Tensor
    strength: Tensor


def preferred_class(measure: ClassSelectivity) -> ClassPreference:
    """The class that stands out in a measure of class selectivity, by the images that it has seen.

    All replicas must call it.
    """
    with measure.sync_context(should_sync=bool(measure.sync_on_compute)):
        sums, counts = measure.sums, measure.counts
    strength = sums.sum(0) / counts.sum()
    means = (sums / counts[:, None]).where(counts[:, None] > 0, -1)  # a class without images is nobody's favourite
    return ClassPreference(means.argmax(0).double().where(strength != 0, math.nan), strength)
