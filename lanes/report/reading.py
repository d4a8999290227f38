"""Runs of Weights & Biases as they lie on disk: finds their folders and reads them, also of a run that was killed.

wandb's log is its own format; the command that ships with wandb turns it into JSON (``wandb leet inspect --json``) and
skips what a crash left broken. A run that was resumed offline lies in several folders with one id: they are merged by
id and ``trainer/global_step``. Kept out: how it is shown, and media other than single pictures.
"""

import glob
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

Value = TypeVar("Value")
STEP_KEY, OWN_STEP_KEY = "trainer/global_step", "_step"  # wandb's own counts calls and begins anew in every folder
NOT_FINITE = {"NaN": None, "Infinity": None, "-Infinity": None}  # as wandb writes them; a gap in a curve
# A run's folder, wandb/, a training's, a folder of trainings, runs/.
DEPTHS = ("", "*run-*/", "wandb/*run-*/", "*/wandb/*run-*/", "*/*/wandb/*run-*/")
PACKAGES = ("lanes", "torch", "lightning", "torchmetrics", "wandb", "numpy")


@dataclass(frozen=True)
class Picture:
    """One logged picture: its file, the line under it, its size in pixels, and what tells it from others."""

    path: Path
    caption: str
    width: int
    height: int
    digest: str


@dataclass
class Run:
    """What all folders of one run say together.

    Attributes:
        run_id: the id that the folders share.
        name: the run's name.
        folders: where it lies, oldest first.
        ending: None while no end was logged (it goes on, or was killed), else the exit code.
        runtime_s: how long it ran, all folders together.
        facts: when it started, what was run, versions: word -> text.
        config: the configuration, as nested as it was logged (or as ``config.yaml`` in the training's folder has it).
        scalars: key -> global step -> value; None is not a finite number.
        texts: key -> global step -> logged text.
        pictures: key -> global step -> picture.
    """

    run_id: str
    name: str = ""
    folders: list[Path] = field(default_factory=list)
    ending: int | None = None
    runtime_s: float = 0.0
    facts: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    scalars: dict[str, dict[int, float | None]] = field(default_factory=dict)
    texts: dict[str, dict[int, str]] = field(default_factory=dict)
    pictures: dict[str, dict[int, Picture]] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether nothing was logged."""
        return not (self.scalars or self.texts or self.pictures)


def find_logs(places: Iterable[str | Path]) -> dict[str, list[Path]]:
    """The log files of all runs in these places: id -> files, oldest first.

    Args:
        places: run folders (``.../wandb/offline-run-*``), or folders in which such are found: ``wandb``, a training's
            folder, or a folder of those. With a run's folder come those beside it that continue the same run.

    Raises:
        ValueError: a place does not exist, or holds no run.
    """
    found: dict[str, set[Path]] = {}
    for place in map(Path, places):
        if not place.exists():
            raise ValueError(f"no such folder: {place}")
        if place.is_file() and place.suffix != ".wandb":
            raise ValueError(f"{place} is a file: give a run's folder, or the folder that a training wrote")
        folder = (place if place.is_dir() else place.parent).resolve()
        logs = [log for depth in DEPTHS for log in folder.glob(f"{depth}run-*.wandb")]
        if not logs:
            raise ValueError(
                f"no run in {place}: give a run's folder (.../wandb/offline-run-...) or the folder that a training "
                "wrote (trainer.default_root_dir)"
            )
        for log in logs:
            beside = log.parent.parent.glob(f"*run-*/{glob.escape(log.name)}")
            found.setdefault(log.stem.removeprefix("run-"), set()).update(path.resolve() for path in (log, *beside))
    ordered = {run_id: sorted(logs, key=_started) for run_id, logs in found.items()}
    return dict(sorted(ordered.items(), key=lambda item: _started(item[1][0])))


def _started(log: Path) -> str:
    return log.parent.name.rpartition("run-")[2]  # offline-run-20261121_154832-8r5nabdv begins with the time


def read_run(logs: Sequence[Path]) -> Run:
    """Read one run from its log files, oldest first; at the same step a later file has the last word.

    Raises:
        ValueError: a file cannot be read; says why.
    """
    run = Run(logs[0].stem.removeprefix("run-"))
    for log in logs:
        run.folders.append(log.parent)
        run.ending = None
        _read_into(run, log)
    run.scalars, run.texts = _by_step(run.scalars), _by_step(run.texts)
    run.pictures = _by_step(run.pictures)
    if not run.config.keys() - {"_wandb"}:
        run.config = _config_beside(logs[-1])
    return run


def _config_beside(log: Path) -> dict[str, Any]:
    """The configuration that the command wrote into the training's folder; the logger is not always given it."""
    path = log.parents[2] / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError, yaml.YAMLError) as mistake:
        raise ValueError(f"{path} cannot be read: {' '.join(str(mistake).split())[:200]}") from mistake
    return config if isinstance(config, dict) else {}


def _by_step(series: dict[str, dict[int, Value]]) -> dict[str, dict[int, Value]]:
    return {key: dict(sorted(values.items())) for key, values in series.items()}


def _read_into(run: Run, log: Path) -> None:
    rows: list[dict[str, Any]] = []
    runtime_s = 0.0
    for record in _records(log):
        content = record.get(record.get("type", ""), {})
        match record.get("type"):
            case "history":
                rows.append(content.get("item", {}))
                runtime_s = max(runtime_s, rows[-1].get("_runtime", 0.0))
            case "config":
                run.config |= content.get("update", {})
            case "run":
                run.name = content.get("display_name", run.run_id)
                run.facts.setdefault("started", content.get("start_time", "")[:16].replace("T", " ") + " UTC")
                run.facts["project"] = content.get("project", "")
                run.facts["wandb"] = content.get("telemetry", {}).get("cli_version", "")
            case "environment":
                run.facts |= _environment(content)
            case "exit":
                run.ending = content.get("exit_code", 0)
                runtime_s = max(runtime_s, content.get("runtime", 0.0))
    run.runtime_s += runtime_s
    run.facts |= _packages(log.parent / "files" / "requirements.txt")
    step_key = STEP_KEY if any(STEP_KEY in row for row in rows) else OWN_STEP_KEY
    for row in rows:
        if step_key in row:
            _add_row(run, row, int(row[step_key]), log.parent / "files")


def _add_row(run: Run, row: dict[str, Any], step: int, files: Path) -> None:
    media = {key.removesuffix("._type") for key in row if key.endswith("._type")}
    for key in media:
        picture = _picture(row, key, files)
        if picture is not None:
            run.pictures.setdefault(key, {})[step] = picture
    for key, value in row.items():
        if key.startswith("_") or key == STEP_KEY or any(key.startswith(f"{name}.") for name in media):
            continue
        if isinstance(value, str) and value in NOT_FINITE:
            run.scalars.setdefault(key, {})[step] = None
        elif isinstance(value, int | float):
            run.scalars.setdefault(key, {})[step] = float(value)
        elif isinstance(value, str):
            run.texts.setdefault(key, {})[step] = value


def _picture(row: dict[str, Any], key: str, files: Path) -> Picture | None:
    """The picture that a row tells of; None if it is none, its file is gone, or it would lie outside of the run."""
    if row[f"{key}._type"] != "image-file":
        return None
    path = (files / row.get(f"{key}.path", "")).resolve()
    if not path.is_file() or not path.is_relative_to(files.resolve()):
        return None
    caption = row.get(f"{key}.caption") or key
    width, height = row.get(f"{key}.width", 0), row.get(f"{key}.height", 0)
    return Picture(path, str(caption), width, height, row.get(f"{key}.sha256") or path.name)


def _environment(content: dict[str, Any]) -> dict[str, str]:
    facts = {
        "command": " ".join([Path(content.get("program", "")).name, *content.get("args", [])]).strip(),
        "commit": content.get("git", {}).get("commit", ""),
        "Python": content.get("python", "").removeprefix("CPython "),
        "system": content.get("os", ""),
        "processor": content.get("cpu", {}).get("model", ""),
        "cores": str(content.get("cpu_count", "")),
        "GPU": content.get("gpu", ""),
    }
    return {word: text for word, text in facts.items() if text}  # wandb writes it in two records, each a part


def _packages(requirements: Path) -> dict[str, str]:
    if not requirements.is_file():  # a run that was killed in its first second
        return {}
    pairs = (line.partition("==") for line in requirements.read_text(errors="replace").splitlines())
    versions = {name: version for name, _, version in pairs}
    return {name: versions[name] for name in PACKAGES if name in versions}


def _records(log: Path) -> Iterator[dict[str, Any]]:
    """The records of a log file, as wandb's own command reads them.

    Raises:
        ValueError: it cannot read the file, or is not installed.
    """
    if not os.access(log, os.R_OK):
        raise ValueError(f"{log} cannot be read: permission denied")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    environment = os.environ | {"WANDB_ERROR_REPORTING": "false"}  # or it looks up a host
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                yield json.loads(line)
            if process.wait():
                errors.seek(0)
                why = " ".join(errors.read().split())[-300:] or f"wandb ended with code {process.returncode}"
                raise ValueError(f"{log} cannot be read: {why}")
        except json.JSONDecodeError as mistake:
            raise ValueError(f"{log} cannot be read: {mistake}") from mistake
        finally:
            with suppress(ProcessLookupError):  # wandb's child outlives it otherwise
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
