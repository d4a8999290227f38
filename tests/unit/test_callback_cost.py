"""scripts/callback_cost: what belongs to which epoch, and the table."""

import json
from pathlib import Path

import pytest

from tests.unit.test_scripts import load


@pytest.fixture(scope="module")
def script():
    return load("callback_cost")


def test_times_are_those_of_their_epoch(script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(script.time, "perf_counter", lambda: now[0])
    watch = script.Stopwatch(str(tmp_path / "times.json"))

    def act(name: str, seconds: float) -> None:
        watch.start(name)
        now[0] += seconds
        watch.stop(name)

    act("[Callback]LayerSquares.on_train_start", 7)
    for epoch in (1, 2):
        watch.start("run_training_epoch")
        for step in (9, 2, 3, 4):  # the first warms up; what the last took is not known
            act("run_training_batch", step)
        act("[Callback]LayerSquares.on_validation_batch_start", 0.5 * epoch)
        act("[Callback]LayerSquares.on_validation_batch_start", 0.25)
        act("[Callback]Rates.on_train_batch_end", 100)
        watch.stop("run_training_epoch")
        act("[Callback]Specialisation.on_train_epoch_end", 0.1)
    act("[Callback]FilterPictures.on_fit_end", 1)
    watch.teardown("fit")
    found = json.loads((tmp_path / "times.json").read_text())
    assert found["step"] == [2, 3, 2, 3]
    assert found["LayerSquares"] == [0.75, 1.25]
    assert found["Specialisation"] == pytest.approx([0.1, 0.1])
    assert found["SamplePredictions"] == [0, 0]
    assert found["once"] == [8]


def test_the_table_tells_shares(script) -> None:
    times = {name: [0.1, 0.2, 0.6] for name in script.LOOKS} | {"step": [0.5, 1.0, 1.5], "once": [3.0]}
    lines = script.table(times, 100).splitlines()
    assert lines[2] == "| `FilterPictures` | 200 ms | 100 - 600 ms | 3 | 0.200% |"
    assert lines[6] == "| together | 800 ms | 400 - 2400 ms | 3 | 0.800% |"
    assert lines[-1].startswith("A step takes 1000 ms (quartiles 500 and 1500, n = 3), an epoch of 100 steps 100 s.")
