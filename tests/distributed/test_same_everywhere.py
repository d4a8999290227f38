"""Processes that would run different code, configurations or environments do not start; all of them say why."""

import os
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from lanes.faults.agreement import UnlikeError
from lanes.faults.same_everywhere import check_same
from tests.integration.test_replicas import classifier, make_trainer, mixed, photos
from tests.ranks import Ranks

CPU = torch.device("cpu")
CONFIG = {"trainer": {"max_epochs": 90, "devices": 4}, "model": {"optimizer": {"init_args": {"lr": 0.1}}}}


def start(config: dict[str, Any], environment: dict[str, str], odd: int) -> str:
    """How a training starts of which one process was given something else; what it says."""
    mine = config if dist.get_rank() == odd else CONFIG
    before = dict(os.environ)
    if dist.get_rank() == odd:
        os.environ.update(environment)
    trainer = make_trainer(2)
    trainer.strategy.about["config"] = mine
    try:
        trainer.fit(classifier(mixed), DataLoader(photos(16), 4))
    except UnlikeError as error:
        return f"{isinstance(error, ValueError)}: {error}"
    finally:
        os.environ.clear()
        os.environ.update(before)
    return f"{trainer.global_step} steps"


@pytest.mark.parametrize(
    ("config", "environment", "said"),
    [
        (
            {**CONFIG, "trainer": {"max_epochs": 100, "devices": 4}},
            {},
            "processes differ in trainer.max_epochs: 90 on rank 0 (on ",
        ),
        (CONFIG, {"PL_GLOBAL_SEED": "5"}, "processes differ in PL_GLOBAL_SEED: nothing on rank 0 (on "),
        (CONFIG, {"NVIDIA_TF32_OVERRIDE": "0"}, "processes differ in NVIDIA_TF32_OVERRIDE: nothing on rank 0 (on "),
    ],
)
def test_one_process_differs(
    ranks: Ranks, config: dict[str, Any], environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ranks(start, 4, config, environment, 2)
    assert all(answer.startswith(f"True: {said}") for answer in answers), answers
    assert all("on rank 2 (on " in answer for answer in answers)
    assert len(set(answers)) == 1


def test_what_may_differ(ranks: Ranks) -> None:
    """The order of keys, where things are written, and how many threads compute."""
    config = {"model": CONFIG["model"], "trainer": {"default_root_dir": "/elsewhere", **CONFIG["trainer"]}}
    assert ranks(start, 4, config, {"OMP_NUM_THREADS": "3", "SLURM_JOB_ID": "7"}, 2) == ["2 steps"] * 4


def seconds() -> float:
    dist.barrier()
    start = time.perf_counter()
    check_same(CONFIG, device=CPU)
    return time.perf_counter() - start


def test_what_it_takes(ranks: Ranks, measured: Any) -> None:
    measured(f"comparing code, versions and configuration of 2 processes at start: {max(ranks(seconds, 2)):.3f} s")
