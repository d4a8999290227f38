"""Gratings to show to a network, and how selective the channels of any layer are for their orientation.

Kept out: orientation from weights (selectivity.py), what layers make of photographs (responses.py).

Legend: N images, c channels of a layer that this process holds, H W height and width in pixels.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.types import Device

from lanes.analysis.responses import Responses
from lanes.analysis.selectivity import OPPONENT_AXES, across_bars, opponent_axes, orientation_tuning
from lanes.mesh import Axis
from lanes.words import near


@dataclass(frozen=True)
class Gratings:
    """Sine gratings of every orientation, frequency and phase, as a network reads them: 240 images by default.

    They stand still; the phases stand for what a drifting grating shows in turn. Each is seen through a round window
    that fades out at the image's edge: where a layer pads, a grating that ends there makes an edge that lies or stands,
    whatever the grating. (On two runs' first layers the upper quartile of gOSI was 0.10 and 0.09 without the window,
    0.22 and 0.19 with it.)

    Args:
        size: (height, width) in pixels.
        channels: 3 (RGB) or 1 (grey).
        axis: the colours between which they change: "intensity", "red_green" or "blue_yellow"
            (`selectivity.OPPONENT_AXES`).
        orientations: how many, evenly over 180 degrees; the first one's bars lie, the others' are turned
            counter-clockwise.
        frequencies: in cycles per pixel, above 0 and up to 0.5.
        phases: how many, evenly over a cycle.
        amplitude: in units of what the network reads; a grating of intensity adds and subtracts it in every channel.

    Raises:
        ValueError: names what is out of range.
    """

    size: tuple[int, int]
    channels: int = 3
    axis: str = "intensity"
    orientations: int = 12
    frequencies: Sequence[float] = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8)
    phases: int = 4
    amplitude: float = 1.0

    def __post_init__(self) -> None:
        if self.axis not in OPPONENT_AXES:
            hint = near(self.axis, OPPONENT_AXES)
            raise ValueError(f"there is no axis {self.axis!r}{hint}; axes are {', '.join(OPPONENT_AXES)}")
        if self.channels not in (1, 3) or (self.channels == 1 and self.axis != "intensity"):
            raise ValueError(
                f"no {self.axis} gratings of {self.channels} channels: give channels=3, or channels=1 and "
                'axis="intensity"'
            )
        if self.orientations < 3:
            raise ValueError(f"orientations={self.orientations}: at least 3 tell which is preferred")
        if self.phases < 1 or min(self.size) < 2 or not self.amplitude > 0:
            raise ValueError(
                f"phases={self.phases} and amplitude={self.amplitude} must be positive, size={self.size} (2, 2) or more"
            )
        if not self.frequencies or not all(0 < frequency <= 0.5 for frequency in self.frequencies):
            raise ValueError(
                f"frequencies={tuple(self.frequencies)} must be above 0 and at most 0.5 cycles per pixel: finer ones "
                "look like coarser ones"
            )

    def __len__(self) -> int:
        """How many images."""
        return self.orientations * len(self.frequencies) * self.phases

    def batches(self, batch_size: int, *, device: Device = None) -> Iterator[tuple[Tensor, Tensor]]:
        """All gratings, of one orientation after the other.

        Args:
            batch_size: images at a time.
            device: where they are made.

        Yields:
            Images [N, channels, H, W], float32, and the index of each one's orientation, int64 [N].
        """
        across = across_bars(self.orientations, self.size, device)
        cycles = torch.tensor(list(self.frequencies), dtype=torch.float64, device=device)
        colour = opponent_axes()[list(OPPONENT_AXES).index(self.axis)].to(device) * math.sqrt(3)
        window = _window(self.size).to(device)
        for numbers in torch.arange(len(self), device=device).split(batch_size):
            orientation = numbers // (len(cycles) * self.phases)
            frequency = cycles[numbers // self.phases % len(cycles)][:, None, None]
            phase = (numbers % self.phases * 2 * math.pi / self.phases)[:, None, None]
            waves = window * torch.cos(2 * math.pi * frequency * across[orientation] + phase)
            images = self.amplitude * waves[:, None] * colour[: self.channels, None, None]
            yield images.float(), orientation


class Orientation(NamedTuple):
    """What gratings tell of each channel; float64 [c] each.

    Attributes:
        selectivity: gOSI, 0 (all orientations alike) to 1 (one only); NaN of channels that no grating excites.
        degrees: the orientation of the bars that it prefers, 0 to 180: 0 lies, 90 stands, 45 rises to the right; NaN of
            channels that prefer none.
    """

    selectivity: Tensor
    degrees: Tensor


class OrientationSelectivity(Responses):
    """Orientation selectivity of a layer's channels, from their responses to gratings.

    The response to an orientation is the largest over its frequencies and phases, and over all places; no response to
    an empty image is taken off. See `selectivity.orientation_tuning` for gOSI and its source. Replicas may each look at
    some of the gratings.

    Args:
        num_channels: c, the channels of the responses; on several lane devices the own ones.
        orientations: how many the gratings have.
        data: this process's place among the replicas, whose images count together; None: each process by itself.
    """

    tuning: Tensor  # [orientations, c]

    def __init__(self, num_channels: int, *, orientations: int = 12, data: Axis | None = None) -> None:
        super().__init__(num_channels, data)
        none = torch.zeros(orientations, num_channels, dtype=torch.float64)
        self.add_state("tuning", none, dist_reduce_fx="max")

    def update(self, responses: Tensor, orientation: Tensor) -> None:
        """Look at a batch of :meth:`Gratings.batches`.

        Args:
            responses: [N, c, ...].
            orientation: index of each grating's orientation, int64 [N].

        Raises:
            ValueError: another number of channels, or no indices of these images.
        """
        strength = self.maps(responses).amax(2).double()
        if orientation.shape != strength.shape[:1] or int(orientation.max()) >= len(self.tuning):
            raise ValueError(
                f"{tuple(orientation.shape)} orientations do not go with {len(strength)} images and "
                f"orientations={len(self.tuning)}: give what Gratings.batches yields, and its number of orientations"
            )
        rows = orientation[:, None].expand_as(strength)
        self.tuning = self.tuning.scatter_reduce(0, rows, strength, "amax")

    def compute(self) -> Orientation:
        """Index and preferred orientation of each channel."""
        return Orientation(*orientation_tuning(self.tuning.T))


def _window(size: tuple[int, int]) -> Tensor:
    """1 up to 0.6 of the way from the middle to the nearest edge, 0 from there on, half a cosine in between. [H, W]."""
    rows, columns = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in size)
    radius = torch.hypot(rows[:, None], columns) / ((min(size) - 1) / 2)
    return (1 + torch.cos(math.pi * ((radius - 0.6) / 0.4).clamp(0, 1))) / 2
