"""Hyperparameters as a run's record can keep them.

Here: any configuration as plain JSON values. Kept out: which parameters there are; LightningCLI and models decide that.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any


def plain(value: Any, depth: int = 0) -> Any:
    """`value` as JSON would have it: mappings, lists, numbers and text; anything else by its name. Calls nothing."""
    value = vars(value) if type(value).__name__ == "Namespace" else value  # argparse's and jsonargparse's
    if isinstance(value, Mapping) and depth < 8:
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset) and depth < 8:
        return [plain(item, depth + 1) for item in value]
    with suppress(Exception):  # a tensor with many elements, or on the meta device, has no item
        value = value.item() if hasattr(value, "shape") else value
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(getattr(value, "shape", None), tuple):
        return f"{type(value).__name__}{tuple(value.shape)}"
    try:
        return str(getattr(value, "__qualname__", value))
    except Exception:
        return type(value).__name__
