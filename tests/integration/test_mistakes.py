"""Bad input: one line that names the value and the remedy, exit code 2, no stack trace, before anything is spent."""

import logging
import re
from pathlib import Path

import pytest

from lanes.cli import KEYS, main
from lanes.training import Photographs
from tests.integration.command import CONFIG, SMALL, lanes, refused

NET = "--model.net.init_args"
CASES = {
    "unknown layer in cross": ([f"{NET}.cross", "[conv9]"], ["conv9", "conv"]),
    "channels that do not divide by lanes": ([f"{NET}.lanes", "7"], ["48", "7"]),
    "groups that do not divide over the devices": (
        ["--trainer.strategy.lane_devices", "4", "--trainer.devices", "4"],
        ["norm1", "2 lanes", "4 lane devices", "use 1 or 2 lane devices"],
    ),
    "lane devices that do not divide the devices": (
        ["--trainer.strategy.lane_devices", "3"],
        ["3 lane devices do not divide 2 devices", "use 1 or 2"],
    ),
    "a key with a typo": (["--model.sceduler", "1"], ["sceduler", "did you mean", "schedule"]),
    "a typo on the command line": (["--trainer.max_eposh", "1"], ["max_eposh", "did you mean 'trainer.max_epochs'"]),
    "a typo of the network": ([f"{NET}.lane", "4"], ["'lane'", "did you mean 'lanes'"]),
    "a typo of the data": (["--data.init_args.batchsize", "4"], ["'batchsize'", "did you mean 'batch_size'"]),
    "an unknown class": (["--model.net", "lanes.models.AlexNett"], ["AlexNett", "did you mean 'AlexNet'"]),
    "an unknown layer to picture": (
        ["--trainer.callbacks+", "lanes.training.FilterPictures", "--trainer.callbacks.layer", "conv9"],
        ["conv9", "conv1"],
    ),
    "a key of another entry of a list": (
        ["--trainer.callbacks.layer", "conv9"],
        ["no key 'layer' at that place", "goes to its last entry"],
    ),
    "a layer that cannot be placed": (
        ["--model.net", "tests.integration.networks.WithLayerNorm", "--trainer.strategy.lane_devices", "2"],
        ["norm", "LayerNorm over [62, 62]", "ChannelLayerNorm"],
    ),
    "a setting that the optimizer has not": (
        ["--model.parameter_groups", '[{match: "*.bias", settings: {momentumm: 0.5}}]'],
        ["'*.bias'", "no setting 'momentumm'", "did you mean 'momentum'"],
    ),
    "an optimizer's own refusal": (["--model.optimizer.init_args.lr", "-1"], ["Invalid learning rate: -1"]),
    "a key cut short": (
        ["--trainer.max_epoch", "3"],
        ["no key 'trainer.max_epoch'", "did you mean 'trainer.max_epochs'"],
    ),
    "an unknown callback": (
        ["--trainer.callbacks+", "lanes.training.FilterPicture"],
        ["no 'FilterPicture' in lanes.training", "did you mean 'FilterPictures'"],
    ),
    "a callback without its module": (["--trainer.callbacks+", "FilterPictures2"], ["no class 'FilterPictures2'"]),
    "health between logging steps": (
        ["--trainer.callbacks+", "lanes.training.Health", "--trainer.callbacks.every_n_steps", "7"],
        ["every_n_steps=7 is no multiple of trainer.log_every_n_steps"],
    ),
    "no such checkpoint": (["--ckpt_path", "nowhere.ckpt"], ["nowhere.ckpt", "no checkpoint"]),
    "fewer classes than the data": ([f"{NET}.num_classes", "3"], ["10 classes", "3", "num_classes"]),
    "more classes than the data": ([f"{NET}.num_classes", "12"], ["10 classes", "12", "set num_classes to 10"]),
    "another image size": (["--data.init_args.image_size", "32"], ["fc6", "[2, 3, 32, 32]", "image size"]),
    "lane devices of nothing": (["--trainer.strategy.lane_devices", "0"], ["lane_devices", "at least 1, got 0"]),
    "nothing to monitor": (["--checkpoint.monitor", "val/top2"], ["ModelCheckpoint", "'val/top2'", "did you mean"]),
    "a batch of nothing": (["--data.init_args.batch_size", "0"], ["batch_size", "0"]),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, said = CASES[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANES_RUN_FOLDER", str(tmp_path / "run"))
    error = refused(["fit", "-c", str(CONFIG), *arguments], monkeypatch, capfd)
    for words in said:
        assert words in error
    assert not list(tmp_path.iterdir()), "something was spent"


def test_the_command_itself(tmp_path: Path) -> None:
    answer = lanes("fit", "-c", CONFIG, "--trainer.strategy.lane_devices", "3", folder=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr.splitlines()[-1].startswith("lanes fit: error: 3 lane devices do not divide 2 devices")
    assert "Traceback" not in answer.stderr + answer.stdout
    assert not list(tmp_path.iterdir()), "something was spent"


def test_a_typo_in_a_file(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(CONFIG.read_text().replace("max_epochs", "max_epocs"))
    answer = lanes("fit", "-c", config, folder=tmp_path)
    assert answer.returncode == 2
    assert "max_epocs" in answer.stderr
    assert "did you mean 'trainer.max_epochs'" in answer.stderr


def test_no_such_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "-c", "nothing.yaml"])
    answer = capfd.readouterr().err
    assert "nothing.yaml" in answer
    assert "Traceback" not in answer


def test_verbs(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["fitt"])
    assert "did you mean 'fit'" in capfd.readouterr().err


def test_stack_trace_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANES_DEBUG", "1")
    monkeypatch.setenv("LANES_RUN_FOLDER", str(tmp_path / "run"))
    with pytest.raises(ValueError, match="3 lane devices"):
        main(["fit", "-c", str(CONFIG), "--trainer.strategy.lane_devices", "3"])


def test_evaluation_needs_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["validate", "-c", str(CONFIG)])
    assert "give --ckpt_path" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["features", "-c", str(CONFIG), "nowhere.ckpt", "--layer", "conv33"], ["'conv33'", "did you mean 'conv3'"]),
        (["features", "-c", str(CONFIG), "nowhere.ckpt", "--layer", "conv3"], ["nowhere.ckpt", "no checkpoint"]),
        (["features", "-c", str(CONFIG), "nowhere.ckpt"], ["layer is missing; give it on the command line"]),
        (["features", "-c", str(CONFIG), "--layer", "conv3"], ["ckpt_path is missing; give"]),
        (["features", "-c", str(CONFIG), "a.ckpt", "--layer", "conv3", "--split", "vall"], ["split", "vall", "train"]),
        (["check", "-c", str(CONFIG), "--images", "0"], ["--images 0", "at least 1"]),
        (["check", "-c", str(CONFIG), "--imges", "1"], ["imges", "did you mean 'images'"]),
    ],
)
def test_one_line_of_our_own_verbs(
    arguments: list[str],
    said: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    error = refused(arguments, monkeypatch, capfd)
    for words in said:
        assert words in error
    assert not list(tmp_path.iterdir()), "something was spent"


def test_data_that_cannot_be_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A bad image is found before processes start."""

    def prepare_data(self: Photographs) -> None:
        raise ValueError("row 7 of train.parquet: the image cannot be read")

    monkeypatch.setattr(Photographs, "prepare_data", prepare_data)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "-c", str(CONFIG)])
    assert "lanes fit: error: row 7 of train.parquet: the image cannot be read" in capfd.readouterr().err
    assert not list(tmp_path.iterdir()), "something was spent"


def test_a_check_that_cannot_be(tmp_path: Path) -> None:
    """What only started processes can find is told in one line too, by each of them."""
    few = ("--data.init_args.num_train", 24, "--data.init_args.num_val", 10, "--data.init_args.batch_size", 16)
    answer = lanes("check", "-c", CONFIG, *few, "--trainer.strategy.lane_devices", 1, folder=tmp_path)
    assert answer.returncode == 2
    (error,) = {line for line in answer.stderr.splitlines() if "error:" in line}
    assert "the training data have 1 batches, 2 replicas need one each; lower batch_size" in error
    assert "Traceback" not in answer.stderr


def test_training_that_explodes(tmp_path: Path) -> None:
    """All processes stop together, with one line that says when, where and what to do."""
    wild = (
        "--model.optimizer.init_args.lr",
        "1e30",
        "--trainer.gradient_clip_val",
        "null",
        "--trainer.logger",
        "false",
    )
    answer = lanes("fit", "-c", CONFIG, *SMALL, *wild, folder=tmp_path)
    assert answer.returncode == 1
    (error,) = (line for line in answer.stderr.splitlines() if "error:" in line)
    assert re.match(r"lanes fit: error: training stopped at step \d+: the loss is not finite", error)
    assert "lower the learning rate" in error
    assert "Traceback" not in answer.stderr


def test_the_short_help_names_keys_that_exist(capfd: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--help"])
    short = capfd.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--help_all"])
    every = capfd.readouterr().out
    assert len(short.splitlines()) < 40 < len(every.splitlines())
    keys = [key for key in KEYS if key.startswith("--")]
    assert all(key in short for key in keys)
    words = set(re.findall(r"--[\w.]+", every))
    # What belongs to a chosen class (the strategy's arguments) is not in Lightning's list.
    assert [key for key in keys if key not in words] == ["--trainer.strategy.lane_devices"]
