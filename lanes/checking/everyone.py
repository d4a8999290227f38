"""Small numbers of every process, known to all."""

from torch import Tensor

from lanes import crossing
from lanes.mesh import DATA_AXIS, LANE_AXIS, DeviceMesh, axis


def from_everyone(value: Tensor, mesh: DeviceMesh) -> Tensor:
    """A small tensor of each process, [...] -> [R, D, ...]; all processes must call it. Values must not be NaN."""
    lane, data = axis(mesh, LANE_AXIS), axis(mesh, DATA_AXIS)
    rows = value.new_zeros(data.size, lane.size, value.numel())
    rows[data.index, lane.index] = value.flatten()
    return crossing.sum(crossing.sum(rows.flatten(), lane), data).view(data.size, lane.size, *value.shape)
