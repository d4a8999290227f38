"""A study with the real command, of tiny runs: listed, made by number, killed in the middle, gone on, collected."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.command import ROOT

TINY = ("--set", "num_train=128", "num_val=20", "epochs=1", "batch_size=32")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def study(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "scripts/studies/specialisation"), *map(str, arguments)]


def ran(*arguments: object) -> str:
    answer = subprocess.run(
        study(*arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=400, check=False, cwd="/"
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.mark.timeout(600)  # six processes, one after another
def test_a_study_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    out = ("--out", tmp_path, "--seeds", 1, *TINY)
    lines = ran(*out, "--list").splitlines()
    assert [line.split("\t") for line in lines] == [
        [str(number), f"{arm}, seed 0", "missing"]
        for number, arm in enumerate(("two lanes", "no lanes", "meet at conv2", "four lanes"))
    ]
    assert "run 1 (no lanes, seed 0) is made" in ran(*out, "--run", 1)
    made = tmp_path / "specialisation" / "no-lanes-0.json"
    first = made.read_text()

    process = subprocess.Popen(study(*out), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    end = time.monotonic() + 400
    while not (tmp_path / "specialisation" / "two-lanes-0.json").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "specialisation.csv").exists()

    text = ran(*out)
    assert made.read_text() == first, "what was made stays"
    with (tmp_path / "specialisation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"] for row in rows] == ["two lanes", "no lanes", "meet at conv2", "four lanes"]
    assert {row["steps"] for row in rows} == {"4"}
    assert all(0 <= float(row["without1/grey"]) <= 1 and 0 <= float(row["p/colour_selectivity@0"]) <= 1 for row in rows)
    assert [bool(row["lane3/colour_selectivity"]) for row in rows] == [False, False, False, True]
    assert "two lanes 1 of 1; no lanes 1 of 1; meet at conv2 1 of 1; four lanes 1 of 1. None is missing." in text
    assert (tmp_path / "specialisation.png").stat().st_size > 10_000
    assert (tmp_path / "specialisation.md").read_text().strip() in text
