"""What torchrun has started: so many processes on so many nodes, which may be others after a restart.

Kept out: how they become replicas and lane devices (strategy.py).
"""

import os
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info


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


def take_torchrun_layout(trainer: Any) -> None:
    """Let torchrun say on how many devices and nodes is trained, whatever the configuration says.

    Args:
        trainer: the part of the configuration; changed in place.
    """
    if not (given := torchrun_layout()):
        return
    if (trainer.devices, trainer.num_nodes) != given and trainer.devices not in ("auto", -1, "-1"):
        rank_zero_info(
            f"torchrun has started {given[0]} processes on each of {given[1]} nodes, which take the place of "
            f"trainer.devices={trainer.devices}, trainer.num_nodes={trainer.num_nodes}"
        )
    trainer.devices, trainer.num_nodes = given
