"""The command that all studies have: list the runs, make one, make all that are missing, collect.

Kept out: what is kept of a run (runs.py), and what each study makes and finds (scripts/studies/).
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lanes.analysis.pages import commit, processor, rewritten, versions
from lanes.studies.runs import Arm, Kept, Row, Run, planned

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = Path("docs/studies"), Path("docs/studies.md")


@dataclass(frozen=True)
class Study:
    """A question, and how it is answered.

    Attributes:
        name: of its files.
        about: the question and the method, for ``--help``.
        arms: what is compared.
        settings: a frozen dataclass of everything on which the numbers depend, beside arm, seed and data.
        data: where images come from by default; runs on others have files of their own.
        make: makes a run: (arm, seed, settings, data) -> its numbers.
        tables: the rows of all runs -> Markdown.
        draw: draws the rows of all runs into a file.
        variants: the same question with other settings, by name; their runs have files of their own.
    """

    name: str
    about: str
    arms: tuple[Arm, ...]
    settings: Any
    data: str
    make: Callable[[str, int, Any, str], Row]
    tables: Callable[[Sequence[Row]], str]
    draw: Callable[[Sequence[Row], Path], None]
    variants: Mapping[str, Any] = field(default_factory=dict)


def main(study: Study, given: Sequence[str] | None = None) -> None:
    """Do what the command line asks for.

    Raises:
        SystemExit: the arguments are wrong, or runs of other settings are in the way.
    """
    parser = _parser(study)
    options = parser.parse_args(given)
    if options.set and options.out == ROOT / RESULTS:
        parser.error(f"--set needs another --out: {RESULTS} holds the runs with the study's own settings")
    torch.set_num_threads(options.threads)
    try:
        again, settings = _again(study, options), study.variants.get(options.variant, study.settings)
        changes = {"settings": _settings(settings, options.set), "name": _name(study, options)}
        study = dataclasses.replace(study, **changes)
        runs = planned(study.arms, options.seeds)
        kept = Kept(options.out, study.name, in_words(study.settings))
        made = kept.rows()
    except ValueError as mistake:
        parser.error(str(mistake))
    missing = [run for run in runs if run.key not in made]
    if options.list:
        print("\n".join(f"{run.number}\t{run}\t{'missing' if run in missing else 'made'}" for run in runs))
    elif options.run is not None:
        if not 0 <= options.run < len(runs):
            parser.error(f"--run {options.run}: there are runs 0 to {len(runs) - 1} (--list shows them)")
        if runs[options.run] in missing:
            make(study, kept, runs[options.run], options.data)
        print(f"{study.name}: run {options.run} ({runs[options.run]}) is made")
    else:
        if not options.collect:
            _make_all(study, kept, missing[: options.limit], options.data)
        print(collect(study, kept, runs, options.out, again))


def make(study: Study, kept: Kept, run: Run, data: str) -> None:
    """Make a run and keep it."""
    # Before, as somebody may change the commit meanwhile.
    on = {"commit": commit(ROOT), "versions": versions(), "processor": _device(), "date": str(date.today())}
    start, computed = time.perf_counter(), time.process_time()
    numbers = study.make(run.arm, run.seed, study.settings, data)
    # Beside other jobs a run takes longer than its processor time, which is what it takes on a core of its own.
    took = {
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(time.process_time() - computed, 1),
    }
    kept.keep(run, {**numbers, **took, "data": Path(data).name, **on})


def collect(study: Study, kept: Kept, runs: Sequence[Run], folder: Path, again: str) -> str:
    """Write table, figure and page of the runs that are made.

    Args:
        study: whose.
        kept: what there is.
        runs: that are wanted.
        folder: of all results.
        again: the command that makes the missing.

    Returns:
        What the page says of them.
    """
    rows = kept.collect(runs)
    parts, page, figure = [how_far(study, rows, runs, again)], ROOT / PAGE, folder / f"{study.name}.png"
    published = folder == ROOT / RESULTS and f"<!-- {study.name}:begin -->" in page.read_text()
    if rows:
        study.draw(rows, figure)
        place = figure.relative_to(page.parent) if published else figure.name
        parts += [f"![{study.name}, all runs]({place})", study.tables(rows)]
    text = "\n\n".join(parts)
    if published:
        page.write_text(rewritten(page.read_text(), {study.name: text}))
    else:  # results that are nobody's but the user's
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{study.name}.md").write_text(f"{text}\n")
    return text


def how_far(study: Study, rows: Sequence[Row], runs: Sequence[Run], again: str) -> str:
    """How many runs of each arm are made, on what, and the command with which to go on."""
    made = {(row["arm"], row["seed"]) for row in rows}
    counts = []
    for arm in study.arms:
        wanted = [run for run in runs if run.arm == arm.name]
        counts.append(f"{arm.name} {sum(run.key in made for run in wanted)} of {len(wanted)}")
    left = sum(run.key not in made for run in runs)
    told = [f"Runs made: {'; '.join(counts)}."]
    told.append(f"{left} are missing: `{again}` goes on." if left else "None is missing.")
    if rows:
        for column, words in (("seconds", "Time of a run"), ("processor_seconds", "Processor time")):
            if seconds := sorted(float(row[column]) for row in rows if column in row):
                middle = f"median {median(seconds):.0f} s ({seconds[0]:.0f} - {seconds[-1]:.0f})"
                told.append(f"{words}: {middle}.")
        for column in ("commit", "versions", "processor", "date"):
            told.append(f"{column.capitalize()}: {', '.join(sorted({str(row[column]) for row in rows}))}.")
        told.append(f"Settings: {rows[0]['settings']}.")
    return " ".join(told)


def in_words(settings: Any) -> str:
    """Settings in one line, as they are kept with every run."""
    return " ".join(f"{name}={value}" for name, value in dataclasses.asdict(settings).items())


def _make_all(study: Study, kept: Kept, missing: Sequence[Run], data: str) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), disable=not missing) as bar:
        task = bar.add_task("runs", total=len(missing), rate="")
        start = time.perf_counter()
        for done, run in enumerate(missing, 1):
            bar.update(task, description=str(run))
            if run.key not in kept.rows():  # another process may have made it meanwhile
                make(study, kept, run, data)
            rate = (time.perf_counter() - start) / done
            bar.update(task, advance=1, rate=f"{rate:.0f} s a run")


def _parser(study: Study) -> argparse.ArgumentParser:
    wanted = ", ".join(f"{arm.name} ({arm.seeds} seeds)" for arm in study.arms)
    described = f"{study.about}\n\nArms: {wanted}.\nSettings: {in_words(study.settings)}."
    parser = argparse.ArgumentParser(
        prog=f"scripts/studies/{study.name}",
        description=described,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Without --list, --run or --collect all missing runs are made, one after another, and collected. It can "
        "be stopped at any\nmoment, and called again.",
    )
    doing = parser.add_mutually_exclusive_group()
    doing.add_argument("--list", action="store_true", help="print one run a line: number, what it is, whether made")
    doing.add_argument("--run", type=int, metavar="N", help="make the N-th run if it is missing")
    doing.add_argument("--collect", action="store_true", help="write CSV, tables and figure of what is made")
    parser.add_argument("--seeds", type=_positive, help="of every arm, from 0 (default: what the arm wants)")
    parser.add_argument("--limit", type=_positive, help="make so many of the missing runs at most")
    if study.variants:
        others = "; ".join(f"{name}: {in_words(settings)}" for name, settings in study.variants.items())
        parser.add_argument("--variant", choices=study.variants, help=f"the same with other settings ({others})")
    else:
        parser.set_defaults(variant=None)
    parser.add_argument("--data", default=study.data, help="hub name, or folder of Parquet files (%(default)s)")
    parser.add_argument(
        "--out",
        type=lambda text: Path(text).resolve(),
        default=ROOT / RESULTS,
        help=f"folder of results (default: {RESULTS}, and its table in {PAGE})",
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other settings; needs another --out")
    parser.add_argument("--threads", type=_positive, default=1, help="of a run (default: %(default)s)")
    return parser


def _name(study: Study, options: argparse.Namespace) -> str:
    """Of the files: other settings, and runs on other images, answer another question."""
    return "-".join([study.name, *filter(None, (options.variant, _other_data(study, options)))])


def _again(study: Study, options: argparse.Namespace) -> str:
    """The command for the same runs; a folder of images is named, its path is not."""
    given = {"variant": options.variant, "data": _other_data(study, options), "seeds": options.seeds}
    words = [f"--{name} {value}" for name, value in given.items() if value]
    return " ".join([f"scripts/studies/{study.name}", *words])


def _other_data(study: Study, options: argparse.Namespace) -> str | None:
    own = Path(options.data).name
    return None if own == Path(study.data).name else own


def _settings(settings: Any, changes: Sequence[str]) -> Any:
    """With some of them changed.

    Raises:
        ValueError: there is no such setting, or this is no value of its kind.
    """
    known = dataclasses.asdict(settings)
    for change in changes:
        name, _, text = change.partition("=")
        if name not in known:
            raise ValueError(f"--set {change}: there is no setting {name!r} (there are {', '.join(known)})")
        try:
            known[name] = type(known[name])(text)
        except ValueError:
            raise ValueError(f"--set {change}: {text!r} is no {type(known[name]).__name__}") from None
    return dataclasses.replace(settings, **known)


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return number


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
