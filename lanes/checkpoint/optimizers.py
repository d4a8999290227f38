"""An optimizer's state in a checkpoint: tensors under the parameters' names, settings as JSON."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lanes.checkpoint.manifest import OPTIMIZER


def parameter_names(model: nn.Module) -> dict[int, str]:
    """The name of each parameter, by its id."""
    return {id(parameter): name for name, parameter in model.named_parameters()}


def optimizer_tensors(optimizer: Optimizer, names: dict[int, str]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of an optimizer, named <parameter>.<key>."""
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                yield f"{names[id(parameter)]}.{key}", value


def settings_of(optimizer: Optimizer, names: dict[int, str]) -> dict[str, Any]:
    """What an optimizer holds beside tensors: its groups' settings, and plain values in its state."""
    groups = [{**group, "params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
    values = {
        names[id(parameter)]: {k: v for k, v in state.items() if not isinstance(v, Tensor)}
        for parameter, state in optimizer.state.items()
    }
    return {"type": type(optimizer).__name__, "groups": groups, "values": values}


def check_settings(path: Path, optimizer: Optimizer, settings: dict[str, Any], names: dict[int, str]) -> None:
    """Refuse an optimizer of another kind or over other parameters, before anything is changed."""
    ours = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    theirs = [group["params"] for group in settings["groups"]]
    if settings["type"] != type(optimizer).__name__:
        raise ValueError(f"{path} was written with {settings['type']}, the optimizer is {type(optimizer).__name__}")
    if ours != theirs:
        flat = [[name for group in groups for name in group] for groups in (theirs, ours)]
        first = next((name for name in flat[0] if name not in flat[1]), None)
        what = (
            f"the state of {first!r}, which the optimizer has not"
            if first
            else f"{len(theirs)} groups in another order"
        )
        raise ValueError(f"{path} holds {what}; make the optimizer as it was made for the checkpoint")


def load_settings(optimizer: Optimizer, settings: dict[str, Any], names: dict[int, str]) -> None:
    """Give an optimizer the settings and plain values that `settings_of` had found."""
    for group, saved in zip(optimizer.param_groups, settings["groups"], strict=True):
        group.update({key: value for key, value in saved.items() if key != "params"})
    optimizer.state.clear()
    parameters = {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}
    for name, values in settings["values"].items():
        optimizer.state[parameters[name]].update(values)


def empty_optimizer_tensors(path: Path, model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """Make room in the optimizers for the tensors that the checkpoint holds, laid out like their parameters."""
    if not (path / OPTIMIZER).is_file():
        return {}
    parameters = dict(model.named_parameters())
    owners = {id(p): optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    tensors: dict[str, Tensor] = {}
    with safe_open(path / OPTIMIZER, framework="pt") as opened:
        for full in opened.keys():  # noqa: SIM118
            name, key = full.rsplit(".", 1)
            parameter = parameters[name]
            whole = opened.get_slice(full)
            alike = list(parameter.shape) == whole.get_shape()
            empty = torch.zeros_like(parameter) if alike else opened.get_tensor(full)  # scalars such as Adam's step
            assert isinstance(empty, DTensor | Tensor)
            tensors[full] = owners[id(parameter)].state[parameter][key] = empty.detach()
    return tensors
