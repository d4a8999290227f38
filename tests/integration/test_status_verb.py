"""``lanes status`` beside a real training: while it runs, and when it was killed."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.integration.command import lanes
from tests.integration.test_faults import training


@pytest.mark.timeout(400)
def test_a_training_under_way_and_killed(tmp_path: Path) -> None:
    with training(tmp_path) as under_way:
        told = json.loads((tmp_path / "runs" / "1" / "progress.json").read_text())
        assert (told["doing"], told["steps"], told["job"]) == ("training", 4 * 32, None)
        assert told["pid"] == under_way.rank(0)
        assert told["log"] == str(tmp_path / "said.txt")
        answer = lanes("status", folder=tmp_path)
        head, _, row = answer.stdout.splitlines()
        assert head.split()[:4] == ["job", "name", "state", "step"]
        assert " training " in row, answer
        assert " of 128 (" in row
        assert "said.txt" in row
        os.kill(under_way.process.pid, signal.SIGKILL)
        under_way.ended(within_s=30)
    assert " killed while training " in lanes("status", folder=tmp_path).stdout
    answer = lanes("status", "--runs", tmp_path / "nowhere", folder=tmp_path)
    assert "no training (looked below" in answer.stderr
