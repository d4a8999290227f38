"""Counts what a process sends, at the level of PyTorch's collectives: independent of crossing.py, so it can check."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from lanes.mesh import Axis


class Traffic(TorchDispatchMode):
    """Count what this process sends to the others of one axis while the context is open, forward and backward.

    Args:
        lane: the axis whose collectives are counted; others (the data axis) are not.

    Attributes:
        calls: number of collectives by name ("all_gather", "reduce_scatter", "all_reduce", "all_to_all").
        sent_bytes: bytes sent by this device, by the same names.
    """

    def __init__(self, lane: Axis) -> None:
        super().__init__()
        self.lane = lane
        self.calls: Counter[str] = Counter()
        self.sent_bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        counted = _COLLECTIVES.get(func.name()) if func.namespace == "c10d" else None
        if counted is not None and _group_name(args) == self.lane.group.group_name:
            name, sent = counted
            self.calls[name] += 1
            self.sent_bytes[name] += sent(args, self.lane)
        elif func.namespace == "c10d" and counted is None and func.name() not in _SILENT:
            raise NotImplementedError(f"cannot count the bytes of {func.name()}")
        return func(*args, **(kwargs or {}))


def _group_name(args: Sequence[Any]) -> str:
    boxed = next(a for a in args if isinstance(a, torch.ScriptObject) and "ProcessGroup" in str(a._type()))
    return dist.ProcessGroup.unbox(boxed).group_name


def _sent_by_all_to_all(args: Sequence[Any], lane: Axis) -> int:
    sent, splits = args[1], args[4]
    staying = splits[lane.index] / len(sent) if splits and len(sent) else 1 / lane.size
    return round(sent.nbytes * (1 - staying))


_Sent = Callable[[Sequence[Any], Axis], int]
_COLLECTIVES: dict[str, tuple[str, _Sent]] = {
    "c10d::_allgather_base_": ("all_gather", lambda a, lane: a[1].nbytes * (lane.size - 1)),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", lambda a, lane: a[0].nbytes * (lane.size - 1)),
    "c10d::allreduce_": ("all_reduce", lambda a, lane: 2 * a[0][0].nbytes * (lane.size - 1) // lane.size),
    "c10d::alltoall_base_": ("all_to_all", _sent_by_all_to_all),
}
_SILENT = {"c10d::barrier"}
