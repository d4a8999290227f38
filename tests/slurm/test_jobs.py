"""Trainings as jobs of a real cluster of two nodes: they equal those without SLURM, whatever SLURM does to them.

A small dose; ``scripts/cluster_chaos`` gives the large one.
"""

import re
from pathlib import Path

import pytest
import yaml

from lanes.jobs.attempts import SILENT, read
from tests.integration.command import lanes
from tests.slurm.cluster import wait_for
from tests.slurm.desk import CONFIG, KEYS, ROOT, Desk, equal

ACROSS = ("--trainer.strategy.lane_devices", 2, "--trainer.strategy.across_nodes", "true")
NO_LOG = ("--trainer.logger", "false")
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
    """By the job's log, at once, and the job is not started again."""
    wrong = {
        "there is no configuration configs/nothing.yaml": desk.submit("train.sbatch", "configs/nothing.yaml"),
        "2 lane devices are more than a node has, which is 1": desk.train(
            *ACROSS[:2], options=("--nodes=2", "--ntasks-per-node=1")
        ),
        "nothing can be written to /proc/runs": desk.train("--trainer.default_root_dir", "/proc/runs"),
    }
    site = desk.folder / "other.sh"
    site.write_text(f"{(desk.folder / 'slurm' / 'site.sh').read_text()}SITE_REQEUE=slurm\n")
    wrong["other.sh: there is no setting SITE_REQEUE"] = desk.train(LANES_SITE="other.sh")
    for words, job in wrong.items():
        assert desk.ended(job) == "FAILED", desk.said(job)
        assert desk.said(job).count(words) >= 1, desk.said(job)
        assert desk.cluster.job(job)["Restarts"] == "0"


def test_a_sweep(desk: Desk) -> None:
    """Submitted again it finds that nothing is missing."""
    keys = dict(zip((key.removeprefix("--") for key in KEYS[::2]), KEYS[1::2], strict=True))
    keys |= {"trainer.callbacks": [], "trainer.max_epochs": 1, "data.init_args.num_train": 64, "trainer.logger": False}
    sweep = desk.folder / "tiny.yaml"
    sweep.write_text(yaml.safe_dump({"config": CONFIG, "keys": keys, "grid": {"seed_everything": [1, 2]}}))
    array = desk.submit("sweep.sbatch", "tiny.yaml", options=("--array=0-1",))
    for task in (0, 1):
        job = f"{array}_{task}"
        assert desk.ended(job) == "COMPLETED", desk.said(job)
    first, second = (desk.folder / "runs" / "tiny" / f"seed_everything={seed}" for seed in (1, 2))
    assert not equal(first, second)
    again = desk.submit("sweep.sbatch", "tiny.yaml", options=("--array=0",))
    assert desk.ended(f"{again}_0") == "COMPLETED", desk.said(again)
    assert "nothing was left to train: 8 steps are done" in desk.said(f"{again}_0")
    whole = desk.submit("sweep.sbatch", "tiny.yaml")
    assert desk.ended(whole) == "FAILED"
    assert "`lanes sweep tiny.yaml` lists them" in desk.said(whole)


def test_a_study_and_its_collecting_job(desk: Desk) -> None:
    (desk.folder / "study.py").symlink_to(ROOT / "tests" / "slurm" / "tiny_study")
    job = desk.submit("study.sbatch", "./study.py", "--time=10")
    assert desk.ended(job) == "COMPLETED", desk.said(job)
    [(array, collects)] = re.findall(r"3 runs as the array (\d+); job (\d+) collects", desk.said(job))
    assert desk.ended(collects) == "COMPLETED", desk.said(collects)
    assert (desk.folder / "study" / "results.csv").read_text() == "one,3\ntwo,3\nthree,5\n"
    assert [desk.state(f"{array}_{task}") for task in range(3)] == ["COMPLETED"] * 3
