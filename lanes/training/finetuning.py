"""Starting from plain weights: a safetensors file, or one of our checkpoints, into the plain network before placing.

Kept out: resuming a training (checkpoint.py), which also brings back the optimizer.
"""

import shlex
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info
from safetensors import safe_open
from torch import Tensor, nn

from lanes.checkpoint import MANIFEST, MODEL, DamagedError, check_file, read_manifest, shapes
from lanes.training.averaging import WeightAverage
from lanes.words import near

_PICKLED = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar"}


def check_weights(net: nn.Module, path: str | Path, skip: Sequence[str] = ()) -> None:
    """Check that a file's weights fit a network (which may be on "meta"), and are what was written, of a checkpoint.

    Args:
        net: the plain network.
        path: a ``.safetensors`` file in its names and shapes, or a checkpoint folder: of it the averaged weights, which
            are those that were evaluated, if there are any.
        skip: patterns of names (``fnmatch``) that keep their fresh initialisation, and are not missed in the file.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedError: the checkpoint's file is not what was written; names the newest whole checkpoint beside it.
        ValueError: the checkpoint is of another format; or the file is pickled, or no safetensors file; or a name is
            missing, too many or of another shape (names the first); or a pattern matches nothing.
    """
    _names_to_load(net.state_dict(), _file_of(path), skip)


def load_weights(net: nn.Module, path: str | Path, skip: Sequence[str] = ()) -> None:
    """Overwrite a plain network's parameters and buffers by those of a file.

    Arguments and errors are those of :func:`check_weights`, and:

    Raises:
        ValueError: the network was built on "meta"; placing would initialise it after this.
    """
    tensors = net.state_dict()
    if any(tensor.is_meta for tensor in tensors.values()):
        raise ValueError("init_from needs a network built on the CPU, this one is on 'meta'; build it without a device")
    file = _file_of(path)
    names = _names_to_load(tensors, file, skip)
    with safe_open(file, framework="pt") as opened, torch.no_grad():
        for name in names:
            tensors[name].copy_(opened.get_tensor(name))
    fresh = [name for name in tensors if name not in names]
    rank_zero_info(f"init_from: {len(names)} tensors of {file}" + (f"; fresh: {', '.join(fresh)}" if fresh else ""))


def _file_of(path: str | Path) -> Path:
    path = Path(path)
    if (path / MANIFEST).is_file() or (path / MODEL).is_file():
        return _file_of_checkpoint(path)
    if not path.is_file():
        raise FileNotFoundError(f"init_from: {path} is neither a .safetensors file nor a checkpoint folder")
    if path.suffix in _PICKLED:
        convert = (
            "import sys, torch, safetensors.torch as s; "
            "s.save_file({k: v.clone().contiguous() for k, v in torch.load(sys.argv[1], weights_only=True).items()}, "
            "sys.argv[2])"
        )
        command = shlex.join(["python", "-c", convert, str(path), str(path.with_suffix(".safetensors"))])
        raise ValueError(
            f"init_from: {path} is pickled, which can run anything; convert its state_dict once: {command}"
        )
    check_file(path)
    return path


def _file_of_checkpoint(path: Path) -> Path:
    if not (path / MANIFEST).is_file():
        raise DamagedError(
            f"init_from: {path} is no whole checkpoint: it has no {MANIFEST}, which is written last; if its weights "
            f"are good all the same, or not from lanes, give {path / MODEL}"
        )
    average = f"{WeightAverage.checkpoint_set}.safetensors"
    file = path / (average if average in read_manifest(path)["files"] else MODEL)
    check_file(file)
    return file


def _names_to_load(tensors: Mapping[str, Tensor], file: Path, skip: Sequence[str]) -> list[str]:
    try:
        saved = shapes(file)
    except Exception as error:  # safetensors' own errors have no common name
        raise ValueError(f"init_from: {file} is no safetensors file: {error}") from error
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for name in (*tensors, *saved)):
            raise ValueError(f"init_skip: no parameter matches {pattern!r}{near(pattern, tensors)}")
    wanted = [name for name in tensors if not any(fnmatchcase(name, pattern) for pattern in skip)]
    extra = [name for name in saved if name not in tensors and not any(fnmatchcase(name, p) for p in skip)]
    for name in wanted:
        if name not in saved:
            raise _mismatch(file, name, f"it has no {name!r}, which the network has{near(name, extra)}")
        if saved[name] != list(tensors[name].shape):
            raise _mismatch(
                file, name, f"{name!r} is {saved[name]} in it and {list(tensors[name].shape)} in the network"
            )
    if extra:
        raise _mismatch(file, extra[0], f"it has {extra[0]!r}, which the network has not")
    if not wanted:
        raise ValueError(f"init_from: init_skip={list(skip)} leaves nothing of {file} to start from")
    return wanted


def _mismatch(file: Path, name: str, what: str) -> ValueError:
    layer = name.rsplit(".", 1)[0]
    return ValueError(
        f"init_from: {file} does not fit the network: {what}; if the layer shall start afresh: init_skip: ['{layer}.*']"
    )
