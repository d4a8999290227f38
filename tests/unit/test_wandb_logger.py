"""The wandb logger without a server: what lies on disk, how it falls back, and that wandb's death does no harm.

wandb keeps its state per process, so every scenario runs as its own script in its own home folder.
"""

import argparse
import json
import os
import socket
import textwrap
import time
from pathlib import Path

import pytest
import torch

from lanes.training.hyperparameters import plain
from lanes.training.wandb_logger import LanesLogger
from lanes.training.wandb_mode import answers
from tests.wandb_processes import read_run, run

PRELUDE = """
import json, logging, os, pickle, signal, sys, time
from contextlib import suppress
from pathlib import Path
from PIL import Image
from lanes.training import wandb_logger
from lanes.training.wandb_logger import LanesLogger
logging.basicConfig(stream=sys.stdout, format="LOG %(message)s", level=logging.WARNING)

def cores():
    pids = []
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has just ended
            pids += map(int, (task / "children").read_text().split())
    return [pid for pid in pids if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes()]

def kill_core():
    # Until the process is dead its socket takes rows, on a busy machine for longer than any sleep.
    (core,) = cores()
    os.kill(core, signal.SIGKILL)
    os.waitid(os.P_PID, core, os.WEXITED | os.WNOWAIT)
"""


def _run(tmp_path: Path, body: str, **environment: str) -> tuple[str, str]:
    """What a script says on stdout and stderr; it runs to its end in a home folder without accounts."""
    (tmp_path / "scenario.py").write_text(PRELUDE + textwrap.dedent(body))
    return run([tmp_path / "scenario.py"], tmp_path, **environment)


def _folders(out: str) -> list[Path]:
    return [Path(line.split(" ", 1)[1]) for line in out.splitlines() if line.startswith("FOLDER ")]


def _closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_offline_run_is_readable_again(tmp_path: Path) -> None:
    out, words = _run(
        tmp_path,
        """
        logger = LanesLogger(save_dir="here/there", name="try", mode="offline", run_id="fixed7")
        assert logger.run_folder is None and logger.version == "fixed7" and not cores()
        logger.log_hyperparams({"lr": 0.1, "where": Path("a/b"), "act": print, "deep": {"nan": float("nan"), 3: (1,)}})
        for step in range(5):
            logger.log_metrics({"loss": 1.0 / (step + 1)}, step=step)
        logger.log_metrics({"bad": {"set": {1}}, "worse": object()}, step=5)
        assert pickle.loads(pickle.dumps(logger)).version == "fixed7"  # as for processes that a strategy spawns
        picture = Image.new("RGB", (16, 8), "red")
        logger.log_picture("filters/lane0/features.conv1", picture, step=4, caption="two lanes")
        logger.finalize("success")
        assert os.environ["WANDB_ERROR_REPORTING"] == "false"
        assert Path(os.environ["WANDB_DATA_DIR"]).is_relative_to(Path("here/there").absolute())
        logger.log_metrics({"test_acc": 0.5}, step=5)  # as trainer.test after trainer.fit does
        logger.finalize("success")
        assert len(logger.run_folders) == 2 and not (Path.home() / ".netrc").exists()
        for folder in logger.run_folders:
            print("FOLDER", folder)
        """,
    )
    first, second = _folders(out)
    assert first.parent == tmp_path / "here" / "there" / "wandb"
    assert first.name.endswith("fixed7")
    history, config = read_run(first, tmp_path)
    losses = {row["trainer/global_step"]: row["loss"] for row in history if "loss" in row}
    assert losses == pytest.approx({step: 1 / (step + 1) for step in range(5)})
    picture = next(row for row in history if "filters/lane0/features_conv1.path" in row)
    assert picture["trainer/global_step"] == 4
    assert picture["filters/lane0/features_conv1.caption"] == "two lanes"
    assert (first / "files" / picture["filters/lane0/features_conv1.path"]).read_bytes()[:4] == b"\x89PNG"
    assert "0.1" in json.dumps(config)
    assert read_run(second, tmp_path)[0][0]["test_acc"] == 0.5
    assert "Traceback" not in words


def test_auto_without_a_key_is_offline_and_asks_nothing(tmp_path: Path) -> None:
    out, words = _run(
        tmp_path,
        """
        logger = LanesLogger(save_dir="runs")
        logger.log_metrics({"loss": 1.0}, step=0)  # a question would end the script: nobody is there to answer
        print("FOLDER", logger.run_folder)
        logger.finalize("success")
        try:
            LanesLogger(save_dir="runs", mode="online").log_metrics({"loss": 1.0}, step=0)
        except ValueError as error:
            print("REFUSED", error)
        silent = LanesLogger(save_dir="nothing", mode="disabled")
        silent.log_metrics({"loss": 1.0}, step=0)
        silent.finalize("success")
        assert silent.run_folder is None and not Path("nothing").exists()
        """,
        WANDB_BASE_URL=f"http://127.0.0.1:{_closed_port()}",
    )
    assert _folders(out)[0].name.startswith("offline-run-")
    assert words.count("wandb: offline (no API key is configured") == 1
    assert "REFUSED mode='online' is not possible: no API key" in out


@pytest.mark.parametrize("probe", [True, False])
def test_refused_server_falls_back_to_offline(tmp_path: Path, probe: bool) -> None:
    out, words = _run(
        tmp_path,
        f"""
        wandb_logger.INIT_TIMEOUT_S = 2
        logger = LanesLogger(save_dir="runs", probe={probe}, run_id="again")
        start = time.monotonic()
        logger.log_metrics({{"loss": 2.5}}, step=3)
        print("SECONDS", time.monotonic() - start)
        logger.finalize("success")
        print("FOLDER", logger.run_folder)
        """,
        WANDB_BASE_URL=f"http://127.0.0.1:{_closed_port()}",
        WANDB_API_KEY="0" * 40,
    )
    seconds = float(out.split("SECONDS ")[1].split()[0])
    assert seconds < 80  # wandb alone would try for 90
    (folder,) = _folders(out)
    assert folder.name.startswith("offline-run-")
    assert len(words.splitlines()) == 1, words
    assert ("does not answer" if probe else "could not start online") in words
    assert read_run(folder, tmp_path)[0][0]["loss"] == 2.5


def test_death_of_wandb_does_not_reach_the_training(tmp_path: Path) -> None:
    out, words = _run(
        tmp_path,
        """
        logger = LanesLogger(save_dir="runs", mode="offline", run_id="mortal")
        logger.log_hyperparams({"lr": 0.25})
        for step in range(30):
            logger.log_metrics({"loss": float(step)}, step=step)
            logger.log_image("plain", [Image.new("L", (8, 8), step)], step=step)
            logger.log_picture("filters/lane0/conv1", Image.new("L", (8, 8), step), step=step, caption="c")
            if step == 9:
                kill_core()
        logger.finalize("failed")
        for folder in logger.run_folders:
            print("FOLDER", folder)
        logger.log_metrics({"test_acc": 0.5}, step=30)  # opens one more folder
        kill_core()
        for step in range(30, 40):
            logger.log_metrics({"loss": float(step)}, step=step)
            logger.log_hyperparams({"late": step})
        logger.finalize("success")
        assert not cores()
        logger.log_metrics({"loss": 40.0}, step=40)
        logger.experiment.anything(40)
        """,
    )
    folders = _folders(out)
    assert folders[-1].name.startswith("offline-run-")
    assert "mortal" in folders[-1].name
    assert out.count("a fresh offline run takes over") == 1
    assert out.count("nothing more is logged") == 1
    assert "Traceback" not in words
    read = [read_run(folder, tmp_path) for folder in folders]
    rows = [row for history, _ in read for row in history]
    assert {row["trainer/global_step"] for row in rows if "loss" in row} == set(range(30))
    assert {row["trainer/global_step"] for row in rows if "filters/lane0/conv1.path" in row} == set(range(30))
    assert {row["trainer/global_step"] for row in rows if any(key.startswith("plain.") for key in row)} == set(
        range(30)
    )
    numbers = [row["_step"] for row in rows]
    assert numbers == sorted(set(numbers))  # so that syncing one folder after the other writes over nothing
    assert "0.25" in json.dumps(read[-1][1])


def test_death_just_before_the_end_loses_nothing(tmp_path: Path) -> None:
    out, _ = _run(
        tmp_path,
        """
        logger = LanesLogger(save_dir="runs", mode="offline")
        for step in range(5):
            logger.log_metrics({"loss": float(step)}, step=step)
        kill_core()
        logger.finalize("success")
        print("FOLDER", logger.run_folder)
        """,
    )
    (folder,) = _folders(out)
    assert [row["trainer/global_step"] for row in read_run(folder, tmp_path)[0]] == list(range(5))


def test_hyperparameters_become_plain() -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError

    def never_called() -> None:
        raise AssertionError

    recorded = plain(
        {
            "odd": Odd(),
            "call": never_called,
            "space": argparse.Namespace(a=torch.tensor(2.0), b=torch.zeros(3, 4)),
            5: [float("inf"), None, True],
        }
    )
    assert json.loads(json.dumps(recorded)) == {
        "odd": "Odd",
        "call": never_called.__qualname__,
        "space": {"a": 2.0, "b": "Tensor(3, 4)"},
        "5": ["inf", None, True],
    }


def test_probe_sees_a_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert answers(f"http://127.0.0.1:{server.getsockname()[1]}/path")
    start = time.monotonic()
    assert not answers(f"http://127.0.0.1:{_closed_port()}")
    assert time.monotonic() - start < 30  # it does not hang


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mode": "offlin"}, ["'offlin'", "'offline'", "auto, online, offline, disabled"]),
        ({"mode": "nonsense"}, ["'nonsense'", "allowed"]),
        ({"project": "a/b"}, ["project='a/b'"]),
        ({"run_id": "a:b"}, ["run_id='a:b'"]),
        ({"run_id": " "}, ["run_id=' '", "empty"]),
        ({"save_dir": __file__}, ["is a file"]),
    ],
)
def test_arguments_are_checked(arguments: dict, words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"must|mode|file") as caught:
        LanesLogger(**arguments)
    for word in words:
        assert word in str(caught.value)
