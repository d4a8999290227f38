"""Which panels a workspace has: they follow the keys that runs have logged, so that every key has one.

Curves of all lanes stand in one plot, pictures of all lanes side by side. Kept out: how Weights & Biases writes it.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

MAX_COLUMNS = 4
LEFT_OUT = ("epoch",)  # says nothing that the step does not
_LANE = re.compile(r"(?<![^/])lane(\d+)(?![^/])")  # as a part of a key


@dataclass(frozen=True)
class Panel:
    """A plot of curves over steps, or one picture with a slider over steps.

    Attributes:
        title: what stands above it.
        keys: of the curves, or of the picture.
        pictures: whether it is a picture.
        log_y: whether the curves' axis is logarithmic.
    """

    title: str
    keys: tuple[str, ...]
    pictures: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Section:
    """Panels that belong together, so many beside one another; open at first or not."""

    name: str
    panels: tuple[Panel, ...]
    columns: int
    is_open: bool


@dataclass(frozen=True)
class _Rule:
    """A section's keys, and which of them share a plot: those that are alike once ``merged`` is replaced by "*"."""

    name: str
    keys: str
    merged: str = r"(?<=/lane)\d+(?![^/])"
    is_open: bool = True
    columns: int = 3


_RULES = (  # a key belongs to the first that it fits
    _Rule("Filters, lane by lane", r"(filters|kernels)/.*"),
    _Rule("What each lane has become", r"spec/(.*/)?lane\d+/.*"),
    _Rule("Do lanes differ?", r"spec/(.*/)?(effect|p)/.*", merged=r"[^/]+$", columns=2),
    _Rule("Distributions in each lane", r"spec/.*"),
    _Rule("Between layers", r"corr/.*"),
    _Rule("Predictions", r"predictions.*"),
    _Rule("Loss and accuracy", r"(train|val|test)/.*", merged=r"^(train|val|test)(?=/)"),
    _Rule("Speed", r"images_per_s|step_time_s|data_wait.*|augmentation_s|memory_MiB|crossing/.*", is_open=False),
    _Rule("Health", r"health/.*", is_open=False),
    _Rule("More", r".*", is_open=False),
)


def sections(scalars: Iterable[str], pictures: Iterable[str]) -> list[Section]:
    """The sections for what was logged, those without keys left out.

    Args:
        scalars: keys of numbers.
        pictures: keys of pictures.
    """
    by_rule: dict[_Rule, list[Panel]] = {rule: [] for rule in _RULES}
    for key in sorted(set(pictures), key=_layer_first):
        by_rule[_rule(key)].append(Panel(_of_lane(key), (key,), pictures=True))
    plots: dict[tuple[_Rule, str], list[str]] = {}
    for key in sorted(set(scalars) - set(LEFT_OUT), key=_in_reading_order):
        rule = _rule(key)
        plots.setdefault((rule, re.sub(rule.merged, "*", key)), []).append(key)
    for (rule, title), keys in plots.items():
        log_y = "p" in title.split("/")  # p-values
        by_rule[rule].append(Panel(title if len(keys) > 1 else keys[0], tuple(keys), log_y=log_y))
    return [
        Section(rule.name, tuple(panels), _columns(rule, panels), rule.is_open)
        for rule, panels in by_rule.items()
        if panels
    ]


def expected_keys(lanes: int, layers: Sequence[str], measures: Sequence[str]) -> tuple[list[str], list[str]]:
    """What a training in lanes logs, as far as it can be told beforehand: for a workspace before the first run.

    Args:
        lanes: how many.
        layers: whose filters or responses are looked at, in forward order; the first reads the images.
        measures: of filters.

    Returns:
        Keys of numbers, and of pictures.
    """
    scalars = [f"spec/lane{lane}/{measure}" for lane in range(lanes) for measure in (*measures, "dead")]
    if lanes > 1:
        scalars += [f"spec/{what}/{measure}" for what in ("effect", "p") for measure in measures]
    scalars += ["train/loss", "val/loss", "val/top1", "val/top5", "train/lr", "health/gradient_norm"]
    scalars += ["images_per_s", "step_time_s", "data_wait_s", "memory_MiB", "crossing/sent_MiB"]
    pictures = [f"filters/lane{lane}/{layers[0]}" for lane in range(lanes)]
    pictures += [f"corr/{first}-{second}" for first, second in pairwise(layers)]
    return scalars, [*pictures, "spec/distributions", "predictions"]


def _rule(key: str) -> _Rule:
    return next(rule for rule in _RULES if re.fullmatch(rule.keys, key))


def _columns(rule: _Rule, panels: Sequence[Panel]) -> int:
    """Pictures of one layer in all lanes fill one row, where they can."""
    lanes = {found[1] for panel in panels if panel.pictures and (found := _LANE.search(panel.keys[0]))}
    return min(MAX_COLUMNS, len(lanes)) if lanes else rule.columns


def _of_lane(key: str) -> str:
    """What stands above a picture: "conv1, lane 0" for ``filters/lane0/conv1``."""
    found = _LANE.search(key)
    return f"{key[found.end() :].strip('/') or key}, lane {found[1]}" if found else key


def _layer_first(key: str) -> tuple[str, list[tuple[int, str]]]:
    return _LANE.sub("lane", key), _in_reading_order(key)


def _in_reading_order(key: str) -> list[tuple[int, str]]:
    """Lane 2 before lane 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", key)]
