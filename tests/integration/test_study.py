"""A study of two tiny runs, of which one is finished already: ``scripts/study`` with the real command below it."""

import csv
import os
import subprocess
import sys
from pathlib import Path

from tests.integration.command import ROOT

HEAD = "study,variant,seed,sent_bytes,parameters,multiply_adds,top1,loss,seconds"
FINISHED = "shuffle,without shuffle,0,1024.0,10,1000,0.25,1.5,60.0"
SIZES = {"num_train": 16, "num_val": 20, "batch_size": 16, "image_size": 32}


def test_a_study_trains_what_is_missing(tmp_path: Path) -> None:
    results = tmp_path / "results.csv"
    results.write_text(f"{HEAD}\n{FINISHED}\n")
    keys = ["--data", "lanes.training.Photographs", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1.0"]
    keys += [word for name, value in SIZES.items() for word in (f"--data.init_args.{name}", str(value))]
    answer = subprocess.run(
        [sys.executable, "scripts/study", "shuffle", "--seeds", "1", "--out", tmp_path, "--", *keys],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    with results.open() as file:
        finished, trained = csv.DictReader(file)
    assert ",".join(finished.values()) == FINISHED
    assert (trained["study"], trained["variant"], trained["seed"]) == ("shuffle", "with shuffle", "0")
    # half of the parameters, as each of two devices holds them; with total_stride=16, as the configuration has it
    assert (trained["parameters"], trained["multiply_adds"]) == ("119250", "3019712")
    assert float(trained["sent_bytes"]) > 0
    above = 100 * (float(trained["top1"]) - 0.25)
    assert f"| with shuffle | {above:+.2f} | {above:+.2f} ± - | 1 |" in answer.stdout
    assert (
        (tmp_path / "table.md")
        .read_text()
        .endswith(answer.stdout[answer.stdout.index("| channels") :].split("\nfig")[0])
    )
    assert (tmp_path / "shuffle.png").stat().st_size > 10_000
