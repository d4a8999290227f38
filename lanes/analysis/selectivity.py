"""What the filters of a first layer are selective for, from their weights alone: colour, orientation, frequency.

Each filter is measured by itself, in float64: a lane device measures the filters that it holds, and only asking which
of them are dead needs all of them (`FilterMeasures.gathered`). Kept out: how layers answer to images (responses.py) and
to gratings (gratings.py), pictures (pictures/), comparing lanes.

Legend: K filters, or those of them that this process holds; C their channels, 3 (RGB) or 1 (grey); h w pixels.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.types import Device

from lanes import crossing
from lanes.layers import local
from lanes.mesh import Axis

OPPONENT_AXES = {"intensity": (1, 1, 1), "red_green": (1, -1, 0), "blue_yellow": (-1, -1, 2)}
"""Directions in RGB, orthogonal to one another; see :func:`opponent_axes`."""

DEAD_FRACTION = 0.01
_DIRECTED = 1e-9  # less orientation selectivity than this is rounding, and prefers nothing


@dataclass(frozen=True)
class FilterMeasures:
    """What each filter is selective for; float64 [K] each, NaN where it is undefined (a filter of zeros, above all).

    None depends on the scale of the filter, but for the norm.

    Attributes:
        norm: the 2-norm of the weights.
        colour_selectivity: the chromatic share of the squared weights in :func:`opponent_axes`: 0 reads intensity only
            (so do all filters of grey images), 1 answers to no grey image. A constant part of the filter counts: it is
            what a blob of colour is. (Of filters that two runs on photographs have learned, this share has correlation
            0.69 and 0.69 with how they answer to colour and grey photographs, `responses.ColourSelectivity`; the share
            of filters whose channels are freed of their means 0.49 and 0.56.)
        orientation_selectivity: gOSI, 0 (all alike) to 1 (one only), of the spectral energy at each orientation; see
            :func:`spectral_energy` and :func:`orientation_tuning`. Few weights cannot be all alike: of independent
            normal ones the mean is 0.07 for 3x11x11, 0.10 for 3x7x7, 0.19 for 3x3x3.
        orientation_degrees: the orientation of the *bars* that the filter prefers, 0 to 180, as one sees it: 0 lies,
            90 stands, and 45 rises to the right.
        frequency: the mean spatial frequency, weighted by spectral energy, in cycles per pixel, from half a cycle per
            filter to 0.5. A narrow patch of grating contains other frequencies too, of which there are more above its
            own than below: the mean is 4 % above it at 1.75 cycles per filter, 20 % at one cycle per filter.

    The last three are NaN for filters of a single pixel.
    """

    norm: Tensor
    colour_selectivity: Tensor
    orientation_selectivity: Tensor
    orientation_degrees: Tensor
    frequency: Tensor

    def gathered(self, lane: Axis) -> "FilterMeasures":
        """Those of all lane devices' filters, in order, alike everywhere; all lane devices must call it."""
        return FilterMeasures(*crossing.leave(torch.stack(list(vars(self).values())), lane).unbind())

    def dead(self, fraction: float = DEAD_FRACTION) -> Tensor:
        """Which filters are zero, or of a norm below ``fraction`` of the median of those that are not; bool [K].

        Ask it of a whole layer, or the median, and so the answer, depends on how filters are spread.
        """
        zero = self.norm == 0
        return zero | (self.norm < fraction * self.norm.where(~zero, math.nan).nanmedian())

    def without_dead(self, fraction: float = DEAD_FRACTION) -> "FilterMeasures":
        """The same, NaN at dead filters, which measure what initialisation has left of noise; the norms stay."""
        dead = self.dead(fraction)
        norm, *others = vars(self).values()
        return FilterMeasures(norm, *(values.masked_fill(dead, math.nan) for values in others))


def filter_measures(weight: Tensor) -> FilterMeasures:
    """Measure the filters of a first layer, each by itself.

    Args:
        weight: [K, 3 or 1, h, w], floating point, any device; of a placed layer's parameter the own part is measured.

    Returns:
        What is measured, on the device of the weight.

    Raises:
        ValueError: these are no finite filters of RGB or grey images.
    """
    part = local(weight.detach())
    assert part is not None
    _check(part)
    filters = part.double()
    largest = filters.abs().amax((1, 2, 3))
    # On one scale, so that squares of very small weights do not vanish. Of zeros all that follows is 0 / 0, NaN.
    filters = filters / largest.where(largest > 0, 1)[:, None, None, None]
    norm = torch.linalg.vector_norm(filters, dim=(1, 2, 3))
    energy, frequencies = spectral_energy(filters)
    selectivity, degrees = orientation_tuning(energy.sum(2))
    mean_frequency = (energy.sum(1) * frequencies).sum(1) / energy.sum((1, 2))
    return FilterMeasures(largest * norm, _chromatic_share(filters), selectivity, degrees, mean_frequency)


def opponent_axes() -> Tensor:
    """Intensity, red-green and blue-yellow as orthonormal directions in RGB, [3 axes, 3 colours], float64.

    Source: the axes of opponent colour spaces, such as equation 2 of van de Sande et al., "Evaluating color descriptors
    for object and scene recognition", PAMI 2010; here the third axis is positive for blue.
    """
    axes = torch.tensor(list(OPPONENT_AXES.values()), dtype=torch.float64)
    return axes / torch.linalg.vector_norm(axes, dim=1, keepdim=True)


def spectral_energy(filters: Tensor) -> tuple[Tensor, Tensor]:
    """Squared size of the Fourier transform of each filter by orientation and frequency, summed over its channels.

    The transform is evaluated at the points of a polar grid, and not by an FFT on a square one: that has corners, where
    there is more of the diagonal orientations. Frequencies below half a cycle per filter are left out: there lies the
    filter's mean, of which gratings tell nothing. (Taking off the mean first would do worse: the rest of a blob that is
    not in the middle then looks like an edge.) Energy is weighted by frequency, as area in the plane of frequencies.

    Args:
        filters: [K, C, h, w], float64.

    Returns:
        Energy [K, orientations, frequencies], and the frequencies in cycles per pixel. The orientations are those of
        bars, as one sees them, counter-clockwise from lying ones and evenly over 180 degrees. A filter of one pixel
        has no energy.
    """
    height, width = filters.shape[2:]
    side = max(height, width)
    if side == 1:
        return filters.new_zeros(len(filters), 1, 1), filters.new_zeros(1)
    number = max(36, 4 * side)  # enough for sums over the grid to be integrals: the energy of 7x7 has 31 harmonics
    low = 0.5 / side
    steps = torch.arange(number, dtype=filters.dtype, device=filters.device)
    frequencies = low + (0.5 - low) * (steps + 0.5) / number
    across = across_bars(number, (height, width), filters.device).flatten(1)  # [orientations, h w]
    phases = 2 * math.pi * across.T[:, :, None] * frequencies  # [h w, orientations, frequencies]
    flat, phases = filters.flatten(0, 1).flatten(1), phases.flatten(1)
    energy = (flat @ phases.cos()).square() + (flat @ phases.sin()).square()
    energy = energy.view(len(filters), -1, number, number).sum(1)
    return energy * frequencies, frequencies


def across_bars(orientations: int, size: tuple[int, int], device: Device = None) -> Tensor:
    """How far each pixel lies from the middle of an image in the direction across bars, in pixels.

    Args:
        orientations: how many, evenly over 180 degrees: bars that lie first, then turned counter-clockwise as one sees
            them, so that those after a quarter of them rise to the right.
        size: (height, width).
        device: where it is made.

    Returns:
        [orientations, height, width], float64.
    """
    bars = torch.arange(orientations, dtype=torch.float64, device=device) * math.pi / orientations
    rows, columns = (torch.arange(side, dtype=torch.float64, device=device) - (side - 1) / 2 for side in size)
    bars = bars[:, None, None]
    return -torch.cos(bars) * rows[:, None] - torch.sin(bars) * columns  # rows count downwards


def orientation_tuning(tuning: Tensor) -> tuple[Tensor, Tensor]:
    """The global orientation selectivity index, and the preferred orientation.

    gOSI = |sum_t R(t) exp(2 i t)| / sum_t R(t), 1 minus the circular variance of Ringach, Shapley and Hawken,
    "Orientation selectivity in macaque V1", J. Neurosci. 2002.

    Args:
        tuning: R >= 0 at orientations evenly over 180 degrees, the first at 0, [..., orientations].

    Returns:
        gOSI [...], 0 to 1, NaN where R is 0 everywhere; and the orientation of that sum [...], 0 to 180 degrees, NaN
        where gOSI is 0 or NaN.
    """
    number = tuning.shape[-1]
    angles = torch.arange(number, dtype=tuning.dtype, device=tuning.device) * 2 * math.pi / number
    lying, standing = (tuning * angles.cos()).sum(-1), (tuning * angles.sin()).sum(-1)
    selectivity = torch.hypot(lying, standing) / tuning.sum(-1)
    degrees = torch.rad2deg(torch.atan2(standing, lying)) / 2 % 180 % 180  # of a hair below 0 the first makes 180
    return selectivity, degrees.where(selectivity > _DIRECTED, math.nan)


def _chromatic_share(filters: Tensor) -> Tensor:
    """[K, C, h, w] -> [K]."""
    if filters.shape[1] == 1:
        return filters[:, 0, 0, 0] * 0 / torch.linalg.vector_norm(filters, dim=(1, 2, 3))
    opponent = torch.einsum("ac, kchw -> kahw", opponent_axes().to(filters.device), filters)
    energy = opponent.square().sum((2, 3))
    return energy[:, 1:].sum(1) / energy.sum(1)


def _check(weight: Tensor) -> None:
    shape = tuple(weight.shape)
    if weight.dim() != 4 or not weight.is_floating_point() or weight.numel() == 0:
        raise ValueError(
            f"{weight.dtype} of shape {shape} is no set of filters: give the weight of a 2-d convolution, "
            "[K, 3 or 1, h, w], floating point"
        )
    if weight.shape[1] not in (1, 3):
        raise ValueError(
            f"filters of shape {shape} read {weight.shape[1]} channels, which have no colour: measure a first layer on "
            "RGB (3) or grey (1) images, and any other by how it answers to images (lanes.analysis.responses)"
        )
    if not weight.isfinite().all():
        bad = weight.numel() - int(weight.isfinite().sum())
        raise ValueError(
            f"{bad} of {weight.numel()} weights are not finite: training has diverged, lower the step size"
        )
