"""A registered network for configurations: `Named`, the class path under which every name of the registry is written.

What is here: `Named` and the arguments that it takes. What is kept out: the names (registry.py).
"""

from __future__ import annotations

import inspect
from typing import TypedDict, Unpack

from torch import nn

from lanes.models.registry import build


class Arguments(TypedDict, total=False):
    """Every argument that some registered network has; which of them one has, `lanes models NAME` tells.

    The parser of configurations takes keys and types from here: a function that hands its arguments on has none that
    it could read. `tests/unit/test_registry.py` compares the keys with the constructors.
    """

    base_width: float
    batch_norm: bool
    cardinality: int
    channels: int
    cross: list[str]
    depth: int
    dropout: float
    form: str
    groups: int | dict[str, int]
    image_size: int
    in_channels: int
    lanes: int
    length: int
    map_window: int
    num_classes: int
    root: int
    scale: float
    shuffle: bool
    size: int
    stem_channels: int
    strided: str
    total_stride: int
    width: float
    width_multiplier: float


class Named(nn.Module):
    """The network of that name, as a class, which configurations want: `build(name, **arguments)`.

    ```yaml
    net:
      class_path: lanes.models.Named
      init_args: {name: resnext50_32x4d, num_classes: 10}
    ```

    Args:
        name: one of `names()`.
        **arguments: of the network's constructor, in place of what the name stands for or of its defaults.

    Raises:
        ValueError: as `build`.
    """

    # What hints at mistyped keys go by; without it inspect would see no further than **arguments.
    __signature__ = inspect.Signature(
        [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY) for key in ("name", *Arguments.__annotations__)]
    )

    def __new__(cls, name: str, **arguments: Unpack[Arguments]) -> nn.Module:  # type: ignore[misc]
        """The network; it is no instance of this class, so `__init__` does not run."""
        return build(name, **arguments)

    def __init__(self, name: str, **arguments: Unpack[Arguments]) -> None:
        raise AssertionError("__new__ makes another class")  # the parser reads the signature
