"""All measures at once where there is less to measure: grey images, one layer, one lane."""

from pathlib import Path

import torch
from torch import nn

from lanes.analysis.gratings import Gratings
from lanes.analysis.lesion import lesion_table
from lanes.analysis.lesion_counts import LesionCounter
from lanes.analysis.network_measures import Asked, NetworkMeasures
from lanes.training.responses_files import Findings, write_findings
from lanes.training.responses_words import in_words


def grey_findings() -> tuple[nn.Sequential, Findings]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    asked = Asked(("0",), num_classes=3, lanes=1, silenced=(), gratings=Gratings((8, 8), channels=1), normal=None)
    measures = NetworkMeasures(net, asked)
    measures.see_images(torch.randn(20, 1, 8, 8), torch.arange(20) % 3)
    measures.see_gratings(16, device=torch.device("cpu"))
    return net, Findings(measures.compute(), [], ["0"], 1, ())


def test_grey_images_have_no_colour(tmp_path: Path) -> None:
    net, found = grey_findings()
    (channels,) = found.measured.channels.values()
    assert torch.from_numpy(channels.colour_selectivity).isnan().all()
    assert torch.from_numpy(channels.class_selectivity).isfinite().any()
    assert torch.from_numpy(channels.orientation_selectivity).isfinite().any()
    assert found.measured.pairs == []
    (whole,) = found.measured.lesions
    assert (whole.layer, whole.lane, whole.images, whole.count) == ("", None, "grey", 20)
    assert all(module.training for module in net.modules()), "the mode is as it was"
    write_findings(found, tmp_path, {})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["about.json", "covariance.csv", "lesion.csv", "responses-0.csv", "tests.csv"]
    first = (tmp_path / "responses-0.csv").read_text().splitlines()[1]
    assert first.startswith("0,0,,"), "no colour selectivity, no name of a class"
    assert first.endswith(",")


def test_words_where_nothing_can_be_compared() -> None:
    lines = in_words(grey_findings()[1]).splitlines()
    assert lines[0] == "20 images, 1 lane; --lanes 2 compares two"
    assert lines[2].split() == ["silenced", "right", "in", "grey"]
    assert lines[4].startswith("nothing")


def test_lesions_are_those_of_the_lesion_table() -> None:
    """Grey is grey light, however unlike the colours' statistics are: the counts are exactly those of the table."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    light, labels = torch.rand(300, 3, 4, 4), torch.arange(300) % 3
    normal = (0.2, 0.3, 0.9), (0.1, 0.5, 1.0)
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in normal)
    table = lesion_table(net, [(light, labels)], "0", num_classes=3, lanes=2, normalise=lambda x: (x - mean) / std)
    counter = LesionCounter(net, net, ["0"], lanes=2, normal=normal)
    for images, some in zip(light.split(128), labels.split(128), strict=True):
        counter.update((images - mean) / std, some)
    found = {(case.layer, case.lane, case.images): case for case in counter.compute()}
    expected = {("", None): table.intact, ("0", 0): table.without[0], ("0", 1): table.without[1]}
    assert len({accuracies.grey for accuracies in expected.values()} | {table.intact.colour}) > 2, "no test of anything"
    for place, accuracies in expected.items():
        for look in ("colour", "grey"):
            assert found[*place, look].right == round(300 * getattr(accuracies, look))
    whole = found["", None, "grey"]
    low, high = whole.interval
    assert whole.count == 300
    assert low < whole.accuracy < high
