"""What is written of a layer: pictures and tables by their file names, and the words that go with them.

Kept out: drawing, measuring, and writing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from lanes.analysis.specialisation import in_words, specialisation
from lanes.looking.numbers import Table, filter_tables, share_table
from lanes.pictures.distributions import specialisation_picture
from lanes.pictures.filters import Scale, View, filter_grids
from lanes.pictures.kernels import kernel_sheets, weight_square


@dataclass(frozen=True)
class Contents:
    """The files of a layer.

    Attributes:
        files: name -> picture (PNG) or table (CSV).
        replaces: what files of an earlier call are called that would contradict these.
        words: what the numbers say, in one line.
    """

    files: Mapping[str, Image.Image | Table]
    replaces: re.Pattern[str]
    words: str


def of_first_layer(weight: Tensor, lanes: int, layer: str, *, view: View = "rgb", scale: Scale = "layer") -> Contents:
    """Filters that read images: a picture for each lane, what they are selective for and how lanes differ.

    Args:
        weight: [K, 3 or 1, h, w], of all lanes.
        lanes: how many; lane i owns the i-th block of K / lanes filters.
        layer: its name.
        view: see `lanes.pictures.filters.filter_grids`.
        scale: likewise.

    Raises:
        ValueError: these are no finite filters of RGB or grey images, or they do not divide over the lanes.
    """
    name, found = _plain(layer), specialisation(weight, lanes)
    tables = filter_tables(weight, lanes, layer)
    files: dict[str, Image.Image | Table] = {f"{kind}-{name}.csv": table for kind, table in tables.items()}
    files[f"distributions-{name}.png"] = specialisation_picture(weight, lanes, found, layer=layer)
    manner = "".join(f"-{word}" for word in (view, f"each-{scale}") if word not in ("rgb", "each-layer"))
    pictures = filter_grids(weight, lanes, name=layer, view=view, scale=scale)
    files |= {f"filters-{name}{manner}-lane{lane}.png": picture for lane, picture in enumerate(pictures)}
    return Contents(files, re.compile(rf"filters-{re.escape(name + manner)}-lane\d+\.png"), in_words(found, layer))


def of_inner_layer(weight: Tensor, lanes: int, layer: str, *, groups: int) -> Contents:
    """A layer inside the network: who reads whom, each lane's strongest kernels, how much a lane listens to itself.

    Args:
        weight: [K, C / groups, h, w], of all lanes.
        lanes: how many; lane i owns the i-th block of the output channels and of the input channels.
        layer: its name.
        groups: of the layer.

    Raises:
        ValueError: the weight is not finite, or lanes or groups do not divide its channels.
    """
    name = _plain(layer)
    table, words = share_table(weight, lanes, layer, groups=groups)
    files: dict[str, Image.Image | Table] = {
        f"weights-{name}.csv": table,
        f"weights-{name}.png": weight_square(weight, lanes, groups=groups, name=layer),
    }
    if weight[0, 0].numel() > 1:  # else kernels are single weights, and have no shape
        for lane, sheets in enumerate(kernel_sheets(weight, lanes, groups=groups, name=layer)):
            drawn = {"own": sheets.own, "others": sheets.cross}
            files |= {f"kernels-{name}-lane{lane}-{who}.png": sheet for who, sheet in drawn.items() if sheet}
    return Contents(files, re.compile(rf"kernels-{re.escape(name)}-lane\d+-(own|others)\.png"), words)


def _plain(layer: str) -> str:
    """A layer's name as it can stand in the name of a file."""
    return re.sub(r"[^\w.-]", "_", layer)
