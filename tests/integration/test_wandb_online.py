"""The real wandb client and a stand-in server, healthy and sick: training does not notice, and nothing is lost.

Every scenario is a small training of its own process, in its own home folder, which trains twice: without logging, and
with it. At half time the server falls ill, or wandb's own process is killed. Afterwards all runs are synced to one
healthy server and compared with what was logged, number by number and pixel by pixel.

A part of the scenarios runs by default; ``LANES_WANDB=all`` runs all of them.
"""

import hashlib
import io
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.wandb_processes import HANGS_S, end_group, read_run, run, start
from tests.wandb_server import Run, WandbServer
from tests.wandb_training import NUM_STEPS, PICTURE
from tests.wandb_training import picture as picture_of

pytestmark = pytest.mark.timeout(1800)  # the first test waits for all trainings

SCRIPT = Path(__file__).parents[1] / "wandb_training.py"
TIMEOUT_S = 3  # for opening a run and for finishing one, where the server is sick
BUSY_S = 60  # what a process may need beside, on a busy machine
SLOWER_S = 0.5  # what a step may take longer than without logging
FAULTS = ("hang", "500", "429", "403", "html", "refuse")
ALL = ["healthy", "kill", "kill offline", *(f"{fault} {when}" for when in ("midway", "first") for fault in FAULTS)]
SOME = ["healthy", "kill", "hang midway", "500 midway", "refuse midway"]
SCENARIOS = ALL if os.environ.get("LANES_WANDB") == "all" else SOME


@dataclass
class Outcome:
    """What became of one scenario."""

    name: str
    training: dict[str, Any]  # what the process printed last
    exit_s: float  # from the end of the last step to the end of the process
    words: str  # what it said on stderr
    server: WandbServer
    num_before: int  # rows that had arrived at half time
    on_disk: list[dict[str, Any]]
    synced: Run | None = None

    @property
    def slower_s(self) -> float:
        """By how much a step took longer than the same step without logging, at worst."""
        pairs = zip(self.training["logged"]["steps_s"], self.training["plain"]["steps_s"], strict=True)
        return max(logged - plain for logged, plain in pairs)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("wandb")
    with ThreadPoolExecutor(3) as pool:  # they mostly wait; more at once would need gigabytes
        played = dict(zip(SCENARIOS, pool.map(lambda scenario: _play(scenario, folder), SCENARIOS), strict=True))
    with WandbServer() as server:
        run(["-m", "wandb", "sync", "--include-online", *_folders(played)], folder, **_client(server.url))
        for scenario, outcome in played.items():
            outcome.synced = server.runs[_run_id(scenario)]
        assert server.unknown == []
    return played


def _play(scenario: str, folder: Path) -> Outcome:
    """Train once while the scenario's server or wandb's process falls ill."""
    name, _, when = scenario.partition(" ")
    home = folder / _run_id(scenario)
    mode = "offline" if when == "offline" else "auto"
    disturbance = "fault" if when == "midway" else "kill" if name == "kill" else "none"
    with WandbServer() as server:
        server.fault = name if when == "first" else None
        timeout_s = TIMEOUT_S if name in FAULTS else HANGS_S
        process = start([SCRIPT, _run_id(scenario), mode, disturbance, timeout_s], home, **_client(server.url))
        hangs = threading.Timer(HANGS_S, end_group, [process])
        hangs.start()
        try:
            out, num_before = "", 0
            while disturbance == "fault" and "HALF\n" not in out and (line := process.stdout.readline()):
                out += line
            if disturbance == "fault":
                num_before = _wait_for_rows(server)
                server.fault = name
                process.stdin.write("\n")
                process.stdin.flush()
            more, words = process.communicate()
            end = time.monotonic()  # the same clock as the process's own
        finally:
            hangs.cancel()
            end_group(process)
    assert process.returncode == 0, out + more + words
    training = json.loads((out + more).split("DONE ")[1])
    rows = [row for path in training["folders"] for row in read_run(Path(path), home)[0]]
    return Outcome(name, training, end - training["logged"]["end"], words, server, num_before, rows)


def _wait_for_rows(server: WandbServer) -> int:
    """The server falls ill in the middle of an upload, not before it."""
    for _ in range(10 * BUSY_S):
        if rows := sum(len(one.history) for one in list(server.runs.values())):
            return rows
        time.sleep(0.1)
    raise AssertionError("nothing arrived at the healthy server")


def _client(url: str) -> dict[str, str]:
    """The environment of a client of the server at `url`."""
    return {
        "WANDB_BASE_URL": url,
        "WANDB_API_KEY": "0" * 40,
        "WANDB_ERROR_REPORTING": "false",
        "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "0.2",  # else nothing arrives before the training is over
    }


def _folders(played: dict[str, Outcome]) -> list[str]:
    return [folder for outcome in played.values() for folder in outcome.training["folders"]]


def _run_id(scenario: str) -> str:
    return scenario.replace(" ", "-")


def _check_complete(arrived: Run, training: dict[str, Any]) -> None:
    """Every loss and every picture that was logged has arrived, whole, and no row was written over."""
    logged = [float.fromhex(loss) for loss in training["logged"]["losses"]]
    losses = {row["trainer/global_step"]: row["loss"] for row in arrived.rows if "loss" in row}
    assert losses == dict(enumerate(logged))
    pictures = {row["trainer/global_step"]: row[PICTURE] for row in arrived.rows if PICTURE in row}
    assert sorted(pictures) == list(range(NUM_STEPS))
    for step, picture in pictures.items():
        file = arrived.files[picture["path"]]
        assert picture["caption"] == f"step {step}"
        assert hashlib.sha256(file).hexdigest() == picture["sha256"]
        places = [Path(folder) / "files" / picture["path"] for folder in training["folders"]]
        assert file in [place.read_bytes() for place in places if place.exists()]
        with Image.open(io.BytesIO(file)) as image:
            assert image.format == "PNG"
            assert image.tobytes() == picture_of(step).tobytes()
    numbers = [row["_step"] for row in arrived.rows]
    assert numbers == sorted(set(numbers)), "two rows under one number: a server may keep only one of them"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_training_does_not_notice(outcomes: dict[str, Outcome], scenario: str) -> None:
    outcome = outcomes[scenario]
    plain, logged = outcome.training["plain"], outcome.training["logged"]
    assert len(plain["losses"]) == NUM_STEPS
    assert logged["losses"] == plain["losses"]
    assert logged["drawn"] == plain["drawn"]
    assert plain["losses"] == outcomes["healthy"].training["plain"]["losses"]
    assert "Traceback" not in outcome.words


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_step_waits_for_wandb(
    outcomes: dict[str, Outcome], scenario: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A wait that the scenario causes comes again when it is played again; one that others' load causes does not."""
    slower_s = outcomes[scenario].slower_s
    for _ in range(2):
        if slower_s >= SLOWER_S:
            slower_s = _play(scenario, tmp_path_factory.mktemp("again")).slower_s
    assert slower_s < SLOWER_S


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_process_ends(outcomes: dict[str, Outcome], scenario: str) -> None:
    assert outcomes[scenario].exit_s < TIMEOUT_S + BUSY_S


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_nothing_is_lost(outcomes: dict[str, Outcome], scenario: str) -> None:
    outcome = outcomes[scenario]
    assert {row["trainer/global_step"] for row in outcome.on_disk if "loss" in row} == set(range(NUM_STEPS))
    assert len({row[f"{PICTURE}.path"] for row in outcome.on_disk if f"{PICTURE}.path" in row}) >= NUM_STEPS
    assert outcome.synced is not None
    _check_complete(outcome.synced, outcome.training)


def test_all_arrives_at_a_healthy_server(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["healthy"]
    _check_complete(outcome.server.runs["healthy"], outcome.training)
    assert outcome.server.runs["healthy"].exit_code == 0
    assert outcome.server.unknown == []


@pytest.mark.parametrize("scenario", [scenario for scenario in SCENARIOS if scenario.endswith("midway")])
def test_the_fault_came_midway(outcomes: dict[str, Outcome], scenario: str) -> None:
    outcome = outcomes[scenario]
    assert 0 < outcome.num_before <= len(outcome.server.runs[_run_id(scenario)].history) < 2 * NUM_STEPS


def test_figures(outcomes: dict[str, Outcome], measured: Callable[[str], None]) -> None:
    for scenario, outcome in outcomes.items():
        num_arrived = sum(len(one.history) for one in outcome.server.runs.values())
        assert outcome.synced is not None
        measured(
            f"wandb, {scenario}: slowest step {outcome.slower_s * 1e3:+.0f} ms, end after {outcome.exit_s:.1f} s, "
            f"rows arrived {num_arrived}, on disk {len(outcome.on_disk)}, after sync {len(outcome.synced.history)}"
        )
