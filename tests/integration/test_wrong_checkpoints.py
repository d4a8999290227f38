"""A checkpoint that is not what it should be, by every way in: one line that says so and the way out, nothing written.

Through the whole command, past damaged ones: test_last.py; ``lanes filters``: tests/unit/test_filters_verb.py.
"""

from pathlib import Path

import pytest
import torch

from lanes.checkpoint import save_checkpoint
from lanes.models import SmallAlexNet
from tests.damages import DAMAGES, WAY_OUT
from tests.integration.command import CONFIG, refused

FIT = ["fit", "-c", str(CONFIG), "--trainer.devices", "1", "--trainer.default_root_dir", "runs"]
WAYS = {"to go on": "--ckpt_path", "to fine-tune": "--model.init_from"}


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three checkpoints of the network of `CONFIG`: last, other, and older."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LANES_RUN_FOLDER", raising=False)
    folder = tmp_path / "runs" / "1" / "checkpoints"
    for name, step in (("older", 2), ("other", 4), ("last.ckpt", 9)):
        torch.manual_seed(step)
        save_checkpoint(folder / name, SmallAlexNet(10, 2), state={"global_step": step})
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_it_is_refused(
    way: str, damage: str, checkpoints: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if (way, damage) == ("to go on", "swapped"):
        pytest.skip("found when all of it is read, after processes have started: test_last.py")
    spoil, words = DAMAGES[damage]
    bad = checkpoints / "last.ckpt"
    spoil(bad)
    before = contents(checkpoints)
    error = refused([*FIT, WAYS[way], str(bad)], monkeypatch, capfd)
    assert str(bad) in error
    for word in words:
        assert word in error
    if damage in ("cut off", "swapped"):
        assert f"{WAY_OUT}{checkpoints / 'other'}" in error
    if (way, damage) == ("to fine-tune", "no manifest"):
        assert f"if its weights are good all the same, or not from lanes, give {bad / 'model.safetensors'}" in error
    assert contents(checkpoints) == before
    assert [path.name for path in (checkpoints.parents[1]).iterdir()] == ["1"], "a folder for the run was made"


@pytest.mark.parametrize(
    ("way", "words"), [("to go on", "use the config it was"), ("to fine-tune", "init_skip: ['fc8")]
)
def test_a_checkpoint_of_another_model(
    way: str, words: str, checkpoints: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(checkpoints / "another", SmallAlexNet(7, 2), state={"global_step": 3})
    error = refused([*FIT, WAYS[way], str(checkpoints / "another")], monkeypatch, capfd)
    assert "'fc8.weight' is [7, 256] in it and [10, 256] in the" in error
    assert words in error


def test_none_is_whole(checkpoints: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """It would begin anew in their place."""
    for damage, name in (("cut off", "last.ckpt"), ("newer", "older"), ("no manifest", "other")):
        DAMAGES[damage][0](checkpoints / name)
    before = contents(checkpoints)
    error = refused([*FIT, "--ckpt_path", "last"], monkeypatch, capfd)
    assert "no checkpoint of runs/1 is whole: " in error
    for damage, name in (("cut off", "last.ckpt"), ("newer", "older"), ("no manifest", "other")):
        assert f"checkpoints/{name} {DAMAGES[damage][1][0]}" in error
    assert contents(checkpoints) == before
