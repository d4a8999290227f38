"""Training state as JSON: everything of a checkpoint that is not a large tensor, readable by eye, nothing pickled.

JSON knows no tuples, no keys but strings and no tensors; each is written as an object with one telling key.
"""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

_LARGEST = 1024  # elements; larger tensors belong into safetensors


def encode(value: Any, where: str = "state") -> Any:
    """Turn plain Python values and small tensors into what ``json`` can write.

    Raises:
        TypeError: names the place of a value that is neither.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Tensor):
        if value.numel() > _LARGEST:
            raise TypeError(
                f"{where}: a tensor of {value.numel()} elements is too large for the JSON part of a checkpoint"
            )
        return {
            "__tensor__": value.flatten().tolist(),
            "shape": list(value.shape),
            "dtype": str(value.dtype).removeprefix("torch."),
        }
    if isinstance(value, tuple):
        return {"__tuple__": [encode(v, f"{where}[{i}]") for i, v in enumerate(value)]}
    if isinstance(value, list):
        return [encode(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return {key: encode(v, f"{where}.{key}") for key, v in value.items()}
        return {"__items__": [[encode(k, where), encode(v, f"{where}[{k!r}]")] for k, v in value.items()]}
    raise TypeError(
        f"{where}: a {type(value).__name__} cannot be written to a checkpoint, "
        "which holds plain values and tensors only"
    )


def decode(value: Any) -> Any:
    """The inverse of :func:`encode`."""
    if isinstance(value, list):
        return [decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "__tensor__" in value:
        return torch.tensor(value["__tensor__"], dtype=getattr(torch, value["dtype"])).reshape(value["shape"])
    if "__tuple__" in value:
        return tuple(decode(v) for v in value["__tuple__"])
    if "__items__" in value:
        return {decode(k): decode(v) for k, v in value["__items__"]}
    return {key: decode(v) for key, v in value.items()}
