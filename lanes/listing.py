"""The verb ``models``: the networks that have a name, in a table, and all about one of them.

What is here: words and tables. What is kept out: what the figures mean (grouping.py, planning.py) and Lightning, for
which nobody who only looks should wait.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import yaml
from torch import Tensor, nn

from lanes.grouping import GroupingReport, grouping_report
from lanes.models.registry import ENTRIES, Entry, build, entry
from lanes.planning import lane_devices_of, plan
from lanes.tables import table

SILENT_S = 2  # after so many seconds the table says that it is coming
_HEAD = ("name", "parameters", "multiply-adds", "image", "groups", "lane devices", "what it is")


@dataclass(frozen=True)
class Listed:
    """A registered network as the table shows it.

    Attributes:
        name: its name.
        entry: what the name stands for.
        net: the network on the "meta" device.
        report: its parameters and multiply-adds, for one image of its own shape.
        lane_devices: the numbers of lane devices over which it can be placed.
    """

    name: str
    entry: Entry
    net: nn.Module
    report: GroupingReport
    lane_devices: list[int]

    @property
    def groups(self) -> str:
        """The numbers of groups of its grouped layers, e.g. "4, 8"; one per channel is "depthwise"; "-" for none."""
        found: set[int] = set()
        depthwise = False
        for name, layer in self.report.layers.items():
            if layer.groups > 1 and layer.groups == getattr(self.net.get_submodule(name), "in_channels", None):
                depthwise = True
            elif layer.groups > 1:
                found.add(layer.groups)
        return ", ".join([*map(str, sorted(found)), *(["depthwise"] if depthwise else [])]) or "-"


def run(args: Sequence[str]) -> None:
    """``lanes models [NAME] [--lane_devices D]``.

    Raises:
        SystemExit: code 2 for a mistake in the arguments, after one line.
    """
    parser = argparse.ArgumentParser(
        prog="lanes models",
        description="List the networks that have a name, or tell all about one.",
        epilog="Multiply-adds are of convolutions and linear layers, per image, biases not counted.",
    )
    parser.add_argument("name", nargs="?", help="tell all about this one")
    parser.add_argument(
        "--lane_devices",
        type=int,
        metavar="D",
        help="list what divides over D lane devices; with a name, what placing it over D costs",
    )
    asked = parser.parse_args(args)
    if asked.lane_devices is not None and asked.lane_devices < 1:
        _fail(f"--lane_devices must be at least 1, got {asked.lane_devices}")
    try:
        print(listing(asked.lane_devices) if asked.name is None else details(asked.name, asked.lane_devices))
    except ValueError as mistake:
        if os.environ.get("LANES_DEBUG"):
            raise
        _fail(str(mistake))


def listing(lane_devices: int | None = None) -> str:
    """The table of all registered networks, or of those that divide over so many lane devices.

    Raises:
        ValueError: none does.
    """
    rows = [
        (
            listed.name,
            f"{listed.report.parameters:,}",
            _millions(listed.report.multiply_adds),
            _shape(listed.report.image_shape),
            listed.groups,
            ", ".join(map(str, listed.lane_devices)),
            listed.entry.about,
        )
        for listed in _all_listed()
        if lane_devices is None or lane_devices in listed.lane_devices
    ]
    if not rows:
        raise ValueError(f"none of the {len(ENTRIES)} networks divides over {lane_devices} lane devices")
    return f"{table([_HEAD, *rows], '<>>>>><')}\nlanes models NAME tells all about one"


def details(name: str, lane_devices: int | None = None) -> str:
    """All about one network, as lines of text.

    Args:
        name: its name.
        lane_devices: D; also tells what placing it over so many costs.

    Raises:
        ValueError: there is no such network, or it cannot be placed over so many (PlanError).
    """
    listed = _listed(name)
    report, found = listed.report, listed.entry
    lines = [
        f"{name}: {found.about}",
        f"source:        {found.source}",
        f"class:         {found.factory.__module__}.{found.factory.__qualname__}",
        f"image:         {_shape(report.image_shape)}",
        f"parameters:    {report.parameters:,} ({report.dense_parameters:,} if dense)",
        f"multiply-adds: {report.multiply_adds:,} ({report.dense_multiply_adds:,} if dense)",
        f"groups:        {listed.groups}; {str(report).splitlines()[-1]}",
        f"lane devices:  {', '.join(map(str, listed.lane_devices))}",
    ]
    if lane_devices is not None:
        placed = plan(listed.net, _example(listed.net), lane_devices=lane_devices)
        lines.append(
            f"{f'over {lane_devices}:':15}{len(placed.crossings)} crossings; each lane device sends "
            f"{placed.sent_bytes:,.0f} bytes per image in training and holds {placed.parameters:,} parameters"
        )
    lines += ["", "arguments, with their values under this name:"]
    lines += [f"  {argument}: {value!r}" for argument, value in found.arguments.items()]
    classes = found.arguments["num_classes"]
    lines += ["", "in a configuration, below model:", *_yaml_lines(name, classes), "", "in Python:"]
    return "\n".join([*lines, f"  net = lanes.models.build({name!r}, num_classes={classes})"])


def _all_listed() -> Iterator[Listed]:
    start, told = time.monotonic(), False
    for name in ENTRIES:
        yield _listed(name)
        if not told and time.monotonic() - start > SILENT_S:
            print(f"reading {len(ENTRIES)} networks ...", file=sys.stderr, flush=True)
            told = True


def _listed(name: str) -> Listed:
    found = entry(name)
    with torch.device("meta"):
        net = build(name)
    return Listed(name, found, net, grouping_report(net), lane_devices_of(net, _example(net)))


def _example(net: nn.Module) -> Tensor:
    """A batch of two images without numbers."""
    shape: tuple[int, ...] = net.image_shape  # type: ignore[assignment]
    return torch.empty(2, *shape, device="meta")


def _millions(number: int | None) -> str:
    return "-" if number is None else f"{number / 1e6:,.1f} M"


def _shape(shape: tuple[int, ...] | None) -> str:
    return " x ".join(map(str, shape or ()))


def _yaml_lines(name: str, classes: int) -> list[str]:
    net = {"net": {"class_path": "lanes.models.Named", "init_args": {"name": name, "num_classes": classes}}}
    return [f"  {line}" for line in yaml.safe_dump(net, sort_keys=False).splitlines()]


def _fail(message: str) -> None:
    print(f"lanes models: error: {message}", file=sys.stderr)
    raise SystemExit(2)
