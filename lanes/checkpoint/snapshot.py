"""All of a checkpoint in the first process's memory: what is copied off the devices before anything is written."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lanes.checkpoint.manifest import MODEL, OPTIMIZER, SUFFIX
from lanes.checkpoint.optimizers import optimizer_tensors, parameter_names, settings_of
from lanes.statecodec import encode

Sets = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Snapshot:
    """What will be the files of a checkpoint.

    Attributes:
        state: text of ``state.json``.
        about: facts for the manifest.
        tensors: file name -> name -> tensor, whole, on the CPU, shared with nobody; empty but on the first process.
    """

    state: str
    about: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def take_snapshot(
    model: nn.Module,
    optimizers: Sequence[Optimizer] = (),
    state: dict[str, Any] | None = None,
    *,
    extra: Sets | None = None,
    about: Mapping[str, Any] | None = None,
) -> Snapshot:
    """Copy everything that `lanes.save_checkpoint` writes off the devices; all processes of the mesh must call it.

    Raises:
        TypeError: names the value in ``state`` or ``about`` that JSON cannot hold.
        ValueError: a set in ``extra`` has the name of a file that every checkpoint has.
    """
    extra = extra or {}
    for name in extra:
        if name + SUFFIX in (MODEL, OPTIMIZER) or Path(name).name != name:
            raise ValueError(f"a set of tensors in a checkpoint cannot be called {name!r}; give it another name")
    names = parameter_names(model)
    document = {"optimizers": [settings_of(optimizer, names) for optimizer in optimizers], "state": state or {}}
    text = json.dumps(encode(document), indent=1)
    facts = {
        "step": (state or {}).get("global_step"),
        "layout": _layout(model.parameters()),
        **encode(dict(about or {})),
    }
    momenta = {key: t for optimizer in optimizers for key, t in optimizer_tensors(optimizer, names)}
    sets = {MODEL: dict(model.state_dict()), OPTIMIZER: momenta} | {name + SUFFIX: dict(s) for name, s in extra.items()}
    return Snapshot(text, facts, {file: whole for file, tensors in sets.items() if (whole := _whole(tensors))})


def first() -> bool:
    """Whether this is the process that writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All of every tensor, on the first process's host, gathered one at a time; nothing on the others."""
    whole = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if first():
            whole[name] = full.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return whole


def _layout(parameters: Iterable[Tensor]) -> dict[str, int]:
    """The mesh, as the parameters' own tell it."""
    sizes = next((p.device_mesh.shape for p in parameters if isinstance(p, DTensor)), (1, 1))
    return {"replicas": sizes[0], "lane_devices": sizes[1]}
