"""The scripts' own arithmetic: results that are kept, tables, figures; what they run is tested elsewhere."""

import subprocess
import sys
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from PIL import Image

import lanes

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load(name: str) -> ModuleType:
    """A script as a module; its main() does not run."""
    loader = SourceFileLoader(name.replace("-", "_"), str(SCRIPTS / name))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = sys.modules[loader.name] = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return load("study")


def runs_of(study: ModuleType) -> dict[tuple[str, int], object]:
    top1 = {("never", 0): 0.5, ("never", 1): 0.52, ("at conv3", 0): 0.6, ("everywhere", 1): 0.515}
    costs = {"never": (40.0, 1000, 9 * 10**6), "at conv3": (2048.0, 1100, 10**7), "everywhere": (8192.0, 1200, 10**7)}
    return {
        key: study.Run("price-of-talking", *key, *costs[key[0]], accuracy, 1.5, 60.0) for key, accuracy in top1.items()
    }


def test_finished_runs_are_kept(study: ModuleType, tmp_path: Path) -> None:
    runs = runs_of(study)
    study.save(tmp_path / "results.csv", runs)
    assert study.load(tmp_path / "results.csv") == runs
    assert study.load(tmp_path / "nothing.csv") == {}


def test_the_table_says_cost_mean_spread_and_number(study: ModuleType) -> None:
    lines = study.table(study.STUDIES["price-of-talking"], runs_of(study)).splitlines()
    assert lines[0].startswith("| lanes meet | sent per image and device |")
    assert lines[2] == "| never | 0.0 KiB | 1,000 | 9.00 M | 51.00 ± 1.41 % | 50.00 - 52.00 | 2 |"
    assert lines[3] == "| at conv3 | 2.0 KiB | 1,100 | 10.00 M | 60.00 ± - % | 60.00 - 60.00 | 1 |"


def test_variants_are_compared_with_the_first_by_seed(study: ModuleType) -> None:
    price = study.STUDIES["price-of-talking"]
    assert study.paired(price, runs_of(study)).splitlines()[2:] == [
        "| at conv3 | +10.00 | +10.00 ± - | 1 |",
        "| everywhere | -0.50 | -0.50 ± - | 1 |",  # with seed 1, which is 52 % of the first
    ]


def test_published_accuracies_are_those_of_the_published_runs(study: ModuleType) -> None:
    docs = SCRIPTS.parent / "docs"
    rows = study.table(study.STUDIES["price-of-talking"], study.load(docs / "price-of-talking.csv")).splitlines()[2:]
    assert len(rows) == 4
    for row in rows:
        name, *_, top1, values, number = row.strip("| ").split(" | ")
        assert f"| {top1} | {values} | {number} |\n" in (docs / "price-of-talking.md").read_text(), name


@pytest.mark.parametrize("name", ["price-of-talking", "cardinality"])
def test_a_study_is_drawn(study: ModuleType, tmp_path: Path, name: str) -> None:
    labels = dict(zip(study.STUDIES["price-of-talking"].variants, study.STUDIES[name].variants, strict=True))
    runs = {(labels[key], seed): replace(run, variant=labels[key]) for (key, seed), run in runs_of(study).items()}
    study.draw(study.STUDIES[name], runs, "title", tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as picture:
        assert len(picture.convert("RGB").reduce(4).getcolors(10**6)) > 50, "an empty sheet"


def test_cardinalities_cost_the_same(study: ModuleType) -> None:
    arguments = study.STUDIES["cardinality"].variants.values()
    work = [lanes.grouping_report(lanes.models.CifarResNeXt(**some)).multiply_adds for some in arguments]
    assert max(work) < 1.03 * min(work)
    assert [some["cardinality"] for some in arguments] == [1, 2, 4, 8]


@pytest.mark.parametrize("name", ["price-of-talking", "shuffle", "cardinality"])
def test_variants_are_arguments_of_the_network(study: ModuleType, name: str) -> None:
    for variant, wanted in study.STUDIES[name].variants.items():
        words = study.STUDIES[name].keys(variant)
        given = dict(zip(words[::2], map(yaml.safe_load, words[1::2]), strict=True))
        assert given == {f"--model.net.init_args.{argument}": value for argument, value in wanted.items()}
        config = yaml.safe_load((SCRIPTS.parent / study.STUDIES[name].config).read_text())["model"]["net"]
        with torch.device("meta"):
            getattr(lanes.models, config["class_path"].rpartition(".")[2])(**{**config["init_args"], **wanted})


def test_results_of_other_settings_are_not_mixed_in(study: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "settings.txt").write_text("price-of-talking configs/cifar10.yaml --trainer.max_epochs 7\n")
    study.save(tmp_path / "results.csv", runs_of(study))
    words = [sys.executable, SCRIPTS / "study", "price-of-talking", "--out", tmp_path]
    answer = subprocess.run(words, cwd=SCRIPTS.parent, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "holds runs of 'price-of-talking configs/cifar10.yaml --trainer.max_epochs 7'; give another" in answer.stderr


def test_curves_read_what_lightning_writes(tmp_path: Path) -> None:
    curves = load("curves")
    rows = ["epoch,step,train/loss,val/loss,val/top1", "0,4,2.0,,", "0,9,1.5,,", "0,9,,1.4,0.5", "1,19,,1.2,0.6"]
    (tmp_path / "metrics.csv").write_text("\n".join(rows) + "\n")
    series = curves.read(tmp_path)
    assert series["train/loss"] == [(0.5, 2.0), (1.0, 1.5)]
    assert series["val/top1"] == [(1.0, 0.5), (2.0, 0.6)]
    assert curves.smooth([(0, 1.0), (1, 2.0), (2, 6.0)], width=3) == [(0, 1.5), (1, 3.0), (2, 4.0)]
    curves.draw({"run": tmp_path}, "title", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_parity_tells_error_noise_and_refusals() -> None:
    parity = load("parity")
    cells = {
        "nin": dict.fromkeys(parity.MESHES, "2e-13 (4e-13)"),
        "shufflenet_v1_g3": {"1x1": "0e+00 (1e-13)", **dict.fromkeys(("1x2", "1x4", "2x2"), "refused: conv: no")},
    }
    lines = parity.table(cells).splitlines()
    assert lines[0] == "| network | 1x1 | 1x2 | 1x4 | 2x2 |"
    assert lines[3] == "| `shufflenet_v1_g3` | 0e+00 (1e-13) | refused | refused | refused |"
    assert lines[-1] == "- `shufflenet_v1_g3`: conv: no"
    measured = "nin                    1x2  outputs         error 2.0e-13   one-ulp noise of the plain model 4.1e-13"
    assert parity.MEASURED.match(measured).groups() == ("nin", "1x2", "outputs", "2.0e-13", "4.1e-13")
    assert parity.REFUSED.match("nin  1x4  refused: conv2a: 3 do not divide; use 1")[3].startswith("conv2a: 3")
