"""How processes become replicas x lane devices, over nodes: chosen, said, and warned of where lanes cross nodes.

Ranks are numbered node by node, and the lane axis is innermost (lanes.mesh): lane devices of a replica are neighbours.
"""

from typing import Any, Literal, Protocol

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lanes.jobs.job import this_job
from lanes.mesh import check_layout, divisors, one_of
from lanes.plans import Plan
from lanes.tracing import PlanError
from lanes.training.rates import MIB
from lanes.training.torchrun import torchrun_layout


class Plannable(Protocol):
    """What a layout asks of the LightningModule that it is for."""

    def plan(self, lane_devices: int) -> Plan:
        """Plan the module's network for a number of lane devices."""


def choose_lane_devices(
    module: Plannable, wanted: int | Literal["auto"], per_node: int, num_nodes: int, *, across_nodes: bool = False
) -> int:
    """The number of lane devices: as asked for, or the most on one node over which the network's lanes divide.

    Args:
        module: what is placed.
        wanted: the number, or "auto".
        per_node: devices on each node.
        num_nodes: nodes.
        across_nodes: whether a replica may have more lane devices than a node has.

    Raises:
        ValueError: the number does not divide the devices, is more than a node has, or the network does not divide over
            it (PlanError).
    """
    if wanted != "auto":
        if per_node < wanted <= per_node * num_nodes and not across_nodes:
            raise ValueError(
                f"{wanted} lane devices are more than a node has, which is {per_node}, and lanes would talk over the "
                f"network at every crossing; use {one_of(divisors(per_node))}, or more devices a node, or say that you "
                "want it: --trainer.strategy.across_nodes true"
            )
        check_layout(wanted, per_node * num_nodes)
        module.plan(wanted)
        return wanted
    for lane_devices in reversed(divisors(per_node)):
        try:
            module.plan(lane_devices)
        except PlanError:
            if lane_devices == 1:
                raise
            continue
        if lane_devices == 1 and per_node > 1:
            rank_zero_warn(
                f"the network's lanes do not divide over {one_of(divisors(per_node)[1:])} lane devices: every device "
                "trains a whole replica"
            )
        return lane_devices
    raise AssertionError("1 divides everything")


def take_layout(trainer: Any) -> None:
    """Let what has started this process, torchrun or a job of SLURM, say on how many devices and nodes is trained.

    Args:
        trainer: the part of the configuration, which says so otherwise; changed in place.

    Raises:
        ValueError: nodes have different numbers of processes.
    """
    if given := torchrun_layout():
        who = "torchrun"
    elif job := this_job():
        who, given = f"job {job.id}", (job.tasks_per_node, job.num_nodes)
    else:
        return
    if str(trainer.devices) not in ("auto", "-1", str(given[0])) or trainer.num_nodes not in (1, given[1]):
        rank_zero_info(
            f"{who} gives {_many(given[1], 'node')} of {_many(given[0], 'device')}, which take the place of "
            f"trainer.devices={trainer.devices}, trainer.num_nodes={trainer.num_nodes}"
        )
    trainer.devices, trainer.num_nodes = given


def say_layout(trainer: Trainer, module: Plannable, lane_devices: int, batch_size: int | None) -> None:
    """On several nodes, say where the lanes of a replica lie; warn of those that talk over the network, and how much.

    Args:
        trainer: which knows nodes and devices.
        module: what is placed.
        lane_devices: of a replica.
        batch_size: images of a replica's step, if it is known.
    """
    per_node, nodes = trainer.num_devices, trainer.num_nodes
    if nodes == 1:
        return
    replicas = per_node * nodes // lane_devices
    layout = f"{_many(nodes, 'node')} of {_many(per_node, 'device')}: {_many(replicas, 'replica')} of "
    layout += _many(lane_devices, "lane device")
    if per_node % lane_devices == 0:
        rank_zero_info(f"{layout}, the lanes of a replica on one node")
        return
    rank_zero_warn(
        f"{layout}; the lanes of a replica lie on several nodes and talk over the network at every crossing: each lane "
        f"device sends {_sent(module.plan(lane_devices), batch_size)}"
    )


def _sent(plan: Plan, batch_size: int | None) -> str:
    if batch_size is None:
        return f"{plan.sent_bytes / MIB:.3f} MiB an image"
    step = plan.sent_bytes * batch_size + sum(layer.sent_step_bytes for layer in plan.layers.values())
    return f"{step / MIB:.1f} MiB a step (of {batch_size} images)"


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"
