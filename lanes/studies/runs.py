"""The runs of a study, and what is kept of those that are made.

Each run is one small file, written beside its place and renamed when it is whole: any number of processes can make runs
at a time, on any number of machines that share the folder, and all can stop at any moment. Collecting puts them into
one CSV file, which lies in the repository: runs that are in it are not made again.

Kept out: the command (command.py), making runs.
"""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

Value = str | int | float
Row = dict[str, Value]
Key = tuple[str, int]  # arm, seed

WORDS = (
    "arm",
    "settings",
    "data",
    "commit",
    "versions",
    "processor",
    "date",
)  # columns whose words may look like numbers


@dataclass(frozen=True)
class Arm:
    """One of the things that a study compares.

    Attributes:
        name: in tables and figures.
        seeds: how many runs the study wants of it.
    """

    name: str
    seeds: int


@dataclass(frozen=True)
class Run:
    """One run of a study; ``number`` is its place in the list of all."""

    number: int
    arm: str
    seed: int

    @property
    def key(self) -> Key:
        """What a run is known by: numbers depend on how many seeds are wanted."""
        return self.arm, self.seed

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"


def planned(arms: Sequence[Arm], seeds: int | None = None) -> list[Run]:
    """All runs, seed by seed, so that a study that is interrupted has compared all arms on the seeds it did.

    Args:
        arms: which are compared.
        seeds: of every arm; None: as many as the arm wants.
    """
    counts = {arm.name: arm.seeds if seeds is None else seeds for arm in arms}
    pairs = [(name, seed) for seed in range(max(counts.values())) for name, count in counts.items() if seed < count]
    return [Run(number, *pair) for number, pair in enumerate(pairs)]


class Kept:
    """The runs of one study that are made: FOLDER/NAME.csv, and below FOLDER/NAME/ those not yet collected.

    Args:
        folder: of all studies.
        name: of the study.
        settings: of the runs; others are refused, as they answer another question.
    """

    def __init__(self, folder: Path, name: str, settings: str) -> None:
        self.table, self.folder, self.settings = folder / f"{name}.csv", folder / name, settings

    def rows(self) -> dict[Key, Row]:
        """All runs that are made, whether collected or not.

        Raises:
            ValueError: one was made with other settings, or cannot be read.
        """
        rows = [*self._collected(), *map(self._read, sorted(self.folder.glob("*.json")))]
        for row in rows:
            if row["settings"] != self.settings:
                raise ValueError(
                    f"{self.table.parent} holds a run of {self.table.stem} ({row['arm']}, seed {row['seed']}) with "
                    f"other settings, {row['settings']!r} instead of {self.settings!r}; give another --out"
                )
        return {(str(row["arm"]), int(row["seed"])): row for row in rows}

    def keep(self, run: Run, row: Mapping[str, Value]) -> None:
        """Write what was made; whole or not at all."""
        place = self.folder / f"{run.arm.replace(' ', '-')}-{run.seed}.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(place, json.dumps({"arm": run.arm, "seed": run.seed, "settings": self.settings, **row}) + "\n")

    def collect(self, order: Sequence[Run]) -> list[Row]:
        """Write all runs, if any, into the table, those of ``order`` first and in that order; their files stay.

        Returns:
            The rows of the table.
        """
        made = self.rows()
        keys = [run.key for run in order if run.key in made]
        rows = [made[key] for key in dict.fromkeys([*keys, *sorted(made)])]
        if not rows:
            return []
        columns = list(dict.fromkeys(column for row in rows for column in row))
        partial = self.table.with_suffix(f".{os.getpid()}.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(self.table)
        return rows

    def _collected(self) -> list[Row]:
        if not self.table.is_file():
            return []
        with self.table.open(newline="") as file:
            return [{name: _value(name, text) for name, text in row.items() if text} for row in csv.DictReader(file)]

    @staticmethod
    def _read(path: Path) -> Row:
        try:
            row: Row = json.loads(path.read_text())
        except ValueError as mistake:
            raise ValueError(f"{path} cannot be read ({mistake}); delete it, and the run is made anew") from None
        return row


def _value(column: str, text: str) -> Value:
    """What a cell holds: a hash such as 12e4567 is no number."""
    if column not in WORDS:
        for kind in (int, float):
            with suppress(ValueError):
                return kind(text)
    return text


def _write(place: Path, text: str) -> None:
    partial = place.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(text)
    partial.replace(place)
