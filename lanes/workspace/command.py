"""The verb ``workspace``: a Weights & Biases workspace whose panels follow what runs have logged.

Kept out: everything but words.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lanes.report.reading import find_logs, read_run
from lanes.workspace.panels import Section, expected_keys, sections
from lanes.workspace.specification import as_json, workspace

DESCRIPTION = """Make a workspace in Weights & Biases: filters of all lanes with a slider over steps, curves of all
lanes in one plot, and a panel for everything else that was logged. Every call makes a new one."""
EPILOG = """RUN is a run's folder (.../wandb/offline-run-...), or the folder that a training wrote: the panels follow
what it has logged. Before the first run, --lanes and --layer say what there will be. Sliders of a section move together
once "Sync slider by key" is set in the section's media settings, which no specification can do."""
PROJECT, LAYER = "lanes", "conv1"


def run(args: Sequence[str]) -> None:
    """``lanes workspace [RUN ...] [--lanes N] [--layer NAME ...] [--entity E] [--project P] [--print | -o FILE]``.

    Raises:
        SystemExit: code 2 for a mistake in the arguments or if it cannot be saved, after one line.
    """
    parser = argparse.ArgumentParser(prog="lanes workspace", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs on disk whose keys the panels follow")
    parser.add_argument("--lanes", type=int, metavar="N", help="without a RUN: how many lanes there will be")
    parser.add_argument(
        "--layer", action="append", metavar="NAME", help=f"without a RUN: layers in forward order; default: {LAYER}"
    )
    parser.add_argument("--entity", help="account or team; default: your own")
    parser.add_argument("--project", help=f"default: the run's, else {PROJECT}")
    parser.add_argument("--name", default="lanes", help="of the workspace; default: lanes")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--print", action="store_true", help="print the specification (JSON) instead of saving it")
    where.add_argument("-o", "--output", metavar="FILE", help="write it to a file instead")
    asked = parser.parse_args(args)
    try:
        print(_made(asked))
    except (ValueError, OSError) as mistake:
        if os.environ.get("LANES_DEBUG"):
            raise
        print(f"lanes workspace: error: {' '.join(str(mistake).split())}", file=sys.stderr)
        raise SystemExit(2) from None


def _made(asked: argparse.Namespace) -> str:
    output = Path(asked.output) if asked.output else None
    if output is not None:
        _check_output(output)
    parts, project = _of_runs(asked) if asked.runs else (_expected(asked), PROJECT)
    project = asked.project or project

    def build(entity: str) -> Any:
        return workspace(parts, entity=entity, project=project, name=asked.name)

    if asked.print:
        return as_json(build(asked.entity or ""))
    if output is not None:
        partial = output.with_name(f".{output.name}.partial")
        partial.write_text(as_json(build(asked.entity or "")) + "\n", encoding="utf-8")
        partial.replace(output)
        return f"{output}: {_counts(parts)}"
    build("")  # what is wrong with it should be said before the server is asked
    from lanes.workspace.saving import save  # noqa: PLC0415  (imports Lightning, which takes seconds)

    return f"{save(build, asked.entity)}  ({_counts(parts)})"


def _of_runs(asked: argparse.Namespace) -> tuple[list[Section], str]:
    if asked.lanes is not None or asked.layer:
        raise ValueError("--lanes and --layer are for a workspace without a RUN: the panels follow what it has logged")
    runs = [read_run(logs) for logs in find_logs(asked.runs).values()]
    parts = sections([key for run in runs for key in run.scalars], [key for run in runs for key in run.pictures])
    if not parts:
        raise ValueError(f"nothing was logged yet in {', '.join(map(str, asked.runs))}: give --lanes N instead")
    projects = {run.facts.get("project") or PROJECT for run in runs}
    if len(projects) > 1 and not asked.project:
        raise ValueError(f"the runs are of several projects, {', '.join(sorted(projects))}: name one with --project")
    return parts, min(projects)


def _expected(asked: argparse.Namespace) -> list[Section]:
    if asked.lanes is None:
        raise ValueError("give a RUN, whose keys the panels follow, or --lanes N")
    if asked.lanes < 1:
        raise ValueError(f"--lanes {asked.lanes} must be at least 1")
    from lanes.analysis.specialisation import MEASURES  # noqa: PLC0415  (imports torch, which takes seconds)

    return sections(*expected_keys(asked.lanes, asked.layer or [LAYER], list(MEASURES)))


def _check_output(output: Path) -> None:
    """Before runs are read, which may take a while."""
    if output.is_dir():
        raise ValueError(f"-o {output} is a folder; name a file, e.g. {output / 'workspace.json'}")
    if not output.parent.is_dir():
        raise ValueError(f"-o {output}: there is no folder {output.parent}")


def _counts(parts: Sequence[Section]) -> str:
    return f"{len(parts)} sections, {sum(len(part.panels) for part in parts)} panels"
