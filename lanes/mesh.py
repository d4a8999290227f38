"""The ("data", "lane") mesh, who holds which lanes, and the random streams.

Every process drives one device. The lane axis is innermost, so that the lane devices of one replica are neighbours
(one node, one NVLink island). Kept out: what is sent between them (crossing.py) and where weights go (placement.py).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lanes.words import one_of

DATA_AXIS = "data"
LANE_AXIS = "lane"


@dataclass(frozen=True)
class Axis:
    """One process's place on one axis of the mesh.

    Attributes:
        group: the processes along this axis that share all other coordinates.
        size: how many they are (D on the lane axis, the number of replicas on the data axis).
        index: which of them this process is.
    """

    group: dist.ProcessGroup
    size: int
    index: int

    def __deepcopy__(self, memo: object) -> "Axis":
        return self  # a copied model runs on the same processes

    def own(self, size: int) -> slice:
        """The part of ``size`` channels that this process holds, as a slice along the channel dimension."""
        assert size % self.size == 0, f"{size} channels over {self.size} devices"
        return slice(self.index * size // self.size, (self.index + 1) * size // self.size)


def divisors(number: int) -> list[int]:
    """All divisors of ``number``, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


def check_lane_devices(lane_devices: int) -> None:
    """Refuse what is no number of lane devices.

    Raises:
        ValueError: names what was given.
    """
    if type(lane_devices) is not int or lane_devices < 1:
        raise ValueError(f"lane_devices must be a whole number of at least 1, got {lane_devices!r}")


def check_layout(lane_devices: int, processes: int) -> None:
    """Refuse a number of lane devices that does not divide the number of processes.

    Raises:
        ValueError: names both numbers and the numbers of lane devices that work.
    """
    check_lane_devices(lane_devices)
    if processes % lane_devices != 0:
        plural = "s" if processes > 1 else ""
        raise ValueError(
            f"{lane_devices} lane devices do not divide {processes} device{plural}; use {one_of(divisors(processes))} "
            f"lane device{plural}, or a multiple of {lane_devices} devices"
        )


def init_mesh(lane_devices: int | None = None, *, device_type: str | None = None) -> DeviceMesh:
    """Make the mesh of all processes: replicas x lane devices.

    Starts the process group if nobody has: from the environment that ``torchrun`` sets, or of this process alone.

    Args:
        lane_devices: D, the devices over which the lanes of one replica are spread; all processes by default.
        device_type: "cuda" or "cpu"; "cuda" where there is one by default.

    Returns:
        A ``DeviceMesh`` with axes ("data", "lane") of sizes (processes / D, D).

    Raises:
        ValueError: if ``lane_devices`` does not divide the number of processes, or these cannot find one another.
    """
    if device_type is None:
        device_type = "cuda" if torch.cuda.is_available() else "cpu"
    started = dist.is_initialized()
    environment = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if not started and not environment and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise ValueError(
            "srun started several processes, but none knows the others; start them by torchrun or lanes fit"
        )
    processes = dist.get_world_size() if started else int(os.environ["WORLD_SIZE"]) if environment else 1
    lane_devices = processes if lane_devices is None else lane_devices
    check_layout(lane_devices, processes)
    if device_type == "cuda" and not started:  # who started the processes chose their devices
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not started and not environment:
        backend = "nccl" if device_type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return init_device_mesh(
        device_type, (processes // lane_devices, lane_devices), mesh_dim_names=(DATA_AXIS, LANE_AXIS)
    )


def axis(mesh: DeviceMesh, name: str) -> Axis:
    """This process's place on the axis ``name`` of a mesh of :func:`init_mesh`.

    Raises:
        ValueError: if the mesh's axes are not ("data", "lane").
    """
    if mesh.mesh_dim_names != (DATA_AXIS, LANE_AXIS):
        raise ValueError(f"the mesh has axes {mesh.mesh_dim_names}, not ('data', 'lane'); make it with lanes.init_mesh")
    size = mesh.size((DATA_AXIS, LANE_AXIS).index(name))  # mesh[name] would make another mesh, each time
    return Axis(mesh.get_group(name), size, mesh.get_local_rank(name))


def replica_seed(seed: int, replica: int, *point: int) -> int:
    """The seed of one replica's random stream at a point of training, such as (epoch, step): all unrelated."""
    point = point or (0,)
    return int(numpy.random.SeedSequence(seed, spawn_key=(replica, *point)).generate_state(1, numpy.uint64)[0] >> 1)


def seed_replica(mesh: DeviceMesh, seed: int, *point: int) -> None:
    """Start the random stream of this process's replica, at a point of training such as (epoch, step).

    The stream is torch's default generator: all lane devices of a replica draw the same numbers from it, at the plain
    model's shapes, and keep their channels' part, so masks and augmentation do not depend on how lanes are spread.
    """
    torch.manual_seed(replica_seed(seed, axis(mesh, DATA_AXIS).index, *point))


def check_alike(along: Axis, tensors: Sequence[Tensor], what: str) -> None:
    """Check that all processes along an axis hold the same tensors, and stand at the same point of their random stream.

    Raises:
        ValueError: names what differs and the processes.
    """
    device = tensors[0].device
    streams = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    numbers = torch.tensor([*digest(*tensors), *digest(*streams)], device=device)
    everyone = [torch.empty_like(numbers) for _ in range(along.size)]
    dist.all_gather(everyone, numbers, group=along.group)
    for index, other in enumerate(everyone):
        if not torch.equal(other, everyone[0]):
            part = (
                what if not torch.equal(other[: 2 * len(tensors)], everyone[0][: 2 * len(tensors)]) else "random stream"
            )
            raise ValueError(
                f"lane devices 0 and {index} of a replica differ in their {part}; read data and draw random numbers "
                "alike on every process"
            )


def digest(*tensors: Tensor) -> tuple[int, ...]:
    """Numbers by which processes compare tensors without sending them: two for each, of its bits.

    Whole numbers, modulo 2^64: a sum of floats depends on where in memory the tensor begins, by a last digit.
    """
    numbers: list[int] = []
    for tensor in tensors:
        bits = tensor.detach().flatten().view(_BITS.get(tensor.element_size(), torch.int64))
        sums = torch.zeros(2, dtype=torch.int64, device=tensor.device)
        for start in range(0, len(bits), _DIGESTED):  # in parts: a large layer's copy is larger still
            part = bits[start : start + _DIGESTED].long()
            places = torch.arange(start, start + len(part), device=part.device)
            sums += torch.stack([part.sum(), (part * (2 * places + 1)).sum()])
        numbers += sums.tolist()
    return tuple(numbers)


_DIGESTED = 2**20  # elements at a time
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32}  # by bytes of an element
