"""Which layer of a checkpoint is looked at, and in how many lanes its filters lie.

Kept out: reading weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from lanes.checkpoint import is_checkpoint
from lanes.models.registry import ENTRIES
from lanes.words import near

CONFIG = "config.yaml"
COLOURS, GREY = IMAGE_CHANNELS = 3, 1


def choose_layer(filters: Mapping[str, Tensor], asked: str | None, file: Path) -> str:
    """The layer that was asked for, or the one that reads the images.

    Args:
        filters: the weights of all 2-d convolutions, [K, C, h, w], by name.
        asked: a name; None: the first layer that reads 3 channels, or the only one that reads 1. (Depthwise layers read
            1 channel each as well.)
        file: where they come from, for messages.

    Raises:
        ValueError: there is no such layer, or it is not clear which is meant; lists those there are.
    """
    if asked is not None:
        if asked not in filters:
            raise ValueError(f"{file} has no convolution {asked!r}{near(asked, filters)}; it has {listed(filters)}")
        return asked
    coloured, grey = ([n for n, w in filters.items() if w.shape[1] == channels] for channels in (COLOURS, GREY))
    if coloured:
        return coloured[0]
    if len(grey) == 1:
        return grey[0]
    what = f"{len(grey)} layers of {file} read 1 channel" if grey else f"no layer of {file} reads 1 or 3 channels"
    raise ValueError(f"{what}: name one with --layer; it has {listed(filters)}")


def ask_for_groups(filters: Mapping[str, Tensor], layer: str) -> str:
    """Words that ask for the number of a layer's groups, which its weights do not tell; with what it could be."""
    read, names = filters[layer].shape[1], list(filters)
    before = [name for name in names[: names.index(layer)] if len(filters[name]) % read == 0]
    could = [f"{len(filters[name]) // read} if it reads {name}" for name in before[-3:]]
    hint = f" ({', '.join(could)})" if could else ""
    return (
        f"each filter of {layer} reads {read} channels, and its weights do not tell in how many groups: give "
        f"--groups N{hint}"
    )


def listed(filters: Mapping[str, Tensor]) -> str:
    """Names and shapes: "conv1 (96x3x11x11), conv2 ..."."""
    return ", ".join(f"{name} ({'x'.join(map(str, weight.shape))})" for name, weight in filters.items())


def told_lanes(file: Path) -> tuple[int, str]:
    """The number of lanes that a training's configuration beside the weights tells, and where it is told.

    It is the network's own number of lanes; of networks that have none, the number of lane devices.

    Returns:
        (lanes, the configuration), or (1, "") where nothing tells.

    Raises:
        ValueError: the configuration cannot be read.
    """
    folders = [file.parent]
    if is_checkpoint(file.parent):  # RUN/checkpoints/NAME, as a rule
        folders += [file.absolute().parents[1], file.absolute().parents[2]]
    for folder in folders:
        path = folder / CONFIG
        if path.is_file():
            try:
                config = yaml.safe_load(path.read_text())
            except (OSError, ValueError, yaml.YAMLError) as mistake:
                raise ValueError(f"{path} cannot be read: give the number of lanes, --lanes N") from mistake
            lanes = _lanes_of(config)
            if lanes is not None:
                here = Path.cwd()
                return lanes, str(path.relative_to(here) if path.is_relative_to(here) else path)
    return 1, ""


def _lanes_of(config: Any) -> int | None:
    net = _inside(config, "model", "net")
    arguments = _inside(net, "init_args")
    name = _inside(arguments, "name")
    by_name = ENTRIES[name].arguments.get("lanes") if isinstance(name, str) and name in ENTRIES else None
    devices = _inside(config, "trainer", "strategy", "init_args", "lane_devices")
    told = (_inside(arguments, "lanes"), by_name, devices)
    return next((lanes for lanes in told if type(lanes) is int and lanes > 0), None)


def _inside(config: Any, *keys: str) -> Any:
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config
