"""``lanes responses``: files alike on any layout, and as each analysis function says of the plain network."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from lanes.analysis.covariance import block_ratio, layer_covariances
from lanes.analysis.gratings import Gratings, OrientationSelectivity
from lanes.analysis.lane_statistics import permutation_test
from lanes.analysis.lesion import lesion_table
from lanes.analysis.recording import recorded
from lanes.analysis.responses import ClassSelectivity, ColourSelectivity, turned_grey
from lanes.layers import local
from lanes.mesh import LANE_AXIS, axis, digest
from lanes.training import Classifier, LaneStrategy, Photographs
from lanes.training.health import NonFiniteError
from lanes.training.responses import ResponseMeasures
from tests.integration.test_replicas import RunningProcesses
from tests.ranks import Ranks

IMAGES, BATCH, SIDE, DEAD = 133, 66, 32, 3  # two replicas have 67 and 66 images, which is two batches and one
LAYERS = ("conv1", "conv2", "head")
COLOURLESS, COLOURFUL = slice(0, 4), slice(4, 8)  # conv1's channels


def photographs() -> Photographs:
    return Photographs(BATCH, image_size=SIDE, num_train=BATCH, num_val=IMAGES, num_workers=0)


DATA = photographs()
NORMAL = DATA.mean, DATA.std


class GreyAndColour(nn.Module):
    """Lane 0 of conv1 reads intensity only, lane 1 differences of colours only, as the photographs are normalised.

    The bars that lane 0 prefers stand; channel 3 answers to nothing.
    """

    lanes = 2

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 5, padding=2)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 12, 3, groups=2)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(48, 10)
        mean, std = (torch.tensor(numbers) for numbers in NORMAL)
        bars = torch.tensor([-1.0, 1, 2, 1, -1]).expand(5, 5)
        opponents = torch.tensor([[1.0, -1, 0], [-1, 1, 0], [-1, -1, 2], [1, 1, -2]])
        with torch.no_grad():
            self.conv1.weight[COLOURLESS] = bars * std[:, None, None] * torch.arange(1.0, 5)[:, None, None, None]
            self.conv1.weight[COLOURFUL] = 0
            self.conv1.weight[COLOURFUL, :, 2, 2] = opponents * std
            self.conv1.bias[COLOURLESS] = 0
            self.conv1.bias[COLOURFUL] = opponents @ mean - 1e-3  # of grey light a little less than nothing
            self.conv1.weight[DEAD], self.conv1.bias[DEAD] = 0, -1

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.flatten(self.pool(self.conv2(self.relu(self.conv1(x))))))
        return logits


class Diverged(GreyAndColour):
    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.conv2.weight[9] = torch.nan


def measure(lane_devices: int, folder: str, net: type[nn.Module] = GreyAndColour) -> tuple[str, bool]:
    """Predict with the callback; what it says, and whether weights and modes are as before."""
    looking = ResponseMeasures(
        LAYERS, laned=LAYERS[:2], lanes=2, folder=Path(folder), about={"checkpoint": "none", "split": "val"}
    )
    processes = RunningProcesses()
    trainer = Trainer(
        accelerator="cpu",
        devices=processes.world_size(),
        strategy=LaneStrategy(lane_devices),
        plugins=[processes],
        callbacks=[looking],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module, data = Classifier(net, image_shape=(3, SIDE, SIDE)), photographs()
    looking.check(module.image_shape, data)
    if net is Diverged:
        with pytest.raises(NonFiniteError, match="responses of conv2 are not finite"):
            trainer.predict(module, datamodule=data, return_predictions=False)
        return "", True
    trainer.predict(module, datamodule=data, return_predictions=False)
    lane = axis(module.device_mesh, LANE_AXIS)  # type: ignore[arg-type]
    plain, placed = made(net), module.net
    own = [getattr(plain, name).weight[lane.own(channels)] for name, channels in (("conv1", 8), ("conv2", 12))]
    held: list[Any] = [local(placed.get_submodule(name).weight) for name in ("conv1", "conv2")]
    return looking.words, digest(*own) == digest(*held)


def made(net: type[nn.Module] = GreyAndColour) -> nn.Module:
    """The plain network, as a classifier makes it."""
    torch.manual_seed(0)
    return net()


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def column(path: Path, name: str) -> Tensor:
    return torch.tensor([float(row[name] or "nan") for row in table(path)], dtype=torch.float64)


def batches() -> list[tuple[Tensor, Tensor]]:
    """What the plain network reads."""
    images = DATA.val_set
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in NORMAL)
    return list(zip(((images.images / 255 - mean) / std).split(50), images.labels.split(50), strict=True))


def directly() -> dict[tuple[str, str], Tensor]:
    """Each measure of the plain network by its own function."""
    net, found = made().eval(), {}
    for layer in LAYERS:
        channels = net.get_submodule(layer).weight.shape[0]
        colour, classes = ColourSelectivity(channels), ClassSelectivity(channels, num_classes=10)
        orientation = OrientationSelectivity(channels)
        with torch.no_grad(), recorded(net, [layer]) as seen:
            for images, labels in batches():
                net(images)
                responses = seen[layer]
                net(turned_grey(images, mean=NORMAL[0], std=NORMAL[1]))
                colour.update(responses, seen[layer])
                classes.update(responses, labels)
            for images, orientations in Gratings((SIDE, SIDE)).batches(40):
                net(images)
                orientation.update(seen[layer], orientations)
        found[layer, "colour_selectivity"], found[layer, "class_selectivity"] = colour.compute(), classes.compute()
        found[layer, "orientation_selectivity"], found[layer, "preferred_orientation"] = orientation.compute()
    return found


def check_channels(folder: Path) -> None:
    for (layer, name), expected in directly().items():
        path = folder / f"responses-{layer}.csv"
        both = column(path, name), expected
        if name == "preferred_orientation":  # 0 and 180 are the same, and what prefers little prefers rounding
            known = column(path, "orientation_selectivity") > 0.01
            assert known.sum() > 2
            both = (both[0][known] * torch.pi / 90).cos(), (both[1][known] * torch.pi / 90).cos()
        torch.testing.assert_close(*both, rtol=1e-4, atol=2e-5, equal_nan=True)


def check_known_answers(folder: Path) -> None:
    first = folder / "responses-conv1.csv"
    colour, dead = column(first, "colour_selectivity"), column(first, "dead")
    assert colour[:DEAD].abs().max() < 1e-5, "what reads intensity only answers to grey alike"
    assert colour[COLOURFUL].tolist() == [1] * 4, "what reads differences of colours does not answer to grey"
    assert dead.tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    assert [row["lane"] for row in table(first)] == ["0"] * 4 + ["1"] * 4
    assert {row["lane"] for row in table(folder / "responses-head.csv")} == {""}, "classes are of no lane"
    nothing = table(first)[DEAD]
    assert {nothing[name] for name in ("colour_selectivity", "preferred_class", "preferred_class_name")} == {""}
    for row in table(folder / "responses-head.csv"):
        assert row["preferred_class_name"] == DATA.class_names[int(row["preferred_class"])]
    degrees = column(first, "preferred_orientation")[:DEAD]
    assert ((degrees - 90).abs() < 1e-3).all(), "the bars stand"
    assert column(first, "preferred_frequency")[:DEAD].tolist() == [0.25] * 3, "a cycle of four pixels"


def check_lanes(folder: Path) -> None:
    tests = {(row["layer"], row["measure"]): row for row in table(folder / "tests.csv")}
    assert len(tests) == 8
    colour = tests["conv1", "colour_selectivity"]
    expected = permutation_test(
        [0, 0, 0, *[1] * 4], [0] * 3 + [1] * 4
    )  # one of the 35 ways to deal seven channels is as far apart
    assert float(colour["effect"]) == -1 == expected.effect.value
    assert float(colour["p"]) == pytest.approx(1 / 35) == pytest.approx(expected.p_value)
    assert float(colour["p_holm"]) >= float(colour["p"])
    summaries = {(row["measure"], row["lane"]): row for row in table(folder / "lanes-conv1.csv")}
    assert summaries["colour_selectivity", "0"]["n"] == "3"
    assert summaries["colour_selectivity", "1"]["mean"] == "1"
    assert not (folder / "lanes-head.csv").exists()


def check_pairs(folder: Path) -> None:
    wanted = layer_covariances(made(), [("conv1", "conv2"), ("conv2", "head")], (x for x, _ in batches()))
    for row, ((first, second), squares) in zip(table(folder / "covariance.csv"), wanted.items(), strict=True):
        assert (row["first"], row["second"]) == (first, second)
        path = folder / f"square-{first}-{second}.safetensors"
        with safe_open(path, framework="pt") as file:
            assert file.metadata()["samples"] == row["samples"]
        found = load_file(path)
        for name, square in squares.items():
            torch.testing.assert_close(found[name], square, rtol=1e-3, atol=1e-4)
            ratio = row[f"block_ratio_{name}"]
            if second == "conv2":
                assert float(ratio) == pytest.approx(block_ratio(square, 2), rel=1e-3)
                assert int(row["samples"]) == IMAGES * SIDE**2
            else:
                assert ratio == "", "classes are of no lane"


def check_lesions(folder: Path) -> None:
    rows = table(folder / "lesion.csv")
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in NORMAL)
    light = [(x * std + mean, y) for x, y in batches()]
    for layer in LAYERS[:2]:
        wanted = lesion_table(made(), light, layer, num_classes=10, normalise=lambda x: (x - mean) / std)
        for lane, accuracies in enumerate([wanted.intact, *wanted.without], start=-1):
            place = ("", "") if lane < 0 else (layer, str(lane))
            for look in ("colour", "grey"):
                (row,) = [r for r in rows if (r["layer"], r["silenced_lane"], r["images"]) == (*place, look)]
                assert int(row["n"]) == IMAGES
                # An image whose two best classes are equal but for rounding may go either way.
                assert abs(int(row["right"]) - getattr(accuracies, look) * IMAGES) < 1.5
                assert float(row["wilson_low"]) < float(row["accuracy"]) < float(row["wilson_high"])
    assert len(rows) == 2 + 2 * 2 * 2


@pytest.mark.parametrize("mesh", ["1x1", "1x2", "2x1", "2x2"])
def test_as_the_functions_say_of_the_plain_network(ranks: Ranks, tmp_path: Path, mesh: str) -> None:
    replicas, lane_devices = map(int, mesh.split("x"))
    (tmp_path / "responses-conv9.csv").write_text("of an earlier call")
    (tmp_path / "notes.txt").write_text("somebody's own")
    words, *others = ranks(measure, replicas * lane_devices, lane_devices, str(tmp_path), timeout_s=300)
    assert all(unchanged for _, unchanged in [words, *others]), "weights have changed"
    assert not any(said for said, _ in others), "the first process writes and tells"
    assert (tmp_path / "notes.txt").exists()
    assert not (tmp_path / "responses-conv9.csv").exists()
    check_channels(tmp_path)
    check_known_answers(tmp_path)
    check_lanes(tmp_path)
    check_pairs(tmp_path)
    check_lesions(tmp_path)
    assert words[0].startswith(f"{IMAGES} images, 2 lanes")
    assert "more in lane 1" in words[0] or "no difference" in words[0]


def test_a_network_that_has_diverged(ranks: Ranks, tmp_path: Path) -> None:
    """All processes find it, also that which does not hold the channel."""
    ranks(measure, 2, 2, str(tmp_path), Diverged, timeout_s=300)
    assert not list(tmp_path.iterdir())
