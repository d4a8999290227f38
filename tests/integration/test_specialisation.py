"""What each lane becomes, logged while training in lanes, equals what the checkpoint's filters say afterwards."""

import csv
from pathlib import Path

from safetensors.torch import load_file

from lanes.analysis.specialisation import in_words, specialisation
from tests.integration.command import CONFIG, CSV, SMALL, lanes


def test_logged_numbers_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    answer = lanes("fit", "-c", CONFIG, *SMALL, *CSV, folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    (log,) = tmp_path.glob("log/**/metrics.csv")
    with log.open() as file:
        rows = [row for row in csv.DictReader(file) if row["spec/p/frequency"]]
    assert [int(row["step"]) for row in rows] == [0, 8]  # before training, and after its epoch
    (checkpoint,) = tmp_path.glob("runs/photographs/1/checkpoints/last.ckpt/model.safetensors")
    found = specialisation(load_file(checkpoint)["conv1.weight"], 2)
    assert {key: float(rows[1][f"spec/{key}"]) for key in found} == found
    assert in_words(found, "conv1") in answer.stdout
