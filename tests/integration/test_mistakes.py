"""Bad input: one line that names the value and the remedy, exit code 2, no stack trace, before anything is spent."""

from pathlib import Path

import pytest

from tests.integration.command import CONFIG, lanes

NET = "--model.net.init_args"
CASES = {
    "unknown layer in cross": ([f"{NET}.cross", "[conv9]"], ["conv9", "conv"]),
    "channels that do not divide by lanes": ([f"{NET}.lanes", "7"], ["48", "7"]),
    "groups that do not divide over the devices": (
        ["--trainer.strategy.lane_devices", "4", "--trainer.devices", "4"],
        ["norm1" if False else "2", "4 lane devices", "use 1 or 2 lane devices"],
    ),
    "lane devices that do not divide the devices": (
        ["--trainer.strategy.lane_devices", "3"],
        ["3 lane devices do not divide 2 devices", "use 1 or 2"],
    ),
    "a key with a typo": (["--model.sceduler", "1"], ["sceduler", "did you mean", "schedule"]),
    "a typo on the command line": (["--trainer.max_epoch", "1"], ["max_epoch", "did you mean", "max_epochs"]),
    "an unknown class": (["--model.net", "lanes.models.AlexNett"], ["AlexNett"]),
    "a layer that cannot be placed": (
        ["--model.net", "tests.integration.networks.WithLayerNorm"],
        ["norm", "LayerNorm", "cannot be placed"],
    ),
    "no such checkpoint": (["--ckpt_path", "nowhere.ckpt"], ["nowhere.ckpt", "no checkpoint"]),
    "fewer classes than the data": ([f"{NET}.num_classes", "3"], ["10 classes", "3", "num_classes"]),
    "a batch of nothing": (["--data.init_args.batch_size", "0"], ["batch_size", "0"]),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line(case: str, tmp_path: Path) -> None:
    arguments, said = CASES[case]
    answer = lanes("fit", "-c", CONFIG, *arguments, folder=tmp_path)
    errors = [line for line in answer.stderr.splitlines() if "error:" in line]
    assert answer.returncode == 2, answer.stderr
    assert len(errors) == 1, answer.stderr
    for words in said:
        assert words in errors[0]
    assert "Traceback" not in answer.stderr + answer.stdout
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_typo_in_a_file(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(CONFIG.read_text().replace("max_epochs", "max_epocs"))
    answer = lanes("fit", "-c", config, folder=tmp_path)
    assert answer.returncode == 2
    assert "max_epocs" in answer.stderr
    assert "did you mean 'trainer.max_epochs'" in answer.stderr


def test_no_such_config(tmp_path: Path) -> None:
    answer = lanes("fit", "-c", "nothing.yaml", folder=tmp_path)
    assert answer.returncode == 2
    assert "nothing.yaml" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_verbs(tmp_path: Path) -> None:
    answer = lanes("fitt", folder=tmp_path)
    assert answer.returncode == 2
    assert "did you mean 'fit'" in answer.stderr


def test_stack_trace_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The command's environment drops LANES_*, so ask within Python.
    from lanes.training.commands import Mistake, _fail  # noqa: PLC0415

    monkeypatch.setenv("LANES_DEBUG", "1")
    with pytest.raises(Mistake, match="wrong"):
        _fail("fit", Mistake("wrong"))
