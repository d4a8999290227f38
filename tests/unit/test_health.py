"""What health, rates and checks say in words; their numbers are in tests/distributed."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.profilers import SimpleProfiler

from lanes.checking import CheckReport, Finding
from lanes.training.command_line import LanesCLI
from lanes.training.health import Health
from lanes.training.rates import AUGMENT, FETCH, Rates, _Stopwatch


def finding(name: str, *errors: float, noise: float = 1e-15) -> Finding:
    return Finding(name, torch.tensor([errors], dtype=torch.float64), noise)


def test_a_report_that_passes() -> None:
    report = CheckReport({"outputs": [finding("conv1", 0, 1e-15), finding("conv2", 2e-15, 0)]}, 1, 2)
    assert report.passed
    assert report.fault is None
    assert "conv2, lane device 0" in str(report), "where the largest error is"
    assert str(report).splitlines()[-1] == "PASSED: the placed model equals the plain one"


def test_a_report_names_what_came_first_not_what_is_largest() -> None:
    groups = {
        "weights before": [finding("conv1.weight", 0, 0)],
        "outputs": [finding("conv1", 1e-15, 0), finding("conv2", 0, 1e-6), finding("conv3", 0.5, 0.5)],
    }
    report = CheckReport(groups, 1, 2)
    assert not report.passed
    assert str(report).splitlines()[-1] == "FAILED: conv2: outputs differ by 1.0e-06 on lane device 1"


def test_noise_of_the_plain_model_raises_the_bound() -> None:
    """A network whose own rounding is 1e-6 cannot be held to 1e-9."""
    noisy = {"gradients": [finding("a", 5e-6, noise=1e-6), finding("b", 0.0)]}
    assert CheckReport(noisy, 1, 1).passed
    assert CheckReport(noisy, 1, 1).bound("gradients") == pytest.approx(1e-5)
    assert not CheckReport({"gradients": [finding("a", 5e-6, noise=1e-7)]}, 1, 1).passed


def test_many_devices_are_counted() -> None:
    errors = torch.full((2, 3), 1.0, dtype=torch.float64)
    report = CheckReport({"outputs": [Finding("conv1", errors, 0.0)]}, 2, 3)
    assert report.fault == "conv1: outputs differ by 1.0e+00 on 6 devices, the first lane device 0 of replica 0"


def test_how_often_makes_sense() -> None:
    with pytest.raises(ValueError, match="every_n_steps=0 must be at least 1"):
        Health(every_n_steps=0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"on_non_finite": "skipp"}, "there is no on_non_finite='skipp'; did you mean 'skip'? (there are stop, skip"),
        ({"on_non_finite": False}, "there is no on_non_finite=False (there are stop, skip, roll_back)"),
        ({"on_non_finite": "skip", "max_in_a_row": 0}, "max_in_a_row=0 must be at least 1; to stop at once: "),
        ({"on_non_finite": "roll_back", "max_roll_backs": 0}, "max_roll_backs=0 must be at least 1"),
    ],
)
def test_what_to_do_makes_sense(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        Health(**given)


def test_what_was_skipped_is_counted_on() -> None:
    state = {"skipped_steps": 4, "in_a_row": 2}
    health = Health(on_non_finite="skip")
    health.load_state_dict(state)
    assert health.state_dict() == state
    stopping = Health()
    stopping.load_state_dict(state)
    assert stopping.state_dict() == {}


def test_the_configurations_own_takes_the_defaults_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the default one would stop what the other one skips."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # is set, and put back
    config = Path(__file__).parents[2] / "configs" / "photographs.yaml"
    own = ["--trainer.callbacks+=lanes.training.Health", "--trainer.callbacks.on_non_finite=skip"]
    for more, policies in (([], ["stop"]), (own, ["skip"])):
        callbacks = LanesCLI("plan", ["-c", str(config), *more]).trainer.callbacks
        assert [c._remedy.policy for c in callbacks if isinstance(c, Health)] == policies
        assert any(isinstance(c, Rates) for c in callbacks), "the others stay"


def test_the_stopwatch_adds_up_and_leaves_the_profiler_alone() -> None:
    profiler = SimpleProfiler()
    watch = _Stopwatch(profiler)
    for _ in range(2):
        with profiler.profile(f"[_TrainingEpochLoop].{FETCH}"):
            time.sleep(0.01)
    with profiler.profile("[Callback]Slow.on_train_batch_end"):
        time.sleep(0.01)
    assert set(watch.seconds) == {FETCH}
    assert 0.02 <= watch.seconds[FETCH] < 1
    assert AUGMENT not in watch.seconds
    assert len(profiler.recorded_durations[f"[_TrainingEpochLoop].{FETCH}"]) == 2, "the profiler still works"
    watch.remove()
    with profiler.profile(f"[_TrainingEpochLoop].{FETCH}"):
        pass
    assert watch.seconds[FETCH] < 1
    assert len(profiler.recorded_durations[f"[_TrainingEpochLoop].{FETCH}"]) == 3
    assert "start" not in vars(profiler)
