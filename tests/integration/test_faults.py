"""``lanes fit`` on 2 x 2 processes when one dies, hangs or is signalled: all end soon, named, and nothing is lost.

A small dose; ``scripts/chaos`` gives the large one.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from lanes.faults.pulses import HUNG
from tests.integration.command import CONFIG, ROOT, lanes

HANG_S = 11
FIT = (
    *("fit", "-c", CONFIG, "--trainer.devices", 4, "--trainer.strategy.lane_devices", 2),
    *("--data.init_args.num_train", 256, "--data.init_args.num_val", 40, "--data.init_args.batch_size", 16),
    *("--trainer.max_epochs", 4, "--trainer.limit_val_batches", 1, "--trainer.callbacks", "[]", "--report", "false"),
    *("--trainer.default_root_dir", "runs", "--trainer.enable_progress_bar", "false", "--trainer.logger", "false"),
    *("--watch.timeout_s", HANG_S),
)
LAST = Path("runs/1/checkpoints/last.ckpt")


class Training:
    """A training under way."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.folder, self.process = folder, process
        self.everyone: list[int] = []

    def ranks(self) -> dict[int, int]:
        """Process ids of the ranks."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            rank = child.environ().get("RANK")
            if rank is not None:
                found[int(rank)] = child.pid
        return found

    def ended(self, within_s: float) -> str:
        """Wait for the end of all processes; what they said."""
        deadline = time.monotonic() + within_s
        said, _ = self.process.communicate(timeout=within_s)
        while left := [pid for pid in self.everyone if psutil.pid_exists(pid)]:
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.1)
        return said


@contextmanager
def training(folder: Path) -> Iterator[Training]:
    """Until its first checkpoint is there; then whatever is left is ended."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "LANES_", "SLURM_"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "lanes", *map(str, FIT)]
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=folder, env=environment, **out) as process:  # type: ignore[call-overload]
        under_way = Training(folder, process)
        try:
            deadline = time.monotonic() + 200
            while not (folder / LAST).exists():
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < deadline
                time.sleep(0.05)
            under_way.everyone = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
            yield under_way
        finally:
            for pid in [*under_way.everyone, process.pid]:
                if psutil.pid_exists(pid):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("undisturbed")
    answer = lanes(*FIT, folder=folder, timeout_s=200)
    assert answer.returncode == 0, answer.stderr
    return load_file(folder / LAST / "model.safetensors")


def goes_on(folder: Path, undisturbed: dict[str, torch.Tensor]) -> None:
    """From the last checkpoint to the weights of the training that nothing had happened to."""
    answer = lanes(*FIT, "--ckpt_path", "last", folder=folder, timeout_s=200)
    assert answer.returncode == 0, answer.stderr
    ours = load_file(folder / LAST / "model.safetensors")
    assert all(torch.equal(ours[name], tensor) for name, tensor in undisturbed.items())


def test_a_rank_is_killed(tmp_path: Path, undisturbed: dict[str, torch.Tensor]) -> None:
    with training(tmp_path) as under_way:
        pid = under_way.ranks()[3]
        os.kill(pid, signal.SIGKILL)
        said = under_way.ended(within_s=30)
    assert under_way.process.returncode == 128 + signal.SIGKILL
    culprit = (
        rf"rank 3 \(lane device 1 of replica 1, process {pid} on .*\), after \d+ steps at: .*, was ended by SIGKILL"
    )
    assert re.search(f"lanes: error: {culprit}", said), said
    goes_on(tmp_path, undisturbed)


def test_a_rank_hangs(tmp_path: Path) -> None:
    with training(tmp_path) as under_way:
        pid = under_way.ranks()[2]
        os.kill(pid, signal.SIGSTOP)
        said = under_way.ended(within_s=HANG_S + 30)
    assert under_way.process.returncode == HUNG
    assert f"rank 2 (lane device 0 of replica 1, process {pid} on " in said
    assert re.search(r"does not get on: rank 2 .* tells nothing any more", said), said
    assert len(re.findall(r"  rank \d .* stands after \d+ steps at: ", said)) == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_saves(tmp_path: Path, undisturbed: dict[str, torch.Tensor], number: signal.Signals) -> None:
    """SIGUSR1 comes to one rank alone, the others to the supervisor."""
    with training(tmp_path) as under_way:
        os.kill(under_way.ranks()[1] if number == signal.SIGUSR1 else under_way.process.pid, number)
        said = under_way.ended(within_s=60)
    assert under_way.process.returncode == 128 + number, said
    assert f"{number.name} has ended training; it can go on from runs/1/checkpoints/last.ckpt" in said
    goes_on(tmp_path, undisturbed)


def test_the_supervisor_is_killed(tmp_path: Path) -> None:
    with training(tmp_path) as under_way:
        os.kill(under_way.process.pid, signal.SIGKILL)
        under_way.ended(within_s=30)
