"""The wandb logger without a server: what lies on disk, how it falls back, and that wandb's death does no harm.

wandb keeps its state per process, so every scenario runs as its own script in its own home folder.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from lanes.training.wandb_logger import LanesLogger, _answers, _plain

PRELUDE = """
import json, logging, os, signal, sys, time
from pathlib import Path
from PIL import Image
from lanes.training import wandb_logger
from lanes.training.wandb_logger import LanesLogger
logging.basicConfig(stream=sys.stdout, format="LOG %(message)s", level=logging.WARNING)

def cores():
    tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
    pids = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    return [pid for pid in pids if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes()]
"""


def _environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "SLURM_", "NETRC"))}
    kept = {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")}
    home.mkdir(exist_ok=True)
    return kept | {"HOME": str(home), "OMP_NUM_THREADS": "1"}


def _run(tmp_path: Path, body: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a script to its end without a terminal, in a home folder without accounts."""
    script = tmp_path / "scenario.py"
    script.write_text(PRELUDE + textwrap.dedent(body))
    process = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=_environment(tmp_path / "home") | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=45)
    finally:
        _end_group(process)
    assert process.returncode == 0, out + err
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _end_group(process: subprocess.Popen) -> None:
    """End what this test started and what that started: they share a process group of their own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _read(folder: Path, tmp_path: Path) -> tuple[list[dict], dict]:
    """History rows and configuration of a run on disk, read by the command that comes with wandb."""
    process = subprocess.Popen(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)],
        env=_environment(tmp_path / "home") | {"WANDB_ERROR_REPORTING": "false"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=20)
    finally:
        _end_group(process)
    assert process.returncode == 0, err
    records = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    configs = [record["config"] for record in records if record["type"] == "config"]
    return history, {key: value for config in configs for key, value in config.get("update", {}).items()}


def _folders(out: str) -> list[Path]:
    return [Path(line.split(" ", 1)[1]) for line in out.splitlines() if line.startswith("FOLDER ")]


def _closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_offline_run_is_readable_again(tmp_path: Path) -> None:
    done = _run(
        tmp_path,
        """
        logger = LanesLogger(save_dir="here/there", name="try", mode="offline", run_id="fixed7")
        assert logger.run_folder is None and logger.version == "fixed7" and not cores()
        logger.log_hyperparams({"lr": 0.1, "where": Path("a/b"), "act": print, "deep": {"nan": float("nan"), 3: (1,)}})
        for step in range(5):
            logger.log_metrics({"loss": 1.0 / (step + 1)}, step=step)
        logger.log_metrics({"bad": {"set": {1}}, "worse": object()}, step=5)
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
    first, second = _folders(done.stdout)
    assert first.parent == tmp_path / "here" / "there" / "wandb"
    assert first.name.endswith("fixed7")
    history, config = _read(first, tmp_path)
    losses = {row["trainer/global_step"]: row["loss"] for row in history if "loss" in row}
    assert losses == pytest.approx({step: 1 / (step + 1) for step in range(5)})
    picture = next(row for row in history if "filters/lane0/features_conv1.path" in row)
    assert picture["trainer/global_step"] == 4
    assert picture["filters/lane0/features_conv1.caption"] == "two lanes"
    assert (first / "files" / picture["filters/lane0/features_conv1.path"]).read_bytes()[:4] == b"\x89PNG"
    assert "0.1" in json.dumps(config)
    assert _read(second, tmp_path)[0][0]["test_acc"] == 0.5
    assert "Traceback" not in done.stderr


def test_auto_without_a_key_is_offline_and_asks_nothing(tmp_path: Path) -> None:
    done = _run(
        tmp_path,
        """
        logger = LanesLogger(save_dir="runs")
        start = time.monotonic()
        logger.log_metrics({"loss": 1.0}, step=0)
        assert time.monotonic() - start < 8
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
    assert _folders(done.stdout)[0].name.startswith("offline-run-")
    assert done.stderr.count("wandb: offline (no API key is configured") == 1
    assert "REFUSED mode='online' is not possible: no API key" in done.stdout


@pytest.mark.parametrize("probe", [True, False])
def test_refused_server_falls_back_to_offline(tmp_path: Path, probe: bool) -> None:
    done = _run(
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
    seconds = float(done.stdout.split("SECONDS ")[1].split()[0])
    assert seconds < 30  # wandb alone would try for 90
    (folder,) = _folders(done.stdout)
    assert folder.name.startswith("offline-run-")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert ("does not answer" if probe else "could not start online") in done.stderr
    assert _read(folder, tmp_path)[0][0]["loss"] == 2.5


def test_death_of_wandb_does_not_reach_the_training(tmp_path: Path) -> None:
    done = _run(
        tmp_path,
        """
        def kill_core():
            (core,) = cores()
            os.kill(core, signal.SIGKILL)
            time.sleep(0.3)

        logger = LanesLogger(save_dir="runs", mode="offline", run_id="mortal")
        logger.log_hyperparams({"lr": 0.25})
        for step in range(30):
            logger.log_metrics({"loss": float(step)}, step=step)
            logger.log_image("plain", [Image.new("L", (8, 8), step)], step=step)
            logger.log_picture("filters/lane0/conv1", Image.new("L", (8, 8), step), step=step, caption="c")
            if step == 9:
                kill_core()
        logger.finalize("failed")
        logger.log_metrics({"test_acc": 0.5}, step=30)  # opens a third folder
        kill_core()
        for step in range(30, 40):
            logger.log_metrics({"loss": float(step)}, step=step)
            logger.log_hyperparams({"late": step})
            logger.experiment.anything(step)
        assert not cores()
        logger.finalize("success")
        for folder in logger.run_folders:
            print("FOLDER", folder)
        """,
    )
    _, second, _ = _folders(done.stdout)
    assert second.name.startswith("offline-run-")
    assert "mortal" in second.name
    assert done.stdout.count("a fresh offline run takes over") == 1
    assert done.stdout.count("nothing more is logged") == 1
    assert "Traceback" not in done.stderr
    history, config = _read(second, tmp_path)
    steps = {row["trainer/global_step"] for row in history if "loss" in row}
    assert set(range(12, 30)) <= steps  # the first write after the death can vanish in the socket unnoticed
    assert {row["trainer/global_step"] for row in history if "filters/lane0/conv1.path" in row} >= set(range(12, 30))
    assert "0.25" in json.dumps(config)


def test_hyperparameters_become_plain() -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError

    def never_called() -> None:
        raise AssertionError

    plain = _plain(
        {
            "odd": Odd(),
            "call": never_called,
            "space": argparse.Namespace(a=torch.tensor(2.0), b=torch.zeros(3, 4)),
            5: [float("inf"), None, True],
        }
    )
    assert json.loads(json.dumps(plain)) == {
        "odd": "Odd",
        "call": never_called.__qualname__,
        "space": {"a": 2.0, "b": "Tensor(3, 4)"},
        "5": ["inf", None, True],
    }


def test_probe_sees_a_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert _answers(f"http://127.0.0.1:{server.getsockname()[1]}/path")
    start = time.monotonic()
    assert not _answers(f"http://127.0.0.1:{_closed_port()}")
    assert time.monotonic() - start < 2.5


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
