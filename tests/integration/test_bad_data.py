"""Bad data through the command: one line, exit code 2, no process started, no run folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.images import class_names, patches, write_parquet, write_rows
from tests.integration.command import ROOT, lanes, refused

CONFIG = ROOT / "configs" / "cifar10.yaml"


def whole(folder: Path) -> None:
    write_parquet(folder, count=20, size=32, classes=10, val_count=10)


def truncated(folder: Path) -> None:
    """The image of row 7 is cut off."""
    whole(folder)
    rows = patches(count=20, size=32, classes=10)
    rows[7] = (rows[7][0][:200], rows[7][1])
    write_rows(folder / "train-00000-of-00001.parquet", rows, class_names(10))


def corrupt(folder: Path) -> None:
    """The bytes of row 11 of the other split are of no image."""
    whole(folder)
    rows = patches(count=10, size=32, classes=10, seed=1)
    rows[3] = (b"no image", rows[3][1])
    next(folder.glob("validation-*")).unlink()
    write_rows(folder / "validation-00000-of-00001.parquet", rows, class_names(10))


def few_classes(folder: Path) -> None:
    write_parquet(folder, count=20, size=32, classes=4, val_count=10)


def empty_split(folder: Path) -> None:
    whole(folder)
    next(folder.glob("validation-*")).unlink()
    write_rows(folder / "validation-00000-of-00001.parquet", [], class_names(10))


CASES: dict[str, tuple[Callable[[Path], None], list[str], list[str]]] = {
    "a missing path": (whole, ["--data.source", "./nothing"], ["no file or folder './nothing'"]),
    "a wrong column": (whole, ["--data.label_column", "labl"], ["'labl'", "did you mean 'label'"]),
    "a wrong split": (whole, ["--data.val_split", "vall"], ["'vall'", "validation (10)"]),
    "a truncated image": (truncated, [], ["00007.png (row 7 of split 'train' of ", "on_bad_image to skip"]),
    "a corrupt image": (corrupt, [], ["00003.png (row 3 of split 'validation' of ", "no image format"]),
    "fewer classes than the net": (few_classes, [], ["4 classes", "10 apart", "set num_classes to 4"]),
    "ten views of the same": (whole, ["--data.views", "10"], ["views=10", "set stored_size above image_size=32"]),
    "an augmentation without its size": (
        whole,
        ["--data.augment", "[{class_path: kornia.augmentation.RandomCrop}]"],
        ["size is missing"],
    ),
    "an empty split": (empty_split, [], ["validation", "is empty"]),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    make, arguments, said = CASES[case]
    make(tmp_path / "images")
    (tmp_path / "work").mkdir()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "tables")
    monkeypatch.setenv("LANES_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "work")
    own = [] if "--data.source" in arguments else ["--data.source", str(tmp_path / "images")]
    arguments = ["fit", "-c", str(CONFIG), "--data.batch_size", "4", *own, *arguments]
    error = refused(arguments, monkeypatch, capfd)
    for words in said:
        assert words in error
    assert not list((tmp_path / "work").iterdir()), "something was spent"


def test_found_by_one_replica_while_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a cache an image is decoded when it is needed; who reads it says which, the others do not hang."""
    truncated(tmp_path / "images")
    for variable in ("HF_DATASETS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "cache"))
    data = {"source": tmp_path / "images", "cache": "off", "batch_size": 5, "num_workers": 1}
    given = {"mean": "[0.5, 0.5, 0.5]", "std": "[0.2, 0.2, 0.2]"}  # measuring would find it before
    settings = [word for key, value in (data | given).items() for word in (f"--data.{key}", value)]
    replicas = ("--trainer.strategy.lane_devices", 1, "--trainer.logger", "false", "--trainer.max_epochs", 1)
    answer = lanes("fit", "-c", CONFIG, *settings, *replicas, folder=tmp_path)
    assert answer.returncode == 1
    errors = {line for line in answer.stderr.splitlines() if "error:" in line}
    (bad,) = (line for line in errors if "another process has ended" not in line)
    assert "lanes fit: error: bad image: 00007.png (row 7 of split 'train' of " in bad
    assert "Traceback" not in answer.stderr
