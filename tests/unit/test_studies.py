"""Studies: which runs there are, what is kept of them, the command, the plain loop."""

import csv
import dataclasses
import json
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lanes.analysis.over_seeds import Estimate
from lanes.data.statistics import Statistics
from lanes.studies import command, plain
from lanes.studies.accuracy import accuracies, apart, differences, draw
from lanes.studies.command import Study, main
from lanes.studies.runs import Arm, Kept, Row, Run, planned
from lanes.studies.words import estimate, markdown, p_value, percent
from lanes.training import ImageData
from tests.unit.test_scripts import load

ARMS = (Arm("with", 3), Arm("without", 1))


@dataclass(frozen=True)
class Settings:
    epochs: int = 3
    rate: float = 0.5


class Making:
    """What a study of numbers makes, and which runs it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int, str]] = []

    def __call__(self, arm: str, seed: int, settings: Settings, data: str) -> Row:
        self.asked.append((arm, seed, settings.epochs, data))
        return {"number": seed + 0.5, "words": "some", "whole": 7}


@pytest.fixture
def making() -> Making:
    return Making()


@pytest.fixture
def study(making: Making) -> Study:
    def drawn(rows: Sequence[Row], path: Path) -> None:
        path.write_text(f"{len(rows)} rows")

    def tables(rows: Sequence[Row]) -> str:
        return " ".join(f"{row['arm']}:{row['number']}" for row in rows)

    return Study("numbers", "Which?", ARMS, Settings(), "owner/images", making, tables, drawn)


def test_runs_go_seed_by_seed() -> None:
    assert [str(run) for run in planned(ARMS)] == ["with, seed 0", "without, seed 0", "with, seed 1", "with, seed 2"]
    assert [run.number for run in planned(ARMS)] == [0, 1, 2, 3]
    assert [run.key for run in planned(ARMS, 2)] == [("with", 0), ("without", 0), ("with", 1), ("without", 1)]


def test_the_list_says_number_and_what_is_made(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(study, ["--out", str(tmp_path), "--run", "2"])
    assert capsys.readouterr().out == "numbers: run 2 (with, seed 1) is made\n"
    main(study, ["--out", str(tmp_path), "--list"])
    lines = [
        "0\twith, seed 0\tmissing",
        "1\twithout, seed 0\tmissing",
        "2\twith, seed 1\tmade",
        "3\twith, seed 2\tmissing",
    ]
    assert capsys.readouterr().out.splitlines() == lines


def test_a_run_that_is_made_is_not_made_again(study: Study, making: Making, tmp_path: Path) -> None:
    main(study, ["--out", str(tmp_path), "--run", "0", "--data", "a/folder/images"])
    main(study, ["--out", str(tmp_path), "--run", "0"])
    assert making.asked == [("with", 0, 3, "a/folder/images")]
    main(study, ["--out", str(tmp_path), "--limit", "1"])
    main(study, ["--out", str(tmp_path)])
    assert [asked[:2] for asked in making.asked] == [("with", 0), ("without", 0), ("with", 1), ("with", 2)]
    main(study, ["--out", str(tmp_path)])
    assert len(making.asked) == 4


def test_a_fresh_clone_has_the_table_alone(study: Study, making: Making, tmp_path: Path) -> None:
    """Rows of the table count, and stay as they are, digit by digit."""
    main(study, ["--out", str(tmp_path), "--seeds", "1"])
    table = (tmp_path / "numbers.csv").read_text()
    for file in (tmp_path / "numbers").iterdir():
        file.unlink()
    main(study, ["--out", str(tmp_path), "--seeds", "1"])
    assert len(making.asked) == 2
    assert (tmp_path / "numbers.csv").read_text() == table
    rows = list(csv.DictReader(table.splitlines()))
    assert [(row["arm"], row["seed"], row["number"], row["whole"]) for row in rows] == [
        ("with", "0", "0.5", "7"),
        ("without", "0", "0.5", "7"),
    ]
    assert {row["settings"] for row in rows} == {"epochs=3 rate=0.5"}
    for column in ("seconds", "processor_seconds", "commit", "versions", "processor", "date"):
        assert all(row[column] for row in rows), column
    assert {row["data"] for row in rows} == {"images"}, "a folder is named, its path is not"


def test_collecting_writes_table_figure_and_page(study: Study, tmp_path: Path) -> None:
    main(study, ["--out", str(tmp_path), "--run", "0"])
    main(study, ["--out", str(tmp_path), "--collect"])
    page = (tmp_path / "numbers.md").read_text()
    assert "Runs made: with 1 of 3; without 0 of 1." in page
    assert "3 are missing: `scripts/studies/numbers` goes on." in page
    assert page.endswith("![numbers, all runs](numbers.png)\n\nwith:0.5\n")
    assert (tmp_path / "numbers.png").read_text() == "1 rows"


def test_the_page_has_its_part_rewritten(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "ROOT", tmp_path)
    (tmp_path / "docs/studies").mkdir(parents=True)
    (tmp_path / "docs/studies.md").write_text("before\n<!-- numbers:begin -->\nold\n<!-- numbers:end -->\nafter\n")
    main(study, ["--seeds", "1"])
    page = (tmp_path / "docs/studies.md").read_text()
    assert page.startswith("before\n<!-- numbers:begin -->\nRuns made: with 1 of 1; without 1 of 1. None is missing.")
    assert "![numbers, all runs](studies/numbers.png)" in page
    assert page.endswith("with:0.5 without:0.5\n<!-- numbers:end -->\nafter\n")
    assert "old" not in page


def test_other_images_have_files_of_their_own(study: Study, making: Making, tmp_path: Path) -> None:
    main(study, ["--out", str(tmp_path), "--seeds", "1"])
    main(study, ["--out", str(tmp_path), "--seeds", "1", "--data", "some/others"])
    assert len(making.asked) == 4
    assert len((tmp_path / "numbers-others.csv").read_text().splitlines()) == 3
    page = (tmp_path / "numbers-others.md").read_text()
    assert page.startswith("Runs made: with 1 of 1; without 1 of 1.")
    main(study, ["--out", str(tmp_path), "--data", "some/others", "--collect", "--seeds", "2"])
    assert "`scripts/studies/numbers --data others --seeds 2` goes on" in (tmp_path / "numbers-others.md").read_text()


def test_a_variant_has_its_settings_and_files_of_its_own(study: Study, making: Making, tmp_path: Path) -> None:
    varied = dataclasses.replace(study, variants={"long": Settings(epochs=9)})
    main(varied, ["--out", str(tmp_path), "--run", "0"])
    main(varied, ["--out", str(tmp_path), "--run", "0", "--variant", "long"])
    assert [epochs for _, _, epochs, _ in making.asked] == [3, 9]
    main(varied, ["--out", str(tmp_path), "--variant", "long", "--collect"])
    assert "epochs=9" in (tmp_path / "numbers-long.csv").read_text()
    assert "`scripts/studies/numbers --variant long` goes on" in (tmp_path / "numbers-long.md").read_text()


def refused(study: Study, capsys: pytest.CaptureFixture[str], *given: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(study, list(given))
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_settings_are_not_mixed(
    study: Study, making: Making, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path))
    main(study, [*out, "--run", "0", "--set", "epochs=5", "rate=0.25"])
    assert making.asked == [("with", 0, 5, "owner/images")]
    said = refused(study, capsys, *out, "--collect")
    assert "(with, seed 0) with other settings, 'epochs=5 rate=0.25' instead of 'epochs=3 rate=0.5'; give" in said
    assert "no setting 'epoch' (there are epochs, rate)" in refused(study, capsys, *out, "--set", "epoch=5")
    assert "--set epochs=x: 'x' is no int" in refused(study, capsys, *out, "--set", "epochs=x")
    assert "--set needs another --out" in refused(study, capsys, "--set", "epochs=5")


def test_numbers_of_runs_that_there_are_not(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--run 4: there are runs 0 to 3" in refused(study, capsys, "--out", str(tmp_path), "--run", "4")
    assert "0 must be 1 or more" in refused(study, capsys, "--out", str(tmp_path), "--seeds", "0")
    refused(study, capsys, "--run", "1", "--collect")


def test_a_run_that_was_stopped_leaves_nothing(tmp_path: Path, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither while it is made nor while it is written."""

    def stopped(*_: object) -> Row:
        raise KeyboardInterrupt

    kept = Kept(tmp_path, "numbers", "")
    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        kept.keep(Run(0, "with", 0), {"number": 1})
    assert kept.rows() == {}
    monkeypatch.undo()
    kept.keep(Run(0, "with", 0), {"number": 1})
    assert kept.rows() == {("with", 0): {"arm": "with", "seed": 0, "settings": "", "number": 1}}
    (tmp_path / "numbers" / "without-0.json").write_text('{"arm": "wi')
    with pytest.raises(ValueError, match=r"without-0.json cannot be read .*; delete it, and the run is made anew"):
        kept.rows()


def test_cells_keep_their_kind(tmp_path: Path) -> None:
    row: Row = {
        "number": 0.1 + 0.2,
        "none": math.nan,
        "whole": 3,
        "commit": "12e4567",
        "square": "AAECAw==",
        "date": "2",
    }
    kept = Kept(tmp_path, "numbers", "epochs=3")
    kept.keep(Run(0, "with", 0), row)
    kept.keep(Run(1, "without", 0), {"other": 5})
    kept.collect(planned(ARMS))
    for file in (tmp_path / "numbers").iterdir():
        file.unlink()
    read = kept.rows()
    assert math.isnan(float(read["with", 0].pop("none")))
    del row["none"]
    assert read["with", 0] == {"arm": "with", "seed": 0, "settings": "epochs=3", **row}
    assert read["without", 0] == {"arm": "without", "seed": 0, "settings": "epochs=3", "other": 5}


class Blobs(ImageData):
    """Two classes of 8-pixel images that differ in brightness; half of them are wrong in the validation set."""

    class_names = ("dark", "light")

    def __init__(self) -> None:
        super().__init__(8, image_shape=(1, 8, 8))
        self.changed = 0
        self.augment = [self._count]

    def _count(self, images: Tensor) -> Tensor:
        self.changed += 1
        return images

    def setup(self, stage: str | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self._labels = torch.arange(36) % 2
        light = 80 * self._labels[:, None, None, None] + 60
        self._images = (light + torch.randint(0, 60, (36, 1, 8, 8), generator=generator)).to(torch.uint8)

    @property
    def train_set(self) -> "Stored":  # type: ignore[override]
        return Stored(self._images, self._labels)

    @property
    def val_set(self) -> "Stored":  # type: ignore[override]
        return Stored(self._images[:12], torch.arange(12) // 2 % 2)

    @property
    def statistics(self) -> Statistics:
        return Statistics((0.5,), ((0.04,),))


class Stored:
    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        return self.images[rows], self.labels[rows]


def small_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(144, 2))


def test_a_network_is_trained() -> None:
    data, seen = Blobs(), []
    net = plain.train(
        small_net, data, plain.Recipe(5, 0.05), 3, look=lambda step, _: seen.append(step), at={0, 4, 7, 20, 21}
    )
    assert seen == [0, 4, 7, 20], "4 full batches an epoch: the last 4 images are left out"
    assert data.changed == 20, "no batch of an evaluation"
    assert plain.evaluate(net, data.train_set, data).top1 == 1
    found = plain.evaluate(net, data.val_set, data)
    assert (found.top1, found.loss > 0.5) == (0.5, True)
    assert data.changed == 20
    assert net.training


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_everything_follows_from_the_seed(optimizer: str) -> None:
    """And looking changes nothing."""
    recipe = plain.Recipe(2, 0.01, optimizer=optimizer)  # type: ignore[arg-type]
    data = Blobs()
    data.setup()

    def look(step: int, net: nn.Module) -> None:
        plain.evaluate(net, data.val_set, data)

    first, again, other = (
        plain.train(small_net, Blobs(), recipe, seed, look=look, at=at) for seed, at in ((0, {1, 3}), (0, ()), (1, ()))
    )
    assert all(map(torch.equal, first.state_dict().values(), again.state_dict().values()))
    assert not torch.equal(first.state_dict()["0.weight"], other.state_dict()["0.weight"])


def test_a_network_that_diverges_is_an_error() -> None:
    """Not a row with nothing in it."""

    def broken() -> nn.Module:
        net = small_net()
        nn.init.constant_(net[0].weight, math.nan)  # type: ignore[arg-type]
        return net

    with pytest.raises(plain.DivergedError, match=r"the loss of step 4 is nan: lower the rate, 0.05"):
        plain.train(broken, Blobs(), plain.Recipe(1, 0.05), 0)


def test_images_are_evenly_spaced() -> None:
    source = Stored(torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1), torch.arange(10))
    (images, labels), *rest = plain.images_of(source, torch.device("cpu"), 4)
    assert (labels.tolist(), rest) == ([0, 2, 5, 7], [])
    assert torch.equal(images.flatten() * 255, labels.float())
    assert sum(len(labels) for _, labels in plain.images_of(source, torch.device("cpu"))) == 10


def scores(numbers: dict[tuple[str, int], tuple[float, float]]) -> list[Row]:
    cost: Row = {"parameters": 1234, "multiply_adds": 2_500_000}
    return [
        {"arm": arm, "seed": seed, **cost, "top1": top1, "train_top1": training}
        for (arm, seed), (top1, training) in numbers.items()
    ]


ROWS = scores(
    {
        ("a", 0): (0.50, 0.60),
        ("a", 1): (0.52, 0.61),
        ("a", 2): (0.9, 0.9),
        ("b", 1): (0.51, 0.63),
        ("b", 0): (0.47, 0.62),
    }
)


def test_accuracies_are_compared_with_the_same_seed() -> None:
    assert apart(ROWS, ("a", "b"), "top1") == {0: pytest.approx(3), 1: pytest.approx(1)}
    assert apart(ROWS, ("a", "b"), "gap") == {0: pytest.approx(-5), 1: pytest.approx(-3)}
    lines = accuracies(ROWS, ["a", "b", "c"]).splitlines()
    assert lines[2].startswith("| a | 3 | 1,234 | 2.50 M | 64.00 [8.01, 119.99] | 50.00 - 90.00 | 70.33 [")
    assert len(lines) == 4
    lines = differences(ROWS, [("a", "b")], ["top1", "gap"]).splitlines()
    # means 2 and -4, deviation 1.414, t = 2 and -4 with one degree of freedom: p = 0.295 and 0.156, twice the smaller
    assert lines[2] == "| a - b | validation top-1 | +3.00, +1.00 | +2.00 [-10.71, +14.71] | 0.31 | 2 |"
    assert lines[3].endswith("| -5.00, -3.00 | -4.00 [-16.71, +8.71] | 0.31 | 2 |")
    assert differences(ROWS, [("a", "c")], ["top1"]) == ""


def test_accuracies_are_drawn(tmp_path: Path) -> None:
    draw(ROWS, ["a", "b", "c"], [("a", "b"), ("b", "c")], ["top1", "gap"], "title", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_words() -> None:
    assert estimate(Estimate(0.614, 0.55, 0.678, 9)) == "0.61 [0.55, 0.68]"
    assert estimate(Estimate(0.614, math.nan, math.nan, 1), digits=1, sign=True) == "+0.6"
    assert percent(Estimate(29 / 30, 0.828, 0.999, 30)) == "97 % [83, 100]"
    assert [p_value(p) for p in (math.nan, 1e-9, 0.0123, 1.0)] == ["-", "< 0.0001", "0.012", "1"]
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


@pytest.mark.parametrize(
    "asked",
    [
        "specialisation",
        "specialisation --data imagenette224 --seeds 5",
        "correlation",
        "fashion_mnist",
        "fashion_mnist --variant few",
        "two_lanes_or_one",
    ],
)
def test_published_tables_are_those_of_the_published_runs(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of docs/studies.md, as far as runs are made: collecting them again, in a fresh clone, changes nothing."""
    name, *options = asked.split()
    root, results = command.ROOT, tmp_path / command.RESULTS
    published = (root / command.PAGE).read_text()
    results.mkdir(parents=True)
    for table in (root / command.RESULTS).glob("*.csv"):
        shutil.copy(table, results)
    (tmp_path / command.PAGE).write_text(published)
    monkeypatch.setattr(command, "ROOT", tmp_path)
    main(load(f"studies/{name}").STUDY, ["--collect", *options])
    assert (tmp_path / command.PAGE).read_text() == published
    collected = capsys.readouterr().out.strip()
    assert collected in published
    for picture in re.findall(r"\]\((\S+\.png)\)", collected):
        assert (root / "docs" / picture).is_file()


def test_rows_say_nothing_of_the_machine_s_folders() -> None:
    for table in (command.ROOT / command.RESULTS).glob("*.csv"):
        for row in csv.DictReader(table.read_text().splitlines()):
            assert "/" not in row["data"], json.dumps(row)
