"""The scripts' own arithmetic: results that are kept, tables, figures; what they run is tested elsewhere."""

import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

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
def price() -> ModuleType:
    return load("price-of-talking")


def runs_of(price: ModuleType) -> dict[tuple[str, int], object]:
    top1 = {("never", 0): 0.5, ("never", 1): 0.52, ("at conv3", 0): 0.6}
    sent = {"never": 40.0, "at conv3": 2048.0}
    return {key: price.Run(*key, sent[key[0]], 1000, accuracy, 1.5, 60.0) for key, accuracy in top1.items()}


def test_finished_runs_are_kept(price: ModuleType, tmp_path: Path) -> None:
    runs = runs_of(price)
    price.save(tmp_path / "results.csv", runs)
    assert price.load(tmp_path / "results.csv") == runs
    assert price.load(tmp_path / "nothing.csv") == {}


def test_the_table_says_mean_spread_and_number(price: ModuleType) -> None:
    lines = price.table(runs_of(price)).splitlines()
    assert lines[2] == "| never | 0.0 KiB | 1,000 | 51.00 ± 1.41 % | 50.00 - 52.00 | 2 |"
    assert lines[3] == "| at conv3 | 2.0 KiB | 1,000 | 60.00 ± - % | 60.00 - 60.00 | 1 |"


def test_the_price_is_drawn(price: ModuleType, tmp_path: Path) -> None:
    price.draw(runs_of(price), "title", tmp_path / "price.png")
    with Image.open(tmp_path / "price.png") as picture:
        assert len(picture.convert("RGB").reduce(4).getcolors(10**6)) > 50, "an empty sheet"


def test_results_of_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    (tmp_path / "settings.txt").write_text("configs/cifar10.yaml --trainer.max_epochs 7\n")
    answer = subprocess.run(
        [
            sys.executable,
            SCRIPTS / "price-of-talking",
            "--out",
            tmp_path,
            "-c",
            SCRIPTS.parent / "configs/cifar10.yaml",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 2
    assert "holds runs of 'configs/cifar10.yaml --trainer.max_epochs 7'; give another --out" in answer.stderr


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
