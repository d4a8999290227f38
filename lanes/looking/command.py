"""The verb ``filters``: a checkpoint's filters as pictures and numbers.

Here: arguments, and the way from a checkpoint to files. Kept out: reading, measuring, drawing, writing.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from lanes.analysis.lane_statistics import lane_labels
from lanes.looking.checkpoints import filters_in, find_weights
from lanes.looking.contents import of_first_layer, of_inner_layer
from lanes.looking.layers import IMAGE_CHANNELS, ask_for_groups, choose_layer, told_lanes
from lanes.looking.writing import check_folder, write_files
from lanes.pictures.filters import Scale, View

DESCRIPTION = (
    "Look at the filters of a checkpoint, lane by lane, from its weights alone: pictures (PNG), numbers (CSV)."
)
EPILOG = """CHECKPOINT is a checkpoint's folder, the folder that a training wrote (its best checkpoint, else its last),
a .safetensors file or a PyTorch state dict (.pt, .pth). Averaged weights: CHECKPOINT/average.safetensors. Nothing in a
file is run. Files of an earlier call for the same layer are replaced."""


def run(args: Sequence[str]) -> None:
    """``lanes filters CHECKPOINT [--layer NAME [--groups N]] [--lanes N] [--view V] [--scale S] [-o FOLDER]``.

    Raises:
        SystemExit: code 2 for a mistake in the arguments, after one line.
    """
    parser = argparse.ArgumentParser(prog="lanes filters", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("place", metavar="CHECKPOINT", help="such as runs/photographs/1")
    parser.add_argument("--layer", help="default: the convolution that reads the images")
    parser.add_argument("--lanes", type=int, metavar="N", help="default: as the training's config.yaml tells, else 1")
    parser.add_argument("--groups", type=int, metavar="N", help="of a layer inside the network, which its weights hide")
    parser.add_argument("--view", choices=get_args(View), default="rgb", help="colours of the pictures; default: rgb")
    parser.add_argument(
        "--scale",
        choices=get_args(Scale),
        default="layer",
        help="layer: one scale for all filters (default); filter: each its own, to see the shape of weak ones",
    )
    parser.add_argument("-o", "--output", default="filters", metavar="FOLDER", help="default: filters")
    asked = parser.parse_args(args)
    try:
        print(write_filters(**vars(asked)))
    except (ValueError, OSError) as mistake:
        if os.environ.get("LANES_DEBUG"):
            raise
        print(f"lanes filters: error: {' '.join(str(mistake).split())}", file=sys.stderr)
        raise SystemExit(2) from None


def write_filters(
    place: str | Path,
    output: str | Path,
    layer: str | None = None,
    lanes: int | None = None,
    *,
    groups: int | None = None,
    view: View = "rgb",
    scale: Scale = "layer",
) -> str:
    """Write the pictures and tables of a layer.

    Args:
        place: see `lanes.looking.checkpoints.find_weights`.
        output: the folder; made if need be.
        layer: its name; default: the one that reads the images.
        lanes: how many; default: as the training's configuration tells, else 1.
        groups: of a layer inside the network; None: it reads images.
        view: of a layer that reads images, see `lanes.pictures.filters.filter_grids`.
        scale: likewise.

    Returns:
        What was found, and where the files are, in a few lines.

    Raises:
        ValueError: there are no weights, no such layer, or its filters do not divide over the lanes; nothing is
            written.
        OSError: the folder cannot be written to.
    """
    folder = Path(output)
    check_folder(folder)
    weights = find_weights(place)
    filters = filters_in(weights.file)
    layer = choose_layer(filters, layer, weights.file)
    lanes, told_by = (lanes, "as asked for") if lanes is not None else told_lanes(weights.file)
    weight = filters[layer]
    lane_labels(len(weight), lanes)  # before anything is drawn
    if groups is None and weight.shape[1] not in IMAGE_CHANNELS:
        raise ValueError(ask_for_groups(filters, layer))
    if groups is None:
        contents = of_first_layer(weight, lanes, layer, view=view, scale=scale)
    elif (view, scale) == ("rgb", "layer"):
        contents = of_inner_layer(weight, lanes, layer, groups=groups)
    else:
        raise ValueError("--view and --scale are for a layer that reads images, --groups is for one that does not")
    written = write_files(folder, contents.files, replaces=contents.replaces)
    why = f" ({told_by})" if told_by else " (nothing tells how many there are; --lanes N does)"
    shape = "x".join(map(str, weight.shape[1:]))
    lines = [
        f"checkpoint: {weights.place}{f' ({weights.remark})' if weights.remark else ''}",
        f"layer:      {layer}, {len(weight)} filters of {shape} in {lanes} lane{'s' if lanes > 1 else ''}{why}",
        contents.words,
    ]
    return "\n".join([*lines, *(f"{'' if place else 'written:':12}{path}" for place, path in enumerate(written))])
