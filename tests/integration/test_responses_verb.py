"""``lanes responses``: the command, and its mistakes before anything is read."""

import csv
import hashlib
import json
from pathlib import Path

import lightning
import pytest
import torch
from torch import Tensor, nn

import lanes as package
from lanes.models import SmallAlexNet
from lanes.training.image_choice import in_order
from lanes.training.photographs import Photographs
from tests.integration.command import CONFIG, lanes, refused


class Twice(nn.Module):
    """Its second convolution runs twice."""

    lanes = 2

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.flatten(self.pool(self.conv2(self.conv2(self.conv1(x))))))
        return logits


TWICE = ["--model.net", f"{__name__}.Twice"]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def files(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_command(tmp_path: Path) -> None:
    """Two lane devices, some of the images; a pair with too few of them is said to be, and the rest is there."""
    torch.manual_seed(3)
    state = {"pytorch-lightning_version": lightning.__version__}
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    package.save_checkpoint(checkpoint, SmallAlexNet(10, 2), state=state)
    before = files(checkpoint)
    small = ("--data.init_args.num_train", 40, "--data.init_args.num_val", 40, "--data.init_args.batch_size", 10)
    arguments = ("run/checkpoints/last.ckpt", "--layers", "fc6", "conv5", "fc7", "--images", 24)
    answer = lanes("responses", "-c", CONFIG, *small, *arguments, folder=tmp_path, timeout_s=300)
    assert answer.returncode == 0, answer.stderr
    folder = tmp_path / "run" / "responses"
    assert answer.stdout.splitlines()[-1] == "responses: run/responses"
    assert "24 images, 2 lanes" in answer.stdout
    assert files(checkpoint) == before
    first, second = table(folder / "covariance.csv")
    assert (first["first"], first["second"], first["remark"]) == ("conv5", "fc6", ""), "in the order of the forward"
    assert (second["first"], second["second"], second["samples"]) == ("fc6", "fc7", "24")
    assert second["block_ratio_whitened"] == ""
    assert second["remark"].startswith("24 samples (pixels of all images) are too few for 256 + 256 channels")
    assert second["remark"] in answer.stdout
    assert len(table(folder / "responses-conv5.csv")) == 96
    assert {row["n"] for row in table(folder / "lesion.csv")} == {"24"}
    pictures = sorted(path.name for path in folder.glob("*.png"))
    assert pictures == ["square-conv5-fc6-correlation.png", "square-conv5-fc6-whitened.png"]
    about = json.loads((folder / "about.json").read_text())
    assert about == {"checkpoint": "run/checkpoints/last.ckpt", "split": "val", "images": "24", "lanes": "2"}


def test_drawn_images_are_the_same_every_time_and_of_all_classes() -> None:
    data = Photographs(8, image_size=16, num_train=10, num_val=200)
    labels = [torch.cat([y for _, y in in_order(data.val_dataloader(), images=50)]) for _ in range(2)]
    assert torch.equal(*labels)
    assert len(labels[0]) == 50
    assert len(labels[0].unique()) == 10, "every fourth image would be of five classes only"
    whole = torch.cat([y for _, y in in_order(data.val_dataloader(), images=1000)])
    assert torch.equal(whole, data.val_set.labels)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.ckpt", "--layers", "conv1", "conv33"], ["'conv33'", "did you mean 'conv3'", "it has conv1, relu1"]),
        (["nowhere.ckpt"], ["nowhere.ckpt", "no checkpoint"]),
        (["nowhere.ckpt", "--images", "0"], ["--images 0 is too few: give at least 1"]),
        (
            ["nowhere.ckpt", "--images", "1", "--trainer.strategy.lane_devices", "1"],
            ["--images 1 is too few: give at least 2: each of 2 replicas reads its own"],
        ),
        (["nowhere.ckpt", "--lanes", "0"], ["--lanes 0 is too few: give at least 1"]),
        (["nowhere.ckpt", "--lanes", "5", "--layers", "conv1", "fc7"], ["--lanes 5: conv1, fc7 have no channels that"]),
        (["nowhere.ckpt", "--split", "vall"], ["split", "vall", "train"]),
        (["nowhere.ckpt", "--out", __file__], ["--out", "is a file; name a folder"]),
        (["nowhere.ckpt", "--layers", "conv2", *TWICE], ["conv2 runs 2 times in one forward", "run once: conv1, pool"]),
    ],
)
def test_one_line(
    arguments: list[str],
    said: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    error = refused(["responses", "-c", str(CONFIG), *arguments], monkeypatch, capfd)
    for words in said:
        assert words in error
    assert not list(tmp_path.iterdir()), "something was spent"


def test_features_of_a_layer_that_runs_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    error = refused(["features", "-c", str(CONFIG), "x.ckpt", "--layer", "conv2", *TWICE], monkeypatch, capfd)
    assert "conv2 runs 2 times in one forward; which output is meant is not clear" in error
