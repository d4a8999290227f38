"""Checkpoints on disk: what is damaged is named, what a kill left behind is mended, the newest whole one is found."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lanes.checkpoint import (
    BackgroundWriter,
    DamagedError,
    check_checkpoint,
    is_checkpoint,
    load_checkpoint,
    newest_whole,
    save_checkpoint,
    take_snapshot,
)
from lanes.checkpoint import folders as folders_module
from lanes.checkpoint.folders import mend, remove_folder


def net(value: float = 0.0) -> nn.Linear:
    linear = nn.Linear(3, 2)
    nn.init.constant_(linear.weight, value)
    nn.init.zeros_(linear.bias)
    return linear


def save(path: Path, step: int) -> Path:
    model = net(step)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_checkpoint(path, model, [optimizer], {"global_step": step})
    return path


def value_of(path: Path) -> float:
    model = net(-1.0)
    load_checkpoint(path, model)
    return float(model.weight.detach().mean())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "a file is gone": (lambda p: (p / "model.safetensors").unlink(), "model.safetensors is missing"),
    "a file is cut off": (lambda p: cut(p / "model.safetensors"), "model.safetensors has"),
    "a bit is another": (lambda p: flip(p / "model.safetensors"), "model.safetensors is not what was written"),
    "the state is changed": (lambda p: flip(p / "state.json"), "state.json is not what was written"),
    "no manifest": (lambda p: (p / "manifest.json").unlink(), "no manifest.json, which is written last"),
    "a manifest of nothing": (lambda p: (p / "manifest.json").write_text("[]"), "manifest.json cannot be read"),
    "a manifest without sizes": (
        lambda p: (p / "manifest.json").write_text('{"format": "lanes-checkpoint/2", "files": {"state.json": {}}}'),
        "manifest.json cannot be read",
    ),
    "half a manifest": (lambda p: cut(p / "manifest.json"), "manifest.json cannot be read"),
    "another run's file": (
        lambda p: shutil.copy(p.parent / "other" / "model.safetensors", p / "model.safetensors"),
        "model.safetensors is not what was written",
    ),
    "a file too many": (
        lambda p: shutil.copy(p / "model.safetensors", p / "average.safetensors"),
        "average.safetensors was not written with it",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_the_whole_one_beside_it(tmp_path: Path, name: str) -> None:
    spoil, words = DAMAGES[name]
    good, other, bad = save(tmp_path / "first", 5), save(tmp_path / "other", 3), save(tmp_path / "last", 9)
    spoil(bad)
    model = net(7.0)
    with pytest.raises(DamagedError, match=words) as error:
        load_checkpoint(bad, model)
    assert str(error.value).startswith(str(bad))
    assert str(error.value).endswith(f"the newest whole checkpoint beside it is {good}")
    assert (model.weight == 7).all(), "a refusal changes nothing"
    found, wrong = newest_whole(tmp_path)
    assert found == good
    assert is_checkpoint(other)
    assert len(wrong) == 1
    assert str(bad) in wrong[0]


def test_before_a_training_sizes_are_looked_at(tmp_path: Path) -> None:
    path = save(tmp_path / "last", 1)
    check_checkpoint(path, net())
    cut(path / "optimizer.safetensors")
    with pytest.raises(DamagedError, match="no checkpoint beside it is whole"):
        check_checkpoint(path, net())


def test_the_newest_is_by_step_not_by_name(tmp_path: Path) -> None:
    for name, step in (("a", 20), ("b", 100), ("c", 3)):
        save(tmp_path / name, step)
    assert newest_whole(tmp_path) == (tmp_path / "b", [])
    assert newest_whole(tmp_path / "nowhere") == (None, [])


def test_of_one_step_the_newest_is_the_one_written_last(tmp_path: Path) -> None:
    """It has what the callbacks knew after the others."""
    for name in ("b", "c", "a"):
        save(tmp_path / name, 5)
        time.sleep(0.002)
    assert newest_whole(tmp_path) == (tmp_path / "a", [])


def test_what_a_kill_interrupted_is_no_wrong_checkpoint(tmp_path: Path) -> None:
    save(tmp_path / "last", 1)
    save(tmp_path / ".last.partial", 2)
    cut(tmp_path / ".last.partial" / "manifest.json")
    assert newest_whole(tmp_path) == (tmp_path / "last", [])
    (tmp_path / ".last.partial" / "manifest.json").unlink()
    assert newest_whole(tmp_path) == (tmp_path / "last", [])


def test_a_training_that_writes_meanwhile_damages_nothing(tmp_path: Path) -> None:
    save(tmp_path / "last", 0)
    stop = threading.Event()

    def write() -> None:
        step = 0
        while not stop.wait(0.01):
            save(tmp_path / "last", step := step + 1)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        looks = [newest_whole(tmp_path) for _ in range(200)]
    finally:
        stop.set()
        writer.join()
    assert [wrong for path, wrong in looks if wrong or not path] == []


@pytest.mark.parametrize("left", ["before", "between", "after"])
def test_a_kill_between_any_two_renames(tmp_path: Path, left: str) -> None:
    """The new one is whole under another name; the old one under its own, under another, or under another too many."""
    save(tmp_path / "last", 1)
    save(tmp_path / "new", 2)
    if left == "before":
        (tmp_path / "new").rename(tmp_path / ".last.partial")
    elif left == "between":
        (tmp_path / "last").rename(tmp_path / ".last.old")
        (tmp_path / "new").rename(tmp_path / ".last.partial")
    else:
        (tmp_path / "last").rename(tmp_path / ".last.old")
        (tmp_path / "new").rename(tmp_path / "last")
    assert value_of(newest_whole(tmp_path)[0]) == 2
    mend(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
    assert value_of(tmp_path / "last") == (1 if left == "before" else 2)


def test_only_the_old_one_is_whole(tmp_path: Path) -> None:
    save(tmp_path / ".last.old", 1)
    save(tmp_path / ".last.partial", 2)
    cut(tmp_path / ".last.partial" / "model.safetensors")
    mend(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
    assert value_of(tmp_path / "last") == 1


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    """Checkpoints may be written into any folder, a home folder, too."""
    for name in (".vim.old", ".config.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.json").write_text("{}")
    (tmp_path / ".profile.old").write_text("a file")
    save(tmp_path / "last", 1)
    assert {path.name for path in tmp_path.iterdir()} == {".vim.old", ".config.partial", ".profile.old", "last"}
    assert (tmp_path / ".vim.old" / "settings.json").is_file()


KILLED = """
import sys, torch
from pathlib import Path
from torch import nn
from lanes.checkpoint import save_checkpoint
for step in range(1, 10**6):
    net = nn.Linear(400, 300)
    nn.init.constant_(net.weight, step)
    save_checkpoint(Path(sys.argv[1]) / "last", net, state={"global_step": step})
    print(step, flush=True)
"""


def test_killed_at_any_moment_the_last_one_told_of_is_there(tmp_path: Path) -> None:
    for moment in range(6):
        writer = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        told = int(writer.stdout.readline())
        time.sleep(0.013 * moment)
        os.kill(writer.pid, signal.SIGKILL)
        told = max([told, *map(int, writer.stdout.read().split())])
        writer.wait()
        found, _ = newest_whole(tmp_path)
        assert found is not None
        assert json.loads((found / "manifest.json").read_text())["step"] >= told
        mend(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["last"]
        shutil.rmtree(tmp_path / "last")


# ---- On a thread


def background(writer: BackgroundWriter, path: Path, step: int, then: Callable[[], None] | None = None) -> None:
    writer.save(path, take_snapshot(net(step), state={"global_step": step}), then)


def test_training_goes_on_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_go_on, write = threading.Event(), folders_module.write_folder
    monkeypatch.setattr("lanes.checkpoint.saving.write_folder", lambda *args: (may_go_on.wait(), write(*args)))
    writer, model = BackgroundWriter(), net(1.0)
    writer.save(tmp_path / "last", take_snapshot(model))
    nn.init.constant_(model.weight, 2.0)  # the next step
    assert not (tmp_path / "last").exists()
    may_go_on.set()
    writer.wait()
    assert value_of(tmp_path / "last") == 1


def test_a_failing_write_keeps_what_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer, told = BackgroundWriter(), list[int]()
    background(writer, tmp_path / "1", 1, lambda: told.append(1))
    writer.wait()
    with caplog.at_level(logging.WARNING):
        (tmp_path / "file").touch()
        background(writer, tmp_path / "file" / "2", 2, lambda: told.append(2))
        writer.remove(tmp_path / "1")
        writer.wait()
    assert told == [1], "of what is on the disk"
    assert writer.failure
    assert "file/2 could not be written" in caplog.text
    assert f"the last good one: {tmp_path / '1'}" in caplog.text
    assert value_of(tmp_path / "1") == 1, "not removed while it is the last"
    background(writer, tmp_path / "3", 3)
    writer.wait()
    assert writer.failure is None
    assert not (tmp_path / "1").exists()
    assert value_of(tmp_path / "3") == 3


def test_what_a_kill_left_of_a_removed_one_goes(tmp_path: Path) -> None:
    save(tmp_path / "a.ckpt", 1)
    save(tmp_path / "b.ckpt", 2)
    remove_folder(tmp_path / "a.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["b.ckpt"]
    (tmp_path / "b.ckpt").rename(tmp_path / ".b.ckpt.removed")  # and then it was killed
    mend(tmp_path)
    assert not any(tmp_path.iterdir())
