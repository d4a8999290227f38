"""``lanes fit`` on two processes when one dies, hangs, fails or is signalled: all end soon, named, nothing is lost.

A small dose; ``scripts/chaos`` gives the large one.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import load_file

from lanes.faults.pulses import HUNG
from tests.integration.command import CONFIG, ROOT, lanes

HANG_S = 11
FIT = (
    *("fit", "-c", CONFIG, "--trainer.devices", 2, "--trainer.strategy.lane_devices", 2),
    *("--data.init_args.num_train", 256, "--data.init_args.num_val", 40, "--data.init_args.batch_size", 8),
    *("--trainer.max_epochs", 4, "--trainer.limit_val_batches", 1, "--trainer.callbacks", "[]", "--report", "false"),
    *("--trainer.default_root_dir", "runs", "--trainer.enable_progress_bar", "false", "--trainer.logger", "false"),
    *("--watch.timeout_s", HANG_S, "--last_every_n_steps", 4),
)
LAST = Path("runs/1/checkpoints/last.ckpt")
SUPERVISED = (sys.executable, "-m", "lanes")
IN_A_TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
TERMINAL = (sys.executable, "-c", IN_A_TERMINAL, *SUPERVISED)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "lanes")


class Fails(Callback):
    """Fails on one rank, as a mistake in somebody's callback would."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 6:
            raise KeyError("nobody has thought of this")


class Training:
    """A training under way.

    Attributes:
        everyone: process ids of all that it has started.
    """

    def __init__(self, folder: Path, process: subprocess.Popen[str], said: Path) -> None:
        self.folder, self.process, self._said = folder, process, said
        self.everyone = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]

    @property
    def said(self) -> str:
        """Its output until now."""
        return self._said.read_text()

    def rank(self, rank: int) -> int:
        """The process id of a rank."""
        for child in psutil.Process(self.process.pid).children():
            if child.environ().get("RANK") == str(rank):
                return child.pid
        raise AssertionError(self.said)

    def waits_for(self, what: Callable[[], bool], within_s: float) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + within_s
        while not what():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)

    def waits_for_a_new_checkpoint(self) -> None:
        """Wait until the last one is another."""
        manifest = self.folder / LAST / "manifest.json"
        before = manifest.stat().st_mtime_ns
        self.waits_for(lambda: manifest.exists() and manifest.stat().st_mtime_ns != before, 60)

    def ended(self, within_s: float) -> str:
        """Wait for the end of all processes; what they said."""
        self.process.wait(within_s)
        self.waits_for(lambda: not any(psutil.pid_exists(pid) for pid in self.everyone), within_s)
        return self.said


@contextmanager
def training(folder: Path, *more: object, start: tuple[str, ...] = SUPERVISED) -> Iterator[Training]:
    """From its first checkpoint; at the block's end whatever is left is ended."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "LANES_", "SLURM_"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command, said = [*start, *map(str, (*FIT, *more))], folder / "said.txt"
    with (
        said.open("w") as out,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=out, stderr=out, text=True
        ) as process,
    ):
        try:
            deadline = time.monotonic() + 200
            while not (folder / LAST).exists():
                assert process.poll() is None, said.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            under_way = Training(folder, process, said)
            yield under_way
        finally:
            left = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            for found in [*left, *([psutil.Process(process.pid)] if process.poll() is None else [])]:
                found.kill()


@pytest.mark.timeout(600)  # four trainings
def test_killed_started_again_stopped_and_gone_on_from(tmp_path: Path) -> None:
    with training(tmp_path, "--restarts", 1) as under_way:
        pid = under_way.rank(1)
        os.kill(pid, signal.SIGKILL)
        under_way.waits_for(lambda: "going on from runs/1/checkpoints/last.ckpt, after " in under_way.said, 60)
        place = (
            rf"rank 1 \(lane device 1 of replica 0, process {pid} on .*\), after \d+ steps at: .*, was ended by SIGKILL"
        )
        assert re.search(f"lanes: error: {place}", under_way.said), under_way.said
        step = int(under_way.said.split("last.ckpt, after ")[1].split()[0])
        under_way.waits_for_a_new_checkpoint()
        under_way.process.send_signal(signal.SIGTERM)
        said = under_way.ended(within_s=60)
    assert under_way.process.returncode == 128 + signal.SIGTERM, said
    assert f"SIGTERM has ended training; it can go on from {LAST}" in said
    assert said.count("going on from") == 1, "nobody starts again what was told to stop"
    answer = lanes(*FIT, "--ckpt_path", "last", folder=tmp_path, timeout_s=200)
    assert answer.returncode == 0, answer.stderr
    assert int(answer.stderr.split("last.ckpt, after ")[1].split()[0]) > step
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    assert lanes(*FIT, folder=undisturbed, timeout_s=200).returncode == 0
    ours, theirs = (load_file(folder / LAST / "model.safetensors") for folder in (tmp_path, undisturbed))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.timeout(600)
def test_a_rank_hangs(tmp_path: Path) -> None:
    """After a restart, too: processes of before have told where they stood."""
    with training(tmp_path, "--restarts", 1) as under_way:
        os.kill(under_way.rank(1), signal.SIGKILL)
        under_way.waits_for(lambda: "going on from runs/1/checkpoints/last.ckpt, after " in under_way.said, 60)
        under_way.waits_for_a_new_checkpoint()  # not one that a process of before was writing
        pid = under_way.rank(0)
        os.kill(pid, signal.SIGSTOP)
        said = under_way.ended(within_s=HANG_S + 40)
    assert under_way.process.returncode == HUNG
    assert re.search(rf"does not get on: rank 0 \(.*process {pid} on .*\) tells nothing any more", said), said
    assert len(re.findall(r"  rank \d .* stands after \d+ steps at: ", said)) == 2


def test_a_signal_to_one_rank_ends_all(tmp_path: Path) -> None:
    with training(tmp_path) as under_way:
        os.kill(under_way.rank(1), signal.SIGUSR1)
        said = under_way.ended(within_s=60)
    assert under_way.process.returncode == 128 + signal.SIGUSR1, said
    assert f"SIGUSR1 has ended training; it can go on from {LAST}" in said


def test_ctrl_c_in_a_terminal(tmp_path: Path) -> None:
    """Which signals all processes at once, those that have a supervisor too."""
    with training(tmp_path, start=TERMINAL) as under_way:
        assert under_way.process.stdin is not None
        under_way.process.stdin.write("\x03")
        under_way.process.stdin.flush()
        said = under_way.ended(within_s=60)
    assert under_way.process.returncode == 128 + signal.SIGINT, said
    assert f"SIGINT has ended training; it can go on from {LAST}" in said


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    """Also processes that cannot agree on anything any more."""
    with training(tmp_path) as under_way:
        os.kill(under_way.rank(0), signal.SIGSTOP)
        under_way.process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert under_way.process.poll() is None, under_way.said
        under_way.process.send_signal(signal.SIGINT)
        under_way.ended(within_s=10)
    assert under_way.process.returncode


def test_the_supervisor_is_killed(tmp_path: Path) -> None:
    with training(tmp_path) as under_way:
        os.kill(under_way.process.pid, signal.SIGKILL)
        under_way.ended(within_s=10)


def test_a_rank_fails(tmp_path: Path) -> None:
    """Its own error comes first, then which it was; nobody else has much to say."""
    fails = "--trainer.callbacks=tests.integration.test_faults.Fails"
    with training(tmp_path, fails) as under_way:
        said = under_way.ended(within_s=60)
    assert under_way.process.returncode == 1
    own, named = said.index("KeyError: 'nobody has thought of this'"), said.index("has failed by the error above")
    assert own < named
    assert re.search(r"lanes fit: error: rank 1 \(lane device 1 of replica 0, process \d+ on .*\) has failed by", said)
    assert said.count("Traceback") == 1


@pytest.mark.parametrize(("rank", "own_store"), [(1, "0"), (0, "1")], ids=["agent's store", "the first rank's store"])
def test_a_rank_of_torchrun_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, own_store: str
) -> None:
    """Nobody but the others can say who it was, also if it held the store by which they tell one another."""
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", own_store)
    with training(tmp_path, start=TORCHRUN) as under_way:
        pid = under_way.rank(rank)
        os.kill(pid, signal.SIGKILL)
        said = under_way.ended(within_s=60)
    assert under_way.process.returncode == 1
    assert re.search(rf"lanes fit: error: rank {rank} \(.*process {pid} on .*\).* tells nothing any more", said), said


@pytest.mark.parametrize(("rank", "own_store"), [(1, "0"), (0, "1")], ids=["agent's store", "the first rank's store"])
def test_a_rank_of_torchrun_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, own_store: str
) -> None:
    """The others find out, also without the store by which they tell one another, and end it; torchrun would wait."""
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", own_store)
    with training(tmp_path, start=TORCHRUN) as under_way:
        under_way.waits_for_a_new_checkpoint()
        pid = under_way.rank(rank)
        os.kill(pid, signal.SIGSTOP)
        said = under_way.ended(within_s=HANG_S + 15)
    assert under_way.process.returncode == 1
    assert re.search(rf"lanes: error: training does not get on: rank {rank} \(.*process {pid} on .*\) tells", said), (
        said
    )
