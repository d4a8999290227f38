"""What several processes hold alike is compared before a checkpoint is written, and who holds something else is named.

Replicas hold the same parameters, optimizer tensors and (averaged) statistics; lane devices hold alike what is not
divided over them. Each process sends one number for each tensor, in one collective. Kept out: batches (agreement.py).
"""

import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lanes.checkpoint.optimizers import optimizer_tensors, parameter_names
from lanes.faults.agreement import UnlikeError
from lanes.layers import local

Newest = Callable[[], tuple[Path | None, list[str]]]


def check_equal(
    model: nn.Module,
    optimizers: Sequence[Optimizer] = (),
    extra: Mapping[str, Mapping[str, Tensor]] | None = None,
    *,
    mesh: DeviceMesh,
    step: int,
    newest: Newest,
) -> None:
    """Compare all tensors of a checkpoint among those who hold them; all processes of the mesh must call it.

    Any bit that flipped in one of the holders is found; what is in other places in one of them, but the same numbers,
    is not. Costs the time to read the tensors once, and an all-gather of 8 bytes for each.

    Args:
        model: placed, its statistics averaged.
        optimizers: of its parameters.
        extra: further sets of tensors.
        mesh: of all processes.
        step: at which training stands.
        newest: finds the newest whole checkpoint on all processes; called if something differs.

    Raises:
        UnlikeError: on all processes; names the tensor, the lane device, who holds something else, and the way out.
    """
    names = parameter_names(model)
    tensors = dict(model.state_dict())
    tensors |= {key: tensor for optimizer in optimizers for key, tensor in optimizer_tensors(optimizer, names)}
    tensors |= {f"{key} ({kept})": tensor for kept, more in (extra or {}).items() for key, tensor in more.items()}
    if not tensors:
        return
    sums = torch.stack([sum_of_bits(tensor) for tensor in tensors.values()])
    answers = [torch.empty_like(sums) for _ in range(mesh.size())]
    dist.all_gather(answers, sums)
    ranks = mesh.mesh  # [replicas, lane devices]
    everyone = torch.stack(answers).cpu()[ranks]  # [replicas, lane devices, tensors]
    whole = torch.tensor([_alike_on_lanes(tensor) for tensor in tensors.values()])
    if (everyone == torch.where(whole, everyone[:1, :1], everyone[:1])).all():
        return
    problem = _in_words(list(tensors), whole.tolist(), everyone, ranks, _hosts())
    found, _ = newest()
    way_out = f"go on from {found}" if found else "there is no whole checkpoint to go on from: begin anew"
    raise UnlikeError(f"step {step}: no checkpoint is written: {problem}; {way_out}")


def sum_of_bits(tensor: Tensor) -> Tensor:
    """A number by which processes compare what they hold: the sum of its bytes, eight at a time, modulo 2^64.

    Int64, without dimensions, on the tensor's device: nobody waits for it. A flipped bit changes it, always. (Sums of
    narrower whole numbers convert first, which takes a CPU thirty times as long; `lanes.mesh.digest`, which tells also
    what stands in another place, a hundred times.)
    """
    part = local(tensor.detach())
    assert part is not None
    flat = part.flatten()
    if flat.storage_offset() * flat.element_size() % 8:
        flat = flat.clone()
    data = flat.view(torch.uint8)
    words = len(data) // 8 * 8
    return data[:words].view(torch.int64).sum() + data[words:].sum(dtype=torch.int64)


def _alike_on_lanes(tensor: Tensor) -> bool:
    """Whether all lane devices hold the same."""
    return not isinstance(tensor, DTensor) or tensor.placements[-1].is_replicate()


def _hosts() -> list[str]:
    hosts = [""] * dist.get_world_size()
    dist.all_gather_object(hosts, socket.gethostname())
    return hosts


def _in_words(names: list[str], whole: list[bool], everyone: Tensor, ranks: Tensor, hosts: Sequence[str]) -> str:
    """What differs, where, and who is to blame, if a majority tells."""
    told: list[tuple[bool, str]] = []
    different = 0
    for place, name in enumerate(names):
        held = everyone[..., place]
        columns = [slice(None)] if whole[place] else [slice(lane, lane + 1) for lane in range(held.shape[1])]
        unlike = [column for column in columns if len(held[:, column].unique()) > 1]
        different += bool(unlike)
        for column in unlike:
            where = "" if whole[place] else f" on lane device {column.start}"
            holders = list(zip(ranks[:, column].flatten().tolist(), held[:, column].flatten().tolist(), strict=True))
            known, who = _culprits(holders, ranks, hosts)
            told.append((not known, f"{name}{where} is not the same everywhere: {who}"))
    first = min(told, key=lambda one: one[0])[1]  # where the culprit is known
    more = f" (and {different - 1} more tensor{'s differ' if different > 2 else ' differs'})" if different > 1 else ""
    return first + more


def _culprits(holders: list[tuple[int, int]], ranks: Tensor, hosts: Sequence[str]) -> tuple[bool, str]:
    """Who differs from the majority; or who holds what, if there is none.

    Args:
        holders: rank and number of each process that should hold the same.
        ranks: of the mesh.
        hosts: of each rank.

    Returns:
        Whether a majority tells, and the words.
    """
    ((common, votes), *_) = Counter(number for _, number in holders).most_common(1)
    known = 2 * votes > len(holders)
    named = [rank for rank, number in holders if not known or number != common]
    who = " and ".join(_named(rank, ranks, hosts) for rank in named)
    if known:
        return True, f"{who} hold{'s' if len(named) == 1 else ''} something else than the {votes} others"
    return False, f"{who} differ, and there is no majority to tell who is right"


def _named(rank: int, ranks: Tensor, hosts: Sequence[str]) -> str:
    replica, lane = (ranks == rank).nonzero()[0].tolist()
    return f"rank {rank} (lane device {lane} of replica {replica}, on {hosts[rank]})"
