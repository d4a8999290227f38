"""What torchrun has started: so many processes on so many nodes, which may be others after a restart.

Kept out: how they become replicas and lane devices (layout.py).
"""

import os
from collections.abc import Mapping


def torchrun_layout(environment: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """Processes on each node, and nodes; None if this process was not started by torchrun.

    Raises:
        ValueError: nodes have different numbers of processes.
    """
    if "TORCHELASTIC_RUN_ID" not in environment or "LOCAL_WORLD_SIZE" not in environment:
        return None
    world, here, nodes = (int(environment[name]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"))
    if world != here * nodes:
        raise ValueError(
            f"torchrun has started {world} processes on {nodes} nodes, {here} of them on this one: give every node the "
            "same --nproc-per-node, so that the lanes of a replica find the same place on each"
        )
    return here, nodes
