"""All that is measured of each channel of a layer, gathered over images and gratings, plain or on any layout.

Kept out: the measures themselves (responses.py, gratings.py, preferences.py), which images, what lanes have in common.

Legend: N images, C all channels of a layer, c those that this process holds.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lanes.analysis.gratings import Gratings, OrientationSelectivity
from lanes.analysis.preferences import FrequencyPreference, preferred_class
from lanes.analysis.recording import replicas, whole_layer
from lanes.analysis.responses import ClassSelectivity, ColourSelectivity
from lanes.mesh import LANE_AXIS, DeviceMesh, axis
from lanes.plans import Plan

DIGITS = 6  # behind the point: networks compute in float32, and what differs by less depends on the layout


class NotFiniteError(ValueError):
    """A layer's responses are no numbers."""


@dataclass(frozen=True)
class ChannelMeasures:
    """What each channel of a layer is selective for and prefers; float64 [C] each, NaN where it is undefined.

    Attributes:
        colour_selectivity: `responses.ColourSelectivity`; NaN of channels that no image excites, and of all on images
            without colours.
        class_selectivity: `responses.ClassSelectivity`.
        preferred_class: index of the class with the largest mean response.
        orientation_selectivity: gOSI, `gratings.OrientationSelectivity`.
        preferred_orientation: of the bars, in degrees: 0 lies, 90 stands, 45 rises to the right.
        preferred_frequency: in cycles per pixel, one of the gratings'.
        dead: 1 if no image excites the channel, else 0. (It may answer to gratings.)
    """

    colour_selectivity: NDArray[np.float64]
    class_selectivity: NDArray[np.float64]
    preferred_class: NDArray[np.float64]
    orientation_selectivity: NDArray[np.float64]
    preferred_orientation: NDArray[np.float64]
    preferred_frequency: NDArray[np.float64]
    dead: NDArray[np.float64]

    @classmethod
    def names(cls) -> list[str]:
        """Of all measures."""
        return [field.name for field in fields(cls)]


class ChannelMeter:
    """Measures one layer.

    Args:
        layer: its name.
        num_channels: c.
        num_classes: of the images.
        gratings: those that it will see.
        plan: of a placed network.
        mesh: of a placed network.
    """

    def __init__(
        self,
        layer: str,
        num_channels: int,
        *,
        num_classes: int,
        gratings: Gratings,
        plan: Plan | None = None,
        mesh: DeviceMesh | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.layer, self.plan, self.mesh = layer, plan, mesh
        data = replicas(mesh)
        self._colour = ColourSelectivity(num_channels, data=data).to(device)
        self._seen_in_grey = False
        self._classes = ClassSelectivity(num_channels, num_classes=num_classes, data=data).to(device)
        self._orientation = OrientationSelectivity(num_channels, orientations=gratings.orientations, data=data).to(
            device
        )
        self._frequency = FrequencyPreference(num_channels, frequencies=gratings.frequencies, data=data).to(device)

    def see_images(self, responses: Tensor, labels: Tensor, *, grey: Tensor | None) -> None:
        """Look at a batch: responses [N, c, ...], classes [N], and responses to the same images turned grey."""
        self._classes.update(responses, labels)
        if grey is not None:
            self._seen_in_grey = True
            self._colour.update(responses, grey)

    def see_gratings(self, responses: Tensor, orientation: Tensor, frequency: int) -> None:
        """Look at a batch of :func:`by_frequency`."""
        self._orientation.update(responses, orientation)
        self._frequency.update(responses, frequency)

    def compute(self) -> ChannelMeasures:
        """The measures of all channels, in the plain model's order; all processes must call it.

        Raises:
            NotFiniteError: the responses are not finite; on all processes alike.
        """
        orientation, classes = self._orientation.compute(), preferred_class(self._classes)
        selectivity = self._classes.compute()
        colour = self._colour.compute() if self._seen_in_grey else torch.full_like(classes.strength, math.nan)
        own = [colour, selectivity, classes.favourite, *orientation, self._frequency.compute(), classes.strength]
        found = torch.stack([values.reshape(-1) for values in own])  # torchmetrics makes a number of one channel
        if self.plan is not None and self.mesh is not None:
            found = whole_layer(found, self.layer, self.plan, axis(self.mesh, LANE_AXIS))
        *measures, strength = found.cpu()
        if not strength.isfinite().all():
            raise NotFiniteError(f"the responses of {self.layer} are not finite: training has diverged")
        rounded = [values.round(decimals=DIGITS) for values in measures]
        rounded[4] = rounded[4].where(rounded[3] != 0, math.nan)  # the orientation of next to nothing is rounding
        return ChannelMeasures(*(values.numpy() for values in [*rounded, (strength == 0).double()]))


def by_frequency(gratings: Gratings, batch_size: int, *, device: torch.device) -> Iterator[tuple[int, Tensor, Tensor]]:
    """All gratings, of one frequency after the other: index of the frequency, images, and indices of orientations."""
    for index, frequency in enumerate(gratings.frequencies):
        for images, orientation in replace(gratings, frequencies=(frequency,)).batches(batch_size, device=device):
            yield index, images, orientation
