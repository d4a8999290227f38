"""Reads checkpoints into models on any layout; refuses before anything is changed."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.optim import Optimizer

from lanes.checkpoint.folders import check_whole
from lanes.checkpoint.manifest import MANIFEST, MODEL, OPTIMIZER, STATE, SUFFIX, shapes
from lanes.checkpoint.optimizers import check_settings, empty_optimizer_tensors, load_settings, parameter_names
from lanes.checkpoint.snapshot import Sets, first
from lanes.statecodec import decode


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
        DamagedError: it is not what was written; names the file, and the newest whole checkpoint beside it.
        ValueError: it is of another format or architecture (names the first difference), or has no such set; the
            model is left as it was.
    """
    path, extra = Path(path), extra or {}
    _verify_together(path)
    document = decode(json.loads((path / STATE).read_text()))
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
            check_settings(path, optimizer, settings, parameter_names(model))
        for optimizer, settings in zip(optimizers, document["optimizers"], strict=True):
            load_settings(optimizer, settings, parameter_names(model))
        tensors |= empty_optimizer_tensors(path, model, optimizers)
    _read(path, tensors, MODEL, OPTIMIZER)
    for name, more in extra.items():
        _read(path, dict(more), name + SUFFIX)
    state: dict[str, Any] = document["state"]
    return state


def check_checkpoint(path: str | Path, model: nn.Module) -> None:
    """Check that a checkpoint can be read into a model (which may be on "meta"), without reading its tensors.

    Raises:
        FileNotFoundError: ``path`` is no checkpoint folder.
        DamagedError: a file is missing or of another size; names the newest whole checkpoint beside it.
        ValueError: it is of another format or architecture; names the first difference.
    """
    check_whole(Path(path), thorough=False)
    _check_architecture(Path(path), dict(model.state_dict()))


def is_checkpoint(path: str | Path) -> bool:
    """Whether ``path`` is a folder that :func:`save_checkpoint` wrote."""
    return (Path(path) / MANIFEST).is_file() and (Path(path) / MODEL).is_file()


def extra_sets(path: str | Path) -> list[str]:
    """The names of the sets of tensors that a checkpoint holds beside the model's and the optimizers'."""
    files = sorted(file for file in Path(path).glob(f"*{SUFFIX}") if file.name not in (MODEL, OPTIMIZER))
    return [file.name.removesuffix(SUFFIX) for file in files]


def _verify_together(path: Path) -> None:
    """The first process reads all of it; every process gets its answer."""
    problem: list[Exception | None] = [None]
    if first():
        try:
            check_whole(path)
        except (ValueError, OSError) as mistake:
            problem = [mistake]
    if dist.is_initialized():
        dist.broadcast_object_list(problem, src=0)
    if problem[0] is not None:
        raise problem[0]


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
