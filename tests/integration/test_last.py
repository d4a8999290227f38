"""``lanes fit --ckpt_path last``: a killed training goes on, past damaged checkpoints, and ends as if undisturbed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lanes.report.reading import find_logs
from tests.damages import DAMAGES
from tests.integration.command import CONFIG, ROOT, SMALL, lanes
from tests.small_disk import on_small_disk

# Two epochs of eight steps on one process; the best checkpoint after each, the last also in the middle of them.
SET = (
    *SMALL,
    *("--trainer.devices", 1, "--trainer.max_epochs", 2, "--trainer.enable_progress_bar", "false"),
    *("--trainer.default_root_dir", "runs", "--report", "false", "--trainer.callbacks", "[]"),
    *("--last_every_n_steps", 4),
)
FIT = ("fit", "-c", CONFIG, *SET)
SLOWLY = """
import sys, time
from lanes.cli import main
from lanes.training import Classifier
step = Classifier.training_step
def slow(self, batch, batch_idx):
    if self.current_epoch and batch_idx == 5:
        time.sleep(60)  # inside the second epoch, for ever
    return step(self, batch, batch_idx)
Classifier.training_step = slow
main(sys.argv[1:])
"""


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "last.ckpt" / "model.safetensors")


def step_of(checkpoint: Path) -> int | None:
    """None while there is none, also for the moment in which it takes the place of the one before."""
    try:
        step: int = json.loads((checkpoint / "manifest.json").read_text())["step"]
    except FileNotFoundError:
        return None
    return step


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a training was killed inside its second epoch, after the checkpoint of step 12."""
    folder = tmp_path_factory.mktemp("killed")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "LANES_"))}
    environment |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SLOWLY, *map(str, FIT)]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL) as training:
        deadline = time.monotonic() + 120
        while step_of(folder / "runs/1/checkpoints/last.ckpt") != 12:
            assert training.poll() is None, "ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(training.pid, signal.SIGKILL)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    answer = lanes(*FIT, folder=folder)
    assert answer.returncode == 0, answer.stderr
    return folder / "runs/1"


def test_the_manifest_says_what_it_is(killed: Path) -> None:
    manifest = json.loads((killed / "runs/1/checkpoints/last.ckpt/manifest.json").read_text())
    assert manifest["step"] == 12
    assert manifest["layout"] == {"replicas": 1, "lane_devices": 1}
    assert manifest["wandb_run_id"] in next(iter((killed / "runs/1/wandb").glob("offline-run-*"))).name
    assert manifest["config"]["trainer"]["max_epochs"] == 2


def test_a_killed_training_goes_on(killed: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(killed, tmp_path / "killed"))
    answer = lanes(*FIT, "--ckpt_path", "last", folder=folder)
    assert answer.returncode == 0, answer.stderr
    assert "going on from runs/1/checkpoints/last.ckpt" in answer.stderr
    assert "after 16 steps" in answer.stdout
    assert [path.name for path in (folder / "runs").iterdir()] == ["1"]
    ours, theirs = weights(folder / "runs/1"), weights(undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert len(find_logs([folder / "runs/1"])) == 1, "one run of Weights & Biases"


def test_wrong_checkpoints_are_passed_over(killed: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(killed, tmp_path / "killed"))
    checkpoints = folder / "runs/1/checkpoints"
    shutil.copytree(undisturbed / "checkpoints/last.ckpt", checkpoints / "other")
    for damage, (spoil, _) in DAMAGES.items():
        shutil.copytree(checkpoints / "last.ckpt", checkpoints / damage)
        spoil(checkpoints / damage)
    shutil.rmtree(checkpoints / "other")
    file = checkpoints / "last.ckpt/optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    refused = lanes(*FIT, "--ckpt_path", "runs/1/checkpoints/last.ckpt", folder=folder)
    assert refused.returncode == 2
    (line,) = [line for line in refused.stderr.splitlines() if "error:" in line]
    assert "last.ckpt is damaged: optimizer.safetensors has" in line
    assert "the newest whole checkpoint beside it is runs/1/checkpoints/epoch=000-step=000008.ckpt" in line
    answer = lanes(*FIT, "--ckpt_path", "last", folder=folder)
    assert answer.returncode == 0, answer.stderr
    assert "not taken: runs/1/checkpoints/last.ckpt is damaged" in answer.stderr
    for damage, (_, words) in DAMAGES.items():
        assert f"not taken: runs/1/checkpoints/{damage} {words[0]}" in answer.stderr
        assert (checkpoints / damage).is_dir()
    assert "going on from runs/1/checkpoints/epoch=000-step=000008.ckpt" in answer.stderr
    ours, theirs = weights(folder / "runs/1"), weights(undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_file_of_another_run(killed: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Found when all of it is read, after processes have started: one line all the same."""
    folder = Path(shutil.copytree(killed, tmp_path / "killed"))
    file = "checkpoints/last.ckpt/model.safetensors"
    shutil.copy(undisturbed / file, folder / "runs/1" / file)
    layout = ("--trainer.devices", 2, "--trainer.logger", "false")
    answer = lanes(*FIT, *layout, "--ckpt_path", "runs/1/checkpoints/last.ckpt", folder=folder)
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    (line,) = [line for line in answer.stderr.splitlines() if "error:" in line]
    assert "last.ckpt is damaged: model.safetensors is not what was written with it" in line
    assert "comes from another checkpoint" in line
    assert "the newest whole checkpoint beside it is runs/1/checkpoints/epoch=000-step=000008.ckpt" in line
    assert not (folder / "runs/2/checkpoints").exists()


def test_nothing_to_go_on_from(tmp_path: Path) -> None:
    answer = lanes(*FIT, "--trainer.max_epochs", 1, "--ckpt_path", "last", folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "no checkpoint in runs yet: training begins anew" in answer.stderr
    assert (tmp_path / "runs/1/checkpoints/last.ckpt").is_dir()


@pytest.mark.parametrize(
    ("size", "options", "words"),
    [
        ("1m", "rw", "no room for checkpoints: a checkpoint takes about 4.5 MiB, and runs/1/checkpoints has 1.0 MiB"),
        ("99m", "ro", "nothing can be written to runs/1: Read-only file system; give another folder by --trainer.defa"),
    ],
)
def test_a_disk_that_cannot_hold_a_checkpoint(tmp_path: Path, size: str, options: str, words: str) -> None:
    """Found before training, and nothing is left there."""
    command = [sys.executable, "-m", "lanes", *FIT]
    answer = on_small_disk(command, tmp_path / "disk", size=size, options=options, then="ls -A . >&2")
    assert answer.returncode == 2, answer.stderr
    last = answer.stderr.splitlines()[-1]  # the disk is empty
    assert last.startswith(f"lanes fit: error: {words}")


FULL = """
import resource, sys
from lanes.cli import main
from lanes.training import Classifier
begin = Classifier.on_train_start
def fill(self):  # from now on no file may become larger than the limit, as on a full disk
    import signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
    return begin(self)
Classifier.on_train_start = fill
main(sys.argv[1:])
"""


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """Training goes on, says so, keeps nothing half-written, and fails in the end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FULL, *map(str, FIT), "--trainer.logger", "false"]
    answer = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert answer.returncode == 1, answer.stderr
    assert "after 16 steps" in answer.stdout
    assert "could not be written" in answer.stderr
    last = answer.stderr.splitlines()[-1]
    assert last.startswith("lanes fit: error: the checkpoint ")
    assert "last.ckpt could not be written" in last
    assert "the last good one: none of this training yet" in last
    assert not list((tmp_path / "runs/1/checkpoints").glob("*"))
    assert not list((tmp_path / "runs/1/checkpoints").glob(".*"))
