"""A sweep: one configuration trained with every combination of a few values, from a small YAML file.

    config: configs/photographs.yaml
    keys: {trainer.max_epochs: 2}                    # of all runs; may be left out
    grid:
      model.net.init_args.lanes: [1, 2, 4]
      seed_everything: [0, 1, 2]

Each run has a name from what differs, so that a sweep that is started again finds what it has made. Kept out: training.
"""

import argparse
import itertools
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lanes.jobs.verdict import refuse
from lanes.words import near

KEYS = ("config", "keys", "grid")


def run(args: Sequence[str]) -> list[str] | None:
    """The verb ``sweep``: list the runs, or say by which command of ``lanes`` one of them is trained.

    Returns:
        The command's words, if a run was asked for; None if they were listed.

    Raises:
        SystemExit: code 2, after one line on what is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="lanes sweep", description="List the runs of a sweep, or train one.", allow_abbrev=False
    )
    parser.add_argument("sweep", type=Path, help="a YAML file: config, grid, keys")
    parser.add_argument("--run", type=int, default=None, help="train this run, by its number in the list")
    asked, more = parser.parse_known_args(args)
    try:
        sweep = read(asked.sweep)
        names = [name_of(values) for values in combinations(sweep)]
        if len(set(names)) < len(names):
            raise ValueError(f"two runs would have the same name, {_twice(names)!r}; name each value once")
        if asked.run is None:
            _show(asked.sweep, names)
            return None
        if not 0 <= asked.run < len(names):
            raise ValueError(f"--run {asked.run}: the sweep has {len(names)} runs, 0 to {len(names) - 1}")
    except (ValueError, OSError) as mistake:
        refuse(str(mistake))
        print(f"lanes sweep: error: {' '.join(str(mistake).split())}", file=sys.stderr)
        raise SystemExit(2) from mistake
    os.environ.setdefault("WANDB_RUN_GROUP", asked.sweep.stem)
    return command(sweep, asked.sweep.stem, asked.run, more)


def read(path: Path) -> dict[str, Any]:
    """Read a sweep and check its keys.

    Raises:
        OSError: there is no such file.
        ValueError: it is no sweep.
    """
    try:
        sweep = yaml.safe_load(path.read_text())
    except yaml.YAMLError as mistake:
        raise ValueError(f"{path} is no YAML: {mistake}") from mistake
    if not isinstance(sweep, dict) or not {"config", "grid"} <= sweep.keys():
        raise ValueError(f"{path} is no sweep: it needs `config`, a file, and `grid`, lists of values by key")
    for key in sweep.keys() - set(KEYS):
        raise ValueError(f"{path}: a sweep has no {key!r}{near(key, KEYS)} (it has {', '.join(KEYS)})")
    if not Path(sweep["config"]).is_file():
        raise ValueError(f"{path}: there is no configuration {sweep['config']}")
    for key, values in sweep["grid"].items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{path}: {key} needs a list of values, not {values!r}")
    return sweep


def combinations(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """What differs in each run: the last key of the grid fastest."""
    grid = sweep["grid"]
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def name_of(values: dict[str, Any]) -> str:
    """A run's name: the last words of its keys, and their values."""
    words = "-".join(f"{key.rpartition('.')[2]}={value}" for key, value in values.items())
    return re.sub(r"[^\w.=-]+", "_", words)


def command(sweep: dict[str, Any], group: str, number: int, more: Sequence[str] = ()) -> list[str]:
    """The words behind ``lanes`` that train one run, or let it go on."""
    values = combinations(sweep)[number]
    words = ["fit", "-c", str(sweep["config"]), "--trainer.default_root_dir", f"runs/{group}", "--run", name_of(values)]
    for key, value in {**sweep.get("keys", {}), **values}.items():
        words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return [*words, *more]


def _show(path: Path, names: list[str]) -> None:
    width = len(str(len(names) - 1))
    print("\n".join(f"{number:{width}}  {name}" for number, name in enumerate(names)))
    print(f"one here:           lanes sweep {path} --run 0")
    print(f"all, as an array:   sbatch --array=0-{len(names) - 1} slurm/sweep.sbatch {path}")


def _twice(names: list[str]) -> str:
    return next(name for name in names if names.count(name) > 1)
