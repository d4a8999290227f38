"""The layout that torchrun gives, or a job of SLURM."""

from types import SimpleNamespace

import pytest

from lanes.training.layout import take_layout
from lanes.training.torchrun import torchrun_layout

STARTED = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "3"}


def test_processes_and_nodes() -> None:
    assert torchrun_layout(STARTED) == (2, 3)
    assert torchrun_layout({}) is None


def test_nodes_must_be_alike() -> None:
    with pytest.raises(ValueError, match=r"started 5 processes on 3 nodes, 2 of them on this one: .*--nproc-per-node"):
        torchrun_layout({**STARTED, "WORLD_SIZE": "5"})


JOB = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_STEP_TASKS_PER_NODE": "2(x3)"}


@pytest.mark.parametrize("started", [STARTED, JOB, STARTED | JOB], ids=["torchrun", "job", "torchrun in a job"])
def test_it_takes_the_place_of_the_configuration(monkeypatch: pytest.MonkeyPatch, started: dict[str, str]) -> None:
    trainer = SimpleNamespace(devices=4, num_nodes=1)
    take_layout(trainer)
    assert (trainer.devices, trainer.num_nodes) == (4, 1), "nothing was started"
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    take_layout(trainer)
    assert (trainer.devices, trainer.num_nodes) == (2, 3)


@pytest.mark.parametrize(("devices", "said"), [("2", False), ("auto", False), (-1, False), (4, True)])
def test_what_is_other_than_asked_for_is_said(monkeypatch: pytest.MonkeyPatch, devices: str | int, said: bool) -> None:
    """A number of the command line comes as a word."""
    for name, value in STARTED.items():
        monkeypatch.setenv(name, value)
    told: list[str] = []
    monkeypatch.setattr("lanes.training.layout.rank_zero_info", told.append)
    take_layout(SimpleNamespace(devices=devices, num_nodes=1))
    expected = "torchrun gives 3 nodes of 2 devices, which take the place of trainer.devices=4, trainer.num_nodes=1"
    assert told == ([expected] if said else [])
