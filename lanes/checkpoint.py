"""Checkpoints in the plain model's names and shapes, whatever the layout that wrote them.

A checkpoint is a folder::

    model.safetensors      parameters and buffers: the plain model's state_dict
    optimizer.safetensors  optimizer tensors, named <parameter>.<key>, e.g. conv1.weight.momentum_buffer
    <name>.safetensors     further sets of tensors that the caller keeps, e.g. "average": the averaged weights
    state.json             everything else: learning rates, counters, the caller's state, the layout, versions

The first process writes; ``torch.distributed.checkpoint`` reads, on any layout, each process just its own slices. (Its
writer joins the parts of torch 2.13 wrongly: it refuses integers and writes tensors without dimensions as zero.)
Nothing is pickled. The folder appears under its name only when it is whole.
"""

import importlib.metadata
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lanes.statecodec import decode, encode

FORMAT = "lanes-checkpoint/1"
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
SUFFIX = ".safetensors"

Sets = Mapping[str, Mapping[str, Tensor]]


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    optimizers: Sequence[Optimizer] = (),
    state: dict[str, Any] | None = None,
    *,
    extra: Sets | None = None,
) -> None:
    """Write a checkpoint folder. All processes of the mesh must call it, with the same path on a shared file system.

    Args:
        path: the folder; an earlier checkpoint of that name is replaced once the new one is whole.
        model: placed or plain.
        optimizers: whose tensors and settings are saved too.
        state: plain values and small tensors to get back from :func:`load_checkpoint`.
        extra: further sets of tensors, DTensors or plain, by the name of the set; each becomes a file.

    Raises:
        TypeError: names the value in ``state`` that JSON cannot hold; nothing is written.
        ValueError: a set in ``extra`` has the name of a file that every checkpoint has; nothing is written.
    """
    path, extra = Path(path), extra or {}
    for name in extra:
        if name + SUFFIX in (MODEL, OPTIMIZER) or Path(name).name != name:
            raise ValueError(f"a set of tensors in a checkpoint cannot be called {name!r}; give it another name")
    tensors, names = dict(model.state_dict()), _names(model)
    settings = [_settings(optimizer, names) for optimizer in optimizers]
    momenta = {key: t for optimizer in optimizers for key, t in _optimizer_tensors(optimizer, names)}
    versions = {package: importlib.metadata.version(package) for package in ("lanes", "torch", "lightning")}
    document = {"format": FORMAT, "versions": versions, "optimizers": settings, "state": state or {}}
    text = json.dumps(encode(document), indent=1)
    whole = {MODEL: _whole(tensors), OPTIMIZER: _whole(momenta)}
    whole |= {name + SUFFIX: _whole(more) for name, more in extra.items()}
    if _first():
        partial = path.with_name(f".{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for file, contents in whole.items():
            if contents:
                save_file(contents, partial / file)
        (partial / STATE).write_text(text)
        _replace(path, partial)
    if dist.is_initialized():
        dist.barrier()


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All of every tensor, on the first process's host, gathered one at a time; nothing on the others."""
    whole = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if _first():
            whole[name] = full.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return whole


def load_checkpoint(
    path: str | Path, model: nn.Module, optimizers: Sequence[Optimizer] = (), *, extra: Sets | None = None
) -> dict[str, Any]:
    """Read a checkpoint into a model on any layout, placed or plain; all processes must call it.

    Args:
        path: a folder that :func:`save_checkpoint` wrote.
        model: its parameters and buffers are overwritten.
        optimizers: as many as were saved, over the same parameters; their state is overwritten. None: weights only.
        extra: sets of tensors that the checkpoint holds (:func:`extra_sets`); they are overwritten.

    Returns:
        The ``state`` that was given to :func:`save_checkpoint`.

    Raises:
        FileNotFoundError: ``path`` is no checkpoint folder.
        ValueError: it is of another format or architecture (names the first difference), or has no such set; the
            model is left as it was.
    """
    path, extra = Path(path), extra or {}
    document = _read_document(path)
    tensors = dict(model.state_dict())
    _check_architecture(path, tensors)
    for name, more in extra.items():
        if name not in extra_sets(path):
            raise ValueError(f"{path} holds no tensors {name!r}; it holds {', '.join(extra_sets(path)) or 'none'}")
        _check_architecture(path, more, name + SUFFIX)
    if optimizers:
        if len(document["optimizers"]) != len(optimizers):
            raise ValueError(
                f"{path} holds the state of {len(document['optimizers'])} optimizers, not {len(optimizers)}"
            )
        for optimizer, settings in zip(optimizers, document["optimizers"], strict=True):
            _check_settings(path, optimizer, settings, _names(model))
        for optimizer, settings in zip(optimizers, document["optimizers"], strict=True):
            _load_settings(optimizer, settings, _names(model))
        tensors |= _empty_optimizer_tensors(path, model, optimizers)
    _read(path, tensors, MODEL, OPTIMIZER)
    for name, more in extra.items():
        _read(path, dict(more), name + SUFFIX)
    state: dict[str, Any] = document["state"]
    return state


def check_checkpoint(path: str | Path, model: nn.Module) -> None:
    """Check that a checkpoint can be read into a model (which may be on "meta"), without reading its tensors.

    Raises:
        FileNotFoundError: ``path`` is no checkpoint folder.
        ValueError: it is of another format or architecture; names the first difference.
    """
    _read_document(Path(path))
    _check_architecture(Path(path), dict(model.state_dict()))


def is_checkpoint(path: str | Path) -> bool:
    """Whether ``path`` is a folder that :func:`save_checkpoint` wrote."""
    return (Path(path) / STATE).is_file() and (Path(path) / MODEL).is_file()


def extra_sets(path: str | Path) -> list[str]:
    """The names of the sets of tensors that a checkpoint holds beside the model's and the optimizers'."""
    files = sorted(file for file in Path(path).glob(f"*{SUFFIX}") if file.name not in (MODEL, OPTIMIZER))
    return [file.name.removesuffix(SUFFIX) for file in files]


class _Files(FileSystem):
    """Shows some of a folder's files: the reader takes all that it sees for one set of tensors, and names repeat."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def ls(self, path: str | os.PathLike) -> list[str]:
        return [str(Path(path) / name) for name in self.names if (Path(path) / name).is_file()]


def _read(path: Path, tensors: dict[str, Tensor], *files: str) -> None:
    """Overwrite tensors by those of their names in some files of a folder, each process its own slices."""
    reader = HuggingFaceStorageReader(str(path))
    reader.fs = _Files(*files)
    with _quiet():
        dcp.load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())


@contextmanager
def _quiet() -> Iterator[None]:
    """A single process is what was asked for; torch need not warn of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _replace(path: Path, new: Path) -> None:
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _read_document(path: Path) -> dict[str, Any]:
    if not is_checkpoint(path):
        raise FileNotFoundError(f"{path} is no checkpoint: a folder with {MODEL} and {STATE} is expected")
    document = decode(json.loads((path / STATE).read_text()))
    if document.get("format") != FORMAT:
        raise ValueError(f"{path} has the format {document.get('format')!r}; this version reads {FORMAT!r}")
    return document


def shapes(file: Path) -> dict[str, list[int]]:
    """The shapes of the tensors in a safetensors file, by name; reads nothing else of it."""
    with safe_open(file, framework="pt") as opened:
        return {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118


def _check_architecture(path: Path, tensors: Mapping[str, Tensor], file: str = MODEL) -> None:
    saved = shapes(path / file)
    problem = None
    for name, tensor in tensors.items():
        if name not in saved:
            problem = f"it has no {name!r}, which the model has"
        elif saved[name] != list(tensor.shape):
            problem = f"{name!r} is {saved[name]} in it and {list(tensor.shape)} in the model"
        if problem:
            break
    else:
        extra = next((name for name in saved if name not in tensors), None)
        problem = f"it has {extra!r}, which the model has not" if extra else None
    if problem:
        raise ValueError(
            f"{path} is a checkpoint of another architecture: {problem}; use the config it was trained with"
        )


def _names(model: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}


def _optimizer_tensors(optimizer: Optimizer, names: dict[int, str]) -> Iterator[tuple[str, Tensor]]:
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                yield f"{names[id(parameter)]}.{key}", value


def _settings(optimizer: Optimizer, names: dict[int, str]) -> dict[str, Any]:
    """What an optimizer holds beside tensors: its groups' settings, and plain values in its state."""
    groups = [{**group, "params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
    values = {
        names[id(parameter)]: {k: v for k, v in state.items() if not isinstance(v, Tensor)}
        for parameter, state in optimizer.state.items()
    }
    return {"type": type(optimizer).__name__, "groups": groups, "values": values}


def _check_settings(path: Path, optimizer: Optimizer, settings: dict[str, Any], names: dict[int, str]) -> None:
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


def _load_settings(optimizer: Optimizer, settings: dict[str, Any], names: dict[int, str]) -> None:
    for group, saved in zip(optimizer.param_groups, settings["groups"], strict=True):
        group.update({key: value for key, value in saved.items() if key != "params"})
    optimizer.state.clear()
    parameters = {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}
    for name, values in settings["values"].items():
        optimizer.state[parameters[name]].update(values)


def _empty_optimizer_tensors(path: Path, model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
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
