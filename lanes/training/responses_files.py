"""What ``lanes responses`` has found, as files: tables in CSV, squares as numbers and pictures.

The squares' numbers are in ``.safetensors``: as features are, with the layers and the checkpoint in the header, and
read by torch, numpy or any other program without unpickling (``.npz`` would need a file beside it to say what it is).
Kept out: measuring, words (responses_words.py).
"""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from lanes.analysis.channel_measures import ChannelMeasures
from lanes.analysis.covariance import block_ratio
from lanes.analysis.lane_statistics import lane_labels
from lanes.analysis.lane_tests import LaneTest
from lanes.analysis.network_measures import Measured, PairMeasures
from lanes.pictures.squares import KINDS, square_picture

OURS = ("responses-*.csv", "lanes-*.csv", "square-*.safetensors", "square-*.png")
Row = Iterable[object]


@dataclass(frozen=True)
class Findings:
    """All that was found.

    Attributes:
        measured: of channels, pairs of layers, lesions.
        tests: of lanes, of all layers together.
        laned: layers whose channels belong to lanes.
        lanes: how many there are.
        class_names: in the order of the labels; may be empty.
    """

    measured: Measured
    tests: Sequence[LaneTest]
    laned: Sequence[str]
    lanes: int
    class_names: Sequence[str]

    def lane_of(self, layer: str) -> Sequence[int | None]:
        """The lane of each channel; None where there are none."""
        channels = len(self.measured.channels[layer].dead)
        return lane_labels(channels, self.lanes).tolist() if layer in self.laned else [None] * channels

    def block_ratios(self, pair: PairMeasures) -> dict[str, float]:
        """By square; NaN where there are no lanes or no squares."""
        if pair.squares is None:
            return {"whitened": math.nan, "correlation": math.nan}
        lanes = self.lanes_of(pair)
        return {name: block_ratio(square, lanes) if lanes > 1 else math.nan for name, square in pair.squares.items()}

    def lanes_of(self, pair: PairMeasures) -> int:
        """How many lanes both layers have; 1 where one of them has none."""
        return self.lanes if {pair.first, pair.second} <= set(self.laned) else 1


def write_findings(found: Findings, folder: Path, about: Mapping[str, str]) -> None:
    """Write all files.

    Args:
        found: what.
        folder: where to; what an earlier call has left there is removed, so that all files are of one call.
        about: for ``about.json`` and the squares' headers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in OURS:
        for earlier in folder.glob(pattern):
            earlier.unlink()
    facts = {**about, "images": str(found.measured.images), "lanes": str(found.lanes)}
    (folder / "about.json").write_text(json.dumps(facts, indent=1) + "\n")
    for layer, channels in found.measured.channels.items():
        _write(folder / f"responses-{layer}.csv", _channel_rows(found, layer, channels))
    for layer in {test.layer: None for test in found.tests}:
        _write(folder / f"lanes-{layer}.csv", _lane_rows(test for test in found.tests if test.layer == layer))
    _write(folder / "tests.csv", _test_rows(found.tests))
    _write(folder / "covariance.csv", _pair_rows(found))
    _write(folder / "lesion.csv", _lesion_rows(found))
    for pair in found.measured.pairs:
        _write_squares(found, pair, folder, facts)


def _channel_rows(found: Findings, layer: str, channels: ChannelMeasures) -> Iterable[Row]:
    names = ChannelMeasures.names()
    yield ["channel", "lane", *names, "preferred_class_name"]
    values = np.stack([getattr(channels, name) for name in names], axis=1).tolist()
    for channel, (lane, row) in enumerate(zip(found.lane_of(layer), values, strict=True)):
        favourite = row[names.index("preferred_class")]
        known = found.class_names and not math.isnan(favourite)
        yield [channel, lane, *row, found.class_names[int(favourite)] if known else None]


def _lane_rows(tests: Iterable[LaneTest]) -> Iterable[Row]:
    yield ["measure", "lane", "n", "mean", "median", "sd", "quartile_25", "quartile_75"]
    for test in tests:
        for lane in test.lanes:
            yield [test.measure, lane.lane, lane.count, lane.mean, lane.median, lane.sd, *lane.quartiles]


def _test_rows(tests: Iterable[LaneTest]) -> Iterable[Row]:
    yield ["layer", "measure", "effect_size", "effect", "p", "p_low", "p_high", "draws", "exact", "p_holm"]
    for found in tests:
        if (test := found.test) is None:
            yield [found.layer, found.measure, *[None] * 8]
            continue
        sampling = (test.p_value, *test.interval, test.draws, int(test.exact))
        yield [found.layer, found.measure, test.effect.name, test.effect.value, *sampling, found.corrected]


def _pair_rows(found: Findings) -> Iterable[Row]:
    yield ["first", "second", "samples", "block_ratio_whitened", "block_ratio_correlation", "remark"]
    for pair in found.measured.pairs:
        ratios = found.block_ratios(pair)
        yield [pair.first, pair.second, pair.samples, ratios["whitened"], ratios["correlation"], pair.remark]


def _lesion_rows(found: Findings) -> Iterable[Row]:
    yield ["layer", "silenced_lane", "images", "n", "right", "accuracy", "wilson_low", "wilson_high"]
    for case in found.measured.lesions:
        yield [case.layer, case.lane, case.images, case.count, case.right, case.accuracy, *case.interval]


def _write_squares(found: Findings, pair: PairMeasures, folder: Path, facts: Mapping[str, str]) -> None:
    if pair.squares is None:
        return
    name = f"square-{pair.first}-{pair.second}"
    header = {**facts, "rows": pair.first, "columns": pair.second, "samples": str(pair.samples)}
    squares = {key: square.contiguous() for key, square in pair.squares.items()}
    save_file(squares, folder / f"{name}.safetensors", metadata=header)
    for kind in KINDS:
        picture = square_picture(
            squares[kind],
            (pair.first, pair.second),
            found.lanes_of(pair),
            kind=kind,
            images=found.measured.images,
            samples=pair.samples,
        )
        picture.save(folder / f"{name}-{kind}.png")


def _write(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)


def _cell(value: object) -> object:
    """An empty cell for what is not there; numbers to six digits, which is what float32 gives."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return "" if value is None else value
