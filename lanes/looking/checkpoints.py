"""Which weights are meant, and the filters in them: a checkpoint, a training's folder, any PyTorch model's file.

Nothing that a file contains is ever run. Kept out: which layer is looked at.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lanes.checkpoint import MANIFEST, MODEL, STATE, SUFFIX, check_file, is_checkpoint
from lanes.statecodec import decode
from lanes.words import near

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".tar")
WEIGHT = ".weight"
WANTED = "give a checkpoint's folder, a training's folder, a .safetensors file or a state dict (.pt, .pth)"


@dataclass(frozen=True)
class Weights:
    """A file of weights.

    Attributes:
        file: it.
        place: what a person would call it: the checkpoint's folder, or the file.
        remark: why this one, where there was a choice; else "".
    """

    file: Path
    place: Path
    remark: str = ""


def find_weights(place: str | Path) -> Weights:
    """The weights that a path means.

    Args:
        place: a checkpoint's folder; the folder of a training, of which the best checkpoint is taken, else the last; a
            ``.safetensors`` file, or a state dict that ``torch.save`` wrote.

    Raises:
        ValueError: there are none, or they are no longer what was written; says what to give.
    """
    weights = _find_weights(Path(place))
    check_file(weights.file)
    return weights


def _find_weights(place: Path) -> Weights:
    if not place.exists():
        beside = [path.name for path in place.parent.iterdir()] if place.parent.is_dir() else []
        raise ValueError(f"no such file or folder: {place}{near(place.name, beside)}")
    if place.is_file():
        if place.suffix not in (SUFFIX, *PICKLED):
            raise ValueError(f"{place} is no checkpoint: {WANTED}")
        return Weights(place, place.parent if place.name == MODEL and is_checkpoint(place.parent) else place)
    if (place / MODEL).is_file() or (place / STATE).is_file():
        if (place / STATE).is_file() and not (place / MANIFEST).is_file():  # without either it is not from lanes
            raise ValueError(
                f"{place} is no whole checkpoint: it has no {MANIFEST}, which is written last; if its weights are good "
                f"all the same, give {place / MODEL}"
            )
        return Weights(place / MODEL, place)
    for folder in (place / "checkpoints", place):
        found = [path for path in folder.glob("*") if is_checkpoint(path)]
        if found:
            return _chosen(place, found)
    runs = sorted(str(path.parent) for depth in ("*", "*/*") for path in place.glob(f"{depth}/checkpoints"))
    raise ValueError(f"no checkpoint in {place}: {'give one of ' + ', '.join(runs) if runs else WANTED}")


def _chosen(run: Path, found: list[Path]) -> Weights:
    """The best of a training's checkpoints by what the latest of them knows, else that one itself."""
    states = {path: _state(path) for path in found}
    latest = max(found, key=lambda path: (states[path].get("global_step", 0), path.name == "last.ckpt", path.name))
    for callback in states[latest].get("callbacks", {}).values():
        ours = isinstance(callback, dict) and callback.get("monitor") not in (None, "step", "epoch")
        if ours and callback.get("best_model_path"):  # what goes by steps is the newest, not the best
            best = latest.with_name(Path(callback["best_model_path"]).name)  # the run may have been moved
            if best in states:
                score = callback.get("best_model_score")
                reached = f" {float(score):.4g}" if isinstance(score, Tensor | float) else ""
                return Weights(best / MODEL, best, f"the best of {run}: {callback['monitor']}{reached}")
    return Weights(latest / MODEL, latest, f"the last of {run}; it does not say which is the best")


def _state(path: Path) -> dict[str, Any]:
    try:
        state = decode(json.loads((path / STATE).read_text())).get("state", {})
    except (OSError, ValueError, AttributeError) as mistake:
        raise ValueError(f"{path / STATE} cannot be read: {_in_short(mistake)}") from mistake
    return state if isinstance(state, dict) else {}


def filters_in(file: Path) -> dict[str, Tensor]:
    """The weights of all 2-d convolutions in a file, [K, C, h, w], by the layer's name, in the order of the names.

    Raises:
        ValueError: the file cannot be read, or holds none.
    """
    tensors = _safetensors(file) if file.suffix == SUFFIX else _pickled(file)
    found = {name.removesuffix(WEIGHT): t for name, t in tensors.items() if name.endswith(WEIGHT) and t.dim() == 4}
    if not found:
        names = list(tensors)
        more = f" and {len(names) - 5} others" if len(names) > 5 else ""
        holds = f"it holds {', '.join(names[:5])}{more}" if names else "it holds no tensors"
        raise ValueError(f"{file} holds no weights of 2-d convolutions, LAYER{WEIGHT} [K, C, h, w]: {holds}")
    return {name: found[name] for name in sorted(found, key=_in_reading_order)}


def _in_reading_order(name: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10: a safetensors file does not keep the order of the layers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _safetensors(file: Path) -> dict[str, Tensor]:
    """Those that could be filters."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = [name for name in opened.keys() if len(opened.get_slice(name).get_shape()) == 4]  # noqa: SIM118
            return {name: opened.get_tensor(name) for name in names or opened.keys()}
    except (SafetensorError, OSError) as mistake:
        raise ValueError(f"{file} cannot be read, it may be cut off: {_in_short(mistake)}") from mistake


def _pickled(file: Path) -> dict[str, Tensor]:
    """A state dict, or the one in a dictionary under the name that training scripts give it."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as mistake:  # of many kinds, and torch's advice is to run what the file contains
        raise ValueError(
            f"{file} cannot be read: it is cut off, or more than a state dict of tensors, and nothing in it is run; "
            "write it with torch.save(net.state_dict(), FILE)"
        ) from mistake
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, not a state dict: names and tensors")
    return {str(name): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}


def _in_short(mistake: Exception) -> str:
    return " ".join(f"{mistake}".split())[:200]
