"""Every file in configs/: its header, two steps of training, and ``lanes check``, on a small real image set."""

from pathlib import Path

import pytest
import yaml

from tests.images import write_parquet
from tests.integration.command import ROOT, lanes

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
HEADER = ("# Question:", "# Command:", "# Expected:", "# Time:")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches of photographs as Parquet files, in place of a set that has to be downloaded."""
    folder = tmp_path_factory.mktemp("images")
    write_parquet(folder, count=24, size=64, classes=3, val_count=6)
    return folder


def on_small_data(config: Path, source: Path) -> list[object]:
    """Keys that replace the config's data by a few images of the same form."""
    data = yaml.safe_load(config.read_text())["data"]
    if data["class_path"].endswith("Photographs"):
        return ["--data.num_train", 16, "--data.num_val", 10, "--data.batch_size", 8]
    hub = ["--data.config_name", "null"] if "config_name" in data["init_args"] else []
    net = ["--model.net.init_args.num_classes", 3]
    return [*net, "--data.source", source, *hub, "--data.cache_dir", source.with_name("cache"), "--data.batch_size", 4]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_header(config: Path) -> None:
    lines = config.read_text().splitlines()
    header = [line for line in lines[: lines.index("seed_everything: 0")] if not line.startswith("#      ")]
    assert [next(h for h in HEADER if line.startswith(h)) for line in header] == list(HEADER)
    assert f"-c configs/{config.name}" in config.read_text(), "the command names another file"


@pytest.mark.parametrize(
    "config", [path for path in CONFIGS if "imagenet_" not in path.stem], ids=lambda path: path.stem
)
def test_two_steps(config: Path, source: Path, tmp_path: Path) -> None:
    short = ["--trainer.max_steps", 2, "--trainer.max_epochs", 1, "--trainer.limit_val_batches", 1]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.logger", "false", "--checkpoint.save_top_k", 0]
    answer = lanes("fit", "-c", config, *on_small_data(config, source), *short, *quiet, folder=tmp_path, timeout_s=280)
    assert answer.returncode == 0, answer.stderr
    assert "after 2 steps" in answer.stdout
    assert "Warning" not in answer.stderr, answer.stderr


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_check(config: Path, source: Path, tmp_path: Path) -> None:
    replicas = "lane_devices: 1" in config.read_text()  # of a whole AlexNet each: one of them is slow enough
    layout = ["--trainer.devices", 1] if replicas else []
    images = 2 if "imagenet_" in config.stem else 4  # at 224 pixels in float64, three times over
    answer = lanes(
        "check",
        "-c",
        config,
        *on_small_data(config, source),
        *layout,
        "--images",
        images,
        folder=tmp_path,
        timeout_s=280,
    )
    assert answer.returncode == 0, answer.stderr + answer.stdout
    assert "PASSED" in answer.stdout.splitlines()[-1]
