"""The verb ``status``: a line for every job and training of a user.

Kept out: asking SLURM (slurm.py), reading what trainings tell (progress.py).
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lanes.status.progress import UNDER_WAY, Progress, find_runs, last_checkpoint, silent_s
from lanes.status.slurm import Job, has_slurm, jobs
from lanes.tables import table

DESCRIPTION = "Show jobs and trainings: state, step, rate, time left, last checkpoint, loss, and where to look."
EPILOG = """Without JOB: all jobs of yours that the cluster still knows, and the newest trainings below runs/. Rate and
time left include validations; "limit" is what is left of the job's time limit. The loss is that of the last batch on
the first replica. A training tells of itself every 5 seconds (progress.json in its folder)."""
SHOWN = 20  # trainings without a job
SILENT_S = 60  # a training that has told nothing for so long is perhaps no more
HEAD = ("job", "name", "state", "step", "rate", "left", "limit", "checkpoint", "loss", "run", "log")


@dataclass(frozen=True)
class Seen:
    """A job, its training, or both."""

    job: Job | None
    progress: Progress | None


def run(args: Sequence[str]) -> None:
    """``lanes status [JOB ...] [--runs FOLDER ...]``.

    Raises:
        SystemExit: code 1 if what was asked for is not there, 2 for a mistake in the arguments.
    """
    parser = argparse.ArgumentParser(prog="lanes status", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help="number of a job, or of one task of an array: 123_4")
    parser.add_argument("--runs", nargs="+", type=Path, metavar="FOLDER", help="where runs lie; default: runs")
    parser.add_argument("--all", action="store_true", help=f"all trainings, not only the newest {SHOWN}")
    asked = parser.parse_args(args)
    wrong = None
    found: list[Job] = []
    if has_slurm():
        found, wrong = jobs(asked.jobs)
    seen = gathered(found, asked.runs, asked.jobs)
    alone = [one for one in seen if one.job is None]
    left_out = [] if asked.all else alone[:-SHOWN]
    shown = [one for one in seen if one not in left_out]
    if wrong:
        print(f"lanes status: {wrong}{'' if found else '; what follows is what trainings tell'}", file=sys.stderr)
    if not shown:
        places = ", ".join(map(str, asked.runs or [Path("runs")]))
        what = f"job {', '.join(asked.jobs)}" if asked.jobs else "job, and no training"
        print(f"lanes status: there is no {what} (looked below {places}; --runs names another place)", file=sys.stderr)
        raise SystemExit(1 if asked.jobs else 0)
    print(table([HEAD, *(_row(one) for one in shown)], "<<<>>>>><<<"))
    if left_out:
        print(f"and {len(left_out)} older trainings: --all shows them")


def gathered(found: Sequence[Job], places: Sequence[Path] | None, asked: Sequence[str]) -> list[Seen]:
    """Jobs with their trainings, then trainings that have no job, each in the order of time.

    Args:
        found: jobs.
        places: where runs lie; default: below runs/ here, and where jobs were submitted.
        asked: numbers of jobs; if any, only these are shown.
    """
    submitted = [Path(job.folder) / "runs" for job in found if job.folder]
    roots = dict.fromkeys(path.resolve() for path in places or [Path("runs"), *submitted])
    told: dict[str, Progress] = {}
    for progress in sorted((p for root in roots for p in find_runs(root)), key=lambda p: p.time):
        told[str(Path(progress.run).resolve())] = progress
    by_job: dict[str, list[Progress]] = {}
    for progress in told.values():
        if progress.job:
            by_job.setdefault(progress.job, []).append(progress)
    seen = [Seen(job, by_job[job.id][-1] if job.id in by_job else None) for job in sorted(found, key=_by_number)]
    with_job = {one.progress.run for one in seen if one.progress}
    rest = [p for p in told.values() if p.run not in with_job and (not asked or p.job in asked)]
    return [*seen, *(Seen(None, progress) for progress in rest)]


def _by_number(job: Job) -> tuple[int, int]:
    number, _, task = job.id.partition("_")
    first = task.split("-")[0].split(",")[0]
    return int(number), int(first) if first.isdigit() else 0


def state(job: Job | None, progress: Progress | None) -> str:
    """What goes on, in a few words."""
    if job is not None and (job.state == "PENDING" or job.over):
        return _of_job(job, progress)
    if progress is None or (job is not None and _ended(progress)):
        return job.state.lower() if job else "-"
    if _ended(progress):
        return progress.doing
    if job is None and progress.lives() is False:
        return f"killed while {progress.doing}"
    silent = silent_s(progress)
    return progress.doing + (f", silent for {_span(silent)} on {progress.host}" if silent > SILENT_S else "")


def _of_job(job: Job, progress: Progress | None) -> str:
    """Of one that waits, or is over."""
    if job.state == "PENDING":
        again = f", has begun {job.restarts + 1} times" if job.restarts else ""
        return f"pending: {job.reason or 'about to begin'}{again}"
    if job.state == "COMPLETED" and progress and not _ended(progress):
        return "completed, but its training was not"
    if job.state == "FAILED" and progress and _ended(progress):
        return progress.doing
    return job.state.lower().replace("_", " ")


def _ended(progress: Progress) -> bool:
    return progress.doing not in UNDER_WAY


def _row(seen: Seen) -> tuple[str, ...]:
    job, progress = seen.job, seen.progress
    words = state(job, progress)
    number = job.id if job else progress.job if progress and progress.job else "-"
    name = job.name if job else "-".join(Path(progress.run).parts[-2:]) if progress else "-"
    limit = _span(job.left_s) if job and job.left_s is not None else "-"
    log = (progress and progress.log) or (job.log if job else "") or "-"
    if progress is None:
        return (number, name, words, "-", "-", "-", limit, "-", "-", "-", _near(log))
    step = f"{progress.step:,}"
    if progress.steps:
        step += f" of {progress.steps:,} ({progress.step / progress.steps:.0%})"
    runs = words.split(",")[0] in UNDER_WAY
    rate = f"{progress.steps_per_s:.3g} steps/s" if runs and progress.steps_per_s else "-"
    left = _span(progress.left_s) if runs and progress.left_s is not None else "-"
    saved = last_checkpoint(progress)
    checkpoint = f"{saved[0]:,}, {_span(time.time() - saved[1])} ago" if saved else "none"
    loss = "-" if progress.loss is None else f"{progress.loss:.4f}"
    return (number, name, words, step, rate, left, limit, checkpoint, loss, _near(progress.run), _near(log))


def _span(seconds: float) -> str:
    """As a person says it: 2 d 3 h, 1 h 05 min, 4 min, 12 s."""
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60:02d} min"
    return f"{minutes} min" if minutes else f"{int(seconds)} s"


def _near(path: str) -> str:
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if path != "-" and Path(path).is_relative_to(here) else path
