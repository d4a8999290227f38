"""The group of all processes, once they have met.

Lightning and torch would wait for those that do not come for half an hour, and not say for whom.
"""

import atexit
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from lanes.network.meeting import meet, place_of


def start_group(
    environment: Any,
    backend: str,
    device: torch.device,
    *,
    rendezvous_timeout_s: float,
    timeout: timedelta | None = None,
) -> None:
    """Meet the other processes and make the default group; all of them must call it.

    Args:
        environment: of Lightning; says where this process is among the others.
        backend: "gloo" or "nccl".
        device: of this process.
        rendezvous_timeout_s: how long to wait for the others.
        timeout: of an exchange; the backend's own by default.

    Raises:
        MeetingError: names the value, or who is missing, and the way out.
    """
    place = place_of(environment)
    store = meet(place, backend, rendezvous_timeout_s)
    store.set_timeout(timeout or dist.default_pg_timeout)
    on = device if device.type != "cpu" else None
    dist.init_process_group(
        backend, store=store, rank=place.rank, world_size=place.world, timeout=timeout, device_id=on
    )
    if backend == "nccl":
        atexit.register(_end_group)


def _end_group() -> None:
    """NCCL warns of a group that is left behind."""
    if dist.is_initialized():
        dist.destroy_process_group()
