"""What the tests of the report read: runs really logged, offline, by the project's own logger, and runs in memory.

Logged are two runs with pictures of two lanes, one of them in two folders, and one that is killed in the middle.
"""

import hashlib
import os
import signal
import subprocess
import sys
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from lanes.report.reading import Picture, Run

EVIL = '</script><img src=x onerror="document.title=1">'  # as a name and in captions: must stay text

SCRIPT = """
import sys, time
from pathlib import Path
from PIL import Image
from lanes.training.wandb_logger import LanesLogger

folder, evil = Path(sys.argv[1]), sys.argv[2]

def log(logger, seed, steps):
    for step in steps:
        logger.log_metrics({"train/loss": 2 / (1 + step), "step_time_s": 0.125, "spec/lane0/colour_share": step / 100,
                            "spec/lane1/colour_share": 1 - step / 100}, step=step)
        if step % 10 == 0:
            logger.log_metrics({"val/loss": 1 / (1 + step), "val/top1": 0.5 + step / 200}, step=step)
            for lane in range(2):
                picture = Image.new("RGB", (120, 80), (40 * seed, 2 * step, 120 * lane))
                logger.log_picture(f"filters/lane{lane}/conv1", picture, step, f"conv1, lane {lane}, {evil}")
            logger.log_picture("corr/conv1-conv2", Image.new("L", (64, 64), 2 * step + seed), step, "square")

def finished(name, seed, parts):
    for number, part in enumerate(parts):
        time.sleep(1.1 if number else 0)  # folders are named by the second
        logger = LanesLogger(folder / str(seed), name=name, mode="offline", run_id=f"run{seed}")
        logger.log_hyperparams({"seed_everything": seed, "trainer": {"max_epochs": 3}, "note": evil})
        log(logger, seed, part)
        if seed == 1:
            logger.log_metrics({"broken": float("nan")}, step=part[-1])
            logger.log_metrics({"words": f"p = 0.01 {evil}"}, step=part[-1])
        logger.finalize("success")

if sys.argv[3] == "finished":
    finished("two parts", 1, [range(0, 31), range(25, 51)])
    finished(f"other {evil}", 2, [range(0, 51, 5)])
else:
    logger = LanesLogger(folder / "killed", name="killed", mode="offline", run_id="killed")
    step = 0
    while True:  # until it is killed
        log(logger, 3, [step])
        step += 1
        if step % 10 == 0 and logger.run_folder.joinpath("run-killed.wandb").stat().st_size >= 2**15:
            print(step, flush=True)
            time.sleep(60)
"""


def two_runs(factory: pytest.TempPathFactory) -> Path:
    """A folder with training folders ``1`` (one run in two parts) and ``2``; made once, not to be written to."""
    return _two_runs(factory.getbasetemp() / "report-runs")


@lru_cache(maxsize=1)
def _two_runs(folder: Path) -> Path:
    process = _start(folder, "finished")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    return folder


def make_killed_run(folder: Path) -> int:
    """Training folder ``killed``, of a run that logs until its processes are killed; returns its number of steps."""
    process = _start(folder, "killed")
    assert process.stdout is not None
    try:
        lines = (line for line in process.stdout if line.strip().isdigit())
        return int(next(lines))
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # wandb's own process is in the same group
        process.communicate()


def _start(folder: Path, what: str) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "SLURM_"))}
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), EVIL, what],
        cwd=folder,
        env=kept | {"HOME": str(folder), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def log_file(folder: Path, run_id: str, time: str) -> Path:
    """An empty log, where wandb would put it: a run that was killed before it wrote anything."""
    log = folder / "wandb" / f"offline-run-{time}-{run_id}" / f"run-{run_id}.wandb"
    log.parent.mkdir(parents=True)
    log.touch()
    return log


def a_run(folder: Path, name: str = "first", captions: tuple[str, ...] = ("conv1, lane 0", "conv1, lane 1")) -> Run:
    """A run in memory with one picture per caption."""
    run = Run(name, name=name, folders=[folder], ending=0)
    run.scalars = {"train/loss": {0: 1.0, 5: None, 10: 0.123456789}}
    for lane, caption in enumerate(captions):
        path = folder / f"{name}-{lane}.png"
        Image.new("RGB", (9, 7), (lane, 0, 0)).save(path)
        picture = Picture(path, caption, 9, 7, hashlib.sha256(path.read_bytes()).hexdigest())
        run.pictures[f"filters/lane{lane}/conv1"] = {0: picture, 10: picture}
    return run


class Parsed(HTMLParser):
    """Scripts and links of a page, as a browser finds them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.title, self._in = "", ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts[-1] += data
        self.title += data if self._in == "title" else ""
