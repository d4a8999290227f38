"""Arms of a study that differ in how well they do: their accuracies, and their differences with the same seed.

Kept out: what the arms are; statistics (analysis/over_seeds.py).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import nn

from lanes.analysis import over_seeds
from lanes.analysis.lane_tests import holm
from lanes.grouping import grouping_report
from lanes.studies.plain import Recipe, evaluate, train
from lanes.studies.runs import Row
from lanes.studies.words import estimate, markdown, p_value
from lanes.training import ImageData

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Pair = tuple[str, str]  # arms: the first minus the second
TRAINING_IMAGES = 10_000  # looked at, evenly spaced, for the accuracy on training images
METRICS = {"top1": "validation top-1", "gap": "training minus validation"}


def scored(make_net: Callable[[], nn.Module], data: ImageData, recipe: Recipe, seed: int) -> Row:
    """Train a network: its size, and how it does on validation and on training images, neither of them changed."""
    with torch.device("meta"):
        example = torch.empty(1, *data.image_shape)
        report = grouping_report(make_net(), example)
    assert report.multiply_adds is not None
    net = train(make_net, data, recipe, seed)
    val, training = evaluate(net, data.val_set, data), evaluate(net, data.train_set, data, TRAINING_IMAGES)
    size: Row = {"parameters": sum(p.numel() for p in net.parameters()), "multiply_adds": report.multiply_adds}
    return size | {"top1": val.top1, "loss": val.loss, "train_top1": training.top1, "train_loss": training.loss}


def points(rows: Sequence[Row], arm: str, metric: str) -> dict[int, float]:
    """Seed -> percent or points, of the runs of an arm."""
    found = {int(row["seed"]): row for row in rows if row["arm"] == arm}
    if metric == "gap":
        return {seed: 100 * (float(row["train_top1"]) - float(row["top1"])) for seed, row in found.items()}
    return {seed: 100 * float(row[metric]) for seed, row in found.items()}


def apart(rows: Sequence[Row], pair: Pair, metric: str) -> dict[int, float]:
    """Seed -> points by which the first arm of a pair is above the second; of the seeds that both have."""
    first, second = (points(rows, arm, metric) for arm in pair)
    return {seed: first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())}


def accuracies(rows: Sequence[Row], arms: Sequence[str]) -> str:
    """Markdown: what each arm costs and reaches."""
    head = ["arm", "n", "parameters", "multiply-adds", "validation top-1, %", "range", "training top-1, %", "gap"]
    lines = []
    for arm in arms:
        found = [row for row in rows if row["arm"] == arm]
        if not found:
            continue
        top1, training, gap = (list(points(rows, arm, metric).values()) for metric in ("top1", "train_top1", "gap"))
        cost = [f"{int(found[0]['parameters']):,}", f"{int(found[0]['multiply_adds']) / 1e6:.2f} M"]
        told = [estimate(over_seeds.mean(values)) for values in (top1, training, gap)]
        span = f"{min(top1):.2f} - {max(top1):.2f}"
        lines.append([arm, str(len(found)), *cost, told[0], span, *told[1:]])
    return markdown(head, lines)


def differences(rows: Sequence[Row], pairs: Sequence[Pair], metrics: Sequence[str]) -> str:
    """Markdown: how far arms are apart, seed by seed; p-values corrected for all of the table."""
    asked = [(pair, metric) for metric in metrics for pair in pairs]
    found = [(pair, metric, numbers) for pair, metric in asked if (numbers := apart(rows, pair, metric))]
    if not found:
        return ""
    tests = [over_seeds.paired(numbers, dict.fromkeys(numbers, 0.0)) for *_, numbers in found]
    several = [test.p_value for test in tests if test.estimate.runs > 1]
    corrected = iter(holm(several))
    head = ["same seed", "points of", "seed by seed", "mean [95 %]", "p (t, Holm)", "pairs"]
    lines = []
    for (pair, metric, numbers), test in zip(found, tests, strict=True):
        p = next(corrected) if test.estimate.runs > 1 else test.p_value
        each = ", ".join(f"{number:+.2f}" for number in numbers.values())
        mean = estimate(test.estimate, sign=True)
        lines.append([f"{pair[0]} - {pair[1]}", METRICS[metric], each, mean, p_value(p), str(len(numbers))])
    return markdown(head, lines)


def draw(
    rows: Sequence[Row], arms: Sequence[str], pairs: Sequence[Pair], metrics: Sequence[str], title: str, path: Path
) -> None:
    """Left every run, right the differences with the same seed, with their means and 95 % intervals."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained", width_ratios=[1, 1.2])
    present = [arm for arm in arms if points(rows, arm, "top1")]
    for place, arm in enumerate(present):
        top1, training = (list(points(rows, arm, metric).values()) for metric in ("top1", "train_top1"))
        _dots(left, place - 0.12, top1, f"C{place}", marker="o")
        _dots(left, place + 0.22, training, f"C{place}", marker="^")
    names = [f"{_broken(arm)}\nn = {len(points(rows, arm, 'top1'))}" for arm in present]
    left.set_xticks(range(len(present)), names)
    left.set(ylabel="top-1 (%)", xlim=(-0.5, len(present) - 0.4))
    left.set_title("every run: validation (circles), training images (triangles)", fontsize=10)
    shown = [(pair, metric) for metric in metrics for pair in pairs if apart(rows, pair, metric)]
    for place, (pair, metric) in enumerate(shown):
        _dots(right, place, list(apart(rows, pair, metric).values()), f"C{present.index(pair[0])}", marker="o")
    right.axhline(0, color="0.5", lw=1)
    counts = [len(apart(rows, pair, metric)) for pair, metric in shown]
    labels = [
        f"{_broken(METRICS[metric])}:\n{_broken(pair[0])}\nminus {_broken(pair[1])}\n{count} pairs"
        for (pair, metric), count in zip(shown, counts, strict=True)
    ]
    right.set_xticks(range(len(shown)), labels, fontsize=8)
    right.set(ylabel="difference with the same seed (points)", xlim=(-0.5, max(1, len(shown)) - 0.5))
    right.set_title("differences; black: mean and its 95 % interval", fontsize=10)
    for axes in (left, right):
        axes.grid(axis="y", alpha=0.3)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _broken(words: str) -> str:
    """In two lines, where there is a comma or a minus."""
    return words.replace(", ", ",\n").replace(" minus ", "\nminus ")


def _dots(axes: Any, place: float, values: Sequence[float], colour: str, *, marker: str) -> None:
    spread = np.linspace(-0.08, 0.08, len(values)) if len(values) > 1 else np.zeros(1)
    axes.plot(place + spread, values, marker, color=colour, alpha=0.5, ms=5)
    told = over_seeds.mean(values)
    ends = None if told.runs == 1 else [[told.value - told.low], [told.high - told.value]]
    axes.errorbar(place, told.value, ends, fmt="_", color="black", ms=14, capsize=4)
