"""Disks that are full, or that nothing can be written to: found before training, or survived if they become so."""

import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lanes.checkpoint import save_checkpoint
from lanes.models import SmallAlexNet
from lanes.training import Classifier, WeightAverage, room
from lanes.training.room import check_room, checkpoint_bytes
from tests.small_disk import on_small_disk

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "AdamW": torch.optim.AdamW,
    "RMSprop": torch.optim.RMSprop,
}


def classifier(optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW) -> Classifier:
    return Classifier(partial(SmallAlexNet, 10, 2, image_size=32), image_shape=(3, 32, 32), optimizer=optimizer)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_how_large_a_checkpoint_will_be(name: str, tmp_path: Path) -> None:
    module = classifier(OPTIMIZERS[name])
    net = module.make_net()
    optimizer = module.make_optimizer(net.parameters())
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    save_checkpoint(tmp_path / "one", net, [optimizer])
    written = sum(file.stat().st_size for file in (tmp_path / "one").iterdir())
    assert checkpoint_bytes(module) == pytest.approx(written, rel=0.01)
    weights = sum(tensor.nbytes for tensor in net.state_dict().values())
    assert checkpoint_bytes(module, averages=1) == checkpoint_bytes(module) + weights


def test_an_optimizer_that_cannot_be_asked(tmp_path: Path) -> None:
    assert checkpoint_bytes(classifier(torch.optim.LBFGS)) > 0  # it wants a closure


def trainer_in(folder: Path, *callbacks: Any) -> Any:
    return SimpleNamespace(default_root_dir=str(folder), callbacks=list(callbacks))


@pytest.mark.parametrize(("free", "there"), [(0.9, False), (2.0, False), (2.0, True), (3.1, False)])
def test_room_for_one_for_all_or_for_none(
    free: float, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, run = classifier(), tmp_path / "runs" / "1"
    average = WeightAverage()
    size = checkpoint_bytes(module, averages=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(free * size)))
    said: list[str] = []
    monkeypatch.setattr(room, "rank_zero_warn", said.append)
    if there:  # the best and the last are there already
        (run / "checkpoints" / "last.ckpt").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    if free < 1:
        with pytest.raises(
            OSError, match=r"no room .* takes about .* MiB, and .* MiB free; make some, or give another"
        ):
            check_room(trainer_in(run, average), module, run / "checkpoints")
    else:
        check_room(trainer_in(run, average), module, run / "checkpoints")
    assert len(said) == (free == 2.0 and not there)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(OSError, match=r"nothing can be written to .*runs/1: Not a directory; give .*default_root_dir"):
        check_room(trainer_in(tmp_path / "runs" / "1"), classifier(), tmp_path / "checkpoints")
    with pytest.raises(OSError, match=r"nothing can be written to .*/runs: Not a directory; give .*checkpoint.dirpath"):
        check_room(trainer_in(tmp_path / "1"), classifier(), tmp_path / "runs")


LATER = """
import subprocess, sys
from pathlib import Path
import torch
from lanes.checkpoint import BackgroundWriter, load_checkpoint, newest_whole, save_checkpoint, take_snapshot

disk, writer = Path.cwd(), BackgroundWriter()

def write(step):
    writer.save(disk / "last", take_snapshot(torch.nn.Linear(100, 100), state={"global_step": step}))
    writer.wait()

def still(step, *others):
    assert sorted(path.name for path in disk.iterdir()) == sorted(["last", *others])
    assert newest_whole(disk) == (disk / "last", [])
    assert load_checkpoint(disk / "last", torch.nn.Linear(100, 100)) == {"global_step": step}

write(1)
assert writer.failure is None
with (disk / "ballast").open("wb", buffering=0) as ballast:
    try:
        while True:
            ballast.write(bytes(4096))
    except OSError:
        pass
write(2)
print(writer.failure)
still(1, "ballast")
try:
    save_checkpoint(disk / "last", torch.nn.Linear(100, 100))
except OSError as mistake:
    print(mistake)
still(1, "ballast")
(disk / "ballast").unlink()
write(3)
assert writer.failure is None
still(3)
subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
write(4)
print(writer.failure)
still(3)
"""


def test_a_disk_that_fills_up_and_one_that_is_taken_away(tmp_path: Path) -> None:
    """The last good checkpoint stays whole, and what was wrong is said; with room again, saving goes on."""
    disk = tmp_path / "disk"
    answer = on_small_disk([sys.executable, "-c", LATER], disk, size="256k")
    assert answer.returncode == 0, answer.stderr
    full, blocking, read_only = answer.stdout.splitlines()
    assert full.startswith(f"the checkpoint {disk}/last could not be written: ")
    assert "No space left on device" in full
    assert full.endswith(f"the last good one: {disk}/last")
    assert blocking.startswith(f"{disk}/last could not be written: ")
    assert "No space left on device" in blocking
    assert "Read-only file system" in read_only
    assert read_only.endswith(f"the last good one: {disk}/last")
