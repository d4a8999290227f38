"""torchrun on two nodes, of which one is killed and returns: training goes on with what is left, lanes whole.

An agent of torchrun with two processes is a node here. Where the layout changed, and at which step, is read from what
they say; the same changes without any disturbance, by ``lanes fit`` on one node, must end with the same weights, bit
for bit.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import load_file

from lanes.checkpoint import read_manifest
from tests.integration.command import CONFIG, ROOT, lanes
from tests.integration.test_faults import TORCHRUN, training
from tests.integration.test_meeting import free_port

LAST = Path("runs/1/checkpoints/last.ckpt")
FIT = (
    *("fit", "-c", CONFIG, "--trainer.strategy.lane_devices", 2, "--trainer.max_epochs", 5, "--ckpt_path", "last"),
    *("--data.init_args.num_train", 128, "--data.init_args.num_val", 40, "--data.init_args.batch_size", 4),
    *("--trainer.limit_val_batches", 1, "--report", "false", "--trainer.default_root_dir", "runs"),
    *("--trainer.enable_progress_bar", "false", "--trainer.logger", "false", "--last_every_n_steps", 4),
)
RENDEZVOUS = "last_call_timeout=10,keep_alive_interval=1,keep_alive_max_attempt=5"


class Slow(Callback):
    """Takes its time, above all while a node is missing, which needs many steps' time to return."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        time.sleep(0.1 if trainer.world_size == 4 else 1.0)


class Stop(Callback):
    """A signal comes at some step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        if trainer.global_step == int(os.environ["STOP_AT"]) - 1 and trainer.global_rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def agent(folder: Path, name: str, port: int) -> Iterator[subprocess.Popen[str]]:
    """A node; what it says goes into a file of its name. At the end whatever is left of it is ended."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "LANES_", "SLURM_", "TORCH_"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    # Else, of torch 2.13, a node that returns waits in vain for an address that the others hold to be known.
    environment |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "2")
    rendezvous = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-conf", RENDEZVOUS)
    training = ("-m", "lanes", *map(str, FIT), "--trainer.callbacks=tests.integration.test_torchrun.Slow")
    command = [*torchrun, *rendezvous, "--max-restarts", "3", "--local-addr", "127.0.0.1", *training]
    with (
        (folder / name).open("w") as out,
        subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out, text=True) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is None:
                left = psutil.Process(process.pid).children(recursive=True)
                for found in [*left, psutil.Process(process.pid)]:
                    found.kill()


def went_on(said: str) -> list[int]:
    """The steps from which training went on."""
    return [int(step) for step in re.findall(r"going on from runs/1/checkpoints/last.ckpt, after (\d+) steps", said)]


@pytest.mark.timeout(900)
def test_a_node_is_killed_and_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()

    def until(what: Callable[[], object], within_s: float = 200) -> None:
        deadline = time.monotonic() + within_s
        while not what():
            said = "\n".join((tmp_path / name).read_text() for name in ("a", "b") if (tmp_path / name).exists())
            assert first.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.1)

    with ExitStack() as nodes:
        first = nodes.enter_context(agent(tmp_path, "a", port))
        until(
            lambda: psutil.Process(first.pid).net_connections()
        )  # it keeps the rendezvous, so the other is the one to die
        second = nodes.enter_context(agent(tmp_path, "b", port))
        until((tmp_path / LAST).exists)
        assert "mesh: 2 replicas x 2 lane devices" in (tmp_path / "a").read_text() + (tmp_path / "b").read_text()
        second.kill()
        until(lambda: "mesh: 1 replica x 2 lane devices" in (tmp_path / "a").read_text())
        again = nodes.enter_context(agent(tmp_path, "c", port))
        until(lambda: len(went_on((tmp_path / "a").read_text() + (tmp_path / "c").read_text())) == 2)
        assert first.wait(300) == 0, (tmp_path / "a").read_text()
        assert again.wait(60) == 0, (tmp_path / "c").read_text()
    killed_at, returned_at = went_on((tmp_path / "a").read_text() + (tmp_path / "c").read_text())
    assert 0 < killed_at < returned_at < read_manifest(tmp_path / LAST)["step"]
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    for devices, stop_at in ((4, killed_at), (2, returned_at), (4, 0)):
        callbacks = "[]" if not stop_at else "tests.integration.test_torchrun.Stop"
        monkeypatch.setenv("STOP_AT", str(stop_at))
        layout = ("--trainer.devices", devices, f"--trainer.callbacks={callbacks}")
        answer = lanes(*FIT, *layout, folder=undisturbed, timeout_s=200)
        if stop_at:  # how a signal ends a training is told by test_faults.py; here it matters at which step
            assert read_manifest(undisturbed / LAST)["step"] == stop_at, answer.stderr
        else:
            assert answer.returncode == 0, answer.stderr
    ours, theirs = (load_file(folder / LAST / "model.safetensors") for folder in (tmp_path, undisturbed))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.timeout(400)
def test_all_start_again_with_the_same_store(tmp_path: Path) -> None:
    """Which torchrun hands on unless told not to, with the addresses of those that have died in it."""
    torchrun = (*TORCHRUN[:-2], "--max-restarts", "1", *TORCHRUN[-2:])
    with training(tmp_path, "--ckpt_path", "last", start=torchrun) as under_way:
        os.kill(under_way.rank(1), signal.SIGKILL)
        under_way.waits_for(lambda: len(went_on(under_way.said)) == 1, 200)
        under_way.waits_for_a_new_checkpoint()
