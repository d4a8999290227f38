"""Trainings as jobs of a real cluster of two nodes: they equal those without SLURM, whatever SLURM does to them.

A small dose; ``scripts/cluster_chaos`` gives the large one.
"""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lanes.jobs.attempts import SILENT, read
from tests.integration.command import lanes
from tests.slurm.cluster import wait_for
from tests.slurm.desk import CONFIG, KEYS, ROOT, Desk, equal

ACROSS = ("--trainer.strategy.lane_devices", 2, "--trainer.strategy.across_nodes", "true")
NO_LOG = ("--trainer.logger", "false")
LATE = """
import os, sys, time

class Late:
    def find_spec(self, name, *_):
        if name == "lanes.training.commands" and os.environ.get("SLURM_PROCID") == "1":
            time.sleep(120)

sys.meta_path.insert(0, Late())
"""  # a process that loads for longer than the others
pytestmark = pytest.mark.timeout(900)  # a machine with other jobs on it takes several times as long


def without_slurm(folder: Path, *keys: object) -> Path:
    """The same training by ``lanes fit``; its run."""
    folder.mkdir()
    words = ("fit", "-c", ROOT / CONFIG, *KEYS, *NO_LOG, "--trainer.default_root_dir", "runs", *keys)
    done = lanes(*words, folder=folder, timeout_s=600)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "1"


def test_lanes_inside_nodes(desk: Desk, tmp_path: Path) -> None:
    short = ("--trainer.max_epochs", 1, "--data.init_args.num_train", 128)  # 8 steps
    job = desk.train(*NO_LOG, *short, options=("--nodes=2", "--ntasks-per-node=2"))
    assert desk.ended(job) == "COMPLETED", desk.said(job)
    assert "2 nodes of 2 devices: 2 replicas of 2 lane devices, the lanes of a replica on one node" in desk.said(job)
    assert "validation top-1" in desk.said(job)
    assert equal(desk.run_of(job), without_slurm(tmp_path / "without", *short, "--trainer.devices", 4))


def test_time_limit_killed_preempted_cancelled_submitted_again(desk: Desk, tmp_path: Path) -> None:
    """One training, lanes across nodes, through all that, in one folder, log, and run of Weights & Biases.

    The cluster does not heed --signal when it preempts: SIGTERM alone comes.
    """
    keys = ("--trainer.max_epochs", 4)
    slow = ("--trainer.callbacks=tests.slurm.slow.Slow", *ACROSS, *keys)
    two = ("--nodes=2", "--ntasks-per-node=1")
    job = desk.train(*slow, options=(*two, "--signal=USR1@5"))
    desk.saves(desk.run_of(job))
    another = desk.train(*keys, "--run", f"slurm-{job}")
    assert desk.ended(another) == "FAILED"
    assert f"slurm-{job} is being trained by job {job}; wait for its end" in desk.said(another)
    with desk.goes_on(job):
        desk.time_is_up_soon(job)
        wait_for(lambda: desk.state(job) == "PENDING", 120, said=lambda: desk.said(job))
        desk.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    with desk.goes_on(job):
        desk.kill(job, rank=1)
    with desk.goes_on(job):
        urgent = ("--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
        desk.cluster.run("sbatch", *urgent)
    desk.cluster.run("scancel", job)
    assert desk.ended(job) == "CANCELLED"
    (desk.folder / "hurry").touch()
    by_hand = desk.train(*slow, "--run", f"slurm-{job}", options=two)
    assert desk.ended(by_hand) == "COMPLETED", desk.said(by_hand)
    run, said = desk.run_of(job), desk.said(job)
    ends = [line.get("why", line.get("failed")) for line in read(run) if "ended" in line]
    assert [end for end in ends if end != SILENT] == ["SIGUSR1", "SIGTERM", "SIGTERM", "complete"], said
    assert said.count("going on from") == 3, "the log is one"
    assert len({folder.name.rpartition("-")[2] for folder in run.glob("wandb/offline-run-*")}) == 1
    assert equal(run, without_slurm(tmp_path / "without", *keys, "--trainer.devices", 2))


def test_what_is_wrong_is_said(desk: Desk) -> None:
    """By the job's log, at once, and the job is not started again, also where another process still loads."""
    (desk.folder / "late").mkdir()
    (desk.folder / "late" / "sitecustomize.py").write_text(LATE)
    sites = {
        "late.sh": "PYTHONPATH=$PWD/late:$PYTHONPATH",
        "nowhere.sh": "MASTER_ADDR=nowhere.invalid",
        "other.sh": "SITE_REQEUE=slurm",
    }
    for name, line in sites.items():
        (desk.folder / name).write_text(f"{(desk.folder / 'slurm' / 'site.sh').read_text()}{line}\n")
    two = ("--nodes=2", "--ntasks-per-node=1")
    wrong = {
        "there is no configuration configs/nothing.yaml": desk.submit("train.sbatch", "configs/nothing.yaml"),
        "2 lane devices are more than a node has, which is 1": desk.train(
            *ACROSS[:2], options=two, LANES_SITE="late.sh"
        ),
        "MASTER_ADDR=nowhere.invalid does not resolve on": desk.train(options=two, LANES_SITE="nowhere.sh"),
        "nothing can be written to /proc/runs": desk.train("--trainer.default_root_dir", "/proc/runs"),
        "other.sh: there is no setting SITE_REQEUE": desk.train(LANES_SITE="other.sh"),
    }
    for words, job in wrong.items():
        assert desk.ended(job) == "FAILED", desk.said(job)
        assert desk.said(job).count(words) >= 1, desk.said(job)
        assert desk.cluster.job(job)["Restarts"] == "0"


def test_a_sweep(desk: Desk, tmp_path: Path) -> None:
    """Its runs equal those that are made without SLURM; submitted again it finds that nothing is missing."""
    keys = dict(zip((key.removeprefix("--") for key in KEYS[::2]), KEYS[1::2], strict=True))
    keys |= {
        "trainer.callbacks": [],
        "trainer.max_epochs": 1,
        "data.init_args.num_train": 64,
        "trainer.logger": False,
        "trainer.devices": 1,
    }
    sweep = desk.folder / "tiny.yaml"
    sweep.write_text(yaml.safe_dump({"config": CONFIG, "keys": keys, "grid": {"seed_everything": [1, 2]}}))
    array = desk.submit("sweep.sbatch", "tiny.yaml", options=("--array=0-1",))
    for task in (0, 1):
        job = f"{array}_{task}"
        assert desk.ended(job) == "COMPLETED", desk.said(job)
    first, second = (desk.folder / "runs" / "tiny" / f"seed_everything={seed}" for seed in (1, 2))
    assert not equal(first, second)
    without = tmp_path / "without"
    without.mkdir()
    (without / "configs").symlink_to(ROOT / "configs")
    done = lanes("sweep", sweep, "--run", 1, folder=without, timeout_s=600)
    assert done.returncode == 0, done.stderr
    assert equal(second, without / "runs" / "tiny" / second.name)
    again = desk.submit("sweep.sbatch", "tiny.yaml", options=("--array=0",))
    assert desk.ended(f"{again}_0") == "COMPLETED", desk.said(again)
    assert "nothing was left to train: 8 steps are done" in desk.said(f"{again}_0")
    whole = desk.submit("sweep.sbatch", "tiny.yaml")
    assert desk.ended(whole) == "FAILED"
    assert "`lanes sweep tiny.yaml` lists them" in desk.said(whole)


def test_a_study_and_its_collecting_job(desk: Desk) -> None:
    """Two seeds of a real one, each run much shortened: the table is that which the study makes without SLURM."""
    words = ("--seeds", 2, "--set", "num_train=64", "num_val=20", "epochs=1", "batch_size=32", "--out")
    job = desk.submit("study.sbatch", "scripts/studies/specialisation", *words, "study", "--", "--time=10")
    assert desk.ended(job) == "COMPLETED", desk.said(job)
    [(array, collects)] = re.findall(r"8 runs as the array (\d+); job (\d+) collects", desk.said(job))
    assert desk.ended(collects) == "COMPLETED", desk.said(collects)
    assert [desk.state(f"{array}_{task}") for task in range(8)] == ["COMPLETED"] * 8
    without = [ROOT / "scripts" / "studies" / "specialisation", *map(str, words), desk.folder / "without"]
    subprocess.run([sys.executable, *without], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=300)
    assert table(desk.folder / "study") == table(desk.folder / "without")
    assert (desk.folder / "study" / "specialisation.png").is_file()
    wrong = desk.submit("study.sbatch", "scripts/studies/specialisation", "--time=10")
    assert desk.ended(wrong) == "FAILED"
    assert "unrecognized arguments: --time=10" in desk.said(wrong)
    assert "options of its jobs go behind --" in desk.said(wrong)


def table(folder: Path) -> list[dict[str, str]]:
    """A study's results, but for how long each run took."""
    with (folder / "specialisation.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if not name.endswith("seconds")} for row in rows]
